"""A cluster in this process: what an engine does for us, with lists. Tests of what workers do need no other."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle
import pyarrow as pa

from sameworld.engines.blobs import BLOBS, Blobs, Stage
from sameworld.engines.reading import duckdb_types


class InProcess:
    """Stages are pickled, called twice (as where a worker was lost), and get their blobs in another order than they were made."""

    parallelism = 3

    def owns(self, data: Any) -> bool:
        return isinstance(data, list)

    def describe(self, data: list[pa.RecordBatch]) -> dict[str, str]:
        schema = data[0].schema
        return duckdb_types(dict(zip(schema.names, schema.types, strict=True)), do="cast it.")

    def table(self, data: list[pa.RecordBatch]) -> pa.Table:
        return pa.Table.from_batches(data)

    def given(self, blobs: pa.Table) -> pa.Table:
        return blobs

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> pa.Table:
        return _table(blob for number in range(count) for blob in _sent(call)(number))

    def batches(self, data: list[pa.RecordBatch], columns: Sequence[str], stage: Stage) -> pa.Table:
        return _table(blob for batch in data for blob in _sent(stage)(iter([batch.select(list(columns))])))

    def union(self, several: Sequence[pa.Table]) -> pa.Table:
        return pa.concat_tables(several)

    def shuffled(self, blobs: pa.Table, parts: int, stage: Stage) -> pa.Table:
        assert blobs.num_rows == 0 or max(blobs["part"].to_pylist()) < parts
        mixed = blobs.take(pa.array(range(blobs.num_rows - 1, -1, -1), pa.int64()))
        ordered = mixed.sort_by([("part", "ascending"), ("kind", "ascending")])
        whole = ordered.combine_chunks().to_batches(max_chunksize=3)
        list(_sent(stage)(iter(whole)))
        return _table(_sent(stage)(iter(whole)))

    @contextmanager
    def by_value(self, functions: Sequence[Callable[..., Any]]) -> Iterator[None]:
        yield

    def collected(self, blobs: pa.Table) -> Iterable[pa.RecordBatch]:
        return reversed(blobs.to_batches())

    def close(self) -> None:
        """Nothing was started."""


def _sent(call: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(call))


def _table(blobs: Iterable[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(list(blobs), BLOBS)
