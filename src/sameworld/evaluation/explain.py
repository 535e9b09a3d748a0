"""Explain one value: of which row versions it was made at its moment, why not of the others, and how it changes around the moment.

Values come from the engine and its kernel alone. What is said here about rows is why each did or did not count.
"""

from __future__ import annotations

import bisect
import datetime
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sameworld.asof.aggregations import AGGREGATIONS, NEVER
from sameworld.asof.check import check_model
from sameworld.asof.plan import Input, groupings_of
from sameworld.asof.request import feature_columns
from sameworld.asof.schema import VALUE_TYPES, Schema, family_of, kind_of, scale_of, supported
from sameworld.definitions.feature import Aggregate, Category, ClockPart, Derive, Feature, Field
from sameworld.definitions.model import Model
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Rows
from sameworld.errors import DataError, DefinitionError, Problems, nearest
from sameworld.stores.history import served_rows
from sameworld.training.logged import opened

STANDINGS = {
    "used": "the value is made of it",
    "not_yet_readable": "it had happened and was not readable yet",
    "superseded": "a greater version of its fact was readable by then",
    "deleted": "its fact had been withdrawn by then",
    "before_window": "its event time is before the window",
    "after_window": "its event time is at or after the window's end",
    "condition": "the feature's condition does not hold for it",
    "null_value": "what the aggregation reads of it is null",
    "deletion": "it withdraws its fact",
    "no_event_time": "its event time is null, so it is in no window",
    "too_late": "its fact had closed when it came (corrections_within)",
    "never_readable": "its available time is null",
}
"""Why a row version does or does not count at a moment; each has exactly one."""

_OUTSIDE = ("before_window", "after_window")
_NEAREST_OUTSIDE = 3
_MOST_CHANGES = 300
_SAMPLES = 64
_HOUR = 3_600_000_000
_UNITS = (("d", 24 * _HOUR), ("h", _HOUR), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000))


@dataclass(frozen=True)
class Superseding:
    """The version that ended another one.

    Args:
        at: microseconds; from when on the other one was superseded.
        version: its place among the corrections, where the source has one.
        deleted: whether it withdraws the fact.
        same_entity: whether it belongs to the same entity.
        repeated: whether it is the same row, delivered again.
        value: of the aggregated column.
    """

    at: int
    version: Any
    deleted: bool
    same_entity: bool
    repeated: bool
    value: Any


@dataclass(frozen=True)
class RowVersion:
    """One row version of the entity.

    Args:
        standing: why it does or does not count: see `STANDINGS`.
        event_time, available_at: microseconds; None where the row has none.
        superseded_by: what ends it, whenever that is; None while nothing does.
        fact, version: its id and its place among the corrections, where the source has them.
        value: of the aggregated column.
        row: all columns of the raw row; instants as text.
    """

    standing: str
    event_time: int | None
    available_at: int | None
    superseded_by: Superseding | None
    fact: str | None
    version: Any
    value: Any
    row: Mapping[str, Any]

    def lives(self) -> bool:
        """Whether there is any time at which it is the truth."""
        ends = NEVER if self.superseded_by is None else self.superseded_by.at
        return self.available_at is not None and self.available_at < ends and self.standing != "deletion"

    def as_json(self, as_of: int) -> dict[str, Any]:
        """The row version for a script."""
        by = self.superseded_by
        after = self.available_at is not None and self.available_at >= as_of
        return {
            "event_time": _text(self.event_time),
            "available_at": _text(self.available_at),
            "readable_after_seconds": ((self.available_at or 0) - as_of) / 1e6 if after else None,
            "id": self.fact,
            "version": self.version,
            "value": plain_json(self.value),
            "superseded": None
            if by is None
            else {
                "at": _text(by.at),
                "version": by.version,
                "deleted": by.deleted,
                "same_entity": by.same_entity,
                "repeated": by.repeated,
                "value": plain_json(by.value),
            },
            "row": {name: plain_json(value) for name, value in self.row.items()},
        }


