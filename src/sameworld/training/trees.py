"""Flat trees: what a library's ensemble of trees says, computed by one compiled loop over arrays, in the library's own order of summation.

Nothing here decides whether that is what the library says: `gate` does, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec
import numpy as np
from numba import njit
from numpy.typing import NDArray

from sameworld.asof.compiled import compiled

NODE = np.dtype([("threshold", "f8"), ("place", "i4"), ("left", "i4")], align=True)
"""A node: a row goes to `left` where its value at `place` is at most the threshold, else to `left + 1`. A leaf leads to itself.

Places are the columns, then the columns again for nodes that nulls leave to the left, then one for each set of categories.
"""
SET = np.dtype([("column", "i4"), ("first", "i4"), ("count", "i4")], align=True)
"""Categories that go to the left: a column, and its bits in some words of 64."""
_GROUP = 8
_LINKS = ("identity", "logistic", "exponential")


class Trees(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """An ensemble of trees as a bundle keeps it: arrays as bytes, and how the library goes about them.

    Args:
        library: whose trees they are, with its version.
        nodes, values: of all trees, `NODE` and float64: what a leaf adds.
        roots: int32, where each tree begins, in the order of summation.
        sets, words: of categories, `SET` and uint64.
        missing: uint8, one a column: 0 where nulls are nulls, 1 where they are zeros, 2 where zeros are nulls, too.
        zero: values no farther from zero than this are zeros.
        narrow, single: whether values, and sums, are float32.
        start: where the sum begins.
        divide: what it is divided by.
        link, slope: what becomes of the sum; `logistic` is 1 / (1 + exp(-slope * sum)).
        takes_null: whether the library takes nulls.
        largest: of the values that it takes.
    """

    library: str
    nodes: bytes
    values: bytes
    roots: bytes
    missing: bytes
    sets: bytes = b""
    words: bytes = b""
    zero: float = 0.0
    narrow: bool = False
    single: bool = False
    start: float = 0.0
    divide: float = 1.0
    link: Literal["identity", "logistic", "exponential"] = "identity"
    slope: float = 1.0
    takes_null: bool = True
    largest: float = math.inf

    @cached_property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays that the loop goes over: nodes, values, roots, groups of trees, sets, words, missing."""
        nodes = np.frombuffer(self.nodes, NODE)
        roots = np.frombuffer(self.roots, np.int32)
        return (
            nodes,
            np.frombuffer(self.values, np.float64),
            roots,
            _groups(depths(nodes, roots)),
            np.frombuffer(self.sets, SET),
            np.frombuffer(self.words, np.uint64),
            np.frombuffer(self.missing, np.uint8),
        )

    @cached_property
    def _numbers(self) -> tuple[Any, ...]:
        return (
            self.zero, self.narrow, self.single, self.start, self.divide, _LINKS.index(self.link), self.slope
        )  # fmt: skip

    def raw_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give what the library says of every row of an encoded matrix in C order, shape (rows,).

        Raises:
            ValueError: a row that the library would not take either.
        """
        if self.largest < math.inf or not self.takes_null:
            self._refuse(rows)
        out = np.empty(rows.shape[0])
        _say(*self.arrays, *self._numbers, rows, out)
        return out

    def _refuse(self, rows: NDArray[np.float64]) -> None:
        if not self.takes_null and np.isnan(rows).any():
            raise ValueError(f"{self.library} takes no nulls in this estimator")
        if (np.abs(rows) > self.largest).any():
            raise ValueError(f"{self.library} takes no values beyond {self.largest:g}")

    def reached(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Give one row that comes by each node, -1 for a node that none does."""
        nodes, _, roots, _, sets, words, missing = self.arrays
        found = np.full(nodes.size, -1, np.int64)
        _reach(nodes, roots, sets, words, missing, self.zero, self.narrow, rows, found)
        return found


def depths(nodes: NDArray[Any], roots: NDArray[np.int32]) -> NDArray[np.int64]:
    """Give how many steps it takes in each tree to its deepest leaf."""
    left = nodes["left"]
    found = np.zeros(roots.size, np.int64)
    at, tree = roots.astype(np.int64), np.arange(roots.size)
    for depth in range(nodes.size):
        found[tree] = depth
        inner = left[at] != at
        at, tree = left[at[inner]], tree[inner]
        if not at.size:
            break
        at, tree = np.concatenate([at, at + 1]), np.concatenate([tree, tree])
    return found


def _groups(deep: NDArray[np.int64]) -> NDArray[np.int32]:
    """Give trees of about the same depth together, which are gone through side by side: the most steps, then the trees."""
    order = np.argsort(deep, kind="stable")
    order = np.concatenate([order, np.repeat(order[-1:], -order.size % _GROUP)]).reshape(-1, _GROUP)
    return np.concatenate([deep[order].max(axis=1, keepdims=True), order], axis=1).astype(np.int32)


