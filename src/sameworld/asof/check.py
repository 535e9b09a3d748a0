"""Where definitions meet their data: everything that is wrong, all at once, before anything is computed.

What a definition alone can tell is said when it is built; here its names and types are held against the
columns that are there. Nothing is read but schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import duckdb

from sameworld.asof.aggregations import AGGREGATIONS, value_family
from sameworld.asof.expressions import check_expression
from sameworld.asof.request import feature_columns
from sameworld.asof.rows import RESERVED
from sameworld.asof.schema import Schema, family_of, kind_of, supported
from sameworld.definitions.availability import AvailableColumn
from sameworld.definitions.fallbacks import Fallback, LastKnown, Popular, Rate, Rule
from sameworld.definitions.feature import Aggregate, Category, ClockPart, Derive, Feature, Field, Outcome
from sameworld.definitions.label import Label
from sameworld.definitions.model import unknown_name
from sameworld.definitions.moments import Moments
from sameworld.definitions.ranking import Ranking
from sameworld.definitions.source import Source
from sameworld.errors import DataError, DefinitionError, SameworldError, nearest

_KEYS = frozenset({"integer", "text", "boolean", "instant"})
_NAMES = {
    "integer": "an integer",
    "float": "a float",
    "decimal": "a decimal of up to 18 digits",
    "boolean": "a boolean",
    "text": "text",
    "instant": "a timestamp",
    "naive": "a naive timestamp",
}


def check_model(
    features: Mapping[str, Feature],
    label: Label | None,
    moments: Moments,
    schemas: Mapping[str, Schema],
    request: Schema,
    *,
    fallbacks: Sequence[Fallback] = (),
    ranking: Ranking | None = None,
) -> list[SameworldError]:
    """Give everything that is wrong when definitions meet their data; nothing when they fit.

    Args:
        features: name -> feature.
        label: what came of a moment, if anything is asked about that.
        moments: when the features are asked.
        schemas: source content hash -> its columns, as the engine describes them.
        request: the moments' columns, the time of asking among them.
        fallbacks: the model's.
        ranking: what of a request the model ranks, if anything.
    """
    aggregates = {
        name: plain for name, feature in features.items() if isinstance(plain := _plain(feature), Aggregate)
    }
    places = {f"feature {name!r}": aggregate for name, aggregate in aggregates.items()}
    if label is not None:
        places["the label"] = label.aggregate
    for number, fallback in enumerate(fallbacks, 1):
        for of in fallback.aggregates if isinstance(fallback, Popular) else ():
            places[f"fallback {number}, sw.Popular by {', '.join(of.keys)},"] = of
    sources = {aggregate.source.content: aggregate.source for aggregate in places.values()}
    problems: list[SameworldError] = []
    for content, source in sources.items():
        problems += _source(source, schemas[content])
    problems += _same_names(sources.values())
    problems += _at(moments, request)
    with ExitStack() as own:
        con: duckdb.DuckDBPyConnection | None = None  # to make one takes longer than all else here
        for place, aggregate in places.items():
            schema = schemas[aggregate.source.content]
            problems += _aggregate(place, aggregate, schema)
            problems += _keys(place, aggregate, schema, moments, request)
            if aggregate.where is not None:
                con = con or own.enter_context(duckdb.connect(config={"threads": 1}))
                problems += check_expression(
                    con, aggregate.where, schema, f"{place}, source {aggregate.source.name!r}"
                )
    for name in features:
        problems += _feature(name, features, moments, schemas, request)
    problems += _cycles(features)
    problems += _columns_once(features, moments, label)
    if label is not None:
        problems += _label(label, schemas[label.aggregate.source.content])
    for fallback in fallbacks:
        problems += _fallback(fallback, features, moments, schemas, request)
    if ranking is not None:
        problems += _ranking(ranking, moments, request)
    return list({problem.text(): problem for problem in problems}.values())


def _fallback(
    fallback: Fallback,
    features: Mapping[str, Feature],
    moments: Moments,
    schemas: Mapping[str, Schema],
    request: Schema,
) -> Iterator[SameworldError]:
    match fallback:
        case Rate(by=by) if by is not None:
            yield from _field(f"fallback sw.Rate(by={by!r})", by, moments, request)
        case LastKnown(by=fields):
            for field in fields or ():
                yield from _field(f"fallback sw.LastKnown(by={field!r})", field, moments, request)
        case Popular(of=of):
            schema = schemas[of.source.content]
            kind = None if of.column is None else schema.get(of.column, "")
            if kind is None or _kind(kind, of.source) in AGGREGATIONS[of.operation].columns:
                family = value_family(of.operation, None if kind is None else family_of(kind))
                if family in ("text", "instant") or family.startswith("list of "):
                    yield DefinitionError(
                        f"sw.Popular counts {_NAMES.get(family, 'a list')}.",
                        where=f"fallback sw.Popular, {of.operation}({of.column!r})",
                        expected="a number or a boolean",
                        do="count rows, or take the sum of a number.",
                    )
        case Rule():
            name = f"sw.Rule({fallback.function.name})"
            rule = Derive(fallback.function, fallback.inputs)
            yield from _inputs(name, rule, features, moments, request)
        case _:
            pass


def _ranking(ranking: Ranking, moments: Moments, request: Schema) -> Iterator[SameworldError]:
    """Whether the fields of candidates and requests are there, and the list's name is no field's."""
    for what, names in (("request", (ranking.request,)), ("key", (ranking.key,)), ("fields", ranking.fields)):
        for name in names:
            absent = list(_field(f"ranking {what}={name!r}", name, moments, request))
            yield from absent
            if not absent and what != "fields" and _request_family(request[name]) not in ("integer", "text"):
                yield DefinitionError(
                    f"The ranking's {what} {name!r} cannot be a key.",
                    where=f"ranking {what}={name!r}",
                    expected="an integer or text",
                    found=request[name],
                    do="cast it to an integer or to text in the moments.",
                )
    if ranking.candidates in request:
        yield DefinitionError(
            f"The list of candidates is called {ranking.candidates!r}, which is a column of the moments.",
            where=f"ranking candidates={ranking.candidates!r}",
            do="give the list another name.",
        )


def _kind(duckdb_type: str, source: Source) -> str:
    """The kind of a source's column; a naive timestamp is an instant where its zone is known."""
    kind = kind_of(duckdb_type)
    return "instant" if kind == "naive" and source.timezone is not None else kind


