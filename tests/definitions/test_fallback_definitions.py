"""Fallbacks and staleness are definitions: hashed, written as JSON and back, refused where they cannot mean anything."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression

import sameworld as sw
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.model import as_json, model_from_json
from sameworld.definitions.parts import features_seen, with_inputs
from sameworld.errors import DefinitionError


def risky(distance: Any, clicks: Any) -> Any:
    return distance / (1 + clicks)


def riskier(distance: Any, clicks: Any) -> Any:
    return distance / (2 + clicks)


def source(name: str, **options: Any) -> sw.Source:
    return sw.Source(name, f"{name}.parquet", event_time="t", available_at="seen_at", **options)


CLICKS, ORDERS = source("clicks"), source("orders")
FEATURES: dict[str, Any] = {
    "clicks": CLICKS.by("user").count(over=["1h", "7d"]),
    "page": CLICKS.by("user").last("page").category(),
    "spent": ORDERS.by("user").sum("amount", over="7d"),
    "distance": sw.field("distance"),
    "per_click": sw.derive(risky, "distance", "clicks_7d"),
    "again": sw.derive(risky, "per_click", "spent"),
}


def model(*fallbacks: Any, features: dict[str, Any] = FEATURES) -> sw.Model:
    return sw.Model(
        "m",
        moments=sw.Moments("asks.parquet", at="asked_at"),
        features=features,
        label=sw.Label(ORDERS.by("user").count() > 0, within="1d"),
        estimator=LogisticRegression(),
        fallbacks=fallbacks,
    )


EVERY_KIND = (
    sw.Without(CLICKS),
    sw.Without(["clicks"]),
    sw.Smaller(features=["distance"]),
    sw.Smaller(features=["distance"], estimator=LogisticRegression(C=0.5)),
    sw.Rule(risky, ("distance", "spent")),
    sw.LastKnown("60m", by="user"),
    sw.LastKnown("1h"),
    sw.Rate(by="user"),
    sw.Constant(0.5),
)


def problem(make: Any) -> str:
    with pytest.raises(DefinitionError) as caught:
        make()
    return "\n".join(line.split(f" {__file__}")[0] for line in str(caught.value).splitlines())


def test_a_model_of_every_fallback_comes_back_from_its_json() -> None:
    made = model(*EVERY_KIND)
    functions = {function.code: function for function in (NamedFunction.of(risky),)}
    back = model_from_json(as_json(made), functions)
    assert back.content == made.content
    assert back.fallbacks == made.fallbacks
    rule = back.fallbacks[4]
    assert isinstance(rule, sw.Rule)
    assert rule.function.call is risky


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sw.Without(CLICKS), sw.Without(ORDERS)),
        (sw.Smaller(features=["distance"]), sw.Smaller(features=["spent"])),
        (sw.Smaller(estimator=LogisticRegression()), sw.Smaller(estimator=LogisticRegression(C=2.0))),
        (sw.Rule(risky, ("distance", "spent")), sw.Rule(riskier, ("distance", "spent"))),
        (sw.Rule(risky, ("distance", "spent")), sw.Rule(risky, ("spent", "distance"))),
        (sw.LastKnown("1h"), sw.LastKnown("2h")),
        (sw.LastKnown("1h"), sw.LastKnown("1h", by="user")),
    ],
)
def test_whatever_a_fallback_says_is_in_the_hash(one: Any, other: Any) -> None:
    assert model(one).content != model(other).content
    assert model(one).content == model(one).content


def test_the_same_said_otherwise_is_the_same() -> None:
    assert sw.Without(CLICKS) == sw.Without("clicks") == sw.Without([CLICKS])
    assert sw.LastKnown("60m") == sw.LastKnown("1h")
    assert sw.Rule(risky, "distance") == sw.Rule(risky, ["distance"])


def test_a_fallback_does_without_all_that_rests_on_its_sources() -> None:
    assert features_seen(FEATURES, sw.Without(CLICKS)) == ("spent", "distance")
    assert features_seen(FEATURES, sw.Without([ORDERS])) == ("clicks", "page", "distance", "per_click")
    assert features_seen(FEATURES, sw.Smaller(features=["again", "page"])) == ("page", "again")
    assert features_seen(FEATURES, sw.Rule(risky, ("distance", "clicks_1h"))) == ("clicks", "distance")
    assert features_seen(FEATURES, sw.Rate()) == ()
    assert list(with_inputs(FEATURES, ["again"])) == ["clicks", "spent", "distance", "per_click", "again"]


def test_when_a_source_is_stale_is_no_part_of_its_values() -> None:
    fresh = source("clicks", fresh_within="60m")
    assert fresh.fresh_within == "1h"
    assert fresh.fresh_within_microseconds == 3_600_000_000
    assert fresh.content == CLICKS.content
    count = CLICKS.by("user").count(over="1h")
    policy = fresh.by("user").count(over="1h").when_stale("null", after="2h")
    assert policy.columns == count.columns
    # What a server answers depends on it, so it is a part of the model.
    contents = {
        model(features={"clicks": feature}).content
        for feature in (count, fresh.by("user").count(over="1h"), policy, count.when_stale("next_tier"))
    }
    assert len(contents) == 4


def test_a_staleness_comes_back_from_json() -> None:
    feature = CLICKS.by("user").count().when_stale("null", after="90m")
    back = model_from_json(as_json(model(features={"clicks": feature})), {})
    (found,) = back.features.values()
    assert found.stale == feature.stale  # type: ignore[union-attr] # it is an aggregate
    assert found.stale.microseconds == 5_400_000_000  # type: ignore[union-attr]


def test_what_cannot_be_meant_is_refused() -> None:
    assert problem(lambda: model(sw.Without("click"))) == (
        "sw.Without names 'click', which is no source of the features of model 'm'.\n"
        "  in: model 'm'\n"
        "  expected: nearest: clicks\n"
        "  do: correct the name."
    )
    assert problem(lambda: model(sw.Smaller(features=["distanc"]))).splitlines()[0] == (
        "sw.Smaller names 'distanc', which is no feature of the model."
    )
    only_clicks = {"clicks": FEATURES["clicks"]}
    assert problem(lambda: model(sw.Without(CLICKS), features=only_clicks)) == (
        "A fallback of model 'm' is left without features.\n"
        "  in: model 'm'\n"
        "  found: Without(sources=('clicks',))\n"
        "  do: use sw.Rate or sw.Constant in its place."
    )
    assert problem(sw.Smaller).startswith("sw.Smaller() is the model itself.")
    assert problem(lambda: sw.Rule(risky, ())).startswith("sw.Rule names no input.")
    assert "is a lambda" in problem(lambda: sw.Rule(lambda x: x, "distance"))
    assert problem(lambda: sw.LastKnown("soon")).startswith("'soon' is not a duration.")
    assert problem(lambda: source("clicks", fresh_within="1")).startswith("'1' is not a duration.")
    assert problem(lambda: CLICKS.by("user").count().when_stale("zero")) == (  # type: ignore[arg-type] # that is what is refused
        "'zero' is nothing that can be done about a stale source.\n"
        "  in: when_stale of source 'clicks'\n"
        "  expected: 'null' or 'next_tier'\n"
        "  do: choose one of them."
    )
    twice = {
        "a": CLICKS.by("user").count(),
        "b": CLICKS.by("user").count().when_stale("null"),
    }
    assert problem(lambda: model(features=twice)) == (
        "Columns 'a' and 'b' of model 'm' are the same, with different when_stale.\n"
        "  in: model 'm'\n"
        "  do: say the same in both, or drop one of them."
    )
