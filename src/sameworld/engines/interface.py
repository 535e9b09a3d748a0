"""What every engine does: say what a table's columns are, and deliver a grouping's rows sorted by entity to the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.plan import Grouping
from sameworld.asof.prepared import World
from sameworld.asof.schema import Schema


@dataclass(frozen=True)
class Rows:
    """Where a source's rows are: its files, up to a cutover where there is one, and the event log after it. A row is in exactly one.

    Args:
        data: the source's own data.
        cutover: microseconds; rows of `data` readable at or after it do not count.
        log: raw rows of the event log with `__available_us`, the stamps of their commits.
    """

    data: Any
    cutover: int | None = None
    log: pa.Table | None = None


@dataclass(frozen=True)
class Asked:
    """Moments as an engine needs them.

    Args:
        keys: the request's fields that are keys of some grouping, one row a moment.
        at: shape (moments,), microseconds; what windows refer to.
        as_of: shape (moments,), microseconds; rows readable before it count. The same as `at` for features.
    """

    keys: pa.Table
    at: NDArray[np.int64]
    as_of: NDArray[np.int64]


@dataclass(frozen=True)
class MomentTable:
    """Moments as read.

    Args:
        at: shape (moments,), microseconds.
        fields: one column a request field.
        as_of: shape (moments,), microseconds: rows readable before it count; None where that is `at`.
        served: feature column -> what a prediction log says was served; None where features are to be computed.
        answer: shape (moments,), which answer of a prediction log each candidate is of, -1 for one that is of a table; None where none is of a log.
    """

    at: NDArray[np.int64]
    fields: pa.Table
    as_of: NDArray[np.int64] | None = None
    served: Mapping[str, pa.Array] | None = None
    answer: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Ask:
    """What is read of one grouping at every moment.

    Args:
        grouping: what.
        world: which rows count as readable when.
        as_of: microseconds; rows readable before it count. None: before each moment.
    """

    grouping: Grouping
    world: World
    as_of: int | None = None


@dataclass(frozen=True)
class Change:
    """Values that were computed before, and are others now: rows that came late, which those moments could have read.

    Args:
        column: its name, see `Aggregate.columns`.
        moments: which of the moments, by number.
        known: how many values were known before.
    """

    column: str
    moments: NDArray[np.int64]
    known: int


class Engine(Protocol):
    """One engine. Values must equal the oracle's bit for bit: see `sameworld.testing`."""

    @property
    def folder(self) -> Path:
        """What relative paths in definitions start from."""
        ...

    def describe(self, data: Any, what: str) -> dict[str, str]:
        """Give a table's columns and their DuckDB types.

        Raises:
            DataError: the data cannot be read.
        """
        ...

    def table(self, data: Any, what: str, *, timezone: str | None = None) -> pa.Table:
        """Give a whole table as Arrow, in its own order; naive timestamps become instants on the clocks of `timezone`, as a source's do."""
        ...

    def batches(self, data: Any, what: str, *, rows: int, timezone: str | None = None) -> Iterator[pa.Table]:
        """Give what `table` gives as tables of so many rows, the last with fewer, without holding all of it; one without rows when there is none.

        Other methods may be called between two of them.
        """
        ...

    def files(self, data: Any) -> list[Path] | None:
        """Give the files that a path or glob means, sorted; None when the data are a table or a query."""
        ...

    def sums(self, data: Any, what: str) -> tuple[int, str]:
        """Give how many rows there are, and the sum of DuckDB's hash of each: what is in a table, in whatever order."""
        ...

    def digests(self, files: Sequence[Path]) -> list[tuple[int, str]]:
        """Give (bytes, digest of the contents) of every file."""
        ...

    def aggregates(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Schema],
        asked: Asked,
        *,
        rows: Mapping[str, Rows],
        world: World,
    ) -> dict[str, pa.Array]:
        """Give every read of every grouping at every moment, in the moments' order; a column that was kept may come in chunks.

        Args:
            groupings: what to read.
            schemas: source content hash -> its pinned schema.
            asked: the moments.
            rows: source content hash -> where its rows are.
            world: which rows count as readable when.
        """
        ...
