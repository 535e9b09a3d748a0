"""Durations as people write them ("3h", "7d"), as microseconds inside."""

from __future__ import annotations

import re

from sameworld.errors import DefinitionError

_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
_PART = re.compile(r"(\d+)(us|ms|s|m|h|d|w)")
_LIMIT = 200 * 366 * _UNITS["d"]


def microseconds(text: str, *, of: str, zero: bool = False) -> int:
    """Read a duration such as "90m", "1h30m" or "7d".

    Args:
        text: whole numbers with units us, ms, s, m, h, d, w. A day is 24 hours, always.
        of: what the duration is for, for the error.
        zero: whether nothing at all ("0s") is meant to be possible.

    Returns:
        Microseconds, at most 200 years.

    Raises:
        DefinitionError: the text is not a duration, or not positive.

    >>> microseconds("1h30m", of="a window")
    5400000000
    """
    if not isinstance(text, str) or not text or _PART.sub("", text):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
        raise DefinitionError(
            f"{text!r} is not a duration.",
            where=of,
            expected="whole numbers with units, such as '10m', '3h', '7d' or '1h30m'",
            do="write the duration as a string; a day is 24 hours.",
        )
    total = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if total > _LIMIT or total < 0 or (total == 0 and not zero):
        raise DefinitionError(
            f"The duration {text!r} is out of range.",
            where=of,
            expected="more than 0 and at most 200 years",
            do="give another duration.",
        )
    return total


def text_of(duration: int) -> str:
    """Write microseconds back as the shortest duration text.

    >>> text_of(5_400_000_000)
    '90m'
    """
    for unit in ("d", "h", "m", "s", "ms"):
        if duration and duration % _UNITS[unit] == 0:
            return f"{duration // _UNITS[unit]}{unit}"
    return f"{duration}us"
