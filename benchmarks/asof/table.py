"""What was measured, as rows of text: for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.asof.contestants import CONTESTANTS, REFERENCE
from benchmarks.asof.generate import entities_of, moments_of
from benchmarks.asof.runner import SURVIVAL_SECONDS, Limits, Measured

Rows = list[list[str]]


def cores() -> int:
    """Give how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Say what it was measured on."""
    model, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cores()} cores ({model}), {gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    )


def versions_line(versions: Mapping[str, Mapping[str, str]]) -> str:
    """Say every library's version; one that differs between contestants is named with them."""
    told: dict[str, dict[str, list[str]]] = {}
    for contestant, libraries in versions.items():
        for library, version in libraries.items():
            told.setdefault(library, {}).setdefault(version, []).append(contestant)
    parts: list[str] = []
    for library, found in sorted(told.items()):
        if len(found) == 1:
            parts.append(f"{library} {next(iter(found))}")
        else:
            parts += [f"{library} {version} ({', '.join(names)})" for version, names in found.items()]
    return ", ".join(parts)


def sizes_line(events: int, rounds: int) -> str:
    """Say how much there is of everything."""
    return (
        f"{events:,} events, {moments_of(events):,} moments, {entities_of(events):,} entities; "
        f"median of {rounds} interleaved {'run' if rounds == 1 else 'runs'}, each in a new process"
    )


def table(measurements: Sequence[Measured], limits: Limits) -> Rows:
    """Give the table, its heading first."""
    reference = {m.events: m.median for m in measurements if m.contestant.name == REFERENCE}
    rounds = max((len(m.seconds) for m in measurements), default=0)
    heading = ["contestant", "answers", "what counts", "events", "seconds", "× sameworld"]
    rows: Rows = [[*heading, "processor seconds", "peak MiB"]]
    for measured in measurements:
        median, beside = measured.median, reference.get(measured.events)
        if median is not None:
            ratio = f"{median / beside:.2f}" if beside else ""
            seconds = f"{median:.2f}" + (" (one run)" if len(measured.seconds) < rounds else "")
        else:
            # It ran for the limit's seconds at least; for how much longer nobody knows.
            limit = min(SURVIVAL_SECONDS, limits.seconds) if measured.contestant.doubling else limits.seconds
            late = measured.ended.startswith("over") and measured.ended.endswith(" s")
            ratio = f"over {limit / beside:.0f}" if beside and late else ""
            seconds = measured.ended
        size = f"{measured.events:,}" + (f" ({measured.beyond})" if measured.beyond else "")
        processor = f"{statistics.median(measured.processor):.2f}" if measured.processor else ""
        peak = f"{max(measured.peaks) / 2**20:,.0f}" if measured.peaks else ""
        contestant = measured.contestant
        rows.append(
            [contestant.name, contestant.answers, contestant.counts, size, seconds, ratio, processor, peak]
        )
    return rows


def notes(measurements: Sequence[Measured]) -> list[str]:
    """Give what must be said beside the table."""
    seconds = {(m.contestant.name, m.events): m.median for m in measurements if m.median}
    ahead = [
        f"{name} is {seconds[by_hand, events] / own:.1f} times as fast as {by_hand} at {events:,} events."
        for (name, events), own in seconds.items()
        if (by_hand := CONTESTANTS[name].by_hand, events) in seconds
    ]
    return ahead + [
        f"{m.contestant.name} leaves out {m.contestant.omits}."
        for m in measurements
        if m.contestant.omits and m.seconds
    ]


def growth_table(measurements: Sequence[Measured]) -> tuple[Rows, str]:
    """Give the table of one contestant at several sizes, and the exponent in words."""
    rows: Rows = [["events", "moments", "seconds", "seconds a million events", "peak MiB", "disk MiB"]]
    points: list[tuple[float, float]] = []
    for measured in measurements:
        median = measured.median
        if median is None:
            rows.append(
                [f"{measured.events:,}", f"{moments_of(measured.events):,}", measured.ended, "", "", ""]
            )
            continue
        points.append((math.log(measured.events), math.log(median)))
        rows.append(
            [
                f"{measured.events:,}",
                f"{moments_of(measured.events):,}",
                f"{median:.2f}",
                f"{median / measured.events * 1e6:.3f}",
                f"{max(measured.peaks) / 2**20:,.0f}",
                f"{max(measured.disk, default=0) / 2**20:,.0f}",
            ]
        )
    if len(points) < 2:
        return rows, "an exponent needs two sizes"
    middle = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
    slope = sum((x - middle[0]) * (y - middle[1]) for x, y in points) / sum(
        (x - middle[0]) ** 2 for x, _ in points
    )
    return rows, f"time grows as events to the power of {slope:.2f}"


def as_text(rows: Rows) -> str:
    """Give a table for the terminal."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(rows: Rows) -> str:
    """Give a table for a page."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def page(rows: Rows, lines: Sequence[str], versions: Mapping[str, Mapping[str, str]]) -> str:
    """Give what stands between the markers of the page."""
    today = datetime.now(UTC).date().isoformat()
    facts = [f"{today}, {machine()}.", *lines, f"{versions_line(versions)}."]
    return "\n\n".join([as_markdown(rows), *facts])


def write(file: Path, marker: str, part: str) -> None:
    """Put a part between a marker's two lines of a file; without the markers the part alone is the file."""
    begin, finish = f"<!-- {marker} -->\n", f"\n<!-- /{marker} -->"
    text = file.read_text() if file.exists() else ""
    if begin not in text:
        file.write_text(f"{begin}{part}{finish}\n")
        return
    before, rest = text.split(begin, 1)
    file.write_text(f"{before}{begin}{part}{finish}{rest.split(finish, 1)[1]}")


def as_json(measurements: Sequence[Measured], versions: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Give everything that was measured."""
    return {
        "date": datetime.now(UTC).isoformat(),
        "machine": machine(),
        "versions": {name: dict(found) for name, found in versions.items()},
        "measurements": [
            {
                "contestant": m.contestant.name,
                "events": m.events,
                "moments": moments_of(m.events),
                "entities": entities_of(m.events),
                "seconds": m.seconds,
                "median": m.median,
                "processor_seconds": m.processor,
                "peak_bytes": m.peaks,
                "ended": m.ended,
                "beyond": m.beyond,
            }
            for m in measurements
        ],
    }
