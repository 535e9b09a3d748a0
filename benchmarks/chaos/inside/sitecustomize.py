"""Python imports this by itself where this folder is on its path: in a worker of the server it begins to note what its event loop is doing, every few milliseconds, for `doing.py` to read.

A thread of the same process: where it is late itself, the interpreter was held, or there was no processor for either.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from types import FrameType

_EVERY = 0.005
_BEGIN = 0.2
_IDLE = ("server/worker.py", "server/supervisor.py", "server/forked.py")
"""Below these the loop turns, and does nothing while nothing of the project is above."""
_SHOWN = 3  # frames of the project, innermost first


def _watch(folder: str) -> None:
    main = threading.main_thread()
    with (
        open(f"/proc/self/task/{os.getpid()}/schedstat") as scheduled,
        open(f"{folder}/{os.getpid():x}.doing", "w", buffering=1) as out,
    ):
        while True:
            time.sleep(_EVERY)
            scheduled.seek(0)
            ran, waited, _ = map(int, scheduled.read().split())
            frames = sys._current_frames()
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            beside = [
                f"{names.get(ident, '?')}: {_place(frame, 1)}"
                for ident, frame in frames.items()
                if ident not in (main.ident, threading.get_ident()) and _is_busy(frame)
            ]
            loop = _place(frames[main.ident], _SHOWN)
            out.write(json.dumps([time.monotonic(), ran, waited, loop, beside]) + "\n")


def _place(frame: FrameType | None, shown: int) -> str:
    """Give where a thread is: the project's innermost frames and, before them, what they have called."""
    called, places = "", []
    while frame is not None and len(places) < shown:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/sameworld/" in file and not file.endswith(_IDLE):
            places.append(f"{file.rpartition('/')[2][:-3]}.{name}:{frame.f_lineno}")
        elif not places and not called:
            called = f"{file.rpartition('/')[2]}.{name}"
        frame = frame.f_back
    if not places:
        return ""
    return " < ".join([*([called] if called else []), *places])


def _is_busy(frame: FrameType) -> bool:
    """Whether a thread does something but wait for work."""
    return frame.f_code.co_name not in ("wait", "_worker", "select", "_keep_waiting") and bool(
        _place(frame, 1)
    )


def _begin() -> None:
    """In a worker: begin once it has begun to work, since what is forked of it has to have one thread."""
    if os.getppid() == _SUPERVISOR:
        signal.signal(signal.SIGALRM, lambda *_: _thread().start())
        signal.setitimer(signal.ITIMER_REAL, _BEGIN)


def _thread() -> threading.Thread:
    return threading.Thread(target=_watch, args=[os.environ["CHAOS_DOING"]], daemon=True, name="doing")


_SUPERVISOR = os.getpid()
if "CHAOS_DOING" in os.environ and "sameworld.server.supervisor" in sys.orig_argv:
    os.register_at_fork(after_in_child=_begin)
