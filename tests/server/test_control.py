"""Models are added, replaced and removed while the server answers: everything of one switches together, in every worker, and stays after a restart."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from driven_server import Driven, driven
from small_world import INSTANT, UNTIL, WORLD, SmallWorld, free_port, make

from sameworld.server.client import Client
from sameworld.server.config import ServerConfig
from sameworld.server.memory import allocated_bytes
from sameworld.server.replay import wait_until_ready
from sameworld.stores.prediction_log import predictions
from sameworld.training.fit import train

# What a later world file declares: more windows, keys and inputs of a source that is served, and a source that is not.
LATER = """
returns = sw.Source("returns", "data/returns.parquet", event_time="returned_at", available_at=sw.delay("1m"))
later = sw.Model(
    "later", moments=asks, features=features | {
        "pair": orders.by("user", "shop").sum("amount", over="4d"), "spent_long": orders.by("user").sum("amount", over="9d"),
        "most": orders.by("user").max("amount", over="3d"), "returns": returns.by("user").count(over="5d"),
    }, label=paid, estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1), fallbacks=fallbacks, service=service,
)
"""
# Its process imports this, and waits there for as long as a file is beside it.
SLEEPY = """
import time
from pathlib import Path

while Path(__file__).with_name("hold").exists():
    time.sleep(0.05)


class Sleepy:
    def get_params(self, deep=False):
        return {}

    def fit(self, rows, label):
        self.mean = float(label.mean())
        return self

    def predict(self, rows):
        return rows[:, 0] * 0 + self.mean
"""
SLEEPING = """
from sleepy import Sleepy

sleeping = sw.Model(
    "sleeping", moments=asks, features={"basket": sw.field("basket")}, label=paid, estimator=Sleepy(), calibration=None,
    fallbacks=fallbacks, service=service,
)
"""
REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A world with an old bundle of `plain` and a newer one with another feature, and a model that reads more."""
    world = make(tmp_path_factory.mktemp("control") / "world", WORLD)
    (world.folder / "old").write_text(world.registry.newest("plain") or "")
    orders = world.table("orders")
    returns = orders.select(["user"]).append_column("returned_at", orders["ordered_at"].cast(INSTANT))
    world.write("returns", returns)
    world.file.write_text(
        WORLD.replace('"basket": sw', '"shop_orders": orders.by("shop").count(over="2d"), "basket": sw')
        + LATER
        + SLEEPING
    )
    (world.folder / "sleepy.py").write_text(SLEEPY)
    for model in world.load().models.values():
        train(model, registry=world.registry, until=UNTIL, folder=world.folder)
    return world


@pytest.fixture
def world(two_versions: SmallWorld, tmp_path: Path) -> SmallWorld:
    return two_versions.copy(tmp_path / "world")


def old_of(world: SmallWorld) -> str:
    return (world.folder / "old").read_text()


def new_of(world: SmallWorld, model: str = "plain") -> str:
    return world.registry.newest(model) or ""


def config_of(world: SmallWorld, **options: Any) -> ServerConfig:
    return world.config(models={"plain": old_of(world)}, **options)


@pytest.fixture
def server(world: SmallWorld) -> Iterator[Driven]:
    with driven(config_of(world), cutover=UNTIL) as running:
        yield running


def ask(server: Driven, model: str = "plain") -> dict[str, Any]:
    status, answer = server.predict({"request": REQUEST}, model=model)
    assert status == 200, answer
    return answer["predictions"][0]


def serve(server: Driven, model: str, version: str | None = None) -> dict[str, Any]:
    status, answer = server.send("POST", f"/control/models/{model}", {"version": version} if version else {})
    assert status == 200, answer
    return answer


def test_a_version_is_replaced_and_taken_back(world: SmallWorld, server: Driven) -> None:
    before = ask(server)
    assert before["version"] == old_of(world)
    told = serve(server, "plain", new_of(world))
    assert told == {
        "model": "plain",
        "version": new_of(world),
        "replaced": old_of(world),
        "generation": 1,
        "workers": {"serving": 1, "of": 1},
    }
    after = ask(server)
    assert (after["version"], after["tier"]) == (new_of(world), "model")
    serve(server, "plain", old_of(world))
    again = ask(server)
    assert {n: again[n] for n in ("value", "tier", "version")} == {
        n: before[n] for n in ("value", "tier", "version")
    }


