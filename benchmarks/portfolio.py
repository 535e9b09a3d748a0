"""What many models in one server cost: time to open, memory, latency, a storm on one of them, a budget of memory, and a thousand swaps under load.

    python -m benchmarks.portfolio [--models 1,30,300] [--seconds 5] [--swaps 1000] [--folder DIR]

The models are LightGBM's, 100 trees each, over the same two sources; a dozen different feature sets, each fitted once and saved under many names.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.server.client import Client
from sameworld.server.replay import wait_until_ready
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.fit import train
from sameworld.training.world_file import load_world

DAY = 86_400_000_000
START = 1_700_000_000_000_000
ROWS, USERS, SHOPS = 30_000, 500, 40
KINDS = 12
_TIMES = 4
ROOT = Path(__file__).resolve().parents[1]
ENCODE = msgspec.json.encode

WORLD = """
from lightgbm import LGBMClassifier
import sameworld as sw

orders = sw.Source("orders", "orders.parquet", event_time="ordered_at", available_at=sw.delay("5m"))
visits = sw.Source("visits", "visits.parquet", event_time="visited_at", available_at=sw.delay("1m"))
asks = sw.Moments("asks.parquet", at="asked_at")
paid = sw.Label(orders.by("user").count() > 0, within="1d", otherwise=False)
by_user, by_shop, seen = orders.by("user"), orders.by("shop"), visits.by("user")
choices = [
    ("spent", by_user.sum("amount", over=["6h", "2d"])), ("orders", by_user.count(over="2d")), ("last", by_user.last("amount")),
    ("mean", by_shop.mean("amount", over="1d")), ("shop_orders", by_shop.count(over=["1h", "1d"])), ("most", by_user.max("amount", over="3d")),
    ("visits", seen.count(over=["1h", "1d"])), ("idle", seen.age()), ("seconds", seen.sum("seconds", over="1d")),
]


def model(number):
    features = {name: feature for i, (name, feature) in enumerate(choices) if (i + number) % 3}
    return sw.Model(
        f"kind-{number}", moments=asks, features=features | {"basket": sw.field("basket")}, label=paid,
        estimator=LGBMClassifier(n_estimators=100, n_jobs=1, random_state=number, verbose=-1),
        fallbacks=[sw.Constant(0.5)], service=sw.Service(deadline="1s"),
    )


