"""Counts, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One server process's counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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

    def answered(self, model: str, tier: str, seconds: float, *, logged: bool) -> None:
        found = self._of.get((model, tier))
        if found is None:  # looking labels up costs more than counting
            found = self._of[model, tier] = (
                self._predictions.labels(model, tier),
                self._seconds.labels(model),
            )
        found[0].inc()
        found[1].observe(seconds)
        if not logged:
            self._unlogged.labels(model).inc()

    def took(self, source: str, events: int, *, repeated: bool) -> None:
        (self._repeated if repeated else self._events).labels(source).inc(1 if repeated else events)

    def refused(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def broken(self, part: str) -> None:
        self._broken.labels(part).inc()

    def text(self, sequence: int) -> bytes:
        """Give all counts in Prometheus's text format."""
        self._sequence.set(sequence)
        return generate_latest(self._registry)
