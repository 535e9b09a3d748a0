"""A replay whose server is killed in the middle, and started again on the same state, proves as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_live_proof import INSTANT, SECOND, ServerProcess

from sameworld.asof.schema import supported
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.server.client import Client
from sameworld.server.replay import Feed, Played, replay, wait_until_ready
from sameworld.stores import event_log
from sameworld.stores.prediction_log import predictions
from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.moments import MomentTable, read_moments
from sameworld.training.world_file import load_world

WORLD = """
from lightgbm import LGBMClassifier
import sameworld as sw

orders = sw.Source(
    "orders", "orders.parquet", event_time="ordered_at", available_at="seen_at", id="order", version="revision", deleted="void"
)
calls = sw.Source("calls", "calls.parquet", event_time="called_at", available_at=sw.delay("20m"))
asks = sw.Moments("asks.parquet", at="asked_at")

kept = sw.Model(
    "kept",
    moments=asks,
    features={
        "spent": orders.by("user").sum("amount", over=["1h", "6h", "3d"]),
        "mean": orders.by("user").mean("amount"),
        "large": orders.where("amount > 30").by("user").count(over="1d"),
        "last": orders.by("user").last("amount"),
        "calls": calls.by("user").count(over=["2h", "2d"]),
        "called": calls.by("user").age(),
        "basket": sw.field("basket"),
    },
    label=sw.Label(calls.by("user").count() > 0, within="2h"),
    estimator=LGBMClassifier(n_estimators=10),
    fallbacks=[sw.Constant(0.5)],
    service=sw.Service(deadline="30s"),
)
"""
START = 1_700_000_000 * SECOND
HOUR = 3600 * SECOND
UNTIL = START + 240 * HOUR
END = UNTIL + 120 * HOUR
MOMENTS = 2000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_replay_goes_on_after_its_server_was_killed(tmp_path: Path) -> None:
    # given a world with corrections and deletions that come late, and a model trained on its first part
    chance = np.random.default_rng(11)
    count = 3000
    facts = chance.integers(0, 2000, count)
    at = START + chance.integers(0, END - START, count)

    def instants(values: object) -> pa.Array:
        return pa.array(np.asarray(values, np.int64), INSTANT)

    tables = {
        "orders": {
            "order": [f"o{i}" for i in facts],
            "revision": chance.integers(0, 4, count),
            "void": chance.random(count) < 0.05,
            "user": [f"u{i}" for i in chance.integers(0, 8, count)],
            "amount": pa.array(chance.lognormal(3, 1, count), mask=chance.random(count) < 0.05),
            "ordered_at": instants(at),
            "seen_at": pa.array(
                at + chance.integers(1, 9 * HOUR, count), INSTANT, mask=chance.random(count) < 0.02
            ),
        },
        "calls": {
            "user": [f"u{i}" for i in chance.integers(0, 8, count)],
            "called_at": instants(START + chance.integers(0, END - START, count)),
        },
        "asks": {
            "asked_at": instants(
                np.concatenate(
                    [
                        START + chance.integers(0, UNTIL - START, 1500),
                        UNTIL + chance.integers(0, END - UNTIL, MOMENTS),
                    ]
                )
            ),
            "user": [f"u{i}" for i in chance.integers(0, 9, 1500 + MOMENTS)],
            "basket": chance.random(1500 + MOMENTS),
        },
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    (tmp_path / "world.py").write_text(WORLD)
    loaded = load_world(tmp_path / "world.py")
    model = loaded.model("kept")
    registry, state = Registry(tmp_path / "registry"), tmp_path / "state"
    engine = DuckDBEngine(tmp_path)
    trained = train(model, registry=registry, until=UNTIL, folder=tmp_path)
    moments = read_moments(engine, model.moments)
    chosen = (moments.at >= UNTIL) & (moments.at < END)
    moments = MomentTable(moments.at[chosen], moments.fields.filter(pa.array(chosen)))
    feeds = [
        Feed(
            source,
            *engine.event_json(source, supported(engine.describe(source.data, source.name)), UNTIL, END),
        )
        for source in model.sources
    ]
    options = ["--replay", "--cutover", f"{np.datetime64(UNTIL, 'us')}Z"]
    server = ServerProcess(tmp_path, "process", options)
    killed: list[int] = []

    async def play() -> Played:
        client = Client("127.0.0.1", server.port, patience_seconds=120)
        await wait_until_ready(client, server.process)
        client.retries = 0
        kills = sorted(random.Random(2).sample(range(100, MOMENTS - 100), 3))
        done = 0

        async def kill() -> None:
            for wanted in kills:
                while done < wanted:
                    await asyncio.sleep(0)
                await asyncio.to_thread(server.kill)
                killed.append(done)
                await asyncio.to_thread(server.start)

        def progress(now: int, _: int) -> None:
            nonlocal done
            done = now

        killing = asyncio.create_task(kill())
        played = await replay(client, ["kept"], moments, feeds, progress=progress)
        await killing
        await client.close()
        return played

    # when the server is killed in the middle of a replay, three times
    try:
        played = asyncio.run(play())
    finally:
        server.stop()

    # then every request was answered, and every vector is that of the log, and of the files
    assert len(killed) == 3
    assert set(played.statuses) == {200}
    answers = played.answers["kept"]
    assert sorted(number for number, *_ in answers) == list(range(MOMENTS))
    assert all((tier, logged) == ("model", True) for _, _, tier, logged in answers)
    for against in ("log", "files"):
        proof = prove(loaded.models, registry, state, engine=engine, against=against)  # type: ignore[arg-type] # a literal
        assert [difference.text() for difference in proof.differences[:3]] == []
        assert proof.different == 0
        assert proof.vectors >= MOMENTS
    # and every acknowledged event is in the log once
    log = [delivery for _, delivery in event_log.deliveries(state / "events")]
    assert set(Counter(delivery.key for delivery in log).values()) == {1}
    sent = [e for feed in feeds for e in feed.events[: np.searchsorted(feed.available, moments.at.max())]]
    assert played.events == len(sent)
    events = [event for delivery in log for event in msgspec.json.decode(delivery.events)]
    assert Counter(map(repr, events)) == Counter(repr(msgspec.json.decode(event)) for event in sent)
    # and every answer is in the prediction log, as often as its request came through
    logged = Counter((p.t, *p.request) for _, p in predictions(state) if p is not None)
    fields = trained.bundle.description.request
    asked = Counter(zip(moments.at.tolist(), *(plain(moments.fields[name]) for name in fields), strict=True))
    assert asked <= logged
    assert logged.total() - asked.total() <= played.retries


def plain(column: pa.ChunkedArray) -> list[object]:
    return column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()
