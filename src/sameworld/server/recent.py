"""How a model has been doing lately: a minute or so of counts, kept so cheaply that every answer can be counted."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SLOTS = 6
SLOT_SECONDS = 10.0
_STEPS = 8
_BUCKETS = 27 * _STEPS
"""Of latency: an eighth of a doubling each, from a microsecond to two minutes."""


class _Slot:
    def __init__(self, number: int) -> None:
        self.number = number
        self.tiers: Counter[str] = Counter()
        self.latency = [0] * _BUCKETS


class Recent:
    """Counts of one model's answers.

    Args:
        clock: steady seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._slots: list[_Slot] = [_Slot(int(clock() // SLOT_SECONDS))]
        self.tier = ""
        self.reason = ""

    def answered(self, tier: str, reason: str, microseconds: Sequence[int]) -> None:
        """Count answers."""
        self.tier, self.reason = tier, reason
        slot, number = self._slots[-1], int(self._clock() // SLOT_SECONDS)
        if number != slot.number:
            slot = _Slot(number)
            self._slots = [*self._slots[-SLOTS + 1 :], slot]
        slot.tiers[tier] += len(microseconds)
        for taken in microseconds:
            step = int(math.log2(taken) * _STEPS) if taken > 1 else 0
            slot.latency[min(step, _BUCKETS - 1)] += 1

    def summary(self) -> dict[str, Any]:
        """Give the counts of the last minute, to be sent and added to those of other workers."""
        now = self._clock()
        first = int(now // SLOT_SECONDS) - SLOTS + 1
        slots = [slot for slot in self._slots if slot.number >= first]
        tiers: Counter[str] = Counter()
        for slot in slots:
            tiers.update(slot.tiers)
        latency = [sum(counts) for counts in zip(*(slot.latency for slot in slots), strict=True)]
        return {
            "seconds": min(now - self._begun, now - first * SLOT_SECONDS),
            "tiers": dict(tiers),
            "latency": {str(step): count for step, count in enumerate(latency) if count},
            "tier": self.tier,
            "reason": self.reason,
        }


def together(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Give what several workers' summaries say of a model together.

    Returns:
        tier (what most answers of the last minute came from; the last one's where there were none), reason (of the last answer that was not the
        model's), requests_per_second, fallbacks (their share; None without requests), p50_ms and p99_ms (within a tenth; None without requests).
    """
    tiers: Counter[str] = Counter()
    latency: Counter[int] = Counter()
    rate, last, reason = 0.0, "", ""
    for summary in summaries:
        tiers.update(summary["tiers"])
        latency.update({int(step): count for step, count in summary["latency"].items()})
        rate += sum(summary["tiers"].values()) / max(summary["seconds"], 1.0)
        last, reason = summary["tier"] or last, summary["reason"] or reason
    asked = tiers.total()
    return {
        "tier": tiers.most_common(1)[0][0] if asked else last,
        "reason": reason,
        "requests_per_second": round(rate, 2),
        "fallbacks": round(1 - tiers["model"] / asked, 4) if asked else None,
        "p50_ms": _percentile(latency, 0.50),
        "p99_ms": _percentile(latency, 0.99),
    }


def _percentile(latency: Counter[int], share: float) -> float | None:
    total, below = latency.total(), 0
    for step in sorted(latency):
        below += latency[step]
        if below >= share * total:
            return round(2.0 ** ((step + 0.5) / _STEPS) / 1000, 3)
    return None
