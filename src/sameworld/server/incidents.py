"""Incidents: one line of JSON each on stderr, for whoever collects logs. Never a line a request: what goes on is said again once in a while, with its count."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

_AGAIN_SECONDS = 60.0
_MOST_KNOWN = 10_000

_encode = msgspec.json.Encoder().encode


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


class Incidents:
    """Tells what happened, each kind of each thing at once and then at most once a minute.

    Args:
        write: takes a line.
        clock: steady seconds.
    """

    def __init__(
        self, write: Callable[[str], None] = _to_stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}
        self._held_back: dict[tuple[str, str], int] = {}

    def tell(self, incident: str, of: str, **facts: Any) -> None:
        """Write a line, or only count it where the same was told lately.

        Args:
            incident: what happened, such as "model broken".
            of: to what, such as a model's name.
            facts: whatever else is known, as JSON has it.
        """
        key, now = (incident, of), self._clock()
        if now - self._told.get(key, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
            self._held_back[key] = self._held_back.get(key, 0) + 1
            return
        if len(self._told) >= _MOST_KNOWN:
            self._told.clear()
            self._held_back.clear()
        self._told[key] = now
        again = self._held_back.pop(key, 0)
        line = {"at": datetime.datetime.now(datetime.UTC), "incident": incident, "of": of, **facts}
        if again:
            line["held_back"] = again
        try:
            self._write(_encode(line).decode() + "\n")
        except (OSError, ValueError):  # nobody reads: answering goes on
            self._told.pop(key, None)
