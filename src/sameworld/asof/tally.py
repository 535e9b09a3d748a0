"""What a run of an entity's rows adds to any window that has all of them: counts, exact sums and squares, extremes. So a window over many rows is read
from a few numbers, bit for bit as from the rows.

The cells are the kernel's partials, and a row is added to them by the kernel. The base of a sum's limbs is a multiple of 32, so the limbs of two tallies
lie in step and are merely added.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import COUNT, SQUARES
from sameworld.asof.columns import InputColumn
from sameworld.asof.compiled import compiled
from sameworld.asof.exact import HEADER, exponents_of, limbs_for
from sameworld.asof.exact_variance import INTEGER_SQUARE_LIMBS, INTEGER_SUM_LIMBS, square_limbs_for
from sameworld.asof.kernel import TURN, add, key_of
from sameworld.asof.read import words_for

_LIMB = 32
AVAILABLE_AT = 0
"""The word of a tally that says when the last of its rows became readable."""
_FIRST = 1
VALID, MASK, WORD, FLOAT, AT, BASE, HIGHEST, SUM_LIMBS, SQUARE_LIMBS, WHOLE = range(10)
"""Of each item: the word and bit that say whether a row takes part, the word of its value, whether that is a float64's bits, where its cells begin in a
tally, the exponents of the lowest and the highest bit that its limbs hold, how many limbs there are, and whether there is more than a count."""

_table = numba.types.Array(numba.int64, 2, "C", readonly=True)
_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_out = numba.int64[:, ::1]

Ranges = bytes
"""Of each item the exponents of the lowest and the highest bit that its limbs hold, as int64; 0 and 0 where these are always the same."""


@compiled(numba.void(_table, _table, _table, _out))
def _exponents(
    rows: NDArray[np.int64], more: NDArray[np.int64], items: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """Write the exponents of the lowest and highest bit of every float item's values."""
    for number in range(items.shape[0]):
        item = items[number]
        out[number, 0], out[number, 1] = 0, 0
        if item[FLOAT] != 0:
            words = rows[:, item[WORD]] if item[WORD] < rows.shape[1] else more[:, item[WORD] - rows.shape[1]]
            out[number, 0], out[number, 1] = exponents_of(
                words, rows[:, item[VALID]], item[MASK], 0, rows.shape[0]
            )


@compiled(numba.void(_table, _table, _words, _table, numba.int64, _out))
def _tally(
    rows: NDArray[np.int64],
    more: NDArray[np.int64],
    starts: NDArray[np.int64],
    items: NDArray[np.int64],
    available: int,
    out: NDArray[np.int64],
) -> None:
    """Write the tally of every run of rows.

    Args:
        rows, more: as in `entity.read_entities`.
        starts: shape (runs + 1,), where each run begins.
        items: shape (items, 10).
        available: the word of a row that says when it became readable.
        out: shape (runs, words), zeros.
    """
    for run in range(out.shape[0]):
        low, high = starts[run], starts[run + 1]
        out[run, 0] = rows[low:high, available].max() if high > low else np.int64(-(2**63))
        for number in range(items.shape[0]):
            item = items[number]
            valid, mask, is_float = rows[:, item[VALID]], item[MASK], item[FLOAT] != 0
            cell = out[run, item[AT] :]
            if item[WHOLE] == 0:
                for row in range(low, high):
                    if valid[row] & mask != 0:
                        add(COUNT, cell, 0, False, 0, 0, 1)
                continue
            words = rows[:, item[WORD]] if item[WORD] < rows.shape[1] else more[:, item[WORD] - rows.shape[1]]
            turn = TURN if is_float else np.int64(0)
            extremes = HEADER + item[SUM_LIMBS] + item[SQUARE_LIMBS]
            some = False
            for row in range(low, high):
                if valid[row] & mask != 0:
                    add(SQUARES, cell, words[row], is_float, item[BASE], item[SUM_LIMBS], 1)
                    key = key_of(words[row], turn)
                    if not some or key < cell[extremes]:
                        cell[extremes] = key
                    if not some or key > cell[extremes + 1]:
                        cell[extremes + 1] = key
                    some = True


