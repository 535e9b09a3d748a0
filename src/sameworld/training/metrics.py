"""Scores with intervals. The moments are treated as independent; days that go wrong together make true intervals wider."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A number with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def roc_auc(label: Numbers, prediction: Numbers) -> Score:
    """Give the area under the ROC curve with DeLong's interval.

    Args:
        label: shape (n,), 0 or 1.
        prediction: shape (n,), higher for likelier.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; the mid-rank form is Sun and Xu, IEEE Signal Processing Letters 2014.

    >>> roc_auc(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.1, 0.4, 0.35, 0.8])).value
    0.75
    """
    positive = prediction[label > 0]
    negative = prediction[label <= 0]
    if positive.size == 0 or negative.size == 0:
        return Score(float("nan"), float("nan"), float("nan"))
    together = _mid_ranks(np.concatenate([positive, negative]))
    above = (together[: positive.size] - _mid_ranks(positive)) / negative.size
    below = 1.0 - (together[positive.size :] - _mid_ranks(negative)) / positive.size
    value = float(above.mean())
    variance = (above.var(ddof=1) / positive.size if positive.size > 1 else 0.0) + (
        below.var(ddof=1) / negative.size if negative.size > 1 else 0.0
    )
    return _interval(value, float(np.sqrt(variance)))


def paired_roc_auc_difference(label: Numbers, first: Numbers, second: Numbers) -> Score:
    """Give AUC(first) - AUC(second) on the same moments with DeLong's paired interval."""
    parts = []
    for prediction in (first, second):
        positive, negative = prediction[label > 0], prediction[label <= 0]
        if positive.size < 2 or negative.size < 2:
            return Score(float("nan"), float("nan"), float("nan"))
        together = _mid_ranks(np.concatenate([positive, negative]))
        above = (together[: positive.size] - _mid_ranks(positive)) / negative.size
        below = 1.0 - (together[positive.size :] - _mid_ranks(negative)) / positive.size
        parts.append((above, below))
    above, below = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
    return _interval(
        float(above.mean()), float(np.sqrt(above.var(ddof=1) / above.size + below.var(ddof=1) / below.size))
    )


def root_mean_squared_error(label: Numbers, prediction: Numbers) -> Score:
    """Give the root of the mean squared error with a normal interval for the mean."""
    if label.size == 0:
        return Score(float("nan"), float("nan"), float("nan"))
    squared = (label - prediction) ** 2
    mean = float(squared.mean())
    error = float(squared.std(ddof=1) / np.sqrt(squared.size)) if squared.size > 1 else 0.0
    return Score(
        float(np.sqrt(mean)),
        float(np.sqrt(max(mean - 1.96 * error, 0.0))),
        float(np.sqrt(mean + 1.96 * error)),
    )


def log_loss(label: Numbers, prediction: Numbers) -> float:
    """Give the mean negative log likelihood, with predictions kept 1e-15 away from 0 and 1."""
    kept = np.clip(prediction, 1e-15, 1 - 1e-15)
    return (
        float(-(label * np.log(kept) + (1 - label) * np.log1p(-kept)).mean()) if label.size else float("nan")
    )


def _mid_ranks(values: Numbers) -> Numbers:
    """Give ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[inverse].astype(np.float64)


def _interval(value: float, error: float) -> Score:
    return Score(value, value - 1.96 * error, value + 1.96 * error)
