"""Children, one after the other: each step in a process of its own, ended when it takes too long or too much memory."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.asof.contestants import CONTESTANTS, REFERENCE, Contestant
from benchmarks.asof.processes import end, memory, of_session

ROOT = Path(__file__).resolve().parents[2]
SMALL = 2_000
STARTING_SECONDS = 300.0
SURVIVAL_SECONDS = 120.0
LEAST = 50_000
_LOOK = 0.2
_CLEANING_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """What a measured run may take."""

    seconds: float
    gib: float


class Ended(Exception):
    """A child did not come to its end; the message is what the table says."""


@dataclass
class Measured:
    """A contestant's runs at one size."""

    contestant: Contestant
    events: int
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)
    ended: str = ""
    beyond: str = ""

    @property
    def median(self) -> float | None:
        """The median of its runs; None when it has not come to its end each time."""
        return None if self.ended or not self.seconds else statistics.median(self.seconds)


def child(python: str, step: Sequence[str], limits: Limits, folder: Path) -> dict[str, Any]:
    """Run one step; give the last line it said. The clock of the limit starts again when it says that it is ready.

    Args:
        python: the interpreter.
        step: what to do, as `benchmarks.asof.child` takes it.
        limits: what it may take.
        folder: where it lives: an ended child leaves its spilled files there.

    Raises:
        Ended: it failed or was ended.
    """
    paths = [
        str(ROOT),
        *(str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path),
    ]
    places = {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(folder), "SPARK_LOCAL_DIRS": str(folder)}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [python, "-m", "benchmarks.asof.child", *step],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=folder,
            env={**os.environ, **places},
            start_new_session=True,
        )
        try:
            said = _listen(process, limits, folder)
        finally:
            end(process.pid)
            process.wait()
            if process.stdout:
                process.stdout.close()
        if said is None or "failed" in said or said.get("ready"):
            errors.seek(0)
            sys.stderr.write(errors.read().decode(errors="replace")[-4_000:])
            raise Ended("failed: " + (said or {}).get("failed", f"it ended with {process.returncode}"))
        return said


def _listen(process: subprocess.Popen[bytes], limits: Limits, folder: Path) -> dict[str, Any] | None:
    assert process.stdout is not None
    free = least = shutil.disk_usage(folder).free
    said: dict[str, Any] | None = None
    buffer = b""
    begin, seconds = time.monotonic(), max(STARTING_SECONDS, limits.seconds)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=_LOOK):
                got = os.read(process.stdout.fileno(), 65_536)
                if not got:
                    return said
                *lines, buffer = (buffer + got).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    begin = time.monotonic()
                    seconds = limits.seconds
            finished = said is not None and "ready" not in said
            least = min(least, shutil.disk_usage(folder).free)
            if said is not None:
                said["disk"] = free - least
            if time.monotonic() - begin > (_CLEANING_SECONDS if finished else seconds):
                if finished:
                    return said
                raise Ended(f"over {seconds:,.0f} s")
            if not finished and memory(of_session(process.pid), "VmRSS") > limits.gib * 2**30:
                raise Ended(f"over {limits.gib:g} GiB")


