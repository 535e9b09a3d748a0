"""Many models in one server: loaded when asked, within a budget, while their fallbacks answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driven_server import Driven, driven
from served_world import gone
from small_world import UNTIL, WORLD, SmallWorld, make

from sameworld.cli.serving import status_cells
from sameworld.errors import BundleError
from sameworld.server.app import Server
from sameworld.server.run import fill
from sameworld.stores.snapshot import Snapshot

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


def test_a_model_whose_bundle_is_damaged_at_the_start_answers_by_its_fallbacks_until_it_is_mended(
    world: SmallWorld,
) -> None:
    address = world.registry.newest("second") or ""
    trees = world.folder / "registry" / "bundles" / address / "model.txt"
    sound = trees.read_bytes()
    trees.write_bytes(sound[:-1])
    fill(world.config(), cutover=UNTIL)
    with driven(world.config()) as server:
        given = ask(server, "second")
        why = f"model: Bundle {address} is damaged: its files do not have that hash."
        assert (given["tier"], given["reason"], given["logged"]) == ("fallback_1_rate", why, True)
        assert ask(server, "plain")["tier"] == "model"
        trees.write_bytes(sound)
        assert set(settled(server, "second")) <= {why, "loading"}


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "unreadable"])
def test_a_model_that_cannot_be_read_at_the_start_says_so_and_keeps_no_other_from_being_served(
    world: SmallWorld, capsys: pytest.CaptureFixture[str], missing: bool
) -> None:
    address = world.registry.newest("second") or ""
    bundle = world.folder / "registry" / "bundles" / address
    description = bundle / "bundle.json"
    sound = description.read_bytes()
    if missing:
        description.unlink()
        what = f"There is no bundle {address}."
    else:
        description.write_bytes(sound[:-100])
        what = f"Bundle {address} is damaged: its files do not have that hash."
    said: list[str] = []
    fill(world.config(), cutover=UNTIL, say=said.append)
    assert f"model second cannot be served: {what}" in said

    with driven(world.config()) as server:
        status, answer = server.predict({"request": REQUEST}, model="second")
        assert (status, answer["error"], answer["what"]) == (503, "BundleError", what)
        assert answer["do"]
        assert ask(server, "plain")["tier"] == ask(server, "third")["tier"] == "model"
        assert server.send("GET", "/readyz") == (200, {"ready": True, "broken": {"second": what}})
        told = {model["model"]: model for model in server.send("GET", "/control/status")[1]["models"]}
        assert list(told) == ["plain", "second", "third"]
        assert (told["second"]["tier"], told["second"]["reason"]) == ("none", what)
        assert status_cells(told["second"])[2] == f"none ({what})"
        incidents = capsys.readouterr().err
        assert f'"incident":"model broken","of":"second","version":"{address}","reason":"{what}"' in incidents
        # A change of another model neither mends nor forgets it.
        assert server.send("DELETE", "/control/models/third")[0] == 200
        assert server.predict({"request": REQUEST}, model="second")[0] == 503
        assert server.send("POST", "/control/models/second", {})[0] == 503

        description.write_bytes(sound)
        if missing:  # it is told
            assert server.send("POST", "/control/models/second", {})[0] == 200
        else:  # it finds out
            until = time.monotonic() + 30
            while server.predict({"request": REQUEST}, model="second")[0] == 503 and time.monotonic() < until:
                server.run(asyncio.sleep(0.05))
        assert ask(server, "second")["tier"] == "model"
        assert server.send("GET", "/readyz") == (200, {"ready": True})


def test_a_server_that_can_serve_nothing_of_what_it_was_told_to_does_not_start(world: SmallWorld) -> None:
    bundles = world.folder / "registry" / "bundles"
    bundles.rename(bundles.with_name("away"))
    first = world.registry.newest("plain")
    for start in (fill, Server):
        with pytest.raises(BundleError) as refused:
            start(world.config())
        assert str(refused.value) == (
            "Nothing can be served: no bundle of plain, second, third can be read.\n"
            f"  in: {world.folder / 'registry'}\n"
            f"  found: There is no bundle {first}.\n"
            "  do: restore the registry, or train again: sameworld train."
        )


def test_a_guarded_model_counts_in_the_budget_and_its_process_comes_back_on_demand(
    played: SmallWorld,
) -> None:
    with driven(played.config(memory=1, state=str(played.folder / "live")), cutover=UNTIL) as server:
        portfolio = server.client.server.portfolio

        def loaded() -> list[str]:
            listed = server.send("GET", "/control/models")[1]["models"]
            return [model["model"] for model in listed if model["loaded"]]

        assert loaded() == ["plain"]
        assert ask(server, "plain")["tier"] == "model"
        crowded = ask(server, "derived")
        assert (crowded["tier"], crowded["reason"]) == (
            "fallback_1_rate",
            "model: memory: other models are being asked",
        )
        server.run(asyncio.sleep(1.1))
        reasons = settled(server, "derived")
        assert set(reasons) == {"model: its process is starting"}
        until = time.monotonic() + 30
        while portfolio.bytes_of("derived") < 20_000_000 and time.monotonic() < until:
            server.run(asyncio.sleep(0.05))
        assert loaded() == ["derived"]
        assert portfolio.bytes == portfolio.bytes_of("derived") > 20_000_000
        pid = portfolio.models["derived"].guarded[0].pid

        server.run(asyncio.sleep(1.1))
        settled(server, "plain")
        until = time.monotonic() + 30
        while (loaded() != ["plain"] or not gone(pid)) and time.monotonic() < until:
            server.run(asyncio.sleep(0.05))
        assert loaded() == ["plain"]
        assert gone(pid)
        assert portfolio.bytes == portfolio.bytes_of("plain") < 1_000_000


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
