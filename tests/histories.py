"""Histories made to break things, for tests against the oracle: late, corrected, withdrawn and repeated rows, with nulls anywhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from every_aggregation import (
    CASES,
    COLUMNS,
    INSTANT,
    LARGEST,
    asked_of_oracle,
    bits,
    columns_of,
    types,
    values,
)
from hypothesis import strategies as st

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.asof.rows import prepared_sql
from sameworld.asof.schema import Schema
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import AsOfError
from sameworld.testing import oracle

Row = dict[str, Any]
Moment = tuple[tuple[Any, ...], int, int]
"""An entity, `at` and `as_of`."""


@functools.cache
def one_engine(threads: int = 1) -> DuckDBEngine:
    """For all tests of a process: making one takes longer than most of what they ask it."""
    return DuckDBEngine(threads=threads)


KEYS = {"k1": pa.string(), "k2": pa.int64(), "k3": pa.bool_()}
SCHEMA = pa.schema(
    [
        *KEYS.items(),
        ("e", INSTANT),
        ("a", INSTANT),
        ("id", pa.string()),
        ("v", pa.int64()),
        ("d", pa.bool_()),
        *types().items(),
    ]
)

times = st.integers(0, 12)
rows = st.fixed_dictionaries(
    {
        "k1": st.sampled_from(["a", "a", "a", "b", "ü\u2028", "", None]),
        "k2": st.sampled_from([0, 0, 1, None]),
        "k3": st.booleans(),
        "e": st.one_of(times, times, times, st.none()),
        "a": st.one_of(times, times, times, st.none()),
        "id": st.sampled_from(["p", "q", "r", None]),
        "v": st.sampled_from([0, 1, 2, None]),
        "d": st.sampled_from([False, False, False, True, None]),
        **values(),
    }
)
CONDITION = "x > 0 OR s = 'u'"
VERSIONED: dict[str, dict[str, str]] = {
    "append_only": {},
    "by_arrival": {"id": "id", "deleted": "d"},
    "by_version": {"id": "id", "version": "v", "deleted": "d"},
}
"""How the versions of a fact are told apart -> what sw.Source is given."""


def ties_of(
    engine: DuckDBEngine, source: sw.Source, schema: Schema, keys: tuple[str, ...], table: pa.Table
) -> list[int]:
    """Give each row's tie."""
    if not table.num_rows:
        return []
    engine._con.register("raw", table)
    query = f"SELECT tie FROM ({prepared_sql(source, schema, keys, (), 'raw')})"
    return [int(tie) for tie in engine._con.execute(query).fetchnumpy()["tie"]]


def versions(
    source: sw.Source, aggregate: Aggregate, history: Sequence[dict[str, Any]], ties: Sequence[int]
) -> list[oracle.Version]:
    """Give a history as the oracle takes it; a condition is `CONDITION`."""
    return [
        oracle.Version(
            key=tuple(row[key] for key in aggregate.keys),
            event_time=row["e"],
            available_at=row["a"],
            holds=aggregate.where is None
            or (row["x"] is not None and (row["x"] > 0 or row["x"] != row["x"]))
            or row["s"] == "u",
            fact=row["id"] if source.id else None,
            version=(row["v"] if row["v"] is not None else -(2**63)) if source.version else 0,
            deleted=bool(row["d"]) and source.deleted is not None,
            tie=tie,
            **columns_of(aggregate, row),
        )
        for row, tie in zip(history, ties, strict=True)
    ]


def said_by_oracle(
    aggregate: Aggregate, told: Sequence[oracle.Version], asked: Sequence[Moment]
) -> dict[str, list[Any]] | None:
    """Give column -> bits of its values; None when a sum does not fit."""
    said: dict[str, list[Any]] = {}
    try:
        for column, window in zip(aggregate.columns, aggregate.windows, strict=True):
            start, end = window.bounds
            said[column] = [
                bits(
                    oracle.value_at(
                        told,
                        aggregate.operation,
                        key[: len(aggregate.keys)],
                        at,
                        start=start,
                        end=end,
                        as_of=as_of,
                        corrections_within=aggregate.source.corrections_within_microseconds,
                        **asked_of_oracle(aggregate),
                    )
                )
                for key, at, as_of in asked
            ]
    except AsOfError:
        return None
    return said


def source_of(history: Sequence[Row], versioned: str, within: str | None = None) -> sw.Source:
    table = pa.Table.from_pylist(list(history), schema=SCHEMA)
    return sw.Source(
        "rows", table, event_time="e", available_at="a", corrections_within=within, **VERSIONED[versioned]
    )


