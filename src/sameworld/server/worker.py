"""One worker: Granian in this very process, on a socket that this file opened. It says ten times a second that its loop turns, and drains before it ends.

Run as `python -m sameworld.server.worker HEARTBEAT COUNTS LISTENER`, file descriptors; COUNTS are this worker's and, after commas, the others'; several workers are given no listener and open one each. SIGTERM drains: /readyz says 503, answers say `connection: close`, and when
nothing is in flight any more Granian closes what is left. The same happens when the supervisor has gone, so that nobody answers unsupervised.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.mp import MPServer

from sameworld.server.app import App
from sameworld.server.config import from_environment
from sameworld.server.counts import Counts
from sameworld.serving.supervision import BEAT_SECONDS

BACKLOG = 1024
LONGEST_START_SECONDS = 10.0
"""How long a worker waits for its models before it takes connections: then fallbacks answer for those that are missing."""
LONGEST_DRAIN_SECONDS = 10.0
"""How long answers that are on their way are waited for."""


class SupervisedApp(App):
    """The server's application with a heartbeat and a drain.

    Args:
        heartbeat: the writing end of a pipe to the supervisor.
        counts: this worker's, beside the others'.
        listener: bound to the port; connections are taken once there is something to answer them.
        drain_seconds: how long new connections are still taken while /readyz says 503.
    """

    def __init__(self, heartbeat: int, counts: Counts, listener: socket.socket, drain_seconds: float) -> None:
        super().__init__(counts)
        self._listener = listener
        self._heartbeat = heartbeat
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[None] | None = None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Until connections are taken there is nothing to drain; and a loop that does not turn would lose the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        super().__rsgi_init__(loop)
        os.set_blocking(self._heartbeat, False)
        loop.run_until_complete(self._settle(loop.time() + LONGEST_START_SECONDS))
        # Granian's own handler stays on SIGINT: it closes at once.
        loop.add_signal_handler(signal.SIGTERM, self._drain, loop)
        self._listener.listen(BACKLOG)
        loop.call_soon(self._beat, loop)

    async def _settle(self, until: float) -> None:
        """Wait until models are loaded: connections are taken after this, and others take them meanwhile."""
        while self.waiting_for() and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            os.write(self._heartbeat, b".")
        except BlockingIOError:
            pass  # the supervisor is late, not gone
        except OSError:
            self._drain(loop)
            return
        loop.call_later(BEAT_SECONDS, self._beat, loop)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._draining is None:
            self._draining = loop.create_task(self._drained(loop.time() + LONGEST_DRAIN_SECONDS))

    async def _drained(self, until: float) -> None:
        self.drain()
        await asyncio.sleep(self._drain_seconds)
        while self.in_flight and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)


class _Here(MPServer):
    """Granian's one worker in the process that calls it, on a socket that is open already."""

    listener: socket.socket

    def _serve(self, spawn_target: Any, target_loader: Any) -> None:
        self._ssp = self._sso = None
        self._shd = SocketHolder(self.listener.fileno(), False, BACKLOG)  # pyright: ignore[reportCallIssue] # its stub lacks the constructor that Granian itself uses
        self._spawn_worker(0, spawn_target, target_loader).inner.run()


def bound(host: str, port: int, *, together: bool) -> socket.socket:
    """Give a socket bound to a port, not listening yet.

    Args:
        together: others of this user may listen there too; the kernel spreads connections over them.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if together:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def main() -> None:
    """Answer until told to stop, or until the supervisor has gone."""
    heartbeat, places, *listener = sys.argv[1:]
    own, *others = map(int, places.split(","))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the supervisor dies, even while this still starts
    config = from_environment()
    server = _Here(
        "sameworld.server.worker",
        interface=Interfaces.RSGI,
        workers=1,
        websockets=False,
        log_access=False,
        log_level=LogLevels.warning,
    )
    given = socket.socket(fileno=int(listener[0])) if listener else None
    server.listener = given or bound(config.host, config.port, together=True)
    app = SupervisedApp(int(heartbeat), Counts(own, others), server.listener, config.drain_seconds)
    server.serve(target_loader=lambda: app, wrap_loader=False)  # pyright: ignore[reportArgumentType] # an object with `__rsgi__`, as Granian loads them by name
    # All is closed. Taking Python down in order would only make libraries complain about what the operating system frees anyway.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
