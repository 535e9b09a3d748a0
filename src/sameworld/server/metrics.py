"""Counts, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sameworld.server.incidents import Incidents
from sameworld.server.recent import Recent

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One server process's counts.

    Args:
        incidents: told of what breaks, and of what works again.
    """

    def __init__(self, incidents: Incidents | None = None) -> None:
        self._incidents = incidents or Incidents()
        self._is_broken: set[str] = set()
        self._registry = CollectorRegistry()
        self._recent: dict[str, Recent] = {}
        self._of: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._predictions = Counter(
            "sameworld_predictions", "Answers by model and tier.", ["model", "tier"], registry=self._registry
        )
        self._unlogged = Counter(
            "sameworld_unlogged_predictions",
            "Answers that could not be logged.",
            ["model"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "sameworld_prediction_seconds",
            "From a request's arrival to its log row.",
            ["model"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._events = Counter(
            "sameworld_events", "Acknowledged events by source.", ["source"], registry=self._registry
        )
        self._repeated = Counter(
            "sameworld_repeated_deliveries",
            "Deliveries that had been taken before.",
            ["source"],
            registry=self._registry,
        )
        self._refused = Counter(
            "sameworld_refused_requests",
            "Requests that could not be understood, by status.",
            ["status"],
            registry=self._registry,
        )
        self._broken = Counter(
            "sameworld_incidents", "What broke, by part.", ["part"], registry=self._registry
        )
        self._sequence = Gauge(
            "sameworld_event_sequence",
            "The last committed delivery this process has seen.",
            registry=self._registry,
        )

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
        if found is None:  # looking labels up costs more than counting
            found = self._of[model, tier] = (
                self._predictions.labels(model, tier),
                self._seconds.labels(model),
            )
        self.recent(model).answered(tier, reason, microseconds)
        found[0].inc(len(microseconds))
        for taken in microseconds:
            found[1].observe(taken / 1e6)
        if not logged:
            self._unlogged.labels(model).inc(len(microseconds))

    def took(self, source: str, events: int, *, repeated: bool) -> None:
        (self._repeated if repeated else self._events).labels(source).inc(1 if repeated else events)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def broken(self, part: str, reason: str) -> None:
        """Count a part's failure."""
        self._broken.labels(part).inc()
        self._is_broken.add(part)
        self._incidents.tell("broken", part, reason=reason)

    def worked(self, part: str) -> None:
        """Note that a part does what it should; called for every micro-batch."""
        if part in self._is_broken:
            self._is_broken.discard(part)
            self._incidents.tell("recovered", part)

    def text(self, sequence: int | None) -> bytes:
        """Give all counts in Prometheus's text format; the sequence as it was where it is not known."""
        if sequence is not None:
            self._sequence.set(sequence)
        return generate_latest(self._registry)
