"""One process of load: many connections, each with one request at a time. Writes down what came of every one.

Run as `python -m benchmarks.chaos.load PORT CONNECTIONS REQUESTS RATE SEED OUT`. A connection that breaks is counted and its request sent again on a new one.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from array import array
from pathlib import Path
from typing import Any, cast

import msgspec

from benchmarks.chaos.limits import DEADLINE_SECONDS

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

_MODELS = ("steady", "steady", "moody")
_EVENTS_EVERY = 50
_AGAIN_SECONDS = 0.1
_decode = msgspec.json.Decoder().decode


class Outcome(msgspec.Struct):
    """What one process saw. Times are seconds on the machine's steady clock.

    Args:
        started, seconds: when each answered try began, and how long it took.
        answers: model -> tier and reason -> how many.
        statuses: status -> how many.
        logged: the ids of answers that were said to be logged.
        unlogged: how many were not.
        acknowledged: the keys of acknowledged events.
        refused: why events were not taken at first -> how often; they are sent again until they are.
        cut: when each request that had no answer yet lost its connection, and how long it had been waiting.
        slow: of answers that took longer than the deadline: when, how long, with which id, and for how long of it this process itself waited for a processor.
    """

    started: bytes = b""
    seconds: bytes = b""
    answers: dict[str, dict[str, int]] = {}
    statuses: dict[int, int] = {}
    logged: list[str] = []
    unlogged: int = 0
    acknowledged: list[str] = []
    refused: dict[str, int] = {}
    cut: list[tuple[float, float]] = []
    slow: list[tuple[float, float, str, float]] = []


class Load:
    """Connections to one server."""

    def __init__(self, port: int, requests: int, rate: float, seed: int) -> None:
        self._port = port
        self._left = requests
        self._rate = rate
        self._seed = seed
        self._random = random.Random(seed)
        self._events = 0
        self._started = array("d")
        self._seconds = array("d")
        self._scheduled = os.open("/proc/self/schedstat", os.O_RDONLY) if sys.platform == "linux" else -1
        self.outcome = Outcome()

    async def run(self, connections: int) -> Outcome:
        await asyncio.gather(*(self._connection(connections / self._rate) for _ in range(connections)))
        self.outcome.started, self.outcome.seconds = self._started.tobytes(), self._seconds.tobytes()
        return self.outcome

    async def _connection(self, pause: float) -> None:
        """Send one request after the other, as fast as the rate allows."""
        loop = asyncio.get_running_loop()
        open_: _Connection | None = None
        due = time.perf_counter() + self._random.random() * pause
        while self._left > 0:
            self._left -= 1
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            due = max(due + pause, time.perf_counter() - pause)
            message, model, key = self._next()
            while True:
                started, waited = time.monotonic(), self._waited()
                try:
                    if open_ is None:
                        _, open_ = await loop.create_connection(_Connection, "127.0.0.1", self._port)
                        started = time.monotonic()
                    status, body, closing = await open_.exchange(message)
                    if not key or status != 503:
                        break
                    why = _decode(body)["what"]
                    self.outcome.refused[why] = self.outcome.refused.get(why, 0) + 1
                    await asyncio.sleep(_AGAIN_SECONDS)
                except OSError:
                    self.outcome.cut.append((started, time.monotonic() - started))
                    if open_ is not None:
                        open_.close()
                    open_ = None
                    await asyncio.sleep(0.001)
            if closing:
                open_.close()
                open_ = None
            self._note(model, key, status, body, started, time.monotonic() - started, waited)
        if open_ is not None:
            open_.close()

    def _next(self) -> tuple[bytes, str, str]:
        number = self._left
        if number % _EVENTS_EVERY == 0:
            self._events += 1
            key = f"{self._seed}-{self._events}"
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            event = {
                "order_id": key, "user": f"u{number % 50}", "shop": f"s{number % 5}", "amount": number % 97 + 0.5,
                "ordered_at": now,
            }  # fmt: skip
            return _message("/v1/sources/orders/events", {"events": [event]}, key), "", key
        model = self._random.choice(_MODELS)
        fields = {"user": f"u{number % 50}", "shop": f"s{number % 5}", "basket": number % 89 + 0.25}
        return _message(f"/v1/models/{model}/predict", {"request": fields}), model, ""

    def _waited(self) -> float:
        """Give the seconds that this process has waited for a processor so far."""
        return int(os.pread(self._scheduled, 100, 0).split()[1]) / 1e9 if self._scheduled >= 0 else 0.0

    def _note(
        self, model: str, key: str, status: int, body: bytes, started: float, seconds: float, waited: float
    ) -> None:
        outcome = self.outcome
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        if status != 200:
            sys.stderr.write(f"{status} {body.decode()}\n")
        elif key:
            outcome.acknowledged.append(key)
        else:
            (given,) = _decode(body)["predictions"]
            said = f"{given['tier']}: {given['reason']}" if given["reason"] else given["tier"]
            counts = outcome.answers.setdefault(model, {})
            counts[said] = counts.get(said, 0) + 1
            if given["logged"]:
                outcome.logged.append(given["id"])
            else:
                outcome.unlogged += 1
            self._started.append(started)
            self._seconds.append(seconds)
            if seconds > DEADLINE_SECONDS:
                outcome.slow.append((started, seconds, given["id"], self._waited() - waited))


def _message(path: str, body: Any, key: str = "") -> bytes:
    content = msgspec.json.encode(body)
    extra = f"idempotency-key: {key}\r\n" if key else ""
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\n{extra}content-length: {len(content)}\r\n\r\n".encode() + content
    )


class _Connection(asyncio.Protocol):
    """One connection: a protocol and no streams, which would take more processor than the server does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes, bool]] | None = None

    def exchange(self, message: bytes) -> asyncio.Future[tuple[int, bytes, bool]]:
        """Give (status, body, whether the server closes the connection); a ConnectionError when it is cut before."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(message)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, body = self._received.partition(b"\r\n\r\n")
        if not ended:
            return
        head = head.lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._received = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body, b"connection: close" in head))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("it was cut"))

    def close(self) -> None:
        self._transport.close()


def main() -> None:
    port, connections, requests, rate, seed, out = sys.argv[1:]
    load = Load(int(port), int(requests), float(rate), int(seed))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        outcome = runner.run(load.run(int(connections)))
    Path(out).write_bytes(msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
