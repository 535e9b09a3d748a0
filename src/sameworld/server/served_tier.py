"""One tier of one model as it is served: where it runs, what it sees, how it is doing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sameworld.asof.column import Column
from sameworld.asof.plan import aggregates_of
from sameworld.asof.request import Evaluator
from sameworld.definitions.fallbacks import MODEL
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.parts import feature_columns
from sameworld.server.lanes import GuardedLane, Lane, NativeLane
from sameworld.serving.breaker import Breaker, failed, succeeded
from sameworld.serving.tiers import Tier, learnt
from sameworld.training.bundle import Bundle
from sameworld.training.fitted import Scorer


class ServedTier:
    """A tier, its lane and its state.

    Args:
        number: its place among the model's tiers; the model itself is 0.
        tier: what it needs.
        lane: None for one that needs the request's fields alone.
        bundle: the model's.
    """

    def __init__(self, number: int, tier: Tier, lane: Lane | None, bundle: Bundle) -> None:
        self.number = number
        self.tier = tier
        self.name = tier.name
        self.lane = lane
        part = bundle.parts[number - 1] if number else None
        self.features = part.features if part is not None else tier.features
        # The model's own is the bundle's; a rule has none.
        self.scorer = part.scorer if part is not None and isinstance(part.scorer, Scorer) else None
        self.calibrated = (part.scorer if part is not None else bundle.scorer).calibrated
        self.loaded = (self.scorer or bundle.scorer).is_loaded or not isinstance(lane, NativeLane)
        self.encodings = part.scorer.encodings if part is not None else bundle.description.encodings
        self.encoded_as = content_hash(msgspec.to_builtins(list(self.encodings)))
        self.evaluate = Evaluator(self.features, bundle.types)
        self.sees_as = content_hash(list(self.features))
        self.sees = {column for column, _ in feature_columns(tier.features)}
        self.aggregates = {
            column for aggregate in aggregates_of(tier.features.values()) for column in aggregate.columns
        }
        self.breaker = Breaker()
        self.recheck_at = 0.0  # seconds on the steady clock; see `rechecking`
        self.takes = lane.row_seconds if number and isinstance(lane, NativeLane) else 0.0

    def closed(self) -> str:
        """Give why it is kept out; nothing when it may be tried."""
        if isinstance(self.lane, GuardedLane):
            why = self.lane.refusal(time.monotonic())
            return self.says(why) if why else ""
        if not self.loaded:
            return self.says("loading")
        return "" if self.breaker.allows(time.monotonic()) else self.breaker.reason

    def says(self, why: str) -> str:
        """Give why it did not answer as the reason has it."""
        return why if self.number else f"{MODEL}: {why}"

    def failed(self, why: str) -> None:
        """Note that it could not answer at all."""
        self.breaker = failed(self.breaker, time.monotonic(), why)

    def took(self, seconds: float) -> None:
        """Note that it answered, and how long that took."""
        self.breaker = succeeded(self.breaker)
        if self.number:  # what the model itself may take is what the deadline says
            self.takes = learnt(self.takes, seconds)

    def vectors(self, columns: Mapping[str, Column], names: Sequence[str], count: int) -> list[list[Any]]:
        """Give what it saw, one vector a row with a place for each of the model's columns: null where it does not see one."""
        nothing = [None] * count
        seen = (columns[name].plain() if name in self.sees else nothing for name in names)
        return list(map(list, zip(*seen, strict=True)))
