"""Clocks, passed in wherever time is read."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Give microseconds since 1970, UTC."""
        ...


class SystemClock:
    """This machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000
