"""From features to the fewest sorted groupings of rows: every aggregate over the same source and keys shares one."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.aggregations import BEGINNING
from sameworld.asof.schema import Schema, family_of
from sameworld.definitions.feature import Aggregate, Category, Feature
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.source import Source
from sameworld.definitions.windows import Window


@dataclass(frozen=True)
class Input:
    """What a read needs of a row: whether a condition holds (no column), or a column's value where it holds."""

    condition: str | None
    column: str | None

    def family(self, schema: Schema) -> str | None:
        """The family of the value's type; None for an input that only counts rows."""
        return family_of(schema[self.column]) if self.column is not None else None


@dataclass(frozen=True)
class Read:
    """One aggregation of one input (or two) over one or several windows, each with the name of its column."""

    operation: str
    inputs: tuple[int, ...]
    arguments: tuple[str | int | float, ...]
    windows: tuple[Window, ...]
    names: tuple[str, ...]

    @functools.cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each window starts and ends relative to the moment, in microseconds, as the kernel takes them."""
        bounds = [window.bounds for window in self.windows]
        starts = np.array([BEGINNING if start is None else start for start, _ in bounds], np.int64)
        return starts, np.array([end for _, end in bounds], np.int64)


@dataclass(frozen=True)
class Grouping:
    """A source's rows by entity, with the inputs and reads that features want of them."""

    source: Source
    keys: tuple[str, ...]
    inputs: tuple[Input, ...]
    reads: tuple[Read, ...]

    @functools.cached_property
    def content(self) -> str:
        """The hash of what an online store keeps for it: the source's meaning, keys and inputs."""
        return content_hash([self.source.content, self.keys, [[i.condition, i.column] for i in self.inputs]])

    @functools.cached_property
    def longest_past(self) -> int | None:
        """How far back any window reaches, in microseconds; None when one has no beginning."""
        starts = [window.bounds[0] for read in self.reads for window in read.windows]
        reached = [start for start in starts if start is not None]
        return None if len(reached) < len(starts) else -min(reached)


def aggregates_of(features: Iterable[Feature]) -> list[Aggregate]:
    """Give the aggregates among features, those behind categories included."""
    plain = (feature.of if isinstance(feature, Category) else feature for feature in features)
    return [feature for feature in plain if isinstance(feature, Aggregate)]


def groupings_of(aggregates: Iterable[Aggregate]) -> tuple[Grouping, ...]:
    """Share sorted rows, inputs and reads between aggregates; the result does not depend on their order."""
    sources: dict[tuple[str, tuple[str, ...]], Source] = {}
    wanted: dict[tuple[str, tuple[str, ...]], dict[_Wanted, set[tuple[Window, str]]]] = {}
    for aggregate in aggregates:
        place = (aggregate.source.content, aggregate.keys)
        sources.setdefault(place, aggregate.source)
        inputs = tuple(Input(aggregate.where, column) for column in aggregate.columns_read)
        reads = wanted.setdefault(place, {})
        read = (aggregate.operation, inputs, aggregate.arguments)
        reads.setdefault(read, set()).update(zip(aggregate.windows, aggregate.columns, strict=True))
    return tuple(_grouping(sources[place], place[1], wanted[place]) for place in sorted(wanted))


_Wanted = tuple[str, tuple[Input, ...], tuple[str | int | float, ...]]


def _grouping(
    source: Source, keys: tuple[str, ...], wanted: Mapping[_Wanted, set[tuple[Window, str]]]
) -> Grouping:
    inputs = sorted(
        {item for _, items, _ in wanted for item in items}, key=lambda i: (i.condition or "", i.column or "")
    )
    reads: list[Read] = []
    for (operation, items, arguments), windows in wanted.items():
        ordered = sorted(windows, key=lambda w: w[1])
        places = tuple(inputs.index(item) for item in items)
        reads.append(
            Read(
                operation, places, arguments, tuple(w for w, _ in ordered), tuple(name for _, name in ordered)
            )
        )
    return Grouping(
        source, keys, tuple(inputs), tuple(sorted(reads, key=lambda r: (r.inputs, r.operation, r.names)))
    )


def narrowed(groupings: Iterable[Grouping], aggregates: Iterable[Aggregate]) -> tuple[Grouping, ...]:
    """Keep of shared groupings only the reads of some aggregates; the inputs stay, since they are how rows lie in a store."""
    wanted = {column for aggregate in aggregates for column in aggregate.columns}
    result: list[Grouping] = []
    for grouping in groupings:
        reads = only(grouping.reads, wanted)
        if reads:
            result.append(Grouping(grouping.source, grouping.keys, grouping.inputs, reads))
    return tuple(result)


def only(reads: Iterable[Read], names: Collection[str]) -> tuple[Read, ...]:
    """Keep of reads the windows whose columns have certain names."""
    result: list[Read] = []
    for read in reads:
        kept = [
            (window, name) for window, name in zip(read.windows, read.names, strict=True) if name in names
        ]
        if kept:
            windows, columns = tuple(w for w, _ in kept), tuple(name for _, name in kept)
            result.append(Read(read.operation, read.inputs, read.arguments, windows, columns))
    return tuple(result)
