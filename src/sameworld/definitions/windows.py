"""Windows of event time relative to a moment t: [t - length, t), or [t, t + length) looking ahead."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.problems import report
from sameworld.errors import DefinitionError


class Window(msgspec.Struct, frozen=True, dict=True):
    """Event times in [t - length, t); all history before t without a length; [t, t + length) when ahead."""

    length: str | None = None
    ahead: bool = False

    @functools.cached_property
    def bounds(self) -> tuple[int | None, int]:
        """Start and end relative to t in microseconds; a start of None is the beginning of time."""
        if self.length is None:
            return None, 0
        size = durations.microseconds(self.length, of="a window")
        return (0, size) if self.ahead else (-size, 0)

    @property
    def label(self) -> str:
        """The window's name as part of a feature's name, such as '3h' or 'ahead_1d'."""
        return ("ahead_" if self.ahead else "") + (self.length or "ever")


Over = str | Window | Sequence[str | Window] | None


def ahead(length: str) -> Window:
    """Read event times in [t, t + length): rows about the future that are readable now, such as forecasts and bookings."""
    return Window(_canonical(length, "sw.ahead"), ahead=True)


def parse(over: Over, where: str) -> tuple[Window, ...]:
    """Give the windows of `over=`: none is all history, one, or several."""
    if over is None:
        return (Window(),)
    given = list(over) if isinstance(over, Sequence) and not isinstance(over, str) else [over]  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
    parsed = tuple(item if isinstance(item, Window) else Window(_canonical(item, where)) for item in given)
    if not parsed or len(set(parsed)) != len(parsed):
        report(
            DefinitionError(
                "over= has no window, or the same one twice.",
                where=where,
                found=repr(over),
                do="name each window once.",
            )
        )
    return parsed


def _canonical(length: str, where: str) -> str:
    try:
        return durations.text_of(durations.microseconds(length, of=where))
    except DefinitionError as problem:
        report(problem)
        return "1d"
