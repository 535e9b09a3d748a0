"""A small world of orders for tests of the whole way: real Parquet files, trained, replayed through the real server, to be proved."""

from __future__ import annotations

import asyncio
import datetime
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.asof.schema import supported
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import Against, Proof, prove
from sameworld.server.app import Server
from sameworld.server.client import Response
from sameworld.server.config import ServerConfig
from sameworld.server.replay import Feed, Played, replay
from sameworld.stores.prediction_log import Prediction, predictions
from sameworld.stores.record_log import RecordLog
from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.moments import MomentTable, read_moments
from sameworld.training.world_file import WorldFile, load_world

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
START = int(datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC).timestamp()) * SECOND
UNTIL = START + 15 * DAY  # the time of training, and the cutover
END = UNTIL + 2 * DAY
INSTANT = pa.timestamp("us", tz="UTC")

WORLD = '''"""Will an order be paid?"""

from lightgbm import LGBMClassifier

import sameworld as sw

orders = sw.Source(
    "orders", "data/orders.parquet", event_time="ordered_at", available_at="seen_at", id="order_id", version="revision"
)
outcomes = sw.Source("outcomes", "data/outcomes.parquet", event_time="settled_at", available_at=sw.delay("5m"))
asks = sw.Moments("data/asks.parquet", at="asked_at")


def per_order(spent, count):
    return spent / (count + 1.0)


features = {
    "spent": orders.by("user").sum("amount", over=["6h", "2d"]),
    "orders": orders.by("user").count(over="2d"),
    "large": orders.where("amount > 50").by("user").count(over="2d"),
    "last_amount": orders.by("user").last("amount"),
    "shop_mean": orders.by("shop").mean("amount", over="1d"),
    "shop": sw.field("shop").category(),
    "basket": sw.field("basket"),
    "hour": sw.field("opened_at").hour(timezone="Europe/Berlin"),
}
paid = sw.Label(outcomes.by("ask_id").last("paid") > 0.5, within="1h", otherwise=False)
fallbacks = [sw.Rate(by="shop"), sw.Constant(0.5)]
service = sw.Service(deadline="20s")

plain = sw.Model(
    "plain", moments=asks, features=features, label=paid, estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1),
    fallbacks=fallbacks, service=service,
)
'''

DERIVED = """
derived = sw.Model(
    "derived", moments=asks, features=features | {"per_order": sw.derive(per_order, "spent_2d", "orders")}, label=paid,
    estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1), fallbacks=fallbacks, service=service,
)
"""


def instants(values: Any) -> pa.Array:
    """Give microseconds as a column of instants."""
    return pa.array(np.asarray(values, np.int64), INSTANT)


def write_data(folder: Path) -> None:
    """Write the tables: 900 orders (some corrected, many seen late), 900 asks, and what came of each."""
    random = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    count = 900
    at = np.sort(random.integers(START, END, count))
    seen = at + random.integers(1, 3 * HOUR, count)
    amount = np.round(random.lognormal(3.5, 0.8, count), 2)
    users = np.array([f"u{i}" for i in random.integers(0, 6, count)])
    shops = np.array([f"s{i}" for i in random.integers(0, 3, count)])
    corrected = random.random(count) < 0.1
    again = np.flatnonzero(corrected)
    rows = np.concatenate([np.arange(count), again])
    revision = np.concatenate([np.ones(count, np.int64), np.full(again.size, 2)])
    available = np.concatenate([seen, seen[again] + random.integers(1, 12 * HOUR, again.size)])
    value = np.concatenate([amount, np.round(amount[again] * 1.1, 2)])
    orders = pa.table(
        {
            "order_id": [f"o{i}" for i in rows],
            "revision": revision,
            "user": users[rows],
            "shop": shops[rows],
            "amount": value,
            "ordered_at": instants(at[rows]),
            "seen_at": instants(available),
        }
    )
    pq.write_table(orders, folder / "orders.parquet")
    asked = np.sort(random.integers(START + DAY, END, count))
    basket = np.round(random.lognormal(3, 1, count), 2)
    asks = pa.table(
        {
            "asked_at": instants(asked),
            "ask_id": [f"a{i}" for i in range(count)],
            "user": [f"u{i}" for i in random.integers(0, 7, count)],
            "shop": [f"s{i}" for i in random.integers(0, 3, count)],
            "basket": pa.array(basket, mask=random.random(count) < 0.05),
            "opened_at": instants(asked - random.integers(0, HOUR, count)),
        }
    )
    pq.write_table(asks, folder / "asks.parquet")
    came = random.random(count) < 0.8
    outcomes = pa.table(
        {
            "ask_id": [f"a{i}" for i in np.flatnonzero(came)],
            "paid": (basket[came] + random.normal(0, 10, came.sum()) > 20).astype(np.float64),
            "settled_at": instants(asked[came] + random.integers(0, HOUR - 1, came.sum())),
        }
    )
    pq.write_table(outcomes, folder / "outcomes.parquet")


