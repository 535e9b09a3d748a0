"""Train a model honestly: split by time, use only labels that had matured, calibrate on a later slice, and score beside baselines on what came after."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from sameworld.asof.request import call_derived
from sameworld.asof.values import nearest_floats
from sameworld.definitions.estimator import Estimator
from sameworld.definitions.fallbacks import Popular, Rate, Rule, Smaller, Without, tier_name
from sameworld.definitions.feature import Category, Derive, Field
from sameworld.definitions.model import Model, as_json
from sameworld.definitions.moments import Moments
from sameworld.definitions.parts import RULE, feature_columns, features_seen, plain, with_inputs
from sameworld.engines.cache import cache_folder
from sameworld.engines.interface import Engine, World
from sameworld.engines.named import EngineName, opened_engine
from sameworld.errors import TrainingError
from sameworld.training.bundle import (
    Bundle,
    Description,
    Histogram,
    Registry,
    answer_column,
    environment,
)
from sameworld.training.candidates import requests_of
from sameworld.training.encoding import ColumnEncoding, learn, matrix
from sameworld.training.fitted import Compiled, How, is_native, raw_scores, said_by
from sameworld.training.gate import through_gate
from sameworld.training.joined import joined
from sameworld.training.metrics import Score, log_loss, roc_auc
from sameworld.training.moments import read_moments
from sameworld.training.popular import PopularTable, popular_table, popularity
from sameworld.training.ranking_metrics import mean_reciprocal_rank, metric_of
from sameworld.training.rates import RateTable, rate_table
from sameworld.training.row_independence import check_row_independence
from sameworld.training.training_set import Say, TrainingSet, planned, silent

_CALIBRATION_SHARE = 0.2
_SELFTEST_ROWS = 64
_LATEST_SHARE = 0.85
_BATCH_SIZES = (3, 8, 17, 64, 500)
_COMPARED_ROWS = 500
ALSO = ("log_loss", "mrr", "roc_auc")
"""Scores of the model by other metrics than the one that is compared."""
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Trained:
    """A bundle, and what is worth printing about how it came to be.

    Args:
        bundle: saved already.
        metric: "roc_auc" or "rmse"; "ndcg@10" of a ranking.
        scores: "model", "constant" and "rate" (where there is a field to rate by) -> score on the moments after `until`. Beside them the model's by other
            metrics, see `ALSO`. A constant ranks candidates in any order.
        rows: slice -> number of moments: fit, calibration, test, immature (their label was not known yet), unlabelled.
        seconds: stage -> wall-clock time.
    """

    bundle: Bundle
    metric: str
    scores: dict[str, Score]
    rows: dict[str, int]
    seconds: dict[str, float]


def train(
    model: Model,
    *,
    also: Sequence[Moments] = (),
    registry: Registry | Path | str = ".sameworld",
    world: World = "as_of",
    until: int | None = None,
    as_of: int | None = None,
    engine: EngineName | Engine = "duckdb",
    folder: Path | None = None,
    say: Say = silent,
) -> Trained:
    """Train, calibrate, score and save a model.

    Args:
        model: what to train.
        also: moments to learn from beside the model's own, such as what was served since: `sw.Moments.from_log(model, features="served")`. No moment
            should be in two of them.
        registry: where the bundle goes.
        world: in which world features are computed; labels are the same in both.
        until: microseconds since 1970, the time of training: only examples whose label has matured by then are learnt from, everything asked after
            it is for the score. By default the time before which 85 % of the moments were asked.
        as_of: when the score's labels are known; now by default.
        engine: as in `training_set`; that of this machine keeps its cache in `.sameworld/cache` in the folder.
        folder: what relative paths start from.
        say: told what is being done.

    Raises:
        Problems: the definitions do not fit their data.
        TrainingError: nothing to learn from.
    """
    registry = registry if isinstance(registry, Registry) else Registry(Path(registry))
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    as_of = time.time_ns() // 1000 if as_of is None else as_of
    own = opened_engine(engine, folder, cache=cache_folder(folder, True), say=say)
    with own as chosen:
        plans = [
            planned(
                model.features,
                moments,
                model.label,
                engine=chosen,
                world=world,
                as_of=as_of,
                fallbacks=model.fallbacks,
                ranking=model.ranking,
            )
            for moments in (model.moments, *also)
        ]
        read = [read_moments(chosen, plan.moments) for plan in plans]
        at = np.concatenate([moments.at for moments in read])
        if until is None and at.size:
            until = int(np.quantile(at, _LATEST_SHARE, method="lower"))
        for plan, moments in zip(plans, read, strict=True):
            say(plan.summary(moments.at.size))
        data = joined([plan.at(moments, until) for plan, moments in zip(plans, read, strict=True)])
        popular = [
            popular_table(
                fallback, data.moments, until, engine=chosen, schemas=data.schemas, rows=plans[0].rows
            )
            if isinstance(fallback, Popular) and until is not None
            else None
            for fallback in model.fallbacks
        ]
    seconds["training set"] = time.perf_counter() - clock
    return fit(
        model, data, registry=registry, world=world, also=also, popular=popular, say=say, seconds=seconds
    )


def fit(
    model: Model,
    data: TrainingSet,
    *,
    registry: Registry,
    world: World,
    also: Sequence[Moments] = (),
    popular: Sequence[PopularTable | None] = (),
    say: Say = silent,
    seconds: dict[str, float] | None = None,
) -> Trained:
    """Train from a training set that was computed with `until`; see `train`.

    Args:
        popular: one a fallback, None for one that is no `sw.Popular`.
    """
    seconds = {} if seconds is None else seconds
    clock = time.perf_counter()
    at = data.moments.at
    until = data.until
    if at.size == 0 or until is None:
        raise TrainingError("There are no moments to learn from.", do="check the moments' table.")
    ranking = model.ranking
    requests = None if ranking is None else requests_of(ranking, data.moments, data.table)
    learnable, calibrating, testing, rows = _slices(model, data, until)
    # What is learnt from is what was known at the time of training; what came out later is for the score.
    label, label_then = _numbers(data.label), _numbers(data.label_then)
    encodings = learn(model.features, data.features, learnable)
    encoded = matrix(encodings, data.features)
    check_row_independence(model.features, data, np.flatnonzero(learnable)[:200])
    say(f"fitting on {rows['fit']:,} moments, calibrating on {rows['calibration']:,} ({world})")
    slices = _Slices(encodings, encoded, label_then, learnable, calibrating, requests)
    own = _fitted(model, model.estimator, list(model.features), slices)
    parts, others, compiled = _parts(model, data, slices, say)
    compiled = [own.compiled, *compiled]
    seconds["fit and calibrate"] = time.perf_counter() - clock
    clock = time.perf_counter()
    rates = rate_tables(model, data, learnable | calibrating, label_then)
    description = Description(
        model=as_json(model),
        content=model.content,
        world=world,
        trained_until=until,
        schemas=data.schemas,
        request=data.request,
        types={name: str(column.type) for name, column in data.features.items()},
        encodings=encodings,
        calibration=own.how.calibration,
        rates=rates,
        fixed_shape=own.how.fixed_shape,
        native=own.how.native,
        histograms={
            name: _histogram(column.filter(pa.array(learnable))) for name, column in data.features.items()
        },
        importance=_importance(own.estimator, [e.name for e in encodings]),
        scores={},
        environment=environment(),
        parts=parts,
        also=[as_json(moments) for moments in also],
        popular=list(popular),
        gate=own.how.gate,
    )
    bundle = Bundle(description, model, own.estimator, others=others, compiled=compiled)
    metric, scores = _scores(model, bundle, data, label, encoded, testing, requests)
    chosen = np.unique(np.linspace(0, at.size - 1, _SELFTEST_ROWS).astype(np.int64))
    selftest = pa.table({name: column.take(pa.array(chosen)) for name, column in data.features.items()})
    for number, scorer in bundle.scorers:
        asked = encoded[chosen][:, [encodings.index(encoding) for encoding in scorer.encodings]]
        raw = [scorer.library_raw_of(asked[row : row + 1]) for row in range(chosen.size)]
        answers = scorer.calibrated(np.concatenate(raw))
        selftest = selftest.append_column(answer_column(number), pa.array(answers))
    description = msgspec.structs.replace(
        description, scores={name: [s.value, s.low, s.high] for name, s in scores.items()}
    )
    bundle = Bundle(description, model, own.estimator, selftest, others=others, compiled=compiled)
    bundle.check()
    registry.save(bundle)
    seconds["score and save"] = time.perf_counter() - clock
    return Trained(bundle, metric, scores, rows, seconds)


def _slices(
    model: Model, data: TrainingSet, until: int
) -> tuple[Booleans, Booleans, Booleans, dict[str, int]]:
    """Split by time; what was not known by `until` is not learnt from, whatever came of it."""
    assert data.label is not None
    assert data.label_then is not None
    at, label = data.moments.at, model.label
    takes = label.within_microseconds + label.settles_microseconds
    labelled, labelled_then = (
        column.is_valid().to_numpy(zero_copy_only=False) for column in (data.label, data.label_then)
    )
    known = at + takes < until
    usable = known & labelled_then
    if not usable.any():
        raise TrainingError(
            f"No label of model {model.name!r} had matured at the time of training.",
            expected="moments asked before until - within - settles",
            found=f"{at.size:,} moments, of which {int(known.sum()):,} had matured and {int(usable.sum()):,} of these have a label",
            do="train later, or give older moments.",
        )
    # Each table has its own last slice: else all that was served since would calibrate, and nothing be learnt from it.
    border = np.full(at.size, until, np.int64)
    tables = np.zeros(at.size, np.int64) if data.table is None else data.table
    for number in np.unique(tables[usable]):
        own = tables == number
        border[own] = np.quantile(at[usable & own], 1 - _CALIBRATION_SHARE, method="lower")
    calibrated = model.calibration is not None and model.probability
    # What the first slice learns from had matured when the calibration slice began, as it will have in production.
    learnable = usable & (at + takes < border) if calibrated else usable
    calibrating = usable & (at >= border) if calibrated else np.zeros_like(usable)
    if not learnable.any():
        learnable = usable & (at < border) if (usable & (at < border)).any() else usable
    testing = (at >= until) & labelled & data.mature
    rows = {
        "fit": int(learnable.sum()),
        "calibration": int(calibrating.sum()),
        "test": int(testing.sum()),
        "immature": int((~known & (at < until)).sum()),
        "unlabelled": int((known & ~labelled_then).sum()),
    }
    if model.probability and np.unique(_numbers(data.label_then)[learnable]).size < 2:
        raise TrainingError(
            f"All {rows['fit']:,} examples of model {model.name!r} have the same label.",
            where="label",
            do="check the label's condition and `otherwise`.",
        )
    return learnable, calibrating, testing, rows


def _numbers(label: pa.Array | None) -> NDArray[np.float64]:
    assert label is not None
    return label.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


@dataclass(frozen=True)
class _Slices:
    """What every part of a model is trained on: one matrix, one split."""

    encodings: list[ColumnEncoding]
    encoded: NDArray[np.float64]
    label: NDArray[np.float64]
    learnable: Booleans
    calibrating: Booleans
    requests: NDArray[np.int64] | None


@dataclass(frozen=True)
class _Fitted:
    estimator: Any
    how: How
    compiled: Compiled | None


def _fitted(model: Model, estimator: Estimator, features: Collection[str], slices: _Slices) -> _Fitted:
    """Fit and calibrate an estimator on the columns of some of the model's features."""
    wanted = {column for column, feature in feature_columns(model.features) if feature in features}
    places = [place for place, encoding in enumerate(slices.encodings) if encoding.name in wanted]
    encodings = [slices.encodings[place] for place in places]
    rows = slices.encoded[:, places]
    learnt = rows[slices.learnable]
    categorical = [place for place, encoding in enumerate(encodings) if encoding.categories is not None]
    requests = None if slices.requests is None else slices.requests[slices.learnable]
    fitted = _fit(model, estimator, learnt, slices.label[slices.learnable], categorical, requests)
    calibration = _calibrate(model, fitted, rows[slices.calibrating], slices.label[slices.calibrating])

    def says(asked: NDArray[np.float64]) -> NDArray[np.float64]:
        return raw_scores(fitted, asked, probability=model.probability, threads=0)

    trees, gate = through_gate(fitted, says, rows, encodings, probability=model.probability)
    # Flat trees see one row at a time.
    known = isinstance(fitted, lightgbm.Booster) or trees is not None
    fixed_shape = not known and _depends_on_neighbours(model, fitted, learnt[:200])
    columns = [encoding.name for encoding in encodings]
    # What its features are derived from has to be evaluated too, and may be a user's Python.
    native = is_native(with_inputs(model.features, features), fitted, trees)
    compiled = None if trees is None else Compiled(trees, lambda: fitted)
    return _Fitted(fitted, How(columns, calibration, fixed_shape, native, gate), compiled)


