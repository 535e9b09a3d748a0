"""Finished columns as they lie in the cache; and those that were finished before a source had the files that it has now, to say which values are others."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.definitions.hashing import content_hash
from sameworld.engines.cache import Cache, Entry
from sameworld.engines.contents import content_of
from sameworld.engines.interface import Asked

_COLUMN = "column.arrow"
_MOST_ROWS = 8
"""So many of a source's rows, with more and more files, are looked at; what was known with still fewer files was told since, or nobody asked."""


def digest(asked: Asked) -> str:
    """A hash of moments: their keys and times."""
    state = hashlib.blake2b(digest_size=16)
    state.update(np.ascontiguousarray(asked.at).data)
    if not np.array_equal(asked.at, asked.as_of):
        state.update(np.ascontiguousarray(asked.as_of).data)
    state.update(content_of(asked.keys).encode())
    return state.hexdigest()


def write_column(folder: Path, values: pa.Array) -> None:
    """Write a column to an entry's folder."""
    batch = pa.record_batch([values], ["value"])
    with (
        pa.OSFile(str(folder / _COLUMN), "wb") as sink,
        pa.ipc.new_stream(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def read_column(folder: Path) -> pa.Array | None:
    """Give a column as it lies in its file: one that nobody looks at is not read."""
    try:
        with open(f"{folder}/{_COLUMN}", "rb", buffering=0) as file:  # hundreds may be opened
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Only the first page is looked at here; what a disk reads ahead by itself would be all of it.
        mapped.madvise(mmap.MADV_RANDOM)
        column = pa.ipc.open_stream(pa.py_buffer(mapped)).read_next_batch().column(0)
        mapped.madvise(mmap.MADV_NORMAL)
    except (OSError, ValueError, StopIteration):  # Arrow's errors are among these
        return None
    return column


def alike(old: pa.Array, new: pa.Array) -> NDArray[np.bool_]:
    """Whether values are the same, null and NaN included."""
    if pa.types.is_list(old.type):
        pairs = zip(old.to_pylist(), new.to_pylist(), strict=True)
        return np.array([repr(a) == repr(b) for a, b in pairs], np.bool_)  # a NaN in a list equals no other
    same = pc.or_(pc.fill_null(pc.equal(old, new), False), pc.and_(old.is_null(), new.is_null()))
    if pa.types.is_floating(old.type):
        same = pc.or_(same, pc.fill_null(pc.and_(pc.is_nan(old), pc.is_nan(new)), False))
    return same.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class _Rows:
    """A source's rows from certain files.

    Args:
        rank: those of the files that there are now go before those of the most of them, and these before others, the latest made first.
        latest: microseconds; no row became readable or was superseded after this.
    """

    rank: tuple[bool, bool, int, float]
    latest: int


class Before:
    """Columns that were finished when a source had other files.

    Args:
        cache: where they lie.
        key: of the entry of the rows that the source has now.
    """

    def __init__(self, cache: Cache, key: str) -> None:
        entries = cache.entries("rows")
        now = next((entry.parts for entry in entries if entry.key == key), None)
        self._now = key
        found = [
            (entry.key, rows)
            for entry in entries
            if now is not None and (rows := _of_files(entry, now, entry.key == key)) is not None
        ]
        self._rows = dict(sorted(found, key=lambda one: one[1].rank, reverse=True)[:_MOST_ROWS])
        self._columns: dict[str, Path] = {}
        self._moments: dict[tuple[str, str], int] = {}
        for entry in cache.entries("column") if len(self._rows) > 1 else []:
            moments = entry.parts["rows"], entry.parts["moments"]
            if moments[0] not in self._rows:
                continue
            self._columns[entry.key] = entry.folder
            if moments not in self._moments and (values := read_column(entry.folder)) is not None:
                self._moments[moments] = len(values)

    def known(self, asked: Asked) -> list[tuple[str, str]]:
        """Give which rows, at which moments, columns may be known of: at the first of these or at all, with the most of the files first.

        Args:
            asked: the moments, as_of as it was asked.
        """
        digests: dict[tuple[int, int], str] = {}
        for (rows, _), count in self._moments.items():
            latest = self._rows[rows].latest
            if count <= asked.at.shape[0] and (count, latest) not in digests:
                known = np.minimum(asked.as_of[:count], latest + 1)
                digests[count, latest] = digest(Asked(asked.keys.slice(0, count), asked.at[:count], known))
        found = [
            (rows, moments)
            for (rows, moments), count in self._moments.items()
            if digests.get((count, self._rows[rows].latest)) == moments
        ]
        return sorted(found, key=lambda one: (self._rows[one[0]].rank, self._moments[one]), reverse=True)

    def column(self, parts: Mapping[str, Any], known: Sequence[tuple[str, str]]) -> pa.Array | None:
        """Give a column as it was before; None where it was not, or is known with the files that there are now.

        Args:
            parts: of the column's key; its rows and moments do not count.
            known: see `known`.
        """
        for rows, moments in known:
            folder = self._columns.get(content_hash({**parts, "rows": rows, "moments": moments}, digits=32))
            if folder is not None:
                return None if rows == self._now else read_column(folder)
        return None


def _of_files(entry: Entry, now: Mapping[str, Any], is_now: bool) -> _Rows | None:
    """Give what is to be known of rows of the same source; None of another."""
    if any(entry.parts.get(name) != part for name, part in now.items() if name != "files"):
        return None
    try:
        latest = json.loads((entry.folder / "about.json").read_text())["latest"]
    except (OSError, ValueError, KeyError):  # trimmed meanwhile
        return None
    files = Counter(entry.parts["files"])
    among = files <= Counter(now["files"])
    return _Rows((is_now, among, files.total() if among else 0, entry.created), latest)
