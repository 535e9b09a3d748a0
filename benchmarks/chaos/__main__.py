"""Load a server from many connections, break things meanwhile, and check what it promises: `python -m benchmarks.chaos --requests 20000`.

Exit status 1 when a promise was not kept; each is named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.chaos.faults import FAULTS, Target
from benchmarks.chaos.load import Outcome
from benchmarks.chaos.stalls import overlapping
from benchmarks.chaos.world import DEADLINE_SECONDS, World, make
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.server.client import Client
from sameworld.server.replay import wait_until_ready
from sameworld.stores import event_log
from sameworld.stores.lmdb import Index
from sameworld.stores.prediction_log import predictions
from sameworld.training.bundle import Registry
from sameworld.training.world_file import load_world

TOLERANCE_SECONDS = 0.020
_LOADERS = 2


@dataclass
class Seen:
    """What all of the load saw together, and the machine's stalls."""

    outcomes: list[Outcome]
    started: NDArray[np.float64]
    seconds: NDArray[np.float64]
    stalled: NDArray[np.float64]
    faults: Counter[str]
    elapsed: float


def main() -> None:
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-"))
    try:
        say(f"training in {folder}")
        world = make(folder)
        seen = asyncio.run(broken(world, options))
        facts, wrong = judged(world, seen, latency=not options.no_latency)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(facts, indent=1))
    for sentence in wrong:
        print(f"NOT KEPT: {sentence}")
    if wrong:
        sys.exit(1)
    print("every promise was kept")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=1500.0, help="requests a second")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--no-faults", action="store_true", help="for comparison")
    parser.add_argument(
        "--no-latency",
        action="store_true",
        help="print latencies without judging them, where others use the machine",
    )
    parser.add_argument("--folder", help="keep everything there; a folder that is thrown away by default")
    return parser.parse_args()


