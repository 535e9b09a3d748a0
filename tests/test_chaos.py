"""The chaos script in small: every promise is kept while workers and models are broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_promise_is_kept_while_things_are_broken() -> None:
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Where tests run, others use the machine: latencies are not judged.
    size = ["--requests", "800", "--rate", "200", "--connections", "16", "--no-latency"]
    size += ["--moods", "1", "--seconds", "0.3"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *size],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    done_once = ["store held", "corrupt events", "store damaged", "killed worker"]
    assert all(facts["faults"][fault] >= 1 for fault in done_once)
    assert facts["faults"]["swaps"] >= 3
    assert facts["requests answered"] == 800
    assert facts["vectors proved"] > 200
    assert facts["events acknowledged"] > 10
    assert facts["answers"]["steady"]["model"] > 200


def test_stalls_are_taken_from_the_requests_they_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.chaos.stalls import overlapping

    stalls = np.array([[10.0, 2.0], [20.0, 1.0]])
    started = np.array([0.0, 9.0, 11.0, 10.5, 12.0, 0.0, 21.0])
    seconds = np.array([5.0, 2.0, 3.0, 1.0, 8.5, 30.0, 1.0])
    assert overlapping(stalls, started, seconds).tolist() == [0.0, 1.0, 1.0, 1.0, 0.5, 3.0, 0.0]
    assert overlapping(np.zeros((0, 2)), started, seconds).tolist() == [0.0] * 7


def test_a_late_answer_is_told_by_what_its_own_worker_did_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.chaos.doing import Slow, doing, notes

    lines = [
        [9.0, 0, 0, "", []],
        [10.0, 0, 0, "", []],
        [11.0, 400_000_000, 100_000_000, "a.b:1", ["loader: c.d:2"]],
        [12.0, 1_400_000_000, 100_000_000, "", []],
    ]
    (tmp_path / "1f.doing").write_text("".join(json.dumps(line) + "\n" for line in lines) + '[13.0, 0, "torn')
    (tmp_path / "2f.doing").write_text(json.dumps([10.0, 0, 0, "another's", []]) + "\n")

    spent = doing(Slow(10.5, 1.0, "5-1f-9-1", 0.25), notes(tmp_path))

    assert spent == {
        "the load waiting for a processor": 0.25,
        "waiting for a processor": pytest.approx(0.05),
        "at work: a.b:1": pytest.approx(0.2),
        "held up: a.b:1": pytest.approx(0.25),
        "beside it, loader: c.d:2": pytest.approx(0.5),
        "at work: connections": pytest.approx(0.5),
        "asleep": 0.0,
    }
