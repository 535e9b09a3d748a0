"""Counts, as Prometheus reads them: of all the workers behind a port together, whichever of them is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from sameworld.server.counts import Counts
from sameworld.server.incidents import Incidents
from sameworld.server.recent import Recent

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BOUNDS = [*map(floatToGoString, _BUCKETS), "+Inf"]

_PREDICTIONS = "sameworld_predictions"
_UNLOGGED = "sameworld_unlogged_predictions"
_SECONDS = "sameworld_prediction_seconds"
_EVENTS = "sameworld_events"
_REPEATED = "sameworld_repeated_deliveries"
_REFUSED = "sameworld_refused_requests"
_BROKEN = "sameworld_incidents"
_RECHECKED = "sameworld_rechecked_rows"
_SEQUENCE = "sameworld_event_sequence"
_COUNTERS = {
    _PREDICTIONS: ("Answers by model and tier.", ["model", "tier"]),
    _UNLOGGED: ("Answers that could not be logged.", ["model"]),
    _EVENTS: ("Acknowledged events by source.", ["source"]),
    _REPEATED: ("Deliveries that had been taken before.", ["source"]),
    _REFUSED: ("Requests that could not be understood, by status.", ["status"]),
    _BROKEN: ("What broke, by part.", ["part"]),
    _RECHECKED: (
        "Rows that flat trees had answered and their library was asked about, too.",
        ["model", "outcome"],
    ),
}


class Metrics:
    """One server process's counts.

    Args:
        incidents: told of what breaks, and of what works again.
        counts: this process's, and those of the others that are added to them; its own alone by default.
    """

    def __init__(self, incidents: Incidents | None = None, counts: Counts | None = None) -> None:
        self._incidents = incidents or Incidents()
        self._counts = counts or Counts()
        self._is_broken: set[str] = set()
        self._recent: dict[str, Recent] = {}
        self._of: dict[tuple[str, str], tuple[memoryview[float], memoryview[float]]] = {}

    def recent(self, model: str) -> Recent:
        """Give how a model has been doing lately."""
        found = self._recent.get(model)
        if found is None:
            found = self._recent[model] = Recent()
        return found

    def forget(self, model: str) -> None:
        """Forget how a model that is served no more was doing lately; its counts stay."""
        self._recent.pop(model, None)

    def answered(
        self, model: str, tier: str, reason: str, microseconds: Sequence[int], *, logged: bool
    ) -> None:
        """Count answers of one model and tier, and how long each took."""
        found = self._of.get((model, tier))
        if found is None:
            found = self._of[model, tier] = (
                self._counts.of(_PREDICTIONS, model, tier),
                self._counts.of(_SECONDS, model, width=len(_BOUNDS) + 1),
            )
        self.recent(model).answered(tier, reason, microseconds)
        answers, taken = found
        answers[0] += len(microseconds)
        for each in microseconds:
            seconds = each / 1e6
            taken[bisect_left(_BUCKETS, seconds)] += 1
            taken[-1] += seconds
        if not logged:
            self._count(_UNLOGGED, model, by=len(microseconds))

    def took(self, source: str, events: int, *, repeated: bool) -> None:
        self._count(_REPEATED if repeated else _EVENTS, source, by=1 if repeated else events)

    def rechecked(self, model: str, rows: int, *, different: bool) -> None:
        """Count rows that flat trees had answered and their library, too; where one of them differs, all."""
        self._count(_RECHECKED, model, "different" if different else "equal", by=rows)

    def refused(self, status: int) -> None:
        self._count(_REFUSED, str(status))

    def broken(self, part: str, reason: str) -> None:
        """Count a part's failure."""
        self._count(_BROKEN, part)
        self._is_broken.add(part)
        self._incidents.tell("broken", part, reason=reason)

    def worked(self, part: str) -> None:
        """Note that a part does what it should; called for every micro-batch."""
        if part in self._is_broken:
            self._is_broken.discard(part)
            self._incidents.tell("recovered", part)

    def _count(self, *key: str, by: int = 1) -> None:
        self._counts.of(*key)[0] += by

    def text(self, sequence: int | None) -> bytes:
        """Give the counts of all workers in Prometheus's text format, and the last delivery that this one has seen where it is known."""
        return generate_latest(_Collected(self._counts, sequence))  # pyright: ignore[reportArgumentType] # all it asks a registry for is `collect`


@dataclass(frozen=True)
class _Collected:
    counts: Counts
    sequence: int | None

    def collect(self) -> Iterator[Metric]:
        counters: dict[str, Any] = {
            name: CounterMetricFamily(name, said, labels=labels) for name, (said, labels) in _COUNTERS.items()
        }
        seconds = HistogramMetricFamily(
            _SECONDS, "From a request's arrival to its log row.", labels=["model"]
        )
        for (name, *labels), numbers in self.counts.totals().items():
            if name == _SECONDS:
                buckets = list(zip(_BOUNDS, accumulate(numbers[:-1]), strict=True))
                seconds.add_metric(labels, buckets, numbers[-1])
            else:
                counters[name].add_metric(labels, numbers[0])
        yield from (*counters.values(), seconds)
        if self.sequence is not None:
            said = "The last committed delivery that the process which was asked has seen."
            yield GaugeMetricFamily(_SEQUENCE, said, self.sequence)
