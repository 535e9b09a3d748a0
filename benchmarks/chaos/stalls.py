"""How long the machine itself keeps a process waiting: one that sleeps a millisecond at a time writes down every time it overslept.

Run as `python -m benchmarks.chaos.stalls OUT` until SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import time
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SLEEP = 0.001
_USUAL = 0.0005  # what a sleep is late by where nothing is the matter


def overlapping(
    stalls: NDArray[np.float64], started: NDArray[np.float64], seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Give for each request how many of its seconds the machine stalled.

    Args:
        stalls: shape (n, 2), begin and length of each, in order; none overlaps another.
        started, seconds: shape (m,), of the requests.
    """
    if not len(stalls):
        return np.zeros_like(seconds)
    begin, length = stalls[:, 0], stalls[:, 1]
    before = np.concatenate([[0.0], np.cumsum(length)])

    def stalled_until(moment: NDArray[np.float64]) -> NDArray[np.float64]:
        place = np.searchsorted(begin, moment, side="right")
        last = np.maximum(place - 1, 0)
        running = np.clip(moment - begin[last], 0.0, length[last])
        return np.where(place > 0, before[last] + running, 0.0)

    return stalled_until(started + seconds) - stalled_until(started)


def main() -> None:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    found = array("d")
    while not stop:
        begun = time.monotonic()
        time.sleep(_SLEEP)
        late = time.monotonic() - begun - _SLEEP
        if late > _USUAL:
            found.extend((begun + _SLEEP, late))
    Path(sys.argv[1]).write_bytes(found.tobytes())


if __name__ == "__main__":
    main()
