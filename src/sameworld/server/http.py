"""HTTP/1.1 on the event loop itself: llhttp parses (through httptools), and the requests of a connection are answered in their order.

Whatever has arrived on all connections is read before the loop takes its next turn, so that it is answered together; nothing crosses a thread.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol, cast
from urllib.parse import unquote

import httptools

MOST_BODY_BYTES = 16 << 20
_MOST_HEAD_BYTES = 64 << 10
_MOST_AHEAD = 16  # requests that a connection may have sent before the first of them is answered
_LONGEST_SECONDS = 30.0
"""How long a request may take to arrive, and its answer to be taken away."""
_SWEEP_SECONDS = 5.0
_LINGER_SECONDS = 1.0
"""How long what a client still sends is thrown away after the last answer: closing at once could take the answer from it."""
BACKLOG = 1024

Reply = Callable[[int, bytes, bytes], None]
"""Called once, on the loop, with status, content type and body."""


class Request:
    """One request, whole.

    Args:
        method, target: as in its first line.
        headers: names as they were written.
        body: all of it.
        last: the connection ends with its answer.
        refusal: status and reason where it is none.
    """

    __slots__ = ("body", "headers", "last", "method", "refusal", "target")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        last: bool,
        refusal: tuple[int, str] | None = None,
    ) -> None:
        self.method, self.target, self.headers = method, target, headers
        self.body, self.last, self.refusal = body, last, refusal

    @property
    def path(self) -> str:
        """Its path, decoded."""
        path = self.target.partition(b"?")[0].decode("latin-1")
        return unquote(path) if "%" in path else path

    def header(self, name: str) -> str | None:
        """Give a header's value.

        Args:
            name: in lower case.
        """
        wanted = name.encode()
        for key, value in self.headers:
            if len(key) == len(wanted) and key.lower() == wanted:
                return value.decode("latin-1")
        return None


class Application(Protocol):
    """What answers."""

    draining: bool

    def take(self, request: Request, reply: Reply) -> None:
        """Answer a request, now or later; never raises."""
        ...

    def refuse(self, status: int, what: str) -> bytes:
        """Give the body of the answer to what is no request."""
        ...


class Http:
    """All connections of one process.

    Args:
        application: what answers.
    """

    def __init__(self, application: Application) -> None:
        self.application = application
        self.connections: set[_Connection] = set()
        self.in_flight = 0
        self.closed = False
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Take connections on a bound socket from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=listener, backlog=BACKLOG)
        self._sweep()

    def close(self) -> None:
        """Take no more connections and no more requests, and end what there is: who is not answered by now is not any more."""
        self.closed = True
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.close()

    def _sweep(self) -> None:
        """End connections that keep a request or an answer for too long; one timer for all of them."""
        before = time.monotonic() - _LONGEST_SECONDS
        for connection in list(self.connections):
            connection.sweep(before)
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection. The parser calls its `on_...`."""

    __slots__ = ("_ahead", "_begun", "_blocked", "_body", "_deaf", "_expects", "_head_bytes", "_headed", "_headers", "_http", "_parser", "_paused", "_size", "_target", "_transport", "_under_way")  # fmt: skip

    def __init__(self, http: Http) -> None:
        self._http = http
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._ahead: deque[Request] = deque()
        self._under_way: Request | None = None
        self._deaf = False  # nothing that comes is looked at any more
        self._paused = False  # what comes is left with the kernel
        self._blocked = 0.0  # since when the client has not taken what it was sent
        self._begun = 0.0  # when the request that is arriving began
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._headed = self._expects = False
        self._head_bytes = self._size = 0

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._http.connections.add(self)
        if self._http.closed:  # it was taken while the port was being given up
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connections.discard(self)
        self._transport = None
        self._ahead.clear()

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._http.closed:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # it is answered in HTTP/1.1, and what follows is something else
            if self._ahead:
                self._ahead[-1].last = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"This is no HTTP/1.1 request: {error}.")
        else:
            if self._size > MOST_BODY_BYTES:
                self._refuse(413, "The body is too large.")
            elif self._begun and not self._headed and self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse(431, "The headers are too large.")
            elif self._expects and self._begun and self._transport is not None:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._expects = False
        if self._ahead and self._under_way is None:
            self._next()
        if len(self._ahead) > _MOST_AHEAD:
            self._pause()

    def eof_received(self) -> bool:
        """Keep the connection open for as long as there is something to answer."""
        if self._ahead:
            self._ahead[-1].last = True
        elif self._under_way is not None:
            self._under_way.last = True
        return self._under_way is not None or bool(self._ahead)

    def pause_writing(self) -> None:
        self._blocked = time.monotonic()
        self._pause()

    def resume_writing(self) -> None:
        self._blocked = 0.0
        self._next()

    # the parser's side

    def on_message_begin(self) -> None:
        self._begun = time.monotonic()
        self._head_bytes = self._size = 0
        self._headed = self._expects = False
        self._target, self._headers, self._body = b"", [], []

    def on_url(self, url: bytes) -> None:
        self._target = self._target + url if self._target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if len(name) == 6 and name.lower() == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= MOST_BODY_BYTES:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._begun = 0.0
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        refusal = (413, "The body is too large.") if self._size > MOST_BODY_BYTES else None
        self._size = 0
        method = self._parser.get_method().decode("latin-1")
        last = refusal is not None or not self._parser.should_keep_alive()
        self._ahead.append(Request(method, self._target, self._headers, body, last, refusal))

    # answers

    def _next(self) -> None:
        """Answer the next request, unless one is being answered or the client takes no answers."""
        if self._transport is None or self._under_way is not None or self._blocked or self._http.closed:
            return
        if not self._ahead:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            return
        request = self._under_way = self._ahead.popleft()
        self._http.in_flight += 1
        if request.refusal is None:
            self._http.application.take(request, self._reply)
        else:
            status, what = request.refusal
            self._reply(status, b"application/json", self._http.application.refuse(status, what))

    def _reply(self, status: int, kind: bytes, body: bytes) -> None:
        request, self._under_way = self._under_way, None
        self._http.in_flight -= 1
        if self._transport is None or request is None or self._http.closed:
            return
        last = request.last or self._http.application.draining
        self._transport.write(
            b"%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                _head(status, kind),
                _dated(),
                len(body),
                b"connection: close\r\n" if last else b"",
                body if request.method != "HEAD" else b"",
            )
        )
        if last:
            self._end()
        elif self._ahead or self._paused:
            asyncio.get_running_loop().call_soon(self._next)

    def _refuse(self, status: int, what: str) -> None:
        """Say in its turn why a request is none, and listen no more."""
        self._deaf, self._begun = True, 0.0
        self._ahead.append(Request("", b"", [], b"", last=True, refusal=(status, what)))

    def _end(self) -> None:
        """Close once the client has had time to take the last answer."""
        self._deaf = True
        self._ahead.clear()
        if self._transport is not None:
            if self._paused:
                self._transport.resume_reading()
            try:
                self._transport.write_eof()
            except OSError:  # the client has gone
                self._transport.abort()
                return
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, self.close)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def sweep(self, before: float) -> None:
        """End the connection where something has been under way on it since before a moment (steady seconds)."""
        if self._blocked and self._blocked < before and self._transport is not None:
            self._transport.abort()
        elif self._begun and self._begun < before and not self._deaf:
            self._refuse(408, "The request did not arrive in time.")
            self._next()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


_heads: dict[tuple[int, bytes], bytes] = {}


def _head(status: int, kind: bytes) -> bytes:
    """Give the first lines of an answer."""
    found = _heads.get((status, kind))
    if found is None:
        phrase = HTTPStatus(status).phrase.encode()
        found = _heads[status, kind] = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n" % (status, phrase, kind)
    return found


class _Date:
    """The line that says when, which changes once a second."""

    def __init__(self) -> None:
        self._second, self._line = 0, b""

    def __call__(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second, self._line = now, f"date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._line


_dated = _Date()