def test_the_version_is_the_newest_where_none_is_given(world: SmallWorld, server: Driven) -> None:
    assert serve(server, "plain")["version"] == new_of(world)
    assert server.send("GET", "/control/models")[1]["models"] == [
        {"model": "plain", "version": new_of(world), "loaded": True, "execution": "compiled"}
    ]


def test_what_was_served_last_is_served_after_a_restart(world: SmallWorld) -> None:
    with driven(config_of(world), cutover=UNTIL) as server:
        serve(server, "later")
        serve(server, "plain", new_of(world))
    with driven(config_of(world)) as server:
        assert {ask(server, m)["version"] for m in ("plain", "later")} == {
            new_of(world),
            new_of(world, "later"),
        }
        assert server.send("DELETE", "/control/models/plain")[0] == 200
    with driven(config_of(world)) as server:
        assert [m["model"] for m in server.send("GET", "/control/models")[1]["models"]] == ["later"]


def test_a_removed_model_is_not_found_and_leaves_no_rows_behind(world: SmallWorld, server: Driven) -> None:
    store = server.client.server.store

    def kept() -> set[str]:
        with store.index.read() as txn:
            return {f"{g.source} {g.keys} {g.inputs}" for g in store.kept(txn).groupings.values()}

    before = kept()
    serve(server, "later")
    assert len(kept()) > len(before)
    assert server.send("DELETE", "/control/models/later")[1]["removed"] == new_of(world, "later")
    assert server.predict({"request": REQUEST}, model="later")[0] == 404
    assert ask(server)["tier"] == "model"
    assert {group.content for group in store.groupings} == {
        g.content for g in store.groupings if g.keys != ("user", "shop")
    }
    assert not any("'user', 'shop'" in grouping for grouping in kept())


@pytest.mark.parametrize(
    ("model", "body", "status", "what"),
    [
        ("plain", {"version": "0" * 32}, 503, f"There is no bundle {'0' * 32}."),
        ("unheard", {}, 404, "No bundle of unheard is in the registry."),
        ("plain", {"address": "x"}, 400, "The body does not say which version to serve."),
        ("plain", b"{", 400, "The body does not say which version to serve."),
    ],
)
def test_what_cannot_be_served_changes_nothing(
    world: SmallWorld, server: Driven, model: str, body: Any, status: int, what: str
) -> None:
    answer = server.send("POST", f"/control/models/{model}", body)
    assert (answer[0], answer[1]["what"]) == (status, what)
    assert answer[1]["do"]
    assert ask(server)["version"] == old_of(world)
    assert server.send("GET", "/control/models")[1]["generation"] == 0


def test_a_damaged_version_is_not_switched_to(world: SmallWorld, server: Driven) -> None:
    trees = world.folder / "registry" / "bundles" / new_of(world) / "model.txt"
    trees.write_bytes(trees.read_bytes()[:-1])
    status, answer = server.send("POST", "/control/models/plain", {"version": new_of(world)})
    assert (status, answer["error"]) == (503, "BundleError")
    assert (ask(server)["version"], ask(server)["tier"]) == (old_of(world), "model")


def test_a_model_that_knows_another_source_of_a_name_is_refused(world: SmallWorld, server: Driven) -> None:
    world.edit('available_at="seen_at"', 'available_at=sw.delay("1h")')
    world.train()
    status, answer = server.send("POST", "/control/models/later", {})
    assert (status, answer["what"]) == (
        409,
        "Model 'later' knows another source 'orders' than model 'plain'.",
    )
    # alone it may be replaced by one that does
    assert serve(server, "plain")["version"] == new_of(world)
    assert ask(server)["tier"] == "model"


def test_control_routes_need_the_token(world: SmallWorld) -> None:
    with driven(config_of(world, token="secret"), cutover=UNTIL) as server:
        for method, path in (("GET", "/control/status"), ("GET", "/control/models"), ("POST", "/control/models/plain"), ("DELETE", "/control/models/plain")):  # fmt: skip
            assert server.send(method, path)[0] == 403
            assert server.send(method, path, headers={"authorization": "Bearer wrong"})[0] == 403
        assert server.send("GET", "/control/status", headers={"authorization": "Bearer secret"})[0] == 200
        assert ask(server)["version"] == old_of(world)


