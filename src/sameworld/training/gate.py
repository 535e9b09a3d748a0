"""The equality gate: flat trees may answer for a library only where both say the same, to the last bit, of all training rows and of rows made to tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from lightgbm.basic import LightGBMError
from numpy.typing import NDArray

from sameworld.training.encoding import ColumnEncoding
from sameworld.training.flat import RefusedError, flat_trees
from sameworld.training.trees import Trees

Says = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Gives what an estimator says of every row of an encoded matrix."""

_CHUNK = 50_000
_MOST_REACHING = 200_000
_MOST_NODES = 50_000
_BASES = 20
_CODES = 65
_ALONE = 50
_ODD = (np.nan, 0.0, -0.0, 1e-36, -1e-36, 1e39, -1e39, 1e300, np.inf, -np.inf)


class Gate(msgspec.Struct, frozen=True):
    """What came of comparing flat trees with their library.

    Args:
        refused: why the library answers itself; empty where the trees do.
        rows: how many training rows were compared.
        placed: how many rows that were placed: at the thresholds of nodes and next to them, with nulls, infinities, zeros, categories never seen.
    """

    refused: str = ""
    rows: int = 0
    placed: int = 0

    @property
    def says(self) -> str:
        """The outcome in a few words."""
        return f"library: {self.refused}" if self.refused else "compiled"


def through_gate(
    estimator: Any,
    says: Says,
    rows: NDArray[np.float64],
    encodings: Sequence[ColumnEncoding],
    *,
    probability: bool,
) -> tuple[Trees | None, Gate]:
    """Give an estimator's flat trees if they say what it says, and what was compared.

    Args:
        estimator: fitted.
        says: what the library says.
        rows: the encoded training rows.
        encodings: of their columns.
        probability: whether it is asked for the probability of the second class.
    """
    try:
        trees = flat_trees(estimator, rows.shape[1], probability=probability)
    except RefusedError as refused:
        return None, Gate(str(refused))
    gate = judged(trees, says, rows, encodings)
    return (None if gate.refused else trees), gate


def judged(trees: Trees, says: Says, rows: NDArray[np.float64], encodings: Sequence[ColumnEncoding]) -> Gate:
    """Compare flat trees with what the library says; see `through_gate`."""
    try:
        compared = _compare(trees, says, _chunks(rows), "training row")
        reaching = rows[
            np.linspace(0, rows.shape[0] - 1, min(_MOST_REACHING, rows.shape[0])).astype(np.int64)
        ]
        placed = _compare(
            trees, says, _placed(trees, np.ascontiguousarray(reaching), encodings), "placed row"
        )
        _compare(trees, says, (rows[i : i + 1] for i in range(min(_ALONE, rows.shape[0]))), "row alone")
        _check_refusals(trees, says, rows[:1])
    except RefusedError as refused:
        return Gate(str(refused))
    except (ValueError, LightGBMError) as error:  # it was thought to take such a row
        return Gate(f"{trees.library} does not take a row: {error}")
    return Gate("", compared, placed)


def first_difference(expected: NDArray[np.float64], found: NDArray[np.float64]) -> int | None:
    """Give the first place where two arrays differ in a bit; all NaN are alike."""
    wrong = (expected.view(np.int64) != found.view(np.int64)) & ~(np.isnan(expected) & np.isnan(found))
    return int(np.argmax(wrong)) if wrong.any() else None


def _compare(trees: Trees, says: Says, parts: Iterator[NDArray[np.float64]], what: str) -> int:
    done = 0
    for part in parts:
        taken = part[_takes(trees, part)]
        if not taken.shape[0]:
            continue
        expected, found = says(taken), trees.raw_of(taken)
        wrong = first_difference(expected, found)
        if wrong is not None:
            raise RefusedError(
                f"{what} {done + wrong:,} is {float(expected[wrong])!r} by {trees.library} and {float(found[wrong])!r} compiled"
            )
        done += taken.shape[0]
    return done


def _takes(trees: Trees, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Give which rows the library is said to take."""
    nulls = np.isnan(rows)
    fits = nulls | (np.abs(rows) <= trees.largest)
    return np.logical_and.reduce(fits if trees.takes_null else fits & ~nulls, axis=1)


def _check_refusals(trees: Trees, says: Says, row: NDArray[np.float64]) -> None:
    """See that the library does not take what flat trees refuse: else its answer would be lost."""
    refused = [] if trees.takes_null else [np.nan]
    refused += [] if trees.largest == np.inf else [np.inf, 2 * trees.largest]
    for value in refused:
        odd = row.copy()
        odd[0, 0] = value
        try:
            with np.errstate(over="ignore"):
                says(odd)
        except ValueError:
            continue
        raise RefusedError(f"{trees.library} takes {value}, which it was thought not to")


def _chunks(rows: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    for first in range(0, rows.shape[0], _CHUNK):
        yield np.ascontiguousarray(rows[first : first + _CHUNK])


def _placed(
    trees: Trees, rows: NDArray[np.float64], encodings: Sequence[ColumnEncoding]
) -> Iterator[NDArray[np.float64]]:
    """Give rows that were made to tell trees apart: for each node a training row that comes by it, with the node's column at its threshold, next to it on both sides, and null."""
    columns = rows.shape[1]
    nodes, sets = trees.arrays[0], trees.arrays[4]
    split = np.flatnonzero(nodes["left"] != np.arange(nodes.size))
    if split.size > _MOST_NODES:
        split = split[np.linspace(0, split.size - 1, _MOST_NODES).astype(np.int64)]
    reached = np.maximum(trees.reached(rows), 0)[split]
    place = nodes["place"][split]
    numeric = place < 2 * columns
    column = np.where(numeric, place % columns, 0)
    column[~numeric] = sets["column"][place[~numeric] - 2 * columns]
    kind: Any = np.float32 if trees.narrow else np.float64
    at = nodes["threshold"][split].astype(kind)
    with np.errstate(over="ignore"):
        around = [at, np.nextafter(at, kind(np.inf)), np.nextafter(at, kind(-np.inf))]
    categories = np.array([len(encoding.categories or ()) for encoding in encodings])[column[~numeric]]
    for value in [*around, np.full(split.size, np.nan)]:
        yield from _with(rows, reached[numeric], column[numeric], value[numeric].astype(np.float64))
    for share in np.linspace(0, 1, _CODES):  # up to the first that was never seen
        yield from _with(rows, reached[~numeric], column[~numeric], np.rint(share * categories))
    for code in (np.nan, -1.0):
        yield from _with(rows, reached[~numeric], column[~numeric], np.full(categories.size, code))
    bases = np.repeat(np.linspace(0, rows.shape[0] - 1, _BASES).astype(np.int64), columns)
    for value in _ODD:
        yield from _with(rows, bases, np.tile(np.arange(columns), _BASES), np.full(bases.size, value))
        yield np.full((1, columns), value)


def _with(
    rows: NDArray[np.float64],
    base: NDArray[np.int64],
    column: NDArray[np.int64],
    value: NDArray[np.float64],
) -> Iterator[NDArray[np.float64]]:
    """Give rows with another value in one column each."""
    for first in range(0, base.size, _CHUNK):
        part = slice(first, first + _CHUNK)
        made = rows[base[part]]
        made[np.arange(made.shape[0]), column[part]] = value[part]
        yield made
