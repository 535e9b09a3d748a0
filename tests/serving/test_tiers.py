"""The first declared fallback that gives a finite number answers; without one the answer says that it is none."""

from collections.abc import Mapping
from typing import Any

import pytest

import sameworld as sw
from sameworld.serving.tiers import Answer, fall_back, tier_name


class Bundle:
    """Gives, tier by tier, a value or an exception."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = outcomes
        self.asked: list[int] = []

    def fallback(self, tier: int, fields: Mapping[str, Any]) -> float:
        self.asked.append(tier)
        outcome = self.outcomes[tier]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


TIERS = (sw.Rate(by="shop"), sw.Rate(), sw.Constant(0.25))


def test_the_first_fallback_answers() -> None:
    bundle = Bundle(0.5, 0.4, 0.25)
    assert fall_back(bundle, TIERS, {}, "deadline") == Answer(0.5, "fallback_1_rate", "deadline")
    assert bundle.asked == [0]


@pytest.mark.parametrize("error", [KeyError("shop"), TypeError("no"), ValueError("no"), StopIteration()])
def test_a_fallback_that_fails_is_passed_over_and_named(error: Exception) -> None:
    answer = fall_back(Bundle(error, 0.4, 0.25), TIERS, {}, "deadline")
    assert answer == Answer(0.4, "fallback_2_rate", f"deadline; fallback_1_rate: {error!r}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_fallback_without_a_finite_number_is_passed_over(value: float) -> None:
    assert fall_back(Bundle(value, value, 0.25), TIERS, {}, "late") == Answer(
        0.25, "fallback_3_constant", "late"
    )


def test_without_an_answer_the_tier_is_none() -> None:
    assert fall_back(Bundle(), (), {}, "deadline") == Answer(0.0, "none", "deadline; no fallback answered")


def test_tiers_are_named_by_place_and_kind() -> None:
    assert [tier_name(place, tier) for place, tier in enumerate(TIERS)] == [
        "fallback_1_rate",
        "fallback_2_rate",
        "fallback_3_constant",
    ]
