"""The gap: what a model claims in the world it was trained in, beside what its logged answers delivered, on the same moments with the same labels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.table import Table

from sameworld.asof.plan import aggregates_of, groupings_of
from sameworld.asof.request import evaluate, feature_columns
from sameworld.asof.schema import VALUE_TYPES
from sameworld.definitions.availability import AvailableColumn, Delay
from sameworld.definitions.feature import Aggregate, Category
from sameworld.definitions.model import Model
from sameworld.engines.interface import Asked, Engine, Rows, World
from sameworld.errors import ProofError
from sameworld.evaluation.prove import Against, same_bits
from sameworld.evaluation.report_data import (
    Baseline,
    CalibrationBin,
    GapReportData,
    LeakedFeature,
    MonthScore,
    WorldScore,
)
from sameworld.stores.history import served_rows
from sameworld.stores.prediction_log import Prediction, predictions
from sameworld.training.bundle import Bundle
from sameworld.training.fitted import said_by
from sameworld.training.metrics import Score, paired_roc_auc_difference
from sameworld.training.moments import MomentTable
from sameworld.training.ranking_metrics import metric_of
from sameworld.training.training_set import label_at, sources_of

Say = Callable[[str], None]
Numbers = NDArray[np.float64]

_CALIBRATION_BINS = 15
_HOUR = 3_600_000_000


@dataclass(frozen=True)
class WorldGap:
    """One world's claim and delivery."""

    world: World
    claimed: Score
    delivered: Score
    tiers: dict[str, float]


@dataclass(frozen=True)
class Gap:
    """A measured gap, and the report's data."""

    model: str
    metric: str
    moments: int
    worlds: list[WorldGap]
    report: GapReportData

    def as_json(self) -> dict[str, Any]:
        """The gap for a script."""
        return {
            "model": self.model,
            "metric": self.metric,
            "moments": self.moments,
            "worlds": [
                {
                    "world": w.world, "claimed": _finite(w.claimed.value), "delivered": _finite(w.delivered.value),
                    "claimed_interval": [_finite(w.claimed.low), _finite(w.claimed.high)], "delivered_interval": [_finite(w.delivered.low), _finite(w.delivered.high)], "tiers": w.tiers,
                }
                for w in self.worlds
            ],
        }  # fmt: skip

    def table(self) -> Table:
        """The gap for a terminal."""
        table = Table(
            "world",
            "claimed",
            "delivered",
            "difference",
            "tiers",
            title=f"{self.model}: {self.metric} on {self.moments:,} moments",
        )
        for w in self.worlds:
            tiers = ", ".join(f"{tier} {share:.1%}" for tier, share in w.tiers.items())
            table.add_row(
                w.world,
                f"{w.claimed.value:.4f} ({w.claimed.low:.4f} to {w.claimed.high:.4f})",
                f"{w.delivered.value:.4f} ({w.delivered.low:.4f} to {w.delivered.high:.4f})",
                f"{w.delivered.value - w.claimed.value:+.4f}",
                tiers,
            )
        for baseline in self.report.baselines:
            table.add_row(baseline.name, "", f"{baseline.score:.4f}", "", "baseline", style="dim")
        return table


