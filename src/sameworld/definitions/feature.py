"""Features: an aggregate over a source's rows, a field of the request, or a function of other features."""

from __future__ import annotations

import functools
import math
import numbers
from typing import TYPE_CHECKING, Literal, Union

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.names import check_name
from sameworld.definitions.problems import report
from sameworld.definitions.where_defined import caller
from sameworld.definitions.windows import Window
from sameworld.errors import DefinitionError

if TYPE_CHECKING:
    from sameworld.definitions.source import Source


class Outcome(msgspec.Struct, frozen=True, tag="outcome"):
    """An aggregate compared with a number: true or false, null when the aggregate is."""

    aggregate: Aggregate
    comparison: Literal[">", ">=", "<", "<="]
    threshold: float


class WhenStale(msgspec.Struct, frozen=True, dict=True):
    """What becomes of a feature whose source is stale or cannot be read. Made by `when_stale`."""

    then: Literal["null", "next_tier"]
    after: str | None = None

    @functools.cached_property
    def microseconds(self) -> int | None:
        """From which age of its source's latest row; None leaves it to the source."""
        return None if self.after is None else durations.microseconds(self.after, of="when_stale")


class Aggregate(msgspec.Struct, frozen=True, tag="aggregate", dict=True):
    """A value of an entity at a moment, from the rows readable then. Made by `source.by(...).mean(...)` and its like."""

    source: Source
    keys: tuple[str, ...]
    where: str | None
    operation: str
    column: str | None
    windows: tuple[Window, ...]
    arguments: tuple[str | int | float, ...] = ()
    stale: WhenStale | None = None

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The name of each window's column, the same for every model that uses it."""
        what = f"{self.operation}({', '.join([self.column or '*', *map(str, self.arguments)])})"
        where = f" where {self.where}" if self.where else ""
        rows = f"{self.source.name}:{self.source.content[:6]} by {','.join(self.keys)} {what}{where}"
        return tuple(f"{rows} over {window.label}" for window in self.windows)

    @property
    def columns_read(self) -> tuple[str | None, ...]:
        """The columns of the source that it reads; one None when it only counts rows."""
        return (self.column, str(self.arguments[0])) if self.operation == "ratio" else (self.column,)

    def category(self) -> Category:
        """Use the value as a category."""
        return Category(self)

    def when_stale(self, then: Literal["null", "next_tier"], *, after: str | None = None) -> Aggregate:
        """Say what a server does when the source is stale or cannot be read. What the feature's value is does not change.

        Args:
            then: "null" replaces the value by null, and the model answers; "next_tier" leaves the answer to the next fallback. When nothing is said it
                is "next_tier" where a later fallback is trained without the source, and "null" where none is.
            after: the source is stale when its latest row has been readable for longer; `fresh_within` of the source by default. Up to then the
                value is the last that is known.
        """
        where = f"when_stale of source {self.source.name!r}"
        if then not in ("null", "next_tier"):
            report(
                DefinitionError(
                    f"{then!r} is nothing that can be done about a stale source.",
                    where=where,
                    expected="'null' or 'next_tier'",
                    do="choose one of them.",
                )
            )
        if after is not None:
            try:
                after = durations.text_of(durations.microseconds(after, of=f"{where}, after"))
            except DefinitionError as problem:
                report(problem)
        return msgspec.structs.replace(self, stale=WhenStale(then, after))

    def __gt__(self, threshold: float) -> Outcome:
        return _outcome(self, ">", threshold)

    def __ge__(self, threshold: float) -> Outcome:
        return _outcome(self, ">=", threshold)

    def __lt__(self, threshold: float) -> Outcome:
        return _outcome(self, "<", threshold)

    def __le__(self, threshold: float) -> Outcome:
        return _outcome(self, "<=", threshold)


