"""A prediction as the log has it: the record, its values to the bit, and the shape that gives its lists their names and types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sameworld.asof.column import of_plain as column_of
from sameworld.asof.column import plain as logged

__all__ = ["KEPT_ANSWER", "LAST_ANSWER", "Prediction", "Ranked", "Shape", "column_of", "logged"]

LAST_ANSWER = "last answer"
"""Among the ages of a prediction: how old the answer was that it repeats. No source can be called so."""
KEPT_ANSWER = "kept answer"
"""Among the ages of a prediction: how long ago its value was computed, for another request with the same vector."""


class Ranked(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The candidates of a request, in the order in which they came.

    Args:
        places: where a candidate's fields are among the request's, in the bundle's order.
        candidates: the values of those fields, for each candidate.
        values: one a candidate.
        ranks: one a candidate, from 1 for the best.
    """

    places: list[int]
    candidates: list[list[Any]]
    values: list[float]
    ranks: list[int]


class Prediction(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One answer.

    Args:
        id: unique.
        model, version: the model's name and its bundle's address.
        t: microseconds; the moment.
        sequence: the last event in the snapshot that was read.
        value, tier, reason: what the caller got; of a ranking the best candidate's value, NaN when there is none.
        request: the request's fields in the bundle's order, null in the place of a candidate's; instants in microseconds.
        features: the feature columns in the bundle's order, as the tier saw them (see `logged`), null where it does not see one; None when it saw none.
            Of a ranking one such list a candidate.
        replayed: whether the moment was given by a replay.
        elapsed_us: from the request's arrival to the writing of this row.
        policy, propensity, seed: of an explored decision; none yet.
        ages: source name -> microseconds since its latest row that was readable; None for a source without rows. None when nothing was judged.
            `last answer` is the age of an answer that was repeated, `kept answer` of one that was computed for the same vector before.
        defaults: the feature columns whose value was replaced, in the bundle's order. None when none was.
        ranked: the candidates, and what became of them; None for an answer that is no ranking.
    """

    id: str
    model: str
    version: str
    t: int
    sequence: int
    value: float
    tier: str
    reason: str
    request: list[Any]
    features: list[Any] | None
    replayed: bool
    elapsed_us: int
    policy: str | None = None
    propensity: float | None = None
    seed: int | None = None
    ages: dict[str, int | None] | None = None
    defaults: list[str] | None = None
    ranked: Ranked | None = None

    def rows(self) -> Iterator[Prediction]:
        """Give the answer as the moments it is of: itself, or one a candidate with all fields, its own vector and its own value."""
        if self.ranked is None:
            yield self
            return
        vectors = self.features if self.features is not None else [None] * len(self.ranked.candidates)
        for candidate, vector, value in zip(self.ranked.candidates, vectors, self.ranked.values, strict=True):
            request = list(self.request)
            for place, field in zip(self.ranked.places, candidate, strict=True):
                request[place] = field
            yield msgspec.structs.replace(self, value=value, request=request, features=vector, ranked=None)


class Shape(msgspec.Struct, frozen=True):
    """The names and types of what one model version's records list; the same for as long as the version is.

    Args:
        request: request field -> family, in the bundle's order.
        features: feature column -> its type, as `str` gives it, in the bundle's order.
        meanings: feature column -> hash of its definition.
        candidate: the fields of a candidate, of a model that ranks; nothing of one that does not.
    """

    request: dict[str, str]
    features: dict[str, str]
    meanings: dict[str, str]
    candidate: list[str] = []
