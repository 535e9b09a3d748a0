"""What it costs to read the features of one request, and how little it matters what else is defined.

    python -m benchmarks.reading [--requests 20_000] [--models 1,30,300] [--hot 1_000,1_000_000] [--store redis://...] [--folder DIR]

One source of 50,000 rows by four keys of 1,000 entities each. Every model has 200 features: five aggregations of five columns by each key, over two windows of
its own. A request reads those of one model, for four entities at random. Then, with `--hot`, a single entity that has so many rows in all its windows is
read, and one event at a time is added to it: now, and then at any time in its windows. With `--store` these reads go through Redis.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import redis

import sameworld as sw
from sameworld.asof.plan import aggregates_of, groupings_of, narrowed
from sameworld.definitions.feature import Aggregate
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.stores.online import OnlineStore
from sameworld.stores.redis import Shared

ROWS, ENTITIES = 50_000, 1_000
KEYS = ["user", "item", "shop", "street"]
COLUMNS = [f"v{i}" for i in range(5)]
OPERATIONS = ["sum", "mean", "min", "max", "last"]
HOUR = 3_600_000_000
INSTANT = pa.timestamp("us", tz="UTC")


def rows() -> pa.Table:
    """Make a day's rows up to now."""
    chance = np.random.default_rng(1)
    now = time.time_ns() // 1000
    return pa.table(
        {
            **{key: [f"{key}{i}" for i in chance.integers(0, ENTITIES, ROWS)] for key in KEYS},
            **{column: chance.lognormal(3, 1, ROWS) for column in COLUMNS},
            "at": pa.array(np.sort(now - chance.integers(0, 24 * HOUR, ROWS)), INSTANT),
        }
    )


def features(source: sw.Source, model: int) -> list[Aggregate]:
    """Give a model's 200 features."""
    over = [f"{1 + model % 20}h", f"{1441 + model}m"]
    return aggregates_of(
        getattr(source.by(key), operation)(column, over=over)
        for key in KEYS
        for operation in OPERATIONS
        for column in COLUMNS
    )


def measure(store: OnlineStore, wanted: Sequence[Aggregate], requests: int) -> tuple[list[float], int]:
    """Give the microseconds of each request, and how many features it read."""
    groupings = narrowed(store.groupings, wanted)
    chance = np.random.default_rng(2)
    took: list[float] = []
    found = 0
    gc.collect()
    gc.freeze()  # as a server does
    for number in range(requests + 200):
        fields = {key: [f"{key}{chance.integers(ENTITIES)}"] for key in KEYS}
        began = time.perf_counter()
        with store.snapshot() as snapshot:
            found = len(snapshot.columns(groupings, fields, snapshot.moment()))
        if number >= 200:
            took.append((time.perf_counter() - began) * 1e6)
    return took, found


def hot(rows: int, folder: Path, engine: DuckDBEngine, address: str | None) -> tuple[list[float], ...]:
    """Give the microseconds of reads of an entity with so many rows in its windows, and of taking one more event of it: one of now, and one of any time."""
    chance = np.random.default_rng(2)
    now = time.time_ns() // 1000
    table = pa.table(
        {
            "user": ["hot"] * rows,
            "amount": np.random.default_rng(1).lognormal(3, 1, rows),
            "at": pa.array(now - 24 * HOUR + np.arange(rows) * (23 * HOUR // rows), INSTANT),
        }
    )
    source = sw.Source("rows", table, event_time="at", available_at=sw.at_event_time())
    user = source.by("user")
    over = ["1d", "10h", "1h"]
    wanted = aggregates_of(getattr(user, name)("amount", over=over) for name in ("sum", "std", "max", "last"))
    schemas = {source.content: engine.describe(source.data, "rows")}
    folder.mkdir()
    shared = Shared(folder, address, reading_seconds=60.0) if address else None
    store = OnlineStore(folder, groupings_of(wanted), schemas, durability="process", shared=shared)
    store.fill(engine)
    asked = [(store.groupings, {"user": ["hot"]})]
    reads: list[float] = []
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number in range(440 if rows < 100_000 else 240):
        began = time.perf_counter()
        with store.snapshot(lambda: asked) as snapshot:
            snapshot.columns(store.groupings, {"user": ["hot"]}, snapshot.moment())
        reads.append((time.perf_counter() - began) * 1e6)
        late = number % 2 == 1
        at = np.datetime64(time.time_ns() // 1000 - (int(chance.integers(0, 23 * HOUR)) if late else 0), "us")
        event = f'[{{"user": "hot", "amount": 1.5, "at": "{at}Z"}}]'.encode()
        began = time.perf_counter()
        store.commit([store.prepare("rows", str(number), event)])
        taken[late].append((time.perf_counter() - began) * 1e6)
    store.close()
    return reads[40:], taken[False][20:], taken[True][20:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--models", default="1,30,300", help="how many models are defined, one line each")
    parser.add_argument("--hot", default="", help="rows of a single entity, one line each")
    parser.add_argument(
        "--store", help="redis://HOST:PORT: reads of a hot entity go through it; it is emptied"
    )
    parser.add_argument("--folder", help="where the state lies; a temporary folder by default")
    given = parser.parse_args()
    source = sw.Source("rows", rows(), event_time="at", available_at=sw.at_event_time())
    engine = DuckDBEngine(threads=1)
    schemas = {source.content: engine.describe(source.data, "rows")}
    print("| models | features defined | features read | p50 µs | p99 µs |\n| --- | --- | --- | --- | --- |")
    for models in map(int, filter(None, given.models.split(","))):
        defined = [feature for model in range(models) for feature in features(source, model)]
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            groupings = groupings_of(defined)
            store = OnlineStore(Path(folder) / "state", groupings, schemas, durability="process")
            store.fill(engine)
            took, found = measure(store, features(source, models // 2), given.requests)
            store.close()
        names = {column for feature in defined for column in feature.columns}
        print(f"| {models} | {len(names):,} | {found} | {np.percentile(took, 50):.0f} | {np.percentile(took, 99):.0f} |", flush=True)  # fmt: skip
    if given.hot:
        print("\n| rows of an entity | read p50, p99 µs | an event of now taken p50, p99 µs | a late one p50, p99 µs |\n| --- | --- | --- | --- |")  # fmt: skip
    for count in map(int, filter(None, given.hot.split(","))):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            if given.store:
                redis.Redis.from_url(given.store).flushdb()
            measured = hot(count, Path(folder) / "state", engine, given.store)
            found = [np.percentile(took, [50, 99]) for took in measured]
        print(f"| {count:,} | {' | '.join(f'{p50:,.0f}, {p99:,.0f}' for p50, p99 in found)} |", flush=True)


if __name__ == "__main__":
    main()
