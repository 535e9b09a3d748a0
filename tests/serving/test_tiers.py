"""The first tier whose needs are met is tried, and the reason says why not one before it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given
from sklearn.linear_model import LogisticRegression

import sameworld as sw
from sameworld.definitions.fallbacks import tier_name
from sameworld.serving.tiers import (
    Choice,
    Known,
    Need,
    Replaced,
    Tier,
    choose,
    learnt,
    replaced,
    reserved,
    tiers_of,
    unmet,
)

MINUTE = 60_000_000
SOURCES = ("clicks", "orders", "stock")

needs = st.builds(Need, st.sampled_from(SOURCES), st.none() | st.integers(0, 5))
nulls = st.builds(lambda need: Replaced(need, ("c",), ("a",)), needs)
tiers = st.lists(st.tuples(st.lists(needs, max_size=3), st.lists(nulls, max_size=1)), max_size=5).map(
    lambda given: [
        Tier(f"tier {place}", needs=tuple(n), nulls=tuple(r)) for place, (n, r) in enumerate(given)
    ]
)
names = st.integers(0, 4).map("tier {}".format)
knowns = st.builds(
    Known,
    ages=st.dictionaries(st.sampled_from(SOURCES), st.none() | st.integers(0, 6)),
    broken=st.dictionaries(st.sampled_from(SOURCES), st.just("OSError: gone")),
    store=st.sampled_from(["", "", "store: OSError: gone"]),
    closed=st.dictionaries(names, st.just("it raised"), max_size=2),
    takes=st.dictionaries(names, st.floats(0, 2)),
    left=st.floats(-1, 2),
)


def source(name: str, **options: Any) -> sw.Source:
    return sw.Source(
        name, pa.table({"t": [], "key": []}), event_time="t", available_at=sw.delay("1m"), **options
    )


def model(features: dict[str, Any], fallbacks: list[Any]) -> sw.Model:
    return sw.Model(
        "m",
        moments=sw.Moments("asks.parquet", at="at"),
        features=features,
        label=sw.Label(source("outcomes").by("key").count() > 0, within="1h"),
        estimator=LogisticRegression(),
        fallbacks=fallbacks,
    )


@given(tiers, knowns, st.integers(-1, 4))
def test_the_first_tier_after_the_last_tried_whose_needs_are_met_is_chosen(
    tiers: list[Tier], known: Known, after: int
) -> None:
    choice = choose(tiers, known, after=after, reason="why")
    met = [place for place, tier in enumerate(tiers) if place > after and not unmet(tier, known)]
    assert choice.tier == (met[0] if met else None)
    assert choice.reason.startswith("why")


@given(tiers, knowns)
def test_a_tier_that_is_chosen_has_all_it_needs(tiers: list[Tier], known: Known) -> None:
    choice = choose(tiers, known)
    if choice.tier is None:
        return
    tier = tiers[choice.tier]
    for need in tier.needs:
        age = known.ages.get(need.source)
        assert need.source not in known.broken
        assert need.within is None or (age is not None and age <= need.within)
    assert not ((tier.needs or tier.nulls) and known.store)
    assert tier.name not in known.closed
    assert known.takes.get(tier.name, -1.0) <= known.left or tier.name not in known.takes


@given(tiers, knowns, st.sampled_from(SOURCES), st.floats(0, 5))
def test_nothing_that_gets_better_leads_to_a_later_tier(
    tiers: list[Tier], known: Known, name: str, more: float
) -> None:
    last = len(tiers)
    before = choose(tiers, known).tier
    better = Known(
        {**known.ages, name: 0},
        {other: why for other, why in known.broken.items() if other != name},
        "",
        {},
        known.takes,
        known.left + more,
    )
    after = choose(tiers, better).tier
    assert (last if after is None else after) <= (last if before is None else before)


@given(tiers, knowns)
def test_a_tier_that_needs_nothing_is_always_there(tiers: list[Tier], known: Known) -> None:
    always = Tier("always")
    assert choose([*tiers, always], known).tier is not None


@given(tiers, knowns)
def test_what_is_not_the_model_s_answer_has_a_reason(tiers: list[Tier], known: Known) -> None:
    choice = choose([Tier("model", needs=(Need("clicks", 0),)), *tiers], known)
    assert (choice.tier == 0) == (choice.reason == "")


def test_reasons_name_the_source_and_say_the_same_once() -> None:
    tiers = (
        Tier("model", needs=(Need("clicks", 5), Need("orders", 5))),
        Tier("fallback_1_without", needs=(Need("orders", 5),)),
        Tier("fallback_2_without", needs=(Need("clicks", 5),)),
        Tier("fallback_3_rate"),
    )
    ages = {"clicks": 9, "orders": 1}
    assert choose(tiers, Known(ages)) == Choice(1, "source clicks: stale")
    assert choose(tiers, Known({"clicks": None, "orders": 9})) == Choice(
        3, "source clicks: it never had a row; fallback_1_without: source orders: stale"
    )
    assert choose(tiers, Known(ages, {"orders": "OSError: gone"})) == Choice(
        3, "source clicks: stale; fallback_1_without: source orders: OSError: gone"
    )
    assert choose(tiers, Known(ages, store="store: OSError: gone")) == Choice(3, "store: OSError: gone")
    assert choose(tiers[:3], Known(ages, store="store: gone")) == Choice(
        None, "store: gone; no fallback answered"
    )


def test_a_tier_that_takes_longer_than_is_left_is_passed_over() -> None:
    tiers = (Tier("model"), Tier("fallback_1_smaller"), Tier("fallback_2_constant"))
    known = Known(takes={"model": 0.0, "fallback_1_smaller": 0.02}, left=0.01)
    assert choose(tiers, known, after=0, reason="model: it raised") == Choice(
        2, "model: it raised; fallback_1_smaller: deadline"
    )
    # What needs the request alone has no time to run out of.
    late = Known(takes={"model": 0.0, "fallback_1_smaller": 0.02}, left=-1.0)
    assert choose(tiers, late) == Choice(2, "deadline")


def test_a_tier_is_expected_to_take_what_it_took_and_is_tried_again_by_and_by() -> None:
    takes = learnt(0.001, 0.2)
    assert takes == 0.2
    tries = 0
    while takes > 0.01:
        takes, tries = learnt(takes, 0.0), tries + 1
    assert tries == 29


def test_time_is_reserved_for_a_tier_that_sees_features_and_for_no_other() -> None:
    smaller = Tier("fallback_1_smaller", {"x": sw.field("x")})
    assert reserved(smaller, 0.003, 0.1) == pytest.approx(0.008)
    assert reserved(Tier("fallback_2_rate"), 0.0, 0.1) == 0.0
    assert reserved(None, 0.0, 0.1) == 0.0


def test_by_default_a_stale_source_is_left_to_a_fallback_that_does_without_it_or_is_null() -> None:
    clicks, orders = source("clicks", fresh_within="5m"), source("orders", fresh_within="1h")
    features = {
        "clicks": clicks.by("key").count(over=["1h", "1d"]),
        "orders": orders.by("key").count(),
        "x": sw.field("x"),
    }
    own, without, rate = tiers_of(model(features, [sw.Without(clicks), sw.Rate()]))
    assert own.needs == (Need("clicks", 5 * MINUTE),)
    assert [(null.need, null.columns) for null in own.nulls] == [(Need("orders", 60 * MINUTE), ("orders",))]
    assert list(without.features) == ["orders", "x"]
    assert without.needs == ()
    assert [null.columns for null in without.nulls] == [("orders",)]
    assert (rate.needs, rate.nulls, rate.reads) == ((), (), False)


def test_a_feature_may_say_itself_when_it_is_stale_and_what_then() -> None:
    clicks = source("clicks", fresh_within="5m")
    by = clicks.by("key")
    features = {
        "a": by.count().when_stale("null"),
        "b": by.count(over=["1h", "1d"]).when_stale("null", after="1h"),
        "c": by.count(over="2d").when_stale("next_tier", after="2h"),
        "d": by.count(over="3d").category(),
        "x": sw.field("x"),
    }
    (own, smaller) = tiers_of(model(features, [sw.Smaller(features=["x"])]))
    assert own.needs == (Need("clicks", 5 * MINUTE),)
    assert [(null.need.within, null.columns) for null in own.nulls] == [
        (5 * MINUTE, ("a",)),
        (60 * MINUTE, ("b_1h", "b_1d")),
    ]
    assert not smaller.reads
    # Without any fallback that does without the source, what says nothing is null.
    (alone,) = tiers_of(model(features, []))
    assert alone.needs == (Need("clicks", 120 * MINUTE),)
    assert [null.columns for null in alone.nulls] == [("a", "d"), ("b_1h", "b_1d")]


def test_only_what_is_stale_is_replaced() -> None:
    early, late = (Replaced(Need("clicks", within), (f"c{within}",), ()) for within in (5, 50))
    tier = Tier("model", nulls=(early, late))
    assert replaced(tier, Known({"clicks": 5})) == ()
    assert replaced(tier, Known({"clicks": 6})) == (early,)
    assert replaced(tier, Known({"clicks": 51})) == (early, late)
    assert replaced(tier, Known({"clicks": 0}, {"clicks": "OSError: gone"})) == (early, late)


def test_tiers_are_named_by_place_and_kind() -> None:
    fallbacks = (
        sw.Without("clicks"),
        sw.Smaller(features=["x"]),
        sw.Rule(doubled, "x"),
        sw.LastKnown("1h"),
        sw.Rate(by="shop"),
        sw.Constant(0.25),
    )
    assert [tier_name(place, fallback) for place, fallback in enumerate(fallbacks)] == [
        "fallback_1_without",
        "fallback_2_smaller",
        "fallback_3_rule",
        "fallback_4_last_known",
        "fallback_5_rate",
        "fallback_6_constant",
    ]


def doubled(x: Any) -> Any:
    return x * 2.0
