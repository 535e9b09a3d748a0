"""A model that ranks says what, and refuses at once what could not tell one candidate from another."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lightgbm import LGBMClassifier, LGBMRanker

import sameworld as sw
from sameworld.definitions.model import Model, as_json, meaning_of, model_from_json
from sameworld.errors import DefinitionError

CLICKS = sw.Source("clicks", "clicks.parquet", event_time="clicked_at", available_at="seen_at")
SHOWN = sw.Moments("shown.parquet", at="shown_at")
RANKING = sw.Ranking("items", key="item_id", request="request_id", fields=["price"])
CLICKED = sw.Label(CLICKS.by("request_id", "item_id").count() > 0, within="1h", otherwise=False)


def model(estimator: Any = None, **options: Any) -> Model:
    given: dict[str, Any] = {"ranking": RANKING, **options}
    return sw.Model(
        "feed",
        moments=SHOWN,
        features={"price": sw.field("price")},
        label=CLICKED,
        estimator=estimator or LGBMClassifier(),
        **given,
    )


def said(**options: Any) -> str:
    with pytest.raises(DefinitionError) as raised:
        model(**options)
    return raised.value.text()


def test_a_ranking_is_kept_by_what_it_means() -> None:
    popular = sw.Popular(CLICKS.by("item_id").count(over="7d"), by="country", top=5)
    first = model(fallbacks=[popular])

    again = model_from_json(msgspec.json.decode(msgspec.json.encode(as_json(first))), {})

    assert again.content == first.content
    assert (again.ranking, again.fallbacks) == (RANKING, (popular,))
    assert first.output == "ranking"
    assert (
        first.content != model(fallbacks=[popular], ranking=msgspec.structs.replace(RANKING, top=3)).content
    )
    assert [of.keys for of in popular.aggregates] == [("item_id",), ("item_id", "country")]


def test_a_model_without_ranking_keeps_its_hash() -> None:
    assert "ranking" in meaning_of(model())
    assert "ranking" not in meaning_of(model(ranking=None))


def test_names_are_used_once() -> None:
    with pytest.raises(DefinitionError, match="uses the name 'item_id' twice"):
        sw.Ranking("items", key="item_id", request="request_id", fields=["item_id"])
    with pytest.raises(DefinitionError, match="uses the name 'items' twice"):
        sw.Ranking("items", key="item_id", request="items")
    for options in ({"top": 0}, {"most": 0}):
        with pytest.raises(DefinitionError, match="=0 ranks nothing"):
            sw.Ranking("items", key="item_id", request="request_id", **options)


def test_what_says_the_same_of_every_candidate_is_refused() -> None:
    assert said(fallbacks=[sw.Rate(by="user")]).split("\n  in:")[0] == (
        "sw.Rate of model 'feed' says the same of every candidate."
    )
    assert "expected: by= a field of a candidate: 'item_id', 'price'" in said(fallbacks=[sw.Rate()])
    for fallback in (sw.Constant(0.5), sw.LastKnown("1h")):
        assert f"sw.{type(fallback).__name__} of model 'feed' ranks nothing." in said(fallbacks=[fallback])
    model(fallbacks=[sw.Rate(by="item_id"), sw.Rate(by="price"), sw.Smaller(estimator=LGBMRanker())])


def test_what_is_popular_is_counted_by_what_names_a_candidate() -> None:
    for wrong in (
        sw.Popular(CLICKS.by("user").count(over="7d")),
        sw.Popular(CLICKS.by("item_id").count(over="7d"), by="item_id"),
    ):
        assert "does not count by what names a candidate" in said(fallbacks=[wrong])
    assert "ranks candidates, and model 'feed' has none" in said(
        ranking=None, fallbacks=[sw.Popular(CLICKS.by("item_id").count(over="7d"))]
    )
    with pytest.raises(DefinitionError, match="counts over one window"):
        sw.Popular(CLICKS.by("item_id").count(over=["1d", "7d"]))
    with pytest.raises(DefinitionError, match="needs something to count"):
        sw.Popular("clicks")  # type: ignore[arg-type] # that is the test


def test_an_estimator_that_ranks_needs_something_to_rank() -> None:
    assert "ranks, and nothing says what" in said(estimator=LGBMRanker(), ranking=None)
    model(estimator=LGBMRanker())
