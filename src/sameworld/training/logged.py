"""What was served comes back: moments, and features as they were, from the prediction log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sameworld.asof.request import feature_columns
from sameworld.asof.schema import Schema
from sameworld.definitions.feature import Aggregate, Feature
from sameworld.definitions.label import Label
from sameworld.definitions.moments import Log, Moments
from sameworld.definitions.source import Source
from sameworld.engines.interface import Engine, Rows
from sameworld.errors import DataError
from sameworld.stores.event_log import first_unseen
from sameworld.stores.history import served_rows
from sameworld.stores.prediction import Shape
from sameworld.stores.prediction_log import tables
from sameworld.stores.prediction_table import FEATURE, REQUEST, shape_in
from sameworld.training.bundle import Bundle
from sameworld.training.fingerprint import meaning

OWN = "__log_"
AS_OF = f"{OWN}as_of"
SERVED = f"{OWN}feature_"
ANSWER = f"{OWN}answer"
"""Columns of moments that come from a log beside the request's fields: what was readable, what was served, and which answer a candidate is of."""

_NEEDED = ("version", "asked_at", "sequence", "process", "number", "vector", "candidate")


def column_meanings(features: Mapping[str, Feature]) -> dict[str, str]:
    """Give feature column -> hash of its definition; that of one window where a feature has several."""
    result: dict[str, str] = {}
    for name, feature in features.items():
        columns = [column for column, _ in feature_columns({name: feature})]
        if isinstance(feature, Aggregate):
            single = [msgspec.structs.replace(feature, windows=(window,)) for window in feature.windows]
        else:
            single = [feature]
        result.update({column: meaning(part) for column, part in zip(columns, single, strict=True)})
    return result


def shape_of(bundle: Bundle) -> Shape:
    """Give the names and types of what a bundle's predictions list in the log."""
    types = {name: str(kind) for name, kind in bundle.types.items()}
    ranking = bundle.model.ranking
    candidate = [] if ranking is None else list(ranking.of_candidate)
    return Shape(bundle.description.request, types, column_meanings(bundle.model.features), candidate)


def opened(moments: Moments, engine: Engine, features: Mapping[str, Feature] | None = None) -> Moments:
    """Give moments that an engine can read: those of a prediction log as a table in the order of time, others as they are.

    Args:
        features: what was served is to be taken of; all that the log has by default.

    Raises:
        DataError: the log has no such predictions, or they were not served with these features.
        LogError: the log is damaged.
    """
    log = moments.data
    if not isinstance(log, Log):
        return moments
    state = engine.folder / log.state
    parts = [
        part for table in tables(state, log.model, _wanted(moments)) if (part := _chosen(table, log)).num_rows
    ]
    if not parts:
        raise DataError(
            f"The prediction log has no predictions of model {log.model!r}"
            + (", or none of those versions and times." if log.versions or log.since or log.until else "."),
            where=str(state),
            do="serve the model first, or correct the model's name or state=; sameworld log lists what is there.",
        )
    shapes = {part["version"][0].as_py(): shape_in(part.schema) for part in parts}
    fields = _agreed(shapes, "request", log)
    if moments.at in fields:
        raise DataError(
            f"The requests of model {log.model!r} have a field {moments.at!r}, which is what the column of the time is to be called.",
            where="sw.Moments.from_log",
            do="give another name with at=.",
        )
    served = _served(shapes, features, log) if moments.served else ()
    whole = pa.concat_tables(
        [part.replace_schema_metadata(None) for part in parts], promote_options="default"
    )
    whole = whole.set_column(
        whole.schema.get_field_index("process"), "process", whole["process"].cast(pa.string())
    )
    ranks = "candidate" in whole.column_names
    order = ("asked_at", "process", "number", *(["candidate"] if ranks else ()))
    whole = whole.sort_by([(name, "ascending") for name in order])
    at = whole["asked_at"].cast(pa.int64()).to_numpy()
    unseen = first_unseen(state / "events", whole["sequence"].to_numpy())
    # Where the store could not be read, no sequence was seen, and nothing was served that would have to be met.
    unread = pc.and_(pc.invert(whole["vector"]), pc.equal(whole["sequence"], 0)).to_numpy()
    table: dict[str, pa.Array | pa.ChunkedArray] = {
        moments.at: whole["asked_at"],
        **{name: whole[REQUEST + name] for name in fields},
        AS_OF: pa.array(np.where(unread, at, np.minimum(at, unseen))),
        **{SERVED + name: whole[FEATURE + name] for name in served},
    }
    if ranks:
        table[ANSWER] = _numbered(whole)
    return msgspec.structs.replace(moments, data=pa.table(table), served=False)  # the columns say it


