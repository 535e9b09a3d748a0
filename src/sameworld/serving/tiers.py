"""Which tier answers when the model does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sameworld.definitions.model import Constant, Fallback, Rate

MODEL = "model"


@dataclass(frozen=True)
class Answer:
    """What a caller gets: a value, the tier it comes from, and why it is not the model's (nothing when it is)."""

    value: float
    tier: str
    reason: str


class AnswersFallbacks(Protocol):
    """A bundle, as far as fallbacks go."""

    def fallback(self, tier: int, fields: Mapping[str, Any]) -> float: ...


def tier_name(number: int, fallback: Fallback) -> str:
    """Name a fallback in answers, logs and metrics, such as 'fallback_1_rate'."""
    match fallback:
        case Rate():
            return f"fallback_{number + 1}_rate"
        case Constant():
            return f"fallback_{number + 1}_constant"


def fall_back(
    bundle: AnswersFallbacks, fallbacks: tuple[Fallback, ...], fields: Mapping[str, Any], reason: str
) -> Answer:
    """Give the first fallback that answers with a finite number; without any, 0, which is said to be no answer."""
    for number, fallback in enumerate(fallbacks):
        try:
            value = bundle.fallback(number, fields)
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            reason = f"{reason}; {tier_name(number, fallback)}: {error!r}"
            continue
        if math.isfinite(value):
            return Answer(value, tier_name(number, fallback), reason)
    return Answer(0.0, "none", f"{reason}; no fallback answered")