def _parts(
    model: Model, data: TrainingSet, slices: _Slices, say: Say
) -> tuple[list[How | None], list[Any], list[Compiled | None]]:
    """Give how each fallback that sees features answers, its estimator and its flat trees; None for one that has none."""
    hows: list[How | None] = []
    estimators: list[Any] = []
    flat: list[Compiled | None] = []
    for number, fallback in enumerate(model.fallbacks):
        how, estimator, compiled = None, None, None
        match fallback:
            case Without() | Smaller():
                say(f"fitting {tier_name(number, fallback)}")
                other = fallback.estimator if isinstance(fallback, Smaller) else None
                kept = features_seen(model.features, fallback)
                fitted = _fitted(model, other or model.estimator, kept, slices)
                how, estimator, compiled = fitted.how, fitted.estimator, fitted.compiled
            case Rule():
                rule = {"sw.Rule": Derive(fallback.function, fallback.inputs)}
                made = replace(data, features={**data.features, "sw.Rule": _rule_column(fallback, data)})
                check_row_independence(rule, made, np.flatnonzero(slices.learnable)[:200])
                how = How([], None, fixed_shape=False, native=False)
            case _:
                pass
        hows.append(how)
        estimators.append(estimator)
        flat.append(compiled)
    return hows, estimators, flat


