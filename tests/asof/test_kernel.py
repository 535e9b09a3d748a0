"""The two ways to read a window give the same, and the window's edges are where they are said to be."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from sameworld.asof import exact
from sameworld.asof.aggregations import COUNT, LAST, MAX, MIN, SUM
from sameworld.asof.kernel import BEGINNING, NEVER, _sweep_tree, sweep

OPERATIONS = {
    "count": (COUNT, False),
    "float sum": (SUM, True),
    "integer sum": (SUM, False),
    "min": (MIN, False),
    "max": (MAX, False),
    "last": (LAST, False),
}
HOUR = 3_600


@dataclass
class History:
    """Row versions of several entities as the kernel takes them, with moments and windows."""

    row_starts: np.ndarray
    moment_starts: np.ndarray
    event: np.ndarray
    available: np.ndarray
    superseded: np.ndarray
    values: np.ndarray
    valid: np.ndarray
    as_of: np.ndarray
    at: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def history(
    rows: list[tuple[int, int, int, int]],
    moments: list[int],
    windows: list[tuple[int, int]],
    as_of: list[int] | None = None,
) -> History:
    """One entity; rows are (event, available, superseded, value)."""
    columns = np.array(sorted(rows), np.int64).reshape(-1, 4)
    at = np.array(moments, np.int64)
    return History(
        np.array([0, len(rows)]), np.array([0, len(moments)]),
        *np.ascontiguousarray(columns.T), np.ones(len(rows), np.uint8),
        at if as_of is None else np.array(as_of, np.int64), at,
        np.array([start for start, _ in windows], np.int64), np.array([end for _, end in windows], np.int64),
    )  # fmt: skip


def shape_of(given: History, is_float: bool) -> tuple[int, int]:
    if not is_float:
        return 0, 3
    lowest, highest = exact.exponent_range(given.values, given.valid)
    return lowest, exact.limbs_for(lowest, highest)


def read(operation: str, given: History, way: str) -> list[list[object]]:
    """Give every window at every moment: counts, (count, bits) of sums, else values (None: no row)."""
    op, is_float = OPERATIONS[operation]
    base, limbs = shape_of(given, is_float)
    out = np.full((given.at.shape[0], given.starts.shape[0]), -7, np.int64)
    sums = np.full(out.shape if op == SUM else (0, given.starts.shape[0]), 7.5)
    rows = (given.event, given.available, given.superseded, given.values, given.valid, is_float, base, limbs)
    asked = (given.as_of, given.at, given.starts, given.ends)
    entities = given.row_starts.shape[0] - 1
    if way == "tree":
        for entity in range(entities):
            ends = (
                given.row_starts[entity],
                given.row_starts[entity + 1],
                given.moment_starts[entity],
                given.moment_starts[entity + 1],
            )
            _sweep_tree(op, *ends, *rows, *asked, out, sums)
    else:
        sweep(op, given.row_starts, given.moment_starts, 0, entities, *rows, *asked, way == "walk", out, sums)
    if op == COUNT:
        return out.tolist()
    if op == SUM:
        return [
            list(zip(*both, strict=True))
            for both in zip(out.tolist(), sums.view(np.int64).tolist(), strict=True)
        ]
    # Equal values may come from different rows, except for the last one, where the row itself is the answer.
    return [
        [None if row < 0 else (row if op == LAST else int(given.values[row])) for row in line]
        for line in out.tolist()
    ]


def agreed(operation: str, given: History) -> list[list[object]]:
    """Read by walking, by the tree and by whichever the kernel chooses; they must agree."""
    walked = read(operation, given, "walk")
    assert read(operation, given, "tree") == walked
    assert read(operation, given, "either") == walked
    return walked


def random_history(seed: int, rows: int, moments: int, *, floats: bool) -> History:
    random = np.random.default_rng(seed)
    entities = int(random.integers(1, 5))
    span = int(random.choice([20, 300, 100_000]))
    row_starts = np.concatenate([[0], np.sort(random.integers(0, rows + 1, entities - 1)), [rows]]).astype(
        np.int64
    )
    moment_starts = np.concatenate(
        [[0], np.sort(random.integers(0, moments + 1, entities - 1)), [moments]]
    ).astype(np.int64)
    event = random.integers(0, span, rows)
    available = event + random.integers(-span // 4, span, rows)
    available[random.random(rows) < 0.05] = NEVER
    superseded = np.where(
        random.random(rows) < 0.6, NEVER, available + random.integers(-3, span // 2 + 1, rows)
    )
    superseded[available == NEVER] = NEVER
    values = random.integers(-(2**40), 2**40, rows)
    if floats:
        values = (random.normal(size=rows) * 10.0 ** random.integers(-30, 30, rows)).view(np.int64)
    as_of = random.integers(0, span + span // 2, moments)
    at = as_of + random.choice([0, 0, -5, span // 2], moments)
    for first, stop in pairwise(row_starts):
        order = np.lexsort((available[first:stop], event[first:stop])) + first
        for column in (event, available, superseded, values):
            column[first:stop] = column[order]
    for first, stop in pairwise(moment_starts):
        order = np.argsort(as_of[first:stop], kind="stable") + first
        at[first:stop], as_of[first:stop] = at[order], as_of[order]
    windows = [(BEGINNING, 0), (-1, 0), (-span // 10, 0), (-span, 0), (0, span // 5), (-3, span)]
    starts, ends = np.array(windows, np.int64).T
    valid = (random.random(rows) < 0.8).astype(np.uint8)
    return History(
        row_starts, moment_starts, event, available, superseded, values, valid,
        as_of, at, np.ascontiguousarray(starts), np.ascontiguousarray(ends),
    )  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS)
def test_walking_and_the_tree_agree(operation: str) -> None:
    for seed in range(60):
        random = np.random.default_rng(seed + 1000)
        given = random_history(
            seed, int(random.integers(0, 301)), int(random.integers(1, 200)), floats=operation == "float sum"
        )
        agreed(operation, given)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_walking_gives_what_a_plain_filter_gives(operation: str) -> None:
    for seed in range(12):
        given = random_history(seed, 60, 20, floats=operation == "float sum")
        read_here = read(operation, given, "walk")
        for entity in range(given.row_starts.shape[0] - 1):
            rows = range(given.row_starts[entity], given.row_starts[entity + 1])
            for moment in range(given.moment_starts[entity], given.moment_starts[entity + 1]):
                at, known = int(given.at[moment]), int(given.as_of[moment])
                for window, (start, end) in enumerate(
                    zip(given.starts.tolist(), given.ends.tolist(), strict=True)
                ):
                    inside = [
                        row
                        for row in rows
                        if given.valid[row]
                        and given.available[row] < known <= given.superseded[row]
                        and (start == BEGINNING or given.event[row] >= at + start)
                        and given.event[row] < at + end
                    ]
                    values = [int(given.values[row]) for row in inside]
                    expected: object = len(inside)
                    match operation:
                        case "integer sum":
                            expected = len(inside), sum(values)
                        case "float sum":
                            continue  # see test_exact.py
                        case "min":
                            expected = min(values, default=None)
                        case "max":
                            expected = max(values, default=None)
                        case "last":
                            expected = max(inside, default=None)
                    assert read_here[moment][window] == expected


def count(
    rows: list[tuple[int, int, int, int]],
    moments: list[int],
    window: tuple[int, int],
    as_of: list[int] | None = None,
) -> list[object]:
    return [line[0] for line in agreed("count", history(rows, moments, [window], as_of))]


def test_a_row_readable_at_the_moment_itself_is_not_used() -> None:
    assert count([(5, 10, NEVER, 0)], [9, 10, 11], (BEGINNING, 0)) == [0, 0, 1]


def test_a_row_superseded_at_the_moment_itself_is_still_used() -> None:
    assert count([(5, 10, 20, 0)], [19, 20, 21], (BEGINNING, 0)) == [1, 1, 0]


def test_a_version_readable_when_it_is_superseded_never_lives() -> None:
    assert count([(5, 10, 10, 0)], [9, 10, 11], (BEGINNING, 0)) == [0, 0, 0]


def test_a_version_that_comes_after_a_greater_one_never_lives() -> None:
    assert count([(5, 10, 8, 0)], [7, 8, 9, 10, 11, 12], (BEGINNING, 0)) == [0] * 6


def test_an_event_exactly_window_length_ago_is_inside() -> None:
    assert count([(5, 0, NEVER, 0)], [14, 15, 16], (-10, 0)) == [1, 1, 0]


def test_an_event_at_the_moment_is_outside() -> None:
    assert count([(5, 0, NEVER, 0)], [4, 5, 6], (-10, 0)) == [0, 0, 1]


def test_a_row_about_the_future_waits_until_its_time_has_passed() -> None:
    assert count([(100, 0, NEVER, 0)], [50, 100, 101], (BEGINNING, 0)) == [0, 0, 1]


def test_looking_ahead_begins_at_the_moment_and_ends_before_its_length() -> None:
    assert count([(100, 0, NEVER, 0)], [89, 90, 91, 100, 101], (0, 10)) == [0, 0, 1, 1, 0]


def test_a_row_that_is_never_readable_is_never_used() -> None:
    assert count([(5, NEVER, NEVER, 0)], [6, NEVER - 1, NEVER], (BEGINNING, 0)) == [0, 0, 0]


def test_the_time_of_knowing_may_be_later_than_the_moment() -> None:
    assert count([(5, 50, NEVER, 0), (15, 50, NEVER, 0)], [10, 10], (-10, 0), as_of=[50, 51]) == [0, 1]


def test_an_event_before_1970_counts_like_any_other() -> None:
    assert count([(-20, -15, NEVER, 0)], [-16, -15, -14, -10, -9], (-10, 0)) == [0, 0, 1, 1, 0]


def test_windows_stop_at_the_ends_of_time() -> None:
    rows = [(BEGINNING + 1, BEGINNING + 1, NEVER, 0), (NEVER - 1, BEGINNING + 1, NEVER, 0)]
    assert count(rows, [BEGINNING + 5], (-HOUR, 0)) == [1]
    assert count(rows, [NEVER - 5], (0, HOUR)) == [1]


def test_an_entity_without_rows_has_nothing() -> None:
    given = history([], [5, 6], [(BEGINNING, 0)])
    assert agreed("count", given) == [[0], [0]]
    assert agreed("last", given) == [[None], [None]]
    assert [pair[0] for (pair,) in agreed("integer sum", given)] == [0, 0]


def test_an_entity_without_moments_is_passed_over() -> None:
    given = random_history(3, 50, 10, floats=False)
    given.moment_starts[:] = 0
    assert read("count", given, "either") == [[-7] * 6] * 10


def test_ties_of_event_time_go_by_place() -> None:
    assert agreed(
        "last", history([(0, 1, NEVER, 0), (0, 2, NEVER, 0), (0, 3, NEVER, 0)], [2, 3, 4], [(BEGINNING, 0)])
    ) == [[0], [1], [2]]


def test_the_latest_event_wins_even_when_an_earlier_one_arrives_after_it() -> None:
    assert agreed("last", history([(5, 30, NEVER, 0), (8, 10, NEVER, 0)], [20, 40], [(BEGINNING, 0)])) == [
        [1],
        [1],
    ]


def test_an_integer_sum_that_does_not_fit_is_marked() -> None:
    given = history(
        [(1, 1, NEVER, 2**63 - 1), (2, 2, NEVER, 1), (3, 3, NEVER, -1)], [2, 3, 4], [(BEGINNING, 0)]
    )
    assert [pair[0] for (pair,) in agreed("integer sum", given)] == [1, -1, 3]


@pytest.mark.parametrize("operation", ["count", "integer sum", "last"])
def test_an_entity_of_a_million_rows_is_read_exactly(operation: str) -> None:
    rows, lag = 1_000_000, 10
    event = np.arange(rows, dtype=np.int64)
    at = np.linspace(0, rows + 100, 200).astype(np.int64)
    windows = [(BEGINNING, 0), (-rows // 2, 0), (-100, 0), (-5, 0)]
    starts, ends = (np.ascontiguousarray(side) for side in np.array(windows, np.int64).T)
    given = History(
        np.array([0, rows]), np.array([0, at.shape[0]]),
        event, event + lag, np.full(rows, NEVER), event, np.ones(rows, np.uint8), at, at, starts, ends,
    )  # fmt: skip

    got = read(operation, given, "either")

    for moment, t in enumerate(at.tolist()):
        stop = min(max(t - lag, 0), rows)  # events before t - lag are readable
        for window, (start, _) in enumerate(windows):
            first = min(max(0 if start == BEGINNING else t + start, 0), stop)
            expected: object = stop - first
            if operation == "integer sum":
                expected = stop - first, (first + stop - 1) * (stop - first) // 2
            if operation == "last":
                expected = stop - 1 if stop > first else None
            assert got[moment][window] == expected
