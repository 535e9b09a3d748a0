"""Ray brings blobs together: its tasks run stages, and its object store takes what one gives to where another needs it. Ray does the scheduling, the spilling and the retries."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from sameworld.engines.blobs import BLOBS, Blobs, Stage, dealt, in_parts
from sameworld.engines.cluster import ClusterEngine, Options, checked, pickled_by_value
from sameworld.engines.reading import duckdb_types
from sameworld.errors import DefinitionError

try:
    import ray
    from ray import cloudpickle
    from ray.data import Dataset
except ImportError as error:
    raise DefinitionError(
        'engine="ray" needs Ray.', found=str(error), do="pip install 'sameworld[ray]'."
    ) from error

MOST_TASKS = 2_000
"""How many tasks give to how many others, at most. Ray's driver knows every piece that goes from one to another: with 2,000 of each 4 million, a few gigabytes of its memory."""
_GIVEN_BYTES = 64 << 20


def ray_engine(
    address: str | None = None,
    folder: Path | None = None,
    **options: Unpack[Options],
) -> ClusterEngine:
    """Give an engine that works on Ray.

    Args:
        address: of a cluster, as `ray.init` takes it ("auto", "ray://head:10001"); it is left as it is in the end. Without one, the cluster that this process is
            connected to, or that RAY_ADDRESS names, or a local one that is stopped in the end.
        folder: as for `ClusterEngine`.
        options: see `Options`.
    """
    own, do = not ray.is_initialized(), 'ray_engine("ray://head:10001", folder).'
    address = checked(address, str, "address of a Ray cluster", do) or os.environ.get("RAY_ADDRESS")
    if own:
        local_ray() if address is None else ray.init(address)
    return ClusterEngine(RayFlow(own=own), folder, **options)


@dataclass(frozen=True)
class Task:
    """What is yet to run.

    Args:
        stage: what is called, as an object of Ray's, so that it is sent once.
        given: what it is called with; objects arrive as what they are of.
    """

    stage: Any
    given: tuple[Any, ...]


# Ray's own annotations know no lists.
_get: Any = ray.get
_retried: Any = ray.remote(retry_exceptions=[OSError])  # pyright: ignore[reportArgumentType]


class RayFlow:
    """See `Flow`. Its blobs are what tasks give, and lie in Ray's object store.

    A shuffle is what Ray's own are: a task gives as many objects as there are tasks that take them. Ray Data's cannot be used: one splits what has been brought
    together at 128 MB, the other lets the hash of a number decide who shares a task with whom.

    Args:
        own: whether to leave Ray in the end.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._own = own

    @property
    def parallelism(self) -> int:
        return max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def owns(self, data: Any) -> bool:
        return isinstance(data, Dataset)

    def describe(self, data: Dataset) -> dict[str, str]:
        schema = data.schema()
        kinds = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        return duckdb_types(kinds, do="make its blocks Arrow tables, or leave it out.")

    def table(self, data: Dataset) -> pa.Table:
        return pa.concat_tables(_get(data.to_arrow_refs()))

    def given(self, blobs: pa.Table) -> list[Task]:
        rows = max(_GIVEN_BYTES * blobs.num_rows // max(blobs.nbytes, 1), 1)
        as_given = ray.put(_batches_of)
        pieces = [blobs.slice(first, rows) for first in range(0, blobs.num_rows, rows)]
        return [Task(as_given, (ray.put(piece),)) for piece in pieces]

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> list[Task]:
        each = ray.put(functools.partial(_each, call))
        several = -(-count // MOST_TASKS)
        return [Task(each, (first, min(first + several, count))) for first in range(0, count, several)]

    def batches(self, data: Dataset, columns: Sequence[str], stage: Stage) -> list[Task]:
        made = data.select_columns(list(columns)).map_batches(
            functools.partial(_staged, stage), batch_size=None, batch_format="pyarrow"
        )
        as_given = ray.put(_batches_of)
        return [Task(as_given, (blobs,)) for blobs in made.to_arrow_refs()]

    def union(self, several: Sequence[list[Task]]) -> list[Task]:
        return [task for tasks in several for task in tasks]

    def shuffled(self, blobs: list[Task], parts: int, stage: Stage) -> list[Task]:
        hands = min(parts, MOST_TASKS)
        if hands == 1:
            dealt_out = [[_whole.remote(task.stage, *task.given)] for task in blobs]
        else:
            dealt_out = [
                _dealt.options(num_returns=hands).remote(task.stage, hands, *task.given) for task in blobs
            ]
        together = ray.put(functools.partial(_together, stage))
        return [Task(together, some) for some in zip(*dealt_out, strict=True)]

    def by_value(self, functions: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
        return pickled_by_value(cloudpickle, functions)

    def collected(self, blobs: list[Task]) -> Iterable[pa.RecordBatch]:
        running = [_whole.remote(task.stage, *task.given) for task in reversed(blobs)]
        while running:
            yield from _get(running.pop()).to_batches()

    def close(self) -> None:
        if self._own:
            ray.shutdown()


@_retried
def _whole(stage: Callable[..., Blobs], *given: Any) -> pa.Table:
    """Give what a stage makes as one object."""
    return pa.Table.from_batches(list(stage(*given)), BLOBS)


@_retried
def _dealt(stage: Callable[..., Blobs], hands: int, *given: Any) -> list[pa.Table]:
    """Give what a stage makes as so many objects."""
    return dealt(stage(*given), hands)


def _batches_of(blobs: pa.Table) -> Blobs:
    yield from blobs.to_batches()


def _each(call: Callable[[int], Blobs], first: int, end: int) -> Blobs:
    for number in range(first, end):
        yield from call(number)


def _together(stage: Stage, *several: pa.Table) -> Blobs:
    yield from stage(in_parts(pa.concat_tables(several)))


def _staged(stage: Stage, rows: pa.Table) -> Iterator[pa.Table]:
    """Give what a stage makes of rows; nothing for none, since an empty block says no schema."""
    if rows.num_rows:
        yield pa.Table.from_batches(list(stage(iter(rows.to_batches()))), BLOBS)


def local_ray(**options: Any) -> None:
    """Start Ray on this machine: no page, nothing said to the net, workers' output where Ray keeps it.

    Args:
        options: more of `ray.init`, such as `num_cpus`.
    """
    # Ray tells its makers how it is used, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"include_dashboard": False, "log_to_driver": False, **options}
    ray.init("local", _node_ip_address="127.0.0.1", **options)
