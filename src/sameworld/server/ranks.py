"""What a tier says of each candidate -> one answer with a ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sameworld.definitions.ranking import Ranking
from sameworld.serving.ranking import ranks_of
from sameworld.serving.tiers import Answer
from sameworld.stores.prediction import Ranked


@dataclass(slots=True, eq=False)
class Candidate:
    """One candidate on its way.

    Args:
        fields: all of a request's, as for one that carries no candidates.
        place: among the different rows of its batch that read the same.
    """

    fields: list[Any]
    place: int = 0


class Ranks:
    """Makes the answers of one model that ranks.

    Args:
        ranking: its definition.
        fields: of a request, in the bundle's order.
    """

    def __init__(self, ranking: Ranking, fields: Sequence[str]) -> None:
        self._key = ranking.key
        self._top = ranking.top
        self._places = [fields.index(name) for name in ranking.of_candidate]

    def answer(
        self,
        candidates: Sequence[Candidate],
        said: Sequence[float],
        values: Sequence[float],
        tier: str,
        reason: str,
    ) -> Answer:
        """Give the answer about a request's candidates.

        Args:
            candidates: in their order.
            said: by which they are ranked.
            values: what that means. The answer's own is that of the best, NaN without candidates, and one that is not finite where there is any.
        """
        ranks = ranks_of(said)
        wrong = next((value for value in values if not math.isfinite(value)), None)
        best = values[ranks.index(1)] if ranks else math.nan
        fields = [[candidate.fields[place] for place in self._places] for candidate in candidates]
        ranked = Ranked(self._places, fields, list(values), ranks)
        return Answer(best if wrong is None else wrong, tier, reason, ranked)

    def listed(self, ranked: Ranked, top: int | None = None) -> list[dict[str, Any]]:
        """Give what a caller is told of the candidates, the best first; so many of them, or as many as the definition says."""
        order = sorted(range(len(ranked.ranks)), key=ranked.ranks.__getitem__)[: top or self._top]
        return [{self._key: ranked.candidates[i][0], "value": ranked.values[i]} for i in order]
