"""A request with candidates gets one ranking: from one tier at one moment, with the values that training computes, logged once, never an error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from driven_server import Driven, driven
from ranking_world import ITEMS, RANKING_WORLD, make_ranking, play
from small_world import END, UNTIL, SmallWorld

import sameworld as sw
from sameworld.evaluation.gap import measure
from sameworld.evaluation.prove import same_bits
from sameworld.stores.prediction import Prediction, column_of
from sameworld.stores.rotation import rotate
from sameworld.training.bundle import Bundle
from sameworld.training.encoding import matrix
from sameworld.training.fitted import Scorer
from sameworld.training.world_file import functions_in

KNOWN = END + 10**10
AT = "2024-03-16T12:00:00Z"


@pytest.fixture(scope="module")
def played(ranking_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """The world after two days of requests and clicks. Not to be changed."""
    world = ranking_world.copy(tmp_path_factory.mktemp("played_ranking") / "world")
    told = play(world)
    assert set(told.statuses) == {200}
    return world


@pytest.fixture(scope="module")
def server(ranking_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """A server that is asked at one moment only. What a test does to it, it undoes."""
    world = ranking_world.copy(tmp_path_factory.mktemp("served_ranking") / "world")
    with driven(world.config(replay=True), cutover=UNTIL) as running:
        yield running


BARE = """
bare = sw.Model(
    "bare", features=features, estimator=LGBMRanker(n_estimators=2, min_child_samples=5, n_jobs=1),
    **options | {"ranking": sw.Ranking("items", key="item_id", request="request_id", fields=["price"], top=2)},
)
"""


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SmallWorld, Driven]]:
    """A server whose store cannot be read, of a model that falls back on what is popular and of one that has no fallback."""
    text = RANKING_WORLD.replace("fallbacks=[sw.Without(clicks), popular]", "fallbacks=[popular]")
    world = make_ranking(tmp_path_factory.mktemp("blind") / "world", text + BARE)
    with driven(world.config(replay=True), cutover=UNTIL) as running:
        answering = running.client.server._answering
        answering._store = BrokenStore(answering._store)
        yield world, running


class BrokenStore:
    """A store whose index cannot be read."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.clock = store.clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def snapshot(self, *_: Any) -> Any:
        raise OSError("the disk is gone")


def bundle_of(world: SmallWorld, name: str) -> Bundle:
    return world.registry.load(world.registry.newest(name) or "", functions_in(world.load().models.values()))


def logged(world: SmallWorld, name: str) -> list[Prediction]:
    return [prediction for prediction in world.logged() if prediction.model == name]


def items(*names: str, price: float = 5.0) -> list[dict[str, Any]]:
    return [{"item_id": name, "price": price} for name in names]


def request(*names: str, **fields: Any) -> dict[str, Any]:
    return {"request": {"user": "u1", "country": "de", "items": items(*names)} | fields, "at": AT}


def one(server: Driven, body: dict[str, Any], model: str = "ranker") -> dict[str, Any]:
    status, answer = server.predict(body, model)
    assert status == 200, answer
    (prediction,) = answer["predictions"]
    return prediction


def order(prediction: dict[str, Any]) -> list[str]:
    return [candidate["item_id"] for candidate in prediction["ranking"]]


@pytest.mark.parametrize("name", ["ranker", "pointwise"])
def test_what_is_served_of_each_candidate_is_what_training_computes(played: SmallWorld, name: str) -> None:
    """In both lanes, to the bit, whatever other candidates and requests were with it."""
    bundle = bundle_of(played, name)
    shown = played.table("shown")
    computed = sw.training_set(played.load().models[name], folder=played.folder, as_of=KNOWN)
    place = {
        pair: row
        for row, pair in enumerate(
            zip(shown["request_id"].to_pylist(), shown["item_id"].to_pylist(), strict=True)
        )
    }
    answers = logged(played, name)
    rows = [row for answer in answers for row in answer.rows()]
    names = list(bundle.description.request)
    asked = [
        place[row.request[names.index("request_id")], row.request[names.index("item_id")]] for row in rows
    ]

    late = shown["shown_at"].cast(pa.int64()).to_numpy() >= UNTIL
    assert sorted(asked) == np.flatnonzero(late).tolist()
    assert {row.tier for row in rows} == {"model"}
    columns = {
        column: column_of([(row.features or [])[number] for row in rows], kind)
        for number, (column, kind) in enumerate(bundle.types.items())
    }
    for column, served in columns.items():
        assert same_bits(served, computed[column].combine_chunks().take(pa.array(asked))).all(), column
    # Candidates go by what the estimator says of them, and are given what that means.
    said = bundle.scorer.raw_of(matrix(bundle.scorer.encodings, columns))
    assert np.array_equal(bundle.scorer.calibrated(said), [row.value for row in rows])
    end = 0
    for answer in answers:
        assert answer.ranked is not None
        ranks = np.array(answer.ranked.ranks)
        own, end = said[end : end + ranks.size], end + ranks.size
        assert np.array_equal(np.argsort(-own, kind="stable"), np.argsort(ranks))
        assert answer.value == answer.ranked.values[answer.ranked.ranks.index(1)]


