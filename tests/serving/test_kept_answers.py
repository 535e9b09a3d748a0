"""Kept answers are the model's own, to the bit, and take no more room than they may."""

from __future__ import annotations

import tracemalloc

import numpy as np
from numpy.typing import NDArray

from sameworld.serving.kept_answers import KeptAnswers


class Model:
    """Sums its rows, and remembers how many it was asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        self.asked += rows.shape[0]
        return rows.sum(axis=1)


def test_a_row_that_was_asked_before_is_not_computed_again_and_says_how_old_it_is() -> None:
    kept, model = KeptAnswers(1 << 16), Model()
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert kept.scores(0, model, rows, 1_000)[1] == [None, None]
    values, ages = kept.scores(0, model, np.array([[3.0, 4.0], [5.0, 6.0], [1.0, 2.0]]), 1_500)
    assert (values.tolist(), ages, model.asked) == ([7.0, 11.0, 3.0], [500, None, 500], 3)


def test_rows_are_alike_only_in_every_bit_and_of_one_tier() -> None:
    kept, model = KeptAnswers(1 << 16), Model()
    for rows in ([[0.0]], [[-0.0]], [[np.nextafter(0.0, 1.0)]]):
        assert kept.scores(0, model, np.array(rows), 0)[1] == [None]
    assert kept.scores(1, model, np.array([[0.0]]), 0)[1] == [None]
    assert kept.scores(0, model, np.array([[-0.0]]), 0)[1] == [0]


def test_what_is_no_number_is_not_kept() -> None:
    kept, model = KeptAnswers(1 << 16), Model()
    for _ in range(2):
        assert kept.scores(0, model, np.array([[np.nan], [np.inf]]), 0)[1] == [None, None]
    assert len(kept) == 0


def test_they_take_no_more_than_they_may_and_what_is_asked_again_stays() -> None:
    most = 1 << 20
    kept, model = KeptAnswers(most), Model()
    loved = np.full((1, 8), -1.0)
    kept.scores(0, model, loved, 0)
    tracemalloc.start()
    for first in range(0, 40_000, 100):
        kept.scores(0, model, np.arange(first, first + 100)[:, None] + np.zeros(8), 0)
        assert kept.scores(0, model, loved, 0)[1] == [0]
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 1_000 < len(kept) < 4_000
    assert taken < 1.2 * most


def test_a_wrong_shape_goes_through_as_it_is() -> None:
    kept = KeptAnswers(1 << 16)
    values, _ = kept.scores(0, lambda rows: np.zeros(5), np.zeros((2, 1)), 0)
    assert values.shape == (5,)
    assert len(kept) == 0
