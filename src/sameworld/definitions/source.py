"""A source: rows, each with the time it happened and the time the serving system could first read it."""

from __future__ import annotations

import functools
import math
import numbers
import zoneinfo
from typing import Any

import msgspec

from sameworld.definitions import availability, durations, feature, windows
from sameworld.definitions.availability import Availability, AvailableColumn, DailyInZone
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.hashing import as_first_hashed, content_hash
from sameworld.definitions.names import check_name
from sameworld.definitions.problems import report
from sameworld.definitions.where_defined import caller
from sameworld.errors import DefinitionError

_LONGEST_LIST = 10_000
_OF_ROWS = frozenset({"count", "exists", "age"})


class _Table(msgspec.Struct, frozen=True, dict=True):
    name: str
    data: Any


class Source(_Table, frozen=True, kw_only=True):
    """A table of rows, each with an event time and an available time.

    Args:
        name: how features, the events route and the log call it.
        data: a Parquet or CSV path or glob, a folder of Parquet files, a DuckDB query (it begins with SELECT, FROM or WITH), an Arrow table, or a
            table of the engine's own, such as a Spark DataFrame.
        event_time: the column of the time at which the row's event happened.
        available_at: when the serving system could first read the row: a column's name, `sw.delay`, `sw.daily` or `sw.at_event_time`.
        id: the column that names the fact. Later rows with the same id are corrections of it.
        version: the column that orders corrections; without it the order of arrival does.
        deleted: a boolean column; a row with true withdraws the fact.
        corrections_within: for how long corrections of a fact count, such as "30d": a version that becomes readable so long after the fact's
            first one, or later, is as if it had never come. For ever by default.
        timezone: the zone of naive timestamps in this table. Without it they are an error.
        fresh_within: how old the latest row may be when a server reads, such as "20m"; when it is older, the source is stale. Never by default. No
            value of a feature depends on it.

    Raises:
        DefinitionError: the definition cannot mean anything.
    """

    event_time: str
    available_at: str | Availability | None = None
    id: str | None = None
    version: str | None = None
    deleted: str | None = None
    corrections_within: str | None = None
    timezone: str | None = None
    fresh_within: str | None = None

    def __post_init__(self) -> None:
        where = f"source {self.name!r} {caller()}".strip()
        if not isinstance(self.name, str) or not self.name.replace("_", "a").replace("-", "a").isalnum():  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    f"{self.name!r} is not a source name.",
                    where=where,
                    expected="letters, digits, '-' and '_'",
                    do="rename the source.",
                )
            )
        check_name(self.event_time, "a column", f"{where}, event_time")
        for option in ("id", "version", "deleted"):
            if getattr(self, option) is not None:
                check_name(getattr(self, option), "a column", f"{where}, {option}")
        if not isinstance(self.available_at, str | Availability):
            report(
                DefinitionError(
                    f"Source {self.name!r} does not say when its rows become readable.",
                    where=where,
                    expected="available_at",
                    found="nothing" if self.available_at is None else repr(self.available_at)[:80],
                    do=f"say it in one of four ways: {availability.FOUR_WAYS}.",
                )
            )
        for option in ("corrections_within", "fresh_within"):
            if getattr(self, option) is not None:
                try:
                    parsed = durations.microseconds(getattr(self, option), of=f"{where}, {option}")
                except DefinitionError as problem:
                    report(problem)
                else:
                    msgspec.structs.force_setattr(self, option, durations.text_of(parsed))
        given = next(
            (name for name in ("version", "deleted", "corrections_within") if getattr(self, name)), None
        )
        if given and not self.id:
            report(
                DefinitionError(
                    f"Source {self.name!r} has {given}= but no id=.",
                    where=where,
                    expected="the column that names the fact",
                    do="add id='...'.",
                )
            )
        check_timezone(self.timezone, where)
        if isinstance(self.available_at, DailyInZone):
            check_timezone(self.available_at.timezone, f"{where}, available_at")

    @property
    def readable(self) -> Availability:
        """The availability, with a column's name as its own variant."""
        if isinstance(self.available_at, str):
            return AvailableColumn(self.available_at)
        if self.available_at is None:
            raise DefinitionError(
                f"Source {self.name!r} does not say when its rows become readable.",
                do=f"say it in one of four ways: {availability.FOUR_WAYS}.",
            )
        return self.available_at

    @functools.cached_property
    def corrections_within_microseconds(self) -> int | None:
        """For how long corrections of a fact count; None is for ever."""
        if self.corrections_within is None:
            return None
        return durations.microseconds(self.corrections_within, of="corrections_within")

    @functools.cached_property
    def fresh_within_microseconds(self) -> int | None:
        """How old the latest row may be; None is however old."""
        return (
            None
            if self.fresh_within is None
            else durations.microseconds(self.fresh_within, of="fresh_within")
        )

    @functools.cached_property
    def content(self) -> str:
        """The hash of what the rows mean; where they lie and when they are stale is not part of it."""
        meaning = msgspec.to_builtins(msgspec.structs.replace(self, data=None, fresh_within=None))
        return content_hash(as_first_hashed(meaning))

    def where(self, condition: str) -> Rows:
        """Keep only the rows for which a DuckDB condition over the row's own columns is true."""
        return Rows(self).where(condition)

    def by(self, *keys: str) -> Rows:
        """Group the rows by one or several key columns: the entity."""
        return Rows(self, keys=keys)


