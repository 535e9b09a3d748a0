"""An explanation in a terminal: the verdict, the value along time, and the rows of every standing. Nothing is said by colour alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sameworld.asof.instant_text import instant_text
from sameworld.errors import DataError
from sameworld.evaluation.explanation import (
    STANDINGS,
    ColumnExplanation,
    Explanation,
    RowVersion,
    Superseding,
    Timeline,
    columns_read,
    definition_of,
    span_text,
    value_text,
)

NARROWEST, WIDEST = 60, 100
_BLOCKS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NULL = "·"
_LONGEST_VALUE = 24


@dataclass(frozen=True)
class Line:
    """One line and how it is set off where there is colour."""

    text: str
    style: str | None = None


def entity(given: Iterable[str]) -> dict[str, str]:
    """Read KEY=VALUE, one for each key.

    Raises:
        DataError: one is not written like that, or a key is given twice.
    """
    result: dict[str, str] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name or name in result:
            raise DataError(
                f"--entity {text!r} names a key again." if name in result and sign else f"--entity {text!r} is not KEY=VALUE.",
                expected="KEY=VALUE, once for each key",
                found=text,
                do="write for example --entity user=u1.",
            )  # fmt: skip
        result[name] = value
    return result


def lines(explanation: Explanation, width: int) -> Iterator[Line]:
    """Give an explanation line by line."""
    whose = ", ".join(f"{name}={value!r}" for name, value in explanation.entity.items())
    at = instant_text(explanation.at)
    of = f" of {whose}" if whose else ""
    yield Line(f"{explanation.model} {explanation.feature}{of} at {at}", "bold")
    if explanation.computed:
        yield from _paragraph(explanation.computed, width)
        if not explanation.columns:
            yield from _paragraph("Nothing of it comes from a source.", width)
    for column in explanation.columns:
        yield Line("")
        yield Line(f"{column.column}: {definition_of(column.aggregate, column.window)}", "bold")
        start = "the beginning" if column.start is None else instant_text(column.start)
        yield Line(f"window: {start} to {instant_text(column.end)}", "dim")
        yield from _paragraph(column.verdict, width)
        yield Line("")
        for text in drawing(column.timeline, explanation.as_of, width):
            yield Line(text)
        yield from _rows(column, explanation.as_of, width)


def _paragraph(text: str, width: int) -> Iterator[Line]:
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        yield Line(line)


# The rows


def _rows(column: ColumnExplanation, as_of: int, width: int) -> Iterator[Line]:
    source = column.aggregate.source
    heads = ["event time", "available time", *(["id"] if source.id else [])]
    heads += [
        *(["version"] if source.version else []),
        *([_value_head(column)] if _value_head(column) else []),
    ]
    for standing, count in column.counts.items():
        shown = [row for row in column.rows if row.standing == standing]
        more = f", {len(shown)} nearest the moment listed" if shown and len(shown) < count else ""
        yield Line("")
        yield Line(f"{standing.replace('_', ' ')}: {count:,} ({STANDINGS[standing]}{more})", "bold")
        if not shown:
            continue
        table = [heads, *(_cells(row, column) for row in shown)]
        wide = [max(len(cells[place]) for cells in table) for place in range(len(heads))]
        if source.id:
            wide[2] = max(4, min(wide[2], wide[2] + width - 2 - sum(wide) - 2 * (len(wide) - 1)))
        for cells, row in zip(table, [None, *shown], strict=True):
            clipped = [
                cell if len(cell) <= size or place != 2 else f"{cell[: size - 1]}…"
                for place, (cell, size) in enumerate(zip(cells, wide, strict=True))
            ]
            text = "  ".join(cell.ljust(size) for cell, size in zip(clipped, wide, strict=True))
            yield Line(f"  {text}".rstrip(), "dim" if row is None else None)
            for note in _notes(row, as_of) if row is not None else ():
                yield Line(f"    {note}")


def _value_head(column: ColumnExplanation) -> str:
    return ", ".join(columns_read(column.aggregate))


def _cells(row: RowVersion, column: ColumnExplanation) -> list[str]:
    source = column.aggregate.source
    cells = ["null" if time is None else instant_text(time) for time in (row.event_time, row.available_at)]
    cells += ["null" if row.fact is None else row.fact] if source.id else []
    cells += [str(row.version)] if source.version else []
    return cells + ([_short(row.value)] if _value_head(column) else [])


def _short(value: Any) -> str:
    text = value_text(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _notes(row: RowVersion, as_of: int) -> Iterator[str]:
    if row.standing == "not_yet_readable" and row.available_at is not None:
        waited = row.available_at - as_of
        yield (
            f"readable {span_text(waited)} too late"
            if waited
            else "readable at that very microsecond, which is not before it"
        )
    by = row.superseded_by
    if by is not None and row.standing in ("used", "superseded", "deleted", "not_yet_readable"):
        yield f"{'later ' if by.at >= as_of else ''}{_ended(by)}"


def _ended(by: Superseding) -> str:
    if by.repeated:
        return f"told again at {instant_text(by.at)}"
    version = "" if by.version is None else f" by version {by.version}"
    if by.deleted:
        return f"withdrawn {instant_text(by.at)}{version}"
    value = "" if by.value is None else f" ({_short(by.value)})"
    return (
        f"superseded {instant_text(by.at)}{version}{value}{'' if by.same_entity else ', of another entity'}"
    )


# The value along time


def drawing(timeline: Timeline, moment: int, width: int) -> list[str]:
    """Draw a value along time as lines of text, with a mark at the moment.

    Numbers are a profile; other values are letters, with what they stand for below. A column shows the value at its beginning, the moment's the moment's.
    """
    values = [value for _, value in timeline.points]
    numeric = all(value is None or isinstance(value, bool | int | float | Decimal) for value in values)
    numbers = [_number(value) for value in values]
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    low = 0.0 if 0 <= low <= high / 2 else low
    labels: dict[int, str] = {}
    if numeric and finite:
        labels = {0: _label(high), _HEIGHT - 1: _label(low)} if low < high else {_HEIGHT // 2: _label(high)}
    margin = max([0, *map(len, labels.values())]) + 2
    columns = width - margin - 1
    size = timeline.end - timeline.start
    mark = min(columns - 1, (moment - timeline.start) * columns // size)
    shown = [
        timeline.at(moment if place == mark else timeline.start + size * place // columns)
        for place in range(columns)
    ]
    if numeric:
        drawn = _profile([_number(value) for value in shown], low, high)
        legend: list[str] = []
    else:
        row, legend = _letters(shown)
        drawn = [row]
    result: list[str] = []
    for number, row in enumerate(drawn):
        label = labels.get(number, "")
        result.append(f"{label.rjust(margin - 2)} {'┤' if label else '│'}{row}".rstrip())
    result.append(f"{' ' * (margin - 1)}└{'─' * mark}┴{'─' * (columns - mark - 1)}")
    result += _marked(margin + mark, f"{instant_text(moment)}: {_short(timeline.at(moment))}", width)
    left, right = instant_text(timeline.start), instant_text(timeline.end)
    result.append(f"{' ' * margin}{left}{right.rjust(max(len(right) + 2, width - margin - len(left)))}")
    return [*result, *legend, *_neighbours(timeline, moment)]


def _marked(place: int, text: str, width: int) -> list[str]:
    """A mark at a place, with its text on the side where there is room, or below."""
    if place + len(text) + 2 <= width:
        return [f"{' ' * place}▲ {text}"]
    if len(text) < place:
        return [f"{text.rjust(place - 1)} ▲"]
    return [f"{' ' * place}▲", text.rjust(min(width, place + len(text) // 2))]


def _neighbours(timeline: Timeline, moment: int) -> Iterator[str]:
    """When the moment's value began, what comes next, and what else there is to say about the drawing."""
    axis = "as of" if timeline.of_knowledge else "at"
    before = [point for point in timeline.points if point[0] <= moment]
    after = [point for point in timeline.points if point[0] > moment]
    if timeline.sampled:
        yield "The value also changes while nothing happens."
    elif len(before) > 1:
        yield f"{_short(before[-1][1])} since {instant_text(before[-1][0])}, {_short(before[-2][1])} before"
    if after and not timeline.sampled:
        wait = span_text(after[0][0] - moment)
        yield f"{_short(after[0][1])} {axis} {instant_text(after[0][0])}, {wait} after the moment"
    if timeline.of_knowledge:
        yield "The moment stands still; along the line is when rows became readable."
    if timeline.cut:
        yield f"There are more changes than these {len(timeline.points):,}; the line is cut."


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float | Decimal) else None