kinds = [model(number) for number in range(KINDS)]
globals().update({f"kind_{number}": kind for number, kind in enumerate(kinds)})
"""


def lay_out(folder: Path) -> None:
    """Write the world and its data, and fit each kind of model."""
    chance = np.random.default_rng(1)

    def times(count: int) -> pa.Array:
        return pa.array(START + chance.integers(0, 30 * DAY, count), pa.timestamp("us", tz="UTC"))

    def named(prefix: str, many: int, count: int) -> list[str]:
        return [f"{prefix}{i}" for i in chance.integers(0, many, count)]

    orders = {"user": named("u", USERS, ROWS), "shop": named("s", SHOPS, ROWS), "amount": chance.lognormal(3, 1, ROWS), "ordered_at": times(ROWS)}  # fmt: skip
    visits = {
        "user": named("u", USERS, ROWS),
        "seconds": chance.exponential(30, ROWS),
        "visited_at": times(ROWS),
    }
    asks = {"user": named("u", USERS, 3000), "shop": named("s", SHOPS, 3000), "basket": chance.lognormal(3, 1, 3000), "asked_at": times(3000)}  # fmt: skip
    for name, table in (("orders", orders), ("visits", visits), ("asks", asks)):
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    (folder / "world.py").write_text(WORLD.replace("KINDS", str(KINDS)))
    for model in load_world(folder / "world.py").models.values():
        train(model, registry=Registry(folder / "registry"), until=START + 29 * DAY, folder=folder)


def multiply(folder: Path, count: int) -> dict[str, str]:
    """Save the fitted kinds under as many names; give name -> bundle address."""
    registry = Registry(folder / "registry")
    kinds = [registry.load(registry.newest(f"kind-{number}") or "") for number in range(KINDS)]
    addresses: dict[str, str] = {}
    for number in range(count):
        kind, name = kinds[number % KINDS], f"model-{number}"
        described = msgspec.structs.replace(kind.description, model={**kind.description.model, "name": name})
        renamed = msgspec.structs.replace(kind.model, name=name)
        addresses[name] = registry.save(Bundle(described, renamed, kind.estimator, kind.selftest, compiled=[kind.scorer.compiled, *[None] * len(kind.parts)]))  # fmt: skip
    return addresses


class Served:
    """One `sameworld serve` in a process of its own, and what it takes."""

    def __init__(self, folder: Path, models: dict[str, str], *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (folder / "serve.toml").write_text(
            f'[serve]\nmodels = {[f"{n}={a}" for n, a in models.items()]}\nworld = "world.py"\nregistry = "registry"\nstate = "state"\nport = {port}\n'
        )
        self.models = list(models)
        self.began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "sameworld.cli.main",
            "serve",
            "--config",
            str(folder / "serve.toml"),
        ]
        self.process = subprocess.Popen(
            [*command, "--anew", "--durability", "process", *options],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.port = port
        self.client = Client("127.0.0.1", port)

    async def ready(self) -> tuple[float, float]:
        """Give the seconds until it answers at all, and until every model that fits answers itself."""
        while True:
            try:
                if (await self.client.request("GET", "/livez")).status == 200:
                    break
            except ConnectionError:
                assert self.process.poll() is None
        alive = time.perf_counter() - self.began
        await wait_until_ready(self.client, self.process)
        return alive, time.perf_counter() - self.began

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.client.request(method, f"/control/{path}", ENCODE(body or {}))
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body)

    def resident(self) -> int:
        """Give the resident bytes of the largest of its processes."""
        listed = subprocess.run(
            ["ps", "-eo", "pid,ppid,rss"], capture_output=True, text=True, check=True
        ).stdout
        rows = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
        own, sizes = {self.process.pid}, [0]
        for pid, parent, size in sorted(rows):
            if pid in own or parent in own:
                own.add(pid)
                sizes.append(size)
        return max(sizes) * 1024

    async def asked(
        self, models: Sequence[str], seconds: float, connections: int, pause: float = 0.0
    ) -> list[tuple[float, str]]:
        """Ask models in turn; give (seconds, tier) of every answer."""
        return await asked(self.client, models, seconds, connections, pause)

    async def in_a_storm(self, model: str, others: Sequence[str], seconds: float) -> list[tuple[float, str]]:
        """Ask the others calmly while another process storms one model: what its own loop is busy with is not the others' latency."""
        command = ["-m", "benchmarks.portfolio", "--storm", f"{self.port}/{model}"]
        storm = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--seconds", str(seconds + 1), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert storm.stdout is not None
        await storm.stdout.readline()
        try:
            return await self.asked(others, seconds, 4, 0.005)
        finally:
            await storm.wait()

    async def stop(self) -> None:
        await self.client.close()
        self.process.terminate()
        self.process.wait()


async def asked(
    client: Client, models: Sequence[str], seconds: float, connections: int, pause: float = 0.0
) -> list[tuple[float, str]]:
    """Ask models in turn; give (seconds, tier) of every answer."""
    chance = random.Random(4)
    found: list[tuple[float, str]] = []
    until = time.perf_counter() + seconds

    async def one(number: int) -> None:
        turn = number
        while time.perf_counter() < until:
            turn += connections
            body = {
                "request": {
                    "user": f"u{chance.randrange(USERS)}",
                    "shop": f"s{chance.randrange(SHOPS)}",
                    "basket": 3.5,
                }
            }
            answer = await client.request(
                "POST", f"/v1/models/{models[turn % len(models)]}/predict", ENCODE(body)
            )
            assert answer.status == 200, answer.body
            found.append((answer.seconds, msgspec.json.decode(answer.body)["predictions"][0]["tier"]))
            if pause:
                await asyncio.sleep(pause)

    await asyncio.gather(*(one(number) for number in range(connections)))
    return found


def percentiles(answers: Sequence[tuple[float, str]]) -> tuple[float, float]:
    """Give p50 and p99 in milliseconds."""
    p50, p99 = np.percentile([seconds for seconds, _ in answers], [50, 99]) * 1e3
    return float(p50), float(p99)


