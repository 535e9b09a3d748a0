"""The sweep: the only place where a window is read. Training sets, the online read, proofs and labels all end here.

Rows come sorted by (entity, event time, available time, version, tie); their place in an entity is their rank. A row version is used at a moment when
`available < as_of <= superseded` and its event time lies in [at + start, at + end). (Strictly before, so a row readable at the very moment is not used.)

Two ways to read a range of ranks give the same partials, because every partial is exact: walk the rows of the range, or, when walking would cost too much,
play the moments in time order against a segment tree over the ranks, in which an arrival sets its leaf and a supersession clears it. The walk has a
budget of O((n + m) log n) steps for an entity of n rows and m moments; the tree takes over when it is spent, so that is the cost either way.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import BEGINNING, COUNT, LAST, MAX, MIN, NEVER, SUM
from sameworld.asof.exact import HEADER, add_float, add_integer, exponents_of, read_float, read_integer

_WALK = 4


@numba.njit(cache=True, nogil=True, inline="always")
def _lift(
    op: int,
    cell: NDArray[np.int64],
    rank: int,
    values: NDArray[np.int64],
    row: int,
    is_float: bool,
    base: int,
) -> None:
    """Add one row to a partial."""
    if op == COUNT:
        cell[0] += 1
    elif op == SUM:
        if is_float:
            add_float(cell, values[row], base)
        else:
            add_integer(cell, values[row])
    elif op == LAST:
        cell[0] = max(cell[0], rank)
    elif op == MIN:
        if cell[0] < 0 or values[row] < cell[1]:
            cell[0] = rank
            cell[1] = values[row]
    elif cell[0] < 0 or values[row] > cell[1]:
        cell[0] = rank
        cell[1] = values[row]


@numba.njit(cache=True, nogil=True, inline="always")
def _combine(op: int, cell: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Add another partial to a partial."""
    if op in (COUNT, SUM):
        for i in range(cell.shape[0]):
            cell[i] += other[i]
    elif op == LAST:
        cell[0] = max(cell[0], other[0])
    elif other[0] >= 0 and (
        cell[0] < 0 or (op == MIN and other[1] < cell[1]) or (op == MAX and other[1] > cell[1])
    ):
        cell[0] = other[0]
        cell[1] = other[1]


@numba.njit(cache=True, nogil=True, inline="always")
def _clear(op: int, cell: NDArray[np.int64]) -> None:
    """Make a partial that of no row."""
    for i in range(cell.shape[0]):
        cell[i] = 0
    if op not in (COUNT, SUM):
        cell[0] = -1


@numba.njit(cache=True, nogil=True, inline="always")
def _first_at_or_after(event: NDArray[np.int64], low: int, high: int, time: int) -> int:
    while low < high:
        middle = (low + high) >> 1
        if event[middle] < time:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True, inline="always")
def _edge(at: int, offset: int) -> int:
    """`at + offset`, kept inside int64."""
    if offset == BEGINNING:
        return BEGINNING
    # Asked before adding: the compiler takes it that sums do not overflow, and drops a check made after.
    if offset < 0 and at < BEGINNING - offset:
        return BEGINNING
    if offset > 0 and at > NEVER - offset:
        return NEVER
    return at + offset


@numba.njit(cache=True, nogil=True, inline="always")
def _walk(
    op: int,
    cell: NDArray[np.int64],
    low: int,
    high: int,
    first: int,
    known: int,
    available: NDArray[np.int64],
    superseded: NDArray[np.int64],
    values: NDArray[np.int64],
    valid: NDArray[Any],
    mask: int,
    is_float: bool,
    base: int,
) -> int:
    """Add the rows of a range that count at `known` to a partial, the latest first; give how many were looked at."""
    row = high - 1
    while row >= low:
        if valid[row] & mask != 0 and available[row] < known <= superseded[row]:
            _lift(op, cell, row - first, values, row, is_float, base)
            if op == LAST:
                return high - row
        row -= 1
    return high - low


@numba.njit(cache=True, nogil=True, inline="always")
def _write(
    op: int,
    cell: NDArray[np.int64],
    first: int,
    is_float: bool,
    base: int,
    limbs: NDArray[np.int64],
    out: NDArray[np.int64],
    out_float: NDArray[np.float64],
    moment: int,
    window: int,
) -> None:
    """Read a partial: counts as they are, rows as their number (-1: none), sums rounded once (a count of -1: beyond int64)."""
    if op == SUM:
        out[moment, window] = cell[0]
        if is_float:
            out_float[moment, window] = read_float(cell, base, limbs)
        else:
            total, fits = read_integer(cell, limbs)
            # An int64 travels in the float array's bits: the caller views them.
            out_float.view(np.int64)[moment, window] = total
            if not fits:
                out[moment, window] = -1
    elif op == COUNT:
        out[moment, window] = cell[0]
    else:
        out[moment, window] = cell[0] + first if cell[0] >= 0 else -1


