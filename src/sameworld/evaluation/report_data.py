"""What a gap report shows, as plain data: numbers that something else measured, in the units written here.

Sequences are in the order in which they should be read. Scores are in the unit of the metric; shares lie in
[0, 1]; an interval is (low, high) at 95 %. Nothing here computes, or knows where the numbers came
from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sameworld.errors import DataError

Interval = tuple[float, float]


@dataclass(frozen=True)
class MonthScore:
    """One month of one world; `month` is written YYYY-MM. A score is None where it could not be computed."""

    month: str
    moments: int
    claimed: float | None
    delivered: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Moments with similar predictions: their mean prediction, how often it came true, how many they are."""

    predicted: float
    observed: float
    count: int


@dataclass(frozen=True)
class WorldScore:
    """One way of building the training set: what it claimed offline and what it delivered in production.

    Args:
        world: its name.
        claimed: the score on its own training set's kind of rows.
        claimed_interval: 95 %, if known.
        delivered: the score of the same model on the same moments, with the values a server had.
        delivered_interval: 95 %, if known.
        gap_interval: 95 % of how far delivered falls short of claimed (positive is worse), if known.
        by_month: in order of time.
        calibration: of what was delivered, in order of prediction.
        tiers: share of moments answered by each tier.
    """

    world: str
    claimed: float
    delivered: float
    claimed_interval: Interval | None = None
    delivered_interval: Interval | None = None
    gap_interval: Interval | None = None
    by_month: Sequence[MonthScore] = ()
    calibration: Sequence[CalibrationBin] = ()
    tiers: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Baseline:
    """What can be had without a model."""

    name: str
    score: float
    interval: Interval | None = None


@dataclass(frozen=True)
class LeakedFeature:
    """A feature whose training value used rows that were not readable yet.

    Args:
        feature: its name.
        differs_share: of moments, those at which its value differs between the two worlds.
        ahead_median_hours: half of the leaked rows became readable later than this after the moment.
        ahead_p90_hours: one in ten did.
        importance_share: its part of the leaking model's total gain.
    """

    feature: str
    differs_share: float
    ahead_median_hours: float | None = None
    ahead_p90_hours: float | None = None
    importance_share: float | None = None


@dataclass(frozen=True)
class LatencyBin:
    """Requests answered within `upper_ms` but not within the bin before; the last may be `inf`."""

    upper_ms: float
    count: int


@dataclass(frozen=True)
class LatencySummary:
    """How long requests took, and how many were not answered with 200."""

    requests: int
    non_200: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    histogram: Sequence[LatencyBin] = ()


@dataclass(frozen=True)
class ProofSummary:
    """Logged vectors recomputed from the sources and compared bit by bit.

    Args:
        vectors: how many were recomputed.
        values: how many values they hold.
        different: of those, how many differ.
        causes: how many differ for each named cause.
    """

    vectors: int
    values: int
    different: int
    causes: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Stage:
    """One step of the run."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class GapReportData:
    """All that a gap report shows. Only the worlds are required: a part without data does not appear.

    Args:
        model: its name.
        metric: the name of the score.
        moments: how many were scored.
        worlds: at least one.
        positives_rate: share of moments with a positive label.
        period: in words.
        baselines: scores without a model.
        leaks: worst first.
        leaking_world: the world whose features `leaks` describes.
        compared_world: the world they were compared with.
        latency: of the served predictions.
        proof: of the served predictions.
        stages: in order.
        rows: read in the run.
        bytes: read in the run.
        higher_is_better: False for a loss.
        note: one line above everything, for instance that the data are made up.

    Raises:
        DataError: there is no world, or two have one name.
    """

    model: str
    metric: str
    moments: int
    worlds: Sequence[WorldScore]
    positives_rate: float | None = None
    period: str = ""
    baselines: Sequence[Baseline] = ()
    leaks: Sequence[LeakedFeature] = ()
    leaking_world: str = "event_time"
    compared_world: str = "as_of"
    latency: LatencySummary | None = None
    proof: ProofSummary | None = None
    stages: Sequence[Stage] = ()
    rows: int | None = None
    bytes: int | None = None
    higher_is_better: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        names = [each.world for each in self.worlds]
        if not names or len(set(names)) < len(names):
            raise DataError(
                f"The gap report of model '{self.model}' cannot tell its worlds apart.",
                expected="at least one world, each with a name of its own",
                found=", ".join(names) or "no world",
                do="pass one WorldScore for each way of building the training set.",
            )
