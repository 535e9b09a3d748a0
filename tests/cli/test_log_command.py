"""`sameworld log` says what the prediction log holds, and rotates and trims it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_world import SmallWorld

from sameworld.cli.main import main
from sameworld.stores.clock import SystemClock
from sameworld.stores.prediction_log import Prediction, PredictionLog, Shape

SHAPE = Shape({"user": "text"}, {"x": "double"}, {"x": "1"})


def run(state: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["log", "--state", str(state), *arguments], env={"COLUMNS": "200"})


def facts(state: Path, *arguments: str, status: int = 0) -> Any:
    result = run(state, "--json", *arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    """A log with two models, three predictions a segment, written by a process that lives."""
    log = PredictionLog(tmp_path, SystemClock(), segment_bytes=450)
    for number in range(9):
        tier = "fallback_1_rate" if number == 4 else "model"
        model = "click" if number % 3 else "churn"
        given = Prediction(
            log.next_id(), model, f"{model}-v", number * 1_000_000, 0, 0.5, tier, "", [None], None, False, 1
        )
        assert log.write([given], SHAPE) == ""
    return log


def test_it_counts_by_version_whether_rotated_or_not(log: PredictionLog, tmp_path: Path) -> None:
    before = facts(tmp_path)
    versions = [
        {name: each[name] for name in ("model", "version", "predictions", "tiers", "from", "to")}
        for each in before["versions"]
    ]
    assert versions == [
        {
            "model": "churn", "version": "churn-v", "predictions": 3, "tiers": {"model": 3},
            "from": "1970-01-01T00:00:00Z", "to": "1970-01-01T00:00:06Z",
        },
        {
            "model": "click", "version": "click-v", "predictions": 6, "tiers": {"model": 5, "fallback_1_rate": 1},
            "from": "1970-01-01T00:00:01Z", "to": "1970-01-01T00:00:08Z",
        },
    ]  # fmt: skip
    assert sum(each["not_rotated"] for each in before["versions"]) == 9
    assert "rotation" not in before

    after = facts(tmp_path, "--rotate")

    done = after.pop("rotation")
    left = sum(each["not_rotated"] for each in after["versions"])
    assert (done["predictions"], done["stayed"]) == (9 - left, [])
    assert 0 < left < 9  # the segment that is being written
    assert after["raw_bytes"] < before["raw_bytes"]
    for each, old in zip(after["versions"], before["versions"], strict=True):
        assert each["bytes"] > 0
        assert {**each, "not_rotated": 0, "bytes": 0} == {**old, "not_rotated": 0, "bytes": 0}


def test_a_person_reads_a_table(log: PredictionLog, tmp_path: Path) -> None:
    log.close()

    lines = run(tmp_path, "--rotate").stdout.splitlines()

    assert lines[0].startswith("rotated 9 predictions of ")
    (row,) = (line for line in lines if "click" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:4] == ["click", "click-v", "6", "model 83.3%, fallback_1_rate 16.7%"]
    assert lines[-1] == f"0 predictions are not rotated yet, 0 B, in {tmp_path}"
    assert run(tmp_path / "none").stdout.splitlines() == [f"No predictions are in {tmp_path / 'none'}"]


def test_it_trims_the_oldest_of_what_is_rotated(log: PredictionLog, tmp_path: Path) -> None:
    log.close()
    size = sum(each["bytes"] for each in facts(tmp_path, "--rotate")["versions"])

    told = facts(tmp_path, "--trim", f"{size - 1}B")

    assert len(told["rotation"]["removed"]) == 1
    assert facts(tmp_path, "--older-than", "1d")["rotation"]["removed"] == []
    assert facts(tmp_path, "--trim", "0B")["versions"] == []


def test_what_cannot_be_rotated_is_told(log: PredictionLog, tmp_path: Path) -> None:
    log.close()
    (described,) = (tmp_path / "predictions").glob("*/click-v.json")
    described.unlink()

    told = facts(tmp_path, "--rotate", status=1)

    (why,) = told["rotation"]["stayed"]
    assert "The names and types of version click-v are not in prediction log" in why
    assert sum(each["not_rotated"] for each in told["versions"]) > 0
    assert "not rotated: " in run(tmp_path, "--rotate").stdout


def test_a_served_world_has_its_tiers(played_world: SmallWorld) -> None:
    told = facts(played_world.state)

    asked = len(played_world.asks().at)
    assert [
        (each["model"], each["predictions"], each["not_rotated"], each["tiers"]) for each in told["versions"]
    ] == [
        ("derived", asked, 0, {"model": asked}),
        ("plain", asked, 0, {"model": asked}),
    ]
