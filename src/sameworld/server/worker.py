"""One worker: a server and its connections. It says ten times a second that its loop turns, and drains before it ends.

Forked of the supervisor, or run as `python -m sameworld.server.worker HEARTBEAT COUNTS LISTENER`, file descriptors; COUNTS are this worker's and, after commas, the others'; several workers are given no listener and open one each. SIGTERM drains: /readyz says 503, answers say `connection: close`, and when
nothing is in flight any more what is left is closed. The same happens when the supervisor has gone, so that nobody answers unsupervised.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.server.app import Server
from sameworld.server.config import ServerConfig, from_environment
from sameworld.server.counts import Counts
from sameworld.server.guarded_child import Origin
from sameworld.server.http import Http
from sameworld.serving.supervision import BEAT_SECONDS

LONGEST_START_SECONDS = 10.0
"""How long a worker waits for its models before it takes connections: then fallbacks answer for those that are missing."""
LONGEST_DRAIN_SECONDS = 10.0
"""How long answers that are on their way are waited for."""


class Worker:
    """The server with a heartbeat and a drain.

    Args:
        heartbeat: the writing end of a pipe to the supervisor.
        counts: this worker's, beside the others'.
        listener: bound to the port; connections are taken once there is something to answer them.
        config: the server's.
        origin: starts guarded processes.
    """

    def __init__(
        self, heartbeat: int, counts: Counts, listener: socket.socket, config: ServerConfig, origin: Origin
    ) -> None:
        self._listener = listener
        self._heartbeat = heartbeat
        self._config = config
        self._server = Server(config, counts=counts, origin=origin)
        self._http = Http(self._server)
        self._draining: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Answer until told to stop."""
        loop = asyncio.get_running_loop()
        os.set_blocking(self._heartbeat, False)
        # The command line fills the store before; a process that finds something missing does it itself.
        self._server.store.fill(DuckDBEngine(Path(self._config.folder)))
        # What the first events would have to wait for.
        _ = self._server.store.sources
        self._server.start()
        # What lives as long as the server is not looked through again. A look at what is young stops the loop for as long as there is much of it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 20, 100)
        # Until connections are taken there is nothing to drain: SIGTERM ends the process.
        await self._settle(loop.time() + LONGEST_START_SECONDS)
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGINT, self._ended.set)
        await self._http.listen(self._listener)
        self._beat(loop)
        await self._ended.wait()
        self._http.close()
        await self._server.stop()

    async def _settle(self, until: float) -> None:
        """Wait until models are loaded: connections are taken after this, and others take them meanwhile."""
        while self._server.not_ready() and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            os.write(self._heartbeat, b".")
        except BlockingIOError:
            pass  # the supervisor is late, not gone
        except OSError:
            self._drain()
            return
        loop.call_later(BEAT_SECONDS, self._beat, loop)

    def _drain(self) -> None:
        if self._draining is None:
            loop = asyncio.get_running_loop()
            self._draining = loop.create_task(self._drained(loop.time() + LONGEST_DRAIN_SECONDS))

    async def _drained(self, until: float) -> None:
        # From now on /readyz says that requests are to go elsewhere, and each connection ends with its next answer.
        self._server.draining = True
        await asyncio.sleep(self._config.drain_seconds)
        while self._http.in_flight and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        self._http.close()  # in this turn of the loop: in the next one there may be another request
        self._ended.set()


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


def _settle_pandas() -> None:
    """PyArrow looks for pandas at every conversion, on disk each time where there is none: tell it once."""
    if importlib.util.find_spec("pandas") is None:
        pa.array([None])  # PyArrow's first look must still find no module; of later ones it takes this answer
        sys.modules["pandas"] = None  # pyright: ignore[reportArgumentType] # how Python itself notes that there is no such module


def _loop() -> asyncio.AbstractEventLoop:
    """Give uvloop's, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 # an extra
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _answer(
    heartbeat: int, counts: Counts, listener: socket.socket, config: ServerConfig, origin: Origin
) -> None:
    await Worker(heartbeat, counts, listener, config, origin).run()


def main(arguments: Sequence[str]) -> None:
    """Answer until told to stop, or until the supervisor has gone."""
    heartbeat, places, *listener = arguments
    own, *others = map(int, places.split(","))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # when the supervisor dies, even while this still starts
    origin = Origin.begun()
    _settle_pandas()
    # Threads that prepare and commit events hand the interpreter back to the loop after this, not after Python's 5 ms.
    sys.setswitchinterval(0.0005)
    config = from_environment()
    given = (
        socket.socket(fileno=int(listener[0])) if listener else bound(config.host, config.port, together=True)
    )
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(_answer(int(heartbeat), Counts(own, others), given, config, origin))
        # All is closed. Taking Python down in order would only make libraries complain about what the operating system frees anyway.
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
