"""What a child and the processes that it started take: memory and processor time; on Linux from /proc, elsewhere what the child's own counters say."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def of_session(session: int) -> list[int]:
    """Give the ids of a session's processes, of a child that leads its own session, and of all that they started, be it in sessions of their own as Ray's are."""
    return _related(lambda process, _, its: session in (its, process))


def descendants(ancestor: int) -> list[int]:
    """Give the ids of all processes that a process and those it started have started."""
    return _related(lambda _, parent, __: parent == ancestor)


def _related(first: Callable[[int, int, int], bool]) -> list[int]:
    """Give the processes of which something holds (its id, its parent's, its session), and all that they have started."""
    children: dict[int, list[int]] = {}
    found: dict[int, None] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):  # it may have ended
            process, told = int(entry.parent.name), entry.read_text().rsplit(")", 1)[1].split()
            parent, session = int(told[1]), int(told[3])
            children.setdefault(parent, []).append(process)
            if first(process, parent, session):
                found[process] = None
    waiting = list(found)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def memory(processes: list[int], line: str) -> int:
    """Give the sum of one line of /proc/*/status, in bytes: VmRSS is now, VmHWM the most there was."""
    total = 0
    for process in processes:
        with suppress(OSError):
            for text in (_PROC / str(process) / "status").read_text().splitlines():
                if text.startswith(f"{line}:"):
                    total += int(text.split()[1]) * 1024
    return total


def peak() -> int:
    """Give the most bytes that this process and those it started have held, each at its own worst time.

    Not ru_maxrss where it can be avoided: on Linux a process inherits that of the one that started it.
    """
    if sys.platform == "linux":
        return memory(of_session(os.getsid(0)), "VmHWM")
    held = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return held if sys.platform == "darwin" else held * 1024


def processor_seconds() -> float:
    """Give the processor time that this process and those it started have taken, on all cores together."""
    if sys.platform == "linux":
        return sum(ticks(process) for process in of_session(os.getsid(0))) / os.sysconf("SC_CLK_TCK")
    taken = os.times()
    return taken.user + taken.system + taken.children_user + taken.children_system


def ticks(process: int) -> int:
    """Give the processor time of a process and of those it started that have ended, in the system's ticks."""
    with suppress(OSError):
        # Its own, user and system, and that of those it started that have ended.
        return sum(
            int(ticks)
            for ticks in (_PROC / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[11:15]
        )
    return 0


def end(session: int) -> None:
    """End a child and all that it started."""
    for process in {session, *of_session(session)}:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