def measure(
    model: Model,
    bundles: Sequence[Bundle],
    state: Path,
    *,
    engine: Engine,
    against: Against = "log",
    as_of: int | None = None,
    say: Say = lambda _: None,
) -> Gap:
    """Measure the gap of every bundle whose answers are in the log.

    Args:
        model: the world's.
        bundles: trained in different worlds.
        state: the server's folder.
        engine: computes claims and labels.
        against: where rows are read: "log" is files up to the cutover and the event log after it, "files" the files alone.
        as_of: microseconds; when labels are known. Only those that have matured by then count. Now by default.
        say: told what is being done.

    Raises:
        ProofError: no bundle has answers in the log, or no label has matured.
    """
    logged: dict[str, dict[Any, Prediction]] = {}
    for _, prediction in predictions(state):
        if prediction is not None:
            # An answer that was asked for again after a broken connection counts once: the one that came last.
            asked = prediction.ranked and prediction.ranked.candidates
            key = prediction.t, repr(prediction.request), repr(asked)
            logged.setdefault(prediction.version, {})[key] = prediction
    known = as_of if as_of is not None else time.time_ns() // 1000
    answered = [bundle for bundle in bundles if bundle.address in logged]
    if not answered:
        raise ProofError(
            "None of the bundles has answers in the log.",
            where=str(state),
            do="serve them first, or name others with --bundle.",
        )
    seen: dict[tuple[str, World], dict[str, pa.Array]] = {}
    worlds: list[WorldGap] = []
    shown: list[WorldScore] = []
    moments = MomentTable(np.zeros(0, np.int64), pa.table({}))
    where: dict[str, Rows] = {}
    label = np.zeros(0)
    metric, score = metric_of(model)
    mature = np.zeros(0, np.bool_)
    for bundle in answered:
        answers = [prediction for _, prediction in sorted(logged[bundle.address].items())]
        rows = [row for answer in answers for row in answer.rows()]
        own = _moments(bundle, rows)
        if label.size == 0 or not (np.array_equal(own.at, moments.at) and own.fields.equals(moments.fields)):
            moments, seen = own, {}
        if not seen:
            say(f"labels of {own.at.size:,} moments")
            if against == "log":
                sources = sources_of(bundle.model.features, bundle.model.label)
                where = served_rows(state, sources, bundle.description.schemas)
            definition = bundle.model.label
            outcome = label_at(definition, engine, bundle.description.schemas, own, known, where)
            settled = own.at + definition.within_microseconds + definition.settles_microseconds < known
            mature = settled & outcome.is_valid().to_numpy(zero_copy_only=False)
            label = outcome.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        if not mature.any():
            raise ProofError(
                f"None of the {own.at.size:,} answers of model {bundle.model.name!r} has an outcome yet.",
                expected="answers older than the label's within + settles, with an outcome",
                do="wait until the labels have matured: judging early would count what has not happened yet as a no.",
            )
        world: World = "event_time" if bundle.description.world == "event_time" else "as_of"
        say(f"what {bundle.model.name} claims in the world {world}")
        columns = seen.setdefault((bundle.model.content, world), _features(bundle, engine, own, world, where))
        claimed = said_by(bundle.model, bundle.scorer, columns)[mature]
        delivered = np.array([delivered for answer in answers for delivered in _delivered(answer)])[mature]
        tiers = Counter(answer.tier for answer in answers)
        truth = label[mature]
        requests = None if model.ranking is None else _requests(answers)[mature]
        metric, score = metric_of(model, requests)
        shares = {tier: count / len(answers) for tier, count in tiers.most_common()}
        worlds.append(WorldGap(world, score(truth, claimed), score(truth, delivered), shares))
        shown.append(_shown(worlds[-1], model, requests, own.at[mature], truth, claimed, delivered))
    leaks: list[LeakedFeature] = []
    by_world = {bundle.description.world: bundle for bundle in answered}
    if "event_time" in by_world:
        say("which features leaked, and how far ahead they looked")
        leaking = by_world["event_time"]
        honest = seen.get((leaking.model.content, "as_of")) or _features(
            leaking, engine, moments, "as_of", where
        )
        leaks = _leaks(leaking, engine, moments, where, seen[leaking.model.content, "event_time"], honest)
    first = answered[0]
    report = GapReportData(
        model=model.name,
        metric=metric,
        moments=int(mature.sum()),
        worlds=shown,
        positives_rate=float(label[mature].mean()) if metric == "roc_auc" else None,
        period=f"{np.datetime64(int(moments.at.min()), 'us').astype('datetime64[D]')} to {np.datetime64(int(moments.at.max()), 'us').astype('datetime64[D]')}",
        baselines=_baselines(first, moments, label, mature, score),
        leaks=leaks,
        higher_is_better=metric != "rmse",
    )
    return Gap(model.name, metric, int(mature.sum()), worlds, report)


def _delivered(answer: Prediction) -> list[float]:
    """Give what an answer said; of a ranking the order of its candidates, the higher the earlier."""
    return [answer.value] if answer.ranked is None else [-float(rank) for rank in answer.ranked.ranks]


def _requests(answers: Sequence[Prediction]) -> NDArray[np.int64]:
    counts = [len(answer.ranked.ranks) if answer.ranked is not None else 1 for answer in answers]
    return np.repeat(np.arange(len(counts)), counts)


def _moments(bundle: Bundle, rows: Sequence[Prediction]) -> MomentTable:
    columns = zip(*(p.request for p in rows), strict=True)
    request = bundle.description.request
    fields = {
        name: pa.array(list(values), VALUE_TYPES[family])
        for (name, family), values in zip(request.items(), columns, strict=True)
    }
    return MomentTable(np.array([p.t for p in rows], np.int64), pa.table(fields))


def _features(
    bundle: Bundle, engine: Engine, moments: MomentTable, world: World, where: Mapping[str, Rows]
) -> dict[str, pa.Array]:
    features = bundle.model.features
    asked = Asked(moments.fields, moments.at, moments.at)
    aggregates = engine.aggregates(
        groupings_of(aggregates_of(features.values())),
        bundle.description.schemas,
        asked,
        rows=where,
        world=world,
    )
    return evaluate(
        features,
        aggregates,
        {name: moments.fields[name].combine_chunks() for name in moments.fields.column_names},
        bundle.types,
    )