def flattened(trees: Sequence[Sequence[Any]], columns: int) -> tuple[bytes, bytes, bytes]:
    """Give nodes, values and roots of trees.

    Args:
        trees: of each its arrays: column, threshold, whether nulls go left, left child, right child, value. The first node is the root; a leaf's left child is negative.
        columns: how many there are. A column beyond them is a place already.
    """
    nodes = np.empty(sum(len(tree[0]) for tree in trees), NODE)
    values = np.zeros(nodes.size)
    roots = np.empty(len(trees), np.int32)
    used = 0
    for number, (column, threshold, null_left, left, right, value) in enumerate(trees):
        roots[number] = used
        where = np.empty(len(column), np.int32)
        where[0], used = used, used + 1
        waiting = [0]
        while waiting:
            node = waiting.pop()
            at = where[node]
            if left[node] < 0:
                nodes[at] = (math.inf, columns, at)  # everything is at most infinite where nulls go left
                values[at] = value[node]
            else:
                place = column[node] + (columns if null_left[node] and column[node] < columns else 0)
                nodes[at] = (threshold[node], place, used)
                where[left[node]], where[right[node]] = used, used + 1
                used += 2
                waiting += [left[node], right[node]]
    return nodes[:used].tobytes(), values[:used].tobytes(), roots.tobytes()


@njit(inline="always")
def _row(rows: Any, number: int, zero: float, narrow: bool, missing: Any, sets: Any, words: Any, seen: Any) -> None:  # fmt: skip
    """Lay out a row for the nodes: nulls as they are, then as less than everything, then 0 for each set that it is in."""
    columns = missing.size
    for column in range(columns):
        value = rows[number, column]
        if narrow:
            value = np.float64(np.float32(value))
        if abs(value) <= zero:
            value = np.nan if missing[column] == 2 else 0.0
        elif math.isnan(value) and missing[column] == 1:
            value = 0.0
        seen[column] = value
        seen[columns + column] = -np.inf if math.isnan(value) else value
    for place in range(sets.size):
        one = sets[place]
        value = seen[one.column]
        outside = 1.0
        if value > -1.0 and value < 64.0 * one.count:
            code = np.int64(value)
            if (words[one.first + (code >> 6)] >> np.uint64(code & 63)) & np.uint64(1):
                outside = 0.0
        seen[2 * columns + place] = outside


@njit(inline="always")
def _step(nodes: Any, at: Any, seen: Any) -> Any:
    node = nodes[at]
    return node.left + np.int32(not (seen[node.place] <= node.threshold))


@compiled(error_model="numpy")
def _say(
    nodes: Any, values: Any, roots: Any, groups: Any, sets: Any, words: Any, missing: Any,
    zero: float, narrow: bool, single: bool, start: float, divide: float, link: int, slope: float, rows: Any, out: Any,
) -> None:  # fmt: skip
    """Write what the trees say of each row. Eight trees at a time: a step waits for memory, and eight wait together."""
    seen = np.empty(2 * missing.size + sets.size)
    leaf = np.empty(roots.size, np.int32)
    for number in range(rows.shape[0]):
        _row(rows, number, zero, narrow, missing, sets, words, seen)
        for group in range(groups.shape[0]):
            left = groups[group, 0]
            a, b, c, d = roots[groups[group, 1]], roots[groups[group, 2]], roots[groups[group, 3]], roots[groups[group, 4]]  # fmt: skip
            e, f, g, h = roots[groups[group, 5]], roots[groups[group, 6]], roots[groups[group, 7]], roots[groups[group, 8]]  # fmt: skip
            while left > 0:
                for _ in range(min(left, 4)):
                    a, b, c, d = _step(nodes, a, seen), _step(nodes, b, seen), _step(nodes, c, seen), _step(nodes, d, seen)  # fmt: skip
                    e, f, g, h = _step(nodes, e, seen), _step(nodes, f, seen), _step(nodes, g, seen), _step(nodes, h, seen)  # fmt: skip
                left -= 4
                if (
                    nodes[a].left == a and nodes[b].left == b and nodes[c].left == c and nodes[d].left == d
                    and nodes[e].left == e and nodes[f].left == f and nodes[g].left == g and nodes[h].left == h
                ):  # fmt: skip
                    break
            leaf[groups[group, 1]], leaf[groups[group, 2]], leaf[groups[group, 3]], leaf[groups[group, 4]] = a, b, c, d  # fmt: skip
            leaf[groups[group, 5]], leaf[groups[group, 6]], leaf[groups[group, 7]], leaf[groups[group, 8]] = e, f, g, h  # fmt: skip
        if single:
            small = np.float32(start)
            for tree in range(roots.size):
                small += np.float32(values[leaf[tree]])
            if link == 1:
                small = np.float32(1.0) / (math.exp(min(-small, np.float32(88.7))) + np.float32(1.0))
            out[number] = small
        else:
            total = start
            for tree in range(roots.size):
                total += values[leaf[tree]]
            total /= divide
            if link == 1:
                total = 1.0 / (1.0 + math.exp(-slope * total))
            elif link == 2:
                total = math.exp(total)
            out[number] = total


@compiled(error_model="numpy")
def _reach(nodes: Any, roots: Any, sets: Any, words: Any, missing: Any, zero: float, narrow: bool, rows: Any, found: Any) -> None:  # fmt: skip
    seen = np.empty(2 * missing.size + sets.size)
    for number in range(rows.shape[0]):
        _row(rows, number, zero, narrow, missing, sets, words, seen)
        for tree in range(roots.size):
            at = roots[tree]
            while True:
                found[at] = number
                following = _step(nodes, at, seen)
                if following == at:
                    break
                at = following
