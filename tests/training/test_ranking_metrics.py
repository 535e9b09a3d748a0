"""Scores of rankings are those of every request by itself, whatever the order of rows in a file."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sameworld.training.ranking_metrics import mean_reciprocal_rank, ndcg

Numbers = NDArray[np.float64]


def of_one(label: list[float], said: list[float], first: int) -> tuple[float | None, float | None]:
    """One request's NDCG and reciprocal rank, as the mean over all orders of what scores the same."""
    orders = [
        order
        for order in itertools.permutations(range(len(label)))
        if all(said[a] >= said[b] for a, b in itertools.pairwise(order))
    ]

    def gained(order: tuple[int, ...]) -> float:
        return sum(max(label[i], 0.0) / math.log2(place + 2) for place, i in enumerate(order[:first]))

    best = max(gained(order) for order in itertools.permutations(range(len(label))))
    ranks = [next((place + 1 for place, i in enumerate(order) if label[i] > 0), None) for order in orders]
    return (
        sum(map(gained, orders)) / len(orders) / best if best else None,
        sum(1 / rank for rank in ranks if rank) / len(ranks) if ranks[0] else None,
    )


@pytest.mark.parametrize("first", [2, 10])
def test_ndcg_and_reciprocal_rank_are_the_mean_over_requests_and_over_the_orders_of_ties(first: int) -> None:
    random = np.random.default_rng(3)
    request = np.sort(random.integers(0, 40, 160))
    label = random.choice([-1.0, 0.0, 0.0, 1.0, 2.0], 160)
    said = random.choice([0.1, 0.5, 0.9], 160)

    expected = [
        of_one(label[request == one].tolist(), said[request == one].tolist(), first)
        for one in np.unique(request)
        if (request == one).sum() < 8
    ]
    few = np.isin(request, [one for one in np.unique(request) if (request == one).sum() < 8])
    shuffled = random.permutation(np.flatnonzero(few))

    for rows in (np.flatnonzero(few), shuffled):
        gains = ndcg(label[rows], said[rows], request[rows], first)
        ranks = mean_reciprocal_rank(label[rows], said[rows], request[rows])
        assert gains.value == pytest.approx(np.mean([gain for gain, _ in expected if gain is not None]))
        assert ranks.value == pytest.approx(np.mean([rank for _, rank in expected if rank is not None]))
        assert gains.low < gains.value < gains.high


def test_without_anything_that_was_wanted_there_is_no_score() -> None:
    nothing = np.zeros(3), np.arange(3.0), np.zeros(3, np.int64)
    assert np.isnan(ndcg(*nothing).value)
    assert np.isnan(mean_reciprocal_rank(*nothing).value)
    none = np.zeros(0), np.zeros(0), np.zeros(0, np.int64)
    assert np.isnan(ndcg(*none).value)
    assert np.isnan(mean_reciprocal_rank(*none).value)
