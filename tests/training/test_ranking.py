"""Learning to rank: the rows of a request stay together, and what is popular is what was so at the time of training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightgbm import LGBMRanker
from numpy.typing import NDArray
from small_world import DAY, HOUR, UNTIL, SmallWorld, instants

import sameworld as sw
from sameworld.definitions.model import Model
from sameworld.engines.interface import MomentTable
from sameworld.errors import DataError, Problems
from sameworld.training.bundle import Bundle
from sameworld.training.candidates import requests_of
from sameworld.training.encoding import matrix
from sameworld.training.fit import train
from sameworld.training.ranking_metrics import ndcg
from sameworld.training.training_set import problems_of
from sameworld.training.world_file import functions_in

RANKING = sw.Ranking("items", key="item_id", request="request_id")
TAKES = HOUR + HOUR // 2


def bundle_of(world: SmallWorld, name: str) -> Bundle:
    functions = functions_in(world.load().models.values())
    return world.registry.load(world.registry.newest(name) or "", functions)


def moments(request: list[Any], at: list[int], answer: list[int] | None = None) -> MomentTable:
    fields = pa.table({"request_id": pa.array(request, pa.string())})
    return MomentTable(
        np.array(at, np.int64), fields, answer=None if answer is None else np.array(answer, np.int64)
    )


def test_rows_belong_together_by_the_field_that_names_a_request() -> None:
    assert requests_of(RANKING, moments(["b", "a", "b", "c"], [5, 6, 5, 5])).tolist() == [0, 1, 0, 2]
    # A name means another request in another table; in a log the answer decides, whatever was sent.
    table = np.array([0, 1, 0])
    assert requests_of(RANKING, moments(["a", "a", "a"], [1, 2, 1]), table).tolist() == [0, 1, 0]
    logged = moments(["a", None, None, "a"], [1, 2, 2, 3], [-1, 7, 7, 8])
    assert requests_of(RANKING, logged).tolist() == [0, 1, 1, 2]


def test_a_request_has_a_name_and_one_time() -> None:
    with pytest.raises(DataError) as raised:
        requests_of(RANKING, moments(["a", "a"], [1, 2]))
    assert raised.value.text() == (
        "1 requests have candidates of different times.\n"
        "  in: the moments, request 'a'\n"
        "  expected: one time a request: its candidates are ranked at one moment\n"
        "  do: give every candidate the time of its request."
    )
    with pytest.raises(DataError, match="1 candidates are of no request"):
        requests_of(RANKING, moments(["a", None], [1, 1]))


class Recorder:
    """An estimator that learns from groups, and keeps what it was given."""

    def fit(self, rows: NDArray[np.float64], target: NDArray[np.int64], *, group: NDArray[np.int64]) -> None:
        self.prices, self.target, self.group = rows[:, -1], target, group

    def predict(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return -rows[:, -1]


def variant(world: SmallWorld, **options: Any) -> Model:
    return msgspec.structs.replace(world.load().models["ranker"], **options)


def test_no_request_is_cut_in_two(ranking_world: SmallWorld, tmp_path: Path) -> None:
    """Each slice has whole requests, with the rows of each beside one another."""
    model = variant(ranking_world, estimator=Recorder(), fallbacks=())
    told = train(model, registry=tmp_path, until=UNTIL, folder=ranking_world.folder)

    shown = ranking_world.table("shown")
    at = shown["shown_at"].cast(pa.int64()).to_numpy()
    requests = shown["request_id"].to_pylist()
    recorded = told.bundle.estimator
    sizes = Counter(requests)
    prices: dict[str, list[float]] = {}
    for request, price in zip(requests, shown["price"].to_pylist(), strict=True):
        prices.setdefault(request, []).append(price)
    learnt = np.split(recorded.prices, np.cumsum(recorded.group)[:-1])
    known = [list(map(float, part)) for part in learnt]
    assert len(known) > 150
    assert all(part in list(prices.values()) for part in known)
    late = Counter(request for request, t in zip(requests, at.tolist(), strict=True) if t >= UNTIL)
    assert all(sizes[request] == count for request, count in late.items())
    assert told.rows["test"] == late.total()
    assert told.rows["fit"] == sum(recorded.group)


def test_a_ranker_is_the_one_that_one_would_fit_by_hand(ranking_world: SmallWorld, tmp_path: Path) -> None:
    own = {"n_estimators": 10, "min_child_samples": 5, "n_jobs": 1}
    model = variant(ranking_world, calibration=None, fallbacks=())
    told = train(model, registry=tmp_path, until=UNTIL, folder=ranking_world.folder)
    table = sw.training_set(model, folder=ranking_world.folder)
    shown = ranking_world.table("shown")

    at = shown["shown_at"].cast(pa.int64()).to_numpy()
    learnt = np.flatnonzero(at + TAKES < UNTIL)
    names = [encoding.name for encoding in told.bundle.description.encodings]
    items = table["item"].combine_chunks().dictionary_encode().dictionary.to_pylist()
    columns = [
        np.array([sorted(items).index(item) for item in table[name].to_pylist()], np.float64)
        if name == "item"
        else table[name].to_numpy().astype(np.float64)
        for name in names
    ]
    _, sizes = np.unique([int(r[1:]) for r in shown["request_id"].to_pylist()], return_counts=True)
    whole = np.cumsum(sizes) <= learnt.size
    ranker = LGBMRanker(**own, verbosity=-1, deterministic=True, force_row_wise=True)
    rows = np.column_stack(columns)[learnt]
    ranker.fit(
        rows,
        table["label"].to_numpy()[learnt].astype(np.int64),
        group=sizes[whole],
        categorical_feature=[names.index("item")],
    )
    assert np.array_equal(ranker.predict(rows), told.bundle.scorer.raw_of(rows))
    assert told.rows["calibration"] == 0


def test_rankings_are_scored_by_request_beside_their_fallbacks(
    ranking_world: SmallWorld, tmp_path: Path
) -> None:
    model = variant(ranking_world)
    told = train(model, registry=tmp_path, until=UNTIL, folder=ranking_world.folder)
    table = sw.training_set(model, folder=ranking_world.folder)
    shown = ranking_world.table("shown")

    at = shown["shown_at"].cast(pa.int64()).to_numpy()
    later = at >= UNTIL
    _, request = np.unique(shown["request_id"].to_pylist(), return_inverse=True)
    label = table["label"].cast(pa.float64()).to_numpy()
    columns = {name: table[name].combine_chunks() for name in told.bundle.types}
    said = told.bundle.scorer.raw_of(matrix(told.bundle.description.encodings, columns))
    assert told.metric == "ndcg@10"
    assert told.scores["model"].value == ndcg(label[later], said[later], request[later]).value
    assert told.scores["model"].value > told.scores["constant"].low
    assert set(told.scores) == {
        "model", "constant", "rate", "fallback_1_without", "model_with_nulls_for_clicks", "fallback_2_popular", "mrr", "roc_auc", "log_loss",
    }  # fmt: skip
    # Calibration makes some candidates equal, and keeps the order of the others.
    order = np.argsort(said, kind="stable")
    assert (np.diff(told.bundle.scores(columns)[order]) >= 0).all()


def counted(world: SmallWorld, country: str | None) -> Counter[str]:
    """Clicks of the seven days before the training that were readable then, in plain Python."""
    found: Counter[str] = Counter()
    for row in world.table("clicks").to_pylist():
        event, seen = (int(row[name].timestamp() * 1e6) for name in ("clicked_at", "seen_at"))
        if seen < UNTIL and UNTIL - 7 * DAY <= event < UNTIL and country in (None, row["country"]):
            found[row["item_id"]] += 1
    return found


def test_what_is_popular_is_as_of_the_time_of_training(ranking_world: SmallWorld) -> None:
    bundle = bundle_of(ranking_world, "ranker")
    _, table = bundle.description.popular
    assert table is not None
    assert [segment for segment, _ in table.segments] == ["de", "fr"]
    for country, most in [(None, table.overall), *table.segments]:
        clicks = counted(ranking_world, country)
        expected = sorted(clicks.items(), key=lambda item: (-item[1], item[0]))[:8]
        assert most == [(item, float(count)) for item, count in expected]
    (item, count) = table.segments[0][1][0]
    assert bundle.fallback(1, {"item_id": item, "country": "de"}) == count
    assert bundle.fallback(1, {"item_id": item, "country": "it"}) == counted(ranking_world, None)[item]
    assert bundle.fallback(1, {"item_id": "new", "country": "de"}) == 0.0


def test_what_was_bought_back_is_less_popular_than_what_nobody_knows(
    ranking_world: SmallWorld, tmp_path: Path
) -> None:
    world = ranking_world.copy(tmp_path / "world")
    rows = {"at": instants([UNTIL - DAY] * 3), "item_id": ["i0", "i1", "i1"], "worth": [5.0, -7.0, 1.0]}
    pq.write_table(pa.table(rows), world.folder / "data" / "sales.parquet")
    sales = sw.Source("sales", "data/sales.parquet", event_time="at", available_at=sw.at_event_time())
    popular = sw.Popular(sales.by("item_id").sum("worth"))
    told = train(
        variant(world, fallbacks=[popular]), registry=world.registry, until=UNTIL, folder=world.folder
    )
    assert told.bundle.description.popular[0] is not None
    assert told.bundle.description.popular[0].overall == [("i0", 5.0), ("i1", -6.0)]
    assert told.bundle.fallback(0, {"item_id": "i9"}) == -6.0


def test_a_ranking_is_held_against_its_data(ranking_world: SmallWorld) -> None:
    wrong = sw.Ranking("user", key="price", request="request", fields=["prize"])
    clicks = ranking_world.load().models["ranker"].sources[0]
    popular = sw.Popular(clicks.by("price").last("item_id"), by="nation")
    model = variant(ranking_world, ranking=wrong, fallbacks=[popular])

    said = [problem.what for problem in problems_of(model, ranking_world.engine())]

    assert said == [
        "Fallback 1, sw.Popular by price, reads source 'clicks', which has no column 'price'.",
        "Fallback 1, sw.Popular by price, nation, reads source 'clicks', which has no column 'price'.",
        "Fallback 1, sw.Popular by price, nation, reads source 'clicks', which has no column 'nation'.",
        "Fallback 1, sw.Popular by price, nation, needs the key 'nation', which the moments do not have.",
        "sw.Popular counts text.",
        "Ranking request='request' needs the field 'request', which the moments do not have.",
        "The ranking's key 'price' cannot be a key.",
        "Ranking fields='prize' needs the field 'prize', which the moments do not have.",
        "The list of candidates is called 'user', which is a column of the moments.",
    ]
    with pytest.raises(Problems):
        train(model, until=UNTIL, folder=ranking_world.folder)
