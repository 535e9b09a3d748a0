"""What requests are answered from: one consistent view of a store, in which nothing is read or computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sameworld.asof.column import Column
from sameworld.asof.plan import Grouping
from sameworld.asof.tally import Tallied
from sameworld.errors import StoreError
from sameworld.stores.clock import Clock
from sameworld.stores.keeping import has_all
from sameworld.stores.reach import Reach
from sameworld.stores.tallies import Found
from sameworld.stores.view import View, Wanted

Asks = Callable[[], Iterable[tuple[Sequence[Grouping], Mapping[str, Sequence[Any]]]]]
"""Gives groupings and the requests' fields they will be read for, as `Snapshot.aggregates` takes them."""


class Reading(Protocol):
    """What snapshots need of the store that opens them."""

    @property
    def clock(self) -> Clock: ...
    @property
    def folder(self) -> Path: ...
    def reach(self, grouping: Grouping) -> Reach: ...


def wanted(store: Reading, asked: Iterable[tuple[Sequence[Grouping], Mapping[str, Sequence[Any]]]]) -> Wanted:
    """Give how far reads reach and of which entities."""
    found: list[tuple[Reach, list[tuple[Any, ...]]]] = []
    for groupings, fields in asked:
        for grouping in groupings:
            keys = list(zip(*(fields[key] for key in grouping.keys), strict=True))
            found.append((store.reach(grouping), [key for key in keys if None not in key]))
    return found


class Snapshot:
    """One consistent view of the store. Close it soon."""

    def __init__(self, store: Reading, view: View) -> None:
        self._store = store
        self._view = view
        self.sequence: int = view.sequence
        self.stamp: int = view.stamp
        # What one model's reads fetched or computed, another's take: rows by entity, and the same reads of the same entities.
        self._fetched: dict[Any, tuple[Reach, dict[tuple[Any, ...], Found]]] = {}
        self._read: dict[Any, dict[str, Column]] = {}
        self._kept = view.kept.groupings
        self._filled: set[int] = set()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self._view.close()

    def moment(self) -> int:
        """Give the moment of this snapshot: now, and after everything that is in it."""
        fixed = self._view.moment
        return max(self._store.clock.now(), self.stamp + 1) if fixed is None else fixed

    def latest(self) -> Mapping[str, int]:
        """Give source content -> when its latest row became readable, in microseconds; nothing of a source that never had one."""
        return self._view.latest

    def unfilled(self, groupings: Sequence[Grouping]) -> StoreError | None:
        """Give why groupings cannot be read yet; None when they can."""
        for grouping in groupings:
            if id(grouping) in self._filled:
                continue
            reach = self._store.reach(grouping)
            place = self._kept.get(reach.content)
            if place is None or not has_all(place, reach):
                return StoreError(
                    f"The rows of source {grouping.source.name!r} by {', '.join(grouping.keys)} are not filled.",
                    where=str(self._store.folder),
                    do="fill the store; a server that serves other models may have written to it.",
                )
            self._filled.add(id(grouping))
        return None

    def aggregates(
        self, groupings: Sequence[Grouping], fields: Mapping[str, Sequence[Any]], t: int
    ) -> dict[str, pa.Array]:
        """Give every read of every grouping as an array; see `columns`."""
        return {name: column.arrow() for name, column in self.columns(groupings, fields, t).items()}

    def columns(
        self, groupings: Sequence[Grouping], fields: Mapping[str, Sequence[Any]], t: int
    ) -> dict[str, Column]:
        """Give every read of every grouping for a batch of requests at one moment.

        Args:
            groupings: what to read.
            fields: request field -> values, one a request; instants in microseconds.
            t: the moment.
        """
        if unfilled := self.unfilled(groupings):
            raise unfilled
        result: dict[str, Column] = {}
        for grouping in groupings:
            reach = self._store.reach(grouping)
            place = self._kept[reach.content]
            keys = list(zip(*(fields[key] for key in grouping.keys), strict=True))
            same = (id(reach), t, *keys)
            values = self._read.get(same)
            if values is None:
                values = self._read[same] = self._values(place.prefix, reach, keys, t)
            result.update(values)
        return result

    def _values(
        self, prefix: bytes, reach: Reach, keys: Sequence[tuple[Any, ...]], t: int
    ) -> dict[str, Column]:
        different = dict.fromkeys(keys)
        found = self._chunks(prefix, reach, list(different), t)
        rows, starts, texts = reach.layout.together([one.chunks for one in found])
        places = None
        if len(different) < len(keys):
            numbers = {key: number for number, key in enumerate(different)}
            places = np.array([numbers[key] for key in keys], np.int64)
        return reach.reads.values(rows, starts, t, texts, places, _tallied(reach, found))

    def _chunks(self, prefix: bytes, reach: Reach, keys: Sequence[tuple[Any, ...]], t: int) -> list[Found]:
        """Fetch what reads need of entities, or take what another model's reads fetched, where it goes as far. Tallies are for the windows they were fetched for."""
        fetched = self._fetched.get((prefix, t))
        if fetched is None or not (fetched[0] is reach or fetched[0].goes_as_far_as(reach)):
            fetched = self._fetched[prefix, t] = (reach, {})
        known = fetched[1]
        missing = [key for key in keys if key not in known]
        if missing:
            known.update(zip(missing, self._view.chunks_of(prefix, fetched[0], missing, t), strict=True))
        found = [known[key] for key in keys]
        if fetched[0] is not reach and any(one.tallies is not None for one in found):
            return self._view.chunks_of(prefix, reach, keys, t)
        return found


def _tallied(reach: Reach, found: Sequence[Found]) -> Tallied | None:
    """Bring the tallies of entities together; None where there are none."""
    parts = [one.tallies for one in found if one.tallies is not None]
    if not parts:
        return None
    entities = np.cumsum([0, *(0 if one.tallies is None else len(one.tallies.starts) for one in found)])
    return Tallied(entities, reach.layout.words.tally.together(parts))
