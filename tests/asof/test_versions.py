"""Corrections: of what was readable, the greatest version of every fact is the truth."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.aggregations import NEVER
from sameworld.asof.versions import closes_at, superseded_at


def lives(*facts: list[int], within: int = NEVER) -> list[list[tuple[int, int]]]:
    """Give the time from which each version counts and that at which it is superseded, of facts whose versions, least first, become readable at these times."""
    same = np.array([place > 0 for fact in facts for place in range(len(fact))], np.bool_)
    available = np.array([time for fact in facts for time in fact], np.int64)
    counted, superseded, first = (column.tolist() for column in superseded_at(same, available, within))
    assert first == [min(fact) for fact in facts for _ in fact]
    flat = list(zip(counted, superseded, strict=True))
    return [[flat.pop(0) for _ in fact] for fact in facts]


def ends(*facts: list[int]) -> list[list[int]]:
    """Give superseded_at of facts whose versions, least first, become readable at these times; all of them count."""
    found = lives(*facts)
    assert [[start for start, _ in fact] for fact in found] == list(facts)
    return [[stop for _, stop in fact] for fact in found]


def test_a_version_ends_when_a_greater_one_is_readable() -> None:
    assert ends([1, 5, 9]) == [[5, 9, NEVER]]


def test_a_late_retry_of_an_old_version_never_reverts() -> None:
    # Version 2 is readable at 5 and version 1 only at 8: version 1 has ended before it begins.
    assert ends([8, 5]) == [[5, NEVER]]


def test_the_first_greater_version_to_be_readable_ends_it() -> None:
    assert ends([1, 9, 4]) == [[4, 4, NEVER]]


def test_versions_readable_at_one_instant_leave_only_the_greatest() -> None:
    assert ends([3, 3, 3]) == [[3, 3, NEVER]]


def test_a_version_that_is_never_readable_ends_nothing() -> None:
    assert ends([1, NEVER]) == [[NEVER, NEVER]]
    assert ends([1, NEVER, 7]) == [[7, 7, NEVER]]


def test_facts_do_not_end_each_other() -> None:
    assert ends([1], [2, 3], [], [4]) == [[NEVER], [3, NEVER], [], [NEVER]]


INSTANT = pa.timestamp("us", tz="UTC")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5))
def test_at_every_instant_at_most_one_version_of_a_fact_lives(facts: list[list[int]]) -> None:
    for fact, stops in zip(facts, ends(*facts), strict=True):
        for instant in range(12):
            alive = [
                i for i, (start, stop) in enumerate(zip(fact, stops, strict=True)) if start < instant <= stop
            ]
            readable = [i for i, start in enumerate(fact) if start < instant]
            assert alive == readable[-1:]


def test_a_version_counts_until_its_fact_closes() -> None:
    # The fact closes at 10 + 5; a version readable at 14 still counts, one at 15 does not.
    assert lives([10, 14], within=5) == [[(10, 14), (14, NEVER)]]
    assert lives([10, 15], within=5) == [[(10, NEVER), (NEVER, NEVER)]]
    assert lives([10, 15, 12], within=5)[0][0] == (10, 12)


def test_the_first_version_to_be_readable_opens_the_fact_whatever_its_number() -> None:
    assert lives([12, 10], within=2)[0] == [(NEVER, 10), (10, NEVER)]
    assert lives([11, 10, NEVER], within=2)[0] == [(11, 10), (10, NEVER), (NEVER, NEVER)]


def test_a_version_that_is_never_readable_opens_no_fact() -> None:
    assert lives([NEVER], [NEVER, 7, 8], within=1) == [
        [(NEVER, NEVER)],
        [(NEVER, 7), (7, NEVER), (NEVER, NEVER)],
    ]


@pytest.mark.parametrize("first", [-(2**63), -5, 0, 5, NEVER - 5, NEVER - 1])
def test_a_fact_closes_beyond_time_and_before_1970_too(first: int) -> None:
    last = NEVER - 1
    assert lives([first, last]) == [[(first, last), (last, NEVER)]]
    assert lives([first, first], within=1)[0][1] == (first, NEVER)
    wide = lives([first, last], within=200 * 366 * 86_400_000_000)[0][1][0]
    assert wide == (last if first >= NEVER - 5 else NEVER)
    assert closes_at(first, 3) == min(first + 3, NEVER)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5), st.integers(1, 11))
def test_versions_that_come_too_late_are_as_if_they_had_never_come(
    facts: list[list[int]], within: int
) -> None:
    cut = [[time for time in fact if time < min(fact) + within] for fact in facts]
    found = [[life for life in fact if life[0] != NEVER] for fact in lives(*facts, within=within)]
    assert found == lives(*cut)


def row(
    version: int,
    available: int,
    *,
    entity: str = "ann",
    event: int = 0,
    value: float = 1.0,
    deleted: bool = False,
    fact: str = "f",
) -> dict:
    return {"k": entity, "e": event, "a": available, "id": fact, "v": version, "d": deleted, "x": value}


BY_VERSION = {"id": "id", "version": "v", "deleted": "d"}
ANN = [("ann", t) for t in (10, 11, 20, 21, 30, 31)]


def total(source):
    return source.by("k").sum("x")


def test_a_correction_counts_from_the_moment_after_it_is_readable(ask) -> None:
    rows = [row(1, 10, value=1.0), row(2, 20, value=5.0)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, 5.0, 5.0, 5.0]


def test_a_retry_after_the_correction_changes_nothing(ask) -> None:
    rows = [row(1, 10, value=1.0), row(2, 20, value=5.0), row(1, 25, value=1.0)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, 5.0, 5.0, 5.0]


def test_without_versions_the_order_of_arrival_decides(ask) -> None:
    rows = [row(2, 10, value=5.0), row(1, 20, value=1.0)]
    assert ask(rows, total, ANN, id="id") == [None, 5.0, 5.0, 1.0, 1.0, 1.0]


def test_a_deletion_withdraws_the_fact(ask) -> None:
    rows = [row(1, 10), row(2, 20, deleted=True)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, None, None, None]


def test_a_deletion_may_come_before_its_row(ask) -> None:
    rows = [row(2, 10, deleted=True), row(1, 20)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None] * 6


def test_a_later_version_revives_a_deleted_fact(ask) -> None:
    rows = [row(1, 10), row(2, 20, deleted=True), row(3, 30, value=7.0)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, None, None, 7.0]


def test_a_correction_may_move_the_fact_to_another_entity(ask) -> None:
    rows = [row(1, 10, entity="ann"), row(2, 20, entity="bob")]
    moments = [(who, t) for t in (15, 20, 21) for who in ("ann", "bob")]
    assert ask(rows, total, moments, **BY_VERSION) == [1.0, None, 1.0, None, None, 1.0]


def test_a_correction_to_an_entity_nobody_asks_about_still_counts(ask) -> None:
    rows = [row(1, 10, entity="ann"), row(2, 20, entity="someone else")]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, None, None, None]


def test_a_correction_without_an_entity_still_counts(ask) -> None:
    rows = [row(1, 10), row(2, 20) | {"k": None}]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, None, None, None]


def test_a_correction_may_move_the_event_time(ask) -> None:
    rows = [row(1, 10, event=9), row(2, 20, event=18)]
    moments = [("ann", t) for t in (11, 14, 15, 21, 23, 24)]
    recent = ask(rows, lambda source: source.by("k").count(over="5us"), moments, **BY_VERSION)
    assert recent == [1, 1, 0, 1, 1, 0]


def test_a_correction_may_take_the_event_time_away(ask) -> None:
    rows = [row(1, 10), row(2, 20) | {"e": None}]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, None, None, None]


def test_a_correction_that_is_never_readable_changes_nothing(ask) -> None:
    rows = [row(1, 10, value=1.0), row(2, 20, value=5.0) | {"a": None}]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_of_versions_readable_at_one_instant_only_the_greatest_ever_lives(ask) -> None:
    rows = [row(2, 10, value=5.0), row(1, 10, value=1.0), row(3, 10, value=9.0)]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 9.0, 9.0, 9.0, 9.0, 9.0]


def test_a_repeated_row_counts_once(ask) -> None:
    rows = [row(1, 10), row(1, 10), row(1, 12)]
    assert ask(rows, lambda source: source.by("k").count(), ANN, **BY_VERSION) == [0, 1, 1, 1, 1, 1]


def test_rows_without_an_id_are_facts_of_their_own(ask) -> None:
    rows = [row(1, 10) | {"id": None}, row(2, 10) | {"id": None}]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_a_row_without_a_version_is_the_least(ask) -> None:
    rows = [row(-5, 10, value=1.0), row(0, 20, value=5.0) | {"v": None}]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_the_file_does_not_matter(ask, reverse: bool) -> None:
    rows = [row(1, 10, value=1.0), row(1, 10, value=2.0), row(1, 10, value=3.0)]
    given = rows[::-1] if reverse else rows
    assert ask(given, total, ANN[1:2], **BY_VERSION) == ask(rows, total, ANN[1:2], **BY_VERSION)


WITHIN = BY_VERSION | {"corrections_within": "10us"}


def test_a_correction_counts_until_the_fact_closes_and_not_from_then_on(ask) -> None:
    rows = [row(1, 10, value=1.0), row(2, 19, value=5.0), row(3, 20, value=9.0), row(4, 25, deleted=True)]
    assert ask(rows, total, ANN, **WITHIN) == [None, 1.0, 5.0, 5.0, 5.0, 5.0]
    assert ask(rows, total, ANN, **BY_VERSION) == [None, 1.0, 5.0, 9.0, None, None]


def test_a_deletion_opens_the_fact_too(ask) -> None:
    rows = [row(2, 10, deleted=True), row(3, 20, value=7.0), row(1, 11)]
    assert ask(rows, total, ANN, **WITHIN) == [None] * 6
    revived = [row(2, 10, deleted=True), row(3, 19, value=7.0)]
    assert ask(revived, total, ANN, **WITHIN) == [None, None, 7.0, 7.0, 7.0, 7.0]


def test_a_version_that_is_never_readable_closes_nothing(ask) -> None:
    rows = [row(1, 0) | {"a": None}, row(2, 10, value=1.0), row(3, 19, value=2.0)]
    assert ask(rows, total, ANN, **WITHIN) == [None, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_rows_without_an_id_close_nothing(ask) -> None:
    rows = [row(1, 10) | {"id": None}, row(1, 30) | {"id": None}]
    assert ask(rows, total, ANN, **WITHIN) == [None, 1.0, 1.0, 1.0, 1.0, 2.0]


def test_in_the_world_event_time_a_version_that_came_too_late_does_not_count_either() -> None:
    rows = [row(1, 10, value=1.0), row(2, 19, value=5.0), row(3, 20, value=9.0)]
    types = {"k": pa.string(), "e": INSTANT, "a": INSTANT, "id": pa.string(), "v": pa.int64(), "d": pa.bool_(), "x": pa.float64()}  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))
    asked = pa.table({"k": ["ann"], "t": pa.array([5], INSTANT)})
    moments = sw.Moments(asked, at="t")
    given = []
    for options in (BY_VERSION, WITHIN):
        source = sw.Source("rows", table, event_time="e", available_at="a", **options)
        made = sw.training_set({"x": total(source)}, moments=moments, world="event_time")
        given += made["x"].to_pylist()
    assert given == [9.0, 5.0]
