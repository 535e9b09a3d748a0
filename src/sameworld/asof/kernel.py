"""The kernel: windows that slide over an entity's rows from moment to moment. Training sets, proofs and labels all end here; `entity` reads one moment.

Three families, each O(rows + moments) for every window, or a small logarithm more:
- `slide`: what a row adds to can take it away again (counts, exact sums and squares, counts of each value), so every row enters and leaves a window once;
- `extremes`: least and greatest values, from blocks of 16 rows, of 256 and so on, in which a late arrival raises its blocks and a departure recomputes them;
- `positions`: the first or last rows of a window that are there, skipping blocks of rows that are not.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import COUNT, DISTINCT, FIRST, SQUARES, SUM
from sameworld.asof.compiled import compiled
from sameworld.asof.exact import HEADER, add_float, add_integer, read_float, read_integer
from sameworld.asof.exact_variance import add_square_float, add_square_integer, read_variance, scratch_size
from sameworld.asof.schedule import SCHEDULE, Schedule

_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_flags = numba.types.Array(numba.uint8, 1, "C", readonly=True)
_COMMON = (numba.int64, SCHEDULE, numba.int64, numba.int64, _words, _flags, _words, _words)


@compiled()
def add(
    op: int,
    cell: NDArray[np.int64],
    word: int,
    is_float: bool,
    base: int,
    sum_limbs: int,
    sign: int,
) -> None:
    """Add one row to a partial, or take it away again (a sign of -1). For DISTINCT the word is a small code and cell[1 + code] its count."""
    if op == COUNT:
        cell[0] += sign
    elif op == DISTINCT:
        before = cell[1 + word]
        cell[1 + word] = before + sign
        if before + min(sign, 0) == 0:  # the first to come or the last to go
            cell[0] += sign
    else:
        if is_float:
            add_float(cell, word, base, sign)
        else:
            add_integer(cell, word, sign)
        if op == SQUARES:
            if is_float:
                add_square_float(cell, HEADER + sum_limbs, word, base, sign)
            else:
                add_square_integer(cell, HEADER + sum_limbs, word, sign)


@compiled()
def _add_rows(
    op: int,
    cell: NDArray[np.int64],
    there: NDArray[np.uint8],
    words: NDArray[np.int64],
    first: int,
    is_float: bool,
    base: int,
    sum_limbs: int,
    low: int,
    high: int,
    sign: int,
) -> None:
    """Add the ranks low to high - 1 that are there to a partial, or take them away again."""
    if op == COUNT:
        count = 0
        for rank in range(low, high):
            count += there[rank]
        cell[0] += sign * count
    elif op == SUM and is_float:
        for rank in range(low, high):
            if there[rank] != 0:
                add_float(cell, words[first + rank], base, sign)
    else:
        for rank in range(low, high):
            if there[rank] != 0:
                add(op, cell, words[first + rank], is_float, base, sum_limbs, sign)


@compiled(inline="always")
def read(
    op: int,
    cell: NDArray[np.int64],
    is_float: bool,
    base: int,
    sum_limbs: int,
    square_limbs: int,
    scratch: NDArray[np.int64],
    number: NDArray[np.float64],
) -> tuple[int, int]:
    """Read a partial: how many rows (an integer sum beyond int64: -1), and the word of its sum or variance.

    Args:
        scratch: shape (scratch_size(sum_limbs, square_limbs),).
        number: shape (1,), scratch.
    """
    if op == SQUARES:
        number[0] = read_variance(cell, base, sum_limbs, square_limbs, scratch)
        return cell[0], number.view(np.int64)[0]
    if op == SUM and is_float:
        number[0] = read_float(cell, base, scratch[:sum_limbs])
        return cell[0], number.view(np.int64)[0]
    if op == SUM:
        total, fits = read_integer(cell, scratch[:sum_limbs])
        return (cell[0] if fits else -1), total
    return cell[0], 0


@compiled()
def _prompt(
    schedule: Schedule, first: int, stop: int, valid: NDArray[np.uint8], there: NDArray[np.uint8]
) -> None:
    """Write which of an entity's rows are there from the beginning."""
    prompt, takes_part = schedule.prompt[first:stop], valid[first:stop]
    for rank in range(stop - first):
        there[rank] = prompt[rank] & takes_part[rank]


