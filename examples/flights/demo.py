"""The whole story on real flights: train in two worlds, serve, replay three months over HTTP, prove, compare, report.

Run by `sameworld demo flights`; `--days N` replays only the first N days, for a quick look, and `--store redis://...` serves from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import tables
from rich.table import Table

from sameworld.asof.schema import supported
from sameworld.cli import show
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.gap import measure
from sameworld.evaluation.prove import prove
from sameworld.evaluation.report import LatencyBin, LatencySummary, ProofSummary, Stage, render_gap_report
from sameworld.server.client import Client
from sameworld.server.replay import Feed, Played, replay, wait_until_ready
from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.moments import MomentTable, read_moments
from sameworld.training.world_file import load_world

try:
    from uvloop import run
except ImportError:
    from asyncio import run

HERE = Path(__file__).parent
UNTIL = show.instant("2013-10-01T04:00:00Z", "UNTIL")  # midnight in New York
DAY = 86_400_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def play(
    port: int,
    server: subprocess.Popen[bytes],
    names: tuple[str, str],
    moments: MomentTable,
    feeds: list[Feed],
) -> Played:
    client = Client("127.0.0.1", port)
    await wait_until_ready(client, server)
    client.retries = 0
    honest, naive = names
    gc.collect()
    gc.freeze()  # what is replayed is long-lived: the collector need not walk it again and again
    with show.progress("replaying October to December", "moments") as progress:
        played = await replay(client, [honest], moments, feeds, together=[naive], progress=progress)
    gc.unfreeze()  # else libraries complain at the end of what was never freed
    await client.close()
    return played


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--days", type=int, default=92)
    arguments.add_argument("--store", help="a Redis to serve from; the store of this host by default")
    options = arguments.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    stages: list[Stage] = []
    began = clock = time.perf_counter()

    def stage(name: str, note: str = "") -> None:
        nonlocal clock
        now = time.perf_counter()
        stages.append(Stage(name, now - clock, note))
        show.say(f"{name}: {now - clock:.1f} s{' - ' + note if note else ''}")
        clock = now

    show.err.print("sameworld demo: which of New York's flights of 2013 will be late?", style="bold")
    tables.fetch()
    counts = tables.lay_out(HERE / "data")
    stage("lay out tables", ", ".join(f"{name} {count:,}" for name, count in counts.items()))

    loaded = load_world(HERE / "world.py")
    model = loaded.model("flight-delay")
    registry = Registry(out / "registry")
    engine = DuckDBEngine()
    trained = {}
    for world in ("event_time", "as_of"):
        trained[world] = train(
            model, registry=registry, world=world, until=UNTIL, engine=engine, say=show.say
        )
        stage(f"train ({world})", f"fit on {trained[world].rows['fit']:,} moments of January to September")

    state = out / "state"
    shutil.rmtree(state, ignore_errors=True)
    end = UNTIL + options.days * DAY
    moments = read_moments(engine, model.moments)
    chosen = (moments.at >= UNTIL) & (moments.at < end)
    moments = MomentTable(moments.at[chosen], moments.fields.filter(pa.array(chosen)))
    feeds = []
    for source in model.sources:
        schema = supported(engine.describe(source.data, source.name))
        feeds.append(Feed(source, *engine.event_json(source, schema, UNTIL, end)))
    port = free_port()
    routes = {
        "flight-delay": trained["as_of"].bundle.address,
        "flight-delay-event-time": trained["event_time"].bundle.address,
    }
    command = [
        sys.executable,
        "-m",
        "sameworld.cli.main",
        "serve",
        *(f"{name}={address}" for name, address in routes.items()),
    ]
    command += [
        "--world",
        str(HERE / "world.py"),
        "--registry",
        str(out / "registry"),
        "--state",
        str(state),
        "--port",
        str(port),
    ]
    command += ["--replay", "--cutover", show.iso(UNTIL), "--durability", "process"]
    command += ["--store", options.store] if options.store else []
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        played = run(play(port, server, tuple(routes), moments, feeds))
    finally:
        server.terminate()
        server.wait(20)
    seconds = np.array(played.seconds)
    stage(
        "serve and replay",
        f"{seconds.size:,} requests for {2 * moments.at.size:,} answers and {played.events:,} events over HTTP, process durability",
    )

    # Against the files alone: the vectors that were served are those that training would compute.
    proof = prove(loaded.models, registry, state, engine=engine, against="files", say=show.say)
    stage("prove", f"{proof.vectors:,} vectors")
    bundles = [trained[world].bundle for world in ("event_time", "as_of")]
    gap = measure(model, bundles, state, engine=engine, against="files", say=show.say)
    stage("compare")

    latency = summary(seconds * 1e3, played)
    report = dataclasses.replace(
        gap.report,
        latency=latency,
        proof=ProofSummary(proof.vectors, proof.values, proof.different, dict(proof.causes)),
        stages=stages,
        rows=sum(counts.values()),
        note="Replayed over HTTP from 2013's records: the flights, their delays and when each became known are real; the requests are simulated.",
    )
    (out / "report.html").write_text(render_gap_report(report))
    result = {
        "model": gap.model,
        "metric": gap.metric,
        "moments": gap.moments,
        "worlds": gap.as_json()["worlds"],
        "prove": {"vectors": proof.vectors, "values": proof.values, "different": proof.different},
        "http": {
            "requests": int(seconds.size),
            "non_200": latency.non_200,
            "p50_ms": latency.p50_ms,
            "p99_ms": latency.p99_ms,
        },
        "seconds": {s.name: round(s.seconds, 1) for s in stages},
    }
    (out / "gap.json").write_text(json.dumps(result, indent=1))
    show.out.print(gap.table())
    ending = Table(show_header=False, box=None)
    ending.add_row(
        "proof",
        f"{proof.vectors:,} vectors, {proof.values:,} values recomputed from the files: {proof.different} different",
    )
    ending.add_row(
        "http",
        f"{seconds.size:,} requests, {latency.non_200} not 200; p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms",
    )
    ending.add_row(
        "report", f"{out / 'report.html'} and {out / 'gap.json'}, after {time.perf_counter() - began:.0f} s"
    )
    show.out.print(ending)
    engine.close()


def summary(milliseconds: np.ndarray, played: Played) -> LatencySummary:
    edges = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, float("inf")]
    counts = np.histogram(milliseconds, bins=[0, *edges])[0]
    bad = sum(count for status, count in played.statuses.items() if status != 200)
    p50, p99 = np.percentile(milliseconds, [50, 99])
    bins = [LatencyBin(float(edge), int(count)) for edge, count in zip(edges, counts, strict=True)]
    return LatencySummary(
        int(milliseconds.size), bad, float(p50), float(p99), float(milliseconds.max()), bins
    )


if __name__ == "__main__":
    main()