@dataclass(frozen=True)
class Timeline:
    """A value along time.

    Args:
        start, end: microseconds; what was looked at.
        points: (from, value) in the order of time, the first at `start`; a value holds until the next one, unless it is sampled.
        cut: whether there were more changes than were looked at.
        of_knowledge: whether the moment stands still and only what is readable changes.
        sampled: whether the value changes while nothing happens, as an age does, so that the points are samples.
    """

    start: int
    end: int
    points: tuple[tuple[int, Any], ...]
    cut: bool
    of_knowledge: bool
    sampled: bool

    def at(self, instant: int) -> Any:
        """The value at an instant between `start` and `end`."""
        return self.points[bisect.bisect_right(self.points, instant, key=lambda point: point[0]) - 1][1]

    def as_json(self) -> dict[str, Any]:
        """The timeline for a script."""
        return {
            "from": _text(self.start),
            "to": _text(self.end),
            "cut": self.cut,
            "sampled": self.sampled,
            "of": "what is readable" if self.of_knowledge else "the moment",
            "points": [{"from": _text(at), "value": plain_json(value)} for at, value in self.points],
        }


@dataclass(frozen=True)
class ColumnExplanation:
    """One window of one aggregate at a moment.

    Args:
        column: the feature column's name.
        aggregate: the feature.
        window: the window.
        start, end: microseconds; the window of event times, its end not in it; a start of None is the beginning of time.
        value: what the kernel gives.
        counts: standing -> how many row versions of the entity have it; those that none has are left out.
        rows: the row versions nearest to the moment, at most so many of each standing, in the order of event time.
        known_later: (microseconds, value): when the last row was readable that had happened and was not known yet, and what was known of the moment
            then; None without such a row. A correction of a row that was used is none.
        event_time_value: what a join on event times would have given.
        timeline: the value around the moment.
        verdict: all that in words.
    """

    column: str
    aggregate: Aggregate
    window: Window
    start: int | None
    end: int
    value: Any
    counts: Mapping[str, int]
    rows: tuple[RowVersion, ...]
    known_later: tuple[int, Any] | None
    event_time_value: Any
    timeline: Timeline
    verdict: str

    def as_json(self, as_of: int) -> dict[str, Any]:
        """The column for a script."""
        return {
            "column": self.column,
            "definition": definition_of(self.aggregate, self.window),
            "window": {"from": _text(self.start), "to": _text(self.end)},
            "value": plain_json(self.value),
            "verdict": self.verdict,
            "counts": dict(self.counts),
            "rows": {
                standing: [row.as_json(as_of) for row in self.rows if row.standing == standing]
                for standing in self.counts
            },
            "known_later": None
            if self.known_later is None
            else {"as_of": _text(self.known_later[0]), "value": plain_json(self.known_later[1])},
            "event_time_value": plain_json(self.event_time_value),
            "timeline": self.timeline.as_json(),
        }


@dataclass(frozen=True)
class Explanation:
    """What a feature's value at a moment rests on.

    Args:
        model, feature: names.
        at, as_of: microseconds; the moment, and the time before which rows had to be readable.
        entity: key -> value.
        computed: how, for what the request gives or a function makes; that it is a category, where it is; empty otherwise.
        inputs: for such a feature, the names it reads.
        columns: the feature's aggregates, or those that it is made of, one a window.
    """

    model: str
    feature: str
    at: int
    as_of: int
    entity: Mapping[str, Any]
    computed: str
    inputs: tuple[str, ...]
    columns: tuple[ColumnExplanation, ...]

    def as_json(self) -> dict[str, Any]:
        """The explanation for a script."""
        return {
            "model": self.model,
            "feature": self.feature,
            "entity": {name: plain_json(value) for name, value in self.entity.items()},
            "at": _text(self.at),
            "as_of": _text(self.as_of),
            "computed": self.computed,
            "inputs": list(self.inputs),
            "columns": [column.as_json(self.as_of) for column in self.columns],
        }


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
        _Shaped.of(
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


def definition_of(aggregate: Aggregate, window: Window) -> str:
    """An aggregate over a window as a person reads it."""
    names = AGGREGATIONS[aggregate.operation].arguments
    takes = [aggregate.column] if aggregate.column is not None else []
    takes += [f"{name}={value}" for name, value in zip(names, aggregate.arguments, strict=True)]
    where = f" where {aggregate.where}" if aggregate.where else ""
    rows = f"{aggregate.operation}({', '.join(takes)}) of {aggregate.source.name} by {', '.join(aggregate.keys)}{where}"
    return rows if window.length is None else f"{rows} over {window.label}"


def columns_read(aggregate: Aggregate) -> tuple[str, ...]:
    """The columns that an aggregation reads: none, one, or for some two."""
    return tuple(column for column in aggregate.columns_read if column is not None)


def instant_text(microseconds: int, between: str = " ") -> str:
    """Write microseconds since 1970 to the microsecond, without zeros that say nothing.

    >>> instant_text(1_500_000)
    '1970-01-01 00:00:01.5Z'
    """
    text = np.datetime_as_string(np.datetime64(microseconds, "us"))
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole.replace('T', between)}{'.' if fraction else ''}{fraction}Z"


