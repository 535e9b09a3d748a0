"""Training learns from what had matured at the time of training, whatever came of it, and says no where it cannot be honest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.linear_model import LogisticRegression
from small_world import HOUR, START, UNTIL, SmallWorld, instants

import sameworld as sw
from sameworld.definitions.functions import NamedFunction
from sameworld.errors import DefinitionError, TrainingError
from sameworld.training.fit import Trained, fit, train
from sameworld.training.training_set import compute

TIMES = [START + i * HOUR for i in range(400)]


def moments(times: Sequence[int] = TIMES) -> sw.Moments:
    random = np.random.default_rng(1)
    rows = pa.table(
        {
            "at": instants(times),
            "key": [f"k{i}" for i in range(len(times))],
            "x": random.normal(size=len(times)),
            "kind": [f"c{i % 3}" for i in range(len(times))],
        }
    )
    return sw.Moments(rows, at="at")


def outcomes(values: Sequence[float], after: int = HOUR, *, times: Sequence[int] = TIMES) -> sw.Source:
    """Every moment's outcome, so long after it, readable at once."""
    rows = pa.table(
        {
            "key": [f"k{i}" for i in range(len(values))],
            "value": [float(value) for value in values],
            "when": instants([t + after for t in times[: len(values)]]),
        }
    )
    return sw.Source("outcomes", rows, event_time="when", available_at=sw.at_event_time())


FEATURES: dict[str, Any] = {"x": sw.field("x"), "kind": sw.field("kind").category()}


def model(label: sw.Label, **options: Any) -> sw.Model:
    given: dict[str, Any] = {
        "moments": moments(),
        "features": FEATURES,
        "estimator": LGBMClassifier(n_estimators=5, min_child_samples=5, n_jobs=1),
    }
    return sw.Model("test", label=label, **(given | options))


def above(source: sw.Source, **options: Any) -> sw.Label:
    return sw.Label(source.by("key").last("value") > 0.5, **({"within": "2h"} | options))


def alternating(count: int = len(TIMES)) -> list[float]:
    return [float(i % 2) for i in range(count)]


class Recorder(LogisticRegression):
    """Keeps what it was fitted with."""

    def fit(self, rows: Any, label: Any, sample_weight: Any = None) -> Any:
        Recorder.rows, Recorder.label = rows, label
        return super().fit(np.nan_to_num(rows), label)

    def predict_proba(self, rows: Any) -> Any:
        return super().predict_proba(np.nan_to_num(rows))


def trained(tmp_path: Path, label: sw.Label, until: int, **options: Any) -> Trained:
    return train(model(label, **options), registry=tmp_path / "registry", until=until)


@pytest.mark.parametrize("settles", [0, 3])
def test_an_example_enters_only_when_it_had_matured_whatever_its_outcome(
    tmp_path: Path, settles: int
) -> None:
    # given: every outcome is known after one hour, and counts for two
    label = above(outcomes(alternating()), settles=f"{settles}h")
    until = START + 100 * HOUR
    # when
    told = trained(tmp_path, label, until, estimator=Recorder(), calibration=None)
    # then: t + within + settles < until, for positives and negatives alike
    last = 100 - 2 - settles - 1
    assert told.rows["fit"] == last + 1
    assert told.rows["immature"] == 100 - (last + 1)
    assert Recorder.label.tolist() == alternating(last + 1)
    assert told.rows["test"] == len(TIMES) - 100


@pytest.mark.parametrize(("until", "fit_"), [(START + 52 * HOUR, 50), (START + 52 * HOUR + 1, 51)])
def test_maturity_is_strictly_before_the_time_of_training(tmp_path: Path, until: int, fit_: int) -> None:
    label = above(outcomes(alternating()))
    assert trained(tmp_path, label, until, estimator=Recorder(), calibration=None).rows["fit"] == fit_


def test_a_positive_that_is_known_early_does_not_enter_early(tmp_path: Path) -> None:
    """Only positives have an event; without the wait they would be the only recent examples."""
    rows = outcomes(alternating())
    label = above(rows.where("value > 0.5").source, otherwise=False)
    trained(tmp_path, label, START + 60 * HOUR, estimator=Recorder(), calibration=None)
    assert Recorder.label.mean() == 0.5


def test_the_delay_of_the_source_is_waited_for(tmp_path: Path) -> None:
    slow = sw.Source("outcomes", outcomes(alternating()).data, event_time="when", available_at=sw.delay("5h"))
    told = trained(tmp_path, above(slow), START + 100 * HOUR, estimator=Recorder(), calibration=None)
    assert told.rows["fit"] == 100 - 2 - 5


