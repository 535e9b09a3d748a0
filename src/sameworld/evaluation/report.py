"""The gap report as one web page: what training claimed, what production delivered, and why they differ.

The page stands alone: styles and drawings are inside it, nothing is fetched, nothing runs. This module words
and arranges numbers that were measured elsewhere; it must not measure any.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sameworld.evaluation import charts
from sameworld.evaluation.report_data import (
    Baseline,
    CalibrationBin,
    GapReportData,
    Interval,
    LatencyBin,
    LatencySummary,
    LeakedFeature,
    MonthScore,
    ProofSummary,
    Stage,
    WorldScore,
)

__all__ = [
    "Baseline",
    "CalibrationBin",
    "GapReportData",
    "Interval",
    "LatencyBin",
    "LatencySummary",
    "LeakedFeature",
    "MonthScore",
    "ProofSummary",
    "Stage",
    "WorldScore",
    "headline",
    "render_gap_report",
]

# A difference smaller than this is not called a leak, unless its interval says so.
KEPT_WITHIN = 0.005

# More rows than this say nothing that the first ones did not.
MOST_LEAKS = 12

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def render_gap_report(gap: GapReportData) -> str:
    """The report as one HTML page without any external resource.

    Args:
        gap: the measured numbers; parts that are absent leave no empty box.

    Returns:
        The whole page, UTF-8 text; names from the data are escaped.
    """
    environment = Environment(
        loader=PackageLoader("sameworld.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=_score, count=_count, percent=_percent, hours=_hours, seconds=_seconds, bytes=_bytes, ms=_ms
    )
    return environment.get_template("gap.html.j2").render(
        gap=gap,
        headline=headline(gap),
        table=_score_table(gap),
        months=_month_panels(gap),
        leaks=gap.leaks[:MOST_LEAKS],
        leaks_left_out=len(gap.leaks[MOST_LEAKS:]),
        leak_scale=max((leak.importance_share or 0.0 for leak in gap.leaks), default=0.0),
        calibration=_calibration_panels(gap),
        latency_chart=_latency_chart(gap.latency),
        tiers=_tier_rows(gap),
        slowest=max((stage.seconds for stage in gap.stages), default=0.0),
        total_seconds=sum(stage.seconds for stage in gap.stages),
    )


@dataclass(frozen=True)
class Sentence:
    """One world's part of the headline; `lost` is what it promised and did not deliver, if anything."""

    world: str
    claimed: float
    delivered: float
    lost: float | None


@dataclass(frozen=True)
class Headline:
    """What a person should know after ten seconds.

    Args:
        sentences: the world that lost most, then the one that delivers most.
        missed: how much more the better world delivers than the leaking one; None when that is not the story.
        leaking: the world that lost.
        better: the world that delivers more.
    """

    sentences: tuple[Sentence, ...]
    missed: float | None = None
    leaking: str = ""
    better: str = ""

    def text(self) -> str:
        """The sentences as plain text."""
        return " ".join(
            f"{each.world} promised {each.claimed:.3f} and delivered {each.delivered:.3f}."
            if each.lost is None
            else f"{each.world} promised {each.claimed:.3f}, production delivered {each.delivered:.3f}: "
            f"{each.lost:.3f} was a leak."
            for each in self.sentences
        )


def headline(gap: GapReportData) -> Headline:
    """The report in a sentence or two.

    Args:
        gap: the measured numbers. A world lost something when its shortfall is at least `KEPT_WITHIN` or,
            where its `gap_interval` is given, when that lies above zero.

    Returns:
        The worst leak and the best delivery, and what lies between the two.
    """
    better = max(gap.worlds, key=lambda each: each.delivered if gap.higher_is_better else -each.delivered)
    leaking = max(gap.worlds, key=lambda each: _shortfall(gap, each))
    lost = _sentence(gap, leaking)
    if lost.lost is None:
        return Headline((_sentence(gap, better),))
    if better.world == leaking.world:
        return Headline((lost,))
    missed = _shown(better.delivered) - _shown(leaking.delivered)
    return Headline(
        (lost, _sentence(gap, better)),
        missed=abs(missed) if abs(missed) >= KEPT_WITHIN else None,
        leaking=leaking.world,
        better=better.world,
    )


def _shown(score: float) -> float:
    # Differences are taken between the printed digits, so that the reader's own subtraction agrees.
    return round(score, 3)


def _shortfall(gap: GapReportData, world: WorldScore) -> float:
    fell = _shown(world.claimed) - _shown(world.delivered)
    return round(fell if gap.higher_is_better else -fell, 3)


def _sentence(gap: GapReportData, world: WorldScore) -> Sentence:
    shortfall = _shortfall(gap, world)
    kept = (
        shortfall < KEPT_WITHIN
        if world.gap_interval is None
        else world.gap_interval[0] <= 0 or shortfall <= 0
    )
    return Sentence(world.world, world.claimed, world.delivered, None if kept else shortfall)


@dataclass(frozen=True)
class _ScoreRow:
    name: str
    claimed: float | None
    claimed_interval: Interval | None
    delivered: float
    delivered_interval: Interval | None
    shortfall: float | None
    gap_interval: Interval | None
    lost: bool
    strip: Markup