class InProcess:
    """Speaks to a server without a socket, as `Client` does with one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.retries = 0

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        given = {**(headers or {}), **({"idempotency-key": key} if key else {})}

        async def read() -> bytes:
            return body

        status, _, answer = await self.server.handle(method, path, given.get, read)
        return Response(status, answer, 0.0)


@dataclass(frozen=True)
class SmallWorld:
    """A world under one folder: `world.py`, `data/`, `registry/`, `state/`."""

    folder: Path
    models: tuple[str, ...]

    @property
    def file(self) -> Path:
        return self.folder / "world.py"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "registry")

    def copy(self, folder: Path) -> SmallWorld:
        """Give a copy that a test may spoil."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        return SmallWorld(folder, self.models)

    def load(self) -> WorldFile:
        return load_world(self.file)

    def engine(self) -> DuckDBEngine:
        return DuckDBEngine(self.folder)

    def train(self) -> None:
        for model in self.load().models.values():
            train(model, registry=self.registry, until=UNTIL, folder=self.folder)

    def config(self, **options: Any) -> ServerConfig:
        addresses = {name: self.registry.newest(name) or "" for name in self.models}
        given: dict[str, Any] = {
            "world": str(self.file),
            "registry": str(self.folder / "registry"),
            "state": str(self.state),
            "models": addresses,
            "durability": "process",
            "folder": str(self.folder),
        }
        return ServerConfig(**(given | options))

    def asks(self, start: int = UNTIL, end: int = END) -> MomentTable:
        moments = read_moments(self.engine(), next(iter(self.load().models.values())).moments)
        chosen = (moments.at >= start) & (moments.at < end)
        return MomentTable(moments.at[chosen], moments.fields.filter(pa.array(chosen)))

    def play(self, **options: Any) -> Played:
        """Replay the days after the training through a server in this process."""
        source = next(iter(self.load().models.values())).sources[0]
        engine = self.engine()
        feeds = [
            Feed(
                source,
                *engine.event_json(source, supported(engine.describe(source.data, "orders")), UNTIL, END),
            )
        ]

        async def played() -> Played:
            async with serving(self.config(replay=True, **options), cutover=UNTIL) as client:
                return await replay(client, self.models, self.asks(), feeds)  # type: ignore[arg-type] # speaks like a Client

        return asyncio.run(played())

    def prove(self, against: Against = "log") -> Proof:
        return prove(self.load().models, self.registry, self.state, engine=self.engine(), against=against)

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.folder / "data" / f"{name}.parquet")

    def write(self, name: str, table: pa.Table) -> None:
        pq.write_table(table, self.folder / "data" / f"{name}.parquet")

    def edit(self, old: str, new: str) -> None:
        """Change the world file."""
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def logged(self) -> list[Prediction]:
        return [prediction for _, prediction in predictions(self.state) if prediction is not None]

    def rewrite_log(self, change: Callable[[Prediction], Prediction]) -> None:
        """Write the prediction log anew, with valid checksums."""
        changed = [msgspec.msgpack.encode(change(prediction)) for prediction in self.logged()]
        shutil.rmtree(self.state / "predictions")
        with RecordLog.open(self.state / "predictions" / "forged", durability="process") as log:
            log.append(changed)


@asynccontextmanager
async def serving(config: ServerConfig, *, cutover: int | None = None) -> AsyncIterator[InProcess]:
    """Give a client of a filled server in this process, once it is ready."""
    server = Server(config)
    server.store.fill(DuckDBEngine(Path(config.folder)), cutover=cutover)
    server.start()
    try:
        async with asyncio.timeout(60):
            while server.not_ready():
                await asyncio.sleep(0.02)
        yield InProcess(server)
    finally:
        await server.stop()


def served(
    config: ServerConfig, use: Callable[[InProcess], Awaitable[Any]], *, cutover: int | None = None
) -> Any:
    """Give what `use` gives with a client of a server in this process."""

    async def run() -> Any:
        async with serving(config, cutover=cutover) as client:
            return await use(client)

    return asyncio.run(run())


def make(folder: Path, text: str = WORLD) -> SmallWorld:
    """Lay a world out and train its models."""
    write_data(folder / "data")
    (folder / "world.py").write_text(text)
    world = SmallWorld(folder, tuple(load_world(folder / "world.py").models))
    world.train()
    return world


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
