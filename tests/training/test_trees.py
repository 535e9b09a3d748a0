"""Flat trees say what their library says, to the last bit, or are refused with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from sameworld.training.encoding import ColumnEncoding
from sameworld.training.fitted import raw_scores
from sameworld.training.flat import flat_trees
from sameworld.training.gate import Gate, judged, through_gate
from sameworld.training.trees import Trees

COLUMNS = 6
CATEGORIES = 90  # more than a word of 64 has bits
Rows = NDArray[np.float64]


def rows_with_nulls() -> Rows:
    """600 rows: numbers with nulls, one column that is mostly zero, and categories in the last one."""
    chance = np.random.default_rng(3)
    rows = chance.normal(size=(600, COLUMNS))
    rows[chance.random(rows.shape) < 0.05] = np.nan
    rows[:, 4] = np.where(chance.random(600) < 0.5, 0.0, rows[:, 4])
    rows[:, 5] = chance.integers(0, CATEGORIES, 600)
    return rows


ROWS = rows_with_nulls()
WHOLE = np.nan_to_num(ROWS)
NUMBER = WHOLE[:, 0] + WHOLE[:, 1] * WHOLE[:, 2] + WHOLE[:, 5] % 3 + np.random.default_rng(4).normal(size=600)
ENCODINGS = [ColumnEncoding(f"x{i}") for i in range(COLUMNS - 1)] + [
    ColumnEncoding("kind", list(range(CATEGORIES)))
]


def fitted(unfitted: Any, rows: Rows, *, probability: bool, categories: bool = False) -> Any:
    target = (NUMBER > 1).astype(np.int64) if probability else np.abs(NUMBER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not isinstance(unfitted, lightgbm.LGBMModel):
            return unfitted.fit(rows, target)
        unfitted.set_params(verbosity=-1, n_jobs=1, n_estimators=15, min_child_samples=5)
        unfitted.set_params(min_data_per_group=5, cat_smooth=1)
        unfitted.fit(rows, target, categorical_feature=[COLUMNS - 1] if categories else [])
    return lightgbm.Booster(model_str=unfitted.booster_.model_to_string())


def says_of(estimator: Any, *, probability: bool) -> Callable[[Rows], Rows]:
    return lambda rows: raw_scores(estimator, rows, probability=probability)


def gated(estimator: Any, rows: Rows = ROWS, *, probability: bool = True) -> tuple[Trees | None, Gate]:
    return through_gate(
        estimator, says_of(estimator, probability=probability), rows, ENCODINGS, probability=probability
    )


@pytest.mark.parametrize(
    ("unfitted", "rows", "probability", "categories"),
    [
        (LGBMClassifier(), ROWS, True, False),
        (LGBMClassifier(), ROWS, True, True),
        (LGBMClassifier(zero_as_missing=True), ROWS, True, False),
        (LGBMClassifier(), WHOLE, True, False),
        (LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.5), ROWS, True, False),
        (LGBMClassifier(boosting_type="dart"), ROWS, True, False),
        (LGBMRegressor(), ROWS, False, False),
        (LGBMRegressor(objective="poisson"), ROWS, False, True),
        (HistGradientBoostingClassifier(max_iter=8), ROWS, True, False),
        (HistGradientBoostingRegressor(max_iter=8), ROWS, False, False),
        (RandomForestClassifier(9, random_state=0), ROWS, True, False),
        (ExtraTreesRegressor(9, random_state=0), ROWS, False, False),
        (DecisionTreeClassifier(random_state=0), ROWS, True, False),
        (GradientBoostingClassifier(n_estimators=9), WHOLE, True, False),
    ],
    ids=lambda value: value.__class__.__name__ if hasattr(value, "fit") else "",
)
def test_flat_trees_say_what_the_library_says_to_the_last_bit(
    unfitted: Any, rows: Rows, probability: bool, categories: bool
) -> None:
    estimator = fitted(unfitted, rows, probability=probability, categories=categories)
    trees, gate = gated(estimator, rows, probability=probability)
    assert gate.refused == ""
    assert trees is not None
    assert gate.rows == 600
    assert bool(trees.arrays[4].size) is categories
    splits = np.flatnonzero(trees.arrays[0]["left"] != np.arange(trees.arrays[0].size)).size
    assert gate.placed > 3 * splits
    fresh = np.random.default_rng(5).permuted(rows, axis=0)
    expected = says_of(estimator, probability=probability)(fresh)
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(trees), type=Trees)
    assert np.array_equal(kept.raw_of(fresh).view(np.int64), expected.view(np.int64))
    for row in range(40):
        assert kept.raw_of(fresh[row : row + 1])[0] == expected[row]


def test_xgboost_is_summed_in_its_own_float32() -> None:
    xgboost = pytest.importorskip("xgboost")
    classifier = xgboost.XGBClassifier(n_estimators=12, n_jobs=1)
    regressor = xgboost.XGBRegressor(n_estimators=12, n_jobs=1)
    for unfitted, probability in ((classifier, True), (regressor, False)):
        trees, gate = gated(fitted(unfitted, ROWS, probability=probability), probability=probability)
        assert (trees is not None, gate.refused) == (True, "")


@pytest.mark.parametrize(
    ("unfitted", "rows", "reason"),
    [
        (LGBMClassifier(linear_tree=True), WHOLE, "its leaves are linear"),
        (LogisticRegression(), WHOLE, "LogisticRegression is no ensemble of trees that is known here"),
        (
            HistGradientBoostingClassifier(max_iter=3, categorical_features=[5]),
            ROWS,
            "it splits categories, by codes of its own",
        ),
        (
            RandomForestClassifier(3, n_jobs=2),
            ROWS,
            "its sums depend on which of its threads is first; give n_jobs=1",
        ),
    ],
)
def test_what_flat_trees_cannot_say_is_refused_with_the_reason(unfitted: Any, rows: Rows, reason: str) -> None:  # fmt: skip
    assert gated(fitted(unfitted, rows, probability=True), rows) == (None, Gate(reason))


class Hers(RandomForestClassifier):
    """A user's own forest: its Python may do anything."""


