"""What was measured, as rows of text and as JSON."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from benchmarks.asof.table import Rows, machine
from benchmarks.serving.runner import Measured
from benchmarks.serving.running import ENVIRONMENTS

_BUSY, _NOISY = 0.9, 0.1


def table(measurements: Sequence[Measured], connections: Sequence[int]) -> Rows:
    """Give the table, its heading first: ratios are to the fastest peer with the most connections."""
    most = max(connections)
    peers = [measured.rate(most) or 0.0 for measured in measurements if not measured.contestant.model]
    best = max(peers, default=0.0)
    heading = ["contestant", "for an answer"]
    heading += [f"{unit} at {count}" for unit in ("requests/s", "p50 ms", "p99 ms", "CPU µs") for count in connections]  # fmt: skip
    rows: Rows = [[*heading, "× best peer", "failed", "start s"]]
    for measured in measurements:
        if not measured.seen:
            continue
        contestant = measured.contestant
        rate = measured.rate(most)
        cells = [_text(measured.rate(count), ",.0f") for count in connections]
        cells += [_text(measured.median(count, lambda seen: seen.p50_ms), ".2f") for count in connections]
        cells += [_text(measured.median(count, lambda seen: seen.p99_ms), ".1f") for count in connections]
        cells += [_text(measured.processor_microseconds(count), ",.0f") for count in connections]
        ratio = f"{rate / best:.2f}" if best and rate else ""
        start = f"{statistics.median(measured.start_seconds):.1f}"
        rows.append([contestant.name, contestant.does, *cells, ratio, f"{measured.failed:,}", start])
    return rows


def collected(measurements: Sequence[Measured], connections: Sequence[int]) -> Rows:
    """Give the table of one contestant after the other with its garbage collector set in several ways, its heading first."""
    kinds = ("requests/s", "CPU µs", "p50 ms", "p99 ms", "p99.9 ms", "collections a 1,000 requests", "CPU ms of the longest")  # fmt: skip
    units = [f"{kind} at {count}" for kind in kinds for count in connections]
    rows: Rows = [["contestant", "collector", *units]]
    for measured in measurements:
        if measured.seen:
            contestant = measured.contestant
            cells = [_text(measured.rate(count), ",.0f") for count in connections]
            cells += [_text(measured.processor_microseconds(count), ",.0f") for count in connections]
            for of in (lambda seen: seen.p50_ms, lambda seen: seen.p99_ms, lambda seen: seen.p999_ms):
                cells += [_text(measured.median(count, of), ".2f") for count in connections]
            for count in connections:
                asked = sum(seen.requests for seen in measured.seen[count])
                cells.append(f"{len(measured.collections[count]) / max(asked, 1) * 1e3:.3g}")
            cells += [f"{max(measured.collections[count], default=0.0):.2g}" for count in connections]
            rows.append([contestant.name.partition(",")[0], contestant.collector, *cells])
    return rows


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def notes(measurements: Sequence[Measured], given: argparse.Namespace) -> list[str]:
    """Give what must be said beside the table."""
    cores = len(given.server_cores)
    lines = [
        f"{given.requests:,} different requests in turn; {'one core' if cores == 1 else f'{cores} cores'} for the server and all that it starts, "
        f"{given.client} on {'another' if set(given.client_cores).isdisjoint(given.server_cores) else 'the same'}; "
        f"median of {given.rounds} interleaved {'round' if given.rounds == 1 else 'rounds'} of {given.seconds:g} seconds."
    ]
    shares = [share for measured in measurements for share in measured.others]
    if shares and statistics.median(shares) > _NOISY:
        lines.append(
            f"Others used {statistics.median(shares):.0%} of a core meanwhile (the median), {max(shares):.0%} at most: CPU µs say more than requests a second."
        )
    for measured in measurements:
        name = measured.contestant.name
        if measured.left_out:
            lines.append(f"{name} was left out: {measured.left_out}")
        busy = [
            str(count)
            for count, seen in measured.seen.items()
            if statistics.median(s.busy for s in seen) > _BUSY
        ]
        if busy:
            lines.append(
                f"The client was as busy as its core allows with {name} at {', '.join(busy)}: that is what was measured there."
            )
    return lines


def versions(measurements: Sequence[Measured]) -> dict[str, dict[str, str]]:
    """Give every measured peer's requirements, which are pinned: peer -> library -> version."""
    found: dict[str, dict[str, str]] = {}
    for measured in measurements:
        environment = measured.contestant.environment
        if measured.seen and environment:
            pins = (ENVIRONMENTS / environment / f"{environment}.txt").read_text().split()
            found[measured.contestant.name] = dict(pin.split("==") for pin in pins)
    return found


def as_json(measurements: Sequence[Measured], versions: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Give everything that was measured."""
    return {
        "date": datetime.now(UTC).isoformat(),
        "machine": machine(),
        "versions": versions,
        "measurements": [
            {
                "contestant": measured.contestant.name,
                "left_out": measured.left_out,
                "others": measured.others,
                "start_seconds": measured.start_seconds,
                "loads": [
                    {
                        "connections": count,
                        "requests_a_second": measured.rate(count),
                        "processor_microseconds": measured.processor_microseconds(count),
                        "rounds": [asdict(one) for one in seen],
                    }
                    for count, seen in measured.seen.items()
                ],
            }
            for measured in measurements
        ],
    }
