"""Holds answers back until their log rows survive a power cut: one sync for all that wait, in a thread, and never longer than a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sameworld.stores.prediction_log import PredictionLog
from sameworld.stores.record_log import synced

Give = Callable[[bool], None]
"""Lets answers go, told whether their rows are on the disk."""


class Syncing:
    """Group commit of a prediction log.

    Args:
        log: where the rows have been written.
    """

    def __init__(self, log: PredictionLog) -> None:
        self._log = log
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    def after(self, deadline: float, give: Give) -> None:
        """Call `give` once: when what was written before this is on the disk, or at the deadline (seconds on the steady clock)."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(give)
        waiting.timer = loop.call_later(max(deadline - time.perf_counter(), 0.0), waiting.settle, False)
        self._waiting.append(waiting)
        if self._task is None:
            self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            descriptor = self._log.descriptor()
            kept = descriptor is not None and await asyncio.to_thread(synced, descriptor)
            for waiting in group:
                waiting.settle(kept)
        self._task = None


class _Waiting:
    def __init__(self, give: Give) -> None:
        self._give: Give | None = give
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, kept: bool) -> None:
        give, self._give = self._give, None
        if give is not None:
            if self.timer is not None:
                self.timer.cancel()
            give(kept)