def test_the_calibration_slice_is_later_than_what_was_learnt(tmp_path: Path) -> None:
    # given
    data = compute(
        FEATURES,
        moments(),
        above(outcomes(alternating())),
        engine=_engine(),
        until=START + 202 * HOUR,
    )
    chosen = model(above(outcomes(alternating())), estimator=Recorder())
    # when
    told = fit(chosen, data, registry=_registry(tmp_path), world="as_of")
    # then: of 200 matured moments the last fifth calibrates, and what came before had matured when it began
    assert told.rows["calibration"] == 41
    assert told.rows["fit"] == 200 - 41 - 2
    assert len(Recorder.rows) == told.rows["fit"]
    assert told.bundle.description.calibration is not None


def test_calibrated_answers_are_probabilities_that_rise_with_the_score(tmp_path: Path) -> None:
    told = trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR)
    assert told.bundle.description.calibration is not None
    scores, probabilities = told.bundle.description.calibration
    assert scores == sorted(scores)
    assert probabilities == sorted(probabilities)
    assert 0 <= min(probabilities) <= max(probabilities) <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_examples_of_one_label_teach_nothing(tmp_path: Path, value: float) -> None:
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, above(outcomes([value] * len(TIMES))), START + 102 * HOUR, calibration=None)
    assert str(caught.value) == (
        "All 100 examples of model 'test' have the same label.\n  in: label\n"
        "  do: check the label's condition and `otherwise`."
    )
    assert not (tmp_path / "registry").exists()


def test_nothing_matured_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, above(outcomes(alternating())), START + HOUR)
    assert str(caught.value) == (
        "No label of model 'test' had matured at the time of training.\n"
        "  expected: moments asked before until - within - settles\n"
        "  found: 400 moments, of which 0 had matured and 0 of these have a label\n"
        "  do: train later, or give older moments."
    )


def test_no_moments_are_said_so(tmp_path: Path) -> None:
    none = sw.Moments(moments().data[:0], at="at")
    with pytest.raises(TrainingError) as caught:
        trained(tmp_path, above(outcomes(alternating())), UNTIL, moments=none)
    assert str(caught.value) == "There are no moments to learn from.\n  do: check the moments' table."


def test_a_moment_whose_outcome_never_came_is_left_out_or_gets_otherwise(tmp_path: Path) -> None:
    half = outcomes(alternating(50))
    until = START + 102 * HOUR
    left = trained(tmp_path, above(half), until, estimator=Recorder(), calibration=None)
    assert (left.rows["fit"], left.rows["unlabelled"]) == (50, 50)
    told = trained(tmp_path, above(half, otherwise=True), until, estimator=Recorder(), calibration=None)
    assert (told.rows["fit"], told.rows["unlabelled"]) == (100, 0)
    assert Recorder.label.tolist() == alternating(50) + [1] * 50


def test_an_outcome_beyond_the_window_is_no_outcome(tmp_path: Path) -> None:
    on_the_border = above(outcomes(alternating(), after=2 * HOUR))
    with pytest.raises(TrainingError):
        trained(tmp_path, on_the_border, START + 100 * HOUR)
    inside = above(outcomes(alternating(), after=2 * HOUR - 1))
    assert trained(tmp_path, inside, START + 102 * HOUR, calibration=None).rows["fit"] == 100


