"""The same trees served by sameworld and by what you would use instead: requests a second, latencies, processor time a request; medians of interleaved rounds."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.asof import table as tables
from benchmarks.serving import table
from benchmarks.serving.contestants import COLLECTORS, CONTESTANTS, with_collector
from benchmarks.serving.load import CLIENTS
from benchmarks.serving.runner import Measured, Runner, WrongError
from benchmarks.serving.running import adopt_orphans, missing
from benchmarks.serving.world import lay_out


def arguments() -> argparse.Namespace:
    """Give what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    add = parser.add_argument

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    cores = sorted(os.sched_getaffinity(0))
    add("--only", choices=list(CONTESTANTS), action="append", help="run only this one; may be repeated")
    add("--rounds", type=int, default=3, help="how often everybody is started and measured (3)")
    add("--seconds", type=float, default=6.0, help="of load at each number of connections (6)")
    add("--warm-seconds", type=float, default=3.0, help="of load before that (3)")
    add("--connections", type=numbers, default=[1, 16, 64], help="how many at a time (1,16,64)")
    add(
        "--requests",
        type=int,
        default=10_000,
        help="how many different rows, and entities of a kind (10,000)",
    )
    add("--rows", type=int, default=50_000, help="rows to train on (50,000)")
    add("--server-cores", type=numbers, default=cores[:1], help="sameworld has a worker on each (the first)")
    add("--client-cores", type=numbers, default=cores[1:2] or cores, help="the client's (the second)")
    add(
        "--client",
        choices=list(CLIENTS),
        default="wrk",
        help="wrk, or threads of Python, which are slower than what they measure (wrk)",
    )
    add(
        "--collectors",
        action="store_true",
        help="measure each with Python's garbage collector as it sets it itself, as Python does, and off",
    )
    add("--json", type=Path, metavar="FILE", help="write every measurement")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the table between the markers of docs/benchmarks.md",
    )
    add("--folder", type=Path, help="where all is written and removed again (the system's temporary folder)")
    return parser.parse_args()


def main() -> int:
    """Train, check, measure, print."""
    given, begin = arguments(), time.monotonic()
    if given.client == "wrk" and not shutil.which("wrk"):
        print(
            "wrk, which sends the requests, is not installed.\n"
            "  do: apt-get install wrk, or brew install wrk; or --client threads, which is slower than what it measures",
            file=sys.stderr,
        )
        return 2
    # So that the server that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begin:6.0f} s] {line}", file=sys.stderr, flush=True)

    taking_part: list[Measured] = []
    collectors = COLLECTORS if given.collectors else ("own",)
    for name, collector in itertools.product(given.only or CONTESTANTS, collectors):
        contestant = with_collector(CONTESTANTS[name], collector) if given.collectors else CONTESTANTS[name]
        measured = Measured(contestant, missing(contestant))
        taking_part.append(measured)
        if measured.left_out:
            say(f"{name} is left out: {measured.left_out}")
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        say("training")
        # Peers serve the file of `bare`; `guarded` is checked against it.
        models = {measured.contestant.model or "bare" for measured in taking_part}
        if models != {"honest"}:
            models.add("bare")
        lay_out(folder, models, given.requests, given.rows)
        runner = Runner(
            folder, given.requests, CLIENTS[given.client], given.server_cores, given.client_cores, say
        )
        try:
            runner.run(taking_part, given.rounds, given.connections, given.seconds, given.warm_seconds)
        except WrongError as wrong:
            print(f"This answer is wrong, so nothing is said of speed:\n{wrong}")
            return 1
    rows = (table.collected if given.collectors else table.table)(taking_part, given.connections)
    lines = table.notes(taking_part, given)
    versions = table.versions(taking_part) | {"sameworld": {"sameworld": version("sameworld")}}
    print("\n".join([tables.as_text(rows), "", *lines]))
    if given.json:
        given.json.write_text(json.dumps(table.as_json(taking_part, versions), indent=2) + "\n")
    if given.markdown:
        place = "collectors" if given.collectors else "serving"
        tables.write(given.markdown, place, tables.page(rows, lines, versions))
    return 1 if any(measured.left_out and measured.contestant.model for measured in taking_part) else 0


if __name__ == "__main__":
    sys.exit(main())