def test_every_candidate_is_proved_and_comes_back_as_a_moment(played: SmallWorld, tmp_path: Path) -> None:
    world = played.copy(tmp_path / "world")
    model = world.load().models["ranker"]

    def seen() -> tuple[Any, ...]:
        proof = world.prove()
        tables = [
            sw.training_set(
                model,
                moments=sw.Moments.from_log("ranker", state="state", features=features),
                folder=world.folder,
                as_of=KNOWN,
            ).replace_schema_metadata(None)
            for features in ("recomputed", "served")
        ]
        return (proof.vectors, proof.different, *tables)

    vectors, different, recomputed, served = seen()
    rows = sum(len(list(answer.rows())) for answer in world.logged())
    assert (vectors, different) == (rows, 0)
    assert recomputed.equals(served)
    assert recomputed.num_rows == rows / 2
    assert 0 < sum(recomputed["label"].to_pylist()) < rows / 4
    assert rotate(world.state).stayed == []
    again = seen()
    assert again[:2] == (vectors, different)
    assert again[2].equals(recomputed)
    assert again[3].equals(served)


def test_a_ranker_learns_from_what_it_served(played: SmallWorld, tmp_path: Path) -> None:
    """The log's own answers say which candidates belong together, though nobody sends a request's name."""
    model = played.load().models["ranker"]
    served = sw.Moments.from_log("ranker", state="state", features="served")
    told = sw.train(model, also=[served], registry=tmp_path, until=END, as_of=KNOWN, folder=played.folder)
    alone = sw.train(model, registry=tmp_path, until=END, as_of=KNOWN, folder=played.folder)
    assert told.rows["fit"] > alone.rows["fit"]


def test_the_gap_of_a_ranking_is_by_request(played: SmallWorld) -> None:
    model = played.load().models["ranker"]
    gap = measure(model, [bundle_of(played, "ranker")], played.state, engine=played.engine(), as_of=KNOWN)
    (world,) = gap.worlds
    assert gap.metric == "ndcg@10"
    assert world.delivered == world.claimed
    assert 0.5 < world.delivered.value < 1.0
    assert world.tiers == {"model": 1.0}


def test_a_request_without_candidates_is_answered(server: Driven) -> None:
    for body in (request(), {"request": {"user": "u1"}, "at": AT}, request(items=None)):
        for model in ("ranker", "pointwise"):
            found = one(server, body, model)
            assert (found["ranking"], found["value"], found["tier"], found["logged"]) == (
                [],
                None,
                "model",
                True,
            )
    mixed = {"requests": [request("i1")["request"], request()["request"]], "at": AT}
    status, body = server.predict(mixed, "ranker")
    assert (status, [len(p["ranking"]) for p in body["predictions"]]) == (200, [1, 0])


def test_of_candidates_with_one_key_the_first_counts(server: Driven) -> None:
    given = items("i1", price=3.0) + items("i2") + items("i1", price=90.0)
    twice, once = one(server, request(items=given)), one(server, request(items=given[:2]))
    assert twice["ranking"] == once["ranking"]
    assert sorted(order(twice)) == ["i1", "i2"]


def test_candidates_that_are_equal_keep_the_order_in_which_they_came(server: Driven) -> None:
    """Of items that nobody has ever seen nothing differs."""
    names = ["x3", "x1", "x2"]
    for model in ("ranker", "pointwise"):
        found = one(server, request(*names), model)
        assert order(found) == names
        assert len({candidate["value"] for candidate in found["ranking"]}) == 1


