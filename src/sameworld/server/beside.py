"""Processes that work beside the one that answers: they give way to it from their first instruction on, since their imports are most of what they do."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence

_NICER = 10


def started(
    command: Sequence[str],
    *,
    piped: bool = False,
    stdin: int | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process at a lower priority than this one's. Takes some milliseconds, whatever memory this one has: Python does it with vfork where there is one.

    Args:
        command: the program and its arguments.
        piped: whether its stdin and stdout are pipes to here.
        stdin: the descriptor of its stdin, where it is none of these; this process's by default.
        env: its environment; this process's by default.
    """
    pipe = subprocess.PIPE if piped else None
    child = subprocess.Popen(
        command, stdin=pipe if stdin is None else stdin, stdout=pipe, bufsize=0 if piped else -1, env=env
    )
    # From here, since a child can only do it once Python runs there.
    gives_way(child.pid)
    return child


def gives_way(pid: int) -> None:
    """Lower a process's priority below this one's, where that can be done."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
