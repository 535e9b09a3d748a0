"""A store, or a disk, that is not well: predictions are answered, whoever asks for anything else is told, and all goes on when it has passed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from driven_server import Driven, driven
from small_world import UNTIL, WORLD, SmallWorld, make

from sameworld.server.recorded import Recorded, record, recorded
from sameworld.training.fit import train

REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}
EVENT = {"order_id": "new", "user": "u1", "shop": "s1", "amount": 3.0, "ordered_at": "2024-03-16T09:00:00Z"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A world with two versions of `plain`."""
    world = make(tmp_path_factory.mktemp("trouble") / "world")
    (world.folder / "old").write_text(world.registry.newest("plain") or "")
    world.file.write_text(WORLD.replace("n_estimators=", "n_estimators=1"))
    train(world.load().models["plain"], registry=world.registry, until=UNTIL, folder=world.folder)
    return world


@pytest.fixture
def world(trained: SmallWorld, tmp_path: Path) -> SmallWorld:
    return trained.copy(tmp_path / "world")


@pytest.fixture
def server(world: SmallWorld) -> Iterator[Driven]:
    with driven(world.config(models={"plain": old_of(world)}), cutover=UNTIL) as running:
        yield running


@pytest.fixture
def damaged(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[None]:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.chaos.damage import unreadable

    return unreadable(world.state / "index" / "data.mdb")


def old_of(world: SmallWorld) -> str:
    return (world.folder / "old").read_text()


def ask(server: Driven) -> dict[str, Any]:
    status, answer = server.predict({"request": REQUEST})
    assert status == 200, answer
    return answer["predictions"][0]


def test_only_fallbacks_see_that_the_store_cannot_be_read(
    server: Driven, damaged: AbstractContextManager[None]
) -> None:
    assert ask(server)["tier"] == "model"

    with damaged:
        given = ask(server)
        assert given["tier"] != "model"
        assert given["reason"].startswith("store: ")
        assert given["logged"]
        status, told = server.events({"events": [EVENT]}, key="k")
        assert status == 503
        assert told["where"] == "POST /v1/sources/orders/events"
        assert told["do"].startswith("send it again, events with the same Idempotency-Key")
        assert server.send("GET", "/metrics")[0] == 200
        status, told = server.send("GET", "/readyz")
        assert (status, told["waiting_for"][0][:10]) == (503, "the store:")

    assert ask(server)["tier"] == "model"
    assert server.events({"events": [EVENT]}, key="k") == (200, {"accepted": 1})
    assert server.send("GET", "/readyz")[0] == 200


def test_a_swap_that_the_store_does_not_allow_changes_nothing(
    world: SmallWorld, server: Driven, damaged: AbstractContextManager[None]
) -> None:
    with damaged:
        assert server.send("POST", "/control/models/plain", {})[0] == 503
    assert ask(server)["version"] == old_of(world)
    assert server.send("POST", "/control/models/plain", {})[0] == 200
    assert ask(server)["version"] == world.registry.newest("plain") != old_of(world)


def test_a_swap_that_cannot_be_recorded_changes_nothing(world: SmallWorld, server: Driven) -> None:
    in_the_way = world.state / f".served.json.{os.getpid()}"
    in_the_way.mkdir()
    assert server.send("POST", "/control/models/plain", {})[0] == 503
    assert ask(server)["version"] == old_of(world)
    assert recorded(world.state) is None

    in_the_way.rmdir()
    assert server.send("POST", "/control/models/plain", {})[0] == 200
    assert ask(server)["version"] == world.registry.newest("plain")


def test_a_worker_that_could_not_follow_a_change_tries_again_and_does_not_undo_it(
    world: SmallWorld, server: Driven
) -> None:
    new = world.registry.newest("plain") or ""
    bundle = world.registry.folder / "bundles" / new
    away = bundle.rename(bundle.with_name("away"))
    assert server.send("POST", "/control/models/plain", {"version": old_of(world)})[0] == 200
    generation = server.send("GET", "/control/models")[1]["generation"]
    # As another worker records it.
    was = recorded(world.state)
    since = was.since if was else {}
    record(world.state, Recorded(generation=generation + 1, models={"plain": new}, since=since))

    until = time.monotonic() + 30
    while not server.send("GET", "/control/status")[1]["workers"][0]["trouble"] and time.monotonic() < until:
        time.sleep(0.05)
    status, told = server.send("DELETE", "/control/models/plain")
    assert status == 503
    assert told["what"] == "This worker does not serve what was changed last, so it changes nothing."
    assert told["found"] == f"There is no bundle {new}."
    assert ask(server)["version"] == old_of(world)

    away.rename(bundle)
    until = time.monotonic() + 30
    while ask(server)["version"] != new and time.monotonic() < until:
        time.sleep(0.05)
    assert ask(server)["version"] == new
    assert server.send("GET", "/control/models")[1]["generation"] == generation + 1
