"""A prediction as the log has it: the record, its values to the bit, and the shape that gives its lists their names and types."""

from __future__ import annotations

from typing import Any

import msgspec

from sameworld.asof.column import of_plain as column_of
from sameworld.asof.column import plain as logged

__all__ = ["LAST_ANSWER", "Prediction", "Shape", "column_of", "logged"]

LAST_ANSWER = "last answer"
"""Among the ages of a prediction: how old the answer was that it repeats. No source can be called so."""


class Prediction(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One answer.

    Args:
        id: unique.
        model, version: the model's name and its bundle's address.
        t: microseconds; the moment.
        sequence: the last event in the snapshot that was read.
        value, tier, reason: what the caller got.
        request: the request's fields in the bundle's order; instants in microseconds.
        features: the feature columns in the bundle's order, as the tier saw them (see `logged`), null where it does not see one; None when it saw none.
        replayed: whether the moment was given by a replay.
        elapsed_us: from the request's arrival to the writing of this row.
        policy, propensity, seed: of an explored decision; none yet.
        ages: source name -> microseconds since its latest row that was readable; None for a source without rows. None when nothing was judged.
            `last answer` is the age of an answer that was repeated.
        defaults: the feature columns whose value was replaced, in the bundle's order. None when none was.
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


class Shape(msgspec.Struct, frozen=True):
    """The names and types of what one model version's records list; the same for as long as the version is.

    Args:
        request: request field -> family, in the bundle's order.
        features: feature column -> its type, as `str` gives it, in the bundle's order.
        meanings: feature column -> hash of its definition.
    """

    request: dict[str, str]
    features: dict[str, str]
    meanings: dict[str, str]
