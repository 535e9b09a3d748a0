"""The same training set made by sameworld and by what you would use instead: medians of interleaved runs, ratios, peak memory."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from benchmarks.asof import hundred
from benchmarks.asof import table as tables
from benchmarks.asof.check import wrong
from benchmarks.asof.contestants import CONTESTANTS, REFERENCE
from benchmarks.asof.runner import ROOT, Limits, Measured, Runner


def arguments() -> argparse.Namespace:
    """Give what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asof", description=__doc__)
    add = parser.add_argument
    add("--events", type=int, default=2_000_000, help="how many events (2,000,000); moments are a tenth")
    add("--rounds", type=int, default=3, help="how often everybody runs (3)")
    add("--only", choices=list(CONTESTANTS), action="append", help="run only this one; may be repeated")
    add("--seed", type=int, default=1, help="of the data (1)")
    add("--limit-seconds", type=float, default=120.0, help="what one run may take (120)")
    add("--slow-seconds", type=float, default=60.0, help="whoever takes longer than this runs once (60)")
    add("--limit-gib", type=float, default=16.0, help="how much memory one run may take (16)")
    add("--growth", metavar="SIZES", help=f"run {REFERENCE} alone at these sizes: 2_000_000,20_000_000")
    add("--hundred", action="store_true", help="measure what one more feature costs beside 100 that are kept")
    add("--json", type=Path, metavar="FILE", help="write every measurement")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the table between the markers of docs/benchmarks.md",
    )
    own = ROOT / ".venv-bench-feast" / "bin" / "python"
    add(
        "--feast-python",
        metavar="FILE",
        default=str(own) if own.exists() else sys.executable,
        help="the interpreter that has Feast (.venv-bench-feast's, or this one)",
    )
    add(
        "--folder",
        type=Path,
        help="where the data are written and removed again (the system's temporary folder)",
    )
    return parser.parse_args()


def main() -> int:
    """Check, measure, print."""
    given, begin = arguments(), time.monotonic()
    # So that the child that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:6.0f} s] {line}", file=sys.stderr, flush=True)

    if given.hundred:
        return one_more(given, say)
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        limits = Limits(given.limit_seconds, given.limit_gib)
        runner = Runner(Path(made), given.seed, limits, given.feast_python, say, not given.growth)
        names = [REFERENCE] if given.growth else given.only or list(CONTESTANTS)
        contestants, versions = runner.present(names)
        problems = wrong(runner, contestants)
        if problems:
            print("\n".join(["These answers are wrong, so nothing was measured:", *problems]))
            return 1
        say("every answer is right")
        if given.growth:
            sizes = [int(size) for size in given.growth.split(",")]
            measurements = [Measured(CONTESTANTS[REFERENCE], size) for size in sizes]
            for _ in range(given.rounds):
                for measured in measurements:
                    runner.once(measured)
            rows, exponent = tables.growth_table(measurements)
            marker, lines = "growth", [f"Median of {given.rounds}: {exponent}."]
        else:
            measurements = runner.run(contestants, given.events, given.rounds, given.slow_seconds)
            rows = tables.table(measurements, limits)
            marker, lines = "benchmark", [f"{tables.sizes_line(given.events, given.rounds)}."]
            lines += tables.notes(measurements)
    print("\n".join([tables.as_text(rows), "", *lines]))
    if given.json:
        given.json.write_text(json.dumps(tables.as_json(measurements, versions), indent=2) + "\n")
    if given.markdown:
        tables.write(given.markdown, marker, tables.page(rows, lines, versions))
    return 0


def one_more(given: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Measure and print what one more feature costs."""
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        rows, right = hundred.measure(Path(made), given.events, given.seed, given.rounds, say)
    if not right:
        print("An answer differs from one that is made from nothing.")
        return 1
    lines = [f"{tables.sizes_line(given.events, given.rounds)}; every answer equals one made from nothing."]
    print("\n".join([tables.as_text(rows), "", *lines]))
    if given.markdown:
        versions = {REFERENCE: {name: metadata.version(name) for name in hundred.LIBRARIES}}
        tables.write(given.markdown, "hundred", tables.page(rows, lines, versions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
