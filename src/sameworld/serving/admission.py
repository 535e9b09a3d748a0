"""What can be answered in time: a learnt law of what a batch costs, and how the time there is is shared between the models that want it.

What cannot be answered in time is known before it is tried, and goes to a cheaper tier at once. All times are seconds; moments are of one steady clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec

_REMEMBERED = 0.95  # what an observation still counts after the next one: the law follows some twenty batches
_OUTLIER = (
    8.0  # an observation counts for at most so many times what its rows would cost one by one: machines stall
)
_LEAST = 1e-4  # below this, what was expected is no measure of an outlier
_UNCERTAINTY = 1.2  # what is asked of the law is this much more than what it says
_STALE = 0.5
_NARROW = 0.01  # sizes of batches that differ by less than a tenth say nothing of what a row costs


class Law(msgspec.Struct, frozen=True, gc=False):
    """What a batch costs: `fixed + each * rows` seconds, and the sums it was learnt from.

    Args:
        fixed, each: the law; nothing until something was observed.
        at: the moment of the last observation.
        weight, rows, seconds, squares, products: sums over observations, older ones counting less.
    """

    fixed: float = 0.0
    each: float = 0.0
    at: float = float("-inf")
    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def cost(self, rows: int) -> float:
        """Give the seconds that so many rows are expected to take; 0 for none."""
        return _UNCERTAINTY * (self.fixed + self.each * rows) if rows else 0.0

    @property
    def spread(self) -> float:
        """How different the batches' sizes were: the square of their coefficient of variation."""
        return self.weight * self.squares / (self.rows * self.rows) - 1.0 if self.rows else 0.0

    @property
    def trial(self) -> int:
        """The rows that a batch may have to teach something: where all were of about one size, the price of a row is a guess, and half as many again tell."""
        return int(1.5 * self.rows / self.weight) + 1 if self.weight and self.spread < _NARROW else 1

    def within(self, seconds: float) -> int:
        """Give how many rows cost at most so much."""
        left = seconds / _UNCERTAINTY - self.fixed
        if left <= 0.0:
            return 0
        return int(left / self.each) if self.each * 1e9 > left else 10**9


def by_the_row(seconds: float) -> Law:
    """Give the law of a model of which only one row was measured: until batches say otherwise, each row costs as much."""
    return Law(0.0, seconds, float("-inf"), 1.0, 1.0, seconds, 1.0, seconds)


def learnt(law: Law, rows: int, seconds: float, at: float) -> Law:
    """Give the law after one more batch: least squares over all that is remembered; neither part is ever negative."""
    if law.weight:
        seconds = min(seconds, _OUTLIER * max((law.fixed + law.each) * rows, _LEAST))
    weight = _REMEMBERED * law.weight + 1.0
    x = _REMEMBERED * law.rows + rows
    y = _REMEMBERED * law.seconds + seconds
    xx = _REMEMBERED * law.squares + rows * rows
    xy = _REMEMBERED * law.products + rows * seconds
    spread = weight * xx - x * x
    if spread > _NARROW * x * x:
        each = min(max((weight * xy - x * y) / spread, 0.0), y / x)
    else:  # batches of one size do not say what belongs to a row: keep what is known of it
        each = min(law.each, y / x)
    return Law(max((y - each * x) / weight, 0.0), each, at, weight, x, y, xx, xy)