@compiled(numba.void(_table, _table, numba.int64[::1]))
def _total(table: NDArray[np.int64], items: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the tally of all rows of several tallies; `out` is zeros."""
    out[0] = table[:, 0].max()
    for number in range(items.shape[0]):
        item = items[number]
        at, limbs = item[AT], HEADER + item[SUM_LIMBS] + item[SQUARE_LIMBS]
        cells = limbs if item[WHOLE] != 0 else 1
        some = False
        for run in range(table.shape[0]):
            if table[run, at] == 0:
                continue
            for cell in range(at, at + cells):
                out[cell] += table[run, cell]
            if item[WHOLE] != 0:
                least, greatest = table[run, at + limbs], table[run, at + limbs + 1]
                if not some or least < out[at + limbs]:
                    out[at + limbs] = least
                if not some or greatest > out[at + limbs + 1]:
                    out[at + limbs + 1] = greatest
                some = True


@compiled(inline="always")
def add_tally(
    op: int,
    cell: NDArray[np.int64],
    tallied: NDArray[np.int64],
    item: NDArray[np.int64],
    base: int,
    sum_limbs: int,
) -> None:
    """Add a tally to a partial whose limbs hold what its own do; see `kernel.add`.

    Args:
        op: COUNT, SUM or SQUARES.
        item: where the partial's input is in it.
        base: of the partial; a multiple of 32 like that of the tally.
    """
    at = item[AT]
    if op == COUNT:
        cell[0] += tallied[at]
        return
    up = (item[BASE] - base) >> 5
    for i in range(HEADER):
        cell[i] += tallied[at + i]
    for i in range(HEADER, HEADER + item[SUM_LIMBS]):
        cell[i + up] += tallied[at + i]
    if op == SQUARES:
        begin = at + HEADER + item[SUM_LIMBS]
        for i in range(item[SQUARE_LIMBS]):
            cell[HEADER + sum_limbs + 2 * up + i] += tallied[begin + i]


@dataclass(frozen=True, eq=False)
class Tallies:
    """Tallies of runs of rows that follow each other.

    Args:
        starts: shape (runs,), the event time from which on each has rows.
        ranges: what their limbs hold.
        table: shape (runs, words).
    """

    starts: NDArray[np.int64]
    ranges: Ranges
    table: NDArray[np.int64]

    def only(self, runs: NDArray[np.bool_ | np.int64] | slice) -> Tallies:
        """Keep some runs, in an order that may be another."""
        return Tallies(self.starts[runs], self.ranges, self.table[runs])


@dataclass(frozen=True, eq=False)
class Tallied:
    """Tallies of several entities.

    Args:
        entities: shape (entities + 1,), where each entity's begin.
        tallies: each entity's in the order of time.
    """

    entities: NDArray[np.int64]
    tallies: Tallies


class TallyWords:
    """Where the cells of every input are in a tally.

    Args:
        families: of a grouping's inputs; None for one that only counts rows.
        valid: of each input, the word of a row and its bit that say whether it takes part.
        values: of each input, the word of its value.
        width: words of a row.
        available: the word that says when a row became readable.
    """

    def __init__(
        self,
        families: Sequence[str | None],
        valid: Sequence[tuple[int, int]],
        values: Sequence[int],
        width: int,
        available: int,
    ) -> None:
        self._families, self._values, self._available = list(families), list(values), available
        # Squares of decimals are those of the nearest floats, which are items of their own.
        self._converted = [
            number for number, family in enumerate(families) if str(family).startswith("decimal")
        ]
        given = [
            (number, self._values[number], families[number] == "float") for number in range(len(families))
        ]
        given += [(number, width + place, True) for place, number in enumerate(self._converted)]
        self._items = [
            (*valid[number], word, is_float, families[number] not in (None, "text"))
            for number, word, is_float in given
        ]
        self._floats = [number for number, (*_, is_float, _) in enumerate(self._items) if is_float]
        self.count = len(self._items)
        self._shape = functools.lru_cache(64)(self._laid_out)

    def item(self, partial: int, number: int) -> int:
        """Give the item that has a partial of an input."""
        if partial == SQUARES and number in self._converted:
            return len(self._families) + self._converted.index(number)
        return number

    def items(self, ranges: Ranges) -> NDArray[np.int64]:
        """Give shape (items, 10): see VALID and what follows it."""
        return self._shape(ranges)[0]

    def width(self, ranges: Ranges) -> int:
        """Give how many words a tally has."""
        return self._shape(ranges)[1]

    def _laid_out(self, ranges: Ranges) -> tuple[NDArray[np.int64], int]:
        items: list[tuple[int, ...]] = []
        at = _FIRST
        said = np.frombuffer(ranges, np.int64).reshape(-1, 2).tolist()
        for (valid, mask, word, is_float, whole), (base, highest) in zip(self._items, said, strict=True):
            sums = squares = 0
            if whole:
                sums, squares = INTEGER_SUM_LIMBS, INTEGER_SQUARE_LIMBS
                if is_float:
                    sums, squares = limbs_for(base, highest), square_limbs_for(base, highest)
            items.append((valid, mask, word, is_float, at, base, highest, sums, squares, whole))
            at += HEADER + sums + squares + 2 if whole else 1
        return np.array(items, np.int64).reshape(-1, WHOLE + 1), at

    def of(self, rows: NDArray[np.int64], runs: NDArray[np.int64], starts: NDArray[np.int64]) -> Tallies:
        """Give the tallies of runs of rows.

        Args:
            rows: shape (rows, words), as in `entity.read_entities`.
            runs: shape (runs + 1,), where each begins among the rows.
            starts: shape (runs,), from which event time on each has rows.
        """
        more = np.empty((rows.shape[0], len(self._converted)), np.int64)
        for place, number in enumerate(self._converted):
            words = rows[:, self._values[number]]
            column = InputColumn(self._families[number], words, np.zeros(0, np.uint8))
            more[:, place] = words_for(SQUARES, column)[0]
        found = np.zeros((self.count, 2), np.int64)
        _exponents(rows, more, self.items(found.tobytes()), found)
        # Whole limbs, so that the ranges of many are the same.
        found[self._floats, 0] &= -_LIMB
        found[self._floats, 1] |= _LIMB - 1
        ranges = found.tobytes()
        table = np.zeros((len(starts), self.width(ranges)), np.int64)
        _tally(rows, more, runs, self.items(ranges), self._available, table)
        return Tallies(starts, ranges, table)

    def total(self, tallies: Tallies) -> NDArray[np.int64]:
        """Give the tally of all rows of several tallies."""
        out = np.zeros(tallies.table.shape[1], np.int64)
        _total(tallies.table, self.items(tallies.ranges), out)
        return out

    def together(self, parts: Sequence[Tallies]) -> Tallies:
        """Give tallies of several ranges as those of one that holds them all, in the order in which they come."""
        ranges, tables = parts[0].ranges, [part.table for part in parts]
        if any(part.ranges != ranges for part in parts):
            said = np.array([np.frombuffer(part.ranges, np.int64) for part in parts]).reshape(
                len(parts), -1, 2
            )
            ranges = np.stack([said[:, :, 0].min(0), said[:, :, 1].max(0)], 1).tobytes()
            tables = [self._widened(part, ranges) for part in parts]
        return Tallies(np.concatenate([part.starts for part in parts]), ranges, np.concatenate(tables))

    def _widened(self, tallies: Tallies, ranges: Ranges) -> NDArray[np.int64]:
        if tallies.ranges == ranges:
            return tallies.table
        table = np.zeros((len(tallies.table), self.width(ranges)), np.int64)
        table[:, AVAILABLE_AT] = tallies.table[:, AVAILABLE_AT]
        for old, new in zip(self.items(tallies.ranges).tolist(), self.items(ranges).tolist(), strict=True):
            up = (old[BASE] - new[BASE]) // _LIMB
            moves = [(0, 0, HEADER if old[WHOLE] else 1)]
            if old[WHOLE]:
                sums, limbs = HEADER + old[SUM_LIMBS], HEADER + old[SUM_LIMBS] + old[SQUARE_LIMBS]
                new_sums, new_limbs = HEADER + new[SUM_LIMBS], HEADER + new[SUM_LIMBS] + new[SQUARE_LIMBS]
                moves += [(HEADER, HEADER + up, old[SUM_LIMBS]), (sums, new_sums + 2 * up, old[SQUARE_LIMBS]), (limbs, new_limbs, 2)]  # fmt: skip
            for source, to, count in moves:
                table[:, new[AT] + to : new[AT] + to + count] = tallies.table[:, old[AT] + source : old[AT] + source + count]  # fmt: skip
        return table
