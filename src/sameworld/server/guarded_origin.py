"""What guarded processes are forked from: it has imported all that they need, so that one starts in some milliseconds of processor, where Python and its libraries take two seconds, and shares their memory.

Run as `python -m sameworld.server.guarded_origin`; its stdin is a Unix socket. Each message is a request for one process: JSON, with the descriptors of its stdin and stdout. Each is answered
with the number of the request and the pid in JSON, and a descriptor of the process. It runs nothing of a user's, has one thread, and takes all it has begun with it when it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence

import msgspec
import numpy as np

from sameworld.server import guarded_process


class Asked(msgspec.Struct, frozen=True):
    """A request for a process, and its arguments."""

    number: int
    arguments: list[str]


class Begun(msgspec.Struct, frozen=True):
    """A process that was begun."""

    number: int
    pid: int


def main() -> None:
    """Fork processes until the socket is closed."""
    guarded_process.die_with_parent()
    channel = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever asked for a process hears of its end
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.freeze()  # what all share is not written to
    while True:
        data, given, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        if not data:
            return
        asked = msgspec.json.decode(data, type=Asked)
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become(asked.arguments, given)
        for descriptor in given:
            os.close(descriptor)
        try:
            descriptors = [os.pidfd_open(pid)]
        except ProcessLookupError:  # it has ended already
            descriptors = []
        socket.send_fds(channel, [msgspec.json.encode(Begun(asked.number, pid))], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _become(arguments: Sequence[str], given: Sequence[int]) -> None:
    """Be a guarded process, and end."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for place, descriptor in enumerate(given):
            os.dup2(descriptor, place)
            os.close(descriptor)
        np.random.seed()  # each would have the same random numbers
        guarded_process.main(arguments)
        status = 0
    except BaseException:  # noqa: BLE001 # the edge of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
