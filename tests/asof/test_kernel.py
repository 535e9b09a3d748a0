"""Sorted rows are read as a plain filter reads them, whatever their number, and the window's edges are where they are said to be."""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import bits
from numpy.typing import NDArray

from sameworld.asof import row_files
from sameworld.asof.aggregations import AGGREGATIONS, BEGINNING, NEVER, SQUARES
from sameworld.asof.arrivals import Arrivals
from sameworld.asof.columns import NO_WORDS, InputColumn, input_column
from sameworld.asof.moments import InOrder
from sameworld.asof.order import NO_KEY
from sameworld.asof.plan import Read
from sameworld.asof.prepared import sorted_rows
from sameworld.asof.read import SortedRows, arrivals_of, ends_of, limbs_of, read_windows
from sameworld.asof.threads import Threads
from sameworld.definitions.windows import Window
from sameworld.errors import AsOfError

COUNTED, WHOLE, FLOAT, TEXT = range(4)
INPUTS = {COUNTED: None, WHOLE: "integer", FLOAT: "float", TEXT: "text"}
HOUR = Window("3600us")


@dataclass(frozen=True)
class History:
    """Sorted rows of several entities, with moments sorted by (entity, as_of)."""

    rows: SortedRows
    moment_starts: NDArray[np.int64]
    as_of: NDArray[np.int64]
    at: NDArray[np.int64]


def inputs_of(whole: NDArray[np.int64], valid: NDArray[np.uint8]) -> list[InputColumn]:
    """The same numbers as all kinds of inputs: fractions of 1024 as floats, and texts."""
    texts = pa.array([f"{number:020d}" for number in (whole & 0xFFFF).tolist()], pa.string())
    return [
        InputColumn(None, NO_WORDS, valid),
        InputColumn("integer", whole, valid),
        InputColumn("float", (whole / 1024).view(np.int64), valid),
        replace(input_column("text", texts), valid=valid),
    ]


def history(
    rows: Sequence[tuple[int, int, int, int]], moments: Sequence[int], as_of: Sequence[int] | None = None
) -> History:
    """One entity; rows are (event, available, superseded, value)."""
    columns = np.array(sorted(rows), np.int64).reshape(-1, 4)
    event, available, superseded, whole = np.ascontiguousarray(columns.T)
    at = np.array(moments, np.int64)
    given = SortedRows(
        np.array([0, len(rows)]), event, available, superseded, inputs_of(whole, np.ones(len(rows), np.uint8))
    )
    return History(given, np.array([0, len(moments)]), at if as_of is None else np.array(as_of, np.int64), at)


def reads_over(windows: Sequence[Window], operations: Sequence[str] = tuple(AGGREGATIONS)) -> list[Read]:
    """Every aggregation of every input it takes; the names of its columns say which."""
    reads: list[Read] = []
    for operation in operations:
        entry = AGGREGATIONS[operation]
        for number, family in INPUTS.items():
            if family not in (entry.columns or {None}):
                continue
            arguments = {"ratio": ("", 0.25, 3.0), "last_n": (70,)}.get(operation, ())
            taken = (number, FLOAT) if operation == "ratio" else (number,)
            names = tuple(f"{operation} {number} {window.label}" for window in windows)
            reads.append(Read(operation, taken, arguments, tuple(windows), names))
    return reads


def values_of(given: History, reads: Sequence[Read], threads: int = 1) -> dict[str, list[Any]]:
    with Threads(threads) as run:
        got = read_windows(reads, given.rows, given.moment_starts, given.as_of, given.at, run=run)
    return {name: [bits(value) for value in column.to_pylist()] for name, column in got.items()}


