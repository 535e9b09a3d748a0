"""An entity with very many rows: its windows are read from tallies and few rows, and stay right whatever is added where."""

from __future__ import annotations

import numpy as np
import pytest
from redis import Redis
from redis_server import RedisServer
from test_online import FIELDS, Told, World, row, ties_of, windowed, world

from sameworld.definitions.windows import Window
from sameworld.stores.online import Taken
from sameworld.stores.tallies import Found

MANY = 400
WINDOWS = [Window(), Window("300us"), Window("35us"), Window("40us", ahead=True)]
ADDED = [
    windowed(name, "x", ("k1",), where=where, windows=WINDOWS)
    for name, where in (("sum", True), ("std", False), ("max", True))
]
ADDED += [windowed("count", None, ("k1",), where=True, windows=WINDOWS)]


def files() -> list[dict[str, object]]:
    chance = np.random.default_rng(5)
    return [
        row(k1="a", a=e, e=e, x=float(chance.lognormal(0, 30)), n=e if e % 50 == 3 else None, s=f"s{e}")
        for e in range(MANY)
    ]


def found(here: World) -> Found:
    """What is fetched of the one entity."""
    assert here.store is not None
    (grouping,) = here.store.groupings
    with here.store.snapshot(lambda: [([grouping], FIELDS)]) as snapshot:
        reach, t = here.store.reach(grouping), snapshot.moment()
        (one,) = snapshot._chunks(snapshot._kept[reach.content].prefix, reach, [("a",)], t)
        return one


def told(here: World, number: int, **given: object) -> None:
    here.clock.time += 1
    made = row(k1="a", **given)
    (taken,) = here.take((f"key {number}", [made]))
    assert isinstance(taken, Taken)
    here.told.append(Told(made, here.clock.time, ties_of(here.source, [made])[0]))


@pytest.fixture(params=["lmdb", "redis"])
def shared(request: pytest.FixtureRequest) -> RedisServer | None:
    return request.getfixturevalue("redis") if request.param == "redis" else None


def test_windows_over_many_rows_are_read_from_few_of_them(shared: RedisServer | None) -> None:
    with world("append_only", ADDED, files=files(), cutover=MANY, chunk_rows=2, redis=shared) as here:
        here.clock.time = MANY
        here.check(here.moment())
        one = found(here)
        assert one.tallies is not None
        assert sum(int.from_bytes(chunk[:8], "little") for chunk in one.chunks) <= 2 * len(WINDOWS) + 2
        # late ones, at the borders of chunks and between, and what was not readable yet when it was filled
        for number, e in enumerate([0, -7, MANY - 1, 31, 32, 33, 32, 200, 365, 366, MANY + 3, 117]):
            told(here, number, e=e, x=0.1 * number)
            here.check(here.moment())
        assert found(here).tallies is not None


@pytest.mark.parametrize("wanted", [1, 2, 5])
def test_the_first_and_the_last_rows_are_found_behind_tallies(
    shared: RedisServer | None, wanted: int
) -> None:
    specs = [
        windowed(
            "last_n", "n", ("k1",), where=False, windows=[Window(), Window("300us")], given={"n": wanted}
        ),
        windowed("first", "n", ("k1",), where=False, windows=[Window("300us"), Window("40us")]),
        windowed("sum", "x", ("k1",), where=False, windows=[Window()]),
    ]
    with world("append_only", specs, files=files(), cutover=MANY, chunk_rows=2, redis=shared) as here:
        here.clock.time = MANY
        here.check(here.moment())
        told(here, 1, e=1, n=7)
        told(here, 2, e=150, n=None)
        here.check(here.moment())
        one = found(here)
        assert one.tallies is not None
        assert len(one.chunks) < 30


def test_rows_that_lie_far_apart_are_fetched_in_four_steps(redis: RedisServer) -> None:
    # the last chunk, heads of records, the records that have such rows, and their chunks; however many there are
    specs = [windowed("last_n", "n", ("k1",), where=False, windows=[Window()], given={"n": 7})]
    with (
        world("append_only", specs, files=files(), cutover=MANY, chunk_rows=2, redis=redis) as here,
        Redis.from_url(redis.address) as client,
    ):
        here.clock.time = MANY
        here.check(here.moment())
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        one = found(here)
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - before == 4
        assert len(one.chunks) == 7 + 1  # and the entity's last


def test_what_wants_all_rows_gets_them(shared: RedisServer | None) -> None:
    specs = [
        windowed("nunique", "s", ("k1",), where=False, windows=[Window("35us")]),
        windowed("max", "s", ("k1",), where=False, windows=[Window("40us")]),
        windowed("mean", "x", ("k1",), where=False, windows=[Window("300us")]),
    ]
    with world("append_only", specs, files=files(), cutover=MANY, chunk_rows=2, redis=shared) as here:
        here.clock.time = MANY
        here.check(here.moment())
        one = found(here)
        assert one.tallies is not None
        assert 20 <= len(one.chunks) < 30


def test_corrections_far_back_change_the_tallies_of_their_chunks(shared: RedisServer | None) -> None:
    versions = [row(id=f"f{e}", v=0, k1="a", a=e, e=e, x=e / 7) for e in range(MANY)]
    with world("by_version", ADDED, files=versions, cutover=MANY, chunk_rows=2, redis=shared) as here:
        here.clock.time = MANY
        for number, (fact, e, gone) in enumerate([(3, 3, False), (200, 20, False), (399, 1, False), (100, 100, True), (20, 900, False)]):  # fmt: skip
            told(here, number, id=f"f{fact}", v=1, d=gone, e=e, x=1e300)
            here.check(here.moment())
        assert found(here).tallies is not None
