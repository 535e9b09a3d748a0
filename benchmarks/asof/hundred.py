"""One more feature beside a hundred that are kept: what it costs, as a part of making the hundred. Each run is a process of its own.

python -m benchmarks.asof.hundred FOLDER CACHE STEP FILE     a run, on the clock; its answer goes to FILE, {"seconds": ...} to the terminal
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

import sameworld as sw
from benchmarks.asof.contestants.sameworld_engine import PLAIN
from benchmarks.asof.generate import generate
from benchmarks.asof.processes import peak, processor_seconds
from sameworld.engines.contents import content_of

HOURS = [f"{hours}h" for hours in range(1, 26)]
FURTHER = ["count", "sum", "mean", "min", "max"]
STEPS = ["full", "again", *FURTHER]
WINDOW = "77h"
SMALL = 2_000
LIBRARIES = ("sameworld", "duckdb", "numba", "numpy", "pyarrow")


def features(step: str) -> dict[str, sw.Feature]:
    """Give the hundred, and one of a window that none of them has where the step is an aggregation."""
    by = PLAIN.by("k")

    def one(operation: str, over: str | list[str]) -> sw.Feature:
        return by.count(over=over) if operation == "count" else getattr(by, operation)("x", over=over)

    hundred = {operation: one(operation, HOURS) for operation in ("count", "sum", "mean", "max")}
    return hundred | ({"further": one(step, WINDOW)} if step in FURTHER else {})


def run(folder: Path, cache: Path | bool, wanted: dict[str, sw.Feature]) -> pa.Table:
    """Make the training set as a user would."""
    return sw.training_set(wanted, moments=sw.Moments("moments.parquet", at="t"), folder=folder, cache=cache)


def step(folder: Path, cache: Path, name: str, file: Path) -> None:
    """Do one run, after one on few rows that loads what is needed; then compare the further feature with one that is made from nothing."""
    wanted = features(name)
    run(folder / "small", False, wanted)
    begin, before = time.perf_counter(), processor_seconds()
    made = run(folder, cache, wanted)
    said = {"seconds": time.perf_counter() - begin, "processor": processor_seconds() - before, "peak": peak()}
    if name in FURTHER:
        alone = run(folder, False, {"further": wanted["further"]})
        said["right"] = made["further"].combine_chunks().equals(alone["further"].combine_chunks())
    else:
        file.write_text(content_of(made))
    print(json.dumps(said))


def measure(
    folder: Path, events: int, seed: int, rounds: int, say: Callable[[str], None]
) -> tuple[list[list[str]], bool]:
    """Give the table, its heading first, and whether every answer was right."""
    say(f"making {events:,} events")
    generate(folder, events, seed, corrected=False)
    (folder / "small").mkdir()
    generate(folder / "small", SMALL, seed, corrected=False)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    right = True
    for _ in range(rounds):
        kept = folder / "cache"
        shutil.rmtree(kept, ignore_errors=True)
        for name in STEPS:
            own = folder / "own"
            if name in FURTHER:  # entries never change, so a second name of each is a copy
                shutil.copytree(kept, own, copy_function=os.link)
            cache = own if name in FURTHER else kept
            command = ["benchmarks.asof.hundred", str(folder), str(cache), name, str(folder / name)]
            done = subprocess.run(
                [sys.executable, "-m", *command], check=True, capture_output=True, text=True
            )
            shutil.rmtree(own, ignore_errors=True)
            said = json.loads(done.stdout)
            say(f"{name}: {said['seconds']:.2f} s, {said['processor']:.2f} s of processors")
            right = right and said.get("right", True)
            found[name].append(said)
        right = right and (folder / "full").read_text() == (folder / "again").read_text()
    part = "of the full build"
    rows = [["run", "seconds", part, "processor seconds", part, "peak MiB"]]
    titles = {"full": "100 features, nothing kept", "again": "the same again"}

    def median(name: str, what: str) -> float:
        return statistics.median(one[what] for one in found[name])

    for name, several in found.items():
        row = [titles.get(name, f"and `{name}` over {WINDOW}")]
        for what in ("seconds", "processor"):
            taken = median(name, what)
            row += [f"{taken:.2f}", "" if name == "full" else f"{taken / median('full', what):.1%}"]
        rows.append([*row, f"{max(one['peak'] for one in several) / 2**20:,.0f}"])
    return rows, right


if __name__ == "__main__":
    step(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
