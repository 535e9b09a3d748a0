"""Small drawings as inline SVG, made of numbers and nothing else.

Each function returns one `<svg>` whose colours are CSS classes, so that the page around it decides how it
looks in the light, in the dark and on paper. Nothing here reads files, knows a model, or computes a score.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Interval = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """A range of numbers and the round numbers worth labelling in it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float, start: float, stop: float) -> float:
        """Where a value lies between two pixel positions; values outside the span are put on its edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return start + share * (stop - start)

    def label(self, value: float) -> str:
        """A tick as text, with as many decimals as the ticks' step needs."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{value:,.{decimals}f}"


@dataclass(frozen=True)
class Pair:
    """A claimed and a delivered score under one label; None where there was too little to score."""

    label: str
    claimed: float | None
    delivered: float | None
    title: str = ""


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram, with the label of its upper edge."""

    upper: float
    count: int


def span_of(values: Iterable[float | None], *, about: int = 5, from_zero: bool = False) -> Span:
    """The span that holds all values, widened to round numbers.

    Args:
        values: at least one finite number; None is left out.
        about: how many steps between ticks to aim for.
        from_zero: whether the span starts at zero.

    >>> span_of([0.53, 0.78]).ticks
    (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    low = 0.0 if from_zero else min(known, default=0.0)
    high = max(known, default=1.0)
    if high <= low:
        # One value alone has no width; it gets room on both sides.
        room = abs(low) * 0.05 or 0.5
        low, high = (0.0 if from_zero else low - room), high + room
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(index * step, 12) for index in range(first, last + 1))
    return Span(ticks[0], ticks[-1], ticks)


def score_strip(
    span: Span,
    claimed: float | None,
    delivered: float,
    *,
    claimed_interval: Interval | None = None,
    delivered_interval: Interval | None = None,
    title: str,
) -> Markup:
    """One row of a dot plot: what was claimed above, what was delivered below, the gap shaded between them.

    Args:
        span: the scale shared by all rows, see `strip_axis`.
        claimed: None for a baseline, which only has a score.
        delivered: the score that counts.
        claimed_interval: drawn as a line through its dot.
        delivered_interval: the same.
        title: what a screen reader says.
    """
    width, height, inset = 360, 40, 18
    at = _placer(span, inset, width - inset)
    parts = [_line("grid", at(tick), 0, at(tick), height) for tick in span.ticks]
    if claimed is not None:
        left, right = sorted((at(claimed), at(delivered)))
        parts.append(f'<rect class="gap" x="{left:.1f}" y="6" width="{right - left:.1f}" height="28"/>')
        parts += _whisker("claimed", claimed_interval, at, 14)
        parts += _whisker("delivered", delivered_interval, at, 27)
        parts.append(f'<circle class="claimed ring" cx="{at(claimed):.1f}" cy="14" r="4.5"/>')
        parts.append(f'<circle class="delivered dot" cx="{at(delivered):.1f}" cy="27" r="4.5"/>')
    else:
        parts += _whisker("baseline", delivered_interval, at, 20)
        parts.append(f'<circle class="baseline dot" cx="{at(delivered):.1f}" cy="20" r="4"/>')
    return _svg(width, height, parts, title, "strip")


def strip_axis(span: Span) -> Markup:
    """The scale under a column of `score_strip`s."""
    width, height, inset = 360, 18, 18
    at = _placer(span, inset, width - inset)
    parts = [_text(at(tick), 13, span.label(tick), "middle") for tick in span.ticks]
    return _svg(width, height, parts, "scale", "strip")


def score_lines(span: Span, pairs: Sequence[Pair], *, title: str) -> Markup:
    """Claimed and delivered over time, the gap shaded; a missing score breaks its line.

    Args:
        span: the vertical scale; give several drawings the same one to make them comparable.
        pairs: in order of time.
        title: what a screen reader says.
    """
    width, height, left, right, top, bottom = 480, 220, 44, 14, 12, 192
    step = (width - left - right) / max(len(pairs), 1)
    across = [left + step * (index + 0.5) for index in range(len(pairs))]
    up = _placer(span, bottom, top)
    parts = _rows(span, up, left, width - right)
    every = math.ceil(len(pairs) / 8)
    for index, (x, pair) in enumerate(zip(across, pairs, strict=True)):
        if index % every == 0:
            parts.append(_text(x, height - 9, pair.label, "middle"))
    for (x0, before), (x1, after) in pairwise(zip(across, pairs, strict=True)):
        corners = [before.claimed, after.claimed, after.delivered, before.delivered]
        known = [value for value in corners if value is not None]
        if len(known) == len(corners):
            points = zip((x0, x1, x1, x0), known, strict=True)
            shape = " ".join(f"{x:.1f},{up(value):.1f}" for x, value in points)
            parts.append(f'<polygon class="gap" points="{shape}"/>')
    parts += _path("claimed line", across, [pair.claimed for pair in pairs], up)
    parts += _path("delivered line", across, [pair.delivered for pair in pairs], up)
    for x, pair in zip(across, pairs, strict=True):
        for value, look, radius in (
            (pair.claimed, "claimed ring", 4.5),
            (pair.delivered, "delivered dot", 3),
        ):
            if value is not None:
                parts.append(
                    f'<circle class="{look}" cx="{x:.1f}" cy="{up(value):.1f}" r="{radius}">'
                    f"<title>{escape(pair.title or pair.label)}</title></circle>"
                )
    return _svg(width, height, parts, title, "panel")


