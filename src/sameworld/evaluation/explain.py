"""Explain one value: of which row versions it was made at its moment, why not of the others, and how it changes around the moment.

Values come from the engine and its kernel alone. What is said here about rows is why each did or did not count.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sameworld.asof.check import check_model
from sameworld.asof.instant_text import instant_text
from sameworld.asof.plan import Input, groupings_of
from sameworld.asof.request import feature_columns
from sameworld.asof.schema import VALUE_TYPES, Schema, family_of, kind_of, scale_of, supported
from sameworld.definitions.feature import Aggregate, Category, ClockPart, Derive, Feature, Field
from sameworld.definitions.model import Model
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Rows
from sameworld.errors import DataError, DefinitionError, Problems, nearest
from sameworld.evaluation.around import Shaped, is_sampled, nearest_rows
from sameworld.evaluation.explanation import STANDINGS, ColumnExplanation, Explanation, Timeline
from sameworld.evaluation.verdict import verdict
from sameworld.stores.history import served_rows
from sameworld.training.logged import opened

_MOST_CHANGES = 300


def explain(
    model: Model,
    feature: str,
    *,
    entity: Mapping[str, Any],
    at: int,
    engine: DuckDBEngine,
    as_of: int | None = None,
    state: Path | None = None,
    rows: int | None = 20,
    most_changes: int = _MOST_CHANGES,
) -> Explanation:
    """Explain a feature of an entity at a moment.

    Args:
        model: whose feature.
        feature: its name, or that of one of its columns.
        entity: key -> value; text is read as the key column's type says.
        at: microseconds; the moment.
        engine: delivers rows and values.
        as_of: microseconds; rows readable before it count. The moment by default.
        state: a server's folder: rows come from the files up to its cutover and the event log after it. The files alone by default.
        rows: how many row versions to give of each standing; all of them when None.
        most_changes: how many changes of the value to look at.

    Raises:
        DefinitionError: there is no such feature or key.
        DataError: a key's value does not fit its column, or there is no such state.
        Problems: everything that is wrong with the feature and its data.
    """
    known = at if as_of is None else as_of
    wanted, read = _columns_of(model, feature)
    aggregates = list({aggregate.columns: aggregate for _, aggregate, _ in wanted}.values())
    sources = {aggregate.source.content: aggregate.source for aggregate in aggregates}
    described = {c: engine.describe(source.data, f"source {source.name!r}") for c, source in sources.items()}
    problems = check_model(
        {name: model.features[name] for name in read},
        None,
        model.moments,
        described,
        engine.describe(opened(model.moments, engine).data, "the moments"),
    )
    if problems:
        raise Problems(f"Feature {feature!r}", problems)
    schemas = {content: supported(schema) for content, schema in described.items()}
    keys = _keys(aggregates, schemas, entity)
    given = _History(engine, schemas, keys, _rows(state, aggregates, schemas))
    versions = {aggregate.columns: given.versions(aggregate) for aggregate in aggregates}
    shaped = [
        Shaped.of(
            name, aggregate, window, versions[aggregate.columns], at, known, as_of is not None, most_changes
        )
        for name, aggregate, window in wanted
    ]
    computed, inputs = _computed(feature, model)
    return Explanation(
        model.name,
        feature,
        at,
        known,
        {name: value for name, (value, _) in keys.items()},
        computed,
        inputs,
        _evaluated(shaped, given, at, known, rows),
    )


def _plain(feature: Feature) -> Feature:
    return feature.of if isinstance(feature, Category) else feature


# Which columns are asked about


def _owner(model: Model, name: str) -> str:
    """Give the feature that a name or the name of one of its columns belongs to."""
    owners = dict(feature_columns(model.features)) | {feature: feature for feature in model.features}
    if name not in owners:
        raise DefinitionError(
            f"Model {model.name!r} has no feature {name!r}.",
            where=f"model {model.name!r}",
            expected=f"nearest: {nearest(name, owners)}",
            do="correct the name; one window of several is named like a column, such as 'clicks_3h'.",
        )
    return owners[name]


def _columns_of(model: Model, feature: str) -> tuple[list[tuple[str, Aggregate, Window]], list[str]]:
    """Give (column, aggregate, window) of every aggregate that a feature is or is made of, and the features read."""
    found: dict[str, tuple[Aggregate, Window]] = {}
    read: dict[str, None] = {}

    def visit(name: str) -> None:
        owner = _owner(model, name)
        if owner in read and name == owner:
            return
        read[owner] = None
        plain = _plain(model.features[owner])
        if isinstance(plain, Aggregate):
            for window in plain.windows:
                column = f"{owner}_{window.label}" if len(plain.windows) > 1 else owner
                if name in (owner, column):
                    found[column] = plain, window
        elif isinstance(plain, Derive):
            names = {*model.features, *(column for column, _ in feature_columns(model.features))}
            for item in plain.inputs:
                if item in names:
                    visit(item)

    visit(feature)
    return [(name, aggregate, window) for name, (aggregate, window) in found.items()], list(read)


def _computed(name: str, model: Model) -> tuple[str, tuple[str, ...]]:
    """Give how a feature is made where it is not an aggregate alone, and the names that it reads."""
    feature = model.features[_owner(model, name)]
    category = " It is a category: a value unseen in training counts as null." * isinstance(feature, Category)
    match _plain(feature):
        case Field() as field:
            said = f"{name} is the field {field.name!r} of the request: its value is what the caller sends."
            return said + category, (field.name,)
        case ClockPart() as clock:
            said = f"{name} is computed from the request: the {clock.part} of its field {clock.field.name!r} on the clocks of {clock.timezone}."
            return said + category, (clock.field.name,)
        case Derive() as derive:
            names = {*model.features, *(column for column, _ in feature_columns(model.features))}
            fields = [item for item in derive.inputs if item not in names]
            said = f"{name} is computed from the request by the function {derive.function.name!r} of {', '.join(derive.inputs)}."
            if fields:
                said += f" The caller sends {', '.join(fields)}."
            return said + category, derive.inputs
        case _:
            return category.strip(), ()


# The entity


def _keys(
    aggregates: Sequence[Aggregate], schemas: Mapping[str, Schema], entity: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Give key -> (value, kind), each read as its column's type says."""
    kinds = {key: kind_of(schemas[a.source.content][key]) for a in aggregates for key in a.keys}
    if not kinds:
        return {}
    for name in entity:
        if name not in kinds:
            raise DefinitionError(
                f"{name!r} is no key of this feature.",
                where="the entity",
                expected=f"nearest: {nearest(name, kinds)}",
                do=f"name the entity by its keys: {', '.join(kinds)}.",
            )
    missing = [key for key in kinds if key not in entity]
    if missing:
        raise DefinitionError(
            f"The entity has no {missing[0]!r}.",
            where="the entity",
            expected=f"a value of each key: {', '.join(kinds)}",
            found=", ".join(entity) or "nothing",
            do=f"add it: --entity {missing[0]}=VALUE.",
        )
    return {key: (_key(key, entity[key], kind), kind) for key, kind in kinds.items()}