@dataclass(frozen=True)
class _ScoreTable:
    worlds: tuple[_ScoreRow, ...]
    baselines: tuple[_ScoreRow, ...]
    axis: Markup


def _score_table(gap: GapReportData) -> _ScoreTable:
    values: list[float | None] = [each.score for each in gap.baselines]
    for world in gap.worlds:
        values += [
            world.claimed,
            world.delivered,
            *(world.claimed_interval or ()),
            *(world.delivered_interval or ()),
        ]
    span = charts.span_of(values)

    def world_row(world: WorldScore) -> _ScoreRow:
        strip = charts.score_strip(
            span,
            world.claimed,
            world.delivered,
            claimed_interval=world.claimed_interval,
            delivered_interval=world.delivered_interval,
            title=f"{world.world}: claimed {world.claimed:.3f}, delivered {world.delivered:.3f}",
        )
        return _ScoreRow(
            world.world,
            world.claimed,
            world.claimed_interval,
            world.delivered,
            world.delivered_interval,
            _shortfall(gap, world),
            world.gap_interval,
            _sentence(gap, world).lost is not None,
            strip,
        )

    def baseline_row(each: Baseline) -> _ScoreRow:
        title = f"{each.name}: {each.score:.3f}"
        strip = charts.score_strip(span, None, each.score, delivered_interval=each.interval, title=title)
        return _ScoreRow(each.name, None, None, each.score, each.interval, None, None, False, strip)

    return _ScoreTable(
        tuple(world_row(each) for each in gap.worlds),
        tuple(baseline_row(each) for each in gap.baselines),
        charts.strip_axis(span),
    )


@dataclass(frozen=True)
class _Panel:
    name: str
    chart: Markup


def _month_panels(gap: GapReportData) -> tuple[_Panel, ...]:
    shown = [world for world in gap.worlds if world.by_month]
    scores = [
        value for world in shown for month in world.by_month for value in (month.claimed, month.delivered)
    ]
    span = charts.span_of(scores)
    return tuple(
        _Panel(
            world.world,
            charts.score_lines(
                span,
                [_month_pair(gap.metric, index, month) for index, month in enumerate(world.by_month)],
                title=f"{world.world}: claimed and delivered {gap.metric} by month",
            ),
        )
        for world in shown
    )


def _month_pair(metric: str, index: int, month: MonthScore) -> charts.Pair:
    year, _, number = month.month.partition("-")
    known = number.isdigit() and 1 <= int(number) <= 12
    name = _MONTHS[int(number) - 1] if known else month.month
    label = f"{name} {year}" if known and (index == 0 or number == "01") else name
    title = f"{month.month}: {metric} claimed {_score(month.claimed)}, delivered {_score(month.delivered)}, "
    return charts.Pair(label, month.claimed, month.delivered, f"{title}{month.moments:,} moments")


def _calibration_panels(gap: GapReportData) -> tuple[_Panel, ...]:
    shown = [world for world in gap.worlds if world.calibration]
    rates = [
        rate for world in shown for each in world.calibration for rate in (each.predicted, each.observed)
    ]
    span = charts.span_of(rates, from_zero=True)
    return tuple(
        _Panel(
            world.world,
            charts.reliability_curve(
                span,
                [(each.predicted, each.observed, each.count) for each in world.calibration],
                title=f"{world.world}: observed rate against prediction",
            ),
        )
        for world in shown
    )


def _latency_chart(latency: LatencySummary | None) -> Markup | None:
    if latency is None or not latency.histogram:
        return None
    return charts.histogram(
        [charts.Bin(each.upper_ms, each.count) for each in latency.histogram],
        [(f"p50 {_ms(latency.p50_ms)}", latency.p50_ms), (f"p99 {_ms(latency.p99_ms)}", latency.p99_ms)],
        unit="ms",
        title=f"Latency: half within {_ms(latency.p50_ms)}, 99 of 100 within {_ms(latency.p99_ms)}",
    )


def _tier_rows(gap: GapReportData) -> tuple[tuple[str, Sequence[tuple[str, float]]], ...]:
    return tuple((world.world, tuple(world.tiers.items())) for world in gap.worlds if world.tiers)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    # Neither end is rounded to: 100% and 0% are said only when they are exact.
    for decimals in (0, 1, 2, 3) if 0.0995 <= share <= 0.9005 else (1, 2, 3):
        text = f"{share * 100:.{decimals}f}"
        if float(text) not in (0.0, 100.0):
            return f"{text}%"
    return "0%" if share == 0 else "100%" if share == 1 else "<0.001%" if share < 0.5 else ">99.999%"


def _hours(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.1f} h" if value < 48 else f"{value / 24:.1f} d"


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    whole = round(value)
    return (
        f"{whole // 60} min {whole % 60:02d} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _bytes(value: int) -> str:
    power = min(int(math.log(value, 1000)), 4) if value > 0 else 0
    return f"{value} B" if power == 0 else f"{value / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"
