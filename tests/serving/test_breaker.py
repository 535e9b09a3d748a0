"""A breaker tolerates a slip, keeps out what fails again and again for longer each time, and forgets with one success."""

import pytest

from sameworld.serving.breaker import Breaker, failed, succeeded


def fail(times: int, *, fatal: bool = False, now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker = failed(breaker, now, "it raised", fatal=fatal)
    return breaker


def test_a_new_breaker_lets_everything_in() -> None:
    assert Breaker().allows(0.0)


def test_two_failures_are_tolerated_and_the_third_opens() -> None:
    assert fail(1).allows(100.0)
    assert fail(2).allows(100.0)
    assert not fail(3).allows(100.0)
    assert not fail(3).allows(100.49)
    assert fail(3).allows(100.5)


def test_a_fatal_failure_opens_at_once() -> None:
    assert not fail(1, fatal=True).allows(100.49)
    assert fail(1, fatal=True).allows(100.5)


@pytest.mark.parametrize(
    ("times", "pause"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (5000, 30.0)]
)
def test_every_pause_is_twice_the_one_before_up_to_half_a_minute(times: int, pause: float) -> None:
    assert fail(times, fatal=True).open_until == 100.0 + pause
    assert fail(times + 2).open_until == 100.0 + pause


def test_one_success_makes_it_as_new() -> None:
    assert succeeded(fail(20)) == Breaker()
    fresh = Breaker()
    assert succeeded(fresh) is fresh


def test_it_says_why() -> None:
    assert failed(fail(2), 1.0, "it hung").reason == "it hung"
