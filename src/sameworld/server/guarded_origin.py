"""What guarded processes are forked from: it has imported all that they need, so that one starts in some milliseconds of processor, where Python and its libraries take two seconds, and shares their memory.

Forked of a worker before that does anything, or run as `python -m sameworld.server.guarded_origin`; its stdin is a Unix socket then. Each message is a request for one process: JSON, with the descriptors of its stdin and stdout. Each is answered
with the number of the request and the pid in JSON, and a descriptor of the process. It runs nothing of a user's, has one thread, and takes all it has begun with it when it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import warnings
from collections.abc import Sequence
from functools import partial

import msgspec

from sameworld.server import guarded_process
from sameworld.server.forked import forked


class Asked(msgspec.Struct, frozen=True):
    """A request for a process, and its arguments."""

    number: int
    arguments: list[str]


class Begun(msgspec.Struct, frozen=True):
    """A process that was begun."""

    number: int
    pid: int


def main(place: int = 0) -> None:
    """Fork processes until the socket is closed.

    Args:
        place: the socket's descriptor.
    """
    guarded_process.die_with_parent()
    channel = socket.socket(fileno=place)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever asked for a process hears of its end
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.freeze()  # what all share is not written to
    while True:
        data, given, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not data:
            return
        asked = msgspec.json.decode(data, type=Asked)
        pid = forked(partial(_run, asked.arguments, given), given).pid
        for descriptor in given:
            os.close(descriptor)
        try:
            descriptors = [os.pidfd_open(pid)]
        except ProcessLookupError:  # it has ended already
            descriptors = []
        socket.send_fds(channel, [msgspec.json.encode(Begun(asked.number, pid))], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(arguments: Sequence[str], given: Sequence[int]) -> None:
    """Be a guarded process, with its stdin and stdout."""
    for place, descriptor in enumerate(given):
        os.dup2(descriptor, place)
        os.close(descriptor)
    guarded_process.main(arguments)


if __name__ == "__main__":
    main()
