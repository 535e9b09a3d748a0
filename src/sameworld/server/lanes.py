"""The two lanes. Native: library trees without a user's Python run on the event loop. Guarded: everything else runs in its own killable process."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.server.guarded_child import GuardedChild, Origin
from sameworld.server.guarded_process import read_batch, write_batch
from sameworld.serving.breaker import Breaker, failed, succeeded
from sameworld.training.bundle import Bundle
from sameworld.training.fitted import Scorer

Columns = Mapping[str, pa.Array]
Scored = tuple[dict[str, pa.Array], NDArray[np.float64]]

_LENGTH = struct.Struct("<I")
_START_SECONDS = 60.0
_GRACE = 4.0
_MEASUREMENTS = 7
LONGEST_NATIVE_SECONDS = 0.005
"""What a native model may take for one row: so long it keeps the event loop from all others."""
STARTING = "its process is starting"
_log = logging.getLogger(__name__)


class LaneError(Exception):
    """Why a model did not answer."""


class EndedError(LaneError):
    """It went wrong in a way after which its process begins anew."""


class DeadlineError(LaneError):
    """Its turn did not come in time: nothing the model did."""


class Scores(Protocol):
    """What answers from feature columns."""

    def scores(self, columns: Columns) -> NDArray[np.float64]: ...


class NativeLane:
    """Evaluates features and scores on the event loop.

    Args:
        row_seconds: what one row took when the bundle was loaded.
    """

    settled = True

    def __init__(self, row_seconds: float) -> None:
        self.row_seconds = row_seconds


def choose(
    bundle: Bundle, origin: Origin, registry: str, world: str | None, memory_bytes: int, part: int = 0
) -> NativeLane | GuardedLane:
    """Give the lane of a bundle's model, or of one of its fallbacks that see features (the first is 1): native for a library's model that is quick enough to share the event loop, measured here; guarded for everything else."""
    deadline = bundle.model.service.deadline_seconds
    own = bundle.parts[part - 1] if part else None
    scorer = own.scorer if own else bundle.scorer
    if (own.how.native if own else bundle.description.native) and not _is_left(scorer):
        seconds = one_row_seconds(bundle, scorer)
        if seconds <= min(LONGEST_NATIVE_SECONDS, deadline / 2):
            return NativeLane(seconds)
        _log.warning(
            "%s of model %s is native but takes %.1f ms for one row: it would keep the event loop from the others, so it is guarded",
            f"fallback {part}" if part else "the estimator",
            bundle.model.name,
            seconds * 1e3,
        )
    return GuardedLane(bundle, origin, registry, world, deadline, memory_bytes, part)


def one_row_seconds(bundle: Bundle, scorer: Scores | None = None) -> float:
    """Measure what a loaded bundle, or what answers in one of its fallbacks, takes to encode and score one of its self-test rows; or as many as a request may carry candidates.

    The least of several times, since machines stall.
    """
    assert bundle.selftest is not None
    ranking = bundle.model.ranking
    rows = np.arange(1 if ranking is None else ranking.most) % bundle.selftest.num_rows
    columns = {name: bundle.selftest[name].combine_chunks().take(pa.array(rows)) for name in bundle.types}
    taken: list[float] = []
    for _ in range(_MEASUREMENTS):
        started = time.perf_counter()
        (scorer or bundle).scores(columns)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _is_left(scorer: Scores) -> bool:
    """Whether only the library could answer, and is not here: its flat trees were found wanting."""
    return isinstance(scorer, Scorer) and not scorer.is_loaded


class GuardedLane:
    """Keeps one process alive that evaluates features and scores; kills it when it does not answer.

    Args:
        bundle: which model.
        origin: starts the process.
        registry: where the process loads it from.
        world: the world file, for functions of its own.
        deadline_seconds: of the model; the process is killed when it takes several times as long.
        memory_bytes: how much more than at its start it may take.
        part: which fallback of the model's answers there (the first is 1); 0 is the model itself.
    """

    def __init__(
        self,
        bundle: Bundle,
        origin: Origin,
        registry: str,
        world: str | None,
        deadline_seconds: float,
        memory_bytes: int,
        part: int = 0,
    ) -> None:
        self._origin = origin
        self._arguments = [
            registry,
            bundle.address,
            str(part),
            str(memory_bytes),
            *([world] if world else []),
        ]
        self._name = f"{bundle.model.name}, fallback {part}" if part else bundle.model.name
        self._grace = max(_GRACE * deadline_seconds, 0.2)
        self._process: GuardedChild | None = None
        self._busy = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self.breaker = Breaker()
        self.ready = False
        self.settled = (
            False  # True once its process has started, or has failed to: nothing else waits for it then
        )
        self.restarts = -1
        self._stopping = False
        self.asked_at = 0.0  # seconds on the steady clock; when it was last asked and could not answer
        self.wake: Callable[[], str] = lambda: STARTING
        """Told when it is asked and keeps no process; gives the reason why it does not answer now."""

    @property
    def kept(self) -> bool:
        """Whether a process is kept alive."""
        return self._keeper is not None and not self._stopping

    @property
    def pid(self) -> int:
        """The process, once it is ready."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Begin to keep a process alive, where none is."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the process; it may be started again."""
        if self._keeper is None or self._stopping:
            return
        self._stopping = True
        self.ready = self.settled = False
        try:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            await self._kill()
        finally:
            self._keeper, self._stopping, self.breaker = None, False, Breaker()

    async def _keep(self) -> None:
        while True:
            pause = self.breaker.open_until - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            try:
                await self._start()
            except (TimeoutError, LaneError, OSError, asyncio.IncompleteReadError) as error:
                self._fail(f"its process did not start: {error}")
                await self._kill()
                continue
            assert self._process is not None
            await self._process.ended()
            if self.ready:
                self._fail("its process ended")
            self.ready = False

    def _fail(self, reason: str) -> None:
        self.ready = False
        self.settled = True
        first = reason.partition("\n")[0]
        if first != self.breaker.reason:
            _log.warning("model %s: %s", self._name, reason)
        self.breaker = failed(self.breaker, time.monotonic(), first, fatal=True)

    async def _start(self) -> None:
        self.restarts += 1
        self._process = await self._origin.child(self._arguments)
        await asyncio.wait_for(self._reply(), _START_SECONDS)
        self.ready = self.settled = True

    async def _kill(self) -> None:
        if self._process is not None:
            await self._process.kill()

    async def _reply(self) -> bytes:
        assert self._process is not None
        (length,) = _LENGTH.unpack(await self._process.read(4))
        reply = await self._process.read(length)
        if reply[:1] == b"\0":
            return reply[1:]
        said = reply[1:].decode(errors="replace")
        raise EndedError(said) if reply[:1] == b"\2" else LaneError(said)

    def refusal(self, now: float) -> str:
        """Say why nothing can be asked of it at a moment (seconds, `time.monotonic`); nothing when something can."""
        if self.ready and self.breaker.allows(now):
            return ""
        self.asked_at = time.perf_counter()
        return (self.breaker.reason or STARTING) if self.kept else self.wake()

    async def score(self, aggregates: Columns, fields: Columns, *, wait_seconds: float) -> Scored:
        """Give feature columns and answers; the caller may go away meanwhile, the process is judged here.

        Args:
            aggregates, fields: as for `evaluate`.
            wait_seconds: how long to wait for those before. Whose turn comes later than that is not asked for: its caller has gone.

        Raises:
            LaneError: the model raised, or its process is not there.
        """
        if refusal := self.refusal(time.monotonic()):
            raise LaneError(refusal)
        try:
            async with asyncio.timeout(wait_seconds):
                await self._busy.acquire()
        except TimeoutError:
            raise DeadlineError("deadline") from None
        try:
            if not self.ready:
                raise LaneError(self.refusal(time.monotonic()))
            assert self._process is not None
            frame = write_batch(
                {**{"a" + n: a for n, a in aggregates.items()}, **{"f" + n: f for n, f in fields.items()}}
            )
            self._process.write(_LENGTH.pack(len(frame)) + frame)
            try:
                reply = await asyncio.wait_for(self._reply(), self._grace)
            except TimeoutError:
                self._fail(f"it did not answer within {self._grace * 1000:.0f} ms and was killed")
                await self._kill()
                raise LaneError(self.breaker.reason) from None
            except asyncio.IncompleteReadError:
                self._fail("its process died")
                raise LaneError(self.breaker.reason) from None
            except EndedError as error:
                self._fail(str(error))
                await self._kill()
                raise
            except LaneError as error:
                self.breaker = failed(self.breaker, time.monotonic(), str(error))
                raise
        finally:
            self._busy.release()
        self.breaker = succeeded(self.breaker)
        batch = read_batch(reply)
        columns = {name[1:]: batch.column(name) for name in batch.schema.names if name[0] == "c"}
        return columns, batch.column("s").to_numpy(zero_copy_only=False)


Lane = NativeLane | GuardedLane