def _rule_column(rule: Rule, data: TrainingSet) -> pa.Array:
    """Give what a rule makes of every moment of a training set."""
    fields = {name: data.moments.fields[name].combine_chunks() for name in data.moments.fields.column_names}
    columns = {**fields, **data.features}
    return call_derived(
        Derive(rule.function, rule.inputs), RULE, [columns[item] for item in rule.inputs], pa.float64()
    )


def _fit(
    model: Model,
    definition: Estimator,
    rows: NDArray[np.float64],
    label: NDArray[np.float64],
    categorical: list[int],
    requests: NDArray[np.int64] | None,
) -> Any:
    unfitted = definition.unfitted
    if not hasattr(unfitted, "fit"):
        raise TrainingError(
            f"Model {model.name!r} was read from a bundle, so its estimator cannot be trained.",
            do="train from the world file.",
        )
    estimator = copy.deepcopy(unfitted)
    target = label.astype(np.int64) if model.probability else label
    groups: dict[str, Any] = {}
    if requests is not None and definition.ranks:
        order = np.argsort(requests, kind="stable")
        rows, target = rows[order], target[order]
        groups["group"] = np.unique(requests, return_counts=True)[1]
    if isinstance(estimator, lightgbm.LGBMModel):
        given = estimator.get_params()
        # Quiet, and the same model from the same rows whatever the number of cores.
        own = {"verbosity": -1, "deterministic": True, "force_row_wise": True}
        estimator.set_params(**{name: value for name, value in own.items() if given.get(name) is None})
        estimator.fit(rows, target, categorical_feature=categorical, **groups)
        return lightgbm.Booster(model_str=estimator.booster_.model_to_string())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(rows, target, **groups)
    except ValueError as error:
        raise TrainingError(
            f"The estimator of model {model.name!r} cannot learn from its features.",
            where=definition.kind,
            found=str(error).splitlines()[0],
            do="wrap it in a scikit-learn pipeline that fills nulls (NaN), or use one that takes them.",
        ) from error
    return estimator


