"""Processes that are forked of one that has imported all that they need: one begins in some milliseconds of processor, where Python and its libraries take two seconds, and shares their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

import numpy as np

_LOOK_SECONDS = 0.005
SETTINGS = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""With these in its environment a process that only imports has one thread, and can be forked."""


class Forked:
    """A process of this one's own, with as much of `subprocess.Popen` as is needed of it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Give its status once it has ended; less than 0 when a signal has ended it."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; a `subprocess.TimeoutExpired` when that takes more seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired([], timeout or 0.0)
            time.sleep(_LOOK_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def can_fork() -> bool:
    """Whether this process may be forked: it has one thread."""
    threads = Path("/proc/self/task")
    return threads.exists() and len(list(threads.iterdir())) == 1


def forked(run: Callable[[], None], kept: Collection[int]) -> Forked:
    """Begin a process that runs a function and ends.

    Args:
        run: what it does; signals have their default then.
        kept: of what this process has open, what that one is to have, beside the standard streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(run, kept)
    return Forked(pid)


def become(run: Callable[[], None], kept: Collection[int]) -> NoReturn:
    """Be a forked process; see `forked`."""
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _close_but({0, 1, 2, *kept})
        np.random.seed()  # each would have the same random numbers
        run()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 # the edge of a process
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _close_but(kept: Collection[int]) -> None:
    """Close all descriptors but some: what this process holds open would seem to be in use after the others have let it go."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the list itself
                os.close(int(name))