@compiled(
    numba.void(*_COMMON, numba.boolean, numba.int64, numba.int64, numba.int64, _words, numba.int64[:, ::1], numba.int64[:, ::1]))  # fmt: skip
def slide(
    op: int,
    schedule: Schedule,
    first_entity: int,
    last_entity: int,
    words: NDArray[np.int64],
    valid: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    is_float: bool,
    base: int,
    sum_limbs: int,
    square_limbs: int,
    distinct: NDArray[np.int64],
    out: NDArray[np.int64],
    out_words: NDArray[np.int64],
) -> None:
    """Counts, exact sums, squares and distinct counts of every window at every moment of entities first_entity to last_entity - 1.

    Args:
        op: COUNT, SUM, SQUARES or DISTINCT.
        words: shape (rows,), see `InputColumn`; for DISTINCT small codes, each entity's from 0; empty for COUNT.
        valid: shape (rows,), 1 where the row takes part.
        starts, ends: shape (windows,), which of the schedule's edges each window begins and ends at.
        is_float: whether words are float64's bits.
        base, sum_limbs, square_limbs: see `exact` and `exact_variance`.
        distinct: DISTINCT: shape (entities,), how many codes each has; else empty.
        out, out_words: shape (moments, windows), written; see `read`. `out_words` is empty for COUNT and DISTINCT.
    """
    windows = starts.shape[0]
    longest, most = 0, 0
    for entity in range(first_entity, last_entity):
        longest = max(longest, schedule.row_stops[entity] - schedule.row_starts[entity])
        if op == DISTINCT:
            most = max(most, distinct[entity])
    width = 1 + most if op == DISTINCT else HEADER + sum_limbs + square_limbs
    cells = np.zeros((windows, width), np.int64)
    lows, highs = np.zeros(windows, np.int64), np.zeros(windows, np.int64)
    there = np.zeros(longest, np.uint8)
    scratch = np.empty(scratch_size(sum_limbs, square_limbs), np.int64)
    number = np.empty(1, np.float64)
    for entity in range(first_entity, last_entity):
        first, stop = schedule.row_starts[entity], schedule.row_stops[entity]
        begin, end = schedule.moment_starts[entity], schedule.moment_starts[entity + 1]
        if begin == end:
            continue
        _prompt(schedule, first, stop, valid, there)
        cells[:, : (1 + distinct[entity] if op == DISTINCT else width)] = 0
        lows[:] = 0
        highs[:] = 0
        come = gone = 0
        for moment in range(begin, end):
            while come < schedule.arrived[moment]:
                rank = schedule.arriving[first + come]
                come += 1
                if valid[first + rank] != 0:
                    there[rank] = 1
                    word = words[first + rank] if op != COUNT else 0
                    for w in range(windows):
                        if lows[w] <= rank < highs[w]:
                            add(op, cells[w], word, is_float, base, sum_limbs, 1)
            if schedule.left.shape[0]:
                while gone < schedule.left[moment]:
                    rank = schedule.leaving[first + gone]
                    gone += 1
                    if there[rank] != 0:
                        there[rank] = 0
                        word = words[first + rank] if op != COUNT else 0
                        for w in range(windows):
                            if lows[w] <= rank < highs[w]:
                                add(op, cells[w], word, is_float, base, sum_limbs, -1)
            for w in range(windows):
                low, high = schedule.edges[starts[w], moment], schedule.edges[ends[w], moment]
                if (low >= highs[w] or high <= lows[w]) and op != DISTINCT:
                    cells[w, :] = 0
                    lows[w] = highs[w] = low
                cell = cells[w]
                # Asked first, since a call costs more than most of them do.
                if highs[w] < high:
                    _add_rows(op, cell, there, words, first, is_float, base, sum_limbs, highs[w], high, 1)
                if low < lows[w]:
                    _add_rows(op, cell, there, words, first, is_float, base, sum_limbs, low, lows[w], 1)
                if high < highs[w]:
                    _add_rows(op, cell, there, words, first, is_float, base, sum_limbs, high, highs[w], -1)
                if lows[w] < low:
                    _add_rows(op, cell, there, words, first, is_float, base, sum_limbs, lows[w], low, -1)
                lows[w], highs[w] = low, high
                count, read_word = read(op, cell, is_float, base, sum_limbs, square_limbs, scratch, number)
                out[moment, w] = count
                if out_words.shape[0]:
                    out_words[moment, w] = read_word


