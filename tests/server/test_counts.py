"""What several processes count is added up; a successor goes on where its predecessor was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sameworld.server.counts import Counts, place
from sameworld.server.metrics import Metrics

WORKER = """
import os, signal, sys
from sameworld.server.counts import Counts
from sameworld.server.metrics import Metrics
metrics = Metrics(counts=Counts(int(sys.argv[1])))
for _ in range(10):
    metrics.answered("m", "model", "", [1_000, 3_000], logged=True)
    metrics.answered("m", sys.argv[2], "", [300_000], logged=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_worker(own: int, tier: str) -> None:
    command = [sys.executable, "-c", WORKER, str(own), tier]
    ended = subprocess.run(command, pass_fds=[own], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_whoever_is_asked_gives_the_sum_and_nothing_is_lost_when_a_worker_is_killed() -> None:
    one, other = place(), place()
    try:
        killed_worker(one, "fallback_1_rate")
        killed_worker(one, "fallback_2_constant")  # its successor
        killed_worker(other, "fallback_1_rate")
        asked = [Metrics(counts=Counts(one, [other])), Metrics(counts=Counts(other, [one]))]
        texts = {metrics.text(7).decode() for metrics in asked}
        assert len(texts) == 1
        lines = texts.pop().splitlines()
        for line in (
            'sameworld_predictions_total{model="m",tier="model"} 60.0',
            'sameworld_predictions_total{model="m",tier="fallback_1_rate"} 20.0',
            'sameworld_predictions_total{model="m",tier="fallback_2_constant"} 10.0',
            'sameworld_unlogged_predictions_total{model="m"} 30.0',
            'sameworld_prediction_seconds_bucket{le="0.002",model="m"} 30.0',
            'sameworld_prediction_seconds_bucket{le="0.005",model="m"} 60.0',
            'sameworld_prediction_seconds_bucket{le="+Inf",model="m"} 90.0',
            'sameworld_prediction_seconds_count{model="m"} 90.0',
            "sameworld_event_sequence 7.0",
        ):
            assert line in lines, line
        (total,) = (float(line.split()[1]) for line in lines if "seconds_sum" in line)
        assert total == pytest.approx(30 * 0.304)
    finally:
        os.close(one)
        os.close(other)


def test_more_keys_than_there_is_room_for_are_no_error() -> None:
    counts = Counts()
    for number in range(3000):
        counts.of("x" * 10_000, str(number))[0] += 1
    totals = counts.totals()
    assert 1000 < len(totals) < 3000
    assert {tuple(numbers) for numbers in totals.values()} == {(1.0,)}