async def broken(world: World, options: argparse.Namespace) -> Seen:
    """Run the load, break things until it has ended, and stop the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["sameworld.cli.main", "serve", "--world", str(world.file), "--registry", str(world.registry)]
    command += ["--state", str(world.state), "--port", str(port), "--workers", str(options.workers)]
    target = Target(world, port, random.Random(options.seed))
    with _process([*command, "--guarded-memory", "400MB"]) as server:
        client = Client("127.0.0.1", port)
        await wait_until_ready(client, server)
        await _all_answer(target)
        say("breaking things")
        begun = time.monotonic()
        with _process(["benchmarks.chaos.stalls", str(world.folder / "stalls")]) as canary:
            load = [asyncio.create_task(_load(world, port, number, options)) for number in range(_LOADERS)]
            breaking = asyncio.create_task(_break(target))
            if options.no_faults:
                breaking.cancel()
            outcomes = await asyncio.gather(*load)
            elapsed = time.monotonic() - begun
            breaking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await breaking
            world.set_mood("")
            await _all_answer(target)
            canary.terminate()
            canary.wait()
        await client.close()
        server.terminate()
        assert await asyncio.to_thread(server.wait, 60) == 0, "the server did not stop in order"
    stalls = np.frombuffer((world.folder / "stalls").read_bytes()).reshape(-1, 2)
    started = np.concatenate([np.frombuffer(outcome.started) for outcome in outcomes])
    seconds = np.concatenate([np.frombuffer(outcome.seconds) for outcome in outcomes])
    return Seen(outcomes, started, seconds, overlapping(stalls, started, seconds), target.done, elapsed)


@contextmanager
def _process(module: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", *module], env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def _all_answer(target: Target) -> None:
    async with asyncio.timeout(60):
        while not all(worker["answers"] for worker in target.workers()):
            await asyncio.sleep(0.05)


async def _load(world: World, port: int, number: int, options: argparse.Namespace) -> Outcome:
    out = world.folder / f"outcome-{number}"
    share = [options.connections // _LOADERS, options.requests // _LOADERS, options.rate / _LOADERS]
    with _process(["benchmarks.chaos.load", str(port), *map(str, share), str(number), str(out)]) as process:
        if await asyncio.to_thread(process.wait) != 0:
            raise SystemExit("a process of the load ended before its time")
    return msgspec.msgpack.decode(out.read_bytes(), type=Outcome)


async def _break(target: Target) -> None:
    while True:
        for fault in FAULTS:
            await fault(target)
            await asyncio.sleep(0.3)


def judged(world: World, seen: Seen, *, latency: bool) -> tuple[dict[str, Any], list[str]]:
    """Give what was found, and every promise that was not kept."""
    wrong: list[str] = []

    def expect(kept: bool, sentence: str) -> None:
        if not kept:
            wrong.append(sentence)

    statuses: Counter[int] = Counter()
    answers: dict[str, Counter[str]] = {}
    for outcome in seen.outcomes:
        statuses.update(outcome.statuses)
        for model, counts in outcome.answers.items():
            answers.setdefault(model, Counter()).update(counts)
    expect(set(statuses) == {200}, f"a request got another status than 200: {dict(statuses)}")

    said = [identity for outcome in seen.outcomes for identity in outcome.logged]
    kept = Counter("damaged" if p is None else p.id for _, p in predictions(world.state))
    twice = sum(count > 1 for count in kept.values()) + len(said) - len(set(said))
    missing = sum(identity not in kept for identity in said)
    expect(not twice and "damaged" not in kept, f"{twice} answers are in the log more than once")
    expect(not missing, f"{missing} answers were said to be logged and are not in the log")

    acknowledged = {key for outcome in seen.outcomes for key in outcome.acknowledged}
    delivered = Counter(delivery.key for _, delivery in event_log.deliveries(world.state / "events"))
    lost = len(acknowledged - set(delivered))
    index = Index(world.state / "index")
    with index.read() as txn:
        sequence = index.get(txn, "sequence", 0)
    index.close()
    expect(not lost, f"{lost} acknowledged events are not in the event log")
    expect(max(delivered.values(), default=1) == 1, "an event is in the event log more than once")
    expect(sequence == delivered.total(), f"the store has {sequence} deliveries of {delivered.total()}")

    latencies = {"as seen": seen.seconds, "without the machine's stalls": seen.seconds - seen.stalled}
    percentiles = {
        name: {f"p{q:g}": round(float(np.percentile(values, q)) * 1e3, 2) for q in (50, 99, 99.9, 99.99, 100)}
        for name, values in latencies.items()
    }
    limit = DEADLINE_SECONDS + TOLERANCE_SECONDS
    late = float(np.percentile(latencies["without the machine's stalls"], 99.9))
    expect(
        late <= limit or not latency, f"p99.9 is {late * 1e3:.1f} ms, which is more than {limit * 1e3:.0f} ms"
    )

    proof = prove(
        load_world(world.file).models,
        Registry(world.registry),
        world.state,
        engine=DuckDBEngine(world.folder),
        against="log",
    )
    expect(proof.different == 0, f"{proof.different} of {proof.vectors} vectors differ from their sources")
    cut = [waited for outcome in seen.outcomes for _, waited in outcome.cut]
    facts = {
        "requests answered": statuses.total(),
        "a second": round(statuses.total() / seen.elapsed),
        "faults": dict(seen.faults),
        "answers": {model: dict(counts.most_common()) for model, counts in answers.items()},
        "milliseconds": percentiles,
        "connections cut and requests sent again": len(cut),
        "longest wait of these, in ms": round(max(cut, default=0.0) * 1e3, 1),
        "logged": len(said),
        "not logged, and said so": sum(outcome.unlogged for outcome in seen.outcomes),
        "in the log, their connection cut before the answer": len(kept) - len(set(said)),
        "events acknowledged": len(acknowledged),
        "vectors proved": proof.vectors,
        "vectors different": proof.different,
    }
    return facts, wrong


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
