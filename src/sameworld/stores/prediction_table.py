"""Predictions as columns: the table that rotated segments become, and back to the records, to the bit.

The columns are flat and typed, so that DuckDB, Spark and pandas read them as they are. Columns of the request begin with `request_` and those of the
features with `feature_`, so that no name of a user's is ever one of the log's own. A ranking is one row a candidate, with the answer's own columns in each; one without
candidates is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
import pyarrow as pa

from sameworld.asof.schema import VALUE_TYPES, type_named
from sameworld.stores.prediction import Prediction, Ranked, Shape, column_of, logged

REQUEST, FEATURE = "request_", "feature_"
_SHAPE = b"sameworld.shape"
_INSTANT = pa.timestamp("us", tz="UTC")
_made: Callable[..., Prediction] = Prediction
_WORD = pa.dictionary(pa.int32(), pa.string())  # what says the same in many rows

OWN = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("model", _WORD, nullable=False),
        pa.field("version", _WORD, nullable=False),
        pa.field("asked_at", _INSTANT, nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("tier", _WORD, nullable=False),
        pa.field("reason", _WORD, nullable=False),
        pa.field("replayed", pa.bool_(), nullable=False),
        pa.field("elapsed_us", pa.int64(), nullable=False),
        pa.field("policy", _WORD),
        pa.field("propensity", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("ages", pa.map_(pa.string(), pa.int64())),
        pa.field("defaults", pa.list_(pa.string())),
        pa.field("process", _WORD, nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("vector", pa.bool_(), nullable=False),
    ]
)
"""The log's own columns. `process` and `number` are the record's place in it; `vector` says whether there are features, since all of them may be null."""


RANKED = pa.schema([pa.field("candidate", pa.int64()), pa.field("rank", pa.int64())])
"""The log's own columns of a ranking: the candidate's place in the request, from 0, and its rank, from 1; null in the row of a request without candidates."""


def schema_of(shape: Shape) -> pa.Schema:
    """Give the columns of a model version; the metadata has the shape."""
    ranked = RANKED if shape.candidate else ()
    request = [pa.field(REQUEST + name, VALUE_TYPES[family]) for name, family in shape.request.items()]
    features = [pa.field(FEATURE + name, type_named(kind)) for name, kind in shape.features.items()]
    return pa.schema([*OWN, *ranked, *request, *features], {_SHAPE: msgspec.json.encode(shape)})


def shape_in(schema: pa.Schema) -> Shape:
    """Give the shape that `schema_of` noted."""
    return msgspec.json.decode((schema.metadata or {})[_SHAPE], type=Shape)


def table_of(process: str, records: Sequence[tuple[int, Prediction]], shape: Shape) -> pa.Table:
    """Give numbered predictions of one model version as a table.

    Raises:
        ValueError, TypeError, ArithmeticError, pyarrow.ArrowException: a record does not have that shape.
    """
    schema = schema_of(shape)
    ranks = bool(shape.candidate)
    if any((prediction.ranked is not None) != ranks for _, prediction in records):
        raise ValueError(f"a record is {'no' if ranks else 'a'} ranking")
    numbered = [(number, row) for number, prediction in records for row in _rows(prediction)]
    rows = [row for _, row in numbered]
    nothing: list[None] = [None] * len(shape.features)
    own: dict[str, list[Any]] = {
        **{name: [getattr(row, name) for row in rows] for name in OWN.names if name in Prediction.__struct_fields__},
        "asked_at": [row.t for row in rows],
        "ages": [None if row.ages is None else list(row.ages.items()) for row in rows],
        "process": [process] * len(rows),
        "number": [number for number, _ in numbered],
        "vector": [row.features is not None for row in rows],
        "candidate": [],
        "rank": [],
    }  # fmt: skip
    for _, prediction in records:
        if prediction.ranked is not None:
            own["candidate"] += range(len(prediction.ranked.ranks)) or [None]
            own["rank"] += prediction.ranked.ranks or [None]
    request = _transposed([row.request for row in rows], len(shape.request))
    features = _transposed([nothing if row.features is None else row.features for row in rows], len(nothing))
    others = list(schema)[: len(schema) - len(request) - len(features)]
    columns = [pa.array(own[field.name], field.type) for field in others]
    for field, values in zip(list(schema)[len(others) :], [*request, *features], strict=True):
        columns.append(column_of(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _rows(prediction: Prediction) -> list[Prediction]:
    """Give the rows of an answer; at least one."""
    return list(prediction.rows()) or [msgspec.structs.replace(prediction, features=None)]


def predictions_of(table: pa.Table) -> Iterator[tuple[int, Prediction]]:
    """Give (number, prediction) for every record of what `table_of` gave."""
    request, features = (
        [_values(table, name) for name in table.column_names if name.startswith(prefix)]
        for prefix in (REQUEST, FEATURE)
    )
    own = {name: table[name].to_pylist() for name in OWN.names if name != "asked_at"}
    fixed = zip(
        own["id"], own["model"], own["version"], _values(table, "asked_at"), own["sequence"], own["value"], own["tier"], own["reason"], strict=True
    )  # fmt: skip
    then = zip(
        own["replayed"], own["elapsed_us"], own["policy"], own["propensity"], own["seed"],
        (None if ages is None else dict(ages) for ages in own["ages"]), own["defaults"], strict=True,
    )  # fmt: skip
    seen = zip(*request, strict=True) if request else iter([()] * table.num_rows)
    used = zip(*features, strict=True) if features else iter([()] * table.num_rows)
    rows = zip(own["number"], own["vector"], fixed, seen, used, then, strict=True)
    each = (
        (number, _made(*first, list(asked), list(vectors) if vector else None, *last))
        for number, vector, first, asked, vectors, last in rows
    )
    return each if "candidate" not in table.column_names else _rankings(table, each)


def _rankings(table: pa.Table, each: Iterator[tuple[int, Prediction]]) -> Iterator[tuple[int, Prediction]]:
    """Put the rows of each ranking together again."""
    shape = shape_in(table.schema)
    places = [list(shape.request).index(name) for name in shape.candidate]
    ranks = iter(table["rank"].to_pylist())
    for number, group in groupby(each, key=lambda row: row[0]):
        rows = [row for _, row in group]
        order: list[Any] = [next(ranks) for _ in rows]
        first, value = rows[0], rows[order.index(1)].value if order[0] is not None else rows[0].value
        if order[0] is None:
            rows, order = [], []
        candidates = [[row.request[place] for place in places] for row in rows]
        yield (
            number,
            msgspec.structs.replace(
                first,
                value=value,
                request=[None if place in places else field for place, field in enumerate(first.request)],
                features=None if first.features is None else [row.features for row in rows],
                ranked=Ranked(places, candidates, [row.value for row in rows], order),
            ),
        )


def _transposed(rows: Sequence[Sequence[object]], width: int) -> list[tuple[object, ...]]:
    """Give rows of so many values as columns."""
    if any(len(row) != width for row in rows):
        raise ValueError(f"a record does not have {width} values")
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _values(table: pa.Table, name: str) -> list[object]:
    column = table[name].combine_chunks()
    return logged(column if isinstance(column, pa.Array) else column.chunk(0)) if len(column) else []