def rows_then(
    log: Log, engine: Engine, sources: Iterable[Source], label: Label | None, schemas: Mapping[str, Schema]
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Give where the rows of features, and those of the label, are for the moments of a log: source content -> rows."""
    rows = served_rows(engine.folder / log.state, sources, schemas)
    outcomes = None if label is None else label.aggregate.source.content
    if outcomes is None or log.outcomes == "files" or rows[outcomes].log is None:
        return rows, {}
    return rows, {outcomes: rows[outcomes]}


def _wanted(moments: Moments) -> Callable[[str], bool]:
    prefixes = (REQUEST, FEATURE) if moments.served else (REQUEST,)
    return lambda name: name in _NEEDED or name.startswith(prefixes)


def _numbered(table: pa.Table) -> pa.Array:
    """Number the answers that rows are of; rows of one lie together."""
    process = table["process"].combine_chunks().dictionary_encode().indices.to_numpy()
    number = table["number"].to_numpy()
    begins = (np.diff(process, prepend=-1) != 0) | (np.diff(number, prepend=-1) != 0)
    return pa.array(np.cumsum(begins) - 1)


def _chosen(table: pa.Table, log: Log) -> pa.Table:
    """Keep the rows of the versions and times that were asked for, and of a ranking those of candidates."""
    if "candidate" in table.column_names:
        table = table.filter(pc.is_valid(table["candidate"]))
    if log.versions is not None:
        table = table.filter(
            pc.is_in(table["version"].cast(pa.string()), value_set=pa.array(log.versions, pa.string()))
        )
    at = table["asked_at"].cast(pa.int64())
    if log.since is not None:
        table, at = (part.filter(pc.greater_equal(at, log.since)) for part in (table, at))
    return table if log.until is None else table.filter(pc.less(at, log.until))


def _agreed(shapes: Mapping[str, Shape], part: Literal["request", "features"], log: Log) -> dict[str, str]:
    """Give the names and types of all versions together.

    Raises:
        DataError: two versions have different types for one name.
    """
    found: dict[str, tuple[str, str]] = {}
    for version, shape in shapes.items():
        columns = shape.request if part == "request" else shape.features
        for name, kind in columns.items():
            before = found.setdefault(name, (kind, version))
            if before[0] != kind:
                raise DataError(
                    f"Versions of model {log.model!r} were served with different types of {name!r}.",
                    where="sw.Moments.from_log",
                    found=f"{before[0]} in {before[1]}, {kind} in {version}",
                    do="choose versions that agree with versions=.",
                )
    return {name: kind for name, (kind, _) in found.items()}


def _served(shapes: Mapping[str, Shape], features: Mapping[str, Feature] | None, log: Log) -> Iterable[str]:
    """Give the columns to take as they were served: those of some features, in their order, or all.

    Raises:
        DataError: they were defined otherwise; names the versions and their columns.
    """
    known = _agreed(shapes, "features", log)
    if features is None:
        return known
    wanted = column_meanings(features)
    unlike = {
        version: [name for name, hashed in wanted.items() if shape.meanings.get(name) != hashed]
        for version, shape in shapes.items()
    }
    if any(unlike.values()):
        raise DataError(
            f"Not all features of model {log.model!r} were served as they are defined now.",
            where="sw.Moments.from_log, features='served'",
            found="; ".join(
                f"version {version}: {', '.join(names[:5])}" for version, names in unlike.items() if names
            ),
            do="leave features='served' out, so that they are recomputed, or choose other versions with versions=.",
        )
    return wanted
