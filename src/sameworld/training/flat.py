"""A library's fitted ensemble -> flat trees: one function a library, each saying what it cannot carry over.

What it gives is a claim, which `gate` tests. Estimators are read through their own attributes: no library is imported for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from sameworld.training.trees import SET, Trees, flattened

_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST = 1e300  # which LightGBM writes for infinity
_LIGHTGBM_ZERO = float(np.float32(1e-35))
_IDENTITY = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg")
_MISSING = {"None": 1, "NaN": 0, "Zero": 2}


class RefusedError(Exception):
    """Why an estimator has no flat trees."""


def flat_trees(estimator: Any, columns: int, *, probability: bool) -> Trees:
    """Give an estimator's flat trees.

    Args:
        estimator: fitted.
        columns: how many it sees.
        probability: whether it is asked for the probability of the second class.

    Raises:
        RefusedError: it has none, or they are more than flat trees can say.
    """
    kind = type(estimator)
    maker = _MAKERS.get(f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}")
    if maker is None:
        raise RefusedError(f"{kind.__qualname__} is no ensemble of trees that is known here")
    if not isinstance(estimator, lightgbm.Booster):
        classes = getattr(estimator, "classes_", None)
        if classes is not None and not probability:
            raise RefusedError("it says a class, where a number is asked for")
        if classes is not None and len(classes) != 2:
            raise RefusedError("it has other classes than two")
    try:
        return maker(estimator, columns)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise RefusedError(
            f"its trees are not as in the versions that are known here: {type(error).__name__}: {error}"
        ) from error


def _lightgbm(booster: lightgbm.Booster, columns: int) -> Trees:
    model = booster.dump_model()
    objective, *options = model["objective"].split()
    given = dict(option.partition(":")[::2] for option in options)
    if model["num_tree_per_iteration"] != 1:
        raise RefusedError("it has other classes than two")
    if objective == "binary" or objective in ("cross_entropy", "xentropy"):
        link, slope = "logistic", float(given.get("sigmoid", 1.0))
    elif objective in ("poisson", "gamma", "tweedie"):
        link, slope = "exponential", 1.0
    elif objective in _IDENTITY and "sqrt" not in given:
        link, slope = "identity", 1.0
    else:
        raise RefusedError(f"its objective is {model['objective']!r}")
    missing = np.zeros(columns, np.uint8)
    sets: list[tuple[int, int, int]] = []
    words: list[int] = []
    trees: list[list[Any]] = []
    for info in model["tree_info"]:
        made: list[tuple[Any, ...]] = []
        waiting = [(info["tree_structure"], -1, False)]
        while waiting:
            node, parent, is_left = waiting.pop()
            number = len(made)
            if parent >= 0:
                made[parent] = (*made[parent][:3], *((number, made[parent][4]) if is_left else (made[parent][3], number)), 0.0)  # fmt: skip
            if "split_index" not in node:
                if "leaf_coeff" in node:
                    raise RefusedError("its leaves are linear")
                made.append((0, math.inf, False, -1, -1, node["leaf_value"]))
                continue
            column = node["split_feature"]
            if node["decision_type"] == "==":
                codes = [int(code) for code in node["threshold"].split("||")]
                count = max(codes) // 64 + 1
                sets.append((column, len(words), count))
                words += [sum(1 << code % 64 for code in codes if code // 64 == word) for word in range(count)]  # fmt: skip
                made.append((2 * columns + len(sets) - 1, 0.5, False, -1, -1, 0.0))
            else:
                missing[column] = _MISSING[node["missing_type"]]
                threshold = node["threshold"] if node["threshold"] < _LARGEST else math.inf
                made.append((column, threshold, node["default_left"], -1, -1, 0.0))
            waiting += [(node["right_child"], number, False), (node["left_child"], number, True)]
        trees.append(list(zip(*made, strict=True)))
    nodes, values, roots = flattened(trees, columns)
    return Trees(
        library=_library("lightgbm"), nodes=nodes, values=values, roots=roots, missing=missing.tobytes(),
        sets=np.array(sets, SET).tobytes(), words=np.array(words, np.uint64).tobytes(), zero=_LIGHTGBM_ZERO,
        divide=float(len(trees)) if model["average_output"] else 1.0, link=link, slope=slope,
    )  # fmt: skip


def _histograms(estimator: Any, columns: int) -> Trees:
    """scikit-learn's HistGradientBoosting."""
    if estimator.is_categorical_ is not None:  # it puts their columns first, and gives them codes of its own
        raise RefusedError("it splits categories, by codes of its own")
    trees: list[Sequence[Any]] = []
    for stage in estimator._predictors:
        (predictor,) = stage
        nodes = predictor.nodes
        inner = ~nodes["is_leaf"].astype(bool)
        left = np.where(inner, nodes["left"].astype(np.int64), -1)
        trees.append([nodes["feature_idx"], nodes["num_threshold"], nodes["missing_go_to_left"], left, nodes["right"], nodes["value"]])  # fmt: skip
    loss = type(estimator._loss).__name__
    links = {"HalfBinomialLoss": "logistic", "HalfSquaredError": "identity", "AbsoluteError": "identity", "PinballLoss": "identity"}  # fmt: skip
    if loss not in links:
        raise RefusedError(f"its loss is {loss}")
    return _made("scikit-learn", trees, columns, start=float(np.ravel(estimator._baseline_prediction)[0]), link=links[loss])  # fmt: skip