def _shown(
    gap: WorldGap,
    model: Model,
    requests: NDArray[np.int64] | None,
    at: NDArray[np.int64],
    label: Numbers,
    claimed: Numbers,
    delivered: Numbers,
) -> WorldScore:
    metric, _ = metric_of(model, requests)

    def score(chosen: NDArray[np.bool_], predicted: Numbers) -> float | None:
        _, scored = metric_of(model, None if requests is None else requests[chosen])
        return _finite(scored(label[chosen], predicted[chosen]).value)

    months = at.astype("datetime64[us]").astype("datetime64[M]")
    by_month = [
        MonthScore(
            str(month),
            int(chosen.sum()),
            score(chosen, claimed),
            score(chosen, delivered),
        )
        for month in np.unique(months)
        for chosen in [months == month]
    ]
    short = paired_roc_auc_difference(label, claimed, delivered) if metric == "roc_auc" else None
    return WorldScore(
        gap.world, gap.claimed.value, gap.delivered.value, (gap.claimed.low, gap.claimed.high), (gap.delivered.low, gap.delivered.high),
        gap_interval=(short.low, short.high) if short is not None and np.isfinite(short.low) else None,
        by_month=by_month, calibration=_calibration(label, delivered) if metric == "roc_auc" else (), tiers=gap.tiers,
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _calibration(label: Numbers, prediction: Numbers) -> list[CalibrationBin]:
    order = np.argsort(prediction, kind="stable")
    parts = [part for part in np.array_split(order, _CALIBRATION_BINS) if part.size]
    return [
        CalibrationBin(float(prediction[part].mean()), float(label[part].mean()), int(part.size))
        for part in parts
    ]


def _baselines(
    bundle: Bundle,
    moments: MomentTable,
    label: Numbers,
    mature: NDArray[np.bool_],
    score: Callable[[Numbers, Numbers], Score],
) -> list[Baseline]:
    tables = bundle.description.rates
    if not tables:
        return []
    constant = score(label[mature], np.full(int(mature.sum()), tables[0].overall))
    found = [Baseline("constant", constant.value)]
    for table in tables:
        if table.by is not None:
            rated = score(label[mature], table.answers(moments.fields)[mature])
            found.append(Baseline(f"rate by {table.by}", rated.value, (rated.low, rated.high)))
    return found


def _leaks(
    bundle: Bundle,
    engine: Engine,
    moments: MomentTable,
    where: Mapping[str, Rows],
    leaking: dict[str, pa.Array],
    honest: dict[str, pa.Array],
) -> list[LeakedFeature]:
    """Rank feature columns by what they matter to the leaking model times how often their value is not the honest one."""
    importance = bundle.description.importance
    ahead = _hours_ahead(bundle, engine, moments, where)
    found: list[LeakedFeature] = []
    for column, _ in feature_columns(bundle.model.features):
        differs = ~same_bits(leaking[column], honest[column])
        if not differs.any():
            continue
        hours = ahead.get(column, np.zeros(0))
        hours = hours[differs & (hours > 0)] if hours.size else hours
        median, p90 = (float(q) for q in np.quantile(hours, [0.5, 0.9])) if hours.size else (None, None)
        found.append(LeakedFeature(column, float(differs.mean()), median, p90, importance.get(column)))
    return sorted(found, key=lambda leak: -(leak.importance_share or 0.0) * leak.differs_share)


def _hours_ahead(
    bundle: Bundle, engine: Engine, moments: MomentTable, where: Mapping[str, Rows]
) -> dict[str, Numbers]:
    """Give, per column, how many hours after the moment the last row in its window became readable (at most 0: none did after it)."""
    latest: dict[str, Aggregate] = {}
    for name, feature in bundle.model.features.items():
        plain = feature.of if isinstance(feature, Category) else feature
        if not isinstance(plain, Aggregate):
            continue
        kind = plain.source.readable
        if isinstance(kind, AvailableColumn):
            latest[name] = Aggregate(plain.source, plain.keys, plain.where, "max", kind.column, plain.windows)
        elif isinstance(kind, Delay):
            latest[name] = Aggregate(plain.source, plain.keys, plain.where, "age", None, plain.windows)
    asked = Asked(moments.fields, moments.at, moments.at)
    values = engine.aggregates(
        groupings_of(latest.values()), bundle.description.schemas, asked, rows=where, world="event_time"
    )
    result: dict[str, Numbers] = {}
    for name, aggregate in latest.items():
        for (column, _), key in zip(
            (pair for pair in feature_columns(bundle.model.features) if pair[1] == name),
            aggregate.columns,
            strict=True,
        ):
            array = values[key]
            readable = aggregate.source.readable
            if isinstance(readable, Delay):
                since = array.fill_null(float("inf")).to_numpy(zero_copy_only=False) * 1e6
                result[column] = (readable.microseconds - since) / _HOUR
            else:
                last = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
                result[column] = (last - moments.at) / _HOUR
    return result
