"""What it costs to take events, and what readers notice of it.

    python -m benchmarks.ingestion [--events 400_000] [--delivery 1_000] [--group 8] [--durability disk] [--folder DIR]

One source with an id and a version, 5 % of its events corrections of earlier ones, read by four groupings (user, item, shop, country) of which one has a
`where`. Deliveries are JSON arrays, then the same as Arrow streams; a group of them is prepared and committed on one core, as a server does with what has
queued. Meanwhile a process on another core reads eight windows of a random user, item, shop and country, over and over, and notes how long that takes and
how old each commit is when it first sees it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

import sameworld as sw
from sameworld.asof.plan import Grouping, aggregates_of, groupings_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.stores.online import OnlineStore, Taken
from sameworld.stores.record_log import Durability

USERS, ITEMS, SHOPS, COUNTRIES = 100_000, 20_000, 1_000, 50
CORRECTED = 0.05
SECOND = 1_000_000
INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("purchase_id", pa.string()),
        ("revision", pa.int64()),
        ("user", pa.string()),
        ("item", pa.int64()),
        ("shop", pa.string()),
        ("country", pa.string()),
        ("amount", pa.float64()),
        ("quantity", pa.int64()),
        ("bought_at", INSTANT),
    ]
)


def groupings() -> tuple[Grouping, ...]:
    """Give what is kept and read: eight windows of four groupings."""
    purchases = sw.Source(
        "purchases", SCHEMA.empty_table(), event_time="bought_at", available_at=sw.at_event_time(), id="purchase_id", version="revision"
    )  # fmt: skip
    return groupings_of(
        aggregates_of(
            [
                purchases.by("user").sum("amount", over=["1h", "1d"]),
                purchases.by("user").last("amount"),
                purchases.where("amount > 50").by("item").count(over=["1h", "1d"]),
                purchases.by("shop").mean("amount", over="10m"),
                purchases.by("shop").count(over="10m"),
                purchases.by("country").max("quantity", over="1m"),
            ]
        )
    )


def events(count: int, seed: int = 1) -> pa.Table:
    """Make events: users at random, items and shops as unequal as they are in life; a correction follows its event by up to 20,000 others."""
    chance = np.random.default_rng(seed)
    corrected = np.flatnonzero(chance.random(count) < CORRECTED)
    corrected = corrected[corrected > 0]
    number = np.arange(count)
    number[corrected] -= np.minimum(chance.integers(1, 20_000, corrected.size), corrected)
    revision = np.ones(count, np.int64)
    revision[corrected] = corrected  # later corrections are greater
    same = np.arange(count)
    same[corrected] = number[corrected]  # of the same user and shop, with another amount

    def skewed(many: int) -> Any:
        return np.minimum(chance.zipf(1.2, count) - 1, chance.integers(0, many, count))

    def named(prefix: str, values: Any) -> pa.Array:
        return pa.array([f"{prefix}{value}" for value in values[same].tolist()])

    began = time.time_ns() // 1000 - 3600 * SECOND
    return pa.table(
        {
            "purchase_id": [f"p{seed}-{value:09d}" for value in number.tolist()],
            "revision": revision,
            "user": named("u", chance.integers(0, USERS, count)),
            "item": skewed(ITEMS)[same],
            "shop": named("s", skewed(SHOPS)),
            "country": named("c", chance.integers(0, COUNTRIES, count)),
            "amount": np.round(chance.lognormal(3.5, 1, count), 2),
            "quantity": chance.integers(1, 9, count),
            "bought_at": pa.array(began + number * 1000 + chance.integers(-500_000, 500_000, count)[same], INSTANT),
        },
        schema=SCHEMA,
    )  # fmt: skip


def as_json(table: pa.Table) -> bytes:
    return msgspec.json.encode(table.to_pylist())


def as_arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass
class Measured:
    """What taking some deliveries took.

    Args:
        seconds, cpu: of the clock and of this process.
        waited: milliseconds from sending each group to its acknowledgment.
    """

    events: int
    seconds: float
    cpu: float
    waited: list[float]


def take(store: OnlineStore, deliveries: Sequence[bytes], group: int, name: str, rows: int) -> Measured:
    """Prepare and commit deliveries in groups."""
    waited: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(deliveries), group):
        sent = time.perf_counter()
        incoming = [
            store.prepare("purchases", f"{name}-{first + place}", body)
            for place, body in enumerate(deliveries[first : first + group])
        ]
        answers = store.commit(incoming)
        if not all(isinstance(answer, Taken) and not answer.repeated for answer in answers):
            raise SystemExit(f"not taken: {answers}")
        waited.append((time.perf_counter() - sent) * 1e3)
    return Measured(rows, time.perf_counter() - began, time.process_time() - cpu, waited)


def read(folder: str, core: int | None, stop: Any, told: Any) -> None:
    """Read over and over until told to stop; tell milliseconds of reads, and milliseconds from stamps to their being seen. Runs in a process of its own."""
    pin(core)
    wanted = groupings()
    store = open_store(Path(folder), wanted, "process")
    chance = np.random.default_rng(3)
    took: list[float] = []
    seen: list[float] = []
    last = 0
    while not stop.is_set():
        fields = {
            "user": [f"u{chance.integers(USERS)}"],
            "item": [int(chance.integers(ITEMS))],
            "shop": [f"s{chance.integers(SHOPS)}"],
            "country": [f"c{chance.integers(COUNTRIES)}"],
        }
        began = time.perf_counter()
        with store.snapshot() as snapshot:
            t, sequence, stamp = snapshot.moment(), snapshot.sequence, snapshot.stamp
            snapshot.aggregates(wanted, fields, t)
        took.append((time.perf_counter() - began) * 1e3)
        if sequence != last:
            if last:
                seen.append((t - stamp) / 1e3)
            last = sequence
        time.sleep(0.0005)
    store.close()
    told.put((took[20:], seen))


def pin(core: int | None) -> None:
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})


def open_store(folder: Path, wanted: Sequence[Grouping], durability: Durability) -> OnlineStore:
    engine = DuckDBEngine(threads=1)
    source = wanted[0].source
    schema = engine.describe(SCHEMA.empty_table(), "purchases")
    store = OnlineStore(folder, wanted, {source.content: schema}, durability=durability)
    store.fill(engine)
    engine.close()
    return store


@contextlib.contextmanager
def reader(folder: Path, core: int | None) -> Iterator[dict[str, list[float]]]:
    """Have a process read meanwhile; gives what it noted once the block has ended."""
    context = multiprocessing.get_context("spawn")
    stop, told = context.Event(), context.Queue()
    process = context.Process(target=read, args=(str(folder), core, stop, told))
    process.start()
    noted: dict[str, list[float]] = {}
    try:
        time.sleep(4)  # it imports and compiles nothing any more
        yield noted
    finally:
        stop.set()
        noted["took"], noted["seen"] = told.get(timeout=60)
        process.join()


def percentiles(values: Sequence[float], *wanted: float) -> list[float]:
    return [float(np.percentile(values, one)) for one in wanted] if values else [float("nan")] * len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--delivery", type=int, default=1_000, help="events in a delivery")
    parser.add_argument("--group", type=int, default=8, help="deliveries in a commit")
    parser.add_argument("--durability", choices=["disk", "process"], default="disk")
    parser.add_argument("--folder", help="where the state lies; a temporary folder by default")
    parser.add_argument("--no-reader", action="store_true", help="nobody reads meanwhile")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    pin(cores[0])
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        state = Path(folder) / "state"
        store = open_store(state, groupings(), given.durability)
        warm = events(20_000, seed=9)
        take(store, [as_json(warm)], 1, "warm", 0)
        gc.collect()
        gc.freeze()  # as a server does
        calm: dict[str, list[float]] = {}
        if not given.no_reader:
            with reader(state, cores[-1]) as calm:
                time.sleep(3)
        print(
            "| deliveries | events/s | µs of CPU an event | acknowledged ms p50, p99 | read p50, p99 ms (calm) | stamp to seen p50, p99 ms |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for seed, (name, encode) in enumerate({"JSON": as_json, "Arrow": as_arrow}.items(), 1):
            table = events(given.events, seed)
            bodies = [encode(table.slice(i, given.delivery)) for i in range(0, given.events, given.delivery)]
            beside = contextlib.nullcontext({}) if given.no_reader else reader(state, cores[-1])
            with beside as noted:
                found = take(store, bodies, given.group, name, given.events)
            reads = "{:.3f}, {:.3f} ({:.3f}, {:.3f})".format(*percentiles(noted.get("took", []), 50, 99), *percentiles(calm.get("took", []), 50, 99))  # fmt: skip
            seen = "{:.1f}, {:.1f}".format(*percentiles(noted.get("seen", []), 50, 99))
            waited = "{:.1f}, {:.1f}".format(*percentiles(found.waited, 50, 99))
            print(f"| {name} | {found.events / found.seconds:,.0f} | {found.cpu / found.events * 1e6:.1f} | {waited} | {reads} | {seen} |", flush=True)  # fmt: skip
        store.close()


if __name__ == "__main__":
    main()
