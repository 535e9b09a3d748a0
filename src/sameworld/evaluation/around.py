"""A column around a moment: its rows, the instants at which its value may change, and which rows to show."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sameworld.asof.aggregations import NEVER
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window
from sameworld.evaluation.explanation import RowVersion, columns_read
from sameworld.evaluation.standing import late_rows, standing_of, superseding, value_of, version_of

_OUTSIDE = ("before_window", "after_window")
_NEAREST_OUTSIDE = 3
_SAMPLES = 64
_HOUR = 3_600_000_000


@dataclass(frozen=True)
class Shaped:
    """A column with its rows and the instants at which its value may change, before anything is evaluated."""

    column: str
    aggregate: Aggregate
    window: Window
    start: int | None
    end: int
    rows: list[RowVersion]
    late_until: int | None
    span: tuple[int, int]
    instants: list[int]
    cut: bool
    of_knowledge: bool

    @classmethod
    def of(
        cls,
        column: str,
        aggregate: Aggregate,
        window: Window,
        versions: Sequence[Mapping[str, Any]],
        at: int,
        as_of: int,
        of_knowledge: bool,
        most_changes: int,
    ) -> Shaped:
        before, after = window.bounds
        start, end = None if before is None else at + before, at + after
        rows: list[RowVersion] = []
        lives: list[tuple[RowVersion, int, int]] = []
        for row, by in zip(versions, superseding(versions, aggregate), strict=True):
            if not row["own"]:
                continue
            available = None if row["available_at"] == NEVER else row["available_at"]
            version = RowVersion(
                standing_of(row, by, columns_read(aggregate), start, end, as_of),
                row["event_time"],
                available,
                by,
                row["fact"],
                version_of(row, aggregate),
                value_of(row, aggregate),
                row["row"],
            )
            rows.append(version)
            if row["holds"] and version.lives():
                lives += _life(version, before, after, (start, end) if of_knowledge else None)
        late = [row.available_at or 0 for row in late_rows(rows)]
        span = _span(lives, at, as_of, window, of_knowledge)
        low, high = span
        changes = sorted({t for _, first, last in lives for t in (first, last + 1) if low < t <= high})
        kept = changes
        if len(changes) > most_changes:
            middle = bisect.bisect_left(changes, as_of) - most_changes // 2
            place = max(0, min(middle, len(changes) - most_changes))
            kept = changes[place : place + most_changes]
            span = (
                min(kept[0], as_of) if place else low,
                max(kept[-1], as_of) if place + most_changes < len(changes) else high,
            )
        instants = {span[0], as_of, *kept}
        if is_sampled(aggregate, of_knowledge):
            instants |= {span[0] + (span[1] - span[0]) * part // _SAMPLES for part in range(_SAMPLES + 1)}
        return cls(
            column, aggregate, window, start, end, rows, max(late) + 1 if late else None,
            span, sorted(instants), len(kept) < len(changes), of_knowledge,
        )  # fmt: skip

    def moments(self, at: int) -> list[tuple[int, int]]:
        """The (at, as of) of its instants."""
        return [(at if self.of_knowledge else instant, instant) for instant in self.instants]


def is_sampled(aggregate: Aggregate, of_knowledge: bool) -> bool:
    """Whether the value changes while nothing happens: only an age does, and not of a moment that stands still."""
    return aggregate.operation == "age" and not of_knowledge


def _life(
    row: RowVersion, before: int | None, after: int, fixed: tuple[int | None, int] | None
) -> list[tuple[RowVersion, int, int]]:
    """Give the first and the last instant at which a row version counts, if there is one; with a window that moves with the instant, or a fixed one."""
    if row.event_time is None or row.available_at is None:
        return []
    first = row.available_at + 1
    last = NEVER - 1 if row.superseded_by is None else row.superseded_by.at
    if fixed is not None:
        start, end = fixed
        if row.event_time >= end or (start is not None and row.event_time < start):
            return []
    else:
        first = max(first, row.event_time - after + 1)
        last = last if before is None else min(last, row.event_time - before)
    return [(row, first, last)] if first <= last else []


def _span(
    lives: Sequence[tuple[RowVersion, int, int]], at: int, as_of: int, window: Window, of_knowledge: bool
) -> tuple[int, int]:
    """What to look at: from a window before the moment (or the first row) until what came late has come."""
    before, after = window.bounds
    length = None if before is None else max(-before, after)
    if length is None or of_knowledge:
        start = min([as_of, *(first - 1 for _, first, _ in lives)])
        start = as_of - _HOUR if start == as_of else start
    else:
        start = at - length
    late = [first for row, first, _ in lives if row.standing == "not_yet_readable"]
    late += [
        last + 1
        for row, _, last in lives
        if row.standing == "used" and row.superseded_by is not None and row.superseded_by.at == last
    ]
    farthest = NEVER // 2 if length is None or of_knowledge else as_of + length
    end = max([as_of, *(instant for instant in late if instant <= farthest)])
    return start, end + max((end - start) // 5, 1)


def nearest_rows(rows: Sequence[RowVersion], at: int, listed: int | None) -> tuple[RowVersion, ...]:
    """Give the rows nearest to the moment, so many of each standing, in the order of event time."""

    def when(row: RowVersion) -> int:
        known = [time for time in (row.event_time, row.available_at) if time is not None]
        return known[0] if known else at

    kept: list[RowVersion] = []
    taken: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: abs(when(row) - at)):
        most = listed
        if listed is not None and row.standing in _OUTSIDE:
            most = min(listed, _NEAREST_OUTSIDE)
        if most is None or taken[row.standing] < most:
            taken[row.standing] += 1
            kept.append(row)
    return tuple(sorted(kept, key=lambda row: (when(row), row.available_at or 0)))