def _label(number: float) -> str:
    return f"{number:,.6g}"


def _profile(numbers: Sequence[float | None], low: float, high: float) -> list[str]:
    """Rows of blocks, the highest first. Whatever is a number is at least one eighth of a row high."""
    steps = _HEIGHT * 8
    levels: list[int] = []
    for number in numbers:
        if number is None or math.isnan(number):
            levels.append(0)
        elif high <= low:
            levels.append(steps // 2)
        else:
            levels.append(max(1, round((min(max(number, low), high) - low) / (high - low) * steps)))
    rows: list[str] = []
    for row in reversed(range(_HEIGHT)):
        cells = [_BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels]
        if row == 0:
            cells = [
                _NULL if number is None else "?" if math.isnan(number) else cell
                for cell, number in zip(cells, numbers, strict=True)
            ]
        rows.append("".join(cells))
    return rows


def _letters(values: Sequence[Any]) -> tuple[str, list[str]]:
    """A letter a value, and what the letters stand for."""
    names: dict[str, str] = {}
    row = ""
    for value in values:
        if value is None:
            row += _NULL
            continue
        text = value_text(value)
        if text not in names:
            names[text] = _LETTERS[len(names)] if len(names) < len(_LETTERS) else "*"
        row += names[text]
    return row, [f"  {letter} {text}" for text, letter in names.items()]
