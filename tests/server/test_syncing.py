"""With `disk`, an answer that says it is logged has been synced; it waits for that no longer than its deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from driven_server import Driven, driven
from small_world import UNTIL, SmallWorld

from sameworld.server import syncing
from sameworld.stores.prediction_log import predictions
from sameworld.stores.record_log import synced

REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


class Syncs:
    """Counts syncs, and holds them up until they may go on."""

    def __init__(self) -> None:
        self.count = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, descriptor: int) -> bool:
        self.count += 1
        self.may_go_on.wait(60)
        return synced(descriptor)


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    found = Syncs()
    monkeypatch.setattr(syncing, "synced", found)
    return found


async def together(server: Driven, count: int, **headers: str) -> list[Any]:
    body = msgspec.json.encode({"request": REQUEST})
    path = "/v1/models/plain/predict"
    asked = [server.client.request("POST", path, body, headers=headers) for _ in range(count)]
    responses = await asyncio.gather(*asked)
    assert {response.status for response in responses} == {200}
    return [msgspec.json.decode(response.body)["predictions"][0] for response in responses]


def test_all_that_wait_share_a_sync(trained: SmallWorld, syncs: Syncs) -> None:
    with driven(trained.config(prediction_durability="disk"), cutover=UNTIL) as server:
        answers = server.run(together(server, 200))

    assert {(answer["tier"], answer["logged"]) for answer in answers} == {("model", True)}
    assert 1 <= syncs.count < 50
    assert len([p for _, p in predictions(trained.state) if p is not None]) == 200


def test_an_answer_waits_for_the_disk_until_its_deadline(trained: SmallWorld, syncs: Syncs) -> None:
    with driven(trained.config(prediction_durability="disk"), cutover=UNTIL) as server:
        syncs.may_go_on.clear()
        late = server.run(together(server, 3, **{"x-deadline-ms": "200"}))
        syncs.may_go_on.set()
        after = server.run(together(server, 1))
        metrics = server.send("GET", "/metrics")[1]

    assert {(answer["tier"], answer["logged"]) for answer in late} == {("model", False)}
    assert after[0]["logged"]
    assert 'sameworld_unlogged_predictions_total{model="plain"} 3.0' in metrics
    # They were written, and nobody was promised that they are there.
    assert len([p for _, p in predictions(trained.state) if p is not None]) == 4


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_rows_that_cannot_be_written_hold_up_no_answer(
    trained: SmallWorld, syncs: Syncs, durability: str
) -> None:
    with driven(trained.config(prediction_durability=durability), cutover=UNTIL) as server:
        broken: Callable[..., str] = lambda *_: "no"  # noqa: E731 # it stands for a log
        server.client.server.log.write = broken
        (answer,) = server.run(together(server, 1))

    assert (answer["tier"], answer["logged"]) == ("model", False)
    assert syncs.count == 0
