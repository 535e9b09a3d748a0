"""Corrections: of what was readable, the greatest version of every fact is the truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameworld.asof.aggregations import NEVER
from sameworld.asof.versions import superseded_at


def ends(*facts: list[int]) -> list[list[int]]:
    """Give superseded_at of facts whose versions, least first, become readable at these times."""
    same = np.array([place > 0 for fact in facts for place in range(len(fact))], np.bool_)
    flat = superseded_at(same, np.array([time for fact in facts for time in fact], np.int64)).tolist()
    return [[flat.pop(0) for _ in fact] for fact in facts]


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
