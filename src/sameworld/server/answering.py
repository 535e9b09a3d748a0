"""Requests -> answers: micro-batches in turns of the event loop, one snapshot and one moment each, a deadline for every request, and a log row before it goes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sameworld.asof.column import ArrowColumn
from sameworld.asof.plan import Grouping
from sameworld.definitions.fallbacks import MODEL, LastKnown
from sameworld.errors import ReplayOrderError
from sameworld.server.asked import Asked, Given, Seen, alike, different, rows_of
from sameworld.server.lanes import DeadlineError, GuardedLane, LaneError, NativeLane
from sameworld.server.metrics import Metrics
from sameworld.server.ranks import Candidate
from sameworld.server.rechecking import Rechecking
from sameworld.server.requests import Carried
from sameworld.server.served import Served
from sameworld.server.served_tier import ServedTier
from sameworld.server.syncing import Syncing
from sameworld.server.turns import DEADLINE, Turns
from sameworld.serving.breaker import Breaker, failed, succeeded
from sameworld.serving.tiers import (
    NONE,
    Answer,
    Known,
    Replaced,
    choose,
    learnt,
    replaced,
    reserved,
    with_reason,
)
from sameworld.stores.online import OnlineStore, Snapshot
from sameworld.stores.prediction import KEPT_ANSWER, LAST_ANSWER, Prediction
from sameworld.stores.prediction_log import PredictionLog

_T = TypeVar("_T")
_GATHERING_SECONDS = 0.02
LOADING = "loading"
"""The reason of answers that fall back while a model is read from its bundle."""


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
        self._sources: dict[str, Breaker] = {}
        self.rechecking = Rechecking(metrics)
        self._turns: Turns[Asked] = Turns(self._turn, self._shed)

    def ask(
        self,
        served: Served,
        request: list[Any] | Carried,
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
        deadline = arrived + min(served.deadline, within_seconds)
        if isinstance(request, Carried):
            asked = Asked(served, request.fields, at, arrived, deadline, answer, served.line)
            asked.candidates = [Candidate(fields) for fields in request.candidates]
            asked.rows, asked.top = len(asked.candidates), request.top
            if not asked.candidates:
                self._give_nothing(asked)
                return answer
        else:
            asked = Asked(served, request, at, arrived, deadline, answer, served.line)
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

    def _give_nothing(self, asked: Asked) -> None:
        """Answer a request without candidates: there is nothing to read or to decide."""
        seen = Seen([asked], (), asked.at or self._store.clock.now())
        self._give(seen, [asked], [_about(asked, (), MODEL, "")])

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._flushing = False
        by_moment: dict[int | None, list[Asked]] = {}
        for asked in pending:
            by_moment.setdefault(asked.at, []).append(asked)
        for at in sorted(by_moment, key=lambda at: at or 0):
            self._turn(by_moment[at], at)

    def _turn(self, batch: list[Asked], at: int | None = None) -> None:
        try:
            self._answer(at, batch)
        except Exception as error:  # noqa: BLE001 # nobody may be left waiting for an answer that nobody makes
            self._metrics.broken("answering", f"{type(error).__name__}: {error}")
            for own in _alike([asked for asked in batch if not asked.given]):
                self._unread(own, f"server: {_told(error)}")
                self._turns.done(own[0].line, own)

    def _answer(self, at: int | None, batch: list[Asked]) -> None:
        for own in _alike(batch):
            served = own[0].served
            served.asked_at = own[0].arrived
            # Where the model runs in a process, only a fallback of it is missing.
            reason = "" if served.loaded else self._load(served)
            if not served.tiers[0].loaded:
                self._unread(own, reason)
                self._turns.done(own[0].line, own)
        batch = [asked for asked in batch if not asked.given]
        if not batch:
            return
        started = time.perf_counter()
        seen = self._read(at, batch)
        reading = (time.perf_counter() - started) / sum(asked.rows for asked in batch)
        for each in seen:
            each.reading = reading
            for own in _alike(each.group):
                self._next(each, own, own[0].tried, own[0].reason)
                line = own[0].line
                self._turns.done(line, [asked for asked in own if asked.given])

    def _shed(self, group: Sequence[Asked], reason: str) -> None:
        """Do without the tier that requests of one model wait for, or that has them and does not answer."""
        served = group[0].served
        for own in _alike([asked for asked in group if not asked.given]):
            seen, tried = own[0].seen, max(own[0].tried, 0)
            why = with_reason(own[0].reason, served.tiers[tried].name, reason)
            if seen is not None:
                self._next(seen, own, tried, why)
            elif own[0].line is served.line and served.second is not None:
                for asked in own:
                    asked.tried, asked.reason, asked.line = 0, why, served.second
                    self._turns.add(served.second, asked)
            else:
                self._unread(own, why)

    def _unread(self, own: list[Asked], reason: str) -> None:
        """Answer from the requests alone: nothing was read for them, and there is no time for it."""
        seen = Seen(own, own, own[0].at or self._store.clock.now(), store=reason)
        served = own[0].served
        first = next(
            (place for place, tier in enumerate(served.tiers) if tier.lane is None), len(served.tiers)
        )
        self._next(seen, own, first - 1, reason)

    def _read(self, at: int | None, batch: Sequence[Asked]) -> list[Seen]:
        """Open the snapshot, take the moment, and read what the models need: once for those with the same features."""
        sharing: dict[str, list[Asked]] = {}
        for asked in batch:
            sharing.setdefault(asked.served.shares, []).append(asked)
        moment = at if at is not None else self._store.clock.now()
        seen = [Seen(group, different(rows_of(group)), moment) for group in sharing.values()]
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
                return []
            with self._store.snapshot(lambda: map(_asked, seen), at) as snapshot:
                t = snapshot.moment() if at is None else at
                for each in seen:
                    each.t, each.sequence = t, snapshot.sequence
                    self._read_sources(snapshot, each)
            self._metrics.worked("store")
        except Exception as error:  # noqa: BLE001 # whatever breaks in the store, the caller gets the declared fallback and it is counted
            self._metrics.broken("store", _told(error))
            for each in seen:
                each.store = f"store: {type(error).__name__}: {error}"
        return seen

    def _read_sources(self, snapshot: Snapshot, seen: Seen) -> None:
        """Read source by source: one that breaks, or is kept out because it did, does not keep the others from being read."""
        served = seen.group[0].served
        unfilled = snapshot.unfilled(served.groupings)
        if unfilled is not None:
            self._metrics.broken("store", unfilled.what)
            seen.store = f"store: StoreError: {unfilled}"
            return
        latest = snapshot.latest()
        _, keys = _asked(seen)
        for name, groupings in served.by_source.items():
            content = groupings[0].source.content
            heard = latest.get(content)
            seen.ages[name] = None if heard is None else seen.t - heard
            breaker = self._sources.get(content, Breaker())
            if not breaker.allows(time.monotonic()):
                seen.broken[name] = breaker.reason
                continue
            try:
                seen.values.update(snapshot.columns(groupings, keys, seen.t))
            except Exception as error:  # noqa: BLE001 # see _read
                seen.broken[name] = _told(error)
                self._metrics.broken(f"source {name}", seen.broken[name])
                self._sources[content] = failed(breaker, time.monotonic(), seen.broken[name])
            else:
                if breaker.failures:
                    self._metrics.worked(f"source {name}")
                self._sources[content] = succeeded(breaker)

    def _next(self, seen: Seen, own: list[Asked], after: int = -1, reason: str = "") -> None:
        """Let the first tier after `after` whose needs are met answer one model's requests; what it leaves goes on to the next."""
        served = own[0].served
        now = time.perf_counter()
        late = [asked for asked in own if now > asked.deadline]
        if late and len(late) < len(own):
            self._next(seen, late, after, reason)
            own = [asked for asked in own if now <= asked.deadline]
        known = seen.known(served, min(asked.deadline for asked in own) - now)
        choice = choose(served.plan, known, after=after, reason=reason)
        for tier in served.tiers[after + 1 : choice.tier]:
            if tier.takes > known.left > 0:
                tier.takes = learnt(tier.takes, 0.0)
        if choice.tier is None:
            self._give(seen, own, [_about(asked, [0.0] * asked.rows, NONE, choice.reason) for asked in own])
            return
        tier = served.tiers[choice.tier]
        nulls = replaced(tier.tier, known)
        match tier.lane:
            case None:
                self._look_up(seen, own, tier, choice.reason)
            case NativeLane():
                self._native(seen, own, tier, nulls, choice.reason)
            case GuardedLane() as lane:
                for asked in own:
                    asked.seen, asked.tried, asked.reason = seen, choice.tier, choice.reason
                line = own[0].line
                if own[0].at is not None or tier.lane is not line.lane:  # else the line watches it already
                    self._turns.watch(line, own)
                line.margin = self._reserved(served, tier, known)
                task = asyncio.get_running_loop().create_task(
                    self._guarded(seen, own, tier, lane, nulls, choice.reason)
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _reserved(self, served: Served, tier: ServedTier, known: Known) -> float:
        """Give how long before the deadline a tier is given up."""
        following = choose(served.plan, known, after=tier.number).tier
        if following is None:
            return 0.0
        return reserved(served.plan[following], served.tiers[following].takes, served.deadline)

    def _look_up(self, seen: Seen, own: list[Asked], tier: ServedTier, reason: str) -> None:
        """Answer from the requests' fields alone."""
        served = own[0].served
        fallback = served.bundle.model.fallbacks[tier.number - 1]
        for asked in own:
            repeated = None
            said: list[float] = []
            try:
                if isinstance(fallback, LastKnown):
                    answers, places = served.last[tier.number]
                    known = answers.of(_entity(asked, places), seen.t, fallback.microseconds)
                    if known is None:
                        raise LookupError("no answer within its age")
                    value, repeated = known
                    said.append(value)
                else:
                    for row in rows_of([asked]):
                        fields = dict(zip(served.fields, row.fields, strict=True))
                        said.append(served.bundle.fallback(tier.number - 1, fields))
            except (LookupError, TypeError, ValueError, StopIteration) as error:
                why = str(error) if isinstance(fallback, LastKnown) else repr(error)
                self._next(seen, [asked], tier.number, with_reason(reason, tier.name, why))
                continue
            answer = _about(asked, said, tier.name, reason)
            if math.isfinite(answer.value):
                self._give(seen, [asked], [answer], repeated=repeated)
            else:
                self._next(seen, [asked], tier.number, reason)

    def _native(
        self, seen: Seen, own: list[Asked], tier: ServedTier, nulls: Sequence[Replaced], reason: str
    ) -> None:
        """Answer on the event loop."""
        served = own[0].served
        began = time.perf_counter()
        said = "features: {}".format
        try:
            vectors = seen.vectors(tier, nulls)
            said = tier.says
            rows = seen.matrix(tier, nulls)
            mine, once, back = alike(rows_of(own), seen.different)
            if once is not None:
                rows, vectors = rows[once], [vectors[place] for place in once.tolist()]
            if served.ranks is None:
                says = (tier.scorer or served.bundle).scores_of
            else:
                says = (tier.scorer or served.bundle.scorer).raw_of
            ages: list[int | None] = []
            if served.kept is None:
                values = says(rows)
            else:
                values, ages = served.kept.scores(tier.number, says, rows, seen.t)
            once_said = values
            if back is not None:
                values = _spread(values, back, len(mine))
                vectors = [vectors[place] for place in back.tolist()]
            if ages:
                _note_kept(own, ages if back is None else [ages[place] for place in back.tolist()])
        except Exception as error:  # noqa: BLE001 # whatever breaks, the caller gets the declared fallback and it is counted
            self._fail(seen, own, tier, reason, said(_told(error)))
            return
        self._judge(seen, own, tier, nulls, reason, values, vectors, began)
        now = time.perf_counter()
        own[0].line.learn(_rows(own), seen.reading * _rows(own) + now - began, now)
        if now >= tier.recheck_at:
            self.rechecking.note(served, tier, rows, once_said, now)

    async def _guarded(
        self,
        seen: Seen,
        own: list[Asked],
        tier: ServedTier,
        lane: GuardedLane,
        nulls: Sequence[Replaced],
        reason: str,
    ) -> None:
        """Let a process answer what it answers in time; the line's timer has the next tier answer the rest meanwhile."""
        line, rows = own[0].line, rows_of(own)
        mine, _, back = alike(rows, seen.different)
        began = time.perf_counter()
        left = max(asked.deadline for asked in own) - began
        why = ""
        vectors: list[list[Any]] = []
        values: NDArray[np.float64] | None = None
        try:
            inputs = (
                {name: column.arrow() for name, column in columns.items()}
                for columns in seen.inputs(tier, nulls, mine)
            )
            arrays, values = await lane.score(*inputs, wait_seconds=left)
            columns = {name: ArrowColumn(array) for name, array in arrays.items()}
            vectors = tier.vectors(columns, own[0].served.columns, len(mine))
            if back is not None:
                values = _spread(values, back, len(mine))
                vectors = [vectors[place] for place in back.tolist()]
            now = time.perf_counter()
            line.learn(len(rows), now - began, now)
        except Exception as error:  # noqa: BLE001 # see _native
            values, why = (
                None,
                DEADLINE if isinstance(error, DeadlineError) else tier.says(_told(error)),
            )
        finally:
            self._turns.done(line, own)
        # Whoever was answered, or has gone on to a later tier, is not waiting here any more.
        waiting = [one for one in own if not one.given and one.tried == tier.number]
        if not waiting:
            return
        if values is None:
            self._next(seen, waiting, tier.number, with_reason(reason, tier.name, why))
        elif values.shape != (len(rows),):
            said = tier.says(_shape(values, own))
            self._next(seen, waiting, tier.number, with_reason(reason, tier.name, said))
        else:
            if len(waiting) < len(own):
                still = {id(one) for one in waiting}
                parts = zip(own, _of_each(own, range(len(rows))), strict=True)
                places = [place for one, part in parts if id(one) in still for place in part]
                values, vectors = values[places], [vectors[place] for place in places]
            self._judge(seen, waiting, tier, nulls, reason, values, vectors, began)

    def _fail(self, seen: Seen, own: list[Asked], tier: ServedTier, reason: str, why: str) -> None:
        """Note that a tier could not answer at all, and let the next one try."""
        tier.failed(why)
        self._next(seen, own, tier.number, with_reason(reason, tier.name, why))

    def _judge(
        self,
        seen: Seen,
        own: list[Asked],
        tier: ServedTier,
        nulls: Sequence[Replaced],
        reason: str,
        values: NDArray[np.float64],
        vectors: Sequence[list[Any]],
        began: float,
    ) -> None:
        """Give what is an answer and in time; the rest goes on to the next tier."""
        served = own[0].served
        if values.shape != (_rows(own),):
            self._fail(seen, own, tier, reason, tier.says(_shape(values, own)))
            return
        now = time.perf_counter()
        tier.took(now - began)
        given: list[int] = []
        left: dict[str, list[Asked]] = {}
        if served.ranks is None:
            answers = [Answer(value, tier.name, reason) for value in values.tolist()]
        else:
            said, meant = (_of_each(own, each.tolist()) for each in (values, tier.calibrated(values)))
            each = zip(own, said, meant, strict=True)
            answers = [_about(asked, said, tier.name, reason, values) for asked, said, values in each]
            vectors = [list(part) for part in _of_each(own, vectors)]
        for place, (asked, answer) in enumerate(zip(own, answers, strict=True)):
            if not math.isfinite(answer.value):
                left.setdefault(tier.says(f"it gave {answer.value}"), []).append(asked)
            elif now > asked.deadline:
                asked.kept = None
                left.setdefault("deadline", []).append(asked)
            else:
                given.append(place)
        if given:
            if tier.name == MODEL:
                for last, places in served.last.values():
                    for place in given:
                        last.note(_entity(own[place], places), answers[place].value, seen.t)
            self._give(
                seen,
                [own[place] for place in given],
                [answers[place] for place in given],
                [vectors[place] for place in given],
                [column for null in nulls for column in null.columns],
            )
        for why, asked in left.items():
            self._next(seen, asked, tier.number, with_reason(reason, tier.name, why))

    def _give(
        self,
        seen: Seen,
        group: Sequence[Asked],
        answers: Sequence[Answer],
        vectors: Sequence[list[Any]] | None = None,
        defaults: list[str] | None = None,
        repeated: int | None = None,
    ) -> None:
        """Log a batch, then let its callers have it."""
        served = group[0].served
        now = time.perf_counter()
        ages = None if seen.store or not seen.ages else seen.ages
        if repeated is not None:
            ages = {**(ages or {}), LAST_ANSWER: repeated}
        rows = [
            Prediction(
                self._log.next_id(), served.name, served.bundle.address, seen.t, seen.sequence, answer.value, answer.tier, answer.reason, asked.fields,
                vectors[number] if vectors is not None else None, asked.at is not None, int((now - asked.arrived) * 1e6),
                ages=ages if asked.kept is None else {**(ages or {}), KEPT_ANSWER: asked.kept}, defaults=defaults or None, ranked=answer.ranked,
            )
            for number, (asked, answer) in enumerate(zip(group, answers, strict=True))
        ]  # fmt: skip
        failure = self._log.write(rows, served.shape)
        if failure:
            self._metrics.broken("prediction log", failure)
        else:
            self._metrics.worked("prediction log")
        for asked in group:
            asked.given = True

        def give(kept: bool) -> None:
            self._metrics.answered(
                served.name, answers[0].tier, answers[0].reason, [row.elapsed_us for row in rows], logged=kept
            )
            for asked, row in zip(group, rows, strict=True):
                if not asked.answer.done():
                    told = Given(row.value, row.tier, row.reason, row.version, row.id, kept)
                    if row.ranked is not None and served.ranks is not None:
                        told.ranking = served.ranks.listed(row.ranked, asked.top)
                    asked.answer.set_result(told)

        if failure or self._syncing is None:
            give(not failure)
        else:
            self._syncing.after(min(asked.deadline for asked in group), give)


def _about(
    asked: Asked, said: Sequence[float], tier: str, reason: str, values: Sequence[float] | None = None
) -> Answer:
    """Give the answer to a request from what is said of its rows, and from what that means where it is something else."""
    if asked.candidates is None or asked.served.ranks is None:
        return Answer(said[0], tier, reason)
    return asked.served.ranks.answer(asked.candidates, said, said if values is None else values, tier, reason)


def _rows(own: Sequence[Asked]) -> int:
    return len(own) if own[0].candidates is None else sum(asked.rows for asked in own)


def _of_each(own: Sequence[Asked], rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Give the rows of each request, from those of all."""
    end = 0
    for asked in own:
        yield rows[end : end + asked.rows]
        end += asked.rows


def _spread(values: NDArray[np.float64], back: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Give every row the answer of the different one that it is alike."""
    if values.shape != (count,):
        raise LaneError(f"it gave shape {values.shape} for {count} different rows")
    return values[back]


def _note_kept(own: Sequence[Asked], ages: Sequence[int | None]) -> None:
    for asked, part in zip(own, _of_each(own, ages), strict=True):
        asked.kept = max((age for age in part if age is not None), default=None)


def _shape(values: NDArray[np.float64], own: Sequence[Asked]) -> str:
    what = "requests" if own[0].candidates is None else "candidates"
    return f"it gave shape {values.shape} for {_rows(own)} {what}"


def _asked(seen: Seen) -> tuple[Sequence[Grouping], dict[str, list[Any]]]:
    """Give what is read, and for which fields of the different requests."""
    served = seen.group[0].served
    return served.groupings, {
        key: [row.fields[i] for row in seen.different] for key, i in served.keys.items()
    }


def _entity(asked: Asked, places: Sequence[int]) -> tuple[Any, ...]:
    return tuple(asked.fields[place] for place in places)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LaneError) else f"{type(error).__name__}: {error}"


def _alike(group: list[Asked]) -> list[list[Asked]]:
    """Give requests of one model together that wait in one line and have come equally far."""
    first = group[0] if group else None
    if first is not None and all(
        asked.served is first.served
        and asked.line is first.line
        and asked.seen is first.seen
        and asked.tried == first.tried
        and asked.reason == first.reason
        for asked in group
    ):
        return [group]
    alike: dict[Any, list[Asked]] = {}
    for asked in group:
        key = (id(asked.served), id(asked.line), id(asked.seen), asked.tried, asked.reason)
        alike.setdefault(key, []).append(asked)
    return list(alike.values())
