"""Training sets: what each feature's value was at each moment, and what came of the moment, as known at a given time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.check import check_model
from sameworld.asof.plan import Grouping, aggregates_of, groupings_of
from sameworld.asof.request import evaluate
from sameworld.asof.schema import Schema, supported
from sameworld.asof.values import float_column
from sameworld.definitions.fallbacks import Fallback, Popular
from sameworld.definitions.feature import Feature, Outcome
from sameworld.definitions.label import Label
from sameworld.definitions.model import Model, check_feature
from sameworld.definitions.moments import Log, Moments
from sameworld.definitions.ranking import Ranking
from sameworld.definitions.source import Source
from sameworld.definitions.windows import Window
from sameworld.engines.cache import cache_folder
from sameworld.engines.interface import Ask, Asked, Engine, Rows, World
from sameworld.engines.named import EngineName, opened_engine
from sameworld.errors import DataError, DefinitionError, LogError, Problems, SameworldError
from sameworld.training.fingerprint import Fingerprint, Seen, fingerprint_of
from sameworld.training.logged import OWN, opened, rows_then
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
        table: shape (moments,), the number of the table of moments that each is of; None when there is one.
    """

    moments: MomentTable
    features: dict[str, pa.Array]
    label: pa.Array | None
    mature: NDArray[np.bool_]
    schemas: dict[str, dict[str, str]]
    request: dict[str, str]
    until: int | None = None
    label_then: pa.Array | None = None
    table: NDArray[np.int64] | None = None


def training_set(
    model_or_features: Model | Mapping[str, Feature],
    *,
    moments: Moments | None = None,
    label: Label | None = None,
    engine: EngineName | Engine = "duckdb",
    world: World = "as_of",
    as_of: int | None = None,
    folder: Path | None = None,
    cache: Path | bool = True,
    say: Say = silent,
) -> pa.Table:
    """Give one row a moment, in the moments' order: the time asked, every feature, and the label.

    The schema's metadata has under `sameworld` what the table was made of, as JSON: see `Fingerprint`.

    Args:
        model_or_features: a model, or name -> feature.
        moments: when to ask; a model's own by default.
        label: what came of a moment; a model's own by default.
        engine: "duckdb" for this machine, "spark", "ray" or "dask" for the session of this process or a local one; or an engine, such as `spark_engine(session)`.
        world: "as_of", or "event_time" to see what a join on event times would have claimed.
        as_of: microseconds since 1970; labels are as known then, and null until they have matured. Now by default.
        folder: what relative paths start from.
        cache: whether (or in which folder) sorted sources and finished columns are kept; `.sameworld/cache` in the folder by default.
        say: told what is being done.

    Returns:
        Columns: the moments' `at`, one a feature (one a window when it has several), and "label" where there is one.

    Raises:
        Problems: everything that is wrong with the definitions and their data, at once.
    """
    features, moments, label = asked_for(model_or_features, moments, label)
    with opened_engine(engine, folder, cache=cache_folder(folder, cache), say=say) as chosen:
        plan = planned(features, moments, label, engine=chosen, world=world, as_of=as_of)
        seen = plan.seen()
        read = read_moments(chosen, plan.moments)
        say(plan.summary(read.at.shape[0]))
        table = plan.table(plan.at(read))
        seen.check()
    return table.replace_schema_metadata(plan.fingerprint(seen).metadata())