class Line(msgspec.Struct, frozen=True, gc=False):
    """One model's waiting requests.

    Args:
        law: what they cost.
        deadlines: when each has to be answered, in their order.
        rows: how many rows each has; one where nothing is said.
    """

    law: Law
    deadlines: Sequence[float]
    rows: Sequence[int] | None = None

    @property
    def needs(self) -> float:
        """The seconds that all of them are expected to take."""
        return self.law.cost(len(self.deadlines) if self.rows is None else sum(self.rows))

    def rows_at(self, place: int) -> int:
        """Give how many rows one of them has."""
        return 1 if self.rows is None else self.rows[place]


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What to do with a line now: answer the first `take`, shed those at these places, let the others wait."""

    take: int
    shed: frozenset[int] = frozenset()


def share(lines: Sequence[Line], now: float, turn_seconds: float) -> list[Turn]:
    """Share one turn of the event loop between models; one `Turn` a line.

    Each line gets what it needs or an equal part of what the others leave, whichever is less, and at least one row, or a few more to learn from. So the row that is i-th in its line
    will have been answered when each other line has had as much as it, or all it wants: what that is too late for is shed.

    Args:
        lines: none is empty. In a turn that has more lines than time, the first get theirs and the others wait.
        now: the moment.
        turn_seconds: how long the loop may be kept.
    """
    needs = [line.needs for line in lines]
    total = sum(needs)
    ordered = sorted(needs)
    sums = [0.0, *accumulate(ordered)]
    turns = [_keep(line, ordered, sums, now) for line in lines]
    if total <= turn_seconds:
        return turns
    allowed = _level(ordered, turn_seconds)
    left = turn_seconds
    result: list[Turn] = []
    for line, turn in zip(lines, turns, strict=True):
        take, rows = (
            _first(line, turn, max(line.law.within(allowed), line.law.trial)) if left > 0.0 else (0, 0)
        )
        left -= line.law.cost(rows)
        result.append(Turn(take, turn.shed))
    return result


def _first(line: Line, turn: Turn, rows: int) -> tuple[int, int]:
    """Give how many of those that are kept have so many rows together, at least one of them; and how many rows they have."""
    if line.rows is None:
        take = min(turn.take, rows)
        return take, take
    kept = (count for place, count in enumerate(line.rows) if place not in turn.shed)
    sums = list(accumulate(kept))
    take = min(turn.take, max(bisect_right(sums, rows), 1))
    return take, sums[take - 1] if take else 0


def _keep(line: Line, needs: Sequence[float], sums: Sequence[float], now: float) -> Turn:
    """Shed of one line what cannot be in time; `take` is all that is left.

    Args:
        needs: what each line needs, ascending.
        sums: of the first 0, 1, 2 ... of them.
    """
    count = len(line.deadlines)
    if now + sums[-1] <= min(line.deadlines):
        return Turn(count)
    shed: set[int] = set()
    # A law that nothing has tested for a while may be wrong: one row tests it.
    tests = now - line.law.at > _STALE
    kept = 0
    for place, deadline in enumerate(line.deadlines):
        own = line.rows_at(place)
        cost = line.law.cost(kept + own)
        smaller = bisect_right(needs, cost)
        done = now + sums[smaller] + cost * (len(needs) - smaller)
        if done > deadline and not (tests and kept == 0 and now < deadline):
            shed.add(place)
        else:
            kept += own
    return Turn(count - len(shed), frozenset(shed))


def _level(needs: Sequence[float], seconds: float) -> float:
    """Give the level up to which everybody gets what they need (ascending), so that all get `seconds` together."""
    for number, need in enumerate(needs):
        level = seconds / (len(needs) - number)
        if need >= level:
            return level
        seconds -= need
    return seconds


def wait(law: Law, in_flight: int, since: float, now: float) -> float:
    """Give how long what a process has will still take: what the law says, or, when it should have been done, as long again as it is late."""
    if not in_flight:
        return 0.0
    return abs(since + law.cost(in_flight) - now)


def in_time(law: Law, ahead: int, deadline: float, now: float, waiting_seconds: float, own: int = 1) -> bool:
    """Whether a request of `own` rows behind `ahead` rows of others of its model, which a process takes when it has done what it has, can be answered by its deadline."""
    return now + waiting_seconds + law.cost(ahead + own) <= deadline or (
        now < deadline and not ahead and not waiting_seconds and now - law.at > _STALE
    )


def batch(line: Line, now: float) -> int:
    """Give how many of those that wait to hand over at once: as many as are done before the first of them has to be; at least one."""
    within = line.law.within(line.deadlines[0] - now)
    return max(_first(line, Turn(len(line.deadlines)), within)[0], 1)
