"""Windows read from tallies have the same bits as windows read from rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sameworld.asof.aggregations import (
    AGGREGATIONS,
    BEGINNING,
    COUNT,
    MAX,
    MIN,
    NEVER,
    SQUARES,
    SUM,
)
from sameworld.asof.columns import normalised
from sameworld.asof.entity import AVAILABLE, EVENT, SUPERSEDED, EntityReads, Words
from sameworld.asof.plan import Read
from sameworld.asof.tally import Tallied, Tallies
from sameworld.definitions.windows import Window

FAMILIES = ["float", "integer", None, "text", "decimal(2)", "boolean"]
WORDS = Words(FAMILIES)
TALLY = WORDS.tally
# By tally: what is not, a store reads from rows.
SUMMED = {0: ["sum", "mean", "var", "std", "min", "max"], 1: ["mean", "var", "std", "min", "max"], 2: ["count", "exists"], 3: [], 4: ["mean", "std", "min", "max"], 5: ["sum", "mean", "var"]}  # fmt: skip
WINDOWS = (Window(), Window("1000us"), Window("30us"))
READS = EntityReads(
    [
        Read(name, (item,), (), WINDOWS, tuple(f"{name} {item} {window}" for window in range(len(WINDOWS))))
        for item, names in SUMMED.items()
        for name in names
    ],
    WORDS,
)
FLOATS = st.one_of(
    st.floats(width=64), st.sampled_from([5e-324, -0.0, 1.7e308, 0.1, 1e16, -1e16, float("nan"), float("inf")]), st.floats(0, 100)
)  # fmt: skip
ROWS = st.tuples(
    st.integers(0, 60), FLOATS, st.integers(-(2**57), 2**57), st.integers(-(10**17), 10**17), st.booleans(), st.integers(0, 2**len(FAMILIES) - 1)
)  # fmt: skip
T = 61


def rows_of(drawn: list[tuple[int, float, int, int, bool, int]]) -> NDArray[np.int64]:
    """Lay rows out as a store keeps them, in order of time."""
    rows = np.zeros((len(drawn), WORDS.width), np.int64)
    for row, (event, number, whole, decimal, flag, valid) in zip(rows, sorted(drawn, key=lambda d: d[0]), strict=True):  # fmt: skip
        row[EVENT], row[AVAILABLE], row[SUPERSEDED] = event, event, NEVER
        row[WORDS.valid[0][0]] = valid
        for item, word in ((0, normalised(np.array([number])).view(np.int64)[0]), (1, whole), (4, decimal), (5, flag)):  # fmt: skip
            row[WORDS.values[item]] = word
    return rows


def values(rows: NDArray[np.int64], tallied: Tallied | None = None) -> dict[str, list[bytes]]:
    """Read everything of one entity, as bits."""
    found = READS.values(
        rows, np.array([0, len(rows)]), T, {3: np.full(len(rows), "", object)}, None, tallied
    )
    return {name: [repr(value).encode() for value in column.arrow().to_pylist()] for name, column in found.items()}  # fmt: skip


def tallies_of(rows: NDArray[np.int64], cuts: list[int]) -> list[Tallies]:
    """Tally runs of rows that begin where they are cut, each by itself."""
    places = np.searchsorted(rows[:, EVENT], cuts).tolist()
    return [
        TALLY.of(rows[low:high], np.array([0, high - low]), np.array([start], np.int64))
        for start, low, high in zip([BEGINNING, *cuts], [0, *places], [*places, len(rows)], strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, max_size=40), st.sets(st.integers(1, 60), max_size=6), st.data())
def test_windows_are_the_same_from_rows_and_from_tallies_of_any_of_them(
    drawn: list[tuple[int, float, int, int, bool, int]], cut: set[int], data: st.DataObject
) -> None:
    # cut where windows begin, too: a tally is in one as a whole or not at all
    rows, cuts = rows_of(drawn), sorted({*cut, T - 30, T - 1000})
    parts = tallies_of(rows, cuts)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)), "by tally")
    edges = [BEGINNING, *cuts, NEVER]
    left = np.ones(len(rows), np.bool_)
    for place, by_tally in enumerate(chosen):
        if by_tally:
            left &= (rows[:, EVENT] < edges[place]) | (rows[:, EVENT] >= edges[place + 1])
    taken = [part for part, by_tally in zip(parts, chosen, strict=True) if by_tally]
    if not taken:
        return
    tallied = Tallied(np.array([0, len(taken)]), TALLY.together(taken))
    assert values(rows[left], tallied) == values(rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=40), st.sets(st.integers(1, 60), max_size=6))
def test_the_total_of_tallies_is_the_tally_of_all_their_rows(
    drawn: list[tuple[int, float, int, int, bool, int]], cut: set[int]
) -> None:
    rows = rows_of(drawn)
    parts = TALLY.together(tallies_of(rows, sorted(cut)))
    (whole,) = tallies_of(rows, [])
    total = Tallies(whole.starts, parts.ranges, TALLY.total(parts)[None])
    both = TALLY.together([total, whole])
    assert both.table[0].tolist() == both.table[1].tolist()


def test_every_aggregation_whose_partial_adds_up_is_read_here() -> None:
    read = {name for names in SUMMED.values() for name in names}
    added = {
        name
        for name, one in AGGREGATIONS.items()
        if one.partial in (COUNT, SUM, SQUARES, MIN, MAX) and name != "ratio"
    }
    assert read == added