def test_a_number_is_scored_by_its_error(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(10, 2, len(TIMES))
    label = sw.Label(outcomes(values.tolist()).by("key").last("value"), within="2h")
    told = trained(
        tmp_path,
        label,
        START + 300 * HOUR,
        estimator=LGBMRegressor(n_estimators=5, n_jobs=1),
        fallbacks=[sw.Rate(by="kind")],
    )
    assert told.metric == "rmse"
    assert told.bundle.model.output == "number"
    assert told.bundle.description.calibration is None
    assert set(told.scores) == {"model", "constant", "rate"}
    truth = values[300:]
    overall = values[:298].mean()
    assert told.scores["constant"].value == pytest.approx(np.sqrt(np.mean((truth - overall) ** 2)))


def test_rates_are_the_means_of_what_was_learnt(tmp_path: Path) -> None:
    told = trained(
        tmp_path,
        above(outcomes(alternating())),
        START + 102 * HOUR,
        calibration=None,
        fallbacks=[sw.Rate(by="kind"), sw.Rate()],
    )
    by_kind, overall = told.bundle.description.rates
    labels = np.array(alternating(100))
    assert overall.rates == []
    assert by_kind.overall == overall.overall == labels.mean()
    assert dict(by_kind.rates) == {f"c{i}": pytest.approx(labels[i::3].mean()) for i in range(3)}
    assert told.bundle.fallback(0, {"kind": "never seen"}) == labels.mean()


def with_a_source(fallbacks: Sequence[Any], *, only_field: bool = False, **options: Any) -> dict[str, Any]:
    """Give a model's options with a source that tells the label, so that a part without it answers otherwise."""
    known = outcomes(alternating(), -HOUR)
    told = msgspec.structs.replace(known, name="told")
    features = FEATURES | {"told": told.by("key").last("value"), "d": sw.derive(doubled, "told")}
    return {"features": FEATURES if only_field else features, "fallbacks": fallbacks, **options}


@pytest.mark.parametrize(
    "estimator", [LGBMClassifier(n_estimators=5, min_child_samples=5, n_jobs=1), Recorder()]
)
def test_a_part_without_a_source_is_the_model_that_never_had_it(tmp_path: Path, estimator: Any) -> None:
    label = above(outcomes(alternating()))
    until = START + 300 * HOUR
    fallbacks = [sw.Constant(0.5), sw.Without("told")]
    told = trained(tmp_path, label, until, estimator=estimator, **with_a_source(fallbacks))
    alone = trained(tmp_path, label, until, estimator=estimator, **with_a_source([], only_field=True))
    (constant, part) = _registry(tmp_path).load(told.bundle.address, _functions()).parts
    assert constant is None
    assert list(part.features) == ["x", "kind"]
    assert alone.bundle.selftest is not None
    columns = {name: alone.bundle.selftest[name].combine_chunks() for name in ("x", "kind")}
    scores = part.scorer.scores(columns)
    assert scores.tobytes() == alone.bundle.scores(columns).tobytes()
    assert told.scores["fallback_2_without"] == alone.scores["model"]
    assert told.scores["model"].value > 0.99 > told.scores["fallback_2_without"].high
    # It does without the user's Python that only the source's features need.
    assert (told.bundle.description.native, part.how.native) == (False, isinstance(estimator, LGBMClassifier))


def test_a_smaller_model_has_its_own_features_and_estimator(tmp_path: Path) -> None:
    fallbacks = [sw.Smaller(features=["x"], estimator=Recorder()), sw.Smaller(features=("d",))]
    told = trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR, **with_a_source(fallbacks))
    logistic, derived = told.bundle.parts
    assert logistic is not None
    assert derived is not None
    assert Recorder.rows.shape[1] == 1
    assert (logistic.how.columns, logistic.how.native) == (["x"], False)
    # What a feature is derived from is evaluated and logged with it, and not learnt from.
    assert (derived.how.columns, list(derived.features), derived.how.native) == (["d"], ["told", "d"], False)
    assert told.scores["fallback_2_smaller"].value > 0.99


def half(x: Any, kind: Any) -> Any:
    return np.where(x > 0, 0.75, np.nan)


def test_a_rule_is_scored_with_the_overall_mean_where_it_gives_nothing(tmp_path: Path) -> None:
    told = trained(
        tmp_path,
        above(outcomes(alternating())),
        START + 300 * HOUR,
        fallbacks=[sw.Rule(half, ("x", "kind"))],
    )
    assert told.scores["fallback_1_rule"].value == pytest.approx(0.5, abs=0.15)
    (part,) = told.bundle.parts
    assert part is not None
    assert not part.how.native


def test_a_rule_that_looks_at_other_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"'share' of feature 'sw.Rule' is not row-independent"):
        trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR, fallbacks=[sw.Rule(share, "x")])


def test_the_model_with_nulls_is_scored_beside_the_one_without(tmp_path: Path) -> None:
    given = with_a_source([sw.Without("told")])
    given["features"].pop("d")
    told = trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR, **given)
    assert told.scores["model"].value > 0.99
    assert told.scores["model_with_nulls_for_told"].value < 0.7


def _functions() -> list[NamedFunction]:
    return [NamedFunction.of(doubled)]


def share(x: Any) -> Any:
    return x / np.sum(np.abs(x))


def ranked(x: Any) -> Any:
    return np.argsort(np.argsort(x)).astype(np.float64)


def doubled(x: Any) -> Any:
    return x * 2.0


