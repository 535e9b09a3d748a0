"""Complete segments of the prediction log -> Parquet, a part a model version.

Killed at any instant, it leaves every record where it can be read exactly once: parts are written under other names, made durable and renamed; the
segment goes only after all of them. A rotation that was killed is done again, to the same names. A process's segments go in their order, so what is
left of a log has no gap; one that is damaged stays as it is, with all that come after it.

    python -m sameworld.stores.rotation STATE [--keep-bytes N] [--keep-days N]

is what a server runs beside itself: reading and encoding would hold up answers in one of its own threads.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.errors import LogError
from sameworld.stores.prediction import Shape
from sameworld.stores.prediction_log import (
    Segment,
    by_version,
    decoded,
    held,
    raw,
    rotated,
    shape_of,
)
from sameworld.stores.prediction_table import table_of
from sameworld.stores.record_log import remove_segment

_DAY_SECONDS = 86_400
_CHUNK_ROWS = 16_384  # as records they take ten times the memory that they take as columns


@dataclass
class Rotated:
    """What a rotation did.

    Args:
        segments: that are Parquet now.
        rows: predictions in them.
        stayed: why segments stayed as they are, each once.
        removed: parts that were older or more than were to be kept.
    """

    segments: int = 0
    rows: int = 0
    stayed: list[str] = field(default_factory=list[str])
    removed: list[Path] = field(default_factory=list[Path])


def rotate(
    state: Path, *, keep_bytes: int | None = None, keep_days: float | None = None, wait: bool = True
) -> Rotated:
    """Rotate every complete segment, then remove the oldest parts beyond what is to be kept.

    A segment is complete when its process has begun another one, or has ended. Processes may append and read meanwhile.

    Args:
        state: the store's folder.
        keep_bytes: how much Parquet to keep; all by default.
        keep_days: how long to keep a part after it was written; for ever by default.
        wait: for another rotation to end; without it nothing is done then.
    """
    done = Rotated()
    folder = state / "predictions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = held(folder, wait=wait)
    except BlockingIOError:
        return done
    except OSError as error:
        done.stayed.append(f"{folder}: {error.strerror or error}")
        return done
    try:
        for process in dict.fromkeys(segment.process for segment in raw(state)):
            _rotate_process(state, process, done)
        if keep_bytes is not None or keep_days is not None:
            _trim(state, keep_bytes, keep_days, done)
    finally:
        os.close(lock)
    return done


def waiting(state: Path) -> bool:
    """Whether there is a segment with another one after it, or of a process that has ended."""
    counts = Counter(segment.process for segment in raw(state))
    return any(count > 1 or _ended(state / "predictions" / process) for process, count in counts.items())


def _ended(folder: Path) -> bool:
    try:
        os.close(held(folder, wait=False))
    except OSError:
        return False
    return True


def _rotate_process(state: Path, process: str, done: Rotated) -> None:
    """Rotate one process's complete segments, oldest first."""
    folder = state / "predictions" / process
    try:
        ended = held(folder, wait=False)
    except OSError:  # it lives, or its folder cannot be written
        ended = -1
    try:
        own = [segment for segment in raw(state) if segment.process == process]
        for segment in own if ended >= 0 else own[:-1]:
            done.rows += _rotate_segment(state, segment)
            done.segments += 1
        if ended >= 0:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    except (LogError, OSError, pa.ArrowException, ValueError, TypeError, ArithmeticError) as error:
        done.stayed.append(f"{process}: {error.what if isinstance(error, LogError) else error}")
    finally:
        if ended >= 0:
            os.close(ended)


def _rotate_segment(state: Path, segment: Segment) -> int:
    """Write a segment's parts, then remove it; give how many predictions it had."""
    shapes: dict[str, Shape] = {}
    tables: dict[tuple[str, str], list[pa.Table]] = {}
    count = 0
    records = decoded(state, segment)
    while chunk := list(islice(records, _CHUNK_ROWS)):
        for (model, version), rows in by_version(chunk, segment).items():
            if version not in shapes:
                shapes[version] = shape_of(state, segment, version)
            made = table_of(segment.process, rows, shapes[version])
            tables.setdefault((model, version), []).append(made)
        count += len(chunk)
    for (model, version), made in tables.items():
        path = segment.part(state, model, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(pa.concat_tables(made).unify_dictionaries(), path)
    remove_segment(segment.raw_folder(state), segment.first)
    return count


def _write(table: pa.Table, path: Path) -> None:
    """Have a whole file under a name, or nothing."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _trim(state: Path, keep_bytes: int | None, keep_days: float | None, done: Rotated) -> None:
    """Remove the oldest parts; none of a segment that is still there, since it would come back."""
    still = set(raw(state))
    parts = [
        (path.stat().st_mtime, segment, path)
        for segment, paths in rotated(state).items()
        if segment not in still
        for path in paths
    ]
    total = sum(path.stat().st_size for _, _, path in parts)
    for written, _, path in sorted(parts):
        old = keep_days is not None and time.time() - written > keep_days * _DAY_SECONDS
        if not old and (keep_bytes is None or total <= keep_bytes):
            break
        total -= path.stat().st_size
        path.unlink()
        done.removed.append(path)
        with suppress(OSError):  # others are in it
            path.parent.rmdir()
            path.parent.parent.rmdir()


def main(arguments: Iterable[str] | None = None) -> int:
    """Rotate once; give the exit status: 1 when something stayed."""
    parser = argparse.ArgumentParser(prog="python -m sameworld.stores.rotation")
    parser.add_argument("state", type=Path)
    parser.add_argument("--keep-bytes", type=int)
    parser.add_argument("--keep-days", type=float)
    given = parser.parse_args(None if arguments is None else list(arguments))
    gc.disable()  # records make no cycles, and walking through hundreds of thousands of them takes as long as reading them
    done = rotate(given.state, keep_bytes=given.keep_bytes, keep_days=given.keep_days, wait=False)
    for why in done.stayed:
        sys.stderr.write(f"{why}\n")
    return 1 if done.stayed else 0


if __name__ == "__main__":
    sys.exit(main())
