"""The server as one application: routes, start and stop."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sameworld.errors import RequestError, SameworldError, nearest
from sameworld.server.answering import Answering
from sameworld.server.config import ServerConfig, on_loopback
from sameworld.server.control import Control
from sameworld.server.counts import Counts
from sameworld.server.guarded_child import Origin
from sameworld.server.http import MOST_BODY_BYTES, Reply, Request
from sameworld.server.incidents import Incidents
from sameworld.server.metrics import Metrics
from sameworld.server.portfolio import Portfolio, wanted_of
from sameworld.server.readable import readable
from sameworld.server.recorded import Recorded, recorded
from sameworld.server.rotating import Rotating
from sameworld.server.routes import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    deadline_seconds,
    error_body,
    json_body,
    predictions_body,
    read_events,
    read_version,
    status_of,
)
from sameworld.stores.clock import Clock, SystemClock
from sameworld.stores.named import opened_shared
from sameworld.stores.online import Incoming, OnlineStore
from sameworld.stores.prediction_log import PredictionLog
from sameworld.training.bundle import Bundle

_JSON = b"application/json"
_TEXT = b"text/plain; version=0.0.4"
_PUBLISHED_SECONDS = 0.1
_MOST_READING_SECONDS = 0.25
"""Nothing else is answered while a store of several hosts is being asked."""
ARROW = "application/vnd.apache.arrow.stream"
"""The content type of events that are no JSON."""
_LARGE_BYTES = 1 << 16
_PART = 200
"""Of the requests of a large body so many are asked for before others have a turn."""
DEADLINE = "x-deadline-ms"
"""A caller's own deadline, in milliseconds; the model's holds where it is sooner."""
TOGETHER = "replay-together"
"""A replay's header: how many requests of the same instant are being sent at once."""


