"""The last answer about each entity, for a bounded number of entities."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class LastAnswers:
    """Remembers the latest answers.

    Args:
        most: how many entities; the one whose answer is the oldest is forgotten first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def note(self, entity: Hashable, value: float, t: int) -> None:
        """Remember an answer of the moment `t`, in microseconds."""
        known = self._answers.get(entity)
        if known is not None and known[1] > t:
            return
        self._answers[entity] = value, t
        self._answers.move_to_end(entity)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def of(self, entity: Hashable, t: int, max_age: int) -> tuple[float, int] | None:
        """Give (value, age in microseconds) at the moment `t`; None where there is none or it is older than `max_age`."""
        known = self._answers.get(entity)
        return None if known is None or not 0 <= t - known[1] <= max_age else (known[0], t - known[1])
