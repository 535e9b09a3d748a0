"""The four ways to say when a source's rows become readable."""

from __future__ import annotations

import re

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.problems import report
from sameworld.errors import DefinitionError

FOUR_WAYS = (
    "available_at='column' (each row says it itself), available_at=sw.delay('10m') (so long after the event), "
    "available_at=sw.daily('06:00', lag='2d') (in a daily batch), or available_at=sw.at_event_time() (at once, and you are sure of it)"
)


class Delay(msgspec.Struct, frozen=True, tag="delay"):
    """Readable so long after the event."""

    by: str

    def __post_init__(self) -> None:
        durations.microseconds(self.by, of="sw.delay", zero=True)

    @property
    def microseconds(self) -> int:
        return durations.microseconds(self.by, of="sw.delay", zero=True)


class Daily(msgspec.Struct, frozen=True, tag="daily"):
    """Readable at the first `at` o'clock (UTC, unless it names a zone) that is not earlier than event time + lag."""

    at: str
    lag: str = "0s"

    def __post_init__(self) -> None:
        if not (isinstance(self.at, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", self.at)):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    f"{self.at!r} is not a time of day.",
                    where="sw.daily",
                    expected="'HH:MM'",
                    do="write for example sw.daily('06:00', lag='2d').",
                )
            )
        durations.microseconds(self.lag, of="sw.daily", zero=True)

    @property
    def at_microseconds(self) -> int:
        """Microseconds after midnight UTC."""
        hours, minutes = self.at.split(":")
        return (int(hours) * 60 + int(minutes)) * 60_000_000

    @property
    def lag_microseconds(self) -> int:
        return durations.microseconds(self.lag, of="sw.daily", zero=True)


class DailyInZone(Daily, frozen=True, tag="daily_in_zone", kw_only=True):
    """The same on the clocks of a time zone, whose days may have 23 or 25 hours. Another kind, so that what is in UTC keeps its hash."""

    timezone: str


class AtEventTime(msgspec.Struct, frozen=True, tag="at_event_time"):
    """Readable at the very moment of the event: true of few systems, so it has to be said."""


class AvailableColumn(msgspec.Struct, frozen=True, tag="column"):
    """Each row carries the time it became readable; null means never."""

    column: str


Availability = AvailableColumn | Delay | Daily | DailyInZone | AtEventTime


def delay(by: str) -> Delay:
    """Say that rows become readable a fixed time after their event time.

    >>> delay("10m").microseconds
    600000000
    """
    return Delay(by)


def daily(at: str, *, lag: str = "0s", timezone: str | None = None) -> Daily:
    """Say that rows arrive in a daily batch: readable at the first `at` o'clock not earlier than event time + lag.

    Args:
        at: HH:MM.
        lag: how much older than the batch its rows are at least.
        timezone: on whose clocks, such as "America/New_York"; UTC by default. A time that a change of clocks skips is taken as if they had not been
            changed yet, one that they show twice as the second.
    """
    return Daily(at, lag) if timezone is None else DailyInZone(at, lag, timezone=timezone)


def at_event_time() -> AtEventTime:
    """Say that rows are readable at the very moment they happen."""
    return AtEventTime()