@dataclass
class Runner:
    """Data and measurements of one benchmark.

    Args:
        folder: where data are written.
        seed: of the data.
        limits: of every measured run.
        feast: the interpreter that has Feast.
        say: told what happens.
        corrected: whether data with corrections are wanted, too.
    """

    folder: Path
    seed: int
    limits: Limits
    feast: str
    say: Callable[[str], None]
    corrected: bool = True

    def python(self, contestant: Contestant) -> str:
        """Give the interpreter of a contestant."""
        return self.feast if contestant.environment else sys.executable

    def _child(self, python: str, step: Sequence[str], limits: Limits | None = None) -> dict[str, Any]:
        return child(python, step, limits or self.limits, self.folder)

    def data(self, events: int, entities: int = 0) -> Path:
        """Give the folder with data of a size, made when they are first wanted."""
        folder = self.folder / f"{events}-{entities}"
        if not folder.exists():
            self.say(f"making {events:,} events")
            folder.mkdir()
            self._child(
                sys.executable,
                [
                    "generate",
                    str(folder),
                    str(events),
                    str(self.seed),
                    str(entities),
                    str(int(self.corrected)),
                ],
                Limits(3_600, self.limits.gib),
            )
        return folder

    def present(self, names: Sequence[str]) -> tuple[list[Contestant], dict[str, dict[str, str]]]:
        """Give those that can run and their versions; say why the others cannot."""
        found: list[Contestant] = []
        versions: dict[str, dict[str, str]] = {}
        for name in names:
            contestant = CONTESTANTS[name]
            try:
                said = self._child(self.python(contestant), ["describe", name])
            except Ended as ended:
                self.say(f"{name}: not measured: {ended}")
                continue
            if said["missing"] == "library":
                self.say(f"{name}: not installed: pip install {_requirement(contestant)}")
            elif said["missing"]:
                self.say(f"{name}: not measured: it needs {said['missing']}")
            else:
                found.append(contestant)
                versions[name] = said["versions"]
        return found, versions

    def answer(self, contestant: Contestant, folder: Path) -> Path:
        """Give the file with a contestant's answer."""
        file = self.folder / f"{contestant.name}.arrow"
        self._child(self.python(contestant), ["answer", contestant.name, str(folder), str(file)])
        return file

    def once(self, measured: Measured, limits: Limits | None = None) -> None:
        """Run a contestant once more, unless it was ended before."""
        if measured.ended:
            return
        name = measured.contestant.name
        step = ["measure", name, str(self.data(SMALL)), str(self.data(measured.events))]
        try:
            said = self._child(self.python(measured.contestant), step, limits)
        except Ended as ended:
            measured.ended = str(ended)
            self.say(f"{name}, {measured.events:,} events: {ended}")
            return
        measured.seconds.append(said["seconds"])
        measured.processor.append(said["processor"])
        measured.peaks.append(said["peak"])
        measured.disk.append(said["disk"])
        self.say(
            f"{name}, {measured.events:,} events: {said['seconds']:.2f} s, "
            f"{said['processor']:.2f} s of processors, {said['peak'] / 2**20:,.0f} MiB"
        )

    def survived(self, contestant: Contestant, events: int) -> Measured:
        """Give a contestant at the largest size it survives, found by doubling up to `events`; without runs."""
        sizes = [events]
        while sizes[0] // 2 >= LEAST:
            sizes.insert(0, sizes[0] // 2)
        limits = Limits(min(SURVIVAL_SECONDS, self.limits.seconds), self.limits.gib)
        largest = Measured(contestant, sizes[0])
        for size in sizes:
            tried = Measured(contestant, size)
            self.once(tried, limits)
            if tried.ended:
                if size == sizes[0]:
                    return tried
                largest.beyond = f"{tried.ended} at {size:,}"
                return largest
            largest = Measured(contestant, size)
        return largest

    def run(self, contestants: Sequence[Contestant], events: int, rounds: int, slow: float) -> list[Measured]:
        """Measure everybody, in turn, round after round; whoever takes longer than `slow` seconds runs once."""
        taking_part: list[Measured] = []
        for contestant in contestants:
            if contestant.rehearsed:
                self.say(f"{contestant.name}: rehearsing")
                self.once(Measured(contestant, events))
            taking_part.append(
                self.survived(contestant, events) if contestant.doubling else Measured(contestant, events)
            )
        # Beside whoever is measured at a smaller size, the reference at that size.
        if any(contestant.name == REFERENCE for contestant in contestants):
            smaller = sorted({m.events for m in taking_part if not m.ended} - {events})
            taking_part += [Measured(CONTESTANTS[REFERENCE], size) for size in smaller]
        # And whoever spares one the work by hand, at the size of whoever does it so.
        by_hand = {
            measured.contestant.name: measured.events for measured in taking_part if not measured.ended
        }
        taking_part += [
            Measured(contestant, by_hand[contestant.by_hand])
            for contestant in contestants
            if by_hand.get(contestant.by_hand, events) != events
        ]
        for _ in range(rounds):
            for measured in taking_part:
                if max(measured.seconds, default=0.0) <= slow:
                    self.once(measured)
        return taking_part


def _requirement(contestant: Contestant) -> str:
    if contestant.environment:
        return f"-r benchmarks/requirements-feast.txt, into {contestant.environment}"
    pins = (ROOT / "benchmarks" / "requirements.txt").read_text().splitlines()
    return next((pin for pin in pins if pin.startswith(f"{contestant.needs[0]}==")), contestant.needs[0])
