"""A guarded process and its pipes on an event loop, and where it comes from. Not the loop's own way to start one: uvloop forks the whole server for it, which stops it for a tenth of a second."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from sameworld.server import beside, guarded_origin
from sameworld.server.forked import SETTINGS, Forked, can_fork, forked
from sameworld.server.guarded_origin import Asked, Begun

_LIMIT = 1 << 24
CAN_FORK = hasattr(os, "pidfd_open")
"""Whether a process can be watched that another process has begun."""


class GuardedChild:
    """One started process; get it from `Origin.child`.

    Args:
        pid: its.
        kill: ends it.
    """

    def __init__(self, pid: int, kill: Callable[[], None]) -> None:
        self.pid = pid
        self._kill = kill
        self._ended = asyncio.Event()
        self._stdin: Any = None
        self._reading: Any = None
        self._stdout = asyncio.StreamReader(_LIMIT)

    async def connect(self, requests: Any, replies: Any) -> None:
        """Speak to it through pipes: files open for writing and for reading."""
        loop = asyncio.get_running_loop()
        reading = asyncio.StreamReaderProtocol(self._stdout)
        self._reading, _ = await loop.connect_read_pipe(lambda: reading, replies)
        self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, requests)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        """Take note of its end."""
        if self._stdin is not None:
            self._stdin.close()
        self._ended.set()

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
        """End it, and wait until it has. What it had still said is lost."""
        self._kill()
        await self._ended.wait()
        if self._reading is not None:
            self._reading.close()


class Origin:
    """Starts guarded processes: forks them of one that has imported all they need, where the system can tell of their end; else each imports it itself.

    Args:
        forks: whether to fork.
    """

    def __init__(self, *, forks: bool = CAN_FORK) -> None:
        self._forks = forks
        self._one = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._channel: socket.socket | None = None
        self._number = 0

    @classmethod
    def begun(cls) -> Origin:
        """Give one whose process is there already, where this one can be forked still; it is the first thing to be done, on the main thread."""
        origin = cls()
        if origin._forks and can_fork():
            origin._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                place = theirs.fileno()
                origin._process = forked(partial(guarded_origin.main, place), [place])
            beside.gives_way(origin._process.pid)
            origin._channel.setblocking(False)
        return origin

    async def child(self, arguments: Sequence[str]) -> GuardedChild:
        """Start a process; see `guarded_process` for its arguments.

        Raises:
            OSError: it cannot be started.
        """
        if not self._forks:
            return await _started(arguments)
        theirs, requests = os.pipe()
        replies, other = os.pipe()
        files = os.fdopen(requests, "wb", 0), os.fdopen(replies, "rb", 0)
        try:
            async with self._one:
                child = await self._forked(arguments, [theirs, other])
            await child.connect(*files)
        except BaseException:
            for file in files:
                file.close()
            raise
        finally:
            os.close(theirs)
            os.close(other)
        return child

    def close(self) -> None:
        """End the process that others are forked of, and them with it."""
        if self._process is not None and self._channel is not None:
            self._channel.close()
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None

    async def _forked(self, arguments: Sequence[str], descriptors: Sequence[int]) -> GuardedChild:
        if self._process is None or self._process.poll() is not None:
            self._begin()
        assert self._channel is not None
        self._number += 1
        asked = msgspec.json.encode(Asked(self._number, list(arguments)))
        try:
            socket.send_fds(self._channel, [asked], descriptors)
            while True:
                await _readable(self._channel)
                data, found, _, _ = socket.recv_fds(self._channel, 1 << 10, 1)
                if not data:
                    raise ConnectionResetError("what guarded processes are forked of has ended")
                begun = msgspec.json.decode(data, type=Begun)
                if begun.number == self._number:
                    return _watched(begun.pid, found)
                for descriptor in found:  # nobody waited for it any more
                    _kill(descriptor)
                    os.close(descriptor)
        except OSError:
            self.close()  # the next one is forked of a new one
            raise

    def _begin(self) -> None:
        self.close()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "sameworld.server.guarded_origin"]
        with theirs:
            # On the loop's own thread: the kernel may tell a child that its parent died when the thread that started it ends.
            self._process = beside.started(command, stdin=theirs.fileno(), env=_environment())
        self._channel.setblocking(False)


def _environment() -> dict[str, str]:
    return {**os.environ, **SETTINGS}


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(channel.fileno(), lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(channel.fileno())


def _kill(descriptor: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _watched(pid: int, found: Sequence[int]) -> GuardedChild:
    """Give a forked process whose end is heard of through its descriptor; without one it has ended already."""
    if not found:
        child = GuardedChild(pid, lambda: None)
        child.end()
        return child
    (descriptor,) = found
    loop = asyncio.get_running_loop()
    child = GuardedChild(pid, lambda: _kill(descriptor) if not child.has_ended else None)

    def end() -> None:
        loop.remove_reader(descriptor)
        child.end()
        os.close(descriptor)

    loop.add_reader(descriptor, end)
    return child


async def _started(arguments: Sequence[str]) -> GuardedChild:
    """Give a process that imports everything itself."""
    command = [sys.executable, "-m", "sameworld.server.guarded_process", *arguments]
    popen = beside.started(command, piped=True, env=_environment())
    loop = asyncio.get_running_loop()
    child = GuardedChild(popen.pid, popen.kill)

    def wait() -> None:
        popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop has gone, and with it whoever wanted to know
            loop.call_soon_threadsafe(child.end)

    threading.Thread(target=wait, name=f"wait for {popen.pid}", daemon=True).start()
    await child.connect(popen.stdin, popen.stdout)
    return child