def test_a_users_subclass_is_not_taken_for_the_librarys_own() -> None:
    _, gate = gated(fitted(Hers(3, random_state=0), ROWS, probability=True))
    assert gate.refused == "Hers is no ensemble of trees that is known here"


def test_a_library_that_takes_other_rows_than_was_thought_is_refused() -> None:
    estimator = fitted(LGBMClassifier(), ROWS, probability=True)
    says = says_of(estimator, probability=True)
    trees = flat_trees(estimator, COLUMNS, probability=True)

    def picky(rows: Rows) -> Rows:
        if np.isinf(rows).any():
            raise ValueError("no infinities here")
        return says(rows)

    assert judged(trees, picky, ROWS, ENCODINGS).refused.endswith("does not take a row: no infinities here")
    timid = msgspec.structs.replace(trees, takes_null=False, library="lightgbm")
    assert judged(timid, says, ROWS, ENCODINGS) == Gate("lightgbm takes nan, which it was thought not to")


def wrong_at_ties(trees: Trees) -> Trees:
    nodes = trees.arrays[0].copy()
    inner = np.flatnonzero(nodes["left"] != np.arange(nodes.size))
    nodes["threshold"][inner[-1]] = np.nextafter(nodes["threshold"][inner[-1]], -np.inf)
    return msgspec.structs.replace(trees, nodes=nodes.tobytes())


def wrong_for_nulls(trees: Trees) -> Trees:
    nodes = trees.arrays[0].copy()
    inner = np.flatnonzero(nodes["left"] != np.arange(nodes.size))
    places = nodes["place"][inner[-1:]]
    nodes["place"][inner[-1:]] = (places + COLUMNS) % (2 * COLUMNS)
    return msgspec.structs.replace(trees, nodes=nodes.tobytes())


def wrong_for_one_category(trees: Trees) -> Trees:
    words = trees.arrays[5].copy()
    words[-1] ^= np.uint64(1 << 3)
    return msgspec.structs.replace(trees, words=words.tobytes())


def summed_backwards(trees: Trees) -> Trees:
    return msgspec.structs.replace(trees, roots=trees.arrays[2][::-1].tobytes())


@pytest.mark.parametrize(
    ("harm", "categories"),
    [
        (wrong_at_ties, False),
        (wrong_for_nulls, False),
        (summed_backwards, False),
        (wrong_for_one_category, True),
    ],
)
def test_the_gate_refuses_trees_with_one_thing_wrong(
    harm: Callable[[Trees], Trees], categories: bool
) -> None:
    estimator = fitted(LGBMClassifier(), ROWS, probability=True, categories=categories)
    says = says_of(estimator, probability=True)
    trees = flat_trees(estimator, COLUMNS, probability=True)
    assert not judged(trees, says, ROWS, ENCODINGS).refused
    refused = judged(harm(trees), says, ROWS, ENCODINGS).refused
    assert " by lightgbm " in refused
    assert refused.endswith(" compiled")
