"""Keeps the prediction log rotated while a server runs: in a process of its own, so that no answer waits for it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sameworld.server.beside import started
from sameworld.server.metrics import Metrics
from sameworld.stores.prediction_log import PredictionLog
from sameworld.stores.rotation import rotate, waiting


class Rotating:
    """Rotates one process's log and those that ended processes left; several may do it on one folder.

    Args:
        log: this process's.
        state: the server's folder.
        metrics: counts what could not be rotated.
        keep_bytes, keep_days: see `rotate`.
        look_seconds: between two looks.
        oldest_seconds: how long a segment is written to at most.
        pause_seconds: after a rotation that could not be done.
    """

    def __init__(
        self,
        log: PredictionLog,
        state: Path,
        metrics: Metrics,
        *,
        keep_bytes: int | None = None,
        keep_days: float | None = None,
        look_seconds: float = 5.0,
        oldest_seconds: float = 3600.0,
        pause_seconds: float = 60.0,
    ) -> None:
        self._log = log
        self._state = state
        self._metrics = metrics
        self._keep_bytes = keep_bytes
        self._keep_days = keep_days
        self._look_seconds = look_seconds
        self._oldest_seconds = oldest_seconds
        self._pause_seconds = pause_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look every few seconds; needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        limited = self._keep_bytes is not None or self._keep_days is not None
        while True:
            await asyncio.sleep(self._look_seconds)
            self._log.complete(self._oldest_seconds)
            # What is too old goes even when nothing new comes.
            if waiting(self._state) or (limited and clock() - last > self._oldest_seconds):
                last = clock()
                if not await self._rotate():
                    self._metrics.broken("rotation", "its process failed; see what it said")
                    await asyncio.sleep(self._pause_seconds)

    async def _rotate(self) -> bool:
        """Rotate once in another process; tell whether nothing went wrong."""
        flags = [] if self._keep_bytes is None else [f"--keep-bytes={self._keep_bytes}"]
        flags += [] if self._keep_days is None else [f"--keep-days={self._keep_days}"]
        try:
            # Not the loop's own way to start it: see `guarded_child`.
            child = started(
                [sys.executable, "-P", "-m", "sameworld.stores.rotation", str(self._state), *flags]
            )
        except OSError:
            return False
        try:
            return await asyncio.to_thread(child.wait) == 0
        finally:
            if child.poll() is None:  # this is being stopped; whoever rotates next does it again
                child.kill()
                child.wait()

    async def stop(self) -> None:
        """Stop looking, close the log and rotate all of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._log.close()
        await asyncio.to_thread(rotate, self._state, keep_bytes=self._keep_bytes, keep_days=self._keep_days)