def _calibrate(
    model: Model, estimator: Any, rows: NDArray[np.float64], label: NDArray[np.float64]
) -> tuple[list[float], list[float]] | None:
    """Fit an isotonic step from raw scores to probabilities on the later slice."""
    if model.calibration is None or not model.probability or rows.shape[0] == 0:
        return None
    raw = raw_scores(estimator, rows, probability=True)
    isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw, label)
    return [float(x) for x in isotonic.X_thresholds_], [float(y) for y in isotonic.y_thresholds_]


def rate_tables(
    model: Model, data: TrainingSet, learnt: Booleans, label: NDArray[np.float64]
) -> list[RateTable]:
    """Give one table for every `sw.Rate` of the model, or by its first category when it has none, so that there is always a second baseline."""
    wanted = [fallback.by for fallback in model.fallbacks if isinstance(fallback, Rate)]
    if not wanted:
        first = next(
            (
                f.of.name
                for f in model.features.values()
                if isinstance(f, Category) and isinstance(f.of, Field)
            ),
            None,
        )
        wanted = [first] if first else []
    fields = data.moments.fields.filter(pa.array(learnt))
    return [rate_table(by, fields, label[learnt]) for by in dict.fromkeys(wanted)]


def _scores(
    model: Model,
    bundle: Bundle,
    data: TrainingSet,
    label: NDArray[np.float64],
    encoded: NDArray[np.float64],
    testing: Booleans,
    requests: NDArray[np.int64] | None,
) -> tuple[str, dict[str, Score]]:
    metric, score = metric_of(model, None if requests is None else requests[testing])
    truth = label[testing]
    if truth.size == 0:
        return metric, {}
    given = bundle.scores_of(encoded[testing])
    said = given if requests is None else bundle.scorer.raw_of(encoded[testing])
    scores = {"model": score(truth, said)}
    tables = bundle.description.rates
    overall = tables[0].overall if tables else float(np.nanmean(label[~testing]))
    scores["constant"] = score(truth, np.full(truth.shape, overall))
    if tables and tables[0].by is not None:
        scores["rate"] = score(truth, tables[0].answers(data.moments.fields.filter(pa.array(testing))))
    scores |= {
        name: score(truth, predicted)
        for name, predicted in _of_fallbacks(model, bundle, data, testing, overall)
    }
    if model.probability:
        loss = log_loss(truth, given)
        scores["log_loss"] = Score(loss, loss, loss)
    if requests is not None:
        scores["mrr"] = mean_reciprocal_rank(truth, said, requests[testing])
        if model.probability:
            scores["roc_auc"] = roc_auc(truth, said)
    return metric, {name: s for name, s in scores.items() if np.isfinite(s.value)}


