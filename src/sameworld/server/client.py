"""A small HTTP/1.1 client for one server: keep-alive connections, one request on each at a time, and patience while the server is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class Response:
    """What came back, and how long it took in seconds (of the try that succeeded)."""

    status: int
    body: bytes
    seconds: float


class _Connection(asyncio.Protocol):
    """One connection; parses just enough of a response to know where it ends."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError("the server closed the connection"))
        self._transport = None

    def send(self, message: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; gives its (status, body)."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self._waiting.set_exception(ConnectionResetError("the server closed the connection"))
        else:
            self._transport.write(message)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._waiting is None:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        self._buffer.clear()
        if not self._waiting.done():
            self._waiting.set_result((int(head[9:12]), body))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """Connections to one server.

    Args:
        host, port: where it listens.
        patience_seconds: how long to try again while it cannot be reached.
        token: for routes that ask for one.
    """

    def __init__(
        self, host: str, port: int, *, patience_seconds: float = 60.0, token: str | None = None
    ) -> None:
        self._host, self._port = host, port
        self._patience = patience_seconds
        self._extra = f"authorization: Bearer {token}\r\n" if token else ""
        self._idle: list[_Connection] = []
        self.retries = 0

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send one request; a broken connection is a reason to send it again.

        Args:
            key: the Idempotency-Key, which makes sending events again harmless.
            headers: further ones.

        Raises:
            ConnectionError: the server stayed away for longer than the patience.
        """
        given = {**(headers or {}), **({"idempotency-key": key} if key else {})}
        extra = self._extra + "".join(f"{name}: {value}\r\n" for name, value in given.items())
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n{extra}content-length: {len(body)}\r\n\r\n"
        message = head.encode() + body
        until = time.monotonic() + self._patience
        while True:
            started = time.perf_counter()
            connection: _Connection | None = None
            try:
                connection = self._idle.pop() if self._idle else await self._connect()
                status, answer = await connection.send(message)
            except BaseException as error:
                if connection is not None:
                    connection.close()  # nobody else would, where the caller waits no longer
                if not isinstance(error, OSError):
                    raise
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"{self._host}:{self._port} stayed away for {self._patience:.0f} s: {error}"
                    ) from error
                self.retries += 1
                self._drop()
                await asyncio.sleep(0.05)
                continue
            self._idle.append(connection)
            return Response(status, answer, time.perf_counter() - started)

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            _Connection, self._host, self._port
        )
        return connection

    def _drop(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def close(self) -> None:
        """Close all connections."""
        self._drop()
        await asyncio.sleep(0)
