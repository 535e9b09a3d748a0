"""How often an outcome came by the value of a request field: the tables of `sw.Rate`, and how any table in a bundle is looked up by a field's value."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class RateTable(msgspec.Struct, frozen=True, dict=True):
    """The label's mean by the value of a request field, and overall."""

    by: str | None
    overall: float
    rates: list[tuple[Any, float]] = []

    @functools.cached_property
    def _table(self) -> dict[Any, float]:
        return dict(self.rates)

    def answer(self, field: Any) -> float:
        """Give the mean for a field's value (an instant in microseconds); the overall one for null, and for a value unseen in training."""
        return self._table.get(field, self.overall)

    def answers(self, fields: pa.Table) -> NDArray[np.float64]:
        """Give the means for rows of request fields; shape (rows,)."""
        if self.by is None:
            return np.full(fields.num_rows, self.overall)
        return np.array([self.answer(value) for value in looked_up(fields[self.by]).to_pylist()], np.float64)


def rate_table(by: str | None, fields: pa.Table, label: NDArray[np.float64]) -> RateTable:
    """Give the means of a label, by a field or overall.

    Args:
        fields: of the rows to learn from, at least one.
        label: theirs; shape (rows,).
    """
    overall = float(label.mean())
    if by is None:
        return RateTable(by, overall)
    means = (
        pa.table({"by": looked_up(fields[by]), "label": label})
        .group_by("by", use_threads=False)
        .aggregate([("label", "mean")])
    )
    rows = zip(means["by"].to_pylist(), means["label_mean"].to_pylist(), strict=True)
    rates = sorted(((value, mean) for value, mean in rows if value is not None), key=lambda row: str(row[0]))
    return RateTable(by, overall, rates)


def looked_up(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give a field's values as tables in a bundle have them and requests are read: instants in microseconds; no NaN, which no JSON holds and nothing equals; one zero."""
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    if pa.types.is_floating(column.type):
        return pc.if_else(pc.is_nan(column), None, pc.add(column, 0.0))
    return column
