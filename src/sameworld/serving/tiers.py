"""Which tier answers: the model, or which of its fallbacks, and why not the ones before it. Decisions only: what is known is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from sameworld.definitions.fallbacks import MODEL, Smaller, Without
from sameworld.definitions.feature import Feature
from sameworld.definitions.model import Model
from sameworld.definitions.parts import aggregate_columns, seen_by_tiers, sources_of
from sameworld.stores.prediction import Ranked

NONE = "none"
_FORGETTING = 0.1
_FOR_WAKING_UP = 0.05


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a caller gets: a value, the tier it comes from, and why it is not the model's (nothing when it is); of a ranking the candidates too."""

    value: float
    tier: str
    reason: str
    ranked: Ranked | None = None


@dataclass(frozen=True)
class Need:
    """A source that a tier rests on.

    Args:
        source: its name.
        within: the greatest age of its latest row, in microseconds; None when any will do.
    """

    source: str
    within: int | None


@dataclass(frozen=True)
class Replaced:
    """What is null when a source is stale or cannot be read.

    Args:
        need: the source, and when it is stale.
        columns: of the features.
        aggregates: the same as the store reads them.
    """

    need: Need
    columns: tuple[str, ...]
    aggregates: tuple[str, ...]


@dataclass(frozen=True)
class Tier:
    """What a tier needs.

    Args:
        name: in answers, logs and metrics.
        features: what it sees, with all that these are derived from; nothing for a tier that sees none.
        needs: sources without which it is not tried.
        nulls: what it does without.
    """

    name: str
    features: Mapping[str, Feature] = field(default_factory=dict[str, Feature])
    needs: tuple[Need, ...] = ()
    nulls: tuple[Replaced, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether it needs the store."""
        return bool(self.needs or self.nulls)


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is known when an answer is chosen.

    Args:
        ages: source -> microseconds since its latest row became readable; None when it never had one.
        broken: source -> why it cannot be read.
        store: why nothing can be read; empty when it can.
        closed: tier -> why its breaker keeps it out.
        takes: tier -> seconds that it is expected to take, of the tiers that a deadline can be too short for.
        left: seconds until the deadline.
    """

    ages: Mapping[str, int | None] = {}
    broken: Mapping[str, str] = {}
    store: str = ""
    closed: Mapping[str, str] = {}
    takes: Mapping[str, float] = {}
    left: float = float("inf")


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The place of the tier that is to be tried, None when none is left; and why it is not one before it."""

    tier: int | None
    reason: str


def tiers_of(model: Model) -> tuple[Tier, ...]:
    """Give a model's tiers in the order in which they are tried: itself, then its fallbacks."""
    seen = seen_by_tiers(model.features, model.fallbacks)
    # A tier with features of its own that does without a source knows the world in which it is missing.
    trained = [isinstance(fallback, Without | Smaller) for fallback in model.fallbacks]
    read = [set(sources_of(features.values())) for features in seen.values()]
    return tuple(
        _tier(name, features, [read[later + 1] for later in range(place, len(trained)) if trained[later]])
        for place, (name, features) in enumerate(seen.items())
    )


def _tier(name: str, features: Mapping[str, Feature], later: Sequence[set[str]]) -> Tier:
    """Give a tier; `later` has the sources that each trained tier after it reads."""
    needs: dict[str, int | None] = {}
    nulls: dict[Need, tuple[list[str], list[str]]] = {}
    for column, of, own in aggregate_columns(features):
        source = of.source
        within = of.stale.microseconds if of.stale is not None else None
        within = source.fresh_within_microseconds if within is None else within
        without = any(source.name not in read for read in later)
        then = of.stale.then if of.stale is not None else "next_tier" if without else "null"
        if then == "next_tier":
            limits = [limit for limit in (needs.get(source.name), within) if limit is not None]
            needs[source.name] = min(limits, default=None)
        else:
            columns, aggregates = nulls.setdefault(Need(source.name, within), ([], []))
            columns.append(column)
            aggregates.append(own)
    return Tier(
        name,
        features,
        tuple(Need(source, within) for source, within in needs.items()),
        tuple(
            Replaced(need, tuple(columns), tuple(aggregates)) for need, (columns, aggregates) in nulls.items()
        ),
    )


def choose(tiers: Sequence[Tier], known: Known, *, after: int = -1, reason: str = "") -> Choice:
    """Give the first tier whose needs are met.

    Args:
        tiers: in the order in which they are tried.
        known: what is known.
        after: the place of the last tier that was tried; -1 when none was.
        reason: why that did not answer.
    """
    for place in range(after + 1, len(tiers)):
        why = unmet(tiers[place], known)
        if not why:
            return Choice(place, reason)
        reason = with_reason(reason, tiers[place].name, why)
    return Choice(None, f"{reason}; no fallback answered")


def unmet(tier: Tier, known: Known) -> str:
    """Give the first need of a tier that is not met; nothing when all are."""
    if tier.name in known.closed:
        return known.closed[tier.name]
    if tier.reads and known.store:
        return known.store
    for need in tier.needs:
        why = missing(need, known)
        if why:
            return why
    return "deadline" if tier.name in known.takes and known.takes[tier.name] > known.left else ""


def missing(need: Need, known: Known) -> str:
    """Give why a source is not there for a tier; nothing when it is."""
    if need.source in known.broken:
        return f"source {need.source}: {known.broken[need.source]}"
    if need.within is None:
        return ""
    age = known.ages.get(need.source)
    if age is None:
        return f"source {need.source}: it never had a row"
    return f"source {need.source}: stale" if age > need.within else ""


def replaced(tier: Tier, known: Known) -> tuple[Replaced, ...]:
    """Give what is null in what a tier sees."""
    return tuple(null for null in tier.nulls if missing(null.need, known))


def with_reason(reason: str, tier: str, why: str) -> str:
    """Add why a tier did not answer; what was said of one before is not said again."""
    if why and why in reason:
        return reason
    said = why if tier == MODEL else f"{tier}: {why}"
    return f"{reason}; {said}" if reason else said


def learnt(takes: float, took: float) -> float:
    """Give what a tier is expected to take next, in seconds: longer at once, shorter by and by. One that was left out for want of time took nothing."""
    return took if took > takes else takes + (took - takes) * _FORGETTING


def reserved(following: Tier | None, takes: float, deadline: float) -> float:
    """Give the seconds before the deadline at which a tier is given up, so that the one that follows still has its turn.

    Args:
        following: None when there is none.
        takes: what it is expected to take, in seconds.
        deadline: of the request, in seconds from its arrival.
    """
    return takes + deadline * _FOR_WAKING_UP if following is not None and following.features else 0.0
