"""Training sets on disk: Parquet parts that a run can be stopped between at any instant, and go on after."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sameworld.definitions.feature import Feature
from sameworld.definitions.label import Label
from sameworld.definitions.model import Model
from sameworld.definitions.moments import Log, Moments
from sameworld.engines.cache import cache_folder
from sameworld.engines.cluster import ClusterEngine
from sameworld.engines.interface import Engine, World
from sameworld.engines.named import EngineName, opened_engine
from sameworld.engines.staged import drop
from sameworld.errors import DataError, DefinitionError, TrainingError
from sameworld.training.batches import ROWS, Parts, Progress, unseen
from sameworld.training.fingerprint import Fingerprint, Seen, changes
from sameworld.training.moments import moment_batches
from sameworld.training.part_files import Partition, check_names, files_in, is_there, part_of, parts_in, write
from sameworld.training.training_set import Plan, Say, asked_for, planned, silent
from sameworld.training.write_part import WritePart, Wrote, check_alike

MANIFEST = "_training_set.json"
_MOMENTS = ".moments-"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds.

    Args:
        fingerprint: the hash of `made_of`.
        made_of: what the values are made of; `as_of` among it, so that a run that goes on knows labels as of the same time.
        rows_a_file, partition_by: how rows lie in files.
        complete: whether all moments are there.
        rows, parts: how many, once they are.
    """

    fingerprint: str
    made_of: Fingerprint
    rows_a_file: int
    partition_by: Partition | None
    complete: bool = False
    rows: int | None = None
    parts: int | None = None


@dataclass(frozen=True)
class Written:
    """What `write_training_set` did.

    Args:
        folder: where the parts lie.
        rows: moments, all of them.
        parts: of `rows_a_file` moments.
        kept: how many of them were there already.
        made_of: as in the manifest and in every file's footer.
        seconds: wall-clock time.
    """

    folder: Path
    rows: int
    parts: int
    kept: int
    made_of: Fingerprint
    seconds: float


def write_training_set(
    model_or_features: Model | Mapping[str, Feature],
    *,
    to: Path | str,
    moments: Moments | None = None,
    label: Label | None = None,
    engine: EngineName | Engine = "duckdb",
    world: World = "as_of",
    as_of: int | None = None,
    folder: Path | None = None,
    cache: Path | bool = True,
    rows_a_file: int = ROWS,
    partition_by: Partition | None = None,
    overwrite: bool = False,
    say: Say = silent,
    progress: Progress = unseen,
) -> Written:
    """Write the rows of `training_set` as Parquet, a part at a time; a run that was stopped goes on where it was.

    Every part is whole or not there: it is written under another name first. Its footer says of which moments it is and has the fingerprint of what it
    was made of. Called again with the same inputs, this keeps the parts that are there and writes the rest; with others it refuses and names them.
    Rows have their place among the moments in the column `__moment`. `_training_set.json` says what the folder holds and whether it is complete.

    Args:
        model_or_features, moments, label, engine, world, folder, cache: as in `training_set`.
        to: the folder; made when missing.
        as_of: microseconds since 1970; labels are as known then. By default that of the run that goes on; now for a new one.
        rows_a_file: how many moments are a part, computed and written at a time.
        partition_by: folders `day=2013-01-01` or `month=2013-01` (UTC) in which each part has a file for its moments of that time; none by default.
        overwrite: replace another training set that is in the folder.
        say: told what is being done.
        progress: told after every part that was written how many moments are there, and of how many.

    Raises:
        Problems: everything that is wrong with the definitions and their data, at once.
        TrainingError: the folder holds something else, or cannot be written.
    """
    clock = time.perf_counter()
    features, moments, label = asked_for(model_or_features, moments, label)
    if rows_a_file < 1:
        raise DefinitionError("A part needs rows.", found=f"rows_a_file={rows_a_file}", do="give at least 1.")
    to = Path(to)
    with _writing(to):
        to.mkdir(parents=True, exist_ok=True)
    own = opened_engine(engine, folder, cache=cache_folder(folder, cache), say=say)
    with own as chosen, _alone(to):
        before = _manifest(to)
        if before is not None and not overwrite and as_of is None:
            as_of = before.made_of.as_of
        plan = planned(features, moments, label, engine=chosen, world=world, as_of=as_of)
        seen = plan.seen()
        made_of = plan.fingerprint(seen)
        now = Manifest(
            fingerprint=made_of.content,
            made_of=made_of,
            rows_a_file=rows_a_file,
            partition_by=partition_by,
        )
        if before is not None and not overwrite:
            _refuse(to, before, now)
        total = seen.moments.rows
        say(plan.summary(total))

        def begin() -> None:
            if before != now:
                _write_manifest(to, now)

        todo = _Todo(plan, seen, made_of, to, rows_a_file, partition_by, begin, progress)
        # Moments of a log are here, each with what was readable then; there are never very many.
        if isinstance(chosen, ClusterEngine) and not isinstance(moments.data, Log):
            done = todo.by_workers(chosen)
        else:
            done = todo.in_turn(chosen)
        for path in files_in(to) - done.files:
            path.unlink()
        seen.check()
        for moments_there in to.glob(f"{_MOMENTS}*"):
            drop(moments_there)
        _write_manifest(to, msgspec.structs.replace(now, complete=True, rows=done.rows, parts=done.parts))
        progress(done.rows, done.rows)
    return Written(to, done.rows, done.parts, done.kept, made_of, time.perf_counter() - clock)