def span_text(microseconds: int) -> str:
    """Write a length of time in the unit that people would use.

    >>> span_text(840_000_000), span_text(1), span_text(5_400_000_000)
    ('14 min', '1 us', '1.5 h')
    """
    for unit, size in _UNITS:
        if microseconds >= size:
            return f"{round(microseconds / size, 2):,g} {unit}" if microseconds % size else f"{microseconds // size:,} {unit}"  # fmt: skip
    return f"{microseconds} us"


def value_text(value: Any) -> str:
    """A value as a person reads it."""
    return "null" if value is None else str(value) if isinstance(value, Decimal) else repr(value)


def plain_json(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(microseconds: int | None) -> str | None:
    return None if microseconds is None else instant_text(microseconds, "T")


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


def _standing(
    row: Mapping[str, Any],
    by: Superseding | None,
    columns: Sequence[str],
    start: int | None,
    end: int,
    as_of: int,
) -> str:
    """Why a row version does or does not count; the first reason that there is."""
    event, available = row["event_time"], row["available_at"]
    if available == NEVER:
        return "never_readable" if row["came_at"] == NEVER else "too_late"
    if row["deleted"]:
        return "deletion"
    if event is None:
        return "no_event_time"
    if start is not None and event < start:
        return "before_window"
    if event >= end:
        return "after_window"
    if not row["holds"]:
        return "condition"
    if columns and all(row["row"][column] is None for column in columns):
        return "null_value"
    if by is not None and by.at < as_of:
        return "deleted" if by.deleted else "superseded"
    return "not_yet_readable" if available >= as_of else "used"


def _superseding(versions: Sequence[Mapping[str, Any]], aggregate: Aggregate) -> list[Superseding | None]:
    """Give what ends each version: of those readable first among the greater ones, the greatest."""
    result: list[Superseding | None] = []
    order = ("version", "available_at", "tie")
    for place, row in enumerate(versions):
        ends = row["superseded_at"]
        found = None
        if ends != NEVER:
            for other in versions[place + 1 :]:
                if other["fact"] != row["fact"]:
                    break
                found = other if other["available_at"] == ends else found
        result.append(
            None
            if found is None
            else Superseding(
                ends,
                _version(found, aggregate),
                found["deleted"],
                found["own"],
                all(found[name] == row[name] for name in order),
                _value(found, aggregate),
            )
        )
    return result


def _version(row: Mapping[str, Any], aggregate: Aggregate) -> Any:
    return row["row"][aggregate.source.version] if aggregate.source.version else None


def _value(row: Mapping[str, Any], aggregate: Aggregate) -> Any:
    values = [row["row"][column] for column in columns_read(aggregate)]
    return values[0] if len(values) == 1 else values or None


# The value around the moment


@dataclass(frozen=True)
class _Shaped:
    """A column with its rows and the instants at which its value may change, before anything is evaluated."""

    column: str
    aggregate: Aggregate
    window: Window
    start: int | None
    end: int
    rows: list[RowVersion]
    late_until: int | None
    span: tuple[int, int]
    instants: list[int]
    cut: bool
    of_knowledge: bool

    @classmethod
    def of(
        cls,
        column: str,
        aggregate: Aggregate,
        window: Window,
        versions: Sequence[Mapping[str, Any]],
        at: int,
        as_of: int,
        of_knowledge: bool,
        most_changes: int,
    ) -> _Shaped:
        before, after = window.bounds
        start, end = None if before is None else at + before, at + after
        rows: list[RowVersion] = []
        lives: list[tuple[RowVersion, int, int]] = []
        for row, by in zip(versions, _superseding(versions, aggregate), strict=True):
            if not row["own"]:
                continue
            available = None if row["available_at"] == NEVER else row["available_at"]
            version = RowVersion(
                _standing(row, by, columns_read(aggregate), start, end, as_of),
                row["event_time"],
                available,
                by,
                row["fact"],
                _version(row, aggregate),
                _value(row, aggregate),
                row["row"],
            )
            rows.append(version)
            if row["holds"] and version.lives():
                lives += _life(version, before, after, (start, end) if of_knowledge else None)
        late = [row.available_at or 0 for row in _late(rows)]
        span = _span(lives, at, as_of, window, of_knowledge)
        low, high = span
        changes = sorted({t for _, first, last in lives for t in (first, last + 1) if low < t <= high})
        kept = changes
        if len(changes) > most_changes:
            middle = bisect.bisect_left(changes, as_of) - most_changes // 2
            place = max(0, min(middle, len(changes) - most_changes))
            kept = changes[place : place + most_changes]
            span = (
                min(kept[0], as_of) if place else low,
                max(kept[-1], as_of) if place + most_changes < len(changes) else high,
            )
        instants = {span[0], as_of, *kept}
        if _is_sampled(aggregate, of_knowledge):
            instants |= {span[0] + (span[1] - span[0]) * part // _SAMPLES for part in range(_SAMPLES + 1)}
        return cls(
            column, aggregate, window, start, end, rows, max(late) + 1 if late else None,
            span, sorted(instants), len(kept) < len(changes), of_knowledge,
        )  # fmt: skip

    def moments(self, at: int) -> list[tuple[int, int]]:
        """The (at, as of) of its instants."""
        return [(at if self.of_knowledge else instant, instant) for instant in self.instants]


def _is_sampled(aggregate: Aggregate, of_knowledge: bool) -> bool:
    """Whether the value changes while nothing happens: only an age does, and not of a moment that stands still."""
    return aggregate.operation == "age" and not of_knowledge


def _life(
    row: RowVersion, before: int | None, after: int, fixed: tuple[int | None, int] | None
) -> list[tuple[RowVersion, int, int]]:
    """Give the first and the last instant at which a row version counts, if there is one; with a window that moves with the instant, or a fixed one."""
    if row.event_time is None or row.available_at is None:
        return []
    first = row.available_at + 1
    last = NEVER - 1 if row.superseded_by is None else row.superseded_by.at
    if fixed is not None:
        start, end = fixed
        if row.event_time >= end or (start is not None and row.event_time < start):
            return []
    else:
        first = max(first, row.event_time - after + 1)
        last = last if before is None else min(last, row.event_time - before)
    return [(row, first, last)] if first <= last else []


def _span(
    lives: Sequence[tuple[RowVersion, int, int]], at: int, as_of: int, window: Window, of_knowledge: bool
) -> tuple[int, int]:
    """What to look at: from a window before the moment (or the first row) until what came late has come."""
    before, after = window.bounds
    length = None if before is None else max(-before, after)
    if length is None or of_knowledge:
        start = min([as_of, *(first - 1 for _, first, _ in lives)])
        start = as_of - _HOUR if start == as_of else start
    else:
        start = at - length
    late = [first for row, first, _ in lives if row.standing == "not_yet_readable"]
    late += [
        last + 1
        for row, _, last in lives
        if row.standing == "used" and row.superseded_by is not None and row.superseded_by.at == last
    ]
    farthest = NEVER // 2 if length is None or of_knowledge else as_of + length
    end = max([as_of, *(instant for instant in late if instant <= farthest)])
    return start, end + max((end - start) // 5, 1)


def _evaluated(
    shaped: Sequence[_Shaped], given: _History, at: int, as_of: int, listed: int | None
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
            _nearest(one.rows, at, listed),
            None if one.late_until is None else (one.late_until, got[moments[at, one.late_until]]),
            naive[name][0],
            Timeline(
                *one.span,
                tuple(changed),
                one.cut,
                one.of_knowledge,
                _is_sampled(one.aggregate, one.of_knowledge),
            ),
            "",
        )
        result.append(replace(found, verdict=_verdict(found, one.rows, at, as_of)))
    return tuple(result)


def _nearest(rows: Sequence[RowVersion], at: int, listed: int | None) -> tuple[RowVersion, ...]:
    """Give the rows nearest to the moment, so many of each standing, in the order of event time."""

    def when(row: RowVersion) -> int:
        known = [time for time in (row.event_time, row.available_at) if time is not None]
        return known[0] if known else at

    kept: list[RowVersion] = []
    taken: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: abs(when(row) - at)):
        most = listed
        if listed is not None and row.standing in _OUTSIDE:
            most = min(listed, _NEAREST_OUTSIDE)
        if most is None or taken[row.standing] < most:
            taken[row.standing] += 1
            kept.append(row)
    return tuple(sorted(kept, key=lambda row: (when(row), row.available_at or 0)))


def _verdict(column: ColumnExplanation, rows: Sequence[RowVersion], at: int, as_of: int) -> str:
    """All of it in words."""
    value = value_text(column.value)
    if not rows:
        return f"At {instant_text(at)} the value was {value}: no row of this entity was ever seen."
    known = f", as known at {instant_text(as_of)}," if as_of != at else ""
    used = column.counts.get("used", 0)
    said = [
        f"At {instant_text(at)} the value{known} was {value} ({used:,} of the entity's {_rows_text(len(rows))})."
    ]
    late = _late(rows)
    if late and column.known_later is not None:
        waited = max((row.available_at or 0) - as_of for row in late)
        when = f"{span_text(waited)} later" if waited else "at that very microsecond, which is not before it"
        said.append(
            f"{_rows_text(1)} existed but became readable only {when}"
            if len(late) == 1
            else f"{_rows_text(len(late))} existed but became readable only later, the last of them {when}"
        )
        later = value_text(column.known_later[1])
        said[-1] += (
            f"; with all that was readable then the value would have been {later}."
            if _corrected(rows, column.known_later[0])
            else f"; with {'it' if len(late) == 1 else 'them'} the value would have been {later}."
        )
    gone = [
        f"{column.counts[standing]:,} had been {standing}"
        for standing in ("superseded", "deleted")
        if standing in column.counts
    ]
    if gone:
        said.append(f"{' and '.join(gone)} by then.")
    after = [
        row.superseded_by.at - as_of
        for row in rows
        if row.standing == "used" and row.superseded_by is not None
    ]
    if after:
        first = f"{span_text(min(after))} after the moment" if min(after) else "at that very microsecond"
        said.append(
            f"{_rows_text(len(after))} used here {'was' if len(after) == 1 else 'were'} corrected or withdrawn later, the first {first}."
        )
    naive = value_text(column.event_time_value)
    said.append(f"A join on event time would have said {naive}{' too' if naive == value else ''}.")
    return " ".join(said)


def _late(rows: Sequence[RowVersion]) -> list[RowVersion]:
    """Give the rows that had happened and were not known yet: of each fact the version that came first, and none of a fact that was used."""
    used = {row.fact for row in rows if row.standing == "used" and row.fact is not None}
    result: list[RowVersion] = []
    for row in sorted(rows, key=lambda row: row.available_at or 0):
        if row.standing == "not_yet_readable" and row.lives() and row.fact not in used:
            result.append(row)
            used |= {row.fact} if row.fact is not None else set()
    return result


def _corrected(rows: Sequence[RowVersion], end: int) -> bool:
    """Whether by a time a row that was used, or was late, had been superseded."""
    return any(
        row.standing in ("used", "not_yet_readable")
        and row.superseded_by is not None
        and row.superseded_by.at < end
        for row in rows
    )


def _rows_text(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
