"""Scores of rankings, by request, and which score a model is compared by. Candidates that score the same have every order among them equally likely: how rows lie in a file never counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sameworld.definitions.model import Model
from sameworld.training.metrics import Numbers, Score, roc_auc, root_mean_squared_error

Requests = NDArray[np.int64]

FIRST = 10
"""How many candidates of a ranking NDCG looks at."""


def ndcg(label: Numbers, prediction: Numbers, request: Requests, first: int = FIRST) -> Score:
    """Give the mean normalised discounted cumulative gain of the first candidates, with a normal interval for the mean over requests.

    Args:
        label: shape (n,), the gain of each candidate; what is below 0 gains nothing.
        prediction: shape (n,), higher is ranked before.
        request: shape (n,), which request each candidate is of. Requests in which nothing gains do not count.
        first: how many candidates are looked at.

    Source: Järvelin and Kekäläinen, ACM TOIS 2002; ties as in McSherry and Najork, ECIR 2008.

    >>> ndcg(np.array([0.0, 1.0]), np.array([0.9, 0.4]), np.array([7, 7])).value
    0.6309297535714575
    """
    gain = np.maximum(label, 0.0)
    found, best = (_discounted(gain, by, request, first) for by in (prediction, gain))
    return _mean(found[best > 0] / best[best > 0])


def mean_reciprocal_rank(label: Numbers, prediction: Numbers, request: Requests) -> Score:
    """Give the mean of 1 / the rank of a request's first candidate whose label is above 0, expected over the orders of ties; arguments as for `ndcg`.

    >>> mean_reciprocal_rank(np.array([0.0, 1.0, 0.0]), np.array([0.9, 0.4, 0.1]), np.array([7, 7, 7])).value
    0.5
    """
    order, place, tie = _ranked(prediction, request)
    count = int(tie.max(initial=-1)) + 1
    wanted = np.bincount(tie, weights=label[order] > 0, minlength=count)
    size = np.bincount(tie, minlength=count).astype(np.float64)
    starts = np.flatnonzero(np.diff(tie, prepend=-1))
    # The first tie of each request that has one of those looked for.
    some = np.flatnonzero(wanted > 0)
    _, chosen = np.unique(request[order][starts][some], return_index=True)
    groups = some[chosen]
    wanted, size, before = wanted[groups], size[groups], place[starts][groups].astype(np.float64)
    rank, left = np.zeros(groups.size), np.ones(groups.size)
    for step in range(int((size - wanted).max(initial=-1.0)) + 1):
        here = np.where(step <= size - wanted, left * wanted / np.maximum(size - step, 1.0), 0.0)
        rank += here / (before + step + 1.0)
        left -= here
    return _mean(rank)


def metric_of(
    model: Model, requests: Requests | None = None
) -> tuple[str, Callable[[Numbers, Numbers], Score]]:
    """Give the metric by which a model is compared, and what gives it from labels and predictions.

    Args:
        model: whose.
        requests: shape (rows,), the request of each candidate, where the model ranks.
    """
    if requests is not None:
        return f"ndcg@{FIRST}", lambda label, prediction: ndcg(label, prediction, requests)
    return ("roc_auc", roc_auc) if model.probability else ("rmse", root_mean_squared_error)


def _ranked(prediction: Numbers, request: Requests) -> tuple[Requests, Requests, Requests]:
    """Give the order by request and falling prediction; each row's place in its request, and its tie, in that order."""
    order = np.lexsort((-prediction, request))
    mine, said = request[order], prediction[order]
    begins = np.diff(mine, prepend=-1) != 0
    numbers = np.arange(order.size)
    place = numbers - np.maximum.accumulate(np.where(begins, numbers, 0))
    tie = np.cumsum(begins | (np.diff(said, prepend=np.nan) != 0)) - 1
    return order, place, tie


def _discounted(gain: Numbers, prediction: Numbers, request: Requests, first: int) -> Numbers:
    """Give each request's discounted gain, in the order of their numbers."""
    order, place, tie = _ranked(prediction, request)
    if order.size == 0:
        return np.zeros(0)
    discount = np.where(place < first, 1.0 / np.log2(place + 2.0), 0.0)
    mean = np.bincount(tie, weights=discount) / np.bincount(tie)
    number = np.unique(request[order], return_inverse=True)[1]
    return np.bincount(number, weights=gain[order] * mean[tie]).astype(np.float64)


def _mean(values: Numbers) -> Score:
    if values.size == 0:
        return Score(float("nan"), float("nan"), float("nan"))
    value = float(values.mean())
    error = 1.96 * float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else 0.0
    return Score(value, value - error, value + error)
