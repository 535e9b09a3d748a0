"""A fitted estimator with all that turns feature columns into answers: the model's, or a fallback's that was trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.values import nearest_floats
from sameworld.definitions.fallbacks import Rule
from sameworld.definitions.feature import Derive, Feature
from sameworld.definitions.model import Model
from sameworld.definitions.parts import RULE, features_seen, plain, with_inputs
from sameworld.training.encoding import ColumnEncoding, matrix

Calibration = tuple[list[float], list[float]]


class How(msgspec.Struct, frozen=True):
    """How a fallback that sees features answers; everything but its estimator.

    Args:
        columns: of the model's encoded ones, those that the estimator sees, in order; none for a rule.
        calibration: from raw scores to probabilities.
        fixed_shape: whether it is called one row at a time.
        native: whether it may run on the server's event loop.
    """

    columns: list[str]
    calibration: Calibration | None
    fixed_shape: bool
    native: bool


@dataclass(frozen=True)
class Scorer:
    """A fitted estimator.

    Args:
        encodings: of the columns of its matrix.
        calibration: from raw scores to probabilities; None leaves them as they are.
        fixed_shape: whether its bits for a row depend on the others, so that it is called one row at a time.
        probability: whether it gives the probability of the second class, or a number.
        estimator: fitted.
    """

    encodings: Sequence[ColumnEncoding]
    calibration: Calibration | None
    fixed_shape: bool
    probability: bool
    estimator: Any

    def scores(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of feature columns, shape (rows,)."""
        return self.scores_of(matrix(self.encodings, columns))

    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of an encoded matrix, shape (rows,)."""
        return self.calibrated(self.raw_of(rows))

    def raw_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give what the estimator says of every row of an encoded matrix, shape (rows,): what candidates are ranked by, since calibration makes some of it equal."""
        if self.fixed_shape and rows.shape[0] > 1:
            return np.concatenate([self._raw(rows[i : i + 1]) for i in range(rows.shape[0])])
        return self._raw(rows)

    def calibrated(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the answers that the estimator's own mean, shape (rows,)."""
        return raw if self.calibration is None else np.interp(raw, *self.calibration)

    def _raw(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return raw_scores(self.estimator, rows, probability=self.probability)


@dataclass(frozen=True)
class RuleScorer:
    """A `sw.Rule`: what its function made of each row is the answer, NaN where it made nothing."""

    encodings: Sequence[ColumnEncoding] = ()
    estimator: Any = None

    def scores(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """Give the answer for every row, shape (rows,)."""
        return nearest_floats(columns[RULE])

    def calibrated(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the same: a rule means what it says."""
        return raw


@dataclass(frozen=True)
class Part:
    """A fallback that sees features.

    Args:
        features: what has to be evaluated for it.
        how: see `How`.
        scorer: what answers.
    """

    features: Mapping[str, Feature]
    how: How
    scorer: Scorer | RuleScorer


def parts_of(
    model: Model, hows: Sequence[How | None], encodings: Sequence[ColumnEncoding], estimators: Sequence[Any]
) -> list[Part | None]:
    """Give one part a fallback, None for one that sees no features.

    Args:
        model: whose fallbacks.
        hows: one a fallback; nothing at all for a bundle from before fallbacks saw features.
        encodings: of the model's columns.
        estimators: one a fallback; None where there is none, or it was left where it is.
    """
    named = {encoding.name: encoding for encoding in encodings}
    probability = model.probability
    parts: list[Part | None] = []
    for fallback, how, estimator in zip(
        model.fallbacks, hows or [None] * len(model.fallbacks), estimators, strict=True
    ):
        if how is None:
            parts.append(None)
            continue
        features = with_inputs(model.features, features_seen(model.features, fallback))
        if isinstance(fallback, Rule):
            rule = {RULE: Derive(fallback.function, fallback.inputs)}
            parts.append(Part({**features, **rule}, how, RuleScorer()))
        else:
            own = [named[column] for column in how.columns]
            scorer = Scorer(own, how.calibration, how.fixed_shape, probability, estimator)
            parts.append(Part(features, how, scorer))
    return parts


def is_native(features: Mapping[str, Feature], estimator: Any) -> bool:
    """Whether nothing of a user's Python is needed to answer."""
    return isinstance(estimator, lightgbm.Booster) and not any(
        isinstance(plain(feature), Derive) for feature in features.values()
    )


def raw_scores(estimator: Any, rows: NDArray[np.float64], *, probability: bool) -> NDArray[np.float64]:
    """Give an estimator's uncalibrated answers: the probability of the second class, or the number."""
    if isinstance(estimator, lightgbm.Booster):
        return np.asarray(estimator.predict(rows, num_threads=1), np.float64)
    if probability and hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(rows), np.float64)[:, 1]
    return np.asarray(estimator.predict(rows), np.float64)


def said_by(
    model: Model, scorer: Scorer | RuleScorer, columns: Mapping[str, pa.Array]
) -> NDArray[np.float64]:
    """Give what answers, or what candidates are ranked by: the estimator's own word, since calibration makes some of it equal."""
    if model.ranking is None or isinstance(scorer, RuleScorer):
        return scorer.scores(columns)
    return scorer.raw_of(matrix(scorer.encodings, columns))
