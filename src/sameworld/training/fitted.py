"""A fitted estimator with all that turns feature columns into answers: the model's, or a fallback's that was trained with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from sameworld.training.gate import Gate
from sameworld.training.trees import Trees

Calibration = tuple[list[float], list[float]]


class How(msgspec.Struct, frozen=True):
    """How a fallback that sees features answers; everything but its estimator.

    Args:
        columns: of the model's encoded ones, those that the estimator sees, in order; none for a rule.
        calibration: from raw scores to probabilities.
        fixed_shape: whether it is called one row at a time.
        native: whether it may run on the server's event loop.
        gate: what came of comparing its flat trees with their library; None in a bundle from before there were any.
    """

    columns: list[str]
    calibration: Calibration | None
    fixed_shape: bool
    native: bool
    gate: Gate | None = None


class Compiled:
    """Flat trees that answer for their library, until something shows that they do not say the same.

    Args:
        trees: that came through the gate.
        library: gives the fitted estimator, which may have to be read for it.
    """

    def __init__(self, trees: Trees, library: Callable[[], Any]) -> None:
        self.trees = trees
        self.library = library
        self.distrusted = ""

    def distrust(self, reason: str) -> None:
        """Let the library answer from now on."""
        self.distrusted = self.distrusted or reason


@dataclass(frozen=True)
class Scorer:
    """A fitted estimator.

    Args:
        encodings: of the columns of its matrix.
        calibration: from raw scores to probabilities; None leaves them as they are.
        fixed_shape: whether its bits for a row depend on the others, so that it is called one row at a time.
        probability: whether it gives the probability of the second class, or a number.
        estimator: fitted; None where it was left in its file.
        compiled: its flat trees, if there are some.
    """

    encodings: Sequence[ColumnEncoding]
    calibration: Calibration | None
    fixed_shape: bool
    probability: bool
    estimator: Any
    compiled: Compiled | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether it can answer."""
        return self.estimator is not None or (self.compiled is not None and not self.compiled.distrusted)

    def scores(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of feature columns, shape (rows,)."""
        return self.scores_of(matrix(self.encodings, columns))

    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of an encoded matrix, shape (rows,)."""
        return self.calibrated(self.raw_of(rows))

    def raw_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give what the estimator says of every row of an encoded matrix, shape (rows,): what candidates are ranked by, since calibration makes some of it equal."""
        compiled = self.compiled
        if compiled is not None and not compiled.distrusted:
            return compiled.trees.raw_of(rows)
        return self.library_raw_of(rows)

    def library_raw_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the same by the estimator itself, whether or not there are flat trees."""
        if self.fixed_shape and rows.shape[0] > 1:
            return np.concatenate([self._raw(rows[i : i + 1]) for i in range(rows.shape[0])])
        return self._raw(rows)

    def calibrated(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the answers that the estimator's own mean, shape (rows,)."""
        return raw if self.calibration is None else np.interp(raw, *self.calibration)

    def _raw(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        estimator = self.estimator
        if estimator is None and self.compiled is not None:
            estimator = self.compiled.library()
        return raw_scores(estimator, rows, probability=self.probability)


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
    model: Model,
    hows: Sequence[How | None],
    encodings: Sequence[ColumnEncoding],
    estimators: Sequence[Any],
    compiled: Sequence[Compiled | None],
) -> list[Part | None]:
    """Give one part a fallback, None for one that sees no features.

    Args:
        model: whose fallbacks.
        hows: one a fallback; nothing at all for a bundle from before fallbacks saw features.
        encodings: of the model's columns.
        estimators: one a fallback; None where there is none, or it was left where it is.
        compiled: their flat trees, one a fallback.
    """
    named = {encoding.name: encoding for encoding in encodings}
    probability = model.probability
    parts: list[Part | None] = []
    for fallback, how, estimator, flat in zip(
        model.fallbacks, hows or [None] * len(model.fallbacks), estimators, compiled, strict=True
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
            scorer = Scorer(own, how.calibration, how.fixed_shape, probability, estimator, flat)
            parts.append(Part(features, how, scorer))
    return parts


def is_native(features: Mapping[str, Feature], estimator: Any, trees: Trees | None) -> bool:
    """Whether nothing of a user's Python is needed to answer."""
    return (isinstance(estimator, lightgbm.Booster) or trees is not None) and not any(
        isinstance(plain(feature), Derive) for feature in features.values()
    )


def raw_scores(
    estimator: Any, rows: NDArray[np.float64], *, probability: bool, threads: int = 1
) -> NDArray[np.float64]:
    """Give an estimator's uncalibrated answers: the probability of the second class, or the number.

    Args:
        threads: that LightGBM may use, each for rows of its own; 0 for one a core.
    """
    if isinstance(estimator, lightgbm.Booster):
        return np.asarray(estimator.predict(rows, num_threads=threads), np.float64)
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
