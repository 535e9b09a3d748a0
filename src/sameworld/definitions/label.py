"""Labels: what came of a moment, from the outcomes in [t, t + within), known once they have matured."""

from __future__ import annotations

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.availability import Daily, DailyInZone, Delay
from sameworld.definitions.feature import Aggregate, Outcome
from sameworld.definitions.problems import report
from sameworld.definitions.where_defined import caller
from sameworld.definitions.windows import Window
from sameworld.errors import DefinitionError

_DAY = 86_400_000_000


class _LabelOf(msgspec.Struct, frozen=True):
    outcome: Aggregate | Outcome


class Label(_LabelOf, frozen=True, kw_only=True):
    """What came of a moment t: an aggregate (or a comparison of one) over outcomes in [t, t + within).

    Args:
        outcome: for example `arrivals.by("flight_id").last("arr_delay") > 15` (classification) or the aggregate itself (regression).
        within: how long after t outcomes count.
        otherwise: the label of a moment whose outcome never came; without it such a moment is left out.
        settles: how long after t + within the outcomes may still be on their way. It follows from a declared `sw.delay` or `sw.daily` when
            not given; for a source whose rows carry their own available time it is nothing unless declared.
    """

    within: str
    otherwise: bool | float | None = None
    settles: str | None = None

    def __post_init__(self) -> None:
        where = f"label {caller()}".strip()
        try:
            durations.microseconds(self.within, of=where)
            if self.settles is not None:
                durations.microseconds(self.settles, of=where, zero=True)
        except DefinitionError as problem:
            report(problem)
        if not isinstance(self.outcome, Aggregate | Outcome):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    "A label needs an outcome.",
                    where=where,
                    expected="an aggregate over a source's rows, or one compared with a number",
                    found=repr(self.outcome)[:80],
                    do="write for example source.by('id').last('x') > 15.",
                )
            )
        elif self.aggregate.windows != (Window(),):
            report(
                DefinitionError(
                    "A label's outcome has a window of its own.",
                    where=where,
                    found="over=",
                    do="leave over= out: `within` is the window of a label.",
                )
            )

    @property
    def aggregate(self) -> Aggregate:
        """The aggregate behind the outcome."""
        return self.outcome.aggregate if isinstance(self.outcome, Outcome) else self.outcome

    @property
    def within_microseconds(self) -> int:
        return durations.microseconds(self.within, of="a label")

    @property
    def settles_microseconds(self) -> int:
        """How long after t + within the label may still change."""
        if self.settles is not None:
            return durations.microseconds(self.settles, of="a label", zero=True)
        match self.aggregate.source.readable:
            case Delay() as declared:
                return declared.microseconds
            case DailyInZone() as declared:  # whose days are longer when clocks are changed
                return declared.lag_microseconds + 2 * _DAY
            case Daily() as declared:
                return declared.lag_microseconds + _DAY
            case _:
                return 0

    @property
    def binary(self) -> bool:
        """Whether the label is true or false, so that the model's output is a probability."""
        return isinstance(self.outcome, Outcome)
