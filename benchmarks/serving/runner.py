"""Everybody in turn, round after round: started, checked, loaded, ended."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from benchmarks.serving.contestants import COLLECTIONS, Contestant
from benchmarks.serving.load import Client, Load, Seen
from benchmarks.serving.running import NotRunningError, Server, machine_seconds, running
from benchmarks.serving.world import entities, lightgbm_says, rows
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.prove import prove
from sameworld.training.bundle import Registry
from sameworld.training.world_file import load_world

AT_ONCE = 48


class WrongError(Exception):
    """An answer that is not LightGBM's own, or a feature that its sources do not give."""


@dataclass
class Measured:
    """What came of a contestant.

    Args:
        left_out: why there is nothing, or no more.
        start_seconds: until the first answer, a round.
        seen, processor_seconds: connections -> what was seen, and what the server took meanwhile, a round.
        others: the share of a core that neither server nor client used, a load.
        collections: connections -> what each collection of garbage took, in milliseconds of processor time; where they are watched.
    """

    contestant: Contestant
    left_out: str = ""
    start_seconds: list[float] = field(default_factory=list[float])
    seen: dict[int, list[Seen]] = field(default_factory=dict[int, list[Seen]])
    processor_seconds: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    others: list[float] = field(default_factory=list[float])
    collections: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def median(self, connections: int, of: Callable[[Seen], float]) -> float | None:
        """Give the median of the rounds, None when there was none."""
        return statistics.median(map(of, seen)) if (seen := self.seen.get(connections)) else None

    def rate(self, connections: int) -> float | None:
        """Give the median of requests a second."""
        return self.median(connections, lambda seen: seen.requests / seen.seconds)

    def processor_microseconds(self, connections: int) -> float | None:
        """Give the median of the processor time that the server took for a request."""
        pairs = zip(self.processor_seconds.get(connections, []), self.seen.get(connections, []), strict=True)
        each = [seconds / max(seen.requests, 1) * 1e6 for seconds, seen in pairs]
        return statistics.median(each) if each else None

    @property
    def failed(self) -> int:
        """How many requests of all rounds had no good answer."""
        return sum(seen.failed for all_seen in self.seen.values() for seen in all_seen)


@dataclass
class Runner:
    """What everybody is asked, from where, and who is told.

    Args:
        folder: with the world.
        requests: how many different ones there are.
        client: sends them.
        server_cores, client_cores: the processors of each.
        say: told what happens.
    """

    folder: Path
    requests: int
    client: Client
    server_cores: Sequence[int]
    client_cores: Sequence[int]
    say: Callable[[str], None]

    @cached_property
    def _rows(self) -> list[list[float]]:
        return rows(self.requests)

    @cached_property
    def _expected(self) -> list[float]:
        return lightgbm_says(self.folder, self._rows[:AT_ONCE])

    def _bodies(self, contestant: Contestant) -> list[bytes]:
        if contestant.of_entities:
            return [msgspec.json.encode({"request": asked}) for asked in entities(self.requests)]
        return [msgspec.json.encode(contestant.body(row)) for row in self._rows]

    def run(
        self,
        taking_part: Sequence[Measured],
        rounds: int,
        connections: Sequence[int],
        seconds: float,
        warm_seconds: float,
    ) -> None:
        """Measure everybody, in turn, round after round; who does not start is left out from then on.

        Raises:
            WrongError: an answer is.
        """
        for turn in range(rounds):
            for measured in taking_part:
                if not measured.left_out:
                    self._once(measured, turn, connections, seconds, warm_seconds)

    def _once(
        self, measured: Measured, turn: int, connections: Sequence[int], seconds: float, warm_seconds: float
    ) -> None:
        contestant = measured.contestant
        bodies = self._bodies(contestant)
        file = self.folder / f"{contestant.name}.jsonl".replace(" ", "-")
        file.write_bytes(b"\n".join(bodies))
        try:
            if contestant.of_entities and turn == 0:
                self._prove(contestant, bodies)
            with running(contestant, self.folder, bodies[0], self.server_cores) as server:
                self._check(server, bodies)
                measured.start_seconds.append(server.seconds)
                load = Load(server.port, contestant.path, file, contestant.wanted)
                self.client(load, 16, warm_seconds, self.client_cores)
                known = len(self._collections())
                for count in connections:
                    before, machine, began = server.processor_seconds(), machine_seconds(), time.monotonic()
                    seen = self.client(load, count, seconds, self.client_cores)
                    took = server.processor_seconds() - before
                    others = machine_seconds() - machine - took - seen.busy * seen.seconds
                    others /= time.monotonic() - began
                    measured.seen.setdefault(count, []).append(seen)
                    measured.processor_seconds.setdefault(count, []).append(took)
                    measured.others.append(others)
                    all_collections = self._collections()
                    measured.collections.setdefault(count, []).extend(all_collections[known:])
                    known = len(all_collections)
                    self.say(
                        f"{contestant.name}, {count} connections: {seen.requests / seen.seconds:,.0f} a second, p50 {seen.p50_ms:.2f} ms, "
                        f"p99 {seen.p99_ms:.1f} ms, {took / max(seen.requests, 1) * 1e6:.0f} us, {seen.failed} failed; client {seen.busy:.0%} busy, others {others:.0%}"
                    )
        except NotRunningError as error:
            measured.left_out = str(error)
            self.say(f"{contestant.name} is left out: {error}")

    def _collections(self) -> list[float]:
        """Give what each collection of garbage has taken so far, where they are watched, in milliseconds."""
        file = self.folder / COLLECTIONS
        return [int(line) / 1e3 for line in file.read_text().split()] if file.exists() else []

    def _check(self, server: Server, bodies: Sequence[bytes]) -> None:
        """Ask different rows at the same moment: does every caller get its own row's answer, to the last bit?"""
        answers = server.at_once(bodies[:AT_ONCE])
        if server.contestant.of_entities:
            return
        for row, (answer, expected) in enumerate(zip(answers, self._expected, strict=True)):
            if answer != expected:
                raise WrongError(
                    f"{server.contestant.name}: row {row} of {AT_ONCE} sent at once\n  expected: {expected!r}\n  found: {answer!r}"
                )

    def _prove(self, contestant: Contestant, bodies: Sequence[bytes]) -> None:
        """Have features read, and recompute every one of them from its sources."""
        with running(contestant, self.folder, bodies[0], self.server_cores) as server:
            self._check(server, bodies)
        state = self.folder / f"state-{contestant.model}"
        models = load_world(self.folder / "world.py").models
        proof = prove(models, Registry(self.folder / "registry"), state, engine=DuckDBEngine(self.folder))
        if proof.different or proof.vectors < AT_ONCE:
            raise WrongError(
                f"{contestant.name}: {proof.different} of {proof.vectors} vectors differ from their sources"
            )
        self.say(f"{contestant.name}: {proof.vectors} vectors are what their sources give")
