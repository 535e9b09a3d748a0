"""Dask brings blobs together: its delayed tasks run stages, and give tables of blobs to each other, or to its peer-to-peer shuffle where there are many. Dask does the scheduling, the spilling and the retries."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from sameworld.engines.blobs import BLOBS, Blobs, Stage, dealt, in_parts
from sameworld.engines.cluster import ClusterEngine, Options, checked, pickled_by_value
from sameworld.engines.reading import duckdb_types
from sameworld.errors import DefinitionError

try:
    import cloudpickle
    import dask.dataframe as dd
    import pandas as pd
    from dask.delayed import Delayed, delayed
    from distributed import Client, LocalCluster, default_client
except ImportError as error:
    raise DefinitionError(
        'engine="dask" needs Dask with its DataFrame and distributed.',
        found=str(error),
        do="pip install 'sameworld[dask]'.",
    ) from error

MOST_PIECES = 10_000
"""How many tables go from tasks to tasks in one shuffle, at most: Dask's scheduler knows each of them, at about a millisecond."""
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
    **options: Unpack[Options],
) -> ClusterEngine:
    """Give an engine that works on Dask.

    Args:
        client: of a cluster; it is not closed. Without one, that of this process, or one of a local cluster that is stopped in the end.
        folder: as for `ClusterEngine`.
        options: see `Options`.
    """
    do = "dask_engine(Client(address), folder)."
    active = checked(client, Client, "Dask client", do) or _active()
    flow = DaskFlow(active or local_client(), own=active is None)
    return ClusterEngine(flow, folder, **options)


class DaskFlow:
    """See `Flow`. Its blobs are what delayed tasks give, a table each.

    Few tasks give each of few others a table of its own. Where that would be more tables than the scheduler should know, Dask's peer-to-peer shuffle moves them,
    by disk.

    Args:
        client: where they are made.
        own: whether to stop its cluster in the end.
        most_pieces: how many tables go from tasks to tasks in one shuffle, at most.
    """

    def __init__(self, client: Client, *, own: bool = False, most_pieces: int = MOST_PIECES) -> None:
        self._client, self._own, self._most_pieces = client, own, most_pieces

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
        return pa.concat_tables(_arrow(frame, schema) for frame in self._results(data.to_delayed()))

    def given(self, blobs: pa.Table) -> list[Delayed]:
        rows = max(_GIVEN_BYTES * blobs.num_rows // max(blobs.nbytes, 1), 1)
        pieces = [blobs.slice(first, rows).combine_chunks() for first in range(0, blobs.num_rows, rows)]
        return [_task(piece) for piece in pieces]

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> list[Delayed]:
        each = _shipped(call)
        return [_task(_called)(each, number) for number in range(count)]

    def batches(self, data: dd.DataFrame, columns: Sequence[str], stage: Stage) -> list[Delayed]:
        some, each = data[list(columns)], _shipped(stage)
        schema = pa.schema(list(_kinds(some).items()))
        return [_task(_on_rows)(each, frame, schema) for frame in some.to_delayed()]

    def union(self, several: Sequence[list[Delayed]]) -> list[Delayed]:
        return [table for tables in several for table in tables]

    def shuffled(self, blobs: list[Delayed], parts: int, stage: Stage) -> list[Delayed]:
        each = _shipped(stage)
        if len(blobs) * parts <= self._most_pieces:
            cut = [_task(_dealt, nout=parts)(table, parts) for table in blobs]
            return [_task(_together)(each, list(pieces)) for pieces in zip(*cut, strict=True)]
        frames = dd.from_delayed([_task(_frame)(table) for table in blobs], meta=_META, verify_meta=False)
        # Partition number `part` is of part `part`: hashes would put several into some partitions, and none into others.
        placed = frames.set_index("part", divisions=list(range(parts + 1)), shuffle_method="p2p")
        return [_task(_together)(each, [_task(_blobs)(frame)]) for frame in placed.to_delayed()]

    def by_value(self, functions: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
        return pickled_by_value(cloudpickle, functions)

    def collected(self, blobs: list[Delayed]) -> Iterable[pa.RecordBatch]:
        for table in self._results(blobs):
            yield from table.to_batches()

    def _results(self, delayed: Sequence[Delayed]) -> Iterator[Any]:
        running: Any = self._client.compute(list(delayed)[::-1], retries=_RETRIES)
        while running:
            yield running.pop().result()

    def close(self) -> None:
        if self._own:
            self._client.shutdown()
            self._client.close()


# What a task gives is not what one of another run gives, whatever it is called with: files may have changed.
_task: Any = functools.partial(delayed, pure=False, traverse=False)


@dataclass(frozen=True)
class _Shipped:
    """A function as bytes: Dask would pickle it by name, functions of a world file too."""

    data: bytes = field(repr=False)

    def opened(self) -> Any:
        return cloudpickle.loads(self.data)


def _shipped(call: Callable[..., Blobs]) -> Delayed:
    return _task(_Shipped(cloudpickle.dumps(call)))


def _called(call: _Shipped, number: int) -> pa.Table:
    return pa.Table.from_batches(list(call.opened()(number)), BLOBS)


def _on_rows(stage: _Shipped, rows: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches(list(stage.opened()(iter(_arrow(rows, schema).to_batches()))), BLOBS)


def _dealt(blobs: pa.Table, hands: int) -> list[pa.Table]:
    return dealt(blobs.to_batches(), hands)


def _together(stage: _Shipped, several: list[pa.Table]) -> pa.Table:
    return pa.Table.from_batches(list(stage.opened()(in_parts(pa.concat_tables(several)))), BLOBS)


def _frame(blobs: pa.Table) -> pd.DataFrame:
    """Give blobs as Dask's shuffle moves them."""
    data = pd.arrays.ArrowExtensionArray(blobs["data"].cast(pa.large_binary()))
    numbers = {name: blobs[name].to_numpy() for name in ("part", "kind")}
    return pd.DataFrame({**numbers, "data": data})


def _blobs(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.reset_index(), preserve_index=False)


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
