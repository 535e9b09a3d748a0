"""What is done to the server while it answers. Each fault is one small function that does its harm and notes what it was; it returns when the next may come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.chaos.damage import unreadable
from benchmarks.chaos.world import World
from sameworld.server.client import Client
from sameworld.stores.lmdb import Index


@dataclass(frozen=True)
class Target:
    """A running server.

    Args:
        world: what it serves.
        port: where.
        client: speaks to it.
        random: chooses whom it hits.
        seconds: how long a fault lasts that is taken away again.
        disk_bytes: of the disk of its own that the state lies on; 0 where it has none.
        done: what was done, and how often.
        acknowledged: the keys of events that were sent from here.
        spans: what was done when: its name, and from when to when in seconds on the machine's steady clock.
    """

    world: World
    port: int
    client: Client
    random: random.Random
    seconds: float = 1.0
    disk_bytes: int = 0
    done: Counter[str] = field(default_factory=Counter[str])
    acknowledged: list[str] = field(default_factory=list[str])
    spans: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])

    def workers(self) -> list[dict[str, Any]]:
        return msgspec.json.decode((self.world.state / f"workers-{self.port}.json").read_bytes())["workers"]


Fault = Callable[[Target], Awaitable[None]]


async def kill_worker(target: Target) -> None:
    await _hit(target, signal.SIGKILL, "killed worker")


async def freeze_worker(target: Target) -> None:
    await _hit(target, signal.SIGSTOP, "froze worker")


async def kill_guarded(target: Target) -> None:
    """Kill the processes in which a worker's guarded models run, and every other time what they are forked of."""
    worker = target.random.choice(target.workers())["pid"]
    children = _children(worker)
    target.done["killed guarded"] += 1
    hit = (
        [own for child in children for own in _children(child)]
        if target.done["killed guarded"] % 2
        else children
    )
    for pid in hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


async def install(target: Target, mood: str) -> None:
    """Have the server serve a guarded model that misbehaves once it is loaded, and then the one that behaves."""
    await swap(target, "moody", target.world.moody[mood])
    target.done[f"model: {mood}"] += 1
    await asyncio.sleep(target.seconds)
    await swap(target, "moody", target.world.moody[""])


async def swap(target: Target, model: str, address: str) -> None:
    """Serve another version, in every worker; tried again while the store or its disk does not allow it."""
    body = msgspec.json.encode({"version": address})
    path = f"/control/models/{model}"
    while (answer := await target.client.request("POST", path, body)).status == 503:
        target.done["swaps refused"] += 1
        await asyncio.sleep(0.1)
    assert answer.status == 200, answer.body.decode()
    target.done["swaps"] += 1


async def hold_store(target: Target) -> None:
    """Delay the store: another process takes the lock under which events are written, is frozen with it and then killed."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLDER, str(target.world.state / "index"), stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    holder.send_signal(signal.SIGSTOP)
    await asyncio.sleep(target.seconds)
    holder.kill()
    await holder.wait()
    target.done["store held"] += 1


_HOLDER = """
import lmdb, signal, sys
txn = lmdb.open(sys.argv[1], map_size=1 << 40, max_dbs=8, max_readers=1024, sync=False).begin(write=True)
print("held", flush=True)
signal.pause()
"""


async def damage_store(target: Target) -> None:
    """Break the store: no page of the index says any more what it is, so that nothing can be read."""
    await asyncio.to_thread(_damage, target.world.state / "index", target.seconds)
    target.done["store damaged"] += 1


def _damage(folder: Path, seconds: float) -> None:
    index = Index(folder)
    with index.write(), unreadable(folder / "data.mdb"):
        time.sleep(seconds)
    index.close()


async def corrupt_values(target: Target) -> None:
    """Send events and requests with values that no model was trained on; what is no value at all must be refused."""
    for amount in ("null", "-0.0", "5e-324", "1.7976931348623157e308", "-1e308", "1e999", "NaN", '"much"'):
        target.done["corrupt events"] += 1
        key = f"corrupt-{target.done['corrupt events']}"
        event = (
            f'{{"order_id":"{key}","user":"u{target.random.randrange(5)}","shop":null,"amount":{amount},'
            f'"ordered_at":"{target.random.choice(_TIMES)}"}}'
        )
        status = 503
        while status == 503:
            body = f'{{"events":[{event}]}}'.encode()
            answer = await target.client.request("POST", "/v1/sources/orders/events", body, key=key)
            status = answer.status
        assert status in (200, 400), answer.body.decode()
        assert (status == 400) == (amount in _NO_NUMBERS), answer.body.decode()
        if status == 200:
            target.acknowledged.append(key)
    for basket in ("null", "-0.0", "5e-324", "-1.7976931348623157e308"):
        body = f'{{"request":{{"user":"u{target.random.randrange(5)}","shop":null,"basket":{basket}}}}}'
        answer = await target.client.request("POST", "/v1/models/steady/predict", body.encode())
        assert answer.status == 200, answer.body.decode()


_NO_NUMBERS = ("1e999", "NaN", '"much"')
_TIMES = ("0001-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


async def fill_disk(target: Target) -> None:
    """Let the disk that the state lies on have no room."""
    if not target.disk_bytes:
        return
    room = _ROOM
    while not await _resize(target.world.state, shutil.disk_usage(target.world.state).used + room):
        room *= 2  # more has been written meanwhile
    await asyncio.sleep(target.seconds)
    assert await _resize(target.world.state, target.disk_bytes)
    target.done["disk filled"] += 1


async def _resize(disk: Path, size: int) -> bool:
    """Give a disk in memory another size; tell whether what is on it fits."""
    mount = await asyncio.create_subprocess_exec(
        "mount", "-o", f"remount,size={size}", str(disk), stderr=subprocess.DEVNULL
    )
    return await mount.wait() == 0


_ROOM = 1 << 13


def faults(moods: Sequence[str]) -> dict[str, Fault]:
    """Give what is done, in this order, again and again, by name; the guarded model is installed in these moods."""
    installs = {f"model: {mood}": partial(install, mood=mood) for mood in moods}
    others: dict[str, Fault] = {
        "hold store": hold_store,
        "corrupt values": corrupt_values,
        "damage store": damage_store,
        "fill disk": fill_disk,
        LAST_OF_SHORT_RUNS: kill_worker,
        "kill guarded": kill_guarded,
        "freeze worker": freeze_worker,
    }
    return {**others, **installs}


LAST_OF_SHORT_RUNS = "kill worker"
"""However short a run is, it comes to this."""


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
