"""An explanation in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from sameworld.asof.instant_text import instant_text
from sameworld.evaluation.explanation import (
    ColumnExplanation,
    RowVersion,
    span_text,
    value_text,
)
from sameworld.evaluation.standing import corrected_by, late_rows


def verdict(column: ColumnExplanation, rows: Sequence[RowVersion], at: int, as_of: int) -> str:
    """All of it in words."""
    value = value_text(column.value)
    if not rows:
        return f"At {instant_text(at)} the value was {value}: no row of this entity was ever seen."
    known = f", as known at {instant_text(as_of)}," if as_of != at else ""
    used = column.counts.get("used", 0)
    said = [
        f"At {instant_text(at)} the value{known} was {value} ({used:,} of the entity's {_rows_text(len(rows))})."
    ]
    late = late_rows(rows)
    if late and column.known_later is not None:
        waited = max((row.available_at or 0) - as_of for row in late)
        when = f"{span_text(waited)} later" if waited else "at that very microsecond, which is not before it"
        said.append(
            f"{_rows_text(1)} existed but became readable only {when}"
            if len(late) == 1
            else f"{_rows_text(len(late))} existed but became readable only later, the last of them {when}"
        )
        later = value_text(column.known_later[1])
        said[-1] += (
            f"; with all that was readable then the value would have been {later}."
            if corrected_by(rows, column.known_later[0])
            else f"; with {'it' if len(late) == 1 else 'them'} the value would have been {later}."
        )
    gone = [
        f"{column.counts[standing]:,} had been {standing}"
        for standing in ("superseded", "deleted")
        if standing in column.counts
    ]
    if gone:
        said.append(f"{' and '.join(gone)} by then.")
    after = [
        row.superseded_by.at - as_of
        for row in rows
        if row.standing == "used" and row.superseded_by is not None
    ]
    if after:
        first = f"{span_text(min(after))} after the moment" if min(after) else "at that very microsecond"
        said.append(
            f"{_rows_text(len(after))} used here {'was' if len(after) == 1 else 'were'} corrected or withdrawn later, the first {first}."
        )
    naive = value_text(column.event_time_value)
    said.append(f"A join on event time would have said {naive}{' too' if naive == value else ''}.")
    return " ".join(said)


def _rows_text(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
