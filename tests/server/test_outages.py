"""A source that goes stale or breaks is answered by the tier that knows that world, as the log says and `prove` proves; it comes back by itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driven_server import Driven, driven
from small_world import HOUR, SECOND, UNTIL, WORLD, SmallWorld, make

MODELS = (
    WORLD[: WORLD.index("paid = ")]
    + """
visits = sw.Source("visits", "data/orders.parquet", event_time="ordered_at", available_at="seen_at", fresh_within="2h")
both = features | {"visits": visits.by("shop").count(over=["1h", "1d"]), "seen": visits.by("user").sum("amount", over="1d")}
paid = sw.Label(outcomes.by("ask_id").last("paid") > 0.5, within="1h", otherwise=False)
trees = LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1)
given = {"moments": asks, "label": paid, "service": sw.Service(deadline="20s")}


def generous(basket, orders):
    return np.where(basket > 100, np.nan, np.minimum(basket / 100 + 0 * orders, 1.0))


cautious = sw.Model(
    "cautious", features=both, estimator=trees, **given,
    fallbacks=[sw.Without(visits), sw.Without([visits, orders]), sw.Rate(by="shop"), sw.Constant(0.5)],
)
nulled = sw.Model(
    "nulled",
    features=features | {
        "visits": visits.by("shop").count(over=["1h", "1d"]).when_stale("null"),
        "seen": visits.by("user").sum("amount", over="1d").when_stale("null", after="3h"),
        "per_visit": sw.derive(per_order, "seen", "visits_1d"),
    },
    estimator=trees, fallbacks=[sw.Without(visits), sw.LastKnown("1h", by="user"), sw.Rate(by="shop"), sw.Constant(0.5)],
    **given | {"service": sw.Service(deadline="2s")},
)
ruled = sw.Model(
    "ruled", features=both, estimator=trees, **given,
    fallbacks=[
        sw.Smaller(features=["basket", "hour"], estimator=make_pipeline(SimpleImputer(), LogisticRegression())),
        sw.Rule(generous, ["basket", "orders"]), sw.LastKnown("1h"), sw.Constant(0.5),
    ],
)
"""
).replace(
    "import sameworld as sw\n",
    "import numpy as np\nfrom sklearn.impute import SimpleImputer\nfrom sklearn.linear_model import LogisticRegression\n"
    "from sklearn.pipeline import make_pipeline\n\nimport sameworld as sw\n",
    1,
)
REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return make(tmp_path_factory.mktemp("outages") / "world", MODELS)


@pytest.fixture
def world(made: SmallWorld, tmp_path: Path) -> SmallWorld:
    return made.copy(tmp_path / "world")


@contextmanager
def serving(world: SmallWorld, model: str) -> Iterator[Driven]:
    with driven(
        world.config(replay=True, models={model: world.registry.newest(model) or ""}), cutover=UNTIL
    ) as server:
        yield server


@pytest.fixture
def server(world: SmallWorld, request: pytest.FixtureRequest) -> Iterator[Driven]:
    with serving(world, request.param) as running:
        yield running


def instant(t: int) -> str:
    return f"{np.datetime64(t, 'us')}Z"


def ask(server: Driven, model: str, t: int, **request: Any) -> dict[str, Any]:
    status, body = server.predict({"request": REQUEST | request, "at": instant(t)}, model)
    assert status == 200, body
    return body["predictions"][0]


def bought(server: Driven, t: int, *sources: str) -> None:
    """Send one event of each source that became readable at `t`."""
    for source in sources:
        event = {
            "order_id": f"{source}{t}", "revision": 1, "user": "u1", "shop": "s1", "amount": 20.0,
            "ordered_at": instant(t - SECOND), "seen_at": instant(t),
        }  # fmt: skip
        status, body = server.events({"events": [event]}, source=source)
        assert status == 200, body


def proved(world: SmallWorld) -> Any:
    proof = world.prove()
    assert [difference.text() for difference in proof.differences] == []
    assert proof.different == 0
    return proof


@pytest.mark.parametrize("server", ["cautious"], indirect=True)
def test_a_stale_source_is_answered_by_the_model_that_does_without_it(
    server: Driven, world: SmallWorld
) -> None:
    for hour in range(5):
        bought(server, UNTIL + hour * HOUR, "orders")
        if hour == 4:
            bought(server, UNTIL + hour * HOUR, "visits")
        ask(server, "cautious", UNTIL + hour * HOUR + 1)
    logged = world.logged()
    age = logged[0].ages["visits"]  # type: ignore[index] # it has ages
    assert age is not None
    assert 0 < age < HOUR  # files have rows up to the cutover
    assert [(p.tier, p.reason) for p in logged] == [
        ("model", ""),
        ("model", ""),
        ("fallback_1_without", "source visits: stale"),
        ("fallback_1_without", "source visits: stale"),
        ("model", ""),
    ]
    assert [p.ages for p in logged] == [
        {"orders": 1, "visits": age + h * HOUR if h < 4 else 1} for h in range(5)
    ]
    # What it does not see is null in its vector, and what it sees is what the model would have seen.
    names = list(world.registry.load(world.registry.newest("cautious") or "").types)
    gone = {"visits_1h", "visits_1d", "seen"}
    for prediction in logged:
        assert prediction.defaults is None
        vector = dict(zip(names, prediction.features or [], strict=True))
        if prediction.tier != "model":
            assert {name for name, value in vector.items() if value is None} == gone
            assert vector["orders"] > 0
    proof = proved(world)
    assert (proof.vectors, proof.values, proof.without_vector) == (5, 5 * 12 - 2 * 3, 0)


@pytest.mark.parametrize("server", ["nulled"], indirect=True)
def test_where_a_feature_says_null_the_model_answers_and_the_log_names_what_was_replaced(
    server: Driven, world: SmallWorld
) -> None:
    for hour in (1, 2, 5):
        assert ask(server, "nulled", UNTIL + hour * HOUR)["tier"] == "model"
    visits = ["visits_1h", "visits_1d"]
    assert [p.defaults for p in world.logged()] == [None, visits, [*visits, "seen"]]
    names = list(world.registry.load(world.registry.newest("nulled") or "", without_code=True).types)
    for prediction in world.logged():
        vector = dict(zip(names, prediction.features or [], strict=True))
        assert (vector["visits_1d"] is None) == (prediction.defaults is not None)
        assert (vector["per_visit"] is None) == (prediction.defaults is not None)
    proof = proved(world)
    assert proof.as_json()["replaced"] == {"visits_1h": 2, "visits_1d": 2, "seen": 1}


@pytest.mark.parametrize("server", ["nulled"], indirect=True)
def test_a_default_that_the_log_does_not_own_up_to_is_found(server: Driven, world: SmallWorld) -> None:
    import msgspec

    ask(server, "nulled", UNTIL + 5 * HOUR)
    world.rewrite_log(lambda p: msgspec.structs.replace(p, defaults=None))
    proof = world.prove()
    assert {d.feature: d.cause for d in proof.differences} == {
        "visits_1h": "default",
        "visits_1d": "default",
        "seen": "default",
        "per_visit": "default",
    }


def spoil(server: Driven, source: str) -> dict[bytes, bytes]:
    """Overwrite every row of a source in the index with bytes that are none; give what was there."""
    store = server.client.server.store
    kept: dict[bytes, bytes] = {}
    with store.index.write() as txn:
        places = store.kept(txn).groupings
        for grouping in store.groupings:
            if grouping.source.name == source:
                for place, chunk in list(store.index.all_chunks(txn, places[grouping.content].prefix)):
                    kept[place] = bytes(chunk)
                    txn.put(place, b"no rows", db=store.index._rows)
    assert kept
    return kept


def restore(server: Driven, kept: dict[bytes, bytes]) -> None:
    index = server.client.server.store.index
    with index.write() as txn:
        for place, chunk in kept.items():
            txn.put(place, chunk, db=index._rows)


@pytest.mark.parametrize("server", ["cautious"], indirect=True)
def test_a_source_that_cannot_be_read_breaks_nothing_else_and_is_probed_back_in(
    server: Driven, world: SmallWorld
) -> None:
    t = UNTIL + HOUR
    assert ask(server, "cautious", t)["tier"] == "model"
    kept = spoil(server, "visits")
    for number in range(5):
        answer = ask(server, "cautious", t + number)
        assert answer["tier"] == "fallback_1_without"
        assert answer["reason"].startswith("source visits: ValueError: ")
    # After three failures it is not even tried, for a while.
    metrics = server.send("GET", "/metrics")[1]
    assert 'sameworld_incidents_total{part="source visits"} 3.0' in metrics
    both = spoil(server, "orders")
    answer = ask(server, "cautious", t + 10)
    assert answer["tier"] == "fallback_2_without"
    assert answer["reason"].startswith("source orders: ValueError: ")
    restore(server, kept | both)
    for number in range(100):
        if ask(server, "cautious", t + 20 + number)["tier"] == "model":
            break
        time.sleep(0.05)
    assert ask(server, "cautious", t + 200)["tier"] == "model"
    assert proved(world).without_vector == 0


class Gone:
    """A store whose index cannot be opened."""

    def __init__(self, store: Any) -> None:
        self.clock = store.clock

    def pass_moment(self, t: int) -> bool:
        raise OSError("the disk is gone")


@pytest.mark.parametrize("server", ["nulled"], indirect=True)
def test_the_last_answer_is_repeated_for_the_same_entity_and_not_for_too_long(
    server: Driven, world: SmallWorld
) -> None:
    t = UNTIL + HOUR
    first = ask(server, "nulled", t)
    assert first["tier"] == "model"
    server.client.server._answering._store = Gone(server.client.server.store)
    repeated = ask(server, "nulled", t + 1000, shop="s2")
    assert (repeated["tier"], repeated["value"]) == ("fallback_2_last_known", first["value"])
    assert repeated["reason"] == "store: OSError: the disk is gone"
    logged = world.logged()[-1]
    assert (logged.ages, logged.features) == ({"last answer": 1000}, None)
    assert ask(server, "nulled", t + 1000, user="u2")["tier"] == "fallback_3_rate"
    assert ask(server, "nulled", t + HOUR)["tier"] == "fallback_2_last_known"
    assert ask(server, "nulled", t + HOUR + 1)["tier"] == "fallback_3_rate"


@pytest.mark.parametrize("server", ["nulled"], indirect=True)
def test_a_model_that_hangs_leaves_time_for_the_model_that_follows(server: Driven, world: SmallWorld) -> None:
    (lane,) = server.client.server.portfolio.models["nulled"].guarded
    assert lane._process is not None
    os.kill(lane.pid, signal.SIGSTOP)
    answer = ask(server, "nulled", UNTIL + HOUR)
    assert (answer["tier"], answer["reason"]) == ("fallback_1_without", "deadline")
    assert world.logged()[-1].elapsed_us < 2_000_000
    assert proved(world).vectors == 1


def test_live_whoever_the_model_s_process_cannot_take_is_answered_by_the_model_that_runs_on_the_loop(
    world: SmallWorld,
) -> None:
    models = {"nulled": world.registry.newest("nulled") or ""}
    with driven(world.config(models=models), cutover=UNTIL) as server:
        (lane,) = server.client.server.portfolio.models["nulled"].guarded
        assert lane._process is not None

        def answered(count: int = 1) -> list[dict[str, Any]]:
            status, body = server.predict({"requests": [REQUEST] * count}, "nulled")
            assert status == 200
            return body["predictions"]

        assert answered()[0]["tier"] == "model"
        os.kill(lane.pid, signal.SIGSTOP)
        hanging = [*answered(5), *answered(5)]
        server.run(lane._process.kill())
        ended = answered(5)
    assert {answer["tier"] for answer in hanging + ended} == {"fallback_1_without"}
    assert {a["reason"] for a in hanging} <= {"deadline", "model: it has not answered in time"}
    assert {a["reason"] for a in ended} <= {"model: its process ended", "model: its process died"}
    assert proved(world).vectors == 16


class Raising:
    """A bundle whose model raises; its fallbacks do not."""

    def __init__(self, bundle: Any) -> None:
        self._bundle = bundle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def scores_of(self, rows: Any) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize("server", ["ruled"], indirect=True)
def test_a_smaller_model_and_a_rule_answer_from_processes_of_their_own(
    server: Driven, world: SmallWorld
) -> None:
    t = UNTIL + HOUR
    served = server.client.server.portfolio.models["ruled"]
    served.bundle = Raising(served.bundle)
    answer = ask(server, "ruled", t)
    assert (answer["tier"], answer["reason"]) == ("fallback_1_smaller", "model: RuntimeError: no")
    # The smaller one's process dies: the rule has one of its own.
    smaller, rule = served.guarded
    assert smaller is not rule
    server.run(smaller._process.kill())  # type: ignore[union-attr] # it is running
    answer = ask(server, "ruled", t + 1)
    assert (answer["tier"], answer["value"]) == ("fallback_2_rule", 0.125)
    assert answer["reason"] == "model: RuntimeError: no; fallback_1_smaller: its process ended"
    # What the rule makes nothing of goes on to the next.
    answer = ask(server, "ruled", t + 2, basket=1000.0)
    assert answer["tier"] == "fallback_4_constant"
    assert answer["reason"].endswith(
        "; fallback_2_rule: it gave nan; fallback_3_last_known: no answer within its age"
    )
    proof = proved(world)
    # The smaller one sees two columns, the rule the two that it names.
    assert (proof.vectors, proof.values, proof.without_vector) == (2, 4, 1)
