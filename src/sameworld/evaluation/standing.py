"""Why a row version does or does not count at a moment, and what ended it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sameworld.asof.aggregations import NEVER
from sameworld.definitions.feature import Aggregate
from sameworld.evaluation.explanation import RowVersion, Superseding, columns_read


def standing_of(
    row: Mapping[str, Any],
    by: Superseding | None,
    columns: Sequence[str],
    start: int | None,
    end: int,
    as_of: int,
) -> str:
    """Why a row version does or does not count; the first reason that there is."""
    event, available = row["event_time"], row["available_at"]
    if available == NEVER:
        return "never_readable" if row["came_at"] == NEVER else "too_late"
    if row["deleted"]:
        return "deletion"
    if event is None:
        return "no_event_time"
    if start is not None and event < start:
        return "before_window"
    if event >= end:
        return "after_window"
    if not row["holds"]:
        return "condition"
    if columns and all(row["row"][column] is None for column in columns):
        return "null_value"
    if by is not None and by.at < as_of:
        return "deleted" if by.deleted else "superseded"
    return "not_yet_readable" if available >= as_of else "used"


def superseding(versions: Sequence[Mapping[str, Any]], aggregate: Aggregate) -> list[Superseding | None]:
    """Give what ends each version: of those readable first among the greater ones, the greatest."""
    result: list[Superseding | None] = []
    order = ("version", "available_at", "tie")
    for place, row in enumerate(versions):
        ends = row["superseded_at"]
        found = None
        if ends != NEVER:
            for other in versions[place + 1 :]:
                if other["fact"] != row["fact"]:
                    break
                found = other if other["available_at"] == ends else found
        result.append(
            None
            if found is None
            else Superseding(
                ends,
                version_of(found, aggregate),
                found["deleted"],
                found["own"],
                all(found[name] == row[name] for name in order),
                value_of(found, aggregate),
            )
        )
    return result


def version_of(row: Mapping[str, Any], aggregate: Aggregate) -> Any:
    return row["row"][aggregate.source.version] if aggregate.source.version else None


def value_of(row: Mapping[str, Any], aggregate: Aggregate) -> Any:
    values = [row["row"][column] for column in columns_read(aggregate)]
    return values[0] if len(values) == 1 else values or None


def late_rows(rows: Sequence[RowVersion]) -> list[RowVersion]:
    """Give the rows that had happened and were not known yet: of each fact the version that came first, and none of a fact that was used."""
    used = {row.fact for row in rows if row.standing == "used" and row.fact is not None}
    result: list[RowVersion] = []
    for row in sorted(rows, key=lambda row: row.available_at or 0):
        if row.standing == "not_yet_readable" and row.lives() and row.fact not in used:
            result.append(row)
            used |= {row.fact} if row.fact is not None else set()
    return result


def corrected_by(rows: Sequence[RowVersion], end: int) -> bool:
    """Whether by a time a row that was used, or was late, had been superseded."""
    return any(
        row.standing in ("used", "not_yet_readable")
        and row.superseded_by is not None
        and row.superseded_by.at < end
        for row in rows
    )
