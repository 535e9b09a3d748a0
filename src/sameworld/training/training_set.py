"""Training sets: what each feature's value was at each moment, and what came of the moment, as known at a given time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.check import check_model
from sameworld.asof.plan import aggregates_of, groupings_of
from sameworld.asof.request import evaluate
from sameworld.asof.schema import Schema, supported
from sameworld.definitions.feature import Feature, Outcome
from sameworld.definitions.label import Label
from sameworld.definitions.model import Fallback, Model
from sameworld.definitions.moments import Moments
from sameworld.definitions.source import Source
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Engine, Rows, World
from sameworld.errors import DataError, DefinitionError, Problems, SameworldError
from sameworld.training.moments import MomentTable, read_moments, request_schema

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class TrainingSet:
    """What `compute` gives.

    Args:
        moments: the moments as read.
        features: column -> values, one a moment.
        label: one a moment, as known at `as_of`: null where the outcome never came and the label has no `otherwise`; None without a label.
        mature: shape (moments,), whether t + within + settles had passed then.
        until: microseconds; the time of training, where there is one.
        label_then: the label as known at `until`.
        schemas: source content -> pinned schema.
        request: request field -> family.
    """

    moments: MomentTable
    features: dict[str, pa.Array]
    label: pa.Array | None
    mature: NDArray[np.bool_]
    schemas: dict[str, dict[str, str]]
    request: dict[str, str]
    until: int | None = None
    label_then: pa.Array | None = None


def training_set(
    model_or_features: Model | Mapping[str, Feature],
    *,
    moments: Moments | None = None,
    label: Label | None = None,
    engine: Literal["duckdb"] | Engine = "duckdb",
    world: World = "as_of",
    as_of: int | None = None,
    folder: Path | None = None,
) -> pa.Table:
    """Give one row a moment, in the moments' order: the time asked, every feature, and the label.

    Args:
        model_or_features: a model, or name -> feature.
        moments: when to ask; a model's own by default.
        label: what came of a moment; a model's own by default.
        engine: "duckdb", or an engine of your own.
        world: "as_of", or "event_time" to see what a join on event times would have claimed.
        as_of: microseconds since 1970; labels are as known then, and null until they have matured. Now by default.
        folder: what relative paths start from.

    Returns:
        Columns: the moments' `at`, one a feature (one a window when it has several), and "label" where there is one.

    Raises:
        Problems: everything that is wrong with the definitions and their data, at once.
    """
    if isinstance(model_or_features, Model):
        model = model_or_features
        features, moments, label = model.features, moments or model.moments, label or model.label
    else:
        features = dict(model_or_features)
    if moments is None:
        raise DefinitionError("A training set needs moments.", do="pass moments=sw.Moments(...).")
    chosen = DuckDBEngine(folder) if engine == "duckdb" else engine
    computed = compute(features, moments, label, engine=chosen, world=world, as_of=as_of)
    at = pa.array(computed.moments.at, pa.timestamp("us", tz="UTC"))
    columns = {moments.at: at, **computed.features}
    if computed.label is not None:
        columns["label"] = pc.if_else(
            pa.array(computed.mature), computed.label, pa.scalar(None, computed.label.type)
        )
    return pa.table(columns)


def compute(
    features: Mapping[str, Feature],
    moments: Moments,
    label: Label | None,
    *,
    engine: Engine,
    world: World = "as_of",
    as_of: int | None = None,
    rows: Mapping[str, Rows] | None = None,
    fallbacks: Sequence[Fallback] = (),
    until: Callable[[NDArray[np.int64]], int] | None = None,
    say: Say = silent,
) -> TrainingSet:
    """Compute features and labels at moments; see `training_set`.

    Args:
        rows: source content -> where its rows are, when not just in its data.
        fallbacks: of the model, to be checked with the rest.
        until: gives the time of training from the moments' times; the label is computed as known then, too.
        say: told what is being done.
    """
    now = as_of if as_of is not None else time.time_ns() // 1000
    described = engine.describe(moments.data, "the moments")
    sources = sources_of(features, label)
    schemas = {source.content: engine.describe(source.data, f"source {source.name!r}") for source in sources}
    problems = check_model(features, label, moments, schemas, described, fallbacks=fallbacks)
    if problems:
        raise Problems("The plan", problems)
    schemas = {content: supported(schema) for content, schema in schemas.items()}
    table = read_moments(engine, moments)
    say(f"{table.at.shape[0]:,} moments, {len(features)} features of {len(sources)} sources ({world})")
    asked = Asked(table.fields, table.at, table.at)
    aggregates = engine.aggregates(
        groupings_of(aggregates_of(features.values())), schemas, asked, rows=rows or {}, world=world
    )
    columns = evaluate(
        features, aggregates, {name: _chunk(table.fields[name]) for name in table.fields.column_names}
    )
    outcome = label_then = None
    trained_at = until(table.at) if until is not None and table.at.size else None
    mature = np.ones(table.at.shape[0], np.bool_)
    if label is not None:
        outcome = label_at(label, engine, schemas, table, now, rows or {})
        mature = table.at + label.within_microseconds + label.settles_microseconds < now
        if trained_at is not None:
            label_then = label_at(label, engine, schemas, table, trained_at, rows or {})
    request = request_schema(moments, described)
    return TrainingSet(table, columns, outcome, mature, schemas, request, trained_at, label_then)


def problems_of(model: Model, engine: Engine) -> list[SameworldError]:
    """Give everything that is wrong when a model meets its data; tables that cannot be read are named too."""
    problems: list[SameworldError] = []
    schemas: dict[str, dict[str, str]] = {}
    described: dict[str, str] = {}
    for source in sources_of(model.features, model.label):
        try:
            schemas[source.content] = engine.describe(source.data, f"source {source.name!r}")
        except DataError as problem:
            problems.append(problem)
    try:
        described = engine.describe(model.moments.data, "the moments")
    except DataError as problem:
        problems.append(problem)
    return problems or check_model(
        model.features, model.label, model.moments, schemas, described, fallbacks=model.fallbacks
    )


def label_at(
    label: Label,
    engine: Engine,
    schemas: Mapping[str, Schema],
    moments: MomentTable,
    as_of: int,
    rows: Mapping[str, Rows],
) -> pa.Array:
    """Give each moment's label as known at `as_of`: the same sweep, looking ahead from the moment and knowing what is known later."""
    ahead = msgspec.structs.replace(label.aggregate, windows=(Window(label.within, ahead=True),))
    known = np.full(moments.at.shape[0], as_of, np.int64)
    asked = Asked(moments.fields, moments.at, known)
    (values,) = engine.aggregates(groupings_of([ahead]), schemas, asked, rows=rows, world="as_of").values()
    if isinstance(label.outcome, Outcome):
        compare = {">": pc.greater, ">=": pc.greater_equal, "<": pc.less, "<=": pc.less_equal}[
            label.outcome.comparison
        ]
        values = compare(values.cast(pa.float64()), label.outcome.threshold)
    else:
        values = values.cast(pa.float64())
    if label.otherwise is not None:
        values = values.fill_null(bool(label.otherwise) if label.binary else float(label.otherwise))
    return values


def sources_of(features: Mapping[str, Feature], label: Label | None) -> list[Source]:
    """Give the sources behind features and a label, each once."""
    found = {aggregate.source.content: aggregate.source for aggregate in aggregates_of(features.values())}
    if label is not None:
        found.setdefault(label.aggregate.source.content, label.aggregate.source)
    return list(found.values())


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)
