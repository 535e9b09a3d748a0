"""Training sets on disk: Parquet parts that a run can be stopped between at any instant, and go on after."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.definitions.feature import Feature
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.label import Label
from sameworld.definitions.model import Model
from sameworld.definitions.moments import Moments
from sameworld.engines.cache import cache_folder
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Engine, World
from sameworld.errors import DefinitionError, TrainingError
from sameworld.training.batches import ROWS, Parts, Progress, unseen
from sameworld.training.fingerprint import Fingerprint, changes, fingerprint_in
from sameworld.training.moments import MomentTable, moment_batches
from sameworld.training.training_set import Say, asked_for, planned, silent

Partition = Literal["day", "month"]

MANIFEST = "_training_set.json"
NUMBER = "__moment"
"""The column of each row's place among the moments."""

_PART = b"sameworld.part"
_UNITS = {"day": "datetime64[D]", "month": "datetime64[M]"}


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


@dataclass(frozen=True)
class _Part:
    """One part as it should lie on disk.

    Args:
        files: path -> its moments, as places in the part.
        note: what its footers say of it.
    """

    files: dict[Path, slice | Any]
    note: bytes
    rows: dict[Path, int]


def write_training_set(
    model_or_features: Model | Mapping[str, Feature],
    *,
    to: Path | str,
    moments: Moments | None = None,
    label: Label | None = None,
    engine: Literal["duckdb"] | Engine = "duckdb",
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
        TrainingError: the folder holds something else.
    """
    clock = time.perf_counter()
    features, moments, label = asked_for(model_or_features, moments, label)
    if rows_a_file < 1:
        raise DefinitionError("A part needs rows.", found=f"rows_a_file={rows_a_file}", do="give at least 1.")
    to = Path(to)
    to.mkdir(parents=True, exist_ok=True)
    own = DuckDBEngine(folder, cache=cache_folder(folder, cache), say=say) if engine == "duckdb" else None
    chosen = own or engine
    assert chosen != "duckdb"
    try:
        with _alone(to):
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
            parts = Parts(plan, seen, made_of)
            rows = kept = number = 0
            expected: set[Path] = set()
            for number, read in enumerate(
                moment_batches(chosen, plan.moments, rows_a_file), 1
            ):  # how many there were
                part = _part(to, number - 1, rows, read, partition_by)
                expected.update(part.files)
                if _is_there(part, made_of):
                    kept += 1
                else:
                    if before != now:
                        _write_manifest(to, now)
                        before = now
                    if rows and kept == number - 1:
                        progress(rows, total)
                    table = parts.compute(read)
                    _check_names(table, partition_by)
                    _write(part, table, rows)
                    progress(rows + read.at.shape[0], total)
                rows += read.at.shape[0]
            for path in _files(to) - expected:
                path.unlink()
            seen.check()
            _write_manifest(to, msgspec.structs.replace(now, complete=True, rows=rows, parts=number))
            progress(rows, rows)
    finally:
        if own is not None:
            own.close()
    return Written(to, rows, number, kept, made_of, time.perf_counter() - clock)


def _part(to: Path, number: int, first: int, read: MomentTable, partition_by: Partition | None) -> _Part:
    """Say how a part should lie on disk."""
    count = read.at.shape[0]
    name = f"part-{number:06}.parquet"
    content = content_hash([content_of(pa.table({"at": read.at})), content_of(read.fields)])
    note = msgspec.json.encode({"part": number, "first": first, "rows": count, "moments": content})
    if partition_by is None:
        return _Part({to / name: slice(None)}, note, {to / name: count})
    times = read.at.view("datetime64[us]").astype(_UNITS[partition_by])
    files = {to / f"{partition_by}={time}" / name: times == time for time in np.unique(times)}
    return _Part(files, note, {path: int(chosen.sum()) for path, chosen in files.items()})


def _check_names(table: pa.Table, partition_by: Partition | None) -> None:
    for name in (NUMBER, partition_by):
        if name in table.column_names:
            raise DefinitionError(
                f"A column of the training set is called {name!r}, and the files have one of that name of their own.",
                do="rename the feature, or partition otherwise.",
            )


def _is_there(part: _Part, made_of: Fingerprint) -> bool:
    """Whether all files of a part are there, of the same moments and made of the same."""
    for path, rows in part.rows.items():
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            return False
        noted = footer.metadata or {}
        known = fingerprint_in(noted)
        if (
            known is None
            or known.content != made_of.content
            or noted.get(_PART) != part.note
            or footer.num_rows != rows
        ):
            return False
    return True


def _write(part: _Part, table: pa.Table, first: int) -> None:
    """Write a part's files, each under another name until it is whole."""
    table = table.append_column(NUMBER, pa.array(np.arange(first, first + table.num_rows)))
    table = table.replace_schema_metadata({**table.schema.metadata, _PART: part.note})
    for path, chosen in part.files.items():
        path.parent.mkdir(exist_ok=True)
        rows = table if isinstance(chosen, slice) else table.filter(pa.array(chosen))
        fresh = path.with_name(f".{path.name}.new")
        with fresh.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)


def _files(to: Path) -> set[Path]:
    """Give all files that this module has written to a folder, those that were not finished included."""
    return {
        path
        for folder in (to, *to.glob("day=*"), *to.glob("month=*"))
        for pattern in ("part-*.parquet", ".part-*.parquet.new")
        for path in folder.glob(pattern)
    }


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
    with fresh.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, to / MANIFEST)


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
