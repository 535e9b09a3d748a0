"""Requests -> answers: micro-batches in turns of the event loop, one snapshot and one moment each, a deadline for every request, and a log row before it goes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.plan import Grouping, aggregates_of, narrowed
from sameworld.asof.request import evaluate, fields_read
from sameworld.asof.schema import VALUE_TYPES
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.model import meaning_of
from sameworld.errors import ReplayOrderError
from sameworld.server.lanes import Columns, DeadlineError, GuardedLane, Lane, LaneError, NativeLane
from sameworld.server.metrics import Metrics
from sameworld.server.requests import RequestReader
from sameworld.server.syncing import Syncing
from sameworld.server.turns import Line, Turns
from sameworld.serving.tiers import MODEL, Answer, fall_back
from sameworld.stores.online import OnlineStore
from sameworld.stores.prediction_log import Prediction, PredictionLog, logged
from sameworld.training.bundle import Bundle
from sameworld.training.encoding import matrix
from sameworld.training.logged import shape_of

_GATHERING_SECONDS = 0.02


LOADING = "loading"
"""The reason of answers that fall back while a model is read from its bundle."""


class Served:
    """One model as it is served: all that a request to it needs, switched by one pointer.

    Args:
        name: of its route.
        bundle: what answers; where its estimator is not loaded, its fallbacks do.
        lane: where the model runs.
        groupings: the store's.
        reader: reads its requests.
    """

    def __init__(
        self, name: str, bundle: Bundle, lane: Lane, groupings: Sequence[Grouping], reader: RequestReader
    ) -> None:
        self.name = name
        self.bundle = bundle
        self.lane = lane
        self.reader = reader
        self.loaded = bundle.estimator is not None or not isinstance(lane, NativeLane)
        self.asked_at = 0.0  # seconds on the steady clock
        self.fields = list(bundle.description.request)
        self.kinds = [VALUE_TYPES[family] for family in bundle.description.request.values()]
        self.groupings = narrowed(groupings, aggregates_of(bundle.model.features.values()))
        needed = fields_read(bundle.model.features)
        self.evaluated = [
            (i, name, kind)
            for i, (name, kind) in enumerate(zip(self.fields, self.kinds, strict=True))
            if name in needed
        ]
        # Models with the same features of the same requests read and evaluate them once.
        self.shares = content_hash(
            [
                meaning_of(bundle.model)["features"],
                bundle.description.schemas,
                bundle.description.types,
                bundle.description.request,
            ]
        )
        self.encodings = content_hash(msgspec.to_builtins(bundle.description.encodings))
        self.columns = list(bundle.types)
        self.deadline = bundle.model.service.deadline_seconds
        self.line: Line[Asked] = Line(lane)
        self.shape = shape_of(bundle)


@dataclass
class Asked:
    """One request on its way.

    Args:
        fields: values in the order of the model's request fields; instants in microseconds.
        at: the moment in a replay, in microseconds.
        arrived, deadline: seconds on the steady clock.
        answer: what its caller waits for.
        read: the aggregates of a batch, and this request's place in it.
    """

    served: Served
    fields: list[Any]
    at: int | None
    arrived: float
    deadline: float
    answer: asyncio.Future[Any]
    read: tuple[Columns, int] | None = None

    @property
    def by_name(self) -> dict[str, Any]:
        return dict(zip(self.served.fields, self.fields, strict=True))


@dataclass(frozen=True)
class Given:
    """What a caller is told."""

    value: float
    tier: str
    reason: str
    version: str
    id: str
    logged: bool


class Answering:
    """Forms micro-batches and answers them.

    Args:
        store: the online world.
        log: this process's prediction log.
        metrics: counts.
        load: told of a model that is asked and not loaded; gives the reason of the answers meanwhile.
    """

    def __init__(
        self, store: OnlineStore, log: PredictionLog, metrics: Metrics, load: Callable[[Served], str]
    ) -> None:
        self._load = load
        self._store = store
        self._log = log
        self._syncing = Syncing(log) if log.on_disk else None
        self._metrics = metrics
        self._pending: list[Asked] = []
        self._flushing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: Turns[Asked] = Turns(self._turn, self._shed)

    def ask(
        self,
        served: Served,
        fields: list[Any],
        at: int | None,
        together: int = 1,
        within_seconds: float = math.inf,
    ) -> asyncio.Future[Any]:
        """Queue a request for a micro-batch; gives a `Given`, or raises a ReplayOrderError.

        Args:
            within_seconds: the caller's own deadline; the model's holds where it is sooner.
            together: in a replay, how many requests of this instant are being sent at once: they are waited for, shortly.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        arrived = time.perf_counter()
        asked = Asked(served, fields, at, arrived, arrived + min(served.deadline, within_seconds), answer)
        if at is None:
            self._turns.add(served.line, asked)
            return answer
        self._pending.append(asked)
        if len(self._pending) >= together:
            if not self._flushing:
                self._flushing = True
                loop.call_soon(self._flush)
        elif len(self._pending) == 1:
            loop.call_later(_GATHERING_SECONDS, self._flush)
        return answer

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._flushing = False
        by_moment: dict[int | None, list[Asked]] = {}
        for asked in pending:
            by_moment.setdefault(asked.at, []).append(asked)
        for at in sorted(by_moment, key=lambda at: at or 0):
            self._answer(at, by_moment[at])

    def _turn(self, batch: list[Asked]) -> None:
        try:
            self._answer(None, batch)
        except Exception as error:  # noqa: BLE001 # nobody may be left waiting for an answer that nobody makes
            self._metrics.broken("answering", f"{type(error).__name__}: {error}")
            for own in _by_model([asked for asked in batch if not asked.answer.done()]):
                self._shed(own, f"server: {type(error).__name__}: {error}")
                self._turns.done(own[0].served.line, own)

    def _shed(self, group: Sequence[Asked], reason: str) -> None:
        """Answer requests of one model that nothing was read for."""
        answers = [self._fall_back(asked, reason) for asked in group]
        self._give(group, answers, None, self._store.clock.now(), 0)

    def _answer(self, at: int | None, batch: list[Asked]) -> None:
        for own in _by_model(batch):
            own[0].served.asked_at = own[0].arrived
        absent = [asked for asked in batch if not asked.served.loaded]
        batch = [asked for asked in batch if asked.served.loaded] if absent else batch
        started = time.perf_counter()
        t, sequence, broken = self._read(at, batch)
        reading = (time.perf_counter() - started) / max(len(batch), 1)
        for own in _by_model(absent):
            reason = self._load(own[0].served)
            self._give(own, [self._fall_back(asked, reason) for asked in own], None, t, sequence)
            self._turns.done(own[0].served.line, own)
        sharing: dict[tuple[str, bool], list[Asked]] = {}
        for asked in batch:
            if not asked.answer.done():
                sharing.setdefault(
                    (asked.served.shares, isinstance(asked.served.lane, NativeLane)), []
                ).append(asked)
        for (_, native), group in sharing.items():
            if native and not broken:
                self._native(group, t, sequence, reading)
                continue
            for own in _by_model(group):
                lane = own[0].served.lane
                if broken or isinstance(lane, NativeLane):
                    self._give(own, [self._fall_back(asked, broken) for asked in own], None, t, sequence)
                    self._turns.done(own[0].served.line, own)
                else:
                    if at is not None:
                        self._turns.watch(own[0].served.line, own)
                    task = asyncio.get_running_loop().create_task(self._guarded(lane, own, t, sequence))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    def _read(self, at: int | None, batch: Sequence[Asked]) -> tuple[int, int, str]:
        """Open the snapshot, take the moment, read what the models need; give the moment, the sequence seen and what is broken."""
        try:
            if at is not None and not self._store.pass_moment(at):
                for asked in batch:
                    asked.answer.set_exception(
                        ReplayOrderError(
                            "The moment is not after everything that has become readable.",
                            expected="a moment after the last event's available time",
                            found=f"{at} us",
                            do="replay events and requests in the order of time.",
                        )
                    )
                return at, 0, ""
            with self._store.snapshot() as snapshot:
                t = snapshot.moment() if at is None else at
                sharing: dict[str, list[Asked]] = {}
                for asked in batch:
                    sharing.setdefault(asked.served.shares, []).append(asked)
                for group in sharing.values():
                    served = group[0].served
                    keys = {key for grouping in served.groupings for key in grouping.keys}
                    needed = [i for i, name in enumerate(served.fields) if name in keys]
                    # The same request to several models is read and evaluated once.
                    numbers: dict[tuple[Any, ...], int] = {}
                    places = [numbers.setdefault(tuple(asked.fields), len(numbers)) for asked in group]
                    fields = {served.fields[i]: [request[i] for request in numbers] for i in needed}
                    values = snapshot.aggregates(served.groupings, fields, t)
                    for asked, place in zip(group, places, strict=True):
                        asked.read = (values, place)
                self._metrics.worked("store")
                return t, snapshot.sequence, ""
        except Exception as error:  # noqa: BLE001 # whatever breaks in the store, the caller gets the declared fallback and it is counted
            self._metrics.broken("store", f"{type(error).__name__}: {error}")
            return (
                at if at is not None else self._store.clock.now(),
                0,
                f"store: {type(error).__name__}: {error}",
            )

    def _columns(self, group: Sequence[Asked]) -> tuple[Columns, Columns]:
        reads = [asked.read for asked in group if asked.read is not None]
        values = reads[0][0]
        places = [place for _, place in reads]
        if places != list(range(len(next(iter(values.values()), ())))):
            chosen = pa.array(places)
            values = {name: array.take(chosen) for name, array in values.items()}
        fields = {
            name: pa.array([asked.fields[i] for asked in group], kind)
            for i, name, kind in group[0].served.evaluated
        }
        return values, fields

    def _native(self, group: list[Asked], t: int, sequence: int, reading: float) -> None:
        """Evaluate the features of a batch once, and let each of its models answer its own requests.

        Args:
            reading: seconds a request that reading has taken, to learn what a model costs.
        """
        started = time.perf_counter()
        first = group[0].served.bundle
        # One of each different request, in the order in which they were read.
        different = list(
            {asked.read[1]: asked for asked in reversed(group) if asked.read is not None}.values()
        )[::-1]
        place = {asked.read[1]: number for number, asked in enumerate(different) if asked.read is not None}
        try:
            columns = evaluate(first.model.features, *self._columns(different), first.types)
            seen = list(zip(*(logged(columns[name]) for name in group[0].served.columns), strict=True))
        except Exception as error:  # noqa: BLE001 # whatever breaks, the caller gets the declared fallback and it is counted
            for own in _by_model(group):
                self._give(
                    own,
                    [self._fall_back(asked, f"features: {type(error).__name__}: {error}") for asked in own],
                    None,
                    t,
                    sequence,
                )
            return
        encoded: dict[str, NDArray[np.float64]] = {}
        shared = reading + (time.perf_counter() - started) / len(group)
        for served in {id(asked.served): asked.served for asked in group}.values():
            own = [asked for asked in group if asked.served is served]
            rows = [place[asked.read[1]] for asked in own if asked.read is not None]
            started = time.perf_counter()
            try:
                if served.encodings not in encoded:
                    encoded[served.encodings] = matrix(served.bundle.description.encodings, columns)
                values = served.bundle.scores_of(encoded[served.encodings][rows])
            except Exception as error:  # noqa: BLE001 # see above
                self._give(
                    own,
                    [self._fall_back(asked, f"model: {type(error).__name__}: {error}") for asked in own],
                    None,
                    t,
                    sequence,
                )
            else:
                self._give(own, self._judge(own, values), [seen[number] for number in rows], t, sequence)
            now = time.perf_counter()
            served.line.learn(len(own), shared * len(own) + now - started, now)

    async def _guarded(self, lane: GuardedLane, group: list[Asked], t: int, sequence: int) -> None:
        """Let a process answer what it answers in time; the line's timer answers the rest meanwhile."""
        line = group[0].served.line
        started = time.perf_counter()
        left = max(asked.deadline for asked in group) - started
        try:
            columns, values = await lane.score(*self._columns(group), wait_seconds=left)
            seen = list(zip(*(logged(columns[name]) for name in group[0].served.columns), strict=True))
            now = time.perf_counter()
            line.learn(len(group), now - started, now)
            answers = self._judge(group, values)
        except Exception as error:  # noqa: BLE001 # see _native
            known = str(error) if isinstance(error, LaneError) else f"{type(error).__name__}: {error}"
            reason = known if isinstance(error, DeadlineError) else f"model: {known}"
            seen, answers = None, [self._fall_back(asked, reason) for asked in group]
        self._turns.done(line, group)
        places = [place for place, asked in enumerate(group) if not asked.answer.done()]
        if places:
            own = [group[place] for place in places]
            vectors = [seen[place] for place in places] if seen is not None else None
            self._give(own, [answers[place] for place in places], vectors, t, sequence)

    def _judge(self, group: Sequence[Asked], values: np.ndarray[Any, Any]) -> list[Answer]:
        if values.shape != (len(group),):
            return [
                self._fall_back(asked, f"model: it gave shape {values.shape} for {len(group)} requests")
                for asked in group
            ]
        now = time.perf_counter()
        answers: list[Answer] = []
        for asked, value in zip(group, values.tolist(), strict=True):
            if not math.isfinite(value):
                answers.append(self._fall_back(asked, f"model: it gave {value}"))
            elif now > asked.deadline:
                answers.append(self._fall_back(asked, "deadline"))
            else:
                answers.append(Answer(value, MODEL, ""))
        return answers

    def _fall_back(self, asked: Asked, reason: str) -> Answer:
        return fall_back(asked.served.bundle, asked.served.bundle.model.fallbacks, asked.by_name, reason)

    def _give(
        self,
        group: Sequence[Asked],
        answers: Sequence[Answer],
        seen: Sequence[tuple[Any, ...]] | None,
        t: int,
        sequence: int,
    ) -> None:
        """Log a batch, then let its callers have it."""
        served = group[0].served
        now = time.perf_counter()
        rows = [
            Prediction(
                self._log.next_id(), served.name, served.bundle.address, t, sequence, answer.value, answer.tier, answer.reason, asked.fields,
                list(seen[number]) if seen is not None else None, asked.at is not None, int((now - asked.arrived) * 1e6),
            )
            for number, (asked, answer) in enumerate(zip(group, answers, strict=True))
        ]  # fmt: skip
        failure = self._log.write(rows, served.shape)
        if failure:
            self._metrics.broken("prediction log", failure)
        else:
            self._metrics.worked("prediction log")

        def give(kept: bool) -> None:
            for asked, row in zip(group, rows, strict=True):
                seconds = row.elapsed_us / 1e6
                self._metrics.answered(served.name, row.tier, seconds, logged=kept, reason=row.reason)
                if not asked.answer.done():
                    asked.answer.set_result(Given(row.value, row.tier, row.reason, row.version, row.id, kept))

        if failure or self._syncing is None:
            give(not failure)
        else:
            self._syncing.after(min(asked.deadline for asked in group), give)


def _by_model(group: Sequence[Asked]) -> list[list[Asked]]:
    models: dict[int, list[Asked]] = {}
    for asked in group:
        models.setdefault(id(asked.served), []).append(asked)
    return list(models.values())
