"""A server that publishes to Redis and reads there gives the vectors that training gives, and answers whatever becomes of Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest
from driven_server import Driven, driven
from redis_server import RedisServer
from small_world import UNTIL, SmallWorld
from test_store_trouble import EVENT, REQUEST

from sameworld.errors import RequestError
from sameworld.server.config import ServerConfig


def ask(server: Driven) -> dict[str, Any]:
    status, answer = server.predict({"request": REQUEST})
    assert status == 200, answer
    return answer["predictions"][0]


def wait_for_the_model(server: Driven) -> None:
    until = time.monotonic() + 30
    while ask(server)["tier"] != "model" and time.monotonic() < until:
        time.sleep(0.05)
    assert ask(server)["tier"] == "model"


def test_a_replay_through_redis_is_proved(trained: SmallWorld, redis: RedisServer) -> None:
    redis.empty()
    played = trained.play(store=redis.address)
    assert set(played.statuses) == {200}
    by_model = [prediction for prediction in trained.logged() if prediction.tier == "model"]
    assert len(by_model) > 100
    proof = trained.prove()
    assert proof.different == 0
    assert proof.values > 100


def test_redis_killed_and_emptied_costs_fallbacks_and_heals(trained: SmallWorld, redis: RedisServer) -> None:
    redis.empty()
    with driven(trained.config(store=redis.address), cutover=UNTIL) as server:
        wait_for_the_model(server)
        redis.kill()
        try:
            given = ask(server)
            assert given["tier"] != "model"
            assert given["reason"].startswith("store: StoreError: Redis does not answer")
            assert given["logged"]
            assert server.events({"events": [EVENT]}, key="k") == (200, {"accepted": 1})
        finally:
            redis.start()
        wait_for_the_model(server)
        redis.empty()
        wait_for_the_model(server)
        assert server.client.server.store.sequence() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"follow": True}, "There is nobody to follow."),
        (
            {"follow": True, "store": "redis://nowhere", "replay": True},
            "A replay cannot follow another host.",
        ),
    ],
)
def test_a_server_that_follows_nobody_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        ServerConfig(registry="", state="", models={}, **options).check()
    assert refused.value.what == said
