"""When a worker has to be replaced, and how soon."""

from __future__ import annotations

BEAT_SECONDS = 0.1
"""How often a worker says that its event loop turns."""

_STOPPED = 0.5
_HUNG = 3.0  # beyond what a machine with too much to do may keep a healthy loop waiting
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def verdict(silence: float, *, stopped: bool) -> str:
    """Say why a worker has to be killed; nothing when it does not.

    Args:
        silence: seconds since its loop last said that it turns.
        stopped: whether the system says that the process is stopped, as by SIGSTOP.
    """
    if stopped and silence > _STOPPED:
        return "it was frozen"
    return f"its loop did not turn for {_HUNG:g} s" if silence > _HUNG else ""


def pause_before(failures: int) -> float:
    """Give the seconds before the next start: none after a life that was well, then twice as long for every start that failed in a row."""
    return min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), _LONGEST_PAUSE) if failures else 0.0