class Server:
    """Everything that answers.

    Args:
        config: what to serve.
        clock: this machine's by default.
        counts: shared with the other workers; this process's own by default.
        origin: starts guarded processes; one of its own by default.
    """

    def __init__(
        self,
        config: ServerConfig,
        clock: Clock | None = None,
        counts: Counts | None = None,
        origin: Origin | None = None,
    ) -> None:
        config.check()
        self.config = config
        self.clock = clock or SystemClock()
        self.incidents = Incidents()
        self.metrics = Metrics(self.incidents, counts)
        self.portfolio = Portfolio(config, self.incidents, origin)
        # What control routes changed outlives the process that was told.
        serving = recorded(Path(config.state)) or Recorded(generation=0, models=config.models)
        found = readable(config.registry, serving.models)
        for name, error in found.unread.items():
            self.portfolio.miss(name, serving.models[name], error)
        self.store = open_store(config, found.bundles.values(), self.clock)
        self.log = PredictionLog(Path(config.state), self.clock, durability=config.prediction_durability)
        self._rotating = Rotating(
            self.log,
            Path(config.state),
            self.metrics,
            keep_bytes=config.keep_prediction_bytes,
            keep_days=config.keep_prediction_days,
        )
        for name, bundle in found.bundles.items():
            self.portfolio.put(self.portfolio.served(name, bundle, self.store.groupings))
        self._answering = Answering(
            self.store, self.log, self.metrics, lambda served: self.portfolio.need(served, self.store)
        )
        self.control = Control(config, self.portfolio, self.store, self.metrics, self.incidents, serving)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="events")
        # A source's events are prepared one delivery at a time, and beside those of other sources.
        self._preparers: dict[str, ThreadPoolExecutor] = {}
        self._queue: list[tuple[Incoming, asyncio.Future[Any]]] = []
        self._writing = False
        self._open = on_loopback(config.host)
        self._loading: asyncio.Task[None] | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    def start(self) -> None:
        """Load models, begin to keep guarded processes alive and to follow what is recorded; needs a running loop."""
        self._rotating.start()
        self._writer.submit(int)  # so that the first event finds its thread there
        self._loading = self.portfolio.start(self.store)
        self.control.start()
        if self.store.shared is not None:
            self._publishing = asyncio.get_running_loop().create_task(self._keep_published())

    async def _keep_published(self) -> None:
        """Publish again what the store of several hosts has lost, or has not got while it was away."""
        while not self._stopping:
            try:
                await asyncio.to_thread(self.store.heal)
                self.metrics.worked("publishing")
            except Exception as error:  # noqa: BLE001 # whatever breaks there: it is tried again, and counted
                self.metrics.broken("publishing", f"{type(error).__name__}: {error}")
            await asyncio.sleep(_PUBLISHED_SECONDS)

    async def stop(self) -> None:
        """End guarded processes and close what is open."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self.control.stop()
        if self._publishing is not None:
            self._stopping = True  # not cancelled: a thread would go on with a store that is closed
            await self._publishing
        await self.portfolio.close()
        self._answering.rechecking.stop()
        for pool in (*self._preparers.values(), self._writer):
            pool.shutdown()
        await self._rotating.stop()
        self.store.close()

    # routes

    def take(self, request: Request, reply: Reply) -> None:
        """Answer a request as the protocol has it; predictions without a task of their own."""
        path = request.path
        parts = path.split("/")
        if len(parts) == 5 and parts[4] == "predict" and parts[:3] == ["", "v1", "models"] and request.method == "POST" and len(request.body) < _LARGE_BYTES:  # fmt: skip
            try:
                self._answer(self._ask(parts[3], request.body, request.header), path, reply)
            except Exception as error:  # noqa: BLE001 # as in `handle`
                reply(*self._refused(error, f"POST {path}"))
            return
        task = asyncio.get_running_loop().create_task(self._taken(request, path, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _taken(self, request: Request, path: str, reply: Reply) -> None:
        async def body() -> bytes:
            return request.body

        reply(*await self.handle(request.method, path, request.header, body))

    def _answer(self, answers: list[asyncio.Future[Any]], path: str, reply: Reply) -> None:
        """Reply once all answers are given."""
        left = len(answers)

        def given(_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                try:
                    reply(200, _JSON, predictions_body([answer.result() for answer in answers]))
                except Exception as error:  # noqa: BLE001 # as in `handle`
                    reply(*self._refused(error, f"POST {path}"))

        for answer in answers:
            answer.add_done_callback(given)
        if not answers:
            given(None)

    def refuse(self, status: int, what: str) -> bytes:
        """Give the body of the answer to what is no HTTP request, and count it."""
        self.metrics.refused(status)
        return error_body(
            RequestError(
                what,
                expected=f"HTTP/1.1, a body of at most {MOST_BODY_BYTES} bytes, headers of at most 64 KiB, all within 30 s",
                do="correct the request.",
            )
        )

    def _refused(self, error: Exception, where: str) -> tuple[int, bytes, bytes]:
        """Give the answer that is an error, and count it."""
        if not isinstance(error, SameworldError):
            self.metrics.broken("route", f"{where}: {type(error).__name__}: {error}")
            error = UnavailableError.of(error, where)
        status = status_of(error)
        self.metrics.refused(status)
        return status, _JSON, error_body(error)

    async def handle(
        self,
        method: str,
        path: str,
        header: Callable[[str], str | None],
        body: Callable[[], Awaitable[bytes]],
    ) -> tuple[int, bytes, bytes]:
        """Give (status, content type, body) for one request."""
        try:
            match [part for part in path.split("/") if part]:
                case ["v1", "models", model, "predict"] if method == "POST":
                    answers = await self._ask_in_parts(model, await body(), header)
                    return 200, _JSON, predictions_body([await answer for answer in answers])
                case ["v1", "sources", source, "events"] if method == "POST":
                    self._authorise(header("authorization"))
                    return 200, _JSON, await self._events(source, header, await body())
                case ["control", *rest]:
                    self._authorise(header("authorization"))
                    return 200, _JSON, json_body(await self._control(method, path, rest, body))
                case ["livez"]:
                    return 200, _JSON, b'{"live":true}'
                case ["readyz"]:
                    missing, broken = self.not_ready(), self.portfolio.missed()
                    # One model that cannot be served is no reason to take requests to the others elsewhere.
                    facts = {
                        **({"waiting_for": missing} if missing else {}),
                        **({"broken": broken} if broken else {}),
                    }
                    return 503 if missing else 200, _JSON, json_body({"ready": not missing, **facts})
                case ["metrics"]:
                    # Beside the loop: of hundreds of models it takes some time.
                    return 200, _TEXT, await asyncio.to_thread(self.metrics.text, self._sequence())
                case _:
                    raise NotFoundError(
                        f"There is no {method} {path} here.",
                        expected="POST /v1/models/{model}/predict, POST /v1/sources/{source}/events, GET /livez, /readyz, /metrics",
                        do="correct the method or the path.",
                    )
        except Exception as error:  # noqa: BLE001 # the edge: whatever breaks, the caller is told so, and it is counted
            return self._refused(error, f"{method} {path}")

    def not_ready(self) -> list[str]:
        """Give what the server is still waiting for."""
        if self.draining:
            return ["nothing: it was told to stop"]
        try:
            waiting = [f"grouping {g.source.name} by {', '.join(g.keys)}" for g in self.store.missing()]
        except Exception as error:  # noqa: BLE001 # a store that cannot be read is answered for by fallbacks
            waiting = [f"the store: {type(error).__name__}: {error}"]
        if self._loading is None or not self._loading.done():
            waiting.append("models to be loaded")
        return waiting + [f"model {name}" for name in self.portfolio.waiting()]

    def _sequence(self) -> int | None:
        """Give the last delivery that can be seen; None where nothing can be read: the other counts are wanted all the more then."""
        try:
            with self.store.snapshot() as snapshot:
                return snapshot.sequence
        except Exception as error:  # noqa: BLE001 # whatever breaks in the store
            self.metrics.broken("store", f"{type(error).__name__}: {error}")
            return None

    async def _control(
        self, method: str, path: str, rest: list[str], body: Callable[[], Awaitable[bytes]]
    ) -> dict[str, Any]:
        match method, rest:
            case "GET", ["status"]:
                return await self.control.status()
            case "GET", ["models"]:
                return self.control.listing()
            case "POST", ["models", name]:
                return await self.control.add(name, read_version(await body()))
            case "DELETE", ["models", name]:
                return await self.control.remove(name)
            case _:
                raise NotFoundError(
                    f"There is no {method} {path} here.",
                    expected="GET /control/status, GET /control/models, POST or DELETE /control/models/{model}",
                    do="correct the method or the path.",
                )

    def _ask(self, model: str, body: bytes, header: Callable[[str], str | None]) -> list[asyncio.Future[Any]]:
        """Ask for the predictions that a body wants, which is not large."""
        ask, requests = self._wanted(model, body, header)
        return [ask(request) for request in requests]

    async def _ask_in_parts(
        self, model: str, body: bytes, header: Callable[[str], str | None]
    ) -> list[asyncio.Future[Any]]:
        """Ask for the predictions that a body wants, and let others have their turns meanwhile where it is large."""
        if len(body) < _LARGE_BYTES:
            return self._ask(model, body, header)
        ask, requests = await asyncio.to_thread(self._wanted, model, body, header)
        answers: list[asyncio.Future[Any]] = []
        for start in range(0, len(requests), _PART):
            answers += [ask(request) for request in requests[start : start + _PART]]
            await asyncio.sleep(0)
        return answers

    def _wanted(
        self, model: str, body: bytes, header: Callable[[str], str | None]
    ) -> tuple[Callable[[Any], asyncio.Future[Any]], list[Any]]:
        """Read a body; give what asks for one of its requests, and these."""
        served = self.portfolio.models.get(model)
        if served is None:
            raise self.portfolio.absent(model)
        requests, at = served.reader.read(body)
        if (at is not None) != self.config.replay:
            raise RequestError(
                "Only a replay is told the moment."
                if at is not None
                else "A replay has to be told the moment.",
                expected='no "at"' if at is not None else '"at": the moment',
                do="the server's own clock decides otherwise; start it with --replay to replay.",
            )
        within = deadline_seconds(header(DEADLINE))
        together = header(TOGETHER) if at is not None else None
        expected = int(together) if together and together.isdigit() else len(requests)
        return lambda request: self._answering.ask(served, request, at, expected, within), requests

    async def _events(self, source: str, header: Callable[[str], str | None], body: bytes) -> bytes:
        if source not in self._preparers:
            known = await asyncio.to_thread(lambda: self.store.sources)
            if source not in known:
                raise NotFoundError(
                    f"There is no source {source!r} here.",
                    expected=f"nearest: {nearest(source, known)}",
                    do="correct the source's name.",
                )
            if source not in self._preparers:
                self._preparers[source] = ThreadPoolExecutor(1, thread_name_prefix=f"prepare {source}")
        events = body if header("content-type") == ARROW else read_events(body)
        key = header("idempotency-key") or secrets.token_hex(16)
        loop = asyncio.get_running_loop()
        incoming = await loop.run_in_executor(
            self._preparers[source], self.store.prepare, source, key, events
        )
        done: asyncio.Future[Any] = loop.create_future()
        self._queue.append((incoming, done))
        if not self._writing:
            self._writing = True
            loop.create_task(self._write())  # noqa: RUF006 # it ends by itself and hands every outcome to a future
        taken = await done
        if isinstance(taken, RequestError) and taken.what.startswith("The delivery key"):
            raise ConflictError(taken.what, where=taken.where, expected=taken.expected, do=taken.do)
        if isinstance(taken, Exception):
            raise taken
        self.metrics.took(source, taken.accepted, repeated=taken.repeated)
        return json_body({"accepted": taken.accepted})

    async def _write(self) -> None:
        """Commit all that is queued as one group, until nothing is."""
        loop = asyncio.get_running_loop()
        while self._queue:
            group, self._queue = self._queue, []
            try:
                outcomes: list[Any] = list(
                    await loop.run_in_executor(
                        self._writer, self.store.commit, [incoming for incoming, _ in group]
                    )
                )
            except Exception as error:  # noqa: BLE001 # nothing was taken; every caller is told, and the queue goes on
                self.metrics.broken("event log", str(error))
                known = (
                    error
                    if isinstance(error, SameworldError)
                    else UnavailableError.of(error, "the event log and the index")
                )
                for _, done in group:
                    if not done.done():
                        done.set_exception(known)
                continue
            self.metrics.worked("event log")
            for (_, done), outcome in zip(group, outcomes, strict=True):
                if not done.done():
                    done.set_result(outcome)
        self._writing = False

    def _authorise(self, authorization: str | None) -> None:
        token = self.config.token
        if token is None and self._open:
            return
        if (
            token is None
            or authorization is None
            or not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())
        ):
            raise ForbiddenError(
                "This route needs the server's token.",
                expected="Authorization: Bearer TOKEN",
                do="send the token that the server was started with.",
            )


def open_store(config: ServerConfig, bundles: Iterable[Bundle], clock: Clock | None = None) -> OnlineStore:
    """Open the store that serves these bundles: every input and read that any of them wants, and the sources of their outcomes."""
    bundles = list(bundles)
    wanted = wanted_of(bundles)
    state = Path(config.state)
    # What a read takes of a deadline leaves as much for a fallback.
    seconds = min((bundle.model.service.deadline_seconds for bundle in bundles), default=0.5) / 2
    seconds = min(seconds, _MOST_READING_SECONDS)
    return OnlineStore(
        state,
        wanted.groupings,
        wanted.schemas,
        durability=config.durability,
        replay=config.replay,
        clock=clock,
        sources=wanted.sources,
        shared=opened_shared(state, config.store, reading_seconds=seconds) if config.store else None,
        follow=config.follow,
    )