def test_status_says_how_every_model_is_doing(world: SmallWorld, server: Driven) -> None:
    serve(server, "later")
    for _ in range(5):
        ask(server)
    order = {"order_id": "n", "revision": 1, "user": "u1", "shop": "s1", "amount": 1.0, "ordered_at": "2024-03-16T10:00:00Z", "seen_at": "2024-03-16T10:00:00Z"}  # fmt: skip
    assert server.events({"events": [order]})[0] == 200
    status, said = server.send("GET", "/control/status")
    assert status == 200
    later, plain = said["models"]
    assert (later["model"], plain["model"], plain["version"]) == ("later", "plain", old_of(world))
    assert (plain["tier"], plain["fallbacks"], plain["lane"], plain["loaded"]) == (
        "model",
        0.0,
        "native",
        True,
    )
    assert plain["requests_per_second"] > 0
    assert 0 < plain["p50_ms"] <= plain["p99_ms"]
    assert later["since"] > 0
    assert set(later["sources"]) == {"orders", "returns"}
    assert plain["sources"]["orders"] < 60 < later["sources"]["returns"]
    assert later["requests_per_second"] == 0
    assert later["p99_ms"] is None
    assert said["workers"] == [{"pid": os.getpid(), "generation": 1, "trouble": ""}]
    assert said["memory"]["models"] == sum(model["bytes"] for model in said["models"]) > 0


SWAPS = int(os.environ.get("SWAPS", "30"))


def test_swapping_under_load_gives_no_error_and_leaks_nothing(world: SmallWorld, server: Driven) -> None:
    versions = [old_of(world), new_of(world)]
    taken: list[int] = []

    async def story() -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        over = False

        async def asking() -> None:
            while not over:
                response = await server.client.request("POST", "/v1/models/plain/predict", msgspec.json.encode({"request": REQUEST}))  # fmt: skip
                assert response.status == 200
                answers.extend(msgspec.json.decode(response.body)["predictions"])
                await asyncio.sleep(0.005)  # as callers have it: the loop has turns of its own

        load = [asyncio.create_task(asking()) for _ in range(8)]
        for number in range(SWAPS):
            body = msgspec.json.encode({"version": versions[(number + 1) % 2]})
            response = await server.client.request("POST", "/control/models/plain", body)
            assert response.status == 200, response.body
            taken.append(allocated_bytes())
        over = True
        await asyncio.gather(*load)
        return answers

    answers = server.run(story())
    assert {(a["tier"], a["reason"], a["logged"]) for a in answers} == {("model", "", True)}
    assert {a["version"] for a in answers} == set(versions)
    # a version always gives its own value: nothing of one is ever used with the other
    assert len({(a["version"], a["value"]) for a in answers}) == 2
    half = len(taken) // 2
    assert min(taken[half:]) - min(taken[:half]) < 2_000_000, (taken[half - 1], taken[-1])


def test_a_model_that_hangs_while_it_is_loaded_keeps_no_other_from_being_changed(
    world: SmallWorld, server: Driven
) -> None:
    hold = world.folder / "hold"
    hold.touch()

    async def post(model: str) -> int:
        return (await server.client.request("POST", f"/control/models/{model}", b"{}")).status

    async def story() -> None:
        hanging = asyncio.create_task(post("sleeping"))
        await asyncio.sleep(0.3)
        # more of them than there are threads to wait in
        async with asyncio.timeout(40):
            assert await asyncio.gather(*(post("plain") for _ in range(40))) == [200] * 40
            assert await post("later") == 200
            assert (await server.client.request("DELETE", "/control/models/later")).status == 200
            assert (await server.client.request("GET", "/control/status")).status == 200
        assert not hanging.done()
        hold.unlink()
        assert await hanging == 200

    server.run(story())
    assert ask(server)["version"] == new_of(world)
    assert ask(server, "sleeping")["tier"] == "model"


def test_a_model_whose_rows_are_still_being_filled_keeps_no_other_from_being_changed(
    world: SmallWorld, server: Driven
) -> None:
    async def post(model: str) -> int:
        return (await server.client.request("POST", f"/control/models/{model}", b"{}")).status

    async def story() -> None:
        with (world.state / "filling.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            filling = [asyncio.create_task(post("later")) for _ in range(10)]
            await asyncio.sleep(0.3)
            async with asyncio.timeout(40):
                for _ in range(3):  # it reads no rows
                    assert await post("sleeping") == 200
                    deleted = await server.client.request("DELETE", "/control/models/sleeping")
                    assert deleted.status == 200
                assert (await server.client.request("GET", "/control/status")).status == 200
            assert not any(task.done() for task in filling)
        assert await asyncio.gather(*filling) == [200] * 10

    server.run(story())
    assert ask(server, "later")["tier"] == "model"


# Real processes.


@dataclass(frozen=True)
class Running:
    world: SmallWorld
    process: subprocess.Popen[bytes]
    client: Client

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.client.request(method, path, msgspec.json.encode(body or {}))
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body)

    async def ask(self, model: str) -> dict[str, Any]:
        answer = await self.client.request("POST", f"/v1/models/{model}/predict", msgspec.json.encode({"request": REQUEST}))  # fmt: skip
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body)["predictions"][0]


