"""Whose turn it is: one line of waiting requests a model. Native lines share turns of the event loop; a guarded line goes to its process when that is free.

Decisions are in `serving/admission.py`; here are the clock, the loop and the timers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from sameworld.server.lanes import GuardedLane, Lane
from sameworld.serving import admission
from sameworld.serving.admission import Law, batch, by_the_row, in_time, learnt, share, wait

TURN_SECONDS = 0.005
"""How long models may keep the loop before it looks at its connections again."""
OVERLOAD = "overload"
DEADLINE = "deadline"
UNANSWERED = "model: it has not answered in time"
_PATIENCE = 0.001  # the longest that a turn waits for more
_MARGIN = 0.002  # what it takes to answer from a fallback, and what timers are late by
_MOST = 2000  # of one line that a turn looks at
_MOST_SHED = 250  # in one turn: they cost the loop's time, too


class Waits(Protocol):
    """A request as far as lines know it: when it has to be answered, what its caller waits for, and how many rows it has."""

    @property
    def deadline(self) -> float: ...
    @property
    def answer(self) -> asyncio.Future[Any]: ...
    @property
    def rows(self) -> int: ...


Request = TypeVar("Request", bound=Waits)


class Line(Generic[Request]):
    """One model's requests: those that wait, in their order, and those its process has.

    Args:
        lane: the model's.
        most: rows that a request may have; how many each has is looked at where that is more than one.
        margin: seconds that the tier after this one needs, which is left when this one is given up.
    """

    def __init__(self, lane: Lane, most: int = 1) -> None:
        self.lane = lane
        self._most = most
        # What was measured is the longest request there can be.
        self.law = Law() if isinstance(lane, GuardedLane) else by_the_row(lane.row_seconds / most)
        self.waiting: deque[Request] = deque()
        self.fresh = 0
        self.flying: list[Request] = []
        self.since = 0.0
        self.margin = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.armed_for = 0.0

    def rows(self, group: Collection[Request]) -> int:
        """Give how many rows some requests have together."""
        return len(group) if self._most == 1 else sum(asked.rows for asked in group)

    def seen(self) -> admission.Line:
        """Give what is decided by: the first that wait."""
        first = list(islice(self.waiting, _MOST))
        rows = None if self._most == 1 else [asked.rows for asked in first]
        return admission.Line(self.law, [asked.deadline for asked in first], rows)

    def learn(self, rows: int, seconds: float, now: float) -> None:
        """Take note of what a batch cost."""
        self.law = learnt(self.law, rows, seconds, now)


class Turns(Generic[Request]):
    """Takes requests from lines, in turns.

    Args:
        answer: called with the requests of a turn, of all models together.
        fall_back: called with requests of one model that are not asked of it, and why.
    """

    def __init__(
        self,
        answer: Callable[[list[Request]], None],
        fall_back: Callable[[Sequence[Request], str], None],
    ) -> None:
        self._answer = answer
        self._fall_back = fall_back
        self._lines: dict[Line[Request], None] = {}
        self._coming = False
        self._came = 0

    def add(self, line: Line[Request], asked: Request) -> None:
        """Let a request wait for its turn, which comes when the loop has read what has arrived."""
        line.waiting.append(asked)
        line.fresh += 1
        self._came += 1
        self._lines[line] = None
        self._come()

    def done(self, line: Line[Request], group: Iterable[Request]) -> None:
        """Take note that a process has nothing of these any more."""
        gone = {id(asked) for asked in group}
        line.flying = [asked for asked in line.flying if id(asked) not in gone]
        if line.waiting:
            self._lines[line] = None
            self._come()

    def watch(self, line: Line[Request], group: Sequence[Request]) -> None:
        """See that what a process has is answered by its deadline, whatever the process does."""
        line.flying += group
        line.since = time.perf_counter()
        self._arm(line, min(asked.deadline for asked in group))

    def _come(self) -> None:
        if not self._coming:
            self._coming = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._gather, loop, time.perf_counter(), self._came - 1)

    def _gather(self, loop: asyncio.AbstractEventLoop, since: float, came: int) -> None:
        """Let the loop look at its connections again for as long as each look finds more requests, and no longer than what a turn costs however few are in it."""
        now = time.perf_counter()
        if self._came != came and now - since < min(max(line.law.fixed for line in self._lines), _PATIENCE):
            loop.call_soon(self._gather, loop, since, self._came)
        else:
            self._coming = False
            self._turn(now)

    def _turn(self, now: float) -> None:
        native = [line for line in self._lines if not isinstance(line.lane, GuardedLane)]
        seen = [line.seen() for line in native]
        taken: list[Request] = []
        shed: list[tuple[list[Request], str]] = []
        for line, turn in zip(native, share(seen, now, TURN_SECONDS) if seen else (), strict=True):
            first = [line.waiting.popleft() for _ in range(min(_MOST, len(line.waiting)))]
            late = sorted(turn.shed)[:_MOST_SHED]
            kept = [asked for place, asked in enumerate(first) if place not in turn.shed]
            taken += kept[: turn.take]
            left = [first[place] for place in sorted(turn.shed)[_MOST_SHED:]] + kept[turn.take :]
            line.waiting.extendleft(reversed(left))
            shed.append(([first[place] for place in late], OVERLOAD))
            if turn.take:  # who had a turn is last in the next one
                del self._lines[line]
                self._lines[line] = None
        for line in self._lines:
            if isinstance(line.lane, GuardedLane):
                taken += self._guarded(line, line.lane, now, shed)
        self._lines = {line: None for line in self._lines if line.waiting}
        if any(not isinstance(line.lane, GuardedLane) for line in self._lines):
            self._come()
        try:
            for group, reason in shed:
                if group:
                    self._fall_back(group, reason)
        finally:  # whatever is the matter with one model's fallbacks, the others have their turn
            if taken:
                self._answer(taken)

    def _guarded(
        self,
        line: Line[Request],
        lane: GuardedLane,
        now: float,
        shed: list[tuple[list[Request], str]],
    ) -> list[Request]:
        """Give what a process takes now; shed of what is fresh what it cannot take in time."""
        fresh, line.fresh = line.fresh, 0
        if refusal := lane.refusal(time.monotonic()):
            shed.append((list(line.waiting), f"model: {refusal}"))
            line.waiting.clear()
            return []
        taken: list[Request] = []
        if not line.flying and line.waiting:
            count = batch(line.seen(), now)
            taken = [line.waiting.popleft() for _ in range(count)]
            self.watch(line, taken)
        flying = line.rows(line.flying)
        unanswered = wait(line.law, flying, line.since, now)
        overdue = bool(flying) and now > line.since + line.law.cost(flying)
        late: list[Request] = []
        arrived = [line.waiting.pop() for _ in range(min(fresh, len(line.waiting)))][::-1]
        ahead = line.rows(line.waiting)
        for asked in arrived:
            if in_time(line.law, ahead, asked.deadline, now, unanswered, asked.rows):
                line.waiting.append(asked)
                ahead += asked.rows
                self._arm(line, asked.deadline)
            else:
                late.append(asked)
        shed.append((late, UNANSWERED if overdue else OVERLOAD))
        return taken

    def _arm(self, line: Line[Request], deadline: float) -> None:
        if line.timer is not None:
            if line.armed_for <= deadline:
                return
            line.timer.cancel()
        line.armed_for = deadline
        delay = max(deadline - _MARGIN - line.margin - time.perf_counter(), 0.0)
        line.timer = asyncio.get_running_loop().call_later(delay, self._expire, line)

    def _expire(self, line: Line[Request]) -> None:
        """Let a fallback answer whoever cannot wait any longer."""
        line.timer = None
        until = time.perf_counter() + 1.5 * _MARGIN + line.margin
        late = [
            asked
            for asked in (*line.flying, *line.waiting)
            if asked.deadline <= until and not asked.answer.done()
        ]
        line.waiting = deque(asked for asked in line.waiting if asked.deadline > until)
        line.fresh = min(line.fresh, len(line.waiting))
        if late:
            self._fall_back(late, DEADLINE)
        left = [asked.deadline for asked in (*line.flying, *line.waiting) if not asked.answer.done()]
        if left:
            self._arm(line, min(left))
