"""A child process and its pipes on an event loop. Not the loop's own: uvloop forks the whole server to start one, which stops it for a tenth of a second."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from sameworld.server.beside import started

_LIMIT = 1 << 24


class GuardedChild:
    """One started process; get it from `start`."""

    def __init__(self, popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._popen = popen
        self._loop = loop
        self._ended = asyncio.Event()
        self._stdin: Any = None
        self._stdout = asyncio.StreamReader(_LIMIT)

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str]) -> Self:
        """Start a process.

        On the loop's own thread: the kernel may tell a child that its parent died when the thread that started it ends.
        """
        loop = asyncio.get_running_loop()
        popen = started(command, piped=True, env=env)
        child = cls(popen, loop)
        threading.Thread(target=child._wait, name=f"wait for {popen.pid}", daemon=True).start()
        reading = asyncio.StreamReaderProtocol(child._stdout)
        await loop.connect_read_pipe(lambda: reading, popen.stdout)
        child._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, popen.stdin)
        return child

    def _wait(self) -> None:
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop has gone, and with it whoever wanted to know
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        self._ended.set()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def write(self, frame: bytes) -> None:
        """Send bytes to its stdin, without waiting for it to read them."""
        self._stdin.write(frame)

    async def read(self, count: int) -> bytes:
        """Give the next bytes of its stdout; an IncompleteReadError when it ended before."""
        return await self._stdout.readexactly(count)

    async def ended(self) -> None:
        """Wait for its end."""
        await self._ended.wait()

    async def kill(self) -> None:
        """End it, and wait until it has."""
        self._popen.kill()
        await self._ended.wait()
