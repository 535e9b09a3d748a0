"""The prediction log: for every answer what is needed to replay it bit for bit.

Each process appends to segments of its own, `predictions/<process>/`, before its answers go out. Whole segments are rotated to Parquet
(`rotation.py`) and then removed. A segment and the Parquet parts made of it have one name, its process and first record number: whoever reads takes
the segment while it is there and its parts afterwards, so every record is read exactly once, whenever a rotation was killed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.errors import LogError
from sameworld.stores.clock import Clock
from sameworld.stores.prediction import Prediction, Shape, column_of, logged
from sameworld.stores.prediction_table import predictions_of, table_of
from sameworld.stores.record_log import Durability, RecordLog, read_segment, segments

__all__ = ["Prediction", "PredictionLog", "Shape", "column_of", "logged", "predictions"]

_SECOND = 1_000_000
_PART = re.compile(r"part-(.+)-([0-9]{20})\.parquet")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Prediction).decode


class PredictionLog:
    """One process's own log under `predictions/`; written before the answer goes out, so that it survives the process.

    A log that cannot be written stops no answer: `write` says why, and begins again by itself when the cause has gone. Not for several threads at once.

    Args:
        folder: the store's.
        clock: names the log.
        segment_bytes: size at which a segment is complete.
        durability: "disk" for rows that are to survive a power cut once `descriptor` has been synced.
    """

    def __init__(
        self, folder: Path, clock: Clock, *, segment_bytes: int = 64 << 20, durability: Durability = "process"
    ) -> None:
        self.process = f"{clock.now():x}-{os.getpid():x}-{secrets.token_hex(2)}"
        self._folder = folder / "predictions" / self.process
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._durability: Durability = durability
        self._count = 0
        self._lock = -1
        self._log: RecordLog | None = None
        self._described: set[str] = set()
        self._newest = (-1, 0)  # the newest segment's first number, and when it was first looked at
        with suppress(LogError, OSError):  # `write` tries again, and says so
            self._begin()

    @property
    def on_disk(self) -> bool:
        """Whether rows are promised to survive a power cut."""
        return self._durability == "disk"

    def next_id(self) -> str:
        """Give an id that no other answer has."""
        self._count += 1
        return f"{self.process}-{self._count:x}"

    def write(self, predictions: Sequence[Prediction], shape: Shape) -> str:
        """Append predictions of one model version; give why it failed, or nothing."""
        try:
            log = self._log or self._begin()
            log.append([_encode(prediction) for prediction in predictions], sync=False)
        except LogError as error:
            return error.what
        except OSError as error:
            return f"The prediction log cannot be begun: {error.strerror or error}."
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            return f"A value cannot be written to the prediction log: {error}."
        if predictions and predictions[0].version not in self._described:
            with suppress(OSError):  # the records are there; the next write tries again
                self._describe(predictions[0].version, shape)
        return ""

    def descriptor(self) -> int | None:
        """Give what `record_log.synced` takes to have on the disk all that was written; None when there is no log."""
        try:
            return None if self._log is None else self._log.descriptor()
        except OSError:
            return None

    def complete(self, older_than_seconds: float) -> None:
        """Begin a new segment when the newest has had records for so long, so that it can be rotated; and a new log when somebody has removed this one."""
        if self._log is None:
            return
        if self._log.first_number not in segments(self._folder):
            self.close()
            self._log = None
            self._described.clear()
            return
        if self._log.next_number == self._log.first_number:
            return
        first, since = self._newest
        if first != self._log.first_number:
            self._newest = self._log.first_number, self._clock.now()
        elif self._clock.now() - since >= older_than_seconds * _SECOND:
            with suppress(LogError):  # the next write tries again
                self._log.begin_segment()

    def close(self) -> None:
        """Give the log up; it may be closed twice."""
        if self._log is not None:
            self._log.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _begin(self) -> RecordLog:
        """Open the log. The lock comes before the first record and ends with the process: without it the segments are nobody's any more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._lock < 0:
            self._lock = held(self._folder)
        self._log = RecordLog.open(
            self._folder, durability=self._durability, segment_bytes=self._segment_bytes
        )
        return self._log

    def _describe(self, version: str, shape: Shape) -> None:
        path = _shape_path(self._folder, version)
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(shape))
            if self.on_disk:
                file.flush()
                os.fsync(file.fileno())
        os.replace(fresh, path)
        self._described.add(version)


