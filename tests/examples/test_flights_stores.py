"""A morning of the flights example through each store, against what training computes from the files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from redis_server import RedisServer

from sameworld.asof.plan import aggregates_of, groupings_of
from sameworld.asof.schema import supported
from sameworld.definitions.model import Model
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked
from sameworld.stores.online import OnlineStore, Taken
from sameworld.stores.redis import Shared
from sameworld.training.moments import read_moments
from sameworld.training.world_file import load_world

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
UNTIL = 1_380_600_000_000_000  # midnight in New York, 1 October
HOUR = 3_600_000_000
MORNING = (UNTIL + 6 * HOUR, UNTIL + 9 * HOUR)


@pytest.fixture(scope="module")
def engine() -> Iterator[DuckDBEngine]:
    made = DuckDBEngine(threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    shutil.copy(FLIGHTS / "world.py", folder.parent)
    return load_world(folder.parent / "world.py").model("flight-delay")


@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_flights_are_served_as_training_computes_them(
    store: str, redis: RedisServer, model: Model, engine: DuckDBEngine, tmp_path: Path
) -> None:
    # given the files up to midnight, and what became readable since as events
    groupings = groupings_of(aggregates_of(model.features.values()))
    sources = {grouping.source.content: grouping.source for grouping in groupings}.values()
    schemas = {s.content: supported(engine.describe(s.data, s.name)) for s in sources}
    redis.empty()
    shared = Shared(tmp_path, redis.address, reading_seconds=5.0) if store == "redis" else None
    opened = OnlineStore(tmp_path, groupings, schemas, durability="process", replay=True, shared=shared)
    opened.fill(engine, cutover=UNTIL)
    feeds = {s.name: engine.event_json(s, schemas[s.content], UNTIL, MORNING[1]) for s in sources}
    # when requests of a morning are answered in the order of time
    moments = read_moments(engine, model.moments)
    chosen = np.flatnonzero((moments.at >= MORNING[0]) & (moments.at < MORNING[1]))
    chosen = chosen[np.argsort(moments.at[chosen], kind="stable")]
    at, fields = moments.at[chosen], moments.fields.take(pa.array(chosen))
    instants, starts = np.unique(at, return_index=True)
    sent = dict.fromkeys(feeds, 0)
    served: dict[str, list[object]] = {}
    for t, start, stop in zip(instants.tolist(), starts, [*starts[1:], len(at)], strict=True):
        group = []
        for name, (available, events) in feeds.items():
            until = int(np.searchsorted(available, t))
            if until > sent[name]:
                body = f"[{','.join(events[sent[name] : until])}]".encode()
                group.append(opened.prepare(name, f"{name} {until}", body))
                sent[name] = until
        assert all(isinstance(answer, Taken) for answer in opened.commit(group))
        assert opened.pass_moment(t)
        asked = {name: fields[name].slice(start, stop - start).to_pylist() for name in ("origin", "carrier", "dest", "tailnum")}  # fmt: skip
        with opened.snapshot(lambda asked=asked: [(opened.groupings, asked)], t) as snapshot:
            for name, values in snapshot.aggregates(opened.groupings, asked, t).items():
                served.setdefault(name, []).extend(values.to_pylist())
    opened.close()
    # then every value is the one of a training set
    computed = engine.aggregates(groupings, schemas, Asked(fields, at, at), rows={}, world="as_of")
    assert len(at) > 100
    assert {name: values.to_pylist() for name, values in computed.items()} == served