TURN = np.int64(0x7FFFFFFFFFFFFFFF)
_BITS = 4
_BLOCK = 1 << _BITS
_LEAST_KEY = -(2**63)


@compiled()
def _levels(rows: int) -> tuple[NDArray[np.int64], int]:
    """Give where each level of blocks begins, and how many blocks there are in all. Level 0 are the rows themselves."""
    begins = np.zeros(18, np.int64)
    size, total, level = rows, 0, 1
    while size > 1 and level < 17:
        size = (size + _BLOCK - 1) >> _BITS
        begins[level] = total
        total += size
        level += 1
    begins[level] = total
    return begins, total


@compiled()
def key_of(word: int, turn: int) -> int:
    """Give a word as a key in the order of the values, or a key as a word.

    Args:
        turn: TURN for normalised float64's bits (NaN becomes the greatest), 0 for others.
    """
    return word ^ ((word >> 63) & turn)


@compiled(inline="always")
def _scan(
    level: int, low: int, high: int, first: int, words: NDArray[np.int64], turn: int, flip: int, there: NDArray[np.uint8],
    begins: NDArray[np.int64], best: NDArray[np.int64], some: NDArray[np.uint8], found: int, key: int,
) -> tuple[int, int]:  # fmt: skip
    """Take the greatest key of blocks low to high - 1 of a level into (found, key); where there is none, that is the least key there can be."""
    # Without a branch for what is not there, which the processor could not foresee.
    if level == 0:
        for i in range(low, high):
            own = key_of(words[first + i], turn) ^ flip
            key = max(key, own if there[i] != 0 else _LEAST_KEY)
            found |= there[i]
    else:
        for i in range(begins[level] + low, begins[level] + high):
            key = max(key, best[i])
            found |= some[i]
    return found, key


@compiled(inline="always")
def _greatest(
    low: int, high: int, first: int, words: NDArray[np.int64], turn: int, flip: int, there: NDArray[np.uint8],
    begins: NDArray[np.int64], best: NDArray[np.int64], some: NDArray[np.uint8],
) -> tuple[int, int]:  # fmt: skip
    """Give whether there is a row among ranks low to high - 1, and the greatest key."""
    found, key, level = 0, _LEAST_KEY, 0
    while low < high:
        whole_low, whole_high = (low + _BLOCK - 1) >> _BITS, high >> _BITS
        if whole_low >= whole_high:
            return _scan(level, low, high, first, words, turn, flip, there, begins, best, some, found, key)
        found, key = _scan(
            level, low, whole_low << _BITS, first, words, turn, flip, there, begins, best, some, found, key
        )
        found, key = _scan(
            level, whole_high << _BITS, high, first, words, turn, flip, there, begins, best, some, found, key
        )
        low, high = whole_low, whole_high
        level += 1
    return found, key


