"""The benchmark runs, writes its table, and refuses to measure a wrong answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def asof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, whose folder is on no path but the benchmark's own."""
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.asof.check
    import benchmarks.asof.contestants
    import benchmarks.asof.table

    return benchmarks.asof


def test_benchmark_checks_measures_and_writes_its_table(tmp_path: Path) -> None:
    page, found = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    chosen = ["sameworld", "sameworld corrections", "duckdb range", "duckdb asof", "read and sort"]
    command = [sys.executable, "-m", "benchmarks.asof", "--events", "4000", "--rounds", "1"]
    command += [f"--only={name}" for name in chosen] + [f"--markdown={page}", f"--json={found}"]
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "every answer is right" in done.stderr
    measurements = json.loads(found.read_text())["measurements"]
    assert [measured["contestant"] for measured in measurements] == chosen
    assert all(measured["median"] > 0 and measured["peak_bytes"][0] > 0 for measured in measurements)
    text = page.read_text()
    assert text.startswith("before\n<!-- benchmark -->\n| contestant |")
    assert text.endswith("\n<!-- /benchmark -->\nafter\n")
    assert "old" not in text


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("last", [1.0, None], []),
        ("last", [1.0, 2.0], ["one: last differs at 1 of 2 moments; the first has 2.0 and should have nan"]),
        ("sum_1h", [1.0 + 1e-12, 0.0], []),
        ("mean_1h", [1.0 + 1e-6, None], ["one: mean_1h differs at 1 of 2 moments; the first has 1.000001 and should have 1.0"]),
    ],
)  # fmt: skip
def test_difference_beyond_rounding_is_a_wrong_answer(
    asof: ModuleType, name: str, given: list[float | None], said: list[str]
) -> None:
    contestant = asof.contestants.Contestant("one", "", "", "event_time", (name,), ())
    place = {"k": [1, 1], "t": [1, 2]}
    expected = pa.table({**place, name: [1.0, None]})

    assert asof.check.differences(expected, pa.table({**place, name: given}), contestant) == said


def test_moment_left_out_is_a_wrong_answer_unless_it_has_no_value(asof: ModuleType) -> None:
    strict = asof.contestants.Contestant("one", "", "", "event_time", ("last",), ())
    lenient = asof.contestants.Contestant("one", "", "", "event_time", ("last",), (), omits="some")
    expected = pa.table({"k": [1, 2], "t": [1, 2], "last": [None, 5.0]})
    first, second = expected.slice(0, 1), expected.slice(1, 1)

    assert asof.check.differences(expected, second, lenient) == []
    assert asof.check.differences(expected, second, strict)
    assert asof.check.differences(expected, first, lenient)


def test_growth_gives_the_exponent(asof: ModuleType) -> None:
    runner = sys.modules["benchmarks.asof.runner"]
    contestant = asof.contestants.CONTESTANTS[asof.contestants.REFERENCE]
    sizes = [(10**6, 1.0), (10**7, 20.0)]
    measured = [
        runner.Measured(contestant, events, [seconds], peaks=[2**20], disk=[3 * 2**20])
        for events, seconds in sizes
    ]

    rows, exponent = asof.table.growth_table(measured)

    assert rows[1:] == [
        ["1,000,000", "100,000", "1.00", "1.000", "1", "3"],
        ["10,000,000", "1,000,000", "20.00", "2.000", "1", "3"],
    ]
    assert exponent == "time grows as events to the power of 1.30"