def filtered(given: History, read: Read, window: Window) -> list[Any]:
    """What a plain filter gives."""
    rows, result = given.rows, list[Any]()
    start, end = window.bounds
    superseded = rows.superseded if rows.superseded.shape[0] else np.full(rows.event.shape[0], NEVER)
    column = rows.inputs[read.inputs[0]]
    for entity, (begin, stop) in enumerate(pairwise(given.moment_starts.tolist())):
        here = slice(int(rows.starts[entity]), int(rows.starts[entity + 1]))
        for moment in range(begin, stop):
            at, known = int(given.at[moment]), int(given.as_of[moment])
            inside = (
                (rows.available[here] < known) & (known <= superseded[here]) & (rows.event[here] < at + end)
            )
            if start is not None:
                inside &= rows.event[here] >= at + start

            def of(
                column: InputColumn, inside: NDArray[np.bool_] = inside, here: slice = here
            ) -> NDArray[Any]:
                words = column.words[here][inside & (column.valid[here] != 0)]
                return words.view(np.float64) if column.is_float else words

            if column.family is None:
                chosen = np.flatnonzero(inside & (column.valid[here] != 0))
                latest = int(rows.event[here][chosen[-1]]) if chosen.size else 0
                plain: dict[str, Any] = {
                    "count": chosen.size,
                    "exists": chosen.size > 0,
                    "age": (at - latest) / 1e6 if chosen.size else None,
                }
                result.append(bits(plain[read.operation]))
                continue
            second = of(rows.inputs[read.inputs[-1]])
            result.append(bits(PLAIN[read.operation](of(column), second, column.texts)))
    return result


def total(values: NDArray[Any]) -> int | float:
    return math.fsum(values) if values.dtype == np.float64 else sum(values.tolist())


def variance(values: NDArray[Any]) -> float | None:
    """Fractions of 1024 are whole numbers of them, and Python divides whole numbers exactly."""
    unit = 1024 if values.dtype == np.float64 else 1
    whole = [int(value * unit) for value in values.tolist()]
    n = len(whole)
    return None if n < 2 else (n * sum(x * x for x in whole) - sum(whole) ** 2) / (n * (n - 1) * unit**2)


def value(values: NDArray[Any], place: int, texts: pa.Array | None) -> Any:
    found = values[place].item()
    return found if texts is None else texts[found].as_py()


def least(values: NDArray[Any]) -> int:
    return int(np.argmin(values))


PLAIN: dict[str, Callable[[NDArray[Any], NDArray[Any], pa.Array | None], Any]] = {
    "sum": lambda values, _, __: total(values) if values.size else None,
    "mean": lambda values, _, __: total(values) / values.size if values.size else None,
    "var": lambda values, _, __: variance(values),
    "std": lambda values, _, __: math.sqrt(variance(values) or 0.0) if values.size > 1 else None,
    "ratio": lambda values, second, _: (total(values) + 0.75) / (total(second) + 3.0),
    "nunique": lambda values, _, __: np.unique(values).size,
    "min": lambda values, _, texts: value(values, int(np.argmin(values)), texts) if values.size else None,
    "max": lambda values, _, texts: value(values, int(np.argmax(values)), texts) if values.size else None,
    "first": lambda values, _, texts: value(values, 0, texts) if values.size else None,
    "last": lambda values, _, texts: value(values, -1, texts) if values.size else None,
    "last_n": lambda values, _, texts: (
        [value(values, place, texts) for place in range(max(values.size - 70, 0), values.size)] or None
    ),
}


SIZES = (0, 1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 4500)
"""Blocks are of 16, 64, 256 and 4096 rows."""


