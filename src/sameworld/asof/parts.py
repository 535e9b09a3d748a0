"""Rows in any order -> parts of them, each small enough to be sorted within reach of a processor's caches. Beyond a limit they wait on disk."""

from __future__ import annotations

import mmap
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.order import by_group, group_starts
from sameworld.errors import DataError

ROWS_A_PART = 1 << 17
MOST_PARTS = 1024
MOST_BYTES = 3 << 30
_PARTS_AHEAD = 16

Words = dict[str, NDArray[Any]]
"""Columns of rows, all of one length."""


class Scratch:
    """A folder that is made when it is needed, and removed in the end.

    Args:
        most_bytes: how much of rows stays in memory.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes = MOST_BYTES if most_bytes is None else most_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def write(self, columns: Words) -> tuple[Words, _Mapped]:
        """Give columns as they lie in a file, and the file."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sameworld-", ignore_cleanup_errors=True)
        self._files += 1
        path = Path(self._folder.name) / str(self._files)
        places: dict[str, int] = {}
        try:
            with path.open("wb") as file:
                for name, column in columns.items():
                    places[name] = file.tell()
                    file.write(column.data)
                file.write(b"\0")  # an empty file cannot be mapped
        except OSError as error:
            raise DataError(
                "Rows that are too many for memory could not be written.",
                where=str(path.parent),
                found=str(error),
                do="free some space there, or let TMPDIR name a folder that has more.",
            ) from error
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Of every file a little is read for each part: what a disk reads ahead by itself would be read many times over. See `_Mapped.expect`.
        mapped.madvise(mmap.MADV_RANDOM)
        return {
            name: np.frombuffer(mapped, column.dtype, column.shape[0], places[name])
            for name, column in columns.items()
        }, _Mapped(mapped, {places[name]: column.itemsize for name, column in columns.items()})


@dataclass(frozen=True)
class _Mapped:
    """A file mapped into memory; `columns` are their places in it and the bytes of one value."""

    file: mmap.mmap
    columns: dict[int, int]

    def expect(self, first: int, last: int) -> None:
        """Have rows brought into memory, without waiting for them."""
        for place, size in self.columns.items():
            begin, end = place + first * size, place + last * size
            begin -= begin % mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def forget(self) -> None:
        """Let go of what was brought into memory."""
        self.file.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class _Batch:
    """Some rows, part by part: those of part i are bounds[i] to bounds[i + 1] - 1. `mapped` where they wait on disk."""

    columns: Words
    bounds: NDArray[np.int64]
    mapped: _Mapped | None = None


class Parts:
    """Rows by part.

    Args:
        count: how many parts there are.
        scratch: where rows wait that are too many for memory.
    """

    def __init__(self, count: int, scratch: Scratch) -> None:
        self._count, self._scratch = count, scratch
        self._batches: list[_Batch] = []
        self._bytes = 0
        self._waiting = threading.Lock()
        self._expected = 0

    def put(self, columns: Words, part: NDArray[np.int64]) -> None:
        """Add rows; `part` is the number of each one's part, -1 to leave it out."""
        bounds = group_starts(part, self._count)
        order = by_group(part, bounds)
        # Clipping clips nothing here, and spares NumPy a look at every place.
        moved = {name: column.take(order, mode="clip") for name, column in columns.items()}
        self._bytes += sum(column.nbytes for column in moved.values())
        mapped = None
        if self._bytes > self._scratch.most_bytes:
            moved, mapped = self._scratch.write(moved)
        self._batches.append(_Batch(moved, bounds, mapped))

    def take(self, number: int) -> Words:
        """Give a part's rows; best in the parts' order."""
        self._expect(number)
        first = self._batches[0].columns
        return {
            name: np.concatenate(
                [
                    batch.columns[name][batch.bounds[number] : batch.bounds[number + 1]]
                    for batch in self._batches
                ]
            )
            for name in first
        }

    def _expect(self, number: int) -> None:
        """Where a part is the first of some, let go of those before and have those after it brought into memory."""
        with self._waiting:
            if number < self._expected - _PARTS_AHEAD:
                return
            first, last = max(self._expected, number), min(number + 2 * _PARTS_AHEAD, self._count)
            self._expected = last
        for batch in self._batches:
            if batch.mapped is not None:
                batch.mapped.forget()
                batch.mapped.expect(int(batch.bounds[first]), int(batch.bounds[last]))

    def close(self) -> None:
        """Let go of all rows."""
        self._batches.clear()


def parts_for(rows: int, groups: int) -> int:
    """Give how many parts are best for so many rows of so many groups that must not be cut."""
    return max(min(rows // ROWS_A_PART, MOST_PARTS, groups), 1)
