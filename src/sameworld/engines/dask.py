"""Dask brings blobs together: frames of blobs, `map_partitions` runs a stage, and its peer-to-peer shuffle moves them. Dask does the scheduling, the spilling and the retries."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sameworld.engines.blobs import BLOBS, Blobs, Stage, in_parts
from sameworld.engines.cluster import MEMORY_BYTES, ClusterEngine, pickled_by_value, silent
from sameworld.engines.reading import duckdb_types
from sameworld.errors import DefinitionError

try:
    import cloudpickle
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client, LocalCluster, default_client
except ImportError as error:
    raise DefinitionError(
        'engine="dask" needs Dask with its DataFrame and distributed.',
        found=str(error),
        do="pip install 'sameworld[dask]'.",
    ) from error

_RETRIES = 3
_GIVEN_BYTES = 64 << 20
# The offsets of a column of binary data have 32 bits, those of large binary data 64: a partition is one column, of whatever size.
_META = pd.DataFrame(
    {
        "part": pd.Series(dtype="int32"),
        "kind": pd.Series(dtype="int32"),
        "data": pd.Series(dtype=pd.ArrowDtype(pa.large_binary())),
    }
)


def dask_engine(
    client: Client | None = None,
    folder: Path | None = None,
    *,
    partitions: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    cache: Path | None = None,
    say: Callable[[str], None] = silent,
) -> ClusterEngine:
    """Give an engine that works on Dask.

    Args:
        client: of a cluster; it is not closed. Without one, that of this process, or one of a local cluster that is stopped in the end.
        folder, partitions, memory_bytes, cache, say: as for `ClusterEngine`.
    """
    active = client or _active()
    flow = DaskFlow(active or local_client(), own=active is None)
    return ClusterEngine(flow, folder, partitions=partitions, memory_bytes=memory_bytes, cache=cache, say=say)


class DaskFlow:
    """See `Flow`. Its blobs lie in Dask DataFrames.

    Args:
        client: where they are made.
        own: whether to stop its cluster in the end.
    """

    def __init__(self, client: Client, *, own: bool = False) -> None:
        self._client, self._own = client, own

    @property
    def parallelism(self) -> int:
        return max(sum(self._client.nthreads().values()), 1)

    def owns(self, data: Any) -> bool:
        return isinstance(data, dd.DataFrame)

    def describe(self, data: dd.DataFrame) -> dict[str, str]:
        return duckdb_types(
            _kinds(data), do="read it with dtype_backend='pyarrow', cast it, or leave it out."
        )

    def table(self, data: dd.DataFrame) -> pa.Table:
        schema = pa.schema(list(_kinds(data).items()))
        return pa.concat_tables(_arrow(frame, schema) for frame in self._frames(data))

    def given(self, blobs: pa.Table) -> dd.DataFrame:
        rows = max(_GIVEN_BYTES * blobs.num_rows // max(blobs.nbytes, 1), 1)
        pieces = [blobs.slice(first, rows) for first in range(0, max(blobs.num_rows, 1), rows)]
        return dd.from_map(_frame, [piece.combine_chunks() for piece in pieces], meta=_META)

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> dd.DataFrame:
        return dd.from_map(_EachNumber(_Shipped.of(call)), range(count), meta=_META)

    def batches(self, data: dd.DataFrame, columns: Sequence[str], stage: Stage) -> dd.DataFrame:
        some = data[list(columns)]
        return some.map_partitions(
            _OnRows(_Shipped.of(stage), pa.schema(list(_kinds(some).items()))), meta=_META
        )

    def union(self, several: Sequence[dd.DataFrame]) -> dd.DataFrame:
        return dd.concat(list(several)) if len(several) > 1 else several[0]

    def shuffled(self, blobs: dd.DataFrame, parts: int, stage: Stage) -> dd.DataFrame:
        # Partition number `part` is of part `part`: hashes would put several into some partitions, and none into others.
        placed = blobs.set_index("part", divisions=list(range(parts + 1)), shuffle_method="p2p")
        return placed.map_partitions(_Together(_Shipped.of(stage)), meta=_META, clear_divisions=True)

    def by_value(self, functions: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
        return pickled_by_value(cloudpickle, functions)

    def collected(self, blobs: dd.DataFrame) -> Iterable[pa.RecordBatch]:
        for frame in self._frames(blobs):
            yield from _blobs(frame).to_batches()

    def _frames(self, data: dd.DataFrame) -> Iterable[pd.DataFrame]:
        running: Any = self._client.compute(data.to_delayed()[::-1], retries=_RETRIES)
        while running:
            yield running.pop().result()

    def close(self) -> None:
        if self._own:
            self._client.shutdown()
            self._client.close()


@dataclass(frozen=True)
class _Shipped:
    """A function as bytes: Dask would pickle it by name, functions of a world file too. With a number of its own: what it gave in another run is not what it gives, since files may have changed."""

    data: bytes
    number: str

    @classmethod
    def of(cls, call: Callable[..., Blobs]) -> _Shipped:
        return cls(cloudpickle.dumps(call), uuid.uuid4().hex)

    def opened(self) -> Any:
        return cloudpickle.loads(self.data)


@dataclass(frozen=True)
class _EachNumber:
    call: _Shipped

    def __call__(self, number: int) -> pd.DataFrame:
        return _frame(self.call.opened()(number))


@dataclass(frozen=True)
class _OnRows:
    stage: _Shipped
    schema: pa.Schema

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        return _frame(self.stage.opened()(iter(_arrow(rows, self.schema).to_batches())))


@dataclass(frozen=True)
class _Together:
    stage: _Shipped

    def __call__(self, blobs: pd.DataFrame) -> pd.DataFrame:
        return _frame(self.stage.opened()(in_parts(_blobs(blobs.reset_index()))))


def _frame(blobs: Iterable[pa.RecordBatch] | pa.Table) -> pd.DataFrame:
    """Give blobs as Dask moves them."""
    table: Any = blobs if isinstance(blobs, pa.Table) else pa.Table.from_batches(list(blobs), BLOBS)
    data = pd.arrays.ArrowExtensionArray(table["data"].cast(pa.large_binary()))
    numbers = {name: table[name].to_numpy() for name in ("part", "kind")}
    return pd.DataFrame({**numbers, "data": data})


def _blobs(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _kinds(data: dd.DataFrame) -> dict[str, Any]:
    """Give column -> Arrow type; `object` stays what it is."""
    schema = pa.Schema.from_pandas(data._meta, preserve_index=False)  # pyright: ignore[reportPrivateUsage] # the only frame that says the types and costs nothing
    return {
        name: kind if pd.api.types.is_object_dtype(kind) else schema.field(name).type
        for name, kind in data.dtypes.items()
    }


def _arrow(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def _active() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


def local_client(workers: int | None = None) -> Client:
    """Start Dask on this machine: a process of one thread for every core, no page.

    Args:
        workers: how many processes.
    """
    cluster = LocalCluster(
        n_workers=workers or os.cpu_count() or 1,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,  # every shuffle would warn that it begins
    )
    return Client(cluster)