@numba.njit(cache=True, nogil=True, inline="always")
def _raise_leaf(op: int, tree: NDArray[np.int64], node: int) -> None:
    """Recompute the ancestors of a leaf that changed, beginning with its parent."""
    while node >= 1:
        _clear(op, tree[node])
        _combine(op, tree[node], tree[2 * node])
        _combine(op, tree[node], tree[2 * node + 1])
        node >>= 1


@numba.njit(cache=True, nogil=True)
def _sweep_tree(
    op: int,
    first: int,
    stop: int,
    begin: int,
    end: int,
    event: NDArray[np.int64],
    available: NDArray[np.int64],
    superseded: NDArray[np.int64],
    values: NDArray[np.int64],
    valid: NDArray[np.uint8],
    is_float: bool,
    base: int,
    limb_count: int,
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    out: NDArray[np.int64],
    out_float: NDArray[np.float64],
) -> None:
    """One entity, by a segment tree over the ranks. Node 1 is the root; leaf of rank r is size + r."""
    rows = stop - first
    size = 1
    while size < rows:
        size *= 2
    width = HEADER + limb_count if op == SUM else (2 if op in (MIN, MAX) else 1)
    tree = np.empty((2 * size, width), np.int64)
    for node in range(2 * size):
        _clear(op, tree[node])
    arrivals = np.argsort(available[first:stop])
    leaving = np.argsort(superseded[first:stop])
    arrived = left = 0
    cell = np.empty(width, np.int64)
    limbs = np.empty(max(limb_count, 1), np.int64)
    for moment in range(begin, end):
        known = as_of[moment]
        while arrived < rows and available[first + arrivals[arrived]] < known:
            rank = arrivals[arrived]
            row = first + rank
            arrived += 1
            # A version superseded by now never needs to enter; nor does one that takes no part.
            if valid[row] != 0 and superseded[row] >= known:
                _lift(op, tree[size + rank], rank, values, row, is_float, base)
                _raise_leaf(op, tree, (size + rank) >> 1)
        while left < rows and superseded[first + leaving[left]] < known:
            rank = leaving[left]
            left += 1
            _clear(op, tree[size + rank])
            _raise_leaf(op, tree, (size + rank) >> 1)
        for window in range(starts.shape[0]):
            low = _first_at_or_after(event, first, stop, _edge(at[moment], starts[window])) - first + size
            high = _first_at_or_after(event, first, stop, _edge(at[moment], ends[window])) - first + size
            _clear(op, cell)
            while low < high:
                if low & 1:
                    _combine(op, cell, tree[low])
                    low += 1
                if high & 1:
                    high -= 1
                    _combine(op, cell, tree[high])
                low >>= 1
                high >>= 1
            _write(op, cell, first, is_float, base, limbs, out, out_float, moment, window)


_read = numba.types.Array(numba.int64, 1, "C", readonly=True)
_valid = numba.types.Array(numba.uint8, 1, "C", readonly=True)
# One signature, so that whatever arrays come (Arrow's cannot be written, a store's can) there is one compiled kernel.
_SIGNATURE = numba.void(
    numba.int64, _read, _read, numba.int64, numba.int64, _read, _read, _read, _read, _valid, numba.boolean, numba.int64, numba.int64,
    _read, _read, _read, _read, numba.boolean, numba.int64[:, ::1], numba.float64[:, ::1],
)  # fmt: skip