def _of_fallbacks(
    model: Model, bundle: Bundle, data: TrainingSet, testing: Booleans, otherwise: float
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Give what fallbacks that see features would have answered; and the model itself with nulls in the place of the sources that a `sw.Without` does without."""
    chosen = pa.array(testing)
    columns = {name: column.filter(chosen) for name, column in data.features.items()}
    for number, (fallback, part) in enumerate(zip(model.fallbacks, bundle.parts, strict=True)):
        if isinstance(fallback, Popular) and (table := bundle.description.popular[number]) is not None:
            yield tier_name(number, fallback), popularity(fallback, table, data.moments.fields.filter(chosen))
        if part is None:
            continue
        seen = columns
        if isinstance(fallback, Rule):
            seen = {RULE: _rule_column(fallback, data).filter(chosen)}
        predicted = said_by(model, part.scorer, seen)
        yield tier_name(number, fallback), np.where(np.isnan(predicted), otherwise, predicted)
        if isinstance(fallback, Without) and not any(
            isinstance(plain(feature), Derive) for feature in model.features.values()
        ):
            kept = {column for column, _ in feature_columns(part.features)}
            gone = {
                name: column if name in kept else pa.nulls(len(column), column.type)
                for name, column in columns.items()
            }
            yield f"model_with_nulls_for_{'_and_'.join(fallback.names)}", said_by(model, bundle.scorer, gone)


def _depends_on_neighbours(model: Model, estimator: Any, rows: NDArray[np.float64]) -> bool:
    """Whether an estimator's bits for a row may depend on the other rows of the call.

    A matrix product's do, by its library's blocking, in a row of a hundred: what has coefficients is not asked. Others are compared alone, in calls
    of many sizes and permuted, on the training rows and on new combinations of their values.
    """
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    if hasattr(last, "coef_") or hasattr(last, "coefs_"):
        return True
    probability = model.probability
    random = np.random.default_rng(0)
    mixed = random.permuted(np.repeat(rows, 1 + _COMPARED_ROWS // max(rows.shape[0], 1), axis=0), axis=0)
    rows = np.concatenate([rows, mixed])[:_COMPARED_ROWS]

    def bits(of: NDArray[np.float64]) -> NDArray[np.int64]:
        return raw_scores(estimator, np.ascontiguousarray(of), probability=probability).view(np.int64)

    alone = np.concatenate([bits(rows[i : i + 1]) for i in range(rows.shape[0])])
    orders = (np.arange(rows.shape[0]), random.permutation(rows.shape[0]))
    return any(
        not np.array_equal(bits(rows[order[i : i + size]]), alone[order[i : i + size]])
        for order in orders
        for size in _BATCH_SIZES
        for i in range(0, rows.shape[0], size)
    )


def _histogram(column: pa.Array) -> Histogram:
    numbers = column.drop_null()
    if pa.types.is_string(column.type) or pa.types.is_list(column.type) or len(numbers) == 0:
        return Histogram(len(column), column.null_count, [], [])
    values = nearest_floats(numbers)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Histogram(len(column), column.null_count, [], [])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 31)[1:]))
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=edges.size)
    return Histogram(len(column), column.null_count, [float(e) for e in edges], [int(c) for c in counts])


def _importance(estimator: Any, names: list[str]) -> dict[str, float]:
    """Give each column's share of the trees' gain; nothing for other estimators."""
    if not isinstance(estimator, lightgbm.Booster):
        return {}
    gain = estimator.feature_importance("gain")
    total = float(gain.sum()) or 1.0
    return {name: float(value) / total for name, value in zip(names, gain, strict=True)}