def _forest(estimator: Any, columns: int) -> Trees:
    """scikit-learn's forests, whose trees see float32."""
    if estimator.n_jobs not in (None, 1):
        raise RefusedError("its sums depend on which of its threads is first; give n_jobs=1")
    return _averaged(estimator.estimators_, estimator, columns)


def _tree(estimator: Any, columns: int) -> Trees:
    return _averaged([estimator], estimator, columns)


def _averaged(members: Sequence[Any], estimator: Any, columns: int) -> Trees:
    if np.ndim(estimator.n_outputs_) or estimator.n_outputs_ != 1:
        raise RefusedError("it has several outputs")
    second = hasattr(estimator, "classes_")
    trees = [_of_sklearn(member.tree_, member.tree_.value[:, 0, 1 if second else 0]) for member in members]
    return _made(
        "scikit-learn", trees, columns, narrow=True, divide=float(len(trees)), largest=_FLOAT32,
        takes_null=bool(members[0]._support_missing_values(np.zeros((1, columns), np.float32))),
    )  # fmt: skip


def _gradient(estimator: Any, columns: int) -> Trees:
    """scikit-learn's GradientBoosting, whose trees see float32."""
    if estimator.init is not None:
        raise RefusedError("it begins with an estimator of its own")
    links = {"HalfBinomialLoss": "logistic", "HalfSquaredError": "identity", "AbsoluteError": "identity", "HuberLoss": "identity", "PinballLoss": "identity"}  # fmt: skip
    loss = type(estimator._loss).__name__
    if loss not in links:
        raise RefusedError(f"its loss is {loss}")
    start = float(np.ravel(estimator._raw_predict_init(np.zeros((1, columns), np.float32)))[0])
    trees = [
        _of_sklearn(member.tree_, estimator.learning_rate * member.tree_.value[:, 0, 0])
        for member in np.ravel(estimator.estimators_)
    ]
    return _made("scikit-learn", trees, columns, narrow=True, start=start, link=links[loss], takes_null=False, largest=_FLOAT32)  # fmt: skip


def _of_sklearn(tree: Any, value: NDArray[np.float64]) -> Sequence[Any]:
    left = tree.children_left
    return [tree.feature, tree.threshold, tree.missing_go_to_left, left, tree.children_right, value]


def _xgboost(estimator: Any, columns: int) -> Trees:
    """XGBoost, which sees and sums float32, and goes left where a value is less than the threshold."""
    missing = estimator.missing
    if not (isinstance(missing, float) and math.isnan(missing)):
        raise RefusedError(f"it takes {missing!r} for null")
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    booster, parameters = learner["gradient_booster"], learner["learner_model_param"]
    objective = learner["objective"]["name"]
    links = {"binary:logistic": "logistic", "reg:squarederror": "identity", "reg:absoluteerror": "identity", "rank:ndcg": "identity", "rank:pairwise": "identity"}  # fmt: skip
    if booster["name"] != "gbtree":
        raise RefusedError(f"its booster is {booster['name']}")
    if objective not in links:
        raise RefusedError(f"its objective is {objective!r}")
    trees: list[Sequence[Any]] = []
    best = getattr(estimator, "best_iteration", None) if estimator.early_stopping_rounds else None
    for tree in booster["model"]["trees"][: None if best is None else best + 1]:
        if any(tree["split_type"]) or len(tree["base_weights"]) != len(tree["left_children"]):
            raise RefusedError("it splits categories, or has several outputs")
        threshold = np.array(tree["split_conditions"], np.float32)
        below = np.nextafter(threshold, np.float32(-np.inf)).astype(np.float64)
        trees.append([tree["split_indices"], below, tree["default_left"], tree["left_children"], tree["right_children"], threshold])  # fmt: skip
    base = np.float32(np.ravel(json.loads(parameters["base_score"]))[0])
    start = float(-np.log(np.float32(1.0) / base - np.float32(1.0))) if links[objective] == "logistic" else float(base)  # fmt: skip
    return _made("xgboost", trees, columns, narrow=True, single=True, start=start, link=links[objective])  # fmt: skip


def _made(library: str, trees: Iterable[Sequence[Any]], columns: int, **how: Any) -> Trees:
    nodes, values, roots = flattened(list(trees), columns)
    return Trees(library=_library(library), nodes=nodes, values=values, roots=roots, missing=bytes(columns), **how)  # fmt: skip


def _library(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        try:
            return f"{package} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return package


_MAKERS: dict[str, Callable[[Any, int], Trees]] = {
    "lightgbm.Booster": _lightgbm,
    "sklearn.HistGradientBoostingClassifier": _histograms,
    "sklearn.HistGradientBoostingRegressor": _histograms,
    "sklearn.RandomForestClassifier": _forest,
    "sklearn.RandomForestRegressor": _forest,
    "sklearn.ExtraTreesClassifier": _forest,
    "sklearn.ExtraTreesRegressor": _forest,
    "sklearn.DecisionTreeClassifier": _tree,
    "sklearn.DecisionTreeRegressor": _tree,
    "sklearn.GradientBoostingClassifier": _gradient,
    "sklearn.GradientBoostingRegressor": _gradient,
    "xgboost.XGBClassifier": _xgboost,
    "xgboost.XGBRegressor": _xgboost,
    "xgboost.XGBRanker": _xgboost,
}