async def size(folder: Path, models: dict[str, str], seconds: float, memory: int | None = None) -> str:
    """Measure a server of so many models; give a line of the table."""
    server = Served(folder, models, *(["--memory", f"{memory}B"] if memory else []))
    try:
        alive, ready = await server.ready()
        await server.asked(server.models, 0.5, 4)
        begun = time.perf_counter()
        answers = await server.asked(server.models, seconds, 16)
        rate = len(answers) / (time.perf_counter() - begun)
        p50, p99 = percentiles(answers)
        calm: list[tuple[float, str]] = []
        stormy: list[tuple[float, str]] = []
        others = server.models[1:] or server.models
        for _ in range(_TIMES):  # in turns, so that whatever else the machine does hits both alike
            calm += await server.asked(others, seconds / 2, 4, 0.005)
            stormy += await server.in_a_storm(server.models[0], others, seconds / 2)
        status = await server.control("GET", "status")
        fallbacks = sum(tier != "model" for _, tier in answers) / len(answers)
        return (
            f"| {len(models)} | {'' if memory is None else f'{memory / 1e6:.0f} MB'} | {alive:.1f} | {ready:.1f} | {status['memory']['models'] / 1e6:.1f} "
            f"| {server.resident() / 1e6:.0f} | {rate:,.0f} | {p50:.1f} | {p99:.1f} | {fallbacks:.1%} | {percentiles(calm)[1]:.1f} | {percentiles(stormy)[1]:.1f} |"
        )
    finally:
        await server.stop()


async def swaps(folder: Path, models: dict[str, str], many: int) -> str:
    """Swap one model between two versions under load; say what its callers noticed, and what the process grew by."""
    server = Served(folder, dict(list(models.items())[:2]))
    try:
        await server.ready()
        name, addresses = server.models[0], list(models.values())
        for number in range(20):
            await server.control("POST", f"models/{name}", {"version": addresses[number % 2 * KINDS]})
        before, begun, over = server.resident(), time.perf_counter(), False
        answers: list[tuple[float, str]] = []

        async def load() -> None:
            while not over:
                answers.extend(await server.asked([name], 0.5, 4))

        asking = asyncio.create_task(load())
        for number in range(many):
            await server.control("POST", f"models/{name}", {"version": addresses[number % 2 * KINDS]})
        took = time.perf_counter() - begun
        over = True
        await asking
        others = sum(tier != "model" for _, tier in answers)
        return (
            f"{many:,} swaps under load in {took:.0f} s ({took / many * 1e3:.0f} ms each): {len(answers):,} answers, 0 errors, {others} fallbacks, "
            f"p99 {percentiles(answers)[1]:.1f} ms; resident memory {before / 1e6:.0f} MB before, {server.resident() / 1e6:.0f} MB after"
        )
    finally:
        await server.stop()


async def measure(folder: Path, counts: Sequence[int], seconds: float, many: int) -> None:
    """Print the table."""
    if not (folder / "world.py").exists():
        lay_out(folder)
    models = multiply(folder, max(*counts, KINDS + 1))
    print(
        "| models | budget | alive s | ready s | models MB | resident MB | requests/s | p50 ms | p99 ms | fallbacks | p99 calm | p99 of others in a storm |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in counts:
        print(await size(folder, dict(list(models.items())[:count]), seconds), flush=True)
    print(
        await size(folder, dict(list(models.items())[: max(counts)]), seconds, memory=20_000_000), flush=True
    )
    if many:
        print("\n" + await swaps(folder, models, many))


async def storm(place: str, seconds: float) -> None:
    """Ask one model from many connections, as fast as it answers."""
    port, _, model = place.partition("/")
    client = Client("127.0.0.1", int(port))
    print("begun", flush=True)
    await asked(client, [model], seconds, 16)
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="1,30,300", help="how many, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each load lasts")
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="kept between runs; a temporary one by default")
    parser.add_argument("--storm", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.storm:
        asyncio.run(storm(given.storm, given.seconds))
        return
    counts = [int(count) for count in given.models.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(measure(folder.resolve(), counts, given.seconds, given.swaps))


if __name__ == "__main__":
    main()
