"""Whether answers that a server had kept are what their model says of the vector beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sameworld.definitions.fallbacks import MODEL, tier_name
from sameworld.stores.prediction import KEPT_ANSWER, Prediction, column_of
from sameworld.training.bundle import Bundle
from sameworld.training.encoding import matrix
from sameworld.training.fitted import Scorer
from sameworld.training.gate import first_difference


def kept_answers(logged: Sequence[tuple[str, Prediction]]) -> list[tuple[str, Prediction]]:
    """Give those of some predictions, with where they are logged, that were not computed for their request."""
    return [row for row in logged if row[1].ages is not None and KEPT_ANSWER in row[1].ages]


def not_judged(bundle: Bundle, kept: Sequence[tuple[str, Prediction]]) -> tuple[int, str]:
    """Give how many kept answers cannot be computed here, and why: their library is not loaded for a proof, and their flat trees do not answer as they did where they were made."""
    count, reason = 0, ""
    for tier, scorer in _scorers(bundle):
        if not scorer.is_loaded and (own := [row for row in kept if row[1].tier == tier]):
            count += len(own)
            reason = scorer.compiled.distrusted if scorer.compiled is not None else "it has no flat trees"
    return count, reason


def wrong_answers(
    bundle: Bundle, kept: Sequence[tuple[str, Prediction]]
) -> Iterator[tuple[str, Prediction, float]]:
    """Give kept answers that are not what the bundle says of their vector, with what it says."""
    for tier, scorer in _scorers(bundle):
        own = [row for row in kept if row[1].tier == tier]
        if not own or not scorer.is_loaded:
            continue
        vectors = zip(*(prediction.features or [] for _, prediction in own), strict=True)
        columns = {
            name: column_of(values, kind)
            for (name, kind), values in zip(bundle.types.items(), vectors, strict=True)
        }
        said = scorer.scores_of(matrix(scorer.encodings, columns))
        for (where, prediction), value in zip(own, said, strict=True):
            if first_difference(np.array([value]), np.array([prediction.value])) is not None:
                yield where, prediction, float(value)


def _scorers(bundle: Bundle) -> list[tuple[str, Scorer]]:
    """Give each tier that has an estimator, and that."""
    named = [MODEL, *(tier_name(place, fallback) for place, fallback in enumerate(bundle.model.fallbacks))]
    return [(named[number], scorer) for number, scorer in bundle.scorers]