def _outcome(aggregate: Aggregate, comparison: Literal[">", ">=", "<", "<="], threshold: float) -> Outcome:
    if not isinstance(threshold, numbers.Real) or math.isnan(threshold):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
        raise DefinitionError(
            "An aggregate can only be compared with a number.",
            where=f"{aggregate.source.name}.{aggregate.operation} {caller()}".strip(),
            found=f"{comparison} {repr(threshold)[:80]}",
            do="compare it with a number, for example > 15.",
        )
    return Outcome(aggregate, comparison, float(threshold))


class Field(msgspec.Struct, frozen=True, tag="field"):
    """A field of the request, as it comes."""

    name: str

    def __post_init__(self) -> None:
        check_name(self.name, "a field", f"sw.field {caller()}".strip())

    def category(self) -> Category:
        """Use the field as a category."""
        return Category(self)

    def hour(self, *, timezone: str) -> ClockPart:
        """The hour of a timestamp, 0 to 23, on the clocks of a time zone."""
        return ClockPart(self, "hour", timezone)

    def minute_of_day(self, *, timezone: str) -> ClockPart:
        """Minutes since midnight on the clocks of a time zone, 0 to 1439."""
        return ClockPart(self, "minute_of_day", timezone)

    def weekday(self, *, timezone: str) -> ClockPart:
        """The day of the week of a timestamp, Monday 0 to Sunday 6, on the calendars of a time zone."""
        return ClockPart(self, "weekday", timezone)

    def month(self, *, timezone: str) -> ClockPart:
        """The month of a timestamp, 1 to 12, on the calendars of a time zone."""
        return ClockPart(self, "month", timezone)


class ClockPart(msgspec.Struct, frozen=True, tag="clock_part"):
    """A part of a timestamp as people in a time zone read it."""

    field: Field
    part: Literal["hour", "minute_of_day", "weekday", "month"]
    timezone: str

    def __post_init__(self) -> None:
        from sameworld.definitions.source import check_timezone  # noqa: PLC0415 # source.py needs Aggregate from here

        if self.timezone is None:  # pyright: ignore[reportUnnecessaryComparison] # callers are not all checked
            report(
                DefinitionError(
                    f"The {self.part} of a field needs a time zone.",
                    where=f"field {self.field.name!r}",
                    do="write for example timezone='America/New_York'.",
                )
            )
        check_timezone(self.timezone, f"field {self.field.name!r}")

    def category(self) -> Category:
        """Use the part as a category."""
        return Category(self)


class Derive(msgspec.Struct, frozen=True, tag="derive"):
    """A named function of other features' or request fields' columns."""

    function: NamedFunction
    inputs: tuple[str, ...]

    def category(self) -> Category:
        """Use the result as a category."""
        return Category(self)


class Category(msgspec.Struct, frozen=True, tag="category"):
    """A value that is one of many names. Unseen in training counts as null."""

    of: Union[Field, ClockPart, Aggregate, Derive]  # noqa: UP007 # a string annotation with | is not resolved by msgspec across this cycle


Feature = Aggregate | Field | ClockPart | Derive | Category


def field(name: str) -> Field:
    """Use a field of the request (a column of the moments) as a feature."""
    return Field(name)


def derive(function: object, *inputs: str) -> Derive:
    """Use a named function of columns as a feature.

    Args:
        function: defined with `def` at the top of a module. It is called with one NumPy array a named input (float64 with NaN for null, a
            timestamp as microseconds since 1970; objects with None for text; of a list, objects that are arrays or None) and returns one array of the same length. It is called with a million rows
            or with one, and must treat each row alone.
        inputs: names of other features of the model, or of request fields.
    """
    where = f"sw.derive {caller()}".strip()
    for given in inputs:
        do = "make it a feature of the model, and write its name here."
        check_name(given, "a feature or of a request field", where, do=do)
    if not inputs:
        report(
            DefinitionError(
                "sw.derive names no input.", do="name the features or request fields that the function reads."
            )
        )
    return Derive(NamedFunction.of(function), inputs)
