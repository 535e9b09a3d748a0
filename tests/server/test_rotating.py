"""While a server runs its prediction log is rotated beside it; when it ends nothing is left to rotate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from driven_server import driven
from small_world import UNTIL, SmallWorld

from sameworld.server.metrics import Metrics
from sameworld.server.rotating import Rotating
from sameworld.stores.clock import SystemClock
from sameworld.stores.prediction_log import Prediction, PredictionLog, Shape, predictions, raw, rotated

SHAPE = Shape({"user": "text"}, {"x": "double"}, {"x": "1"})
REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


def write(log: PredictionLog, count: int) -> None:
    for number in range(count):
        given = Prediction(log.next_id(), "m", "v", number, 0, 0.5, "model", "", ["u"], [1.0], False, 1)
        assert log.write([given], SHAPE) == ""


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.05)


def test_complete_segments_are_rotated_while_the_server_runs(tmp_path: Path) -> None:
    left = PredictionLog(tmp_path, SystemClock())
    write(left, 2)
    left.close()  # as a killed process leaves it
    log = PredictionLog(tmp_path, SystemClock())
    metrics = Metrics()

    async def run() -> None:
        rotating = Rotating(log, tmp_path, metrics, look_seconds=0.02, oldest_seconds=0.0)
        rotating.start()
        await until(lambda: len(rotated(tmp_path)) == 1)
        write(log, 3)
        await until(lambda: len(rotated(tmp_path)) == 2)
        write(log, 1)
        await rotating.stop()

    asyncio.run(run())

    assert raw(tmp_path) == []
    assert [p.t for _, p in predictions(tmp_path) if p is not None] == [0, 1, 0, 1, 2, 0]
    assert b"sameworld_incidents_total{" not in metrics.text(0)


def test_a_rotation_that_cannot_be_done_is_counted_and_done_later(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, SystemClock())
    metrics = Metrics()
    in_the_way = tmp_path / "predictions" / "parquet"
    in_the_way.write_text("no folder")

    async def run() -> None:
        rotating = Rotating(log, tmp_path, metrics, look_seconds=0.02, oldest_seconds=0.0, pause_seconds=0.02)
        rotating.start()
        write(log, 3)
        await until(lambda: b'sameworld_incidents_total{part="rotation"}' in metrics.text(0))
        in_the_way.unlink()
        await until(lambda: len(rotated(tmp_path)) == 1)
        await rotating.stop()

    asyncio.run(run())

    assert len(list(predictions(tmp_path))) == 3


def test_a_stopped_server_leaves_parquet_that_is_proved(trained: SmallWorld) -> None:
    with driven(trained.config(), cutover=UNTIL) as server:
        for _ in range(3):
            assert server.predict({"request": REQUEST})[0] == 200
        assert len(raw(trained.state)) == 1

    assert raw(trained.state) == []
    proof = trained.prove()
    assert (proof.vectors, proof.different) == (3, 0)
