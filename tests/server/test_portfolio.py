"""Many models in one server: loaded when asked, within a budget, while their fallbacks answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driven_server import Driven, driven
from small_world import UNTIL, WORLD, SmallWorld, make

from sameworld.stores.online import Snapshot

MORE = """
def another(name, **more):
    return sw.Model(
        name, moments=asks, features=features | more, label=paid, estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1),
        fallbacks=fallbacks, service=service,
    )


second, third = another("second", visits=orders.by("shop").count(over="1d")), another("third")
"""
REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return make(tmp_path_factory.mktemp("several") / "world", WORLD + MORE)


@pytest.fixture
def world(several: SmallWorld, tmp_path: Path) -> SmallWorld:
    return several.copy(tmp_path / "world")


def ask(server: Driven, model: str) -> dict[str, Any]:
    status, answer = server.predict({"request": REQUEST}, model=model)
    assert status == 200
    return answer["predictions"][0]


def settled(server: Driven, model: str) -> list[str]:
    """Ask until the model answers itself; give the reasons of the answers before."""
    reasons: list[str] = []
    until = time.monotonic() + 30
    while time.monotonic() < until:
        answer = ask(server, model)
        if answer["tier"] == "model":
            return reasons
        reasons.append(answer["reason"])
        server.run(asyncio.sleep(0.005))
    raise AssertionError(f"{model} does not load: {reasons[-1]}")


@pytest.fixture
def tight(world: SmallWorld) -> Iterator[Driven]:
    """A server with room for one model."""
    with driven(world.config(memory=1), cutover=UNTIL) as running:
        yield running


def test_while_a_model_loads_its_fallbacks_answer(tight: Driven) -> None:
    loaded = [name for name, served in tight.client.server.portfolio.models.items() if served.loaded]
    assert loaded == ["plain"]
    assert ask(tight, "plain")["tier"] == "model"
    tight.run(asyncio.sleep(1.1))
    first = ask(tight, "second")
    assert (first["tier"], first["reason"], first["logged"]) == ("fallback_1_rate", "loading", True)
    assert set(settled(tight, "second")) <= {"loading"}


def test_models_that_are_all_being_asked_do_not_drive_each_other_out(tight: Driven) -> None:
    for _ in range(20):
        assert ask(tight, "plain")["tier"] == "model"
        crowded = ask(tight, "second")
        assert (crowded["tier"], crowded["reason"]) == (
            "fallback_1_rate",
            "memory: other models are being asked",
        )


def test_the_model_asked_the_longest_ago_makes_room_and_comes_back_on_demand(tight: Driven) -> None:
    portfolio = tight.client.server.portfolio
    answers = {}
    for model in ("plain", "second", "plain"):
        settled(tight, model)
        answer = ask(tight, model)["value"]
        assert answers.setdefault(model, answer) == answer
        assert [name for name, served in portfolio.models.items() if served.loaded] == [model]
        assert portfolio.bytes == portfolio.bytes_of(model) > 10_000


def test_a_damaged_bundle_is_said_and_only_its_own_model_falls_back(world: SmallWorld) -> None:
    with driven(world.config(memory=1), cutover=UNTIL) as server:
        address = server.client.server.portfolio.models["second"].bundle.address
        trees = world.folder / "registry" / "bundles" / address / "model.txt"
        trees.write_bytes(trees.read_bytes()[:-1])
        until = time.monotonic() + 20
        while (reason := ask(server, "second")["reason"])[:5] != "model" and time.monotonic() < until:
            server.run(asyncio.sleep(0.01))
        assert reason == f"model: Bundle {address} is damaged: its files do not have that hash."
        assert ask(server, "plain")["tier"] == "model"


def test_an_entity_is_fetched_once_for_all_models_of_a_micro_batch(
    world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driven(world.config(), cutover=UNTIL) as server:
        alone = {model: ask(server, model)["value"] for model in world.models}
        fetched: list[tuple[bytes, Any]] = []
        index = server.client.server.store.index
        chunks_of = index.chunks_of

        def counted(txn: Any, place: bytes, reach: Any, keys: Any, t: int) -> Any:
            fetched.extend((place, tuple(key)) for key in keys)
            return chunks_of(txn, place, reach, keys, t)

        monkeypatch.setattr(index, "chunks_of", counted)

        async def together() -> list[Any]:
            served = server.client.server.portfolio.models
            answering = server.client.server._answering
            fields, _ = served["plain"].reader.read(b'{"request": ' + _JSON + b"}")
            return list(
                await asyncio.gather(*(answering.ask(served[m], fields[0], None) for m in world.models))
            )

        given = server.run(together())
        # `second` has other features over the same rows
        assert [g.value for g in given] == [alone[model] for model in world.models]
        assert len(fetched) == len(set(fetched)) == 2
        with server.client.server.store.snapshot() as snapshot:
            assert isinstance(snapshot, Snapshot)


_JSON = b'{"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}'


def test_a_budget_is_not_for_replays(world: SmallWorld) -> None:
    with driven(world.config(memory=1, replay=True), cutover=UNTIL) as server:
        assert all(served.loaded for served in server.client.server.portfolio.models.values())
