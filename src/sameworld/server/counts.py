"""Counts of several processes in memory that outlives each of them: one place a worker, which its successor goes on with, so that nothing is lost or counted down when a worker is killed, and any of them can add up all."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Sequence

import msgspec

_SIZE = 1 << 24  # reserved, and taken only as far as it is used: some 50,000 counts
_HEAD = struct.Struct("=III4x")  # bytes of the record, of its key, and how many numbers
_NUMBER = 8
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, ...]).decode

Key = tuple[str, ...]


def place() -> int:
    """Give a descriptor of memory for one worker's counts. It is no file of any folder, and gone with the last process that has it."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("sameworld counts")
    else:
        with tempfile.TemporaryFile() as file:
            made = os.dup(file.fileno())
    os.ftruncate(made, _SIZE)
    return made


class Counts:
    """One process's counts, beside those of others. One thread counts; any may add up.

    Args:
        own: from `place`; memory of its own by default.
        others: those of the other processes.
    """

    def __init__(self, own: int | None = None, others: Sequence[int] = ()) -> None:
        self._own = mmap.mmap(-1 if own is None else own, _SIZE)
        self._others = [mmap.mmap(other, _SIZE, prot=mmap.PROT_READ) for other in others]
        self._known: dict[Key, memoryview[float]] = {}
        self._end = 0
        # What the predecessor had counted.
        for key, numbers, end in _records(self._own):
            self._known[key], self._end = numbers, end

    def of(self, *key: str, width: int = 1) -> memoryview[float]:
        """Give the numbers that are counted under a key, to be changed in place; all are 0 at first.

        Args:
            key: the name of what is counted, and its labels.
            width: how many numbers.
        """
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._made(key, width)
        return found

    def _made(self, key: Key, width: int) -> memoryview[float]:
        name = _encode(key)
        at = self._end + _HEAD.size + -(-len(name) // _NUMBER) * _NUMBER
        end = at + width * _NUMBER
        if end + _HEAD.size > _SIZE:  # beyond what anybody looks at: counted, and seen by nobody
            return memoryview(array("d", bytes(width * _NUMBER)))
        self._own[self._end + _HEAD.size : self._end + _HEAD.size + len(name)] = name
        # Last, since whoever adds up stops where there is none.
        _HEAD.pack_into(self._own, self._end, end - self._end, len(name), width)
        self._end = end
        return memoryview(self._own)[at:end].cast("d")

    def totals(self) -> dict[Key, list[float]]:
        """Give the sums over all processes, key -> numbers."""
        result: dict[Key, list[float]] = {}
        for memory in (self._own, *self._others):
            for key, numbers, _ in _records(memory):
                known = result.get(key)
                result[key] = list(numbers) if known is None else [a + b for a, b in zip(known, numbers, strict=True)]  # fmt: skip
        return result


def _records(memory: mmap.mmap) -> Iterator[tuple[Key, memoryview[float], int]]:
    """Give (key, numbers, where the record ends)."""
    at, view = 0, memoryview(memory)
    while at + _HEAD.size <= _SIZE:
        size, name, width = _HEAD.unpack_from(memory, at)
        if not size:
            return
        key = _decode(view[at + _HEAD.size : at + _HEAD.size + name])
        at += size
        yield key, view[at - width * _NUMBER : at].cast("d"), at
