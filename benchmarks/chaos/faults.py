"""What is done to the server while it answers. Each fault is one small function that does its harm and notes what it was; it returns when the next may come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.chaos.world import MOODS, World


@dataclass(frozen=True)
class Target:
    """A running server.

    Args:
        world: what it serves.
        port: where.
        random: chooses whom it hits.
        done: what was done, and how often.
    """

    world: World
    port: int
    random: random.Random
    done: Counter[str] = field(default_factory=Counter[str])

    def workers(self) -> list[dict[str, Any]]:
        return msgspec.json.decode((self.world.state / f"workers-{self.port}.json").read_bytes())["workers"]


Fault = Callable[[Target], Awaitable[None]]


async def kill_worker(target: Target) -> None:
    await _hit(target, signal.SIGKILL, "killed worker")


async def freeze_worker(target: Target) -> None:
    await _hit(target, signal.SIGSTOP, "froze worker")


async def kill_guarded(target: Target) -> None:
    """Kill the processes in which a worker's guarded models run."""
    worker = target.random.choice(target.workers())["pid"]
    children = [int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()]
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    target.done["killed guarded"] += len(children)


async def misbehave(target: Target, mood: str) -> None:
    """Install a model that misbehaves, for a while."""
    target.world.set_mood(mood)
    target.done[f"model: {mood}"] += 1
    await asyncio.sleep(1.0)
    target.world.set_mood("")


FAULTS: list[Fault] = [
    kill_worker,
    kill_guarded,
    *(partial(misbehave, mood=mood) for mood in MOODS[:5]),
    freeze_worker,
    *(partial(misbehave, mood=mood) for mood in MOODS[5:]),
]
"""In the order in which they are done, again and again."""


async def _hit(target: Target, number: signal.Signals, what: str) -> None:
    """Send a worker a signal, and wait until all answer again: whoever has no worker left is no longer about workers."""
    worker = target.random.choice(target.workers())
    os.kill(worker["pid"], number)
    target.done[what] += 1
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.05)
            now = target.workers()
            if now[worker["worker"]]["replaced"] > worker["replaced"] and all(one["answers"] for one in now):
                return