def held(folder: Path, *, wait: bool = True) -> int:
    """Take a folder's lock; give what holds it until it is closed or the process ends.

    Raises:
        BlockingIOError: another process has it, and there is to be no waiting.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(lock)
        raise
    return lock


@dataclass(frozen=True, order=True)
class Segment:
    """One segment, be it still records or Parquet parts already; in the order of their processes' beginnings.

    Args:
        process: whose.
        first: the number of its first record.
    """

    process: str
    first: int

    def raw_folder(self, state: Path) -> Path:
        """Where its records are, or were."""
        return state / "predictions" / self.process

    def part(self, state: Path, model: str, version: str) -> Path:
        """The name of the part with its predictions of one model version. Names are as Hive writes them."""
        name = f"part-{self.process}-{self.first:020d}.parquet"
        return (
            parquet_folder(state)
            / f"model={quote(model, safe='')}"
            / f"version={quote(version, safe='')}"
            / name
        )

    def parts(self, state: Path, model: str | None = None) -> list[Path]:
        """Its parts that are there, of one model or all."""
        which = "*" if model is None else quote(model, safe="")
        name = f"part-{self.process}-{self.first:020d}.parquet"
        return sorted(parquet_folder(state).glob(f"model={which}/version=*/{name}"))


def parquet_folder(state: Path) -> Path:
    """Where rotated predictions are."""
    return state / "predictions" / "parquet"


def rotated(state: Path) -> dict[Segment, list[Path]]:
    """Give the parts that are there, by segment."""
    found: dict[Segment, list[Path]] = {}
    for path in sorted(parquet_folder(state).glob("model=*/version=*/part-*.parquet")):
        match = _PART.fullmatch(path.name)
        if match:
            found.setdefault(Segment(match[1], int(match[2])), []).append(path)
    return found


def raw(state: Path) -> list[Segment]:
    """Give the segments that are still records, in order."""
    folders = (path for path in (state / "predictions").glob("*") if path.is_dir() and path.name != "parquet")
    return sorted(Segment(folder.name, first) for folder in folders for first in segments(folder))


def all_segments(state: Path) -> list[Segment]:
    """Give every segment, once, in order."""
    still = raw(state)  # first: what is rotated meanwhile is among the parts then
    newest = {segment.process: segment.first for segment in still}
    # A later segment than the newest began after this; others between them may have been overlooked while they came and went.
    parts = (
        segment for segment in rotated(state) if segment.first <= newest.get(segment.process, segment.first)
    )
    return sorted({*still, *parts})


def records(state: Path, segment: Segment) -> list[tuple[int, Prediction | None]] | None:
    """Give a segment's (number, prediction), None for a record that is damaged; None when the segment is Parquet by now."""
    try:
        found = list(decoded(state, segment))
    except FileNotFoundError:
        return None
    # Had it gone meanwhile, so could the one after it, and its first record would seem to be missing here.
    return found if segment.first in segments(segment.raw_folder(state)) else None


def decoded(state: Path, segment: Segment) -> Iterator[tuple[int, Prediction | None]]:
    """Give a segment's (number, prediction), None for a record that is damaged.

    Raises:
        FileNotFoundError: it is Parquet by now.
    """
    for number, record in read_segment(segment.raw_folder(state), segment.first):
        yield number, None if record is None else _decode(record)


def predictions(folder: Path) -> Iterator[tuple[str, Prediction | None]]:
    """Give (where, prediction) of every process's log under a store's folder, oldest process first; None for a record, or a part, that is damaged."""
    for segment in all_segments(folder):
        found = records(folder, segment)
        if found is None:
            found = []
            for path in segment.parts(folder):
                try:
                    part = part_table(path)
                except LogError:
                    yield str(path.relative_to(parquet_folder(folder))), None
                else:
                    found += [] if part is None else predictions_of(part)
            found.sort(key=lambda row: row[0])
        for number, prediction in found:
            yield f"{segment.process}#{number}", prediction


def tables(folder: Path, model: str, columns: Callable[[str], bool] = lambda _: True) -> Iterator[pa.Table]:
    """Give a model's predictions as tables (see `prediction_table`), each of one version and one segment, oldest process first.

    Args:
        folder: the store's.
        model: its name in the log.
        columns: which of them.

    Raises:
        LogError: a record is damaged, or of a version whose shape was never written.
    """
    for segment in all_segments(folder):
        found = records(folder, segment)
        if found is None:
            parts = (part_table(path, columns) for path in segment.parts(folder, model))
            yield from (part for part in parts if part is not None)
            continue
        for (_, version), rows in by_version(found, segment).items():
            own = [(number, prediction) for number, prediction in rows if prediction.model == model]
            if own:
                table = table_of(segment.process, own, shape_of(folder, segment, version))
                yield table.select([name for name in table.column_names if columns(name)])


def by_version(
    found: Sequence[tuple[int, Prediction | None]], segment: Segment
) -> dict[tuple[str, str], list[tuple[int, Prediction]]]:
    """Give a segment's predictions by (model, version).

    Raises:
        LogError: a record is damaged.
    """
    result: dict[tuple[str, str], list[tuple[int, Prediction]]] = {}
    for number, prediction in found:
        if prediction is None:
            raise LogError(
                f"Record {number} of prediction log {segment.process} is damaged.",
                do="sameworld prove counts it; restore the segment from a copy, or move the log away.",
            )
        result.setdefault((prediction.model, prediction.version), []).append((number, prediction))
    return result


def shape_of(state: Path, segment: Segment, version: str) -> Shape:
    """Give the shape of a version's records in a segment that is not rotated yet.

    Raises:
        LogError: it was never written.
    """
    path = _shape_path(segment.raw_folder(state), version)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shape)
    except (OSError, msgspec.DecodeError) as error:
        raise LogError(
            f"The names and types of version {version} are not in prediction log {segment.process}.",
            where=str(path),
            found=str(error),
            do="copy the file from another process's log that has it; the records themselves are kept.",
        ) from error


def part_table(path: Path, columns: Callable[[str], bool] = lambda _: True) -> pa.Table | None:
    """Read a part, or some of its columns; None when retention has removed it meanwhile.

    Raises:
        LogError: it is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read([name for name in file.schema_arrow.names if columns(name)])
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise LogError(
            f"Part '{path.name}' of the prediction log is damaged.",
            where=str(path),
            found=str(error).splitlines()[0],
            do="restore the part from a copy, or move it away.",
        ) from error


def _shape_path(folder: Path, version: str) -> Path:
    return folder / f"{quote(version, safe='')}.json"
