"""A breaker keeps a model that failed out of the way, for longer each time, and lets it be probed back in."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Breaker:
    """How a model is doing. Times are seconds on any steady clock.

    Args:
        failures: in a row.
        open_until: nothing is tried before.
        reason: of the last failure.
    """

    failures: int = 0
    open_until: float = 0.0
    reason: str = ""

    def allows(self, now: float) -> bool:
        """Whether the model may be tried."""
        return now >= self.open_until


_TOLERATED = 3
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


def failed(breaker: Breaker, now: float, reason: str, *, fatal: bool = False) -> Breaker:
    """Give the breaker after a failure: open after three in a row, at once when it was fatal, and then for twice as long each time."""
    failures = breaker.failures + 1
    beyond = failures - (1 if fatal else _TOLERATED)
    pause = min(_FIRST_PAUSE * 2.0 ** min(beyond, 10), _LONGEST_PAUSE) if beyond >= 0 else 0.0
    return replace(breaker, failures=failures, open_until=now + pause, reason=reason)


def succeeded(breaker: Breaker) -> Breaker:
    """Give the breaker after a success: as new."""
    return breaker if breaker.failures == 0 else Breaker()