def _plain(feature: Feature) -> Feature:
    return feature.of if isinstance(feature, Category) else feature


def _source(source: Source, schema: Schema) -> Iterator[SameworldError]:
    """What is wrong with the columns that a source names itself, and with names that it may not have."""
    for column in schema:
        if column.lower() in RESERVED:
            yield DefinitionError(
                f"Source {source.name!r} has a column {column!r}, a name that queries here use themselves.",
                where=f"source {source.name!r}",
                do="leave it out or rename it in the source's own query: SELECT * EXCLUDE (...) FROM ...",
            )
    for role, column in (("event_time", source.event_time), ("available_at", _available_column(source))):
        if column is not None:
            yield from _time(source, role, column, schema)
    for role, column, families, expected in (
        ("id", source.id, _KEYS | {"float", "naive"}, ""),
        ("version", source.version, {"integer", "instant", "naive"}, "an integer or a timestamp"),
        ("deleted", source.deleted, {"boolean"}, "a boolean"),
    ):
        if column is None:
            continue
        missing = list(
            _missing(
                f"Source {source.name!r} has",
                f"source {source.name!r}, {role}={column!r}",
                column,
                source,
                schema,
            )
        )
        yield from missing
        if missing:
            continue
        if kind_of(schema[column]) not in families:
            yield DefinitionError(
                f"Source {source.name!r} has {role}={column!r}, which has the wrong type.",
                where=f"source {source.name!r}",
                expected=expected,
                found=schema[column],
                do=f"name another column, or cast {column!r} in the source's own query.",
            )
        elif kind_of(schema[column]) == "naive" and source.timezone is None and role == "version":
            yield _naive(f"source {source.name!r}", column, schema[column], "sw.Source")


def _available_column(source: Source) -> str | None:
    if isinstance(source.available_at, str):
        return source.available_at
    return source.available_at.column if isinstance(source.available_at, AvailableColumn) else None


def _time(source: Source, role: str, column: str, schema: Schema) -> Iterator[SameworldError]:
    missing = list(
        _missing(
            f"Source {source.name!r} has",
            f"source {source.name!r}, {role}={column!r}",
            column,
            source,
            schema,
        )
    )
    yield from missing
    if missing:
        return
    if kind_of(schema[column]) == "naive":
        if source.timezone is None:
            yield _naive(f"source {source.name!r}", column, schema[column], "sw.Source")
    elif kind_of(schema[column]) != "instant":
        yield DataError(
            f"Column {column!r} of source {source.name!r} is no timestamp.",
            where=f"source {source.name!r}, {role}={column!r}",
            expected="a timestamp with a time zone, or a naive one and timezone= on sw.Source",
            found=schema[column],
            do="name another column, or cast it in the source's own query: to_timestamp(seconds).",
        )


