"""A minute of counts says how a model is doing, of one process and of several together."""

from __future__ import annotations

import numpy as np
import pytest

from sameworld.server.recent import Recent, together


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_a_model_that_nobody_asked_has_no_share_and_no_latency() -> None:
    assert together([Recent(Clock()).summary()]) == {
        "tier": "",
        "reason": "",
        "requests_per_second": 0.0,
        "fallbacks": None,
        "p50_ms": None,
        "p99_ms": None,
    }


def test_only_the_last_minute_counts() -> None:
    clock = Clock()
    recent = Recent(clock)
    for second in range(600):
        clock.time = 1000.0 + second
        for _ in range(10):
            recent.answered("model" if second < 300 else "fallback_1_rate", "", [100])
    said = together([recent.summary()])
    assert said["tier"] == "fallback_1_rate"
    assert said["fallbacks"] == 1.0
    assert said["requests_per_second"] == pytest.approx(10, rel=0.05)
    clock.time += 100
    said = together([recent.summary()])
    assert (said["requests_per_second"], said["fallbacks"], said["tier"]) == (0.0, None, "fallback_1_rate")


def test_workers_are_added_up_and_percentiles_are_within_a_tenth() -> None:
    clock = Clock()
    chance = np.random.default_rng(0)
    taken = (chance.lognormal(7, 1, 4000)).astype(int) + 1
    workers = [Recent(clock), Recent(clock)]
    for number, microseconds in enumerate(taken.tolist()):
        tier = "fallback_2_constant" if number % 4 == 0 else "model"
        workers[number % 2].answered(tier, "deadline" if number % 4 == 0 else "", [microseconds])
    clock.time += 10
    said = together(worker.summary() for worker in workers)
    assert (said["tier"], said["fallbacks"]) == ("model", 0.25)
    assert said["requests_per_second"] == pytest.approx(400, rel=0.05)
    p50, p99 = np.percentile(taken, [50, 99]) / 1e3
    assert said["p50_ms"] == pytest.approx(p50, rel=0.1)
    assert said["p99_ms"] == pytest.approx(p99, rel=0.1)