@compiled()
def _raise(
    rows: int, first: int, words: NDArray[np.int64], turn: int, flip: int, there: NDArray[np.uint8],
    begins: NDArray[np.int64], best: NDArray[np.int64], some: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Compute all blocks."""
    size, level = rows, 1
    while size > 1:
        blocks = (size + _BLOCK - 1) >> _BITS
        for block in range(blocks):
            low, high = block << _BITS, min((block + 1) << _BITS, size)
            found, key = _scan(
                level - 1, low, high, first, words, turn, flip, there, begins, best, some, 0, _LEAST_KEY
            )
            some[begins[level] + block] = found
            best[begins[level] + block] = key
        size = blocks
        level += 1


@compiled()
def _lower(
    rank: int, rows: int, first: int, words: NDArray[np.int64], turn: int, flip: int, there: NDArray[np.uint8],
    begins: NDArray[np.int64], best: NDArray[np.int64], some: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Recompute the blocks of a row that left."""
    size, level, block = rows, 1, rank >> _BITS
    while size > 1:
        low, high = block << _BITS, min((block + 1) << _BITS, size)
        found, key = _scan(
            level - 1, low, high, first, words, turn, flip, there, begins, best, some, 0, _LEAST_KEY
        )
        size = (size + _BLOCK - 1) >> _BITS
        at = begins[level] + block
        some[at] = found
        best[at] = key
        level += 1
        block >>= _BITS


@compiled(
    numba.void(*_COMMON, numba.boolean, numba.boolean, numba.int64[:, ::1], numba.int64[:, ::1]))  # fmt: skip
def extremes(
    op: int,
    schedule: Schedule,
    first_entity: int,
    last_entity: int,
    words: NDArray[np.int64],
    valid: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    is_float: bool,
    least: bool,
    out: NDArray[np.int64],
    out_words: NDArray[np.int64],
) -> None:
    """The greatest (or least) key of every window at every moment of entities first_entity to last_entity - 1.

    Args:
        op: MIN or MAX; not used, `least` says it.
        words: shape (rows,), see `InputColumn`.
        is_float: whether words are float64's bits.
        least: whether the least key is wanted.
        out, out_words: shape (moments, windows), written: 1 where there is one, 0 where not; and its word.
        Others: as in `slide`.
    """
    windows = starts.shape[0]
    longest = 0
    for entity in range(first_entity, last_entity):
        longest = max(longest, schedule.row_stops[entity] - schedule.row_starts[entity])
    there = np.zeros(longest, np.uint8)
    _, most = _levels(longest)
    best = np.zeros(most, np.int64)
    some = np.zeros(most, np.uint8)
    turn = TURN if is_float else np.int64(0)
    flip = np.int64(-1) if least else np.int64(0)  # ~key turns the order round
    for entity in range(first_entity, last_entity):
        first, stop = schedule.row_starts[entity], schedule.row_stops[entity]
        begin, end = schedule.moment_starts[entity], schedule.moment_starts[entity + 1]
        if begin == end:
            continue
        rows = stop - first
        begins, _ = _levels(rows)
        _prompt(schedule, first, stop, valid, there)
        _raise(rows, first, words, turn, flip, there, begins, best, some)
        come = gone = 0
        for moment in range(begin, end):
            while come < schedule.arrived[moment]:
                rank = np.int64(schedule.arriving[first + come])
                come += 1
                if valid[first + rank] == 0:
                    continue
                there[rank] = 1
                key = key_of(words[first + rank], turn) ^ flip
                size, level, block = rows, 1, rank >> _BITS
                while size > 1:
                    size = (size + _BLOCK - 1) >> _BITS
                    at = begins[level] + block
                    if some[at] != 0 and best[at] >= key:
                        break
                    some[at] = 1
                    best[at] = key
                    level += 1
                    block >>= _BITS
            if schedule.left.shape[0]:
                while gone < schedule.left[moment]:
                    rank = np.int64(schedule.leaving[first + gone])
                    gone += 1
                    if there[rank] != 0:
                        there[rank] = 0
                        _lower(rank, rows, first, words, turn, flip, there, begins, best, some)
            for w in range(windows):
                low, high = (
                    np.int64(schedule.edges[starts[w], moment]),
                    np.int64(schedule.edges[ends[w], moment]),
                )
                found, key = _greatest(low, high, first, words, turn, flip, there, begins, best, some)
                out[moment, w] = found
                out_words[moment, w] = key_of(key ^ flip, turn)


_SHIFT = 6


@compiled()
def _previous(
    there: NDArray[np.uint8], few: NDArray[np.int32], many: NDArray[np.int32], low: int, high: int
) -> int:
    """Give the last of ranks low to high - 1 that is there; -1 when none is."""
    at = high - 1
    while at >= low:
        if there[at] != 0:
            return at
        if few[at >> _SHIFT] != 0:
            at -= 1
        elif many[at >> (2 * _SHIFT)] != 0:
            at = ((at >> _SHIFT) << _SHIFT) - 1
        else:
            at = ((at >> (2 * _SHIFT)) << (2 * _SHIFT)) - 1
    return -1


@compiled()
def _next(
    there: NDArray[np.uint8], few: NDArray[np.int32], many: NDArray[np.int32], low: int, high: int
) -> int:
    """Give the first of ranks low to high - 1 that is there; -1 when none is."""
    at = low
    while at < high:
        if there[at] != 0:
            return at
        if few[at >> _SHIFT] != 0:
            at += 1
        elif many[at >> (2 * _SHIFT)] != 0:
            at = ((at >> _SHIFT) + 1) << _SHIFT
        else:
            at = ((at >> (2 * _SHIFT)) + 1) << (2 * _SHIFT)
    return -1


@compiled(numba.void(*_COMMON, numba.int64, numba.int64[:, ::1]))
def positions(
    op: int,
    schedule: Schedule,
    first_entity: int,
    last_entity: int,
    words: NDArray[np.int64],
    valid: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    wanted: int,
    out: NDArray[np.int64],
) -> None:
    """The first row, or the last ones, of every window at every moment of entities first_entity to last_entity - 1.

    Args:
        op: FIRST, LAST or LATEST.
        words: not used.
        wanted: how many rows.
        out: shape (moments, windows * wanted), written: rows, -1 where there is none; the latest first.
        Others: as in `slide`.
    """
    windows = starts.shape[0]
    longest = 0
    for entity in range(first_entity, last_entity):
        longest = max(longest, schedule.row_stops[entity] - schedule.row_starts[entity])
    there = np.zeros(longest, np.uint8)
    few = np.zeros((longest >> _SHIFT) + 1, np.int32)
    many = np.zeros((longest >> (2 * _SHIFT)) + 1, np.int32)
    for entity in range(first_entity, last_entity):
        first, stop = schedule.row_starts[entity], schedule.row_stops[entity]
        begin, end = schedule.moment_starts[entity], schedule.moment_starts[entity + 1]
        if begin == end:
            continue
        rows = stop - first
        few[: (rows >> _SHIFT) + 1] = 0
        many[: (rows >> (2 * _SHIFT)) + 1] = 0
        _prompt(schedule, first, stop, valid, there)
        for rank in range(rows):
            few[rank >> _SHIFT] += there[rank]
        for block in range((rows >> _SHIFT) + 1):
            many[block >> _SHIFT] += few[block]
        come = gone = 0
        for moment in range(begin, end):
            while come < schedule.arrived[moment]:
                rank = schedule.arriving[first + come]
                come += 1
                if valid[first + rank] != 0:
                    there[rank] = 1
                    few[rank >> _SHIFT] += 1
                    many[rank >> (2 * _SHIFT)] += 1
            if schedule.left.shape[0]:
                while gone < schedule.left[moment]:
                    rank = schedule.leaving[first + gone]
                    gone += 1
                    if there[rank] != 0:
                        there[rank] = 0
                        few[rank >> _SHIFT] -= 1
                        many[rank >> (2 * _SHIFT)] -= 1
            for w in range(windows):
                low, high = (
                    np.int64(schedule.edges[starts[w], moment]),
                    np.int64(schedule.edges[ends[w], moment]),
                )
                for k in range(wanted):
                    if op == FIRST:
                        low = _next(there, few, many, low, high)
                        rank = low
                    else:
                        high = _previous(there, few, many, low, high)
                        rank = high
                    out[moment, w * wanted + k] = rank + first if rank >= 0 else -1
                    if rank < 0:
                        out[moment, w * wanted + k : (w + 1) * wanted] = -1
                        break
