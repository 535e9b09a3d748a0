"""What tests of meaning share: ask for one feature of a small history."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from histories import one_engine

import sameworld as sw
from sameworld.asof.plan import aggregates_of, groupings_of
from sameworld.asof.schema import supported
from sameworld.definitions.feature import Aggregate
from sameworld.engines.interface import Asked

INSTANT = pa.timestamp("us", tz="UTC")
Ask = Callable[..., list[Any]]


@pytest.fixture
def ask() -> Ask:
    """Give a function: (rows, feature of the source, moments) -> values, one a moment.

    Columns are k (the entity), e and a (event and available time), id, v, d, x; `options` are sw.Source's.
    """

    def asked(
        rows: Sequence[dict[str, Any]] | pa.Table,
        feature: Callable[[sw.Source], Aggregate],
        moments: Sequence[tuple[Any, int]],
        **options: Any,
    ) -> list[Any]:
        if not isinstance(rows, pa.Table):
            types = {
                "k": pa.string(),
                "e": INSTANT,
                "a": INSTANT,
                "id": pa.string(),
                "v": pa.int64(),
                "d": pa.bool_(),
                "x": pa.float64(),
            }
            rows = pa.Table.from_pylist(list(rows), schema=pa.schema(list(types.items())))
        source = sw.Source("rows", rows, **({"event_time": "e", "available_at": "a"} | options))
        aggregate = feature(source)
        at = np.array([at for _, at in moments], np.int64)
        keys = pa.table({"k": pa.array([key for key, _ in moments], pa.string())})
        engine = one_engine()
        schemas = {source.content: supported(engine.describe(rows, "rows"))}
        groupings = groupings_of(aggregates_of([aggregate]))
        values = engine.aggregates(groupings, schemas, Asked(keys, at, at), rows={}, world="as_of")
        return values[aggregate.columns[0]].to_pylist()

    return asked