def _key(name: str, given: Any, kind: str) -> Any:
    if not isinstance(given, str) or kind == "text":
        return given
    readers: dict[str, Callable[[str], Any]] = {
        "integer": _integer,
        "boolean": {"true": True, "false": False}.__getitem__,
        "instant": _aware,
    }
    try:
        return readers[kind](given)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"The key {name!r} cannot be read.",
            where="the entity",
            expected={
                "integer": "an integer of at most 64 bits",
                "boolean": "true or false",
                "instant": "a time with its zone, such as 2026-01-31T12:00:00Z",
            }[kind],
            found=given,
            do="write a value of the key column's type.",
        ) from error


def _integer(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number


def _aware(text: str) -> datetime.datetime:
    parsed = datetime.datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError(text)
    return parsed


def _rows(
    state: Path | None, aggregates: Iterable[Aggregate], schemas: Mapping[str, Schema]
) -> dict[str, Rows]:
    sources = {aggregate.source.content: aggregate.source for aggregate in aggregates}
    if state is None:
        return {content: Rows(source.data) for content, source in sources.items()}
    if not (state / "events").exists() and not (state / "cutover").exists():
        raise DataError(
            "There is no server's folder.",
            where=str(state),
            expected="the folder that `sameworld serve --state` was given",
            do="correct --state, or leave it out to read the sources' files alone.",
        )
    return served_rows(state, sources.values(), schemas)


# The rows


@dataclass(frozen=True)
class _History:
    """The rows of one entity, wherever they are."""

    engine: DuckDBEngine
    schemas: Mapping[str, Schema]
    keys: Mapping[str, tuple[Any, str]]
    rows: Mapping[str, Rows]

    def key_table(self, count: int) -> pa.Table:
        """The entity so many times."""
        return pa.table(
            {name: pa.array([value] * count, VALUE_TYPES[kind]) for name, (value, kind) in self.keys.items()}
        )

    def versions(self, aggregate: Aggregate) -> list[dict[str, Any]]:
        """Every version of the entity's facts, each with `holds` and its raw row."""
        content = aggregate.source.content
        schema = self.schemas[content]
        inputs = (Input(aggregate.where, None), *(Input(None, column) for column in schema))
        grouping = replace(groupings_of([aggregate])[0], inputs=inputs)
        found = self.engine.entity_versions(grouping, schema, self.key_table(1), self.rows[content])
        for row in found:
            row["holds"] = row["input_0"]
            row["row"] = {
                name: _raw(row[f"input_{number}"], kind)
                for number, (name, kind) in enumerate(schema.items(), 1)
            }
        return found

    def values(
        self, aggregates: Sequence[Aggregate], moments: Sequence[tuple[int, int]], world: Any
    ) -> dict[str, list[Any]]:
        """Every column of the aggregates at (at, as of)."""
        at, as_of = (np.array(times, np.int64) for times in zip(*moments, strict=True))
        asked = Asked(self.key_table(len(moments)), at, as_of)
        got = self.engine.aggregates(
            groupings_of(aggregates), self.schemas, asked, rows=self.rows, world=world
        )
        return {name: array.to_pylist() for name, array in got.items()}


def _raw(value: Any, duckdb_type: str) -> Any:
    """A raw row's value, from how prepared rows carry it."""
    if kind_of(duckdb_type) in ("instant", "naive") and isinstance(value, int):
        return instant_text(value, "T")
    scale = scale_of(family_of(duckdb_type))
    return Decimal(value).scaleb(-scale) if scale is not None and value is not None else value


def _evaluated(
    shaped: Sequence[Shaped], given: _History, at: int, as_of: int, listed: int | None
) -> tuple[ColumnExplanation, ...]:
    if not shaped:
        return ()
    aggregates = list({one.aggregate.columns: one.aggregate for one in shaped}.values())
    moments: dict[tuple[int, int], int] = {(at, as_of): 0}
    for one in shaped:
        later = [] if one.late_until is None else [(at, one.late_until)]
        for moment in [*later, *one.moments(at)]:
            moments.setdefault(moment, len(moments))
    values = given.values(aggregates, list(moments), "as_of")
    naive = given.values(aggregates, [(at, as_of)], "event_time")
    result: list[ColumnExplanation] = []
    for one in shaped:
        name = one.aggregate.columns[one.aggregate.windows.index(one.window)]
        got = values[name]
        points = [
            (instant, got[moments[moment]])
            for instant, moment in zip(one.instants, one.moments(at), strict=True)
        ]
        changed = [
            points[0],
            *(new for old, new in pairwise(points) if repr(old[1]) != repr(new[1])),
        ]
        counts = Counter(row.standing for row in one.rows)
        found = ColumnExplanation(
            one.column,
            one.aggregate,
            one.window,
            one.start,
            one.end,
            got[0],
            {standing: counts[standing] for standing in STANDINGS if standing in counts},
            nearest_rows(one.rows, at, listed),
            None if one.late_until is None else (one.late_until, got[moments[at, one.late_until]]),
            naive[name][0],
            Timeline(
                *one.span,
                tuple(changed),
                one.cut,
                one.of_knowledge,
                is_sampled(one.aggregate, one.of_knowledge),
            ),
            "",
        )
        result.append(replace(found, verdict=verdict(found, one.rows, at, as_of)))
    return tuple(result)
