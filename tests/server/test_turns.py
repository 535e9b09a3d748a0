"""One deadline is one budget, what cannot be in time is shed to a fallback, and no model takes another's time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from driven_server import Driven, driven
from numpy.typing import NDArray
from small_world import UNTIL, WORLD, SmallWorld, make

from sameworld.server import lanes
from sameworld.server.lanes import GuardedLane, NativeLane
from sameworld.stores.prediction_log import predictions

REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}
TWO = (
    WORLD.replace('deadline="20s"', 'deadline="600ms"')
    + """
other = sw.Model(
    "other", moments=asks, features={"basket": sw.field("basket"), "orders": orders.by("user").count(over="2d")}, label=paid,
    estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1), fallbacks=fallbacks, service=service,
)
"""
)


class Slow:
    """A bundle whose every row takes a while."""

    def __init__(self, bundle: Any, seconds: float) -> None:
        self._bundle = bundle
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        time.sleep(self._seconds * len(rows))
        return self._bundle.scores_of(rows)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return make(tmp_path_factory.mktemp("two") / "world", TWO)


@pytest.fixture
def server(two: SmallWorld) -> Iterator[Driven]:
    with driven(two.config(), cutover=UNTIL) as running:
        yield running


async def asked(server: Driven, model: str, count: int, **fields: Any) -> Counter[tuple[str, str]]:
    """Ask so many times at once; give how often each (tier, reason) came back."""
    body = msgspec.json.encode({"requests": [REQUEST | fields] * count})
    response = await server.client.request("POST", f"/v1/models/{model}/predict", body)
    assert response.status == 200
    given = msgspec.json.decode(response.body)["predictions"]
    assert all(one["logged"] for one in given)
    return Counter((one["tier"], one["reason"]) for one in given)


def slowed(server: Driven, seconds: float) -> None:
    served = server.client.server.portfolio.models["plain"]
    served.bundle = Slow(served.bundle, seconds)
    for count in (1, 4, 8):
        server.run(asked(server, "plain", count))


def test_what_cannot_be_in_time_is_shed_before_it_is_tried(server: Driven, two: SmallWorld) -> None:
    slowed(server, 0.006)
    before = len(list(predictions(two.state)))
    started = time.perf_counter()
    found = server.run(asked(server, "plain", 1000))
    elapsed = time.perf_counter() - started
    assert set(found) <= {("model", ""), ("fallback_1_rate", "overload"), ("fallback_1_rate", "deadline")}
    assert 0 < found["model", ""] <= 100  # as many as 600 ms have room for
    assert found["fallback_1_rate", "overload"] > 500
    assert elapsed < 3.0  # and not the 6 s that they would have taken
    assert len(list(predictions(two.state))) == before + 1000


def test_a_storm_on_one_model_leaves_the_others_to_the_model(server: Driven) -> None:
    slowed(server, 0.006)

    async def story() -> list[Counter[tuple[str, str]]]:
        storm = asyncio.create_task(asked(server, "plain", 1000))
        calm: list[Counter[tuple[str, str]]] = []
        while not storm.done():
            calm.append(await asked(server, "other", 1))
            await asyncio.sleep(0.002)
        return calm

    calm = server.run(story())
    assert len(calm) >= 2
    assert sum(calm, Counter()) == {("model", ""): len(calm)}


def test_a_callers_own_deadline_holds_where_it_is_sooner(server: Driven) -> None:
    slowed(server, 0.030)

    def within(milliseconds: str) -> tuple[str, str]:
        status, body = server.send(
            "POST", "/v1/models/plain/predict", {"request": REQUEST}, headers={"x-deadline-ms": milliseconds}
        )
        assert status == 200
        return body["predictions"][0]["tier"], body["predictions"][0]["reason"]

    assert within("550") == ("model", "")
    assert within("10") == ("fallback_1_rate", "overload")
    assert within("1e9") == ("model", "")
    # The model's own holds where that is sooner.
    slowed(server, 0.7)
    assert within("1e9")[0] == "fallback_1_rate"


@pytest.mark.parametrize("given", ["", "soon", "0", "-5", "nan", "12ms"])
def test_a_deadline_that_is_no_number_is_refused(server: Driven, given: str) -> None:
    assert server.send(
        "POST", "/v1/models/plain/predict", {"request": REQUEST}, headers={"x-deadline-ms": given}
    ) == (
        400,
        {
            "error": "RequestError",
            "what": "The header X-Deadline-Ms is not a number of milliseconds.",
            "expected": "a number greater than 0",
            "found": repr(given),
            "do": "correct the header, or leave it out: the model's own deadline holds then.",
        },
    )


def test_an_answer_that_nobody_makes_is_a_fallback(server: Driven) -> None:
    server.client.server._answering._read = lambda *_: 1 / 0
    status, body = server.predict({"requests": [REQUEST] * 3})
    assert status == 200
    assert {(one["tier"], one["reason"]) for one in body["predictions"]} == {
        ("fallback_1_rate", "server: ZeroDivisionError: division by zero")
    }


def test_a_native_model_that_takes_too_long_is_guarded(
    two: SmallWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with driven(two.config(), cutover=UNTIL) as server:
        assert isinstance(server.client.server.portfolio.models["plain"].lane, NativeLane)
    monkeypatch.setattr(lanes, "LONGEST_NATIVE_SECONDS", 0.0)
    with driven(two.config(), cutover=UNTIL) as server:
        assert isinstance(server.client.server.portfolio.models["plain"].lane, GuardedLane)
        assert server.run(asked(server, "plain", 3)) == {("model", ""): 3}
    assert "model plain is native but takes" in caplog.text


def test_a_guarded_model_takes_together_what_waits(two: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its process is busy, requests wait for it in one line, and go to it in one batch."""
    monkeypatch.setattr(lanes, "LONGEST_NATIVE_SECONDS", 0.0)
    with driven(two.config(), cutover=UNTIL) as server:
        lane = server.client.server.portfolio.models["plain"].lane
        assert isinstance(lane, GuardedLane)
        sizes: list[int] = []
        score = lane.score

        async def counted(aggregates: Any, fields: Any, *, wait_seconds: float) -> Any:
            sizes.append(len(next(iter(fields.values()))))
            return await score(aggregates, fields, wait_seconds=wait_seconds)

        lane.score = counted

        async def story() -> None:
            answers = []
            for number in range(100):  # all of them different: equal rows would be scored once
                answers.append(asyncio.create_task(asked(server, "plain", 1, basket=float(number))))
                await asyncio.sleep(0)
            assert sum(await asyncio.gather(*answers), Counter()) == {("model", ""): 100}

        server.run(story())
        assert sum(sizes) == 100
        assert len(sizes) < 50