@asynccontextmanager
async def running(world: SmallWorld, *models: str) -> AsyncIterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "sameworld.cli.main", "serve", *models, "--world", str(world.file)]
    command += [
        "--registry",
        str(world.folder / "registry"),
        "--state",
        str(world.state),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [*command, "--durability", "process"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    client = Client("127.0.0.1", port, patience_seconds=5.0)
    try:
        await wait_until_ready(client, process)
        yield Running(world, process, client)
    finally:
        await client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_a_model_that_reads_more_is_added_while_events_and_requests_come_and_is_proved(
    world: SmallWorld,
) -> None:
    sent: list[str] = []

    async def events(server: Running, over: asyncio.Event) -> None:
        number = 0
        while not over.is_set():
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            order = {"order_id": f"n{number // 2}", "revision": number % 2 + 1, "user": f"u{number % 6}", "shop": f"s{number % 3}", "amount": number / 7, "ordered_at": now, "seen_at": now}  # fmt: skip
            answer = await server.client.request(
                "POST",
                "/v1/sources/orders/events",
                msgspec.json.encode({"events": [order]}),
                key=f"order {number}",
            )
            assert answer.status == 200, answer.body
            sent.append(f"order {number}")
            number += 1

    async def requests(server: Running, over: asyncio.Event) -> None:
        while not over.is_set():
            assert (await server.ask("plain"))["tier"] == "model"

    async def story() -> None:
        async with running(world, f"plain={old_of(world)}") as server:
            over = asyncio.Event()
            load = [asyncio.create_task(events(server, over)), asyncio.create_task(requests(server, over))]
            await asyncio.sleep(0.5)
            before = len(sent)
            told = await server.control("POST", "/control/models/later")
            assert told["workers"] == {"serving": 1, "of": 1}
            meanwhile = len(sent) - before
            for _ in range(30):
                answer = await server.ask("later")
                assert (answer["tier"], answer["version"]) == ("model", new_of(world, "later"))
                await asyncio.sleep(0.01)
            over.set()
            await asyncio.gather(*load)
            assert meanwhile > 20, meanwhile

    asyncio.run(story())
    proof = world.prove()
    assert proof.different == 0, [difference.text() for difference in proof.differences[:5]]
    asked = [p for _, p in predictions(world.state) if p is not None and p.model == "later"]
    assert len(asked) == 30
    assert all(p.features is not None for p in asked)


@pytest.mark.slow
def test_a_change_reaches_every_worker_of_a_state_folder(world: SmallWorld) -> None:
    async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await is_so():
                await asyncio.sleep(0.05)

    async def story() -> None:
        async with running(world, f"plain={old_of(world)}", "--workers", "2") as one, running(world) as other:
            told = await one.control("POST", "/control/models/later")
            assert told["workers"] == {"serving": 3, "of": 3}
            assert (await other.ask("later"))["tier"] == "model"
            told = await other.control("POST", "/control/models/plain", {"version": new_of(world)})
            assert (told["generation"], told["workers"]) == (2, {"serving": 3, "of": 3})
            for _ in range(4):
                assert (await one.ask("plain"))["version"] == new_of(world)
            # and at the same time from both
            both = await asyncio.gather(
                one.control("DELETE", "/control/models/later"),
                other.control("POST", "/control/models/plain", {"version": old_of(world)}),
            )
            assert {b["generation"] for b in both} == {3, 4}
            for server in (one, other):
                assert (await server.ask("plain"))["version"] == old_of(world)
            status = await one.control("GET", "/control/status")
            assert len(status["workers"]) == 3
            assert {worker["generation"] for worker in status["workers"]} == {4}
            # when one is killed, the other does not wait for it
            os.killpg(other.process.pid, signal.SIGKILL)

            async def alone() -> bool:
                told = await one.control("POST", "/control/models/plain", {"version": new_of(world)})
                return told["workers"] == {"serving": 2, "of": 2}

            await eventually(alone)
        recorded = json.loads((world.state / "served.json").read_text())
        assert recorded["models"] == {"plain": new_of(world)}

    asyncio.run(story())
