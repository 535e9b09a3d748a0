"""The promise, live: while events pour in and their writer is killed, what was served is what the log and the files give, bit for bit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.server.client import Client
from sameworld.server.replay import wait_until_ready
from sameworld.stores import event_log
from sameworld.stores.prediction_log import predictions
from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.world_file import load_world

WORLD = """
from lightgbm import LGBMClassifier
import sameworld as sw

payments = sw.Source(
    "payments", "payments.parquet", event_time="paid_at", available_at="seen_at", id="payment", version="revision", deleted="void"
)
visits = sw.Source("visits", "visits.parquet", event_time="visited_at", available_at=sw.delay("1s"))
asks = sw.Moments("asks.parquet", at="asked_at")

live = sw.Model(
    "live",
    moments=asks,
    features={
        "paid": payments.by("user").sum("amount", over=["2s", "10s", "5m"]),
        "mean": payments.by("user").mean("amount", over=["3s", "1h"]),
        "ever": payments.by("user").sum("amount"),
        "last": payments.by("user").last("amount"),
        "large": payments.where("amount > 20 AND kind = 'card'").by("user").count(over=["1s", "1m"]),
        "shop_most": payments.by("shop", "user").max("amount", over="20s"),
        "visits": visits.by("user").count(over=["1s", "4s", "1m"]),
        "page": visits.by("user").last("page").category(),
        "idle": visits.by("user").age(),
        "shop_seconds": visits.by("shop").sum("seconds", over=["2s", "10m"]),
        "user": sw.field("user").category(),
        "basket": sw.field("basket"),
    },
    label=sw.Label(visits.by("user").count() > 2, within="1m"),
    estimator=LGBMClassifier(n_estimators=20),
    fallbacks=[sw.Constant(0.5)],
    service=sw.Service(deadline="30s"),
)
"""
SECOND = 1_000_000
USERS, SHOPS = 8, 3
INSTANT = pa.timestamp("us", tz="UTC")
_encode = msgspec.json.encode


def write_world(folder: Path) -> None:
    """Lay out the world with an hour of history that ends now."""
    chance = np.random.default_rng(3)
    now = time.time_ns() // 1000
    count = 4000

    def instants(values: Any) -> pa.Array:
        return pa.array(np.asarray(values, np.int64), INSTANT)

    at = now - chance.integers(0, 3600 * SECOND, count)
    facts = chance.integers(0, count * 3 // 4, count)
    payments = {
        "payment": [f"file-{i}" for i in facts],
        "revision": chance.integers(0, 5, count),
        "void": chance.random(count) < 0.05,
        "user": [f"u{i}" for i in chance.integers(0, USERS, count)],
        "shop": [f"s{i}" for i in chance.integers(0, SHOPS, count)],
        "kind": [("card", "cash")[i] for i in chance.integers(0, 2, count)],
        "amount": pa.array(chance.lognormal(3, 1, count), mask=chance.random(count) < 0.05),
        "paid_at": instants(at),
        "seen_at": instants(at + chance.integers(0, 120 * SECOND, count)),
    }
    visits = {
        "user": [f"u{i}" for i in chance.integers(0, USERS, count)],
        "shop": [f"s{i}" for i in chance.integers(0, SHOPS, count)],
        "page": [f"p{i}" for i in chance.integers(0, 20, count)],
        "seconds": chance.exponential(3, count),
        "visited_at": instants(now - chance.integers(0, 3600 * SECOND, count)),
    }
    asks = {
        "asked_at": instants(now - chance.integers(0, 3600 * SECOND, 1000)),
        "user": [f"u{i}" for i in chance.integers(0, USERS, 1000)],
        "shop": [f"s{i}" for i in chance.integers(0, SHOPS, 1000)],
        "basket": chance.lognormal(2, 1, 1000),
    }
    for name, table in {"payments": payments, "visits": visits, "asks": asks}.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    (folder / "world.py").write_text(WORLD)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """One `sameworld serve`, in a process group of its own."""

    def __init__(self, folder: Path, durability: str, options: Sequence[str] = ()) -> None:
        self.folder = folder
        self.options = list(options)
        self.durability = durability
        self.port = free_port()
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "sameworld.cli.main",
            "serve",
            "--world",
            str(self.folder / "world.py"),
        ]
        command += ["--registry", str(self.folder / "registry"), "--state", str(self.folder / "state")]
        command += ["--port", str(self.port), "--durability", self.durability, *self.options]
        with (self.folder / f"server-{self.port}.txt").open("ab") as said:
            self.process = subprocess.Popen(
                command,
                start_new_session=True,
                stdout=said,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return self.process

    def kill(self) -> None:
        # the supervisor first, so that it replaces nobody; its workers have groups of their own
        workers: list[int] = []
        with contextlib.suppress(OSError):
            workers = [
                int(n)
                for n in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
                .read_text()
                .split()
            ]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()


class Events:
    """Sends events, corrections among them, to the writing server until told to stop; keeps what was acknowledged."""

    def __init__(self, port: int) -> None:
        self.client = Client("127.0.0.1", port, patience_seconds=120)
        self.acknowledged: dict[str, int] = {}
        self.facts = 0
        self.stopping = False

    async def run(self, number: int) -> None:
        chance = random.Random(number)
        sent = 0
        while not self.stopping:
            source = chance.choice(["payments", "visits"])
            events = [self.event(source, chance) for _ in range(chance.randint(1, 6))]
            key = f"{number}-{sent}"
            sent += 1
            response = await self.client.request(
                "POST", f"/v1/sources/{source}/events", _encode({"events": events}), key=key
            )
            assert response.status == 200, response.body
            assert msgspec.json.decode(response.body) == {"accepted": len(events)}
            self.acknowledged[key] = len(events)
            await asyncio.sleep(chance.random() * 0.02)

    def event(self, source: str, chance: random.Random) -> dict[str, Any]:
        # now, some seconds late, and some seconds too early
        at = time.time() + chance.choice([0, 0, 0, -0.5, -3, -30, -400, 2])
        moment = f"{np.datetime64(int(at * 1e6), 'us')}Z"
        event: dict[str, Any] = {"user": f"u{chance.randrange(USERS)}", "shop": f"s{chance.randrange(SHOPS)}"}
        if source == "visits":
            return event | {
                "page": f"p{chance.randrange(30)}",
                "seconds": chance.expovariate(0.3),
                "visited_at": moment,
            }
        self.facts += 1
        fact = (
            f"file-{chance.randrange(3000)}"
            if chance.random() < 0.3
            else f"live-{chance.randint(max(0, self.facts - 50), self.facts)}"
        )
        event |= {
            "payment": fact,
            "revision": chance.randrange(8),
            "kind": chance.choice(["card", "cash"]),
            "paid_at": moment,
        }
        if chance.random() < 0.1:
            event["void"] = True
        if chance.random() < 0.95:
            event["amount"] = chance.lognormvariate(3, 1)
        return event


async def ask(
    port: int, number: int, wanted: int, answered: Counter[str], together: int, killing: asyncio.Task[None]
) -> None:
    """Send predict requests, several at a time, until enough vectors are logged and the last kill is over."""
    client = Client("127.0.0.1", port, patience_seconds=60)
    chance = random.Random(1000 + number)
    while answered.total() < wanted or not killing.done():
        requests = [
            {
                "user": f"u{chance.randrange(USERS + 1)}",
                "shop": f"s{chance.randrange(SHOPS)}",
                "basket": chance.random(),
            }
            for _ in range(together)
        ]
        response = await client.request("POST", "/v1/models/live/predict", _encode({"requests": requests}))
        assert response.status == 200, response.body
        for answer in msgspec.json.decode(response.body)["predictions"]:
            assert (answer["tier"], answer["logged"]) == ("model", True), answer
            answered[answer["id"]] += 1
        await asyncio.sleep(chance.random() * 0.05)
    await client.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("durability", ["process", "disk"])
def test_live_vectors_are_proved_while_the_writer_of_events_is_killed(
    tmp_path: Path, durability: str
) -> None:
    # given a model trained on the past, two servers that answer and one that only takes events, on one state folder
    vectors = int(os.environ.get("LIVE_VECTORS", "6000")) // 2
    kills = int(os.environ.get("LIVE_KILLS", "3"))
    write_world(tmp_path)
    loaded = load_world(tmp_path / "world.py")
    registry = Registry(tmp_path / "registry")
    train(loaded.model("live"), registry=registry, folder=tmp_path)
    servers = [ServerProcess(tmp_path, durability) for _ in range(3)]
    answered = [Counter[str](), Counter[str]()]

    async def live() -> Events:
        for server in servers:
            client = Client("127.0.0.1", server.port)
            await wait_until_ready(client, server.process)
            await client.close()
        writer = servers[2]
        events = Events(writer.port)
        writing = [asyncio.create_task(events.run(number)) for number in range(6)]

        async def killing() -> None:
            for _ in range(kills):
                known = len(events.acknowledged)
                while len(events.acknowledged) < known + 100:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(random.random() * 0.1)
                await asyncio.to_thread(writer.kill)
                await asyncio.to_thread(writer.start)

        # when they answer, and the writer is killed in between, until enough is logged
        killed = asyncio.create_task(killing())
        asking = [
            ask(servers[n % 2].port, n, vectors, answered[n % 2], together, killed)
            for n, together in enumerate([50, 50, 3, 3])
        ]
        await asyncio.gather(killed, *asking)
        events.stopping = True
        await asyncio.gather(*writing)
        await events.client.close()
        return events

    began = time.monotonic()
    try:
        events = asyncio.run(live())
    finally:
        for server in servers:
            server.stop()
    seconds = time.monotonic() - began

    # then every vector that was served is what the files and the log give
    state = tmp_path / "state"
    proof = prove(loaded.models, registry, state, engine=DuckDBEngine(tmp_path))
    log = [delivery for _, delivery in event_log.deliveries(state / "events")]
    sequences = {p.sequence for _, p in predictions(state) if p is not None}
    print(
        f"{durability}: {proof.vectors} vectors at {len(sequences)} different sequences, {proof.values} values, "
        f"{proof.different} different {dict(proof.causes)}; {sum(events.acknowledged.values())} events in "
        f"{len(events.acknowledged)} deliveries, {kills} kills, {seconds:.0f} s"
    )
    assert [difference.text() for difference in proof.differences[:5]] == []
    assert proof.different == 0
    assert proof.vectors >= 2 * vectors
    # and no acknowledged event is missing or there twice
    keys = Counter(delivery.key for delivery in log)
    assert set(events.acknowledged) <= set(keys)
    assert set(keys.values()) == {1}
    # and every answer that says so is in the prediction log once
    logged = Counter(p.id for _, p in predictions(state) if p is not None)
    assert set(logged.values()) == {1}
    assert set(answered[0] + answered[1]) <= set(logged)
