"""One request on its way through the server, and what was read for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sameworld.asof.column import Column, null_column
from sameworld.server.ranks import Candidate
from sameworld.server.served import Served
from sameworld.server.served_tier import ServedTier
from sameworld.server.turns import Line
from sameworld.serving.tiers import Known, Replaced
from sameworld.training.encoding import matrix_of


@dataclass(slots=True, eq=False)
class Asked:
    """One request on its way.

    Args:
        fields: values in the order of the model's request fields; instants in microseconds.
        at: the moment in a replay, in microseconds.
        arrived, deadline: seconds on the steady clock.
        answer: what its caller waits for.
        line: where it waits.
        place: among the different requests of its batch that read the same.
        seen: what its batch read.
        tried, reason: the last tier that was tried (-1 is none), and why it is not the answer.
        given: whether its answer is decided, and perhaps on its way to the log still.
        candidates: what it carries to be ranked; None where the model does not rank.
        rows: how many are read and scored for it.
        top: how many of its candidates its caller wants; as many as the model's ranking says where it is None.
        kept: how long ago its answer was computed, in microseconds, where it was kept; of a ranking the oldest.
    """

    served: Served
    fields: list[Any]
    at: int | None
    arrived: float
    deadline: float
    answer: asyncio.Future[Any]
    line: Line[Asked]
    place: int = 0
    seen: Seen | None = None
    tried: int = -1
    reason: str = ""
    given: bool = False
    candidates: list[Candidate] | None = None
    rows: int = 1
    top: int | None = None
    kept: int | None = None


Row = Asked | Candidate
"""What is read and scored: a request, or a candidate of one."""


@dataclass
class Seen:
    """What requests of one moment to models with the same features are answered from.

    Args:
        group: the requests.
        different: one of each different row; a row's `place` is its own among them.
        t, sequence: the moment and the last event seen.
        values: the aggregates of the different requests, of those sources that could be read.
        ages: source -> microseconds since its latest row became readable.
        broken: source -> why it could not be read.
        store: why nothing could be read.
        reading: seconds a row that reading has taken.
        made: what tiers made of it, once for all models.
    """

    group: list[Asked]
    different: Sequence[Row]
    t: int
    sequence: int = 0
    values: dict[str, Column] = field(default_factory=dict[str, Column])
    ages: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    broken: dict[str, str] = field(default_factory=dict[str, str])
    store: str = ""
    reading: float = 0.0
    made: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def inputs(
        self, tier: ServedTier, nulls: Sequence[Replaced], own: Sequence[Row]
    ) -> tuple[dict[str, Column], dict[str, Column]]:
        """Give the aggregates, with nulls in the place of some, and the fields of some of its rows."""
        served = self.group[0].served
        gone = {column for null in nulls for column in null.aggregates}
        places = None if own is self.different else [asked.place for asked in own]
        values = {
            name: null_column(served.aggregate_types[name], len(own))
            if name in gone
            else self.values[name]
            if places is None
            else self.values[name].take(places)
            for name in tier.aggregates
        }
        return values, served.layout.columns([asked.fields for asked in own])

    def columns(self, tier: ServedTier, nulls: Sequence[Replaced]) -> dict[str, Column]:
        """Give the feature columns of the different requests as a tier sees them."""
        return self._once(
            ("columns", tier.sees_as, tuple(nulls)),
            lambda: tier.evaluate(*self.inputs(tier, nulls, self.different)),
        )

    def vectors(self, tier: ServedTier, nulls: Sequence[Replaced]) -> list[list[Any]]:
        """Give what a tier sees of the different requests as the log has it."""
        return self._once(
            ("vectors", tier.sees_as, tuple(nulls)),
            lambda: tier.vectors(
                self.columns(tier, nulls), self.group[0].served.columns, len(self.different)
            ),
        )

    def matrix(self, tier: ServedTier, nulls: Sequence[Replaced]) -> NDArray[np.float64]:
        """Give what a tier sees of the different requests as its estimator does."""
        return self._once(
            ("matrix", tier.encoded_as, tier.sees_as, tuple(nulls)),
            lambda: matrix_of(tier.encodings, self.columns(tier, nulls)),
        )

    def known(self, served: Served, left: float) -> Known:
        """Give what one model's next tier is chosen by, with so many seconds left."""
        closed = {tier.name: why for tier in served.laned if (why := tier.closed())}
        takes = {tier.name: tier.takes for tier in served.laned}
        return Known(self.ages, self.broken, self.store, closed, takes, left)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class Given(msgspec.Struct, gc=False):
    """What a caller is told."""

    value: float
    tier: str
    reason: str
    version: str
    id: str
    logged: bool
    ranking: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


def rows_of(group: list[Asked]) -> Sequence[Row]:
    """Give the rows of requests to one model: themselves, or their candidates."""
    if group[0].candidates is None:
        return group
    return [candidate for asked in group for candidate in asked.candidates or ()]


def alike(
    rows: Sequence[Row], different: Sequence[Row]
) -> tuple[Sequence[Row], NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Give one of each of some rows that are alike, its places among the different ones, and for each of the rows its number among those given; no places or numbers where all are the different ones."""
    if rows is different:
        return rows, None, None
    once, back = np.unique(np.array([row.place for row in rows], np.int64), return_inverse=True)
    return [different[place] for place in once.tolist()], once, back


def different(rows: Sequence[Row]) -> Sequence[Row]:
    """Give one of each different row (the rows themselves where no two are alike), and note each row's place among them."""
    numbers: dict[tuple[Any, ...], int] = {}
    found: list[Row] = []
    for row in rows:
        row.place = numbers.setdefault(tuple(row.fields), len(found))
        if row.place == len(found):
            found.append(row)
    return rows if len(found) == len(rows) else found