def reliability_curve(span: Span, bins: Sequence[tuple[float, float, int]], *, title: str) -> Markup:
    """How often it came true against how often it was predicted, with the number of moments below.

    Args:
        span: the scale of both axes, from zero.
        bins: (mean prediction, observed rate, count), in order of prediction.
        title: what a screen reader says.
    """
    width, height, left, right, top, bottom, floor = 480, 300, 44, 14, 12, 206, 264
    across, up = _placer(span, left, width - right), _placer(span, bottom, top)
    parts = _rows(span, up, left, width - right, _percent_label(span))
    parts.append(_line("diagonal", across(span.low), up(span.low), across(span.high), up(span.high)))
    places = [across(predicted) for predicted, _, _ in bins]
    parts += _path("delivered line", places, [observed for _, observed, _ in bins], up)
    most = max((count for _, _, count in bins), default=0) or 1
    parts.append(_line("axis", left, floor, width - right, floor))
    for x, (predicted, observed, count) in zip(places, bins, strict=True):
        said = f"predicted {predicted:.1%}, observed {observed:.1%}, {count:,} moments"
        tall = max(40 * count / most, 1.0)
        parts.append(
            f'<rect class="bar" x="{x - 5:.1f}" y="{floor - tall:.1f}" width="10" height="{tall:.1f}">'
            f"<title>{said}</title></rect>"
            f'<circle class="delivered dot" cx="{x:.1f}" cy="{up(observed):.1f}" r="4">'
            f"<title>{said}</title></circle>"
        )
    parts.append(_text(left - 8, floor - 32, _short(most), "end"))
    parts.append(_text(left - 8, floor + 3, "0", "end"))
    parts += [_text(across(tick), floor + 17, _percent_label(span)(tick), "middle") for tick in span.ticks]
    parts.append(_text((left + width - right) / 2, height - 3, "predicted", "middle"))
    return _svg(width, height, parts, title, "panel")


def histogram(bins: Sequence[Bin], marks: Sequence[tuple[str, float]], *, unit: str, title: str) -> Markup:
    """Bars of equal width for bins of any width, with marks at given values.

    Args:
        bins: in order of `upper`; the first begins at zero, the last may end at infinity.
        marks: (name, value in the unit of the bins); placed inside their bin in proportion.
        unit: written after the scale, for instance `ms`.
        title: what a screen reader says.
    """
    width, height, left, right, top, bottom = 480, 220, 14, 14, 34, 182
    step = (width - left - right) / max(len(bins), 1)
    most = max((each.count for each in bins), default=0) or 1
    total = sum(each.count for each in bins) or 1
    lowers = [0.0, *(each.upper for each in bins)]
    parts = [_line("axis", left, bottom, width - right, bottom)]
    every = math.ceil(len(bins) / 11)
    for index, (lower, each) in enumerate(zip(lowers, bins, strict=False)):
        x, tall = left + step * index, (bottom - top) * each.count / most
        edges = f"over {lower:g} {unit}" if math.isinf(each.upper) else f"{lower:g} to {each.upper:g} {unit}"
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{bottom - tall:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{tall:.1f}"><title>{edges}: {each.count:,} ({each.count / total:.1%})</title></rect>'
        )
        if index % every == 0 and not math.isinf(each.upper):
            parts.append(_text(x + step, bottom + 15, f"{each.upper:g}", "middle"))
    parts.append(_text((left + width - right) / 2, height - 4, unit, "middle"))
    for row, (name, value) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        x = left + step * _bin_position(lowers, value)
        anchor = "end" if x > width * 0.7 else "start"
        y = 11 + 13 * (row % 2)
        parts.append(_line("mark", x, y - 8, x, bottom))
        parts.append(_text(x + (-5 if anchor == "end" else 5), y + 1, name, anchor, "strong"))
    return _svg(width, height, parts, title, "panel")


def _bin_position(edges: Sequence[float], value: float) -> float:
    for index, (lower, upper) in enumerate(pairwise(edges)):
        if value <= upper:
            return index + (0.5 if math.isinf(upper) else (value - lower) / (upper - lower))
    return len(edges) - 1.0


def _placer(span: Span, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: span.place(value, start, stop)


def _whisker(look: str, interval: Interval | None, at: Callable[[float], float], y: float) -> list[str]:
    if interval is None:
        return []
    return [_line(f"{look} whisker", at(interval[0]), y, at(interval[1]), y)]


def _rows(
    span: Span,
    up: Callable[[float], float],
    left: float,
    right: float,
    label: Callable[[float], str] | None = None,
) -> list[str]:
    say = label or span.label
    parts = [_line("grid", left, up(tick), right, up(tick)) for tick in span.ticks]
    return parts + [_text(left - 8, up(tick) + 4, say(tick), "end") for tick in span.ticks]


def _path(
    look: str, across: Sequence[float], values: Sequence[float | None], up: Callable[[float], float]
) -> list[str]:
    steps: list[str] = []
    pen_down = False
    for x, value in zip(across, values, strict=True):
        if value is not None:
            steps.append(f"{'L' if pen_down else 'M'}{x:.1f} {up(value):.1f}")
        pen_down = value is not None
    return [f'<path class="{look}" d="{" ".join(steps)}"/>'] if steps else []


def _percent_label(span: Span) -> Callable[[float], str]:
    hundredfold = Span(span.low * 100, span.high * 100, tuple(tick * 100 for tick in span.ticks))
    return lambda value: f"{hundredfold.label(value * 100)}%"


def _short(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count:,}"


def _line(look: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str, look: str = "") -> str:
    kind = f' class="{look}"' if look else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str], title: str, look: str) -> Markup:
    # Every word of the parts was escaped where it was written; numbers need none.
    return Markup(
        f'<svg class="{look}" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