def asked_for(
    model_or_features: Model | Mapping[str, Feature], moments: Moments | None, label: Label | None
) -> tuple[dict[str, Feature], Moments, Label | None]:
    """Give the features, moments and label that a training set is to be made of; what is given goes before the model's own."""
    if isinstance(model_or_features, Model):
        model = model_or_features
        return model.features, moments or model.moments, label or model.label
    if not isinstance(moments, Moments):
        found = "" if moments is None else repr(moments)[:80]
        raise DefinitionError(
            "A training set needs moments.", found=found, do="pass moments=sw.Moments(...)."
        )
    if not isinstance(model_or_features, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
        raise DefinitionError(
            "A training set needs a model, or features by name.",
            found=repr(model_or_features)[:80],
            do="pass a sw.Model, or for example {'clicks_7d': clicks.by('user').count(over='7d')}.",
        )
    for name, feature in model_or_features.items():
        check_feature(name, feature, "the training set")
    return dict(model_or_features), moments, label


@dataclass(frozen=True)
class Plan:
    """What is decided once, be it for all moments or for one part of them after another: see `planned`.

    Args:
        features, moments, label, engine, world, rows: as given; moments of a log as a table.
        as_of: microseconds; labels are as known then.
        schemas: source content -> pinned schema.
        asks: the moments' columns and types.
        groupings: what the features read.
        outcomes: source content -> where the label's rows are, when not just in its data.
    """

    features: Mapping[str, Feature]
    moments: Moments
    label: Label | None
    engine: Engine
    world: World
    rows: Mapping[str, Rows]
    as_of: int
    schemas: dict[str, dict[str, str]]
    asks: Schema
    groupings: tuple[Grouping, ...]
    outcomes: Mapping[str, Rows]

    @property
    def sources(self) -> list[Source]:
        """The sources behind the features and the label, each once."""
        return sources_of(self.features, self.label)

    @property
    def reads(self) -> list[Ask]:
        """What is read at every moment; what the label reads comes last."""
        label = [] if self.label is None else [Ask(label_grouping(self.label), "as_of", self.as_of)]
        return [*(Ask(grouping, self.world) for grouping in self.groupings), *label]

    def seen(self) -> Seen:
        """Take the contents of the data as they are now."""
        rows = {content: (self.rows.get(content), self.outcomes.get(content)) for content in self.schemas}
        return Seen.of(self.engine, self.sources, self.schemas, self.moments, self.asks, rows)

    def fingerprint(self, seen: Seen) -> Fingerprint:
        """Give what the values are made of."""
        return fingerprint_of(self.features, self.label, seen, world=self.world, as_of=self.as_of)

    def summary(self, moments: int | None) -> str:
        """Give one line of what is going to be computed."""
        count = "moments" if moments is None else f"{moments:,} moments"
        return f"{count}, {len(self.features)} features of {len(self.sources)} sources ({self.world})"

    def at(self, read: MomentTable, until: int | None = None) -> TrainingSet:
        """Compute features and labels at some moments; each moment's are its own, whatever others are with it.

        Args:
            read: the moments.
            until: microseconds, the time of training; the label is computed as known then, too.
        """
        aggregates: Mapping[str, pa.Array] = {}
        if read.served is None:
            asked = Asked(read.fields, read.at, read.at if read.as_of is None else read.as_of)
            aggregates = self.engine.aggregates(
                self.groupings, self.schemas, asked, rows=self.rows, world=self.world
            )
        outcome = label_then = None
        if self.label is not None:
            about = (self.label, self.engine, self.schemas, read)
            outcome = label_at(*about, self.as_of, self.outcomes)
            if until is not None:
                label_then = label_at(*about, until, self.outcomes)
        computed = self.computed(read, aggregates, outcome)
        return dataclasses.replace(computed, until=until, label_then=label_then)

    def computed(
        self, read: MomentTable, aggregates: Mapping[str, pa.Array], outcome: pa.Array | None
    ) -> TrainingSet:
        """Give features at some moments from what was read of the sources, and the moments' labels."""
        if read.served is not None:
            columns = dict(read.served)
        else:
            fields = {name: _chunk(read.fields[name]) for name in read.fields.column_names}
            columns = evaluate(self.features, aggregates, fields)
        mature = np.ones(read.at.shape[0], np.bool_)
        if self.label is not None:
            mature = read.at + self.label.within_microseconds + self.label.settles_microseconds < self.as_of
        request = request_schema(self.moments, self.asks)
        return TrainingSet(read, columns, outcome, mature, self.schemas, request)

    def table(self, computed: TrainingSet) -> pa.Table:
        """Give what was computed as a table: the time asked, every feature, and the label where it has matured."""
        at = pa.array(computed.moments.at, pa.timestamp("us", tz="UTC"))
        columns = {self.moments.at: at, **computed.features}
        if computed.label is not None:
            columns["label"] = pc.if_else(
                pa.array(computed.mature), computed.label, pa.scalar(None, computed.label.type)
            )
        return pa.table(columns)


def planned(
    features: Mapping[str, Feature],
    moments: Moments,
    label: Label | None,
    *,
    engine: Engine,
    world: World = "as_of",
    as_of: int | None = None,
    rows: Mapping[str, Rows] | None = None,
    fallbacks: Sequence[Fallback] = (),
    ranking: Ranking | None = None,
) -> Plan:
    """Check definitions against their data, pin types and group what is read.

    Raises:
        Problems: everything that is wrong with the definitions and their data, at once.
    """
    if world not in get_args(World):
        raise DefinitionError(
            f"There is no world {world!r}.", expected="'as_of' or 'event_time'", do="correct the name."
        )
    if not isinstance(as_of, int | None):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
        raise DefinitionError(
            "as_of= is not an instant.",
            expected="microseconds since 1970",
            found=repr(as_of)[:80],
            do="give a whole number: of a datetime with its zone it is int(when.timestamp() * 1e6).",
        )
    now = as_of if as_of is not None else time.time_ns() // 1000
    log = moments.data
    moments = opened(moments, engine, features)
    described = engine.describe(moments.data, "the moments")
    asks = {name: kind for name, kind in described.items() if not name.startswith(OWN)}
    sources = sources_of(features, label, fallbacks)
    schemas = {source.content: engine.describe(source.data, f"source {source.name!r}") for source in sources}
    problems = check_model(features, label, moments, schemas, asks, fallbacks=fallbacks, ranking=ranking)
    if problems:
        raise Problems("The plan", problems)
    schemas = {content: supported(schema) for content, schema in schemas.items()}
    groupings = groupings_of(aggregates_of(features.values()))
    rows = outcomes = rows or {}
    if isinstance(log, Log):
        rows, outcomes = rows_then(log, engine, sources, label, schemas)
    return Plan(features, moments, label, engine, world, rows, now, schemas, asks, groupings, outcomes)


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
    until: int | None = None,
    say: Say = silent,
) -> TrainingSet:
    """Compute features and labels at moments; see `training_set`.

    Args:
        rows: source content -> where its rows are, when not just in its data.
        fallbacks: of the model, to be checked with the rest.
        until: microseconds, the time of training; the label is computed as known then, too.
        say: told what is being done.
    """
    plan = planned(
        features, moments, label, engine=engine, world=world, as_of=as_of, rows=rows, fallbacks=fallbacks
    )
    read = read_moments(engine, plan.moments)
    say(plan.summary(read.at.shape[0]))
    return plan.at(read, until)