def _naive(whose: str, column: str, kind: str, on: str) -> DataError:
    return DataError(
        f"Column {column!r} of {whose} has naive timestamps.",
        where=whose,
        expected=f"timestamps with a time zone, or timezone= on {on}",
        found=kind,
        do="name the zone whose clocks they show, for example timezone='UTC'.",
    )


def _missing(what: str, where: str, column: str, source: Source, schema: Schema) -> Iterator[SameworldError]:
    """A column that is not there, or whose type has no rule."""
    usable = supported(schema)
    if column in usable:
        return
    if column in schema:
        yield DefinitionError(
            f"Column {column!r} of source {source.name!r} has a type without a rule.",
            where=where,
            expected="a number up to 64 bits, text, boolean, date or timestamp",
            found=schema[column],
            do="cast the column in the source's own query.",
        )
        return
    yield DefinitionError(
        f"{what} no column {column!r}.",
        where=where,
        expected=f"columns of {source.name!r} nearest to it: {nearest(column, usable)}",
        do="correct the name, or add the column.",
    )


def _same_names(sources: Iterable[Source]) -> Iterator[SameworldError]:
    seen: set[str] = set()
    for source in sources:
        if source.name in seen:
            yield DefinitionError(
                f"Two different sources are called {source.name!r}.",
                where=f"source {source.name!r}",
                do="give each source its own name.",
            )
        seen.add(source.name)


def _at(moments: Moments, request: Schema) -> Iterator[SameworldError]:
    """Whether the time of asking is one, and no column of the moments is naive without a zone."""
    if moments.timezone is None:
        for name, kind in request.items():
            if kind_of(kind) == "naive":
                yield _naive("the moments", name, kind, "sw.Moments")
    if moments.at not in request:
        yield DataError(
            f"The moments have no column {moments.at!r}.",
            where="the moments",
            expected=f"columns nearest to it: {nearest(moments.at, request)}",
            do="set at= to the column of the time of asking.",
        )
    elif kind_of(request[moments.at]) not in ("instant", "naive"):
        yield DataError(
            f"Column {moments.at!r} of the moments is no timestamp.",
            where="the moments",
            expected="a timestamp with a time zone, or a naive one and timezone= on sw.Moments",
            found=request[moments.at],
            do="name another column, or cast it.",
        )


def _aggregate(place: str, aggregate: Aggregate, schema: Schema) -> Iterator[SameworldError]:
    """Whether the aggregated columns are there and of types that the aggregation takes."""
    name = place[0].upper() + place[1:]
    for column in aggregate.columns_read:
        if column is None:
            continue
        missing = list(
            _missing(
                f"{name} reads source {aggregate.source.name!r}, which has",
                f"{place}, {aggregate.operation}({column!r})",
                column,
                aggregate.source,
                schema,
            )
        )
        yield from missing
        takes = AGGREGATIONS[aggregate.operation].columns
        if not missing and _kind(schema[column], aggregate.source) not in takes:
            naive = kind_of(schema[column]) == "naive"
            yield DefinitionError(
                f"{name} takes the {aggregate.operation} of column {column!r}, which has the wrong type.",
                where=place,
                expected=" or ".join(_NAMES[family] for family in _NAMES if family in takes),
                found=schema[column],
                do="name the zone whose clocks it shows: timezone= on sw.Source."
                if naive and "instant" in takes
                else "aggregate another column, or cast it in the source's own query.",
            )


def _keys(
    place: str, aggregate: Aggregate, schema: Schema, moments: Moments, request: Schema
) -> Iterator[SameworldError]:
    """Whether the entity's keys are columns of the source and fields of the request, of the same family."""
    name = place[0].upper() + place[1:]
    for key in aggregate.keys:
        missing = list(
            _missing(
                f"{name} reads source {aggregate.source.name!r}, which has",
                f"{place}, by({key!r})",
                key,
                aggregate.source,
                schema,
            )
        )
        yield from missing
        absent = list(_field(place, key, moments, request, "key"))
        yield from absent
        if missing:
            continue
        theirs = kind_of(schema[key])
        if theirs not in _KEYS:
            yield DefinitionError(
                f"{name} groups by {key!r} of source {aggregate.source.name!r}, which cannot be a key.",
                where=place,
                expected=" or ".join(_NAMES[family] for family in _NAMES if family in _KEYS),
                found=schema[key],
                do="floats are not equal reliably: cast it to an integer or to text, here and in the moments."
                if theirs == "float"
                else "cast it to a timestamp with a time zone or to text, here and in the moments.",
            )
        elif not absent and _request_family(request[key]) != theirs:
            asked = _NAMES[_request_family(request[key])]
            yield DefinitionError(
                f"{name} groups by {key!r}, which is {_NAMES[theirs]} in the source, {asked} in the moments.",
                where=place,
                expected=schema[key],
                found=request[key],
                do="cast one of them, so that both are of one kind.",
            )


