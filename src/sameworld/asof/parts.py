"""Rows in any order -> parts of them, each small enough to be sorted within reach of a processor's caches. Beyond a limit they wait on disk."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.order import by_group, group_starts
from sameworld.errors import DataError

ROWS_A_PART = 1 << 17
MOST_PARTS = 1024
MOST_BYTES = 2 << 30

Words = dict[str, NDArray[Any]]
"""Columns of rows, all of one length."""


class Scratch:
    """A folder that is made when it is needed, and removed in the end."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def write(self, columns: Words) -> Words:
        """Give columns as they lie in a file, mapped into memory."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sameworld-", ignore_cleanup_errors=True)
        self._files += 1
        path = Path(self._folder.name) / str(self._files)
        places: dict[str, int] = {}
        try:
            with path.open("wb") as file:
                for name, column in columns.items():
                    places[name] = file.tell()
                    file.write(np.ascontiguousarray(column).data)
        except OSError as error:
            raise DataError(
                "Rows that are too many for memory could not be written.",
                where=str(path.parent),
                found=str(error),
                do="free some space there, or let TMPDIR name a folder that has more.",
            ) from error
        return {
            name: np.memmap(path, column.dtype, "r", places[name], column.shape) if column.size else column
            for name, column in columns.items()
        }


@dataclass(frozen=True)
class _Batch:
    """Some rows, part by part: those of part i are bounds[i] to bounds[i + 1] - 1."""

    columns: Words
    bounds: NDArray[np.int64]


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

    def put(self, columns: Words, part: NDArray[np.int64]) -> None:
        """Add rows; `part` is the number of each one's part, -1 to leave it out."""
        bounds = group_starts(part, self._count)
        order = by_group(part, bounds)
        # Clipping clips nothing here, and spares NumPy a look at every place.
        moved = {name: column.take(order, mode="clip") for name, column in columns.items()}
        self._bytes += sum(column.nbytes for column in moved.values())
        if self._bytes > MOST_BYTES:
            moved = self._scratch.write(moved)
        self._batches.append(_Batch(moved, bounds))

    def take(self, number: int) -> Words:
        """Give a part's rows."""
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


def parts_for(rows: int, groups: int) -> int:
    """Give how many parts are best for so many rows of so many groups that must not be cut."""
    return max(min(rows // ROWS_A_PART, MOST_PARTS, groups), 1)