@numba.njit(_SIGNATURE, cache=True, nogil=True)
def sweep(
    op: int,
    row_starts: NDArray[np.int64],
    moment_starts: NDArray[np.int64],
    first_entity: int,
    last_entity: int,
    event: NDArray[np.int64],
    available: NDArray[np.int64],
    superseded: NDArray[np.int64],
    values: NDArray[np.int64],
    valid: NDArray[np.uint8],
    is_float: bool,
    base: int,
    limb_count: int,
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    walk_only: bool,
    out: NDArray[np.int64],
    out_float: NDArray[np.float64],
) -> None:
    """Read every window at every moment of entities first_entity to last_entity - 1.

    Args:
        op: which partial.
        row_starts: shape (entities + 1,), where each entity's rows begin.
        moment_starts: shape (entities + 1,), where each entity's moments begin; moments of an entity in order of `as_of`.
        event, available, superseded: shape (rows,), microseconds since 1970.
        values: shape (rows,); for SUM int64 values or float64 bits, for MIN and MAX order-preserving keys.
        valid: shape (rows,), 1 where the row counts (its value is not null, its condition holds).
        is_float: whether SUM's values are float64 bits.
        base, limb_count: see `exact`.
        as_of, at: shape (moments,), the time of knowing and the time that windows refer to.
        starts, ends: shape (windows,), offsets from `at`; BEGINNING for all history.
        walk_only: never build a tree (one moment only: the online read).
        out, out_float: shape (moments, windows), written.
    """
    window_count = starts.shape[0]
    width = HEADER + limb_count if op == SUM else (2 if op in (MIN, MAX) else 1)
    cell = np.empty(width, np.int64)
    limbs = np.empty(max(limb_count, 1), np.int64)
    for entity in range(first_entity, last_entity):
        first, stop = row_starts[entity], row_starts[entity + 1]
        begin, end = moment_starts[entity], moment_starts[entity + 1]
        rows = stop - first
        if begin == end:
            continue
        depth = 1
        while (1 << depth) < rows:
            depth += 1
        budget = _WALK * depth * (rows + (end - begin) * window_count) if not walk_only else NEVER
        spent = np.int64(0)
        for moment in range(begin, end):
            known = as_of[moment]
            for window in range(window_count):
                low = _first_at_or_after(event, first, stop, _edge(at[moment], starts[window]))
                high = _first_at_or_after(event, low, stop, _edge(at[moment], ends[window]))
                _clear(op, cell)
                spent += _walk(
                    op, cell, low, high, first, known, available, superseded, values, valid, 1, is_float, base
                )
                _write(op, cell, first, is_float, base, limbs, out, out_float, moment, window)
            if spent > budget:
                break
        if spent > budget:
            _sweep_tree(
                op, first, stop, begin, end, event, available, superseded, values, valid, is_float, base, limb_count, as_of, at, starts, ends, out, out_float
            )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def order_keys(bits: NDArray[np.int64], low: int, high: int) -> NDArray[np.int64]:
    """int64 keys in the order of normalised float64, given as their bits; only rows low to high - 1 are filled in."""
    keys = np.empty(high, np.int64)
    for row in range(low, high):
        keys[row] = bits[row] ^ ((bits[row] >> 63) & np.int64(0x7FFFFFFFFFFFFFFF))
    return keys


# The words of a row as a store keeps it: int64 all of them, so that a run of rows is a table that is read where it lies.
EVENT, AVAILABLE, SUPERSEDED, VERSION, TIE, FIRST_VALID = range(6)
VALID_BITS = 62

_table = numba.types.Array(numba.int64, 2, "C", readonly=True)
_WALK_SIGNATURE = numba.void(
    _table,
    _read,
    numba.int64,
    _read,
    _read,
    _read,
    _read,
    _valid,
    _read,
    _read,
    numba.int64[:, ::1],
    numba.float64[:, ::1],
)


@numba.njit(_WALK_SIGNATURE, cache=True, nogil=True)
def read_entities(
    rows: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    t: int,
    ops: NDArray[np.int64],
    valid_columns: NDArray[np.int64],
    masks: NDArray[np.int64],
    value_columns: NDArray[np.int64],
    are_floats: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    out: NDArray[np.int64],
    out_float: NDArray[np.float64],
) -> None:
    """Read several windows of several entities at one moment, walking their rows where they lie.

    Args:
        rows: shape (rows, words), each entity's in order; see EVENT and what follows it.
        row_starts: shape (entities + 1,).
        t: the moment.
        ops, valid_columns, masks, value_columns, are_floats, starts, ends: shape (reads,), what to read: the partial, the word and bit that say
            whether a row takes part, the word of its value, whether that is a float64's bits, and the window.
        out, out_float: shape (entities, reads), written.
    """
    event, available, superseded = rows[:, EVENT], rows[:, AVAILABLE], rows[:, SUPERSEDED]
    for entity in range(row_starts.shape[0] - 1):
        first, stop = row_starts[entity], row_starts[entity + 1]
        for read in range(ops.shape[0]):
            op, mask, is_float = ops[read], masks[read], are_floats[read] != 0
            values, valid = rows[:, value_columns[read]], rows[:, valid_columns[read]]
            low = _first_at_or_after(event, first, stop, _edge(t, starts[read]))
            high = _first_at_or_after(event, low, stop, _edge(t, ends[read]))
            base, limb_count = 0, 3
            if op == SUM and is_float:
                base, highest = exponents_of(values, valid, mask, low, high)
                limb_count = (highest - base + 32) // 32 + 2
            cell = np.empty(HEADER + limb_count, np.int64)
            _clear(op, cell)
            if is_float and op in (MIN, MAX):
                _walk(
                    op,
                    cell,
                    low,
                    high,
                    first,
                    t,
                    available,
                    superseded,
                    order_keys(values, low, high),
                    valid,
                    mask,
                    is_float,
                    base,
                )
            else:
                _walk(
                    op, cell, low, high, first, t, available, superseded, values, valid, mask, is_float, base
                )
            _write(
                op, cell, first, is_float, base, np.empty(limb_count, np.int64), out, out_float, entity, read
            )