def row(event: int, available: int | None = None, **given: Any) -> Row:
    """A row of entity a; what is not given is null."""
    return dict.fromkeys(SCHEMA.names) | {
        "k1": "a",
        "e": event,
        "a": event if available is None else available,
        **given,
    }


def all_calls(source: sw.Source, over: Sequence[Window] = (Window(),)) -> list[Aggregate]:
    """Every aggregation of every family, over the family's first column."""
    arguments = {"prior": 0.5, "weight": 2.0, "n": 3}
    made: list[Aggregate] = []
    for operation, family in CASES:
        column = [next(iter(COLUMNS[family]))] if family else []
        given = {name: arguments.get(name, "y") for name in AGGREGATIONS[operation].arguments}
        made.append(getattr(source.by("k1"), operation)(*column, **given, over=over))
    return made


def placed(number: int) -> Row:
    """Values in every column, different for different numbers."""
    return {
        "n": number * 7 - 3, "huge": number, "small": number, "unsigned": number, "x": number / 7, "y": number * 0.1, "half": number * 0.5,
        "b": number % 2 == 0, "m": Decimal(number * 11 - 40).scaleb(-2), "tiny": Decimal(number).scaleb(-18), "whole": Decimal(number),
        "w": number * 1000 + 1, "s": chr(0x044F - number * 7 % 31),
    }  # fmt: skip


HISTORIES: dict[str, list[Row]] = {
    "late": [row(3, 9, **placed(1)), row(5, 6, **placed(2)), row(1, 12, **placed(3))],
    "corrected": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, **placed(2)), row(4, id="q", v=1, **placed(3))],
    "corrected twice at once": [row(3, 5, id="p", v=v, **placed(v)) for v in (2, 0, 1)],
    "a late old version": [row(3, id="p", v=2, **placed(1)), row(2, 8, id="p", v=1, **placed(2))],
    "moved to another entity": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, **(placed(2) | {"k1": "b"}))],
    "moved there and back": [
        row(3, id="p", v=1, **placed(1)),
        row(3, 5, id="p", v=2, **(placed(2) | {"k1": "b"})),
        row(2, 8, id="p", v=3, **placed(3)),
    ],
    "deleted": [row(3, id="p", v=1, **placed(1)), row(3, 6, id="p", v=2, d=True)],
    "deleted before it came": [row(3, 4, id="p", v=2, d=True), row(3, 6, id="p", v=1, **placed(1))],
    "revived": [
        row(3, id="p", v=1, **placed(1)),
        row(3, 5, id="p", v=2, d=True),
        row(4, 8, id="p", v=3, **placed(2)),
    ],
    "of nobody, then of somebody": [row(3, id="p", v=1, k1=None), row(3, 6, id="p", v=2, **placed(1))],
    "tied": [row(3, 5, **placed(number)) for number in (4, 1, 3, 2)],
    "told twice": [row(3, 5, id="p", v=1, **placed(1))] * 3,
    "nulls": [row(3), row(4, 6), row(5)],
    "one value among nulls": [row(2), row(3, **placed(5)), row(4)],
    "alike": [row(2 + number, **placed(5)) for number in range(4)],
    "not a number": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 1.0), (3, float("nan")), (5, -float("nan")), (6, 2.0))],
    "infinite": [row(e, **(placed(1) | {"x": x, "y": x})) for e, x in ((2, 1.0), (3, float("inf")), (5, float("-inf")), (7, 2.0))],
    "zeros": [row(e, **(placed(1) | {"x": x, "y": x})) for e, x in ((2, -0.0), (3, 0.0), (5, -0.0))],
    "cancelling": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 1e15), (3, 0.1), (4, -1e15), (5, 1e-3), (6, 1e300), (8, -1e300))],
    "the largest floats": [row(e, **(placed(1) | {"x": 1.7976931348623157e308, "y": 5e-324})) for e in (2, 3, 5)],
    "the smallest floats": [row(e, **(placed(1) | {"x": x})) for e, x in ((2, 5e-324), (3, 1e-323), (5, -5e-324), (6, 2e-162))],
    "integers at the edges": [row(e, **(placed(1) | {"n": n})) for e, n in ((2, LARGEST), (3, -(2**63)), (5, -1), (6, LARGEST - 1))],
    "an integer sum beyond int64": [row(e, **(placed(1) | {"n": n})) for e, n in ((2, LARGEST), (3, 1), (8, -5))],
    "a decimal sum beyond 64 bits": [
        row(e, **(placed(1) | {"m": Decimal("9999999999999999.99")})) for e in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    ],
    "nothing": [],
}  # fmt: skip
