"""What cannot be answered in time is known before it is tried, and no model takes another's time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameworld.serving.admission import Law, Line, batch, by_the_row, in_time, learnt, share, wait


def law(fixed: float, each: float, at: float = 0.0) -> Law:
    """A law that was learnt from batches that kept it exactly."""
    made = Law()
    for rows in (1, 50, 3, 20, 8, 40):
        made = learnt(made, rows, fixed + each * rows, at)
    return made


def test_a_law_is_learnt_from_batches_and_follows_changes() -> None:
    made = law(0.001, 0.00002)
    assert (made.fixed, made.each) == pytest.approx((0.001, 0.00002))
    noise = random.Random(7)
    for _ in range(200):
        rows = noise.randint(1, 60)
        made = learnt(made, rows, (0.002 + 0.0001 * rows) * noise.uniform(0.9, 1.1), 1.0)
    assert made.fixed == pytest.approx(0.002, rel=0.3)
    assert made.each == pytest.approx(0.0001, rel=0.2)


def test_batches_of_one_size_give_their_own_cost_back() -> None:
    made = Law()
    for _ in range(50):
        made = learnt(made, 1, 0.003, 0.0)
    assert made.fixed + made.each == pytest.approx(0.003)


def test_a_stall_of_the_machine_is_no_law() -> None:
    made = learnt(law(0.001, 0.00002), 1, 5.0, 0.0)
    assert made.cost(1) < 0.02
    for _ in range(60):
        made = learnt(made, 1, 0.001, 0.0)
    assert made.cost(1) < 0.0016


observations = st.lists(
    st.tuples(st.integers(1, 500), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=40
)


@given(observations, st.integers(1, 1000))
def test_no_row_is_ever_expected_to_take_less_than_nothing(
    observed: list[tuple[int, float]], rows: int
) -> None:
    made = Law()
    for count, seconds in observed:
        made = learnt(made, count, seconds, 0.0)
    assert 0.0 <= made.fixed < 11
    assert 0.0 <= made.each < 11
    assert made.cost(rows) <= made.cost(rows + 1)
    assert made.within(made.cost(rows) * 1.001 + 1e-9) >= rows or made.each == 0.0


lines = st.lists(
    st.builds(
        lambda fixed, each, budgets: Line(law(fixed, each), [100.0 + b for b in budgets]),
        st.floats(0, 0.01),
        st.floats(1e-6, 0.005),
        st.lists(st.floats(-0.01, 0.5), min_size=1, max_size=30),
    ),
    min_size=1,
    max_size=8,
)


@given(lines)
def test_every_row_is_taken_shed_or_left_and_some_work_is_always_done(waiting: list[Line]) -> None:
    turns = share(waiting, 100.0, 0.005)
    assert len(turns) == len(waiting)
    for line, turn in zip(waiting, turns, strict=True):
        assert 0 <= turn.take <= len(line.deadlines) - len(turn.shed)
        assert all(0 <= place < len(line.deadlines) for place in turn.shed)
    assert any(turn.take or turn.shed for turn in turns)


@given(lines)
def test_a_turn_takes_no_longer_than_it_may_but_for_one_row_each(waiting: list[Line]) -> None:
    turns = share(waiting, 100.0, 0.005)
    taken = sum(line.law.cost(turn.take) for line, turn in zip(waiting, turns, strict=True))
    assert taken <= 0.005 + max(line.law.cost(1) for line in waiting) * len(waiting)


def test_what_is_in_time_is_not_shed() -> None:
    (turn,) = share([Line(law(0.001, 0.0001), [0.05] * 100)], 0.0, 1.0)
    assert (turn.take, turn.shed) == (100, frozenset())


def test_what_cannot_be_in_time_is_shed_and_the_rest_answered() -> None:
    (turn,) = share([Line(law(0.0, 0.001), [0.05] * 100)], 0.0, 1.0)
    assert turn.shed == frozenset(range(turn.take, 100))
    assert 35 <= turn.take <= 50  # 50 rows are 50 ms; some is kept in hand


def test_a_storm_on_one_model_costs_only_its_own_callers() -> None:
    storm = Line(law(0.0, 0.001), [0.05] * 10_000)
    calm = Line(law(0.0, 0.001), [0.05] * 2)
    turns = share([storm, calm], 0.0, 0.005)
    assert turns[1].take == 2
    assert not turns[1].shed
    assert 0 < turns[0].take <= 4
    assert len(turns[0].shed) > 9_900


def test_a_law_that_nothing_tested_for_long_is_tested_by_one_row() -> None:
    pessimistic = Line(law(10.0, 1.0, at=0.0), [100.05] * 5)
    (turn,) = share([pessimistic], 100.0, 0.005)
    assert (turn.take, turn.shed) == (1, frozenset({1, 2, 3, 4}))
    (turn,) = share([Line(law(10.0, 1.0, at=99.9), [100.05] * 5)], 100.0, 0.005)
    assert turn.take == 0


def test_a_process_that_should_have_answered_is_expected_to_take_as_long_again() -> None:
    made = law(0.001, 0.0)
    assert wait(made, 0, 0.0, 5.0) == 0.0
    assert wait(made, 1, 10.0, 10.0) == pytest.approx(made.cost(1))
    assert wait(made, 1, 10.0, 10.0 + made.cost(1) + 0.3) == pytest.approx(0.3)


def test_a_process_is_handed_what_it_can_do_before_the_first_deadline() -> None:
    made = law(0.0, 0.001)
    assert batch(Line(made, [10.0245] * 100), 10.0) == 20
    assert batch(Line(made, [9.0] * 3), 10.0) == 1
    assert in_time(made, 10, 10.05, 10.0, 0.02)
    assert not in_time(made, 40, 10.05, 10.0, 0.02)


def test_a_line_that_waits_finds_out_what_a_row_costs() -> None:
    """A batch has a price of its own; whoever takes it for that of its rows answers a few at a time for ever."""
    made = by_the_row(0.0021)  # of which nearly all is the batch's
    for _ in range(40):
        taken = share([Line(made, [100.0] * 64)], 0.0, 0.005)[0].take
        made = learnt(made, taken, 0.002 + 0.00001 * taken, 0.0)
    assert taken == 64


def test_a_request_counts_as_many_rows_as_it_has() -> None:
    each = law(0.0, 0.001)
    many = Line(each, [1.0] * 5, [1, 3, 500, 2, 2])
    (turn,) = share([many], 0.0, 0.0061)
    assert turn.take == 2  # four rows; the next has more than there is time for
    # One that has more than a turn gets one by itself, and costs the others theirs.
    few = Line(each, [1.0] * 2)
    first, second = share([Line(each, [1.0, 1.0], [500, 500]), few], 0.0, 0.005)
    assert (first.take, second.take) == (1, 0)
    # What is behind it is too late for its deadline; what is small enough is not.
    (turn,) = share([Line(each, [0.05] * 4, [10, 500, 20, 30])], 0.0, 1.0)
    assert (turn.take, turn.shed) == (2, {1, 3})
    assert batch(Line(each, [0.05] * 4, [10, 20, 15, 1]), 0.0) == 2
    assert batch(Line(each, [0.05] * 4, [100, 20, 15, 1]), 0.0) == 1
    assert in_time(each, 10, 0.05, 0.0, 0.0, 20)
    assert not in_time(each, 10, 0.05, 0.0, 0.0, 40)