def problems_of(model: Model, engine: Engine) -> list[SameworldError]:
    """Give everything that is wrong when a model meets its data; tables that cannot be read are named too."""
    problems: list[SameworldError] = []
    schemas: dict[str, dict[str, str]] = {}
    described: dict[str, str] = {}
    for source in sources_of(model.features, model.label, model.fallbacks):
        try:
            schemas[source.content] = engine.describe(source.data, f"source {source.name!r}")
        except DataError as problem:
            problems.append(problem)
    try:
        moments = opened(model.moments, engine, model.features)
        described = engine.describe(moments.data, "the moments")
    except (DataError, LogError) as problem:
        problems.append(problem)
    return problems or check_model(
        model.features,
        model.label,
        model.moments,
        schemas,
        described,
        fallbacks=model.fallbacks,
        ranking=model.ranking,
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
    known = np.full(moments.at.shape[0], as_of, np.int64)
    asked = Asked(moments.fields, moments.at, known)
    read = engine.aggregates([label_grouping(label)], schemas, asked, rows=rows, world="as_of")
    return label_of(label, read)


def label_grouping(label: Label) -> Grouping:
    """Give what a label reads."""
    ahead = msgspec.structs.replace(label.aggregate, windows=(Window(label.within, ahead=True),))
    (grouping,) = groupings_of([ahead])
    return grouping


def label_of(label: Label, read: Mapping[str, pa.Array]) -> pa.Array:
    """Give each moment's label from the one column of `label_grouping`."""
    (values,) = read.values()
    if isinstance(label.outcome, Outcome):
        compare = {">": pc.greater, ">=": pc.greater_equal, "<": pc.less, "<=": pc.less_equal}[
            label.outcome.comparison
        ]
        values = compare(float_column(values), label.outcome.threshold)
    else:
        values = float_column(values)
    if label.otherwise is not None:
        values = values.fill_null(bool(label.otherwise) if label.binary else float(label.otherwise))
    return values


def sources_of(
    features: Mapping[str, Feature], label: Label | None, fallbacks: Sequence[Fallback] = ()
) -> list[Source]:
    """Give the sources behind features, a label and what fallbacks count, each once."""
    counted = [fallback.of for fallback in fallbacks if isinstance(fallback, Popular)]
    aggregates = [*aggregates_of(features.values()), *counted]
    found = {aggregate.source.content: aggregate.source for aggregate in aggregates}
    if label is not None:
        found.setdefault(label.aggregate.source.content, label.aggregate.source)
    return list(found.values())


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)
