"""How popular candidates were at the time of training: the tables of `sw.Popular`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.plan import groupings_of
from sameworld.asof.schema import Schema
from sameworld.asof.values import nearest_floats
from sameworld.definitions.fallbacks import Popular
from sameworld.definitions.feature import Aggregate
from sameworld.engines.interface import Asked, Engine, MomentTable, Rows
from sameworld.training.rates import looked_up

Most = list[tuple[Any, float]]
"""Candidate's key -> how popular it was, the most popular first."""


class PopularTable(msgspec.Struct, frozen=True, dict=True):
    """The most popular candidates, overall and by the values of a field.

    Args:
        overall: for a value of the field that is not among the segments.
        segments: value -> the most popular of its rows.
        least: what a candidate gets that is in no table: 0, or less where something in it has less.
    """

    overall: Most
    segments: list[tuple[Any, Most]]
    least: float

    @functools.cached_property
    def _tables(self) -> tuple[dict[Any, float], dict[Any, dict[Any, float]]]:
        return dict(self.overall), {segment: dict(most) for segment, most in self.segments}

    def answer(self, key: Any, segment: Any) -> float:
        """Give how popular a candidate was for a value of the field."""
        overall, segments = self._tables
        return segments.get(segment, overall).get(key, self.least)


def popular_table(
    popular: Popular,
    moments: MomentTable,
    until: int,
    *,
    engine: Engine,
    schemas: Mapping[str, Schema],
    rows: Mapping[str, Rows],
) -> PopularTable:
    """Count what is popular, as of the time of training.

    Args:
        popular: what to count.
        moments: those asked before that time name the candidates.
        until: microseconds; the time of training.
        engine, schemas, rows: where the source is read.
    """
    asked = moments.fields.filter(pa.array(moments.at < until))

    def counted(aggregate: Aggregate) -> list[tuple[Any, ...]]:
        """Give (each key, how popular) for every entity that is not unknown to the source."""
        names = list(aggregate.keys)
        entities = asked.select(names).group_by(names, use_threads=False).aggregate([]).drop_null()
        at = np.full(entities.num_rows, until, np.int64)
        found = engine.aggregates(
            groupings_of([aggregate]), schemas, Asked(entities, at, at), rows=rows, world="as_of"
        )
        values = nearest_floats(found[aggregate.columns[0]]).tolist()
        keys = (looked_up(entities[name]).to_pylist() for name in names)
        return [row for row in zip(*keys, values, strict=True) if None not in row and math.isfinite(row[-1])]

    overall, *by = map(counted, popular.aggregates)
    segments: dict[Any, Most] = {}
    for key, segment, value in by[0] if by else ():
        segments.setdefault(segment, []).append((key, value))
    most = _most(overall, popular.top)
    tables = [(segment, _most(segments[segment], popular.top)) for segment in sorted(segments)]
    least = min(
        (value for table in [most, *(table for _, table in tables)] for _, value in table), default=0.0
    )
    return PopularTable(most, tables, min(least, 0.0))


def popularity(popular: Popular, table: PopularTable, fields: pa.Table) -> NDArray[np.float64]:
    """Give what a table says of candidates; shape (rows,).

    Args:
        popular: whose table.
        table: see `PopularTable`.
        fields: one row a candidate.
    """
    keys, segments = (
        [None] * fields.num_rows if name is None else looked_up(fields[name]).to_pylist()
        for name in (popular.of.keys[0], popular.by)
    )
    return np.array([table.answer(*row) for row in zip(keys, segments, strict=True)], np.float64)


def _most(counted: Sequence[tuple[Any, ...]], top: int) -> Most:
    return sorted(((key, value) for key, value in counted), key=lambda row: (-row[1], row[0]))[:top]
