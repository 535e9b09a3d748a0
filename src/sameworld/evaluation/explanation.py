"""What an explanation of a value says, and its parts as text and as JSON."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sameworld.asof.aggregations import AGGREGATIONS, NEVER
from sameworld.asof.instant_text import instant_text
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window

STANDINGS = {
    "used": "the value is made of it",
    "not_yet_readable": "it had happened and was not readable yet",
    "superseded": "a greater version of its fact was readable by then",
    "deleted": "its fact had been withdrawn by then",
    "before_window": "its event time is before the window",
    "after_window": "its event time is at or after the window's end",
    "condition": "the feature's condition does not hold for it",
    "null_value": "what the aggregation reads of it is null",
    "deletion": "it withdraws its fact",
    "no_event_time": "its event time is null, so it is in no window",
    "too_late": "its fact had closed when it came (corrections_within)",
    "never_readable": "its available time is null",
}
"""Why a row version does or does not count at a moment; each has exactly one."""


_HOUR = 3_600_000_000
_UNITS = (("d", 24 * _HOUR), ("h", _HOUR), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000))


@dataclass(frozen=True)
class Superseding:
    """The version that ended another one.

    Args:
        at: microseconds; from when on the other one was superseded.
        version: its place among the corrections, where the source has one.
        deleted: whether it withdraws the fact.
        same_entity: whether it belongs to the same entity.
        repeated: whether it is the same row, delivered again.
        value: of the aggregated column.
    """

    at: int
    version: Any
    deleted: bool
    same_entity: bool
    repeated: bool
    value: Any


@dataclass(frozen=True)
class RowVersion:
    """One row version of the entity.

    Args:
        standing: why it does or does not count: see `STANDINGS`.
        event_time, available_at: microseconds; None where the row has none.
        superseded_by: what ends it, whenever that is; None while nothing does.
        fact, version: its id and its place among the corrections, where the source has them.
        value: of the aggregated column.
        row: all columns of the raw row; instants as text.
    """

    standing: str
    event_time: int | None
    available_at: int | None
    superseded_by: Superseding | None
    fact: str | None
    version: Any
    value: Any
    row: Mapping[str, Any]

    def lives(self) -> bool:
        """Whether there is any time at which it is the truth."""
        ends = NEVER if self.superseded_by is None else self.superseded_by.at
        return self.available_at is not None and self.available_at < ends and self.standing != "deletion"

    def as_json(self, as_of: int) -> dict[str, Any]:
        """The row version for a script."""
        by = self.superseded_by
        after = self.available_at is not None and self.available_at >= as_of
        return {
            "event_time": _text(self.event_time),
            "available_at": _text(self.available_at),
            "readable_after_seconds": ((self.available_at or 0) - as_of) / 1e6 if after else None,
            "id": self.fact,
            "version": self.version,
            "value": plain_json(self.value),
            "superseded": None
            if by is None
            else {
                "at": _text(by.at),
                "version": by.version,
                "deleted": by.deleted,
                "same_entity": by.same_entity,
                "repeated": by.repeated,
                "value": plain_json(by.value),
            },
            "row": {name: plain_json(value) for name, value in self.row.items()},
        }


@dataclass(frozen=True)
class Timeline:
    """A value along time.

    Args:
        start, end: microseconds; what was looked at.
        points: (from, value) in the order of time, the first at `start`; a value holds until the next one, unless it is sampled.
        cut: whether there were more changes than were looked at.
        of_knowledge: whether the moment stands still and only what is readable changes.
        sampled: whether the value changes while nothing happens, as an age does, so that the points are samples.
    """

    start: int
    end: int
    points: tuple[tuple[int, Any], ...]
    cut: bool
    of_knowledge: bool
    sampled: bool

    def at(self, instant: int) -> Any:
        """The value at an instant between `start` and `end`."""
        return self.points[bisect.bisect_right(self.points, instant, key=lambda point: point[0]) - 1][1]

    def as_json(self) -> dict[str, Any]:
        """The timeline for a script."""
        return {
            "from": _text(self.start),
            "to": _text(self.end),
            "cut": self.cut,
            "sampled": self.sampled,
            "of": "what is readable" if self.of_knowledge else "the moment",
            "points": [{"from": _text(at), "value": plain_json(value)} for at, value in self.points],
        }


@dataclass(frozen=True)
class ColumnExplanation:
    """One window of one aggregate at a moment.

    Args:
        column: the feature column's name.
        aggregate: the feature.
        window: the window.
        start, end: microseconds; the window of event times, its end not in it; a start of None is the beginning of time.
        value: what the kernel gives.
        counts: standing -> how many row versions of the entity have it; those that none has are left out.
        rows: the row versions nearest to the moment, at most so many of each standing, in the order of event time.
        known_later: (microseconds, value): when the last row was readable that had happened and was not known yet, and what was known of the moment
            then; None without such a row. A correction of a row that was used is none.
        event_time_value: what a join on event times would have given.
        timeline: the value around the moment.
        verdict: all that in words.
    """

    column: str
    aggregate: Aggregate
    window: Window
    start: int | None
    end: int
    value: Any
    counts: Mapping[str, int]
    rows: tuple[RowVersion, ...]
    known_later: tuple[int, Any] | None
    event_time_value: Any
    timeline: Timeline
    verdict: str

    def as_json(self, as_of: int) -> dict[str, Any]:
        """The column for a script."""
        return {
            "column": self.column,
            "definition": definition_of(self.aggregate, self.window),
            "window": {"from": _text(self.start), "to": _text(self.end)},
            "value": plain_json(self.value),
            "verdict": self.verdict,
            "counts": dict(self.counts),
            "rows": {
                standing: [row.as_json(as_of) for row in self.rows if row.standing == standing]
                for standing in self.counts
            },
            "known_later": None
            if self.known_later is None
            else {"as_of": _text(self.known_later[0]), "value": plain_json(self.known_later[1])},
            "event_time_value": plain_json(self.event_time_value),
            "timeline": self.timeline.as_json(),
        }


@dataclass(frozen=True)
class Explanation:
    """What a feature's value at a moment rests on.

    Args:
        model, feature: names.
        at, as_of: microseconds; the moment, and the time before which rows had to be readable.
        entity: key -> value.
        computed: how, for what the request gives or a function makes; that it is a category, where it is; empty otherwise.
        inputs: for such a feature, the names it reads.
        columns: the feature's aggregates, or those that it is made of, one a window.
    """

    model: str
    feature: str
    at: int
    as_of: int
    entity: Mapping[str, Any]
    computed: str
    inputs: tuple[str, ...]
    columns: tuple[ColumnExplanation, ...]

    def as_json(self) -> dict[str, Any]:
        """The explanation for a script."""
        return {
            "model": self.model,
            "feature": self.feature,
            "entity": {name: plain_json(value) for name, value in self.entity.items()},
            "at": _text(self.at),
            "as_of": _text(self.as_of),
            "computed": self.computed,
            "inputs": list(self.inputs),
            "columns": [column.as_json(self.as_of) for column in self.columns],
        }


def definition_of(aggregate: Aggregate, window: Window) -> str:
    """An aggregate over a window as a person reads it."""
    names = AGGREGATIONS[aggregate.operation].arguments
    takes = [aggregate.column] if aggregate.column is not None else []
    takes += [f"{name}={value}" for name, value in zip(names, aggregate.arguments, strict=True)]
    where = f" where {aggregate.where}" if aggregate.where else ""
    rows = f"{aggregate.operation}({', '.join(takes)}) of {aggregate.source.name} by {', '.join(aggregate.keys)}{where}"
    return rows if window.length is None else f"{rows} over {window.label}"


def columns_read(aggregate: Aggregate) -> tuple[str, ...]:
    """The columns that an aggregation reads: none, one, or for some two."""
    return tuple(column for column in aggregate.columns_read if column is not None)


def span_text(microseconds: int) -> str:
    """Write a length of time in the unit that people would use.

    >>> span_text(840_000_000), span_text(1), span_text(5_400_000_000)
    ('14 min', '1 us', '1.5 h')
    """
    for unit, size in _UNITS:
        if microseconds >= size:
            return f"{round(microseconds / size, 2):,g} {unit}" if microseconds % size else f"{microseconds // size:,} {unit}"  # fmt: skip
    return f"{microseconds} us"


def value_text(value: Any) -> str:
    """A value as a person reads it."""
    return "null" if value is None else str(value) if isinstance(value, Decimal) else repr(value)


def plain_json(value: Any) -> Any:
    """A value as JSON has it: no NaN, no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, list):
        return [plain_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(microseconds: int | None) -> str | None:
    return None if microseconds is None else instant_text(microseconds, "T")