@pytest.mark.parametrize(
    ("carried", "said"),
    [
        (items(*(f"x{n}" for n in range(21))), "The request carries more than 20 different candidates."),
        ([{"price": 1.0}], "A candidate has no 'item_id'."),
        ([{"item_id": None}], "A candidate has no 'item_id'."),
        ([{"item_id": "i1", "prize": 1.0}], "A candidate of the request has an unknown field 'prize'."),
        ([{"item_id": "i1", "user": "u1"}], "A candidate of the request has an unknown field 'user'."),
        ("i1", "The request cannot be read."),
        ([{"item_id": 7}], "The request cannot be read."),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_what_was_expected(
    server: Driven, carried: Any, said: str
) -> None:
    status, answer = server.predict(request(items=carried), "ranker")
    assert (status, answer["what"]) == (400, said)
    assert answer["do"]
    # A candidate's field is none of the request's.
    status, answer = server.predict(request("i1", price=3.0), "ranker")
    assert (status, answer["what"]) == (400, "The request has an unknown field 'price'.")


def test_a_caller_says_how_many_are_listed(server: Driven, blind: tuple[SmallWorld, Driven]) -> None:
    asked = request("i1", "i2", "i3", "i4")
    everything = order(one(server, asked))
    assert len(everything) == 4
    for top in (1, 3, 9):
        assert order(one(server, asked | {"top": top})) == everything[:top]
    # Also where the definition says another number.
    assert len(order(one(blind[1], asked, "bare"))) == 2
    assert len(order(one(blind[1], asked | {"top": 3}, "bare"))) == 3
    for wrong in (0, -1, 1.5, "2"):
        status, answer = server.predict(asked | {"top": wrong}, "ranker")
        assert (status, answer["what"]) == (400, "The request cannot be read.")
        assert "$.top" in answer["found"]


def test_as_many_as_may_be_carried_are_ranked(server: Driven) -> None:
    names = [f"x{number}" for number in range(20)]
    assert order(one(server, request(*names, *names))) == names


def test_what_is_popular_ranks_when_nothing_can_be_read(blind: tuple[SmallWorld, Driven]) -> None:
    world, server = blind
    (table,) = bundle_of(world, "ranker").description.popular
    assert table is not None
    for country, most in (*table.segments, ("it", table.overall)):
        popular = dict(most)
        expected = sorted(["new", *ITEMS], key=lambda item: -popular.get(item, 0.0))
        found = one(server, request("new", *ITEMS, country=country))
        assert (found["tier"], found["reason"]) == ("fallback_1_popular", "store: OSError: the disk is gone")
        assert order(found) == expected
        assert [candidate["value"] for candidate in found["ranking"]] == [
            popular.get(item, 0.0) for item in expected
        ]
        assert found["value"] == max(popular.values())


def test_the_last_resort_keeps_the_order_in_which_candidates_came(blind: tuple[SmallWorld, Driven]) -> None:
    world, server = blind
    found = one(server, request("i4", "i2", "i9"), "bare")
    assert found["ranking"] == [{"item_id": "i4", "value": 0.0}, {"item_id": "i2", "value": 0.0}]
    assert (found["tier"], found["value"]) == ("none", 0.0)
    # Of a ranking the caller sees the top, and the log has all.
    answer = logged(world, "bare")[-1]
    names = list(bundle_of(world, "bare").description.request)
    assert [row.request[names.index("item_id")] for row in answer.rows()] == ["i4", "i2", "i9"]
    proof = world.prove()
    assert (proof.vectors, proof.without_vector) == (0, len(world.logged()))


def test_a_rule_judges_every_candidate_and_a_rate_takes_over(
    server: Driven, ranking_world: SmallWorld
) -> None:
    carried = [{"item_id": f"i{n}", "price": price} for n, price in enumerate([4.0, 9.0, 1.0])]
    lane = server.client.server.portfolio.models["pointwise"].lanes[0]
    lane.ready = False
    found = one(server, request(items=carried), "pointwise")
    assert (found["tier"], order(found), found["value"]) == ("fallback_1_rule", ["i2", "i0", "i1"], -1.0)
    # One candidate without a value: the request goes to the next tier, and all of it.
    found = one(server, request(items=[*carried, {"item_id": "i3"}]), "pointwise")
    (rates,) = bundle_of(ranking_world, "pointwise").description.rates
    known = dict(rates.rates)
    assert found["tier"] == "fallback_2_rate"
    assert "fallback_1_rule: it gave nan" in found["reason"]
    assert order(found) == sorted(["i0", "i1", "i2", "i3"], key=lambda item: -known[item])
    lane.ready = True


def test_an_entity_is_read_once_for_all_candidates_of_all_requests(server: Driven) -> None:
    index = server.client.server.store.index
    read, asked = index.chunks_of, []

    def chunks_of(txn: Any, prefix: bytes, reach: Any, keys: Any, t: int) -> Any:
        asked.extend(keys)
        return read(txn, prefix, reach, keys, t)

    index.chunks_of = chunks_of  # type: ignore[method-assign] # the counting is the test
    body = {
        "requests": [
            request("i1", "i2", "i3")["request"],
            request("i2", "i3", "i4")["request"] | {"user": "u2"},
        ],
        "at": AT,
    }
    assert server.predict(body, "ranker")[0] == 200
    del index.chunks_of
    assert sorted(asked) == sorted(
        [("u1",), ("u2",), *((f"i{n}",) for n in range(1, 5))]
        + [("u1", f"i{n}") for n in (1, 2, 3)]
        + [("u2", f"i{n}") for n in (2, 3, 4)]
    )


def test_a_value_that_is_no_number_sends_the_whole_request_on(server: Driven) -> None:
    class Wrong(Scorer):
        def raw_of(self, rows: Any) -> Any:
            return np.where(np.arange(rows.shape[0]) % 2 == 1, math.nan, 1.0)

    served = server.client.server.portfolio.models["ranker"]
    own = served.bundle.scorer
    served.bundle.scorer = Wrong(
        own.encodings, own.calibration, own.fixed_shape, own.probability, own.estimator
    )
    found = one(server, request("i1", "i2"))
    assert (found["tier"], found["reason"]) == ("fallback_1_without", "model: it gave nan")
    served.bundle.scorer = own
    assert one(server, request("i1", "i2"))["tier"] == "model"