def random_history(seed: int, sizes: Sequence[int], moments: int, *, superseded: float, span: int) -> History:
    """Entities of these sizes, a part of whose rows is superseded, and as many moments each, whose `at` goes to and fro while `as_of` rises."""
    random = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = int(starts[-1])
    event = random.integers(0, span, rows)
    for first, stop in pairwise(starts):
        event[first:stop].sort()
    available = event + random.integers(-span // 4, span, rows)
    available[random.random(rows) < 0.02] = NEVER
    gone = random.random(rows) < superseded
    ends = np.where(gone & (available != NEVER), available + random.integers(-3, span // 2 + 1, rows), NEVER)
    valid = (random.random(rows) < 0.8).astype(np.uint8)
    as_of = np.sort(random.integers(0, 2 * span, (len(sizes), moments)), axis=1).ravel()
    at = random.integers(-span // 10, span + span // 3, as_of.shape[0])
    whole = random.integers(-(2**40), 2**40, rows) >> random.integers(0, 40, rows)
    given = SortedRows(starts, event, available, ends if superseded else NO_KEY, inputs_of(whole, valid))
    return History(given, np.arange(len(sizes) + 1) * moments, as_of, at)


def windows_of(span: int) -> list[Window]:
    ahead = Window(f"{span // 5}us", ahead=True)
    return [Window(), Window("1us"), Window(f"{span // 100 + 1}us"), Window(f"{span // 3}us"), ahead]


@pytest.mark.parametrize("operation", AGGREGATIONS)
@pytest.mark.parametrize(
    ("superseded", "span"), [(0.0, 50_000), (0.5, 50_000), (0.97, 3_000)], ids=["none", "half", "most"]
)
def test_every_aggregation_gives_what_a_plain_filter_gives(
    operation: str, superseded: float, span: int
) -> None:
    given = random_history(1, SIZES, 24, superseded=superseded, span=span)
    for read in reads_over(windows_of(span), [operation]):
        got = values_of(given, [read])
        for name, window in zip(read.names, read.windows, strict=True):
            assert got[name] == filtered(given, read, window), name


@pytest.mark.parametrize("seed", range(20))
def test_small_histories_give_what_a_plain_filter_gives(seed: int) -> None:
    span = [5, 20, 300][seed % 3]
    given = random_history(seed, (3, 0, 40, 1, 20), 25, superseded=0.4, span=span)
    reads = reads_over(windows_of(span))
    got = values_of(given, reads)
    for read in reads:
        for name, window in zip(read.names, read.windows, strict=True):
            assert got[name] == filtered(given, read, window), name


@pytest.mark.parametrize("asked", ["features", "labels"])
@pytest.mark.parametrize("superseded", [0.0, 0.5])
def test_moments_in_the_order_of_time_give_what_a_plain_filter_gives(superseded: float, asked: str) -> None:
    # windows reach most rows after they have become readable; labels are all known at one time
    span = 2000
    given = random_history(5, (300, 0, 70, 17, 1), 25, superseded=superseded, span=span)
    known = given.as_of if asked == "features" else np.full(given.as_of.shape[0], span)
    given = replace(given, at=given.as_of, as_of=known)
    reads = reads_over(windows_of(span))
    got = values_of(given, reads)
    for read in reads:
        for name, window in zip(read.names, read.windows, strict=True):
            assert got[name] == filtered(given, read, window), name


def test_the_number_of_threads_changes_nothing() -> None:
    sizes = np.random.default_rng(2).integers(0, 60, 300).tolist()
    given = random_history(2, sizes, 5, superseded=0.3, span=1000)
    reads = reads_over(windows_of(1000))
    assert values_of(given, reads) == values_of(given, reads, 2) == values_of(given, reads, 7)


@pytest.mark.parametrize("facts", [False, True])
def test_the_order_of_the_rows_given_changes_nothing(facts: bool) -> None:
    random = np.random.default_rng(3)
    rows, entities = 3000, 7
    whole = random.integers(-1000, 1000, rows)
    columns: dict[str, pa.Array] = {
        "entity": pa.array(random.integers(-1, entities, rows)),
        "event_time": pa.array(random.integers(0, 50, rows), mask=random.random(rows) < 0.02),
        "available_at": pa.array(random.integers(0, 90, rows), mask=random.random(rows) < 0.02),
        "tie": pa.array(random.permutation(rows).astype(np.uint64)),
        "input_0": pa.array(random.random(rows) < 0.7),
        "input_1": pa.array(whole, mask=random.random(rows) < 0.1),
        "input_2": pa.array(whole / 1024, mask=random.random(rows) < 0.1),
        "input_3": pa.array([chr(0x400 + number % 97) for number in whole.tolist()]),
    }
    if facts:
        columns |= {
            "fact_low": pa.array(random.integers(-400, 400, rows), mask=random.random(rows) < 0.1),
            "version": pa.array(random.integers(0, 3, rows)),
            "deleted": pa.array(random.random(rows) < 0.05),
        }
    batch = pa.RecordBatch.from_pydict(columns)
    asked = random_history(4, [0] * entities, 30, superseded=0.0, span=60)
    given: list[dict[str, list[Any]]] = []
    for order, parts, threads in (
        (np.arange(rows), 1, 1),
        (random.permutation(rows), 4, 1),
        (np.arange(rows)[::-1], 9, 3),
    ):
        batches = [batch.take(pa.array(part)) for part in np.array_split(order, parts)]
        with Threads(threads) as run:
            made = sorted_rows(batches, list(INPUTS.values()), entities, world="as_of", run=run)
        given.append(values_of(replace(asked, rows=made.rows), reads_over(windows_of(60)), threads))
    assert given[0] == given[1] == given[2]
    assert len(set(map(str, given[0]["last_n 1 ever"]))) > entities


# where windows and lives begin and end


def count(
    rows: list[tuple[int, int, int, int]],
    moments: list[int],
    window: Window,
    as_of: list[int] | None = None,
) -> list[Any]:
    """Count, and look whether every family of kernels agrees on whether there is a row."""
    operations = ["count", "exists", "first", "max", "nunique"]
    got = values_of(history(rows, moments, as_of), reads_over([window], operations))
    counted = got[f"count {COUNTED} {window.label}"]
    there = [number > 0 for number in counted]
    assert got[f"exists {COUNTED} {window.label}"] == there
    for operation in ("first", "max"):
        assert [found is not None for found in got[f"{operation} {WHOLE} {window.label}"]] == there
    assert [found > 0 for found in got[f"nunique {WHOLE} {window.label}"]] == there
    return counted


EVER, TEN = Window(), Window("10us")


def test_a_row_readable_at_the_moment_itself_is_not_used() -> None:
    assert count([(5, 10, NEVER, 0)], [9, 10, 11], EVER) == [0, 0, 1]


def test_a_row_superseded_at_the_moment_itself_is_still_used() -> None:
    assert count([(5, 10, 20, 0)], [19, 20, 21], EVER) == [1, 1, 0]


def test_a_version_readable_when_it_is_superseded_never_lives() -> None:
    assert count([(5, 10, 10, 0)], [9, 10, 11], EVER) == [0, 0, 0]


def test_a_version_that_comes_after_a_greater_one_never_lives() -> None:
    assert count([(5, 10, 8, 0)], [7, 8, 9, 10, 11, 12], EVER) == [0] * 6


def test_a_version_that_lives_between_two_moments_is_never_seen() -> None:
    assert count([(5, 10, 20, 0), (6, 30, NEVER, 0)], [10, 21, 31], EVER) == [0, 0, 1]


def test_an_event_exactly_window_length_ago_is_inside() -> None:
    assert count([(5, 0, NEVER, 0)], [14, 15, 16], TEN) == [1, 1, 0]


def test_an_event_at_the_moment_is_outside() -> None:
    assert count([(5, 0, NEVER, 0)], [4, 5, 6], TEN) == [0, 0, 1]


def test_a_window_ahead_has_the_moment_and_not_its_end() -> None:
    assert count([(5, -99, NEVER, 0)], [-6, -5, -4, 5, 6], Window("10us", ahead=True)) == [0, 0, 1, 1, 0]


def test_a_row_that_is_never_readable_is_never_used() -> None:
    assert count([(5, NEVER, NEVER, 0)], [6, NEVER - 1, NEVER], EVER) == [0, 0, 0]


def test_the_time_of_knowing_may_be_later_than_the_moment() -> None:
    assert count([(5, 50, NEVER, 0), (15, 50, NEVER, 0)], [10, 10], TEN, as_of=[50, 51]) == [0, 1]


def test_the_moment_may_go_back_while_the_time_of_knowing_goes_forward() -> None:
    rows = [(t, 0, NEVER if t % 2 else 30, t) for t in range(100)]
    assert count(rows, [90, 50, 95, 5, 60], TEN, as_of=[10, 20, 30, 40, 50]) == [10, 10, 10, 2, 5]


def test_an_event_before_1970_counts_like_any_other() -> None:
    assert count([(-20, -15, NEVER, 0)], [-16, -15, -14, -10, -9], TEN) == [0, 0, 1, 1, 0]


def test_windows_stop_at_the_ends_of_time() -> None:
    rows = [(BEGINNING + 1, BEGINNING + 1, NEVER, 0), (NEVER - 1, BEGINNING + 1, NEVER, 0)]
    assert count(rows, [BEGINNING + 5], HOUR) == [1]
    assert count(rows, [NEVER - 5], Window("3600us", ahead=True)) == [1]


def test_an_entity_without_rows_has_nothing() -> None:
    got = values_of(history([], [5, 6]), reads_over([EVER]))
    for name, column in got.items():
        empty = AGGREGATIONS[name.split()[0]].empty
        assert column == [bits(0.25) if empty == "the prior; null where the weight is 0" else empty] * 2, name


def test_an_entity_of_one_row_has_it() -> None:
    got = values_of(history([(5, 6, NEVER, 3)], [7]), reads_over([EVER]))
    whole = {name.split()[0]: column[0] for name, column in got.items() if name.endswith(f"{WHOLE} ever")}
    assert whole == {
        "sum": 3, "mean": bits(3.0), "var": None, "std": None, "ratio": bits(3.75 / (3 / 1024 + 3.0)), "nunique": 1,
        "min": 3, "max": 3, "first": 3, "last": 3, "last_n": [3],
    }  # fmt: skip


def test_an_entity_without_moments_is_passed_over() -> None:
    given = random_history(3, (50, 20, 30), 10, superseded=0.3, span=50)
    reads = reads_over(windows_of(50))
    whole = values_of(given, reads)
    starts = np.array([0, 10, 10, 20])
    kept = np.r_[0:10, 20:30]
    got = values_of(replace(given, moment_starts=starts, as_of=given.as_of[kept], at=given.at[kept]), reads)
    assert got == {name: [column[i] for i in kept] for name, column in whole.items()}


def test_no_moment_at_all_gives_columns_without_values() -> None:
    got = values_of(history([(5, 6, NEVER, 3)], []), reads_over([EVER]))
    assert set(map(str, got.values())) == {"[]"}


def test_ties_of_event_time_go_by_place() -> None:
    given = history([(0, 1, NEVER, 7), (0, 2, NEVER, 8), (0, 3, NEVER, 9)], [2, 3, 4])
    got = values_of(given, reads_over([EVER], ["first", "last", "last_n"]))
    assert got[f"last {WHOLE} ever"] == [7, 8, 9]
    assert got[f"first {WHOLE} ever"] == [7, 7, 7]
    assert got[f"last_n {WHOLE} ever"] == [[7], [7, 8], [7, 8, 9]]


def test_the_latest_event_wins_even_when_an_earlier_one_arrives_after_it() -> None:
    given = history([(5, 30, NEVER, 1), (8, 10, NEVER, 2)], [20, 40])
    assert values_of(given, reads_over([EVER], ["last"]))[f"last {WHOLE} ever"] == [2, 2]


@pytest.mark.parametrize("operation", ["sum", "mean", "ratio"])
def test_an_integer_sum_that_does_not_fit_is_an_error(operation: str) -> None:
    rows = [(1, 1, NEVER, 2**63 - 1), (2, 2, NEVER, 1), (3, 3, NEVER, -1)]
    reads = [read for read in reads_over([EVER], [operation]) if read.inputs[0] == WHOLE]
    assert values_of(history(rows, [2, 4]), reads)
    with pytest.raises(AsOfError) as error:
        values_of(history(rows, [2, 3, 4]), reads)
    assert error.value.what == f"The exact {operation} of a column without fractions does not fit 64 bits."
    assert error.value.where == "moment 1, at 3 microseconds since 1970"


# closed forms


@pytest.mark.slow
@pytest.mark.parametrize("superseded", [False, True])
def test_an_entity_of_ten_million_rows_is_read_exactly_in_a_minute_and_in_bounded_memory(
    superseded: bool,
) -> None:
    rows, lag, life = 10_000_000, 10, 3_000_000
    event = np.arange(rows, dtype=np.int64)
    at = np.linspace(0, rows + 100, 300).astype(np.int64)
    windows = [EVER, Window(f"{rows // 2}us"), Window("100us"), Window("5us")]
    valid = np.ones(rows, np.uint8)
    given = History(
        SortedRows(
            np.array([0, rows]), event, event + lag, event + lag + life if superseded else NO_KEY,
            [InputColumn(None, NO_WORDS, valid), InputColumn("integer", event, valid), InputColumn("integer", event % 1000, valid)],
        ),
        np.array([0, at.shape[0]]), at, at,
    )  # fmt: skip
    operations = {
        "count": 0,
        "sum": 1,
        "var": 1,
        "nunique": 2,
        "min": 1,
        "max": 1,
        "first": 1,
        "last": 1,
        "last_n": 1,
    }
    reads = [
        Read(
            operation,
            (number,),
            (3,) if operation == "last_n" else (),
            tuple(windows),
            tuple(f"{operation} {w.label}" for w in windows),
        )
        for operation, number in operations.items()
    ]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()

    with Threads(2) as run:
        got = read_windows(reads, given.rows, given.moment_starts, at, at, run=run)

    assert time.monotonic() - began < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50 * rows
    values = {name: column.to_pylist() for name, column in got.items()}
    for moment, t in enumerate(at.tolist()):
        stop = min(max(t - lag, 0), rows)  # events before t - lag are readable
        alive = max(t - lag - life, 0) if superseded else 0
        for window in windows:
            start, label = window.bounds[0], window.label
            first = min(max(0 if start is None else t + start, alive, 0), stop)
            n = stop - first
            expected = {
                "count": n,
                "sum": (first + stop - 1) * n // 2 if n else None,
                "var": n * (n + 1) / 12 if n > 1 else None,
                "nunique": min(n, 1000),
                "min": first if n else None,
                "max": stop - 1 if n else None,
                "first": first if n else None,
                "last": stop - 1 if n else None,
                "last_n": list(range(max(first, stop - 3), stop)) or None,
            }
            assert {name: values[f"{name} {label}"][moment] for name in operations} == expected, (t, label)


def test_the_range_of_a_sum_is_the_same_in_pieces_and_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.array([3e200, 0.0, math.nan, -1e-200, 7.0, math.inf, 2.5, 1e-310])
    words, valid = values.view(np.int64), np.array([1, 1, 1, 1, 0, 1, 1, 1], np.uint8)
    whole = limbs_of(SQUARES, words, valid, True, Threads(1))
    for size in (1, 2, 3, 5):
        monkeypatch.setattr("sameworld.asof.read._PIECE", size)
        with Threads(2) as run:
            assert limbs_of(SQUARES, words, valid, True, run) == whole


@pytest.mark.parametrize("seed", range(12))
def test_arrivals_that_are_known_give_the_same_wherever_windows_begin(tmp_path: Path, seed: int) -> None:
    # given rows of several entities, late, superseded and dead ones among them, and moments in and out of the order of time
    given, known = whole_history(seed), dict[int, Arrivals]()
    for end in (0, 50):
        with Threads(2) as run:
            made = arrivals_of(given.rows, given.moment_starts, given.as_of, given.at, end, run)
        (tmp_path / str(end)).mkdir()
        row_files.write_arrivals(tmp_path / str(end), [made])
        known[end] = row_files.read_arrivals(tmp_path / str(end))
    sets = [
        [Window("7us")],
        [Window("7us"), Window("90us")],
        [Window(None)],
        [Window("30us"), Window("50us", ahead=True)],
    ]
    for windows in sets:
        reads = reads_over(windows)
        # when times of knowing are not there to be looked at
        got = read_windows(reads, given.rows, given.moment_starts, NO_WORDS, given.at, known=known)
        # then
        plain = values_of(given, reads)
        assert {name: [bits(value) for value in column.to_pylist()] for name, column in got.items()} == plain
        assert ends_of(reads) == [max(window.bounds[1] for window in windows)]


def whole_history(seed: int) -> History:
    """Random rows of six entities, one of them without rows and one without moments."""
    random = np.random.default_rng(seed)
    entity = np.sort(random.choice([0, 1, 2, 4, 5], 400, p=[0.6, 0.1, 0.1, 0.1, 0.1]))
    event = random.integers(0, 300, 400)
    event = event[np.lexsort((event, entity))]
    available = np.where(random.random(400) < 0.1, NEVER, event + random.choice([0, 3, 200], 400))
    ends = np.where(random.random(400) < 0.3, event + random.integers(0, 90, 400), NEVER)
    rows = SortedRows(
        np.searchsorted(entity, np.arange(7)),
        event,
        available,
        ends if seed % 2 else NO_KEY,
        inputs_of(random.integers(0, 1000, 400), (random.random(400) < 0.8).astype(np.uint8)),
    )
    whose = np.sort(random.choice([0, 1, 2, 3, 5], 90))
    as_of = random.integers(0, 400, 90)
    as_of = as_of[np.lexsort((as_of, whose))]
    # as of the moment itself, of a moment long gone, or of moments in any order
    at = (as_of, as_of // 2, random.integers(0, 300, 90))[seed % 3]
    return History(rows, np.searchsorted(whose, np.arange(7)), as_of, at)


def test_kept_places_that_lie_outside_are_refused_and_not_followed(tmp_path: Path) -> None:
    when = np.array([5, 6, 7])
    made = InOrder(when, when, np.array([1, 2, 0], np.int32), np.array([0, 1, 3]))
    row_files.write_order(tmp_path, made)
    assert row_files.read_order(tmp_path).back.tolist() == [1, 2, 0]
    for name, place, number in [("back", 1, 3), ("back", 0, -1), ("starts", 2, 4), ("starts", 1, 9)]:
        row_files.write_order(tmp_path, made)
        _write_over(tmp_path / name, np.int32 if name == "back" else np.int64, place, number)
        with pytest.raises(OSError, match="written to by something else; delete it"):
            row_files.read_order(tmp_path)


def _write_over(path: Path, kind: type, place: int, number: int) -> None:
    column = np.fromfile(path, kind)
    column[place] = number
    column.tofile(path)


@pytest.mark.parametrize("superseded", [False, True])
def test_kept_arrivals_that_lie_outside_are_refused_and_not_followed(
    tmp_path: Path, *, superseded: bool
) -> None:
    given = whole_history(int(superseded))
    made = arrivals_of(given.rows, given.moment_starts, given.as_of, given.at, 0)
    reads = reads_over([Window("20us"), HOUR], ["sum", "min", "last"])
    names = ["late", "gone"] if superseded else ["late"]
    harms = [("ends", np.int32)]
    harms += [(f"{name}_{what}", np.int32) for name in names for what in ("ranks", "done")]
    harms += [(f"{name}_starts", np.int64) for name in names]
    for name, kind in harms:
        length = np.dtype(kind).itemsize
        for place, number in itertools.product((0, 1, -1), (-(1 << 30), -1, 1 << 30)):
            row_files.write_arrivals(tmp_path, [made])
            assert (tmp_path / name).stat().st_size > 2 * length
            _write_over(tmp_path / name, kind, place, number)
            with suppress(OSError):
                known = {0: row_files.read_arrivals(tmp_path)}
                # a count below what came before is one that changes nothing, and so may be believed
                read_windows(reads, given.rows, given.moment_starts, NO_WORDS, given.at, known=known)
                assert name.endswith("_done"), (name, place, number)
                assert number < 0, (name, place, number)
    # and those of other rows or moments
    row_files.write_arrivals(tmp_path, [made])
    known = {0: row_files.read_arrivals(tmp_path)}
    with pytest.raises(OSError, match="not those of these rows and moments"):
        read_windows(reads, given.rows, given.moment_starts // 2, NO_WORDS, given.at[:45], known=known)
