"""Load a server from many connections, break things meanwhile, and check what it promises: `python -m benchmarks.chaos --requests 20000`.

Exit status 1 when a promise was not kept; each is named.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
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

from benchmarks.chaos.doing import INSIDE, VARIABLE, Slow, doing, notes
from benchmarks.chaos.faults import LAST_OF_SHORT_RUNS, Target, faults, swap
from benchmarks.chaos.limits import DEADLINE_SECONDS, TOLERANCE_SECONDS
from benchmarks.chaos.load import Outcome
from benchmarks.chaos.stalls import overlapping
from benchmarks.chaos.world import MOODS, World, make
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.server.client import Client
from sameworld.server.replay import wait_until_ready
from sameworld.stores import event_log
from sameworld.stores.lmdb import Index
from sameworld.stores.prediction_log import predictions
from sameworld.training.bundle import Registry
from sameworld.training.world_file import load_world

_LOADERS = 2
_SHOWN = 25
_RATE = 1500.0
_SWAP_SECONDS = 0.5
_LONGEST_SECONDS = 720.0


@dataclass
class Seen:
    """What all of the load saw together, the machine's stalls, and what was done to the server."""

    outcomes: list[Outcome]
    started: NDArray[np.float64]
    seconds: NDArray[np.float64]
    stalled: NDArray[np.float64]
    target: Target
    elapsed: float


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then, too
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-"))
    try:
        begun = time.monotonic()
        say(f"training in {folder}")
        world = make(folder, () if options.no_faults else MOODS[: options.moods])
        with _disk(world.state, 0 if options.no_faults else _disk_bytes(options.requests)) as disk_bytes:
            seen = asyncio.run(broken(world, options, disk_bytes))
            say(f"checking, after {time.monotonic() - begun:.0f} s")
            facts, wrong = judged(world, seen, latency=not options.no_latency, swaps=options.swaps)
    finally:
        if not options.folder:
            shutil.rmtree(folder, ignore_errors=True)
    facts["seconds in all"] = round(time.monotonic() - begun, 1)
    print(json.dumps(facts, indent=1))
    for sentence in wrong:
        print(f"NOT KEPT: {sentence}")
    if wrong:
        sys.exit(1)
    print("every promise was kept")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument(
        "--rate", type=float, help="requests a second; 1,500 by default, or so many that it takes 12 minutes"
    )
    parser.add_argument("--swaps", type=int, default=0, help="how many bundles to swap at least")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--moods", type=int, default=len(MOODS), help="in how many ways models misbehave")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a fault lasts")
    parser.add_argument("--no-faults", action="store_true", help="for comparison")
    parser.add_argument(
        "--no-latency",
        action="store_true",
        help="print latencies without judging them, where others use the machine",
    )
    parser.add_argument("--folder", help="keep everything there; a folder that is thrown away by default")
    options = parser.parse_args()
    options.rate = options.rate or max(_RATE, options.requests / _LONGEST_SECONDS)
    return options