def _request_family(kind: str) -> str:
    """A field's family: a naive timestamp is read as an instant, or refused on its own account; a decimal is read as a float."""
    return {"naive": "instant", "decimal": "float"}.get(kind_of(kind), kind_of(kind))


def _field(
    place: str, name: str, moments: Moments, request: Schema, role: str = "field"
) -> Iterator[SameworldError]:
    """Whether a field is one of the request's, of a type with a rule."""
    usable = {field: kind for field, kind in supported(request).items() if field != moments.at}
    subject = place[0].upper() + place[1:]
    if name == moments.at:
        yield DefinitionError(
            f"{subject} uses {name!r} as a {role}, which is the time of asking and no field of the request.",
            where=place,
            expected=f"fields nearest to it: {nearest(name, usable)}",
            do="use another field, or add a copy of the column to the moments under a name of its own.",
        )
    elif name not in request:
        yield DefinitionError(
            f"{subject} needs the {role} {name!r}, which the moments do not have.",
            where=place,
            expected=f"fields nearest to it: {nearest(name, usable)}",
            do=f"correct the name, or add the column; a request carries every {role} it needs.",
        )
    elif name not in usable:
        yield DefinitionError(
            f"{subject} uses the {role} {name!r}, whose type has no rule.",
            where=place,
            expected="a number up to 64 bits, text, boolean, date or timestamp",
            found=request[name],
            do="cast the column in the moments' own query.",
        )


def _feature(
    name: str,
    features: Mapping[str, Feature],
    moments: Moments,
    schemas: Mapping[str, Schema],
    request: Schema,
) -> Iterator[SameworldError]:
    """Whether a feature's fields are there, and whether its value is one that a model can take."""
    feature, place = features[name], f"feature {name!r}"
    plain = _plain(feature)
    categorical = isinstance(feature, Category)
    match plain:
        case Field():
            absent = list(_field(place, plain.name, moments, request))
            yield from absent
            if not absent:
                yield from _value(place, _request_family(request[plain.name]), categorical, of_field=True)
        case ClockPart():
            absent = list(_field(place, plain.field.name, moments, request))
            yield from absent
            if not absent and _request_family(request[plain.field.name]) != "instant":
                yield DefinitionError(
                    f"Feature {name!r} is the {plain.part} of {plain.field.name!r}, which is no timestamp.",
                    where=place,
                    expected="a timestamp with a time zone, or a naive one and timezone= on sw.Moments",
                    found=request[plain.field.name],
                    do="use another field, or cast the column in the moments.",
                )
        case Aggregate():
            schema = supported(schemas[plain.source.content])
            if plain.column is None or plain.column in schema:
                kind = schema[plain.column] if plain.column is not None else None
                if kind is None or _kind(kind, plain.source) in AGGREGATIONS[plain.operation].columns:
                    family = value_family(plain.operation, family_of(kind) if kind else None)
                    only_derived = family == "instant" or family.startswith("list of ")
                    if not only_derived or categorical or not _derived_from(name, features):
                        yield from _value(place, family, categorical, of_field=False)
        case Derive():
            yield from _inputs(name, plain, features, moments, request)
        case _:
            pass


def _derived_from(name: str, features: Mapping[str, Feature]) -> bool:
    """Whether a derived feature reads a column of this one."""
    read = {
        item
        for feature in features.values()
        if isinstance(plain := _plain(feature), Derive)
        for item in plain.inputs
    }
    return any(column in read for column, owner in feature_columns(features) if owner == name)