@dataclass(frozen=True)
class _Done:
    """What lies in a folder: moments, parts of them, how many of those did already, and their files."""

    rows: int
    parts: int
    kept: int
    files: set[Path]


@dataclass(frozen=True)
class _Todo:
    """A run, with everything that is known before it begins.

    Args:
        plan: what to compute.
        seen: the data when the run began.
        made_of: goes into every file.
        to, rows_a_file, partition_by, progress: as for `write_training_set`.
        begin: called before the first part is written.
    """

    plan: Plan
    seen: Seen
    made_of: Fingerprint
    to: Path
    rows_a_file: int
    partition_by: Partition | None
    begin: Callable[[], None]
    progress: Progress

    def in_turn(self, engine: Engine) -> _Done:
        """Read, compute and write one part after the other."""
        total = self.seen.moments.rows
        parts = Parts(self.plan, self.seen, self.made_of)
        rows = kept = number = 0
        expected: set[Path] = set()
        for number, read in enumerate(
            moment_batches(engine, self.plan.moments, self.rows_a_file), 1
        ):  # how many there were
            part = part_of(self.to, number - 1, rows, read, self.partition_by)
            expected.update(part.files)
            if is_there(part, self.made_of):
                kept += 1
            else:
                if kept == number - 1:
                    self.begin()
                if rows and kept == number - 1:
                    self.progress(rows, total)
                table = parts.compute(read)
                check_names(table, self.partition_by)
                with _writing(self.to):
                    write(part, table, rows)
                self.progress(rows + read.at.shape[0], total)
            rows += read.at.shape[0]
        return _Done(rows, number, kept, expected)

    def by_workers(self, engine: ClusterEngine) -> _Done:
        """Have an engine's workers compute and write all parts that are not there."""
        there = {
            number: (rows, files) for number, rows, files in parts_in(self.to, self.made_of, self.rows_a_file)
        }
        total, known = self.seen.moments.rows, sum(rows for rows, _ in there.values())
        if there and known == total:
            return self._done(known, (), there)
        moments, staged = self.plan.moments, self.to / f"{_MOMENTS}{self.made_of.content}"
        if engine.owns(moments.data):
            if not staged.exists():
                # They may come in another order than they did when the parts that are there were numbered.
                for path in files_in(self.to):
                    path.unlink()
                there = {}
            moments = engine.staged(moments, staged)
        self.begin()
        worker = WritePart.of(self.plan, self.made_of, self.to, self.rows_a_file, self.partition_by)
        rows, told = engine.finish(
            self.plan.reads,
            self.plan.schemas,
            moments,
            worker.read,
            worker,
            rows=self.plan.rows,
            rows_a_part=self.rows_a_file,
            skip=there,
            functions=worker.functions,
        )
        written = check_alike([msgspec.json.decode(one, type=Wrote) for one in told])
        if total not in (None, rows):
            if staged.exists():
                drop(staged)
            raise DataError(
                "The moments change while they are read.",
                expected=f"{total:,} of them, as when the run began",
                found=f"{rows:,}",
                do="write them to files first.",
            )
        return self._done(rows, written, there)

    def _done(self, rows: int, written: Sequence[Wrote], there: Mapping[int, tuple[int, set[Path]]]) -> _Done:
        files = {self.to / name for one in written for name in one.files}
        files.update(path for _, kept in there.values() for path in kept)
        return _Done(rows, len(written) + len(there), len(there), files)


def _manifest(to: Path) -> Manifest | None:
    """Read what a folder holds; None when it is empty.

    Raises:
        TrainingError: it holds something that this module did not write.
    """
    path = to / MANIFEST
    if not path.exists():
        others = sorted(other.name for other in to.iterdir() if not other.name.startswith("."))
        if others:
            raise TrainingError(
                "The folder is not empty and holds no training set.",
                where=str(to),
                found=", ".join(others[:3]),
                do="write to a folder of its own.",
            )
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise TrainingError(
            "The manifest of the training set cannot be read by this version.",
            where=str(path),
            found=str(error),
            do="write to another folder.",
        ) from error


def _refuse(to: Path, before: Manifest, now: Manifest) -> None:
    """Raise when a folder's training set is another one.

    Raises:
        TrainingError: says what differs.
    """
    found = changes(before.made_of, now.made_of)
    found += [
        f"{name} {getattr(before, name)} -> {getattr(now, name)}"
        for name in ("rows_a_file", "partition_by")
        if getattr(before, name) != getattr(now, name)
    ]
    if found:
        raise TrainingError(
            "The folder holds another training set.",
            where=str(to),
            expected=f"one made of the same, fingerprint {before.fingerprint}",
            found="; ".join(found),
            do="write to another folder, or replace what is there with overwrite=True (--overwrite).",
        )


def _write_manifest(to: Path, manifest: Manifest) -> None:
    fresh = to / f".{MANIFEST}.new"
    with _writing(to):
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, to / MANIFEST)


@contextmanager
def _writing(to: Path) -> Generator[None]:
    """Say what keeps a disk from being written.

    Raises:
        TrainingError: it is full, or nobody may write there.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(
            "The training set cannot be written.",
            where=str(error.filename or to),
            found=error.strerror or str(error),
            do="make room there, or give another folder; run again, it goes on with the parts that are there.",
        ) from error


@contextmanager
def _alone(to: Path) -> Generator[None]:
    """Let one process at a time write to a folder; a lock ends with the process that holds it.

    Raises:
        TrainingError: another one is writing.
    """
    with (to / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                "Another process is writing this training set.",
                where=str(to),
                do="wait for it, or write to another folder.",
            ) from error
        yield
