"""One model as it is served: all that a request to it needs, switched by one pointer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sameworld.asof.column import RequestLayout
from sameworld.asof.plan import Grouping, aggregates_of, narrowed
from sameworld.asof.request import fields_read
from sameworld.definitions.fallbacks import LastKnown
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.model import meaning_of
from sameworld.definitions.parts import aggregate_columns
from sameworld.server.lanes import GuardedLane, Lane, NativeLane
from sameworld.server.ranks import Ranks
from sameworld.server.requests import RequestReader
from sameworld.server.served_tier import ServedTier
from sameworld.server.turns import Line
from sameworld.serving.kept_answers import KeptAnswers
from sameworld.serving.last_answers import LastAnswers
from sameworld.serving.tiers import reserved, tiers_of
from sameworld.training.bundle import Bundle
from sameworld.training.logged import shape_of

if TYPE_CHECKING:
    from sameworld.server.asked import Asked

_REMEMBERED = 100_000  # last answers, a model


class Served:
    """One model as it is served: all that a request to it needs, switched by one pointer.

    Args:
        name: of its route.
        bundle: what answers; where its estimators are not loaded, fallbacks do that need none.
        lanes: where the model and each of its fallbacks runs; None for a fallback that needs the request's fields alone.
        groupings: the store's.
        reader: reads its requests.
        kept: its answers, where some are kept.
    """

    def __init__(
        self,
        name: str,
        bundle: Bundle,
        lanes: Sequence[Lane | None],
        groupings: Sequence[Grouping],
        reader: RequestReader,
        kept: KeptAnswers | None = None,
    ) -> None:
        self.name = name
        self.bundle = bundle
        self.lanes = lanes
        self.reader = reader
        self.kept = kept
        self.asked_at = 0.0  # seconds on the steady clock
        self.plan = tiers_of(bundle.model)
        self.tiers = [
            ServedTier(number, tier, lane, bundle)
            for number, (tier, lane) in enumerate(zip(self.plan, lanes, strict=True))
        ]
        self.laned = [tier for tier in self.tiers if tier.lane is not None]
        self.loaded = all(tier.loaded for tier in self.tiers)
        self.fields = list(bundle.description.request)
        self.groupings = narrowed(groupings, aggregates_of(bundle.model.features.values()))
        self.by_source: dict[str, list[Grouping]] = {}
        for grouping in self.groupings:
            self.by_source.setdefault(grouping.source.name, []).append(grouping)
        self.keys = {key: self.fields.index(key) for grouping in self.groupings for key in grouping.keys}
        needed = {field for tier in self.tiers for field in fields_read(tier.features)}
        self.evaluated = [name for name in self.fields if name in needed]
        ranking = bundle.model.ranking
        self.ranks = None if ranking is None else Ranks(ranking, self.fields)
        self.layout = RequestLayout(bundle.description.request, needed)
        # Models with the same features of the same requests read and evaluate them once.
        self.shares = content_hash(
            [
                meaning_of(bundle.model)["features"],
                bundle.description.schemas,
                bundle.description.types,
                bundle.description.request,
                self.evaluated,
                [] if ranking is None else ranking.of_candidate,
            ]
        )
        self.columns = list(bundle.types)
        self.aggregate_types = {
            own: bundle.types[column] for column, _, own in aggregate_columns(bundle.model.features)
        }
        self.deadline = bundle.model.service.deadline_seconds
        self.shape = shape_of(bundle)
        own = lanes[0]
        assert own is not None
        most = 1 if ranking is None else ranking.most
        self.line: Line[Asked] = Line(own, most)
        self.line.margin = reserved(self.plan[1] if self.plan[1:] else None, 0.0, self.deadline)
        # Where the model is not asked, the loop may still have time for the first fallback that runs on it: it has a line of its own.
        later = next((lane for lane in lanes[1:] if isinstance(lane, NativeLane)), None)
        self.second: Line[Asked] | None = (
            Line(later, most) if later and isinstance(own, GuardedLane) else None
        )
        self.last = {
            number: (
                LastAnswers(_REMEMBERED),
                [self.fields.index(field) for field in fallback.by or self.keys or self.fields],
            )
            for number, fallback in enumerate(bundle.model.fallbacks, 1)
            if isinstance(fallback, LastKnown)
        }

    @property
    def lane(self) -> Lane:
        """Where the model itself runs."""
        return self.line.lane

    @property
    def guarded(self) -> list[GuardedLane]:
        """The lanes that are processes of their own."""
        return [tier.lane for tier in self.tiers if isinstance(tier.lane, GuardedLane)]