class Rows(msgspec.Struct, frozen=True):
    """A source's rows, some of them, grouped: what aggregates are made from."""

    source: Source
    condition: str | None = None
    keys: tuple[str, ...] = ()

    def where(self, condition: str) -> Rows:
        """Keep only rows for which the condition holds too."""
        if not isinstance(condition, str) or not condition.strip():  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    f"{repr(condition)[:80]} is not a condition.",
                    where=f"{self.source.name}.where {caller()}".strip(),
                    expected="a DuckDB expression over the row's own columns, as text",
                    do="write for example source.where('amount > 20').",
                )
            )
        both = condition if self.condition is None else f"({self.condition}) AND ({condition})"
        return Rows(self.source, condition=both, keys=self.keys)

    def by(self, *keys: str) -> Rows:
        """Group by these key columns."""
        return Rows(self.source, condition=self.condition, keys=keys)

    def _aggregate(
        self,
        operation: str,
        column: str | None,
        over: windows.Over,
        arguments: tuple[str | int | float, ...] = (),
    ) -> Aggregate:
        where = f"{self.source.name}.{operation} {caller()}".strip()
        if operation not in _OF_ROWS:
            check_name(column, "a column", where)
        if not self.keys or not all(isinstance(key, str) and key for key in self.keys):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    f"The aggregate {operation} of source {self.source.name!r} has no entity.",
                    where=where,
                    expected="one or several key columns",
                    found=", ".join(repr(key)[:80] for key in self.keys),
                    do="group first, for example source.by('user'), or source.by('user', 'shop') for pairs.",
                )
            )
        return Aggregate(
            self.source, self.keys, self.condition, operation, column, windows.parse(over, where), arguments
        )

    def count(self, *, over: windows.Over = None) -> Aggregate:
        """The number of rows in the window (0 when there is none). Nulls in other columns do not matter."""
        return self._aggregate("count", None, over)

    def exists(self, *, over: windows.Over = None) -> Aggregate:
        """Whether there is a row in the window."""
        return self._aggregate("exists", None, over)

    def sum(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The exact sum of the non-null values, rounded once to float64 (int64 for integers); null when there is none."""
        return self._aggregate("sum", column, over)

    def mean(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The sum's float64 divided by the number of non-null values; null when there is none."""
        return self._aggregate("mean", column, over)

    def var(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The exact sample variance (n - 1) of the non-null values, rounded once; null below two values."""
        return self._aggregate("var", column, over)

    def std(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The square root of `var`; null below two values."""
        return self._aggregate("std", column, over)

    def ratio(
        self, column: str, by: str, *, prior: float = 0.0, weight: float = 0.0, over: windows.Over = None
    ) -> Aggregate:
        """A smoothed rate, such as clicks by impressions: (sum of `column` + prior * weight) / (sum of `by` + weight).

        Args:
            column, by: columns to sum; each sum skips its own nulls.
            prior: the rate without evidence.
            weight: how much evidence the prior is worth, in units of `by`; with 0 there is no value where the sum of `by` is 0.
            over: windows.
        """
        where = f"{self.source.name}.ratio {caller()}".strip()
        check_name(by, "a column", where)
        finite = all(isinstance(given, numbers.Real) and math.isfinite(given) for given in (prior, weight))  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
        if not (finite and weight >= 0):
            raise DefinitionError(
                "The prior of a ratio must be a finite number, and its weight one that is not negative.",
                where=where,
                found=f"prior={prior}, weight={weight}",
                do="correct them.",
            )
        return self._aggregate("ratio", column, over, (by, float(prior), float(weight)))

    def nunique(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The exact number of different non-null values (0 when there is none)."""
        return self._aggregate("nunique", column, over)

    def min(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The least non-null value (NaN is greater than every number); null when there is none."""
        return self._aggregate("min", column, over)

    def max(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The greatest non-null value (NaN is greater than every number); null when there is none."""
        return self._aggregate("max", column, over)

    def first(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The non-null value of the earliest event in the window; ties as for `last`, the least first."""
        return self._aggregate("first", column, over)

    def last(self, column: str, *, over: windows.Over = None) -> Aggregate:
        """The non-null value of the latest event; ties go by available time, version, then the row's canonical bytes."""
        return self._aggregate("last", column, over)

    def last_n(self, column: str, n: int, *, over: windows.Over = None) -> Aggregate:
        """A list of the non-null values of the latest `n` events, the latest last; null when there is none. An input of `sw.derive`."""
        if not isinstance(n, numbers.Integral) or isinstance(n, bool) or not 1 <= n <= _LONGEST_LIST:  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    "last_n needs a length.",
                    where=f"{self.source.name}.last_n {caller()}".strip(),
                    expected=f"a whole number from 1 to {_LONGEST_LIST}",
                    found=repr(n)[:80],
                    do="correct n.",
                )
            )
        return self._aggregate("last_n", column, over, (int(n),))

    def age(self, *, over: windows.Over = None) -> Aggregate:
        """Seconds from the event time of the latest row to the moment; null when there is none."""
        return self._aggregate("age", None, over)


def check_timezone(timezone: str | None, where: str) -> None:
    """Report a time zone that this machine does not know, or that only machines like it would."""
    if timezone is None:
        return
    try:
        if timezone.startswith(("posix", "right", "localtime")):
            raise ValueError
        zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, AttributeError, TypeError):
        report(
            DefinitionError(
                f"{timezone!r} is not a time zone.",
                where=where,
                expected="a name such as 'America/New_York' or 'UTC'",
                do="correct timezone=.",
            )
        )


# msgspec resolves Aggregate's annotations in the module that wrote them, and that module cannot import this one.
feature.Source = Source  # pyright: ignore[reportAttributeAccessIssue] # see the line above