def _disk_bytes(requests: int) -> int:
    """Give what the state takes in the end, and some."""
    return (256 << 20) + 1000 * requests


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[int]:
    """Have a folder be a disk of its own, in memory; gives its size, or 0 where that is not allowed."""
    folder.mkdir()
    mounted = size and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        if size:
            say("the disk is not filled: that needs root")
        yield 0
        return
    try:
        yield size
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def broken(world: World, options: argparse.Namespace, disk_bytes: int) -> Seen:
    """Run the load, break things until it has ended, and stop the server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["sameworld.cli.main", "serve", "--world", str(world.file), "--registry", str(world.registry)]
    command += ["--state", str(world.state), "--port", str(port), "--workers", str(options.workers)]
    client = Client("127.0.0.1", port)
    target = Target(world, port, client, random.Random(options.seed), options.seconds, disk_bytes)
    with _process([*command, "--guarded-memory", "400MB"], world.folder) as server:
        await wait_until_ready(client, server)
        await _all_answer(target)
        say("breaking things")
        begun = time.monotonic()
        with _process(["benchmarks.chaos.stalls", str(world.folder / "stalls")]) as canary:
            load = [asyncio.create_task(_load(world, port, number, options)) for number in range(_LOADERS)]
            ended = asyncio.Event()
            harm = [] if options.no_faults else [_break(target, ended), _swap(target, ended, _pause(options))]
            breaking = asyncio.gather(*harm)
            outcomes = await asyncio.gather(*load)
            elapsed = time.monotonic() - begun
            ended.set()
            await breaking
            await _all_answer(target)
            canary.terminate()
            canary.wait()
        await client.close()
        server.terminate()
        assert await asyncio.to_thread(server.wait, 60) == 0, "the server did not stop in order"
    stalls = np.frombuffer((world.folder / "stalls").read_bytes()).reshape(-1, 2)
    started = np.concatenate([np.frombuffer(outcome.started) for outcome in outcomes])
    seconds = np.concatenate([np.frombuffer(outcome.seconds) for outcome in outcomes])
    stalled = overlapping(stalls, started, seconds)
    return Seen(outcomes, started, seconds, stalled, target, elapsed)


@contextmanager
def _process(module: Sequence[str], watched: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module; its workers take notes in a folder, where one is given."""
    root = Path(__file__).resolve().parents[2]
    paths = [
        *([str(INSIDE)] if watched else []),
        str(root),
        str(root / "src"),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment |= {VARIABLE: str(watched)} if watched else {}
    process = subprocess.Popen([sys.executable, "-m", *module], env=environment)
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


async def _break(target: Target, ended: asyncio.Event) -> None:
    by_name = faults([mood for mood in target.world.moody if mood])
    for name, fault in itertools.cycle(by_name.items()):
        if ended.is_set() and any(done == LAST_OF_SHORT_RUNS for done, _, _ in target.spans):
            return
        begun = time.monotonic()
        await fault(target)
        target.spans.append((name, begun, time.monotonic()))
        await asyncio.sleep(0.3)


def _pause(options: argparse.Namespace) -> float:
    """Give the seconds from one swap to the next, at which those that are asked for are done in time."""
    return min(_SWAP_SECONDS, 0.8 * options.requests / options.rate / max(options.swaps, 1))


async def _swap(target: Target, ended: asyncio.Event, pause: float) -> None:
    """Swap the steady model for one that is as good, all the time."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    for address in itertools.cycle(target.world.steady):
        await asyncio.sleep(max(due - loop.time(), 0.05))
        due += pause
        if ended.is_set():
            return
        await swap(target, "steady", address)


def judged(world: World, seen: Seen, *, latency: bool, swaps: int) -> tuple[dict[str, Any], list[str]]:
    """Give what was found, and every promise that was not kept."""
    wrong: list[str] = []

    def expect(kept: bool, sentence: str) -> None:
        if not kept:
            wrong.append(sentence)

    statuses: Counter[int] = Counter()
    answers: dict[str, Counter[str]] = {}
    refused: Counter[str] = Counter()
    for outcome in seen.outcomes:
        refused.update(outcome.refused)
        statuses.update(outcome.statuses)
        for model, counts in outcome.answers.items():
            answers.setdefault(model, Counter()).update(counts)
    expect(seen.target.done["swaps"] >= swaps, f"bundles were swapped {seen.target.done['swaps']} times only")
    expect(set(statuses) == {200}, f"a request got another status than 200: {dict(statuses)}")

    said = [identity for outcome in seen.outcomes for identity in outcome.logged]
    kept = Counter("damaged" if p is None else p.id for _, p in predictions(world.state))
    twice = sum(count > 1 for count in kept.values()) + len(said) - len(set(said))
    missing = sum(identity not in kept for identity in said)
    expect(not twice and "damaged" not in kept, f"{twice} answers are in the log more than once")
    expect(not missing, f"{missing} answers were said to be logged and are not in the log")

    acknowledged = {key for outcome in seen.outcomes for key in outcome.acknowledged} | {
        *seen.target.acknowledged
    }
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
    during: Counter[str] = Counter()
    for begun in seen.started[latencies["without the machine's stalls"] > limit].tolist():
        during[next((name for name, since, until in seen.target.spans if since <= begun < until), "no fault")] += 1  # fmt: skip
    taken = notes(world.folder)
    slow = [Slow(*each) for outcome in seen.outcomes for each in outcome.slow]
    spent = sum((doing(each, taken) for each in slow if each.seconds > limit), Counter[str]())
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
        "faults": dict(seen.target.done),
        "answers": {model: dict(counts.most_common()) for model, counts in answers.items()},
        "milliseconds": percentiles,
        "answers later than the limit, by what was being done": dict(during.most_common()),
        "milliseconds of these that their workers spent": {
            what: round(seconds * 1e3) for what, seconds in spent.most_common(_SHOWN)
        },
        "connections cut and requests sent again": len(cut),
        "longest wait of these, in ms": round(max(cut, default=0.0) * 1e3, 1),
        "logged": len(said),
        "not logged, and said so": sum(outcome.unlogged for outcome in seen.outcomes),
        "in the log, their connection cut before the answer": len(kept) - len(set(said)),
        "events acknowledged": len(acknowledged),
        "events refused at first": dict(refused.most_common()),
        "vectors proved": proof.vectors,
        "vectors different": proof.different,
    }
    return facts, wrong


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
