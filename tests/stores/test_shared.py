"""What one host publishes to Redis is what others read, whatever happens to Redis meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
import test_online as online
from redis_server import RedisServer
from test_online import FIELDS, World, as_events, row, windowed

from sameworld.asof.plan import aggregates_of, groupings_of, narrowed
from sameworld.definitions.windows import Window
from sameworld.errors import RequestError, StoreError
from sameworld.stores.online import OnlineStore, Taken
from sameworld.stores.redis import Shared

SPECS = [
    windowed("sum", "x", ("k1",), where=False, windows=[Window(), Window("5us")]),
    windowed("count", None, ("k1", "k2"), where=True, windows=[Window("12us")]),
    windowed("last", "s", ("k1",), where=False, windows=[Window()]),
]


@pytest.fixture
def here(redis: RedisServer) -> Iterator[World]:
    with online.world("by_version", SPECS, redis=redis) as made:
        yield made


def tell(here: World, number: int) -> None:
    here.clock.time = 20 + number
    made = row(id=f"e{number}", v=0, k1="a", k2=number % 2, e=10 + number, x=number / 3, s="u")
    (taken,) = here.take((f"key {number}", [made]))
    assert isinstance(taken, Taken)
    here.told.append(online.Told(made, 20 + number, online.ties_of(here.source, [made])[0]))


def heal(store: OnlineStore) -> None:
    """As a server does all the time."""
    for _ in range(200):
        try:
            store.heal()
            return
        except StoreError:
            time.sleep(0.02)
    store.heal()


def followed(here: World, folder: Path) -> OnlineStore:
    """A store of another host, which reads what this one publishes."""
    assert here.redis is not None
    return OnlineStore(
        folder, groupings_of(aggregates_of(here.aggregates)), {here.source.content: online.schema_of()},
        durability="process", clock=here.clock, shared=Shared(folder, here.redis, reading_seconds=5.0), follow=True,
    )  # fmt: skip


def read_from(store: OnlineStore, here: World, t: int) -> dict[tuple[str, tuple[object, ...]], object]:
    groupings = narrowed(store.groupings, here.aggregates)
    with store.snapshot(lambda: [(groupings, FIELDS)], t) as snapshot:
        return online.found_in(snapshot.aggregates(groupings, FIELDS, t), here.aggregates)


@pytest.mark.parametrize("what", ["killed", "emptied"])
def test_what_redis_has_lost_is_published_again(here: World, redis: RedisServer, what: str) -> None:
    assert here.store is not None
    tell(here, 0)
    if what == "killed":
        redis.kill()
        with pytest.raises(StoreError, match="Redis does not answer"):
            here.read()
    else:
        redis.empty()
        with pytest.raises(StoreError, match="Redis has no store"):
            here.read()
    tell(here, 1)  # is taken all the same
    if what == "killed":
        redis.start()
    heal(here.store)
    tell(here, 2)
    for _ in range(100):  # readers try again by themselves, now and then
        try:
            here.read()
            break
        except StoreError:
            time.sleep(0.02)
    here.check(here.moment())


def test_who_waits_for_a_frozen_redis_is_told_soon_and_others_at_once(
    here: World, redis: RedisServer
) -> None:
    assert here.store is not None
    assert here.store.shared is not None
    here.store.shared.close()
    here.store.shared = Shared(here.folder, redis.address, reading_seconds=0.2)
    tell(here, 0)
    redis.freeze()
    try:
        began = time.monotonic()
        for _ in range(50):
            with pytest.raises(StoreError, match="Redis does not answer"):
                here.read()
        assert time.monotonic() - began < 50 * 0.2, "each of them waited"
    finally:
        redis.thaw()


def test_what_was_missed_is_caught_up_without_copying_everything(here: World, redis: RedisServer) -> None:
    assert here.store is not None
    tell(here, 0)
    with client.Redis.from_url(redis.address) as asked:
        epoch = asked.hget("sameworld:", "epoch")
        shared, here.store.shared = here.store.shared, None
        here.store.shared = shared
        assert shared is not None
        publish, shared.publish = shared.publish, lambda index: False  # type: ignore[method-assign]
        for number in range(1, 4):
            tell(here, number)
        shared.publish = publish  # type: ignore[method-assign]
        here.store.heal()
        assert asked.hget("sameworld:", "epoch") == epoch
    here.check(here.moment())


def test_a_follower_reads_the_same_bits_and_takes_no_events(here: World, tmp_path: Path) -> None:
    for number in range(3):
        tell(here, number)
    other = followed(here, tmp_path / "other")
    assert other.missing() == []
    t = here.moment()
    assert read_from(other, here, t) == here.read(t)
    tell(here, 3)
    t = here.moment()
    assert read_from(other, here, t) == here.read(t)
    with pytest.raises(RequestError) as refused:
        other.prepare("rows", "key", as_events([row(k1="a")]))
    assert str(refused.value) == (
        "This server follows the store of another host.\n"
        "  in: source 'rows'\n"
        "  do: send events to the server that was started without --follow."
    )
    other.close()


def test_a_redis_that_drops_single_keys_is_not_published_to(here: World, redis: RedisServer) -> None:
    # a reader would take an entity whose rows are gone for one that never had any
    assert here.store is not None
    with client.Redis.from_url(redis.address) as asked:
        asked.flushall()
        asked.config_set("maxmemory", "100mb")
        asked.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StoreError) as refused:
                here.store.heal()
        finally:
            asked.config_set("maxmemory", "0")
            asked.config_set("maxmemory-policy", "noeviction")
    assert str(refused.value) == (
        "This Redis drops rows when its memory is full.\n"
        f"  in: {redis.address}\n"
        "  expected: maxmemory-policy noeviction, or no maxmemory\n"
        "  found: maxmemory-policy allkeys-lru\n"
        "  do: redis-cli config set maxmemory-policy noeviction, and set it in redis.conf, too."
    )
    heal(here.store)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("redis://127.0.0.1:abc/0", "Port could not be cast to integer value as 'abc'"),
        ("redis://127.0.0.1/mine", "'mine' is no number of a database"),
        ("redis://127.0.0.1/0?speed=9", "unexpected keyword argument 'speed'"),
        ("http://127.0.0.1", "scheme"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(tmp_path: Path, address: str, why: str) -> None:
    with pytest.raises(StoreError) as refused:
        Shared(tmp_path, address)
    assert refused.value.what.startswith("The address of the store cannot be read: ")
    assert why in refused.value.what
    assert refused.value.expected == "redis://HOST:PORT/DATABASE or unix://PATH?db=DATABASE"


def test_two_hosts_do_not_publish_to_one_redis(here: World, tmp_path: Path) -> None:
    assert here.store is not None
    assert here.redis is not None
    other = Shared(tmp_path, here.redis)
    with pytest.raises(StoreError, match="has the store of another host"):
        other.publish(here.store.index)
    other.close()


def test_a_request_is_one_round_trip(here: World, redis: RedisServer) -> None:
    for number in range(3):
        tell(here, number)
    here.read()
    with client.Redis.from_url(redis.address) as asked:
        asked.config_resetstat()
        here.read()
        calls = {
            name.decode() if isinstance(name, bytes) else name: each["calls"]
            for name, each in asked.info("commandstats").items()
        }
    assert calls["cmdstat_evalsha"] == 1
    assert "cmdstat_hget" not in calls


PUBLISHER = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[3].split(",")
import test_online as online
from test_shared import SPECS, groupings_of, aggregates_of, OnlineStore, Shared, row, as_events
from sameworld.stores.lmdb import Sizes
import sameworld as sw
import pyarrow as pa

folder = Path(sys.argv[1])
source = sw.Source("rows", pa.Table.from_pylist([], schema=online.SCHEMA), event_time="e", available_at="a", **online.NAMED["by_version"])
aggregates = [online.aggregate_of(source, spec) for spec in SPECS]
store = OnlineStore(
    folder, groupings_of(aggregates_of(aggregates)), {source.content: online.schema_of()}, durability="process", sizes=Sizes(3, 1, 2),
    shared=Shared(folder, sys.argv[2]),
)
print("ready", flush=True)
number = store.sequence()
while True:
    number += 1
    made = [row(id=f"e{number}-{i}", v=0, k1="a", k2=i % 2, e=number, x=1.0, s="u") for i in range(4)]
    store.commit([store.prepare("rows", f"key {number}", as_events(made))])
"""


@pytest.mark.slow
def test_a_publisher_killed_at_any_moment_leaves_nothing_half_published(
    here: World, redis: RedisServer, tmp_path: Path
) -> None:
    assert here.store is not None
    assert here.redis is not None
    reader = followed(here, tmp_path / "reader")
    sums = next(column for column in here.aggregates[0].columns if "5us" not in column)
    seen = 0
    for _ in range(3):
        paths = ",".join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(here.folder), here.redis, paths], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            until, before = time.monotonic() + 1.0, seen
            while time.monotonic() < until or seen == before:
                # each delivery brings four rows of 1.0: whatever is seen of them is all of some deliveries
                groupings = narrowed(reader.groupings, here.aggregates)
                with reader.snapshot(lambda groupings=groupings: [(groupings, FIELDS)]) as snapshot:
                    values = snapshot.aggregates(groupings, FIELDS, snapshot.moment())
                    assert (values[sums][0].as_py() or 0.0) == 4.0 * snapshot.sequence
                    seen = snapshot.sequence
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    heal(here.store)
    assert seen > 3
    reader.close()
