"""What of a model's features a fallback sees, and which sources it rests on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from sameworld.definitions.fallbacks import MODEL, Fallback, Rule, Smaller, Without, tier_name
from sameworld.definitions.feature import Aggregate, Category, Derive, Feature

RULE = "__rule"
"""The column that a `sw.Rule` makes, in place of a feature's name."""


def feature_columns(features: Mapping[str, Feature]) -> Iterator[tuple[str, str]]:
    """Give (column, feature) names in order: an aggregate over several windows is one column a window."""
    for name, feature in features.items():
        if isinstance(feature, Aggregate) and len(feature.windows) > 1:
            for window in feature.windows:
                yield f"{name}_{window.label}", name
        else:
            yield name, name


def aggregate_columns(features: Mapping[str, Feature]) -> Iterator[tuple[str, Aggregate, str]]:
    """Give (column, aggregate, the aggregate's own name of that column) of those features that are aggregates."""
    for name, feature in features.items():
        of = plain(feature)
        if isinstance(of, Aggregate):
            columns = [column for column, _ in feature_columns({name: feature})]
            yield from ((column, of, own) for column, own in zip(columns, of.columns, strict=True))


def plain(feature: Feature) -> Feature:
    """Give a feature, or what it makes a category of."""
    return feature.of if isinstance(feature, Category) else feature


def with_inputs(features: Mapping[str, Feature], names: Iterable[str]) -> dict[str, Feature]:
    """Give these features and all that they are derived from, in the model's order. Names that are not features are request fields."""
    feature_of = {**dict(feature_columns(features)), **{name: name for name in features}}
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = feature_of.get(waiting.pop())
        if name is not None and name not in wanted:
            wanted.add(name)
            of = plain(features[name])
            waiting += of.inputs if isinstance(of, Derive) else ()
    return {name: feature for name, feature in features.items() if name in wanted}


def sources_of(features: Iterable[Feature]) -> dict[str, Aggregate]:
    """Give source name -> the first aggregate that reads it, of features with all that they are derived from."""
    found: dict[str, Aggregate] = {}
    for feature in features:
        of = plain(feature)
        if isinstance(of, Aggregate):
            found.setdefault(of.source.name, of)
    return found


def features_seen(features: Mapping[str, Feature], fallback: Fallback) -> tuple[str, ...]:
    """Give the names of the features that a fallback is trained on, or that a rule reads; nothing for one that sees none."""
    match fallback:
        case Without():
            return tuple(name for name in features if not _rests_on(features, name, fallback.names))
        case Smaller(features=names):
            return tuple(name for name in features if names is None or name in names)
        case Rule():
            return tuple(with_inputs(features, fallback.inputs))
        case _:
            return ()


def seen_by_tiers(
    features: Mapping[str, Feature], fallbacks: Sequence[Fallback]
) -> dict[str, Mapping[str, Feature]]:
    """Give tier -> the features it sees with all that they are derived from: the model, then its fallbacks."""
    seen = {
        tier_name(number, fallback): with_inputs(features, features_seen(features, fallback))
        for number, fallback in enumerate(fallbacks)
    }
    return {MODEL: features, **seen}


def _rests_on(features: Mapping[str, Feature], name: str, sources: Collection[str]) -> bool:
    return not sources_of(with_inputs(features, [name]).values()).keys().isdisjoint(sources)