@pytest.mark.parametrize("function", [share, ranked])
def test_a_derived_feature_that_looks_at_other_rows_is_refused(tmp_path: Path, function: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        trained(
            tmp_path,
            above(outcomes(alternating())),
            START + 300 * HOUR,
            features=FEATURES | {"d": sw.derive(function, "x")},
        )
    error = caught.value
    assert error.what == f"The function {function.__name__!r} of feature 'd' is not row-independent."
    assert error.where == f"{__file__}:{function.__code__.co_firstlineno}"
    assert error.expected == "the same bits for a row whatever other rows are in the call"
    assert error.found == "a row gives another value alone than in a batch of 200"


def test_a_derived_feature_of_its_own_row_is_taken_and_guarded(tmp_path: Path) -> None:
    told = trained(
        tmp_path,
        above(outcomes(alternating())),
        START + 300 * HOUR,
        features=FEATURES | {"d": sw.derive(doubled, "x")},
    )
    assert not told.bundle.description.native


def test_an_estimator_that_takes_no_nulls_is_told_what_to_do(tmp_path: Path) -> None:
    rows = moments()
    with_null = rows.data.set_column(2, "x", pa.array([None, *rows.data["x"].to_pylist()[1:]]))
    with pytest.raises(TrainingError) as caught:
        trained(
            tmp_path,
            above(outcomes(alternating())),
            START + 300 * HOUR,
            estimator=LogisticRegression(),
            moments=sw.Moments(with_null, at="at"),
        )
    assert str(caught.value) == (
        "The estimator of model 'test' cannot learn from its features.\n"
        "  in: sklearn.linear_model._logistic.LogisticRegression\n"
        "  found: Input X contains NaN.\n"
        "  do: wrap it in a scikit-learn pipeline that fills nulls (NaN), or use one that takes them."
    )


def test_a_model_read_from_a_bundle_cannot_be_trained(tmp_path: Path) -> None:
    told = trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR)
    loaded = _registry(tmp_path).load(told.bundle.address).model
    data = compute(
        FEATURES,
        moments(),
        above(outcomes(alternating())),
        engine=_engine(),
        until=START + 300 * HOUR,
    )
    with pytest.raises(TrainingError, match="was read from a bundle"):
        fit(loaded, data, registry=_registry(tmp_path), world="as_of")


def test_categories_are_learnt_from_what_was_learnt_alone(tmp_path: Path) -> None:
    rows = moments().data
    kinds = [f"c{i % 3}" for i in range(300)] + ["after"] * 100
    told = trained(
        tmp_path,
        above(outcomes(alternating())),
        START + 300 * HOUR,
        moments=sw.Moments(rows.set_column(3, "kind", pa.array(kinds)), at="at"),
    )
    by_name = {encoding.name: encoding.categories for encoding in told.bundle.description.encodings}
    assert by_name == {"x": None, "kind": ["c0", "c1", "c2"]}


def test_the_caller_s_estimator_is_not_touched(tmp_path: Path) -> None:
    estimator = LGBMClassifier(n_estimators=5, n_jobs=1)
    trained(tmp_path, above(outcomes(alternating())), START + 300 * HOUR, estimator=estimator)
    assert not hasattr(estimator, "fitted_") or not estimator.fitted_
    assert estimator.get_params()["n_estimators"] == 5


def test_by_default_the_latest_moments_are_for_the_score(tmp_path: Path, trained_world: SmallWorld) -> None:
    told = train(model(above(outcomes(alternating()))), registry=tmp_path / "registry")
    assert told.bundle.description.trained_until == TIMES[int(0.85 * 399)]
    assert told.rows["test"] == 400 - 339


def _engine() -> Any:
    from sameworld.engines.duckdb import DuckDBEngine

    return DuckDBEngine(threads=1)


def _registry(tmp_path: Path) -> Any:
    from sameworld.training.bundle import Registry

    return Registry(tmp_path / "registry")


def test_what_is_learnt_is_the_label_as_known_at_the_time_of_training(tmp_path: Path) -> None:
    # given outcomes that say yes every other time, but are readable only long after the time of training
    rows = pa.table(
        {
            "key": [f"k{i}" for i in range(len(TIMES))],
            "value": alternating(),
            "when": instants([t + HOUR for t in TIMES]),
            "known": instants([t + 10_000 * HOUR for t in TIMES]),
        }
    )
    late = sw.Source("outcomes", rows, event_time="when", available_at="known")
    # then all that is known by then is "otherwise", so there is nothing to tell apart
    with pytest.raises(TrainingError, match="have the same label"):
        # when
        trained(tmp_path, above(late, otherwise=False), START + 300 * HOUR)
