"""Whether answers that a server had kept are what their model says of the vector beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sameworld.definitions.fallbacks import MODEL, tier_name
from sameworld.stores.prediction import KEPT_ANSWER, Prediction, column_of
from sameworld.training.bundle import Bundle
from sameworld.training.encoding import matrix
from sameworld.training.gate import first_difference


def kept_answers(logged: Sequence[tuple[str, Prediction]]) -> list[tuple[str, Prediction]]:
    """Give those of some predictions, with where they are logged, that were not computed for their request."""
    return [row for row in logged if row[1].ages is not None and KEPT_ANSWER in row[1].ages]


def wrong_answers(
    bundle: Bundle, kept: Sequence[tuple[str, Prediction]]
) -> Iterator[tuple[str, Prediction, float]]:
    """Give kept answers that are not what the bundle says of their vector, with what it says."""
    named = [MODEL, *(tier_name(place, fallback) for place, fallback in enumerate(bundle.model.fallbacks))]
    for number, scorer in bundle.scorers:
        own = [row for row in kept if row[1].tier == named[number]]
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
