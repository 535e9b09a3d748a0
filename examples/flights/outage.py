"""An outage, rehearsed on real flights: the feed of departures is cut for a replayed week, and four ways to live with that answer the same requests.

Run as `python examples/flights/outage.py OUT`; `--start` and `--days` choose another stretch. One real server serves all four models; what each of them
answered is compared with what came of the flights, and every vector that was served is proved. Then a model learns from what was served in that week,
and is asked in the next one, when departures are cut again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import tables
import world
from demo import DAY, UNTIL, free_port
from rich.table import Table

import sameworld as sw
from sameworld.asof.schema import supported
from sameworld.cli import show
from sameworld.definitions.feature import Aggregate
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.server.client import Client
from sameworld.server.replay import Feed, Played, replay, wait_until_ready
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.fit import train
from sameworld.training.metrics import roc_auc
from sameworld.training.moments import MomentTable, read_moments
from sameworld.training.training_set import TrainingSet, compute

try:
    from uvloop import run
except ImportError:
    from asyncio import run

HERE = Path(__file__).parent
# New York's airports sleep from one to five: departures that are five hours old are a quiet night, six hours old an outage.
FRESH = "6h"
TOLD = {
    "without": "sw.Without(departures): trained without them",
    "nulls": "the full model, nulls in their place",
    "unaware": "the full model, not told of the outage",
    "rate": "sw.Rate(by='carrier')",
    "retrained": "the full model, retrained from the log of the outage before",
}
RESAMPLED = 1000


def models() -> dict[str, sw.Model]:
    """Give the ways: the same model, with the same features, that does something else when departures are stale."""
    departures = msgspec.structs.replace(world.departures, fresh_within=FRESH)
    rate = [sw.Rate(by="carrier"), sw.Constant(0.23)]

    def told(feature: Any, then: Any) -> Any:
        if not isinstance(feature, Aggregate) or feature.source.name != "departures":
            return feature
        feature = msgspec.structs.replace(feature, source=departures)
        return feature if then is None else feature.when_stale(then)

    def model(name: str, then: Any, fallbacks: list[Any]) -> sw.Model:
        features = {key: told(feature, then) for key, feature in world.features.items()}
        return msgspec.structs.replace(
            world.flight_delay, name=name, features=features, fallbacks=tuple(fallbacks)
        )

    return {
        "without": model("without", None, [sw.Without(departures), *rate]),
        "nulls": model("nulls", "null", rate),
        "unaware": msgspec.structs.replace(world.flight_delay, name="unaware"),
        "rate": model("rate", "next_tier", rate),
    }


async def play(port: int, server: Any, names: list[str], moments: MomentTable, feeds: list[Feed]) -> Played:
    client = Client("127.0.0.1", port)
    await wait_until_ready(client, server)
    with show.progress("replaying without departures", "moments") as progress:
        played = await replay(client, names[:1], moments, feeds, together=names[1:], progress=progress)
    await client.close()
    return played


def difference(truth: Any, first: Any, second: Any) -> tuple[float, float]:
    """Give the 95 % interval of the difference of two AUCs on the same moments, resampled."""
    random = np.random.default_rng(0)
    drawn = (random.integers(0, truth.size, truth.size) for _ in range(RESAMPLED))
    found = [
        roc_auc(truth[rows], first[rows]).value - roc_auc(truth[rows], second[rows]).value for rows in drawn
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def rehearse(
    engine: DuckDBEngine, bundles: dict[str, Bundle], registry: Registry, state: Path, start: int, end: int
) -> tuple[MomentTable, Played]:
    """Serve from a state of its own, filled with what was readable at the start, and replay what came until the end, without departures."""
    asked = read_moments(engine, world.schedule)
    chosen = (asked.at >= start) & (asked.at < end)
    moments = MomentTable(asked.at[chosen], asked.fields.filter(pa.array(chosen)))
    feeds = [
        Feed(
            source,
            *engine.event_json(source, supported(engine.describe(source.data, source.name)), start, end),
        )
        for source in (world.arrivals, world.weather)
    ]
    shutil.rmtree(state, ignore_errors=True)
    port = free_port()
    command = [sys.executable, "-m", "sameworld.cli.main", "serve"]
    command += [f"{name}={bundle.address}" for name, bundle in bundles.items()]
    command += ["--world", str(HERE / "world.py"), "--registry", str(registry.folder), "--state", str(state)]
    command += ["--port", str(port), "--replay", "--cutover", show.iso(start), "--durability", "process"]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        return moments, run(play(port, server, list(bundles), moments, feeds))
    finally:
        server.terminate()
        server.wait(20)


def judge(
    truth: TrainingSet, intact: Bundle, moments: MomentTable, played: Played, beside: str
) -> dict[str, Any]:
    """Compare what each way answered with what came of the flights, all beside one of them; print the table.

    Args:
        truth: features and labels of all flights, with no outage.
        intact: what would have answered without one.
        moments, played: what was asked and answered.
        beside: the way that the others are compared with.
    """
    assert truth.label is not None
    scored = np.isin(truth.moments.at, moments.at) & truth.mature
    label = truth.label.cast(pa.float64()).to_numpy(zero_copy_only=False)[scored]
    columns = {name: column.filter(pa.array(scored)) for name, column in truth.features.items()}
    kept = truth.mature[np.isin(truth.moments.at, moments.at)]
    values: dict[str, Any] = {}
    for name, answers in played.answers.items():
        given = np.full(moments.at.size, np.nan)
        given[[number for number, *_ in answers]] = [value for _, value, *_ in answers]
        values[name] = given[kept]
    table = Table("departures are cut", "AUC", "95 %", "answered by the model", f"less than {beside}, 95 %")
    score = roc_auc(label, intact.scores(columns))
    interval = "{0.low:.4f} to {0.high:.4f}".format
    table.add_row("no outage: the full model", f"{score.value:.4f}", interval(score), "", "")
    found: dict[str, Any] = {"flights": int(label.size), "intact": score.value, "ways": {}}
    for name, answers in played.answers.items():
        score = roc_auc(label, values[name])
        share = float(np.mean([tier == "model" for _, _, tier, _ in answers]))
        less = None if name == beside else difference(label, values[beside], values[name])
        apart = f"{less[0]:+.4f} to {less[1]:+.4f}" if less else ""
        table.add_row(TOLD[name], f"{score.value:.4f}", interval(score), f"{share:.1%}", apart)
        found["ways"][name] = {
            "auc": score.value,
            "low": score.low,
            "high": score.high,
            "by_model": share,
            "less": less,
        }
    show.out.print(table)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--start", type=lambda text: show.instant(text, "--start"), default=UNTIL)
    arguments.add_argument("--days", type=int, default=7)
    options = arguments.parse_args()
    out = options.out.resolve()
    tables.fetch()
    tables.lay_out(HERE / "data")
    ways = models()
    registry, engine = Registry(out / "registry"), DuckDBEngine()
    bundles = {
        name: train(model, registry=registry, until=UNTIL, engine=engine, say=show.say).bundle
        for name, model in ways.items()
    }
    truth = compute(world.features, world.schedule, world.late, engine=engine)
    weeks: list[dict[str, Any]] = []

    def outage(names: list[str], start: int, beside: str) -> Path:
        state, end = out / f"state-{len(weeks) + 1}", start + options.days * DAY
        served = {name: bundles[name] for name in names}
        moments, played = rehearse(engine, served, registry, state, start, end)
        proof = prove(ways, registry, state, engine=engine, say=show.say)
        found = judge(truth, bundles["unaware"], moments, played, beside)
        show.out.print(
            f"{found['flights']:,} flights from {show.iso(start)}; {proof.vectors:,} vectors, {proof.values:,} values, {proof.different} different; {played.statuses}"
        )
        weeks.append({"from": show.iso(start), "days": options.days, **found, "prove": proof.as_json(0)})
        return state

    first = outage(list(TOLD)[:-1], options.start, "without")
    # The first week is over. What is known then: history up to it, and what the server was asked, saw and was told in it.
    second = options.start + options.days * DAY
    before = f"{world.schedule.data} AND asked_at < '{show.iso(options.start)}'"
    ways["retrained"] = msgspec.structs.replace(
        ways["nulls"], name="retrained", moments=sw.Moments(before, at="asked_at")
    )
    lived = sw.Moments.from_log("nulls", state=first, features="served")
    again = train(
        ways["retrained"], also=[lived], registry=registry, until=second, engine=engine, say=show.say
    )
    bundles["retrained"] = again.bundle
    outage(["without", "nulls", "retrained"], second, "retrained")
    (out / "outage.json").write_text(json.dumps({"weeks": weeks, "retrained_on": again.rows}, indent=1))
    engine.close()


if __name__ == "__main__":
    main()
