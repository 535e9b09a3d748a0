"""How fast a fallback takes over: after a guarded process has died, and at the deadline of one that hangs. `python -m benchmarks.chaos.switch`."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.chaos.limits import DEADLINE_SECONDS
from benchmarks.chaos.world import World, make
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.server.app import Server
from sameworld.server.config import ServerConfig
from sameworld.server.lanes import GuardedLane
from sameworld.training.bundle import Registry

_ROUNDS = 12
_IN_FLIGHT = 8


async def measured(world: World) -> None:
    registry = Registry(world.registry)
    config = ServerConfig(
        world=str(world.file), registry=str(world.registry), state=str(world.state), folder=str(world.folder),
        models={"moody": registry.newest("moody") or ""},
    )  # fmt: skip
    server = Server(config)
    server.store.fill(DuckDBEngine(world.folder))
    server.start()
    lane = server.portfolio.models["moody"].lane
    assert isinstance(lane, GuardedLane)
    known: list[float] = []
    fail = lane._fail

    def noted(reason: str) -> None:
        known.append(time.perf_counter())
        fail(reason)

    lane._fail = noted
    body = msgspec.json.encode({"request": {"user": "u1", "shop": "s1", "basket": 1.0}})

    async def ask() -> tuple[str, float, float]:
        started = time.perf_counter()
        status, _, answer = await server.handle(
            "POST", "/v1/models/moody/predict", lambda _: None, lambda: _given(body)
        )
        assert status == 200
        return msgspec.json.decode(answer)["predictions"][0]["reason"], started, time.perf_counter()

    died: list[float] = []
    hung: list[float] = []
    for _ in range(_ROUNDS):
        world.set_mood("")
        while (await ask())[0]:
            await asyncio.sleep(0.05)
            lane.breaker = type(lane.breaker)()
        world.set_mood("hang")
        asked = [asyncio.create_task(ask()) for _ in range(_IN_FLIGHT)]
        await asyncio.sleep(DEADLINE_SECONDS / 5)
        known.clear()
        assert lane._process is not None
        os.kill(lane.pid, signal.SIGKILL)
        died += [done - known[0] for reason, _, done in await asyncio.gather(*asked) if reason != "deadline"]
        world.set_mood("")
        while (await ask())[0]:
            await asyncio.sleep(0.05)
            lane.breaker = type(lane.breaker)()
        world.set_mood("hang")
        asked = [asyncio.create_task(ask()) for _ in range(_IN_FLIGHT)]
        hung += [done - started - DEADLINE_SECONDS for _, started, done in await asyncio.gather(*asked)]
    await server.stop()
    for name, seconds in (
        ("process died, to the answer", died),
        ("process hangs, beyond the deadline", hung),
    ):
        shown = np.percentile(np.array(seconds) * 1e3, [50, 99, 100])
        print(
            f"{name}: {len(seconds)} answers, median {shown[0]:.2f} ms, p99 {shown[1]:.2f} ms, most {shown[2]:.2f} ms"
        )


async def _given(body: bytes) -> Any:
    return body


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measured(make(Path(folder))))
