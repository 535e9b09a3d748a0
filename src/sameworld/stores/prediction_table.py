"""Predictions as columns: the table that rotated segments become, and back to the records, to the bit.

The columns are flat and typed, so that DuckDB, Spark and pandas read them as they are. Columns of the request begin with `request_` and those of the
features with `feature_`, so that no name of a user's is ever one of the log's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import pyarrow as pa

from sameworld.asof.schema import VALUE_TYPES, type_named
from sameworld.stores.prediction import Prediction, Shape, column_of, logged

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


def schema_of(shape: Shape) -> pa.Schema:
    """Give the columns of a model version; the metadata has the shape."""
    request = [pa.field(REQUEST + name, VALUE_TYPES[family]) for name, family in shape.request.items()]
    features = [pa.field(FEATURE + name, type_named(kind)) for name, kind in shape.features.items()]
    return pa.schema([*OWN, *request, *features], {_SHAPE: msgspec.json.encode(shape)})


def shape_in(schema: pa.Schema) -> Shape:
    """Give the shape that `schema_of` noted."""
    return msgspec.json.decode((schema.metadata or {})[_SHAPE], type=Shape)


def table_of(process: str, records: Sequence[tuple[int, Prediction]], shape: Shape) -> pa.Table:
    """Give numbered predictions of one model version as a table.

    Raises:
        ValueError, TypeError, ArithmeticError, pyarrow.ArrowException: a record does not have that shape.
    """
    schema = schema_of(shape)
    rows = [prediction for _, prediction in records]
    nothing: list[None] = [None] * len(shape.features)
    own = {
        **{name: [getattr(row, name) for row in rows] for name in OWN.names if name in Prediction.__struct_fields__},
        "asked_at": [row.t for row in rows],
        "ages": [None if row.ages is None else list(row.ages.items()) for row in rows],
        "process": [process] * len(rows),
        "number": [number for number, _ in records],
        "vector": [row.features is not None for row in rows],
    }  # fmt: skip
    columns = [pa.array(own[field.name], field.type) for field in OWN]
    request = _transposed([row.request for row in rows], len(shape.request))
    features = _transposed([nothing if row.features is None else row.features for row in rows], len(nothing))
    for field, values in zip(list(schema)[len(OWN) :], [*request, *features], strict=True):
        columns.append(column_of(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def predictions_of(table: pa.Table) -> Iterator[tuple[int, Prediction]]:
    """Give (number, prediction) for every row of what `table_of` gave."""
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
    for number, vector, first, asked, vectors, last in rows:
        yield number, _made(*first, list(asked), list(vectors) if vector else None, *last)


def _transposed(rows: Sequence[Sequence[object]], width: int) -> list[tuple[object, ...]]:
    """Give rows of so many values as columns."""
    if any(len(row) != width for row in rows):
        raise ValueError(f"a record does not have {width} values")
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _values(table: pa.Table, name: str) -> list[object]:
    column = table[name].combine_chunks()
    return logged(column if isinstance(column, pa.Array) else column.chunk(0)) if len(column) else []