def _value(place: str, family: str, categorical: bool, *, of_field: bool) -> Iterator[SameworldError]:
    name = place[0].upper() + place[1:]
    if family.startswith("list of "):
        yield DefinitionError(
            f"{name} is a list, which a model cannot count with.",
            where=place,
            expected="a number, a boolean or a category",
            do=f"make a number of it, too: sw.derive(function, {place.removeprefix('feature ')}).",
        )
    if family == "text" and not categorical:
        yield DefinitionError(
            f"{name} is text, which a model cannot count with.",
            where=place,
            found="text",
            do="add .category() to use it as a category.",
        )
    elif family == "instant":
        yield DefinitionError(
            f"{name} is a timestamp, which means another thing to a model every day.",
            where=place,
            expected="a number, a boolean or a category",
            found="a timestamp",
            do="take a part of it, for example sw.field(...).hour(timezone='UTC')."
            if of_field
            else f"make a number of it, too: sw.derive(function, {place.removeprefix('feature ')}); or use .age(), the time since the last event.",
        )


def _inputs(
    name: str, derive: Derive, features: Mapping[str, Feature], moments: Moments, request: Schema
) -> Iterator[SameworldError]:
    """Whether a derived feature's inputs are single columns: of features, or of fields."""
    place = f"feature {name!r}"
    columns = dict(feature_columns(features))
    fields = [field for field in request if field != moments.at]
    for item in derive.inputs:
        feature = features.get(item)
        if isinstance(feature, Aggregate) and len(feature.windows) > 1:
            choices = [column for column, owner in columns.items() if owner == item]
            yield DefinitionError(
                f"Feature {name!r} is derived from {item!r}, which has several windows.",
                where=place,
                expected=f"one of its columns: {', '.join(choices[:3])}",
                do="name one of them.",
            )
        elif feature is None and item not in columns:
            if item not in request or item == moments.at:
                yield unknown_name(item, [*columns, *fields], place)
                continue
            absent = list(_field(place, item, moments, request, "input"))
            yield from absent
            if not absent and _request_family(request[item]) == "instant":
                yield DefinitionError(
                    f"Feature {name!r} is derived from the field {item!r}, which is a timestamp.",
                    where=place,
                    expected="numbers, booleans or text",
                    found=request[item],
                    do=f"make a feature of sw.field({item!r}).hour(timezone='UTC') and derive from that.",
                )


def _cycles(features: Mapping[str, Feature]) -> Iterator[SameworldError]:
    """Derived features that need themselves, each circle once."""
    derived = {
        name: plain.inputs
        for name, feature in features.items()
        if isinstance(plain := _plain(feature), Derive)
    }
    done: set[str] = set()

    def circles(name: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in path:
            yield path[path.index(name) :]
        elif name not in done:
            for item in derived.get(name, ()):
                yield from circles(item, (*path, name))
            done.add(name)

    for name in derived:
        for circle in circles(name, ()):
            yield DefinitionError(
                f"Feature {circle[0]!r} is derived from itself.",
                where=f"feature {circle[0]!r}",
                found=" <- ".join((*circle, circle[0])),
                do="break the circle.",
            )


def _columns_once(
    features: Mapping[str, Feature], moments: Moments, label: Label | None
) -> Iterator[SameworldError]:
    """Columns of several windows are named after them: `clicks` over 3h is `clicks_3h`. That may be taken."""
    taken = {moments.at: "the time of asking", "": "no name"}
    if label is not None:
        taken["label"] = "the label"
    owners: dict[str, str] = {}
    for column, owner in feature_columns(features):
        if column in taken:
            yield DefinitionError(
                f"Feature {owner!r} gives a column {column!r}, which is {taken[column]} in a training set.",
                where=f"feature {owner!r}",
                do="rename the feature.",
            )
        if column in owners:
            yield DefinitionError(
                f"Features {owners[column]!r} and {owner!r} both give a column {column!r}.",
                where=f"feature {owner!r}",
                do="rename one of them.",
            )
        owners[column] = owner


def _label(label: Label, schema: Schema) -> Iterator[SameworldError]:
    """Whether the outcome is a number, so that it can be compared or predicted."""
    aggregate = label.aggregate
    if (
        aggregate.column is not None
        and _kind(schema.get(aggregate.column, ""), aggregate.source)
        not in AGGREGATIONS[aggregate.operation].columns
    ):
        return  # said already
    family = value_family(
        aggregate.operation, family_of(schema[aggregate.column]) if aggregate.column is not None else None
    )
    if family in ("text", "instant") or family.startswith("list of "):
        compared = isinstance(label.outcome, Outcome)
        yield DefinitionError(
            f"The label compares {_NAMES.get(family, 'a list')} with a number."
            if compared
            else f"The label is {_NAMES.get(family, 'a list')}.",
            where="the label",
            expected="a number or a boolean",
            found=schema[aggregate.column or ""],
            do="make a number of it in the source's own query, or count rows with source.where(...).",
        )
