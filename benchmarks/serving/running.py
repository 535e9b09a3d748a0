"""A contestant's server as a process: started on its processors, asked, counted, ended with all that it started. Linux only."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from benchmarks.asof.processes import descendants, ticks
from benchmarks.asof.runner import ROOT
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.install import REASON
from benchmarks.serving.load import pinned
from benchmarks.serving.world import TREES_FILE

ENVIRONMENTS = ROOT / ".venv-serving"
_PEERS = Path(__file__).parent / "peers"
_START_SECONDS, _STOP_SECONDS = 120.0, 20.0
_SUBREAPER = 36
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class NotRunningError(Exception):
    """Why a contestant cannot be measured."""


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends, so that none is lost: some servers detach theirs."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def machine_seconds() -> float:
    """Give the processor time that everything on the machine has taken so far, with what a host took from it."""
    user, nice, system, _, _, *interrupts_and_stolen = Path("/proc/stat").read_text().split()[1:9]
    taken = [user, nice, system, *interrupts_and_stolen]
    return sum(map(int, taken)) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A contestant that runs.

    Args:
        seconds: from its start to its first answer.
    """

    contestant: Contestant
    port: int
    seconds: float

    def ask(self, body: bytes, timeout: float = 30.0) -> tuple[int, str]:
        """Send one request on a connection of its own; give the status, and what was said."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", self.contestant.path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def at_once(self, bodies: Sequence[bytes]) -> list[Any]:
        """Send requests at the same moment; give every one's number."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return [self._number(said) for _, said in pool.map(self.ask, bodies)]

    def _number(self, said: str) -> Any:
        answer = json.loads(said)
        for key in self.contestant.answer:
            answer = answer[key]
        return answer

    def answers(self, body: bytes) -> bool:
        """Whether it answers as it is to."""
        with suppress(OSError, HTTPException):
            status, said = self.ask(body, 5.0)
            return status == 200 and all(text in said for text in self.contestant.wanted)
        return False

    def processor_seconds(self) -> float:
        """Give what the server and all that it started have taken so far, on all cores together."""
        return sum(map(ticks, descendants(os.getpid()))) / os.sysconf("SC_CLK_TCK")


def missing(contestant: Contestant) -> str:
    """Say why a contestant is not installed; nothing where it is."""
    made = ENVIRONMENTS / contestant.environment
    if not contestant.environment or (made / f"{contestant.environment}.txt").exists():
        return ""
    reason = made / REASON
    return reason.read_text() if reason.exists() else "not installed: make bench-serving installs it"


@contextmanager
def running(contestant: Contestant, folder: Path, body: bytes, cores: Sequence[int]) -> Iterator[Server]:
    """Have a contestant run, until it has answered a first time; nothing of it is left afterwards.

    Args:
        contestant: whom; the only process below this one meanwhile, but for those that end before they are counted.
        folder: with the world and the trees; it gets a folder there.
        body: of the first request.
        cores: the processors that it may use.

    Raises:
        NotRunningError: it ended or did not answer; with the end of what it said.
    """
    own = folder / contestant.name.replace(" ", "-")
    own.mkdir(exist_ok=True)
    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, other_port = probe.getsockname()[1], other.getsockname()[1]
    home = ENVIRONMENTS / contestant.environment if contestant.environment else Path(sys.prefix)
    words = {
        "port": port,
        "other_port": other_port,
        "bin": home / "bin",
        "libraries": sysconfig.get_config_var("LIBDIR"),
        "peers": _PEERS,
        "folder": folder,
        "workers": len(cores),
        "model": folder / TREES_FILE,
        "paths": _PEERS if contestant.environment else os.pathsep.join([str(ROOT / "src"), str(folder)]),
    }
    env = {
        **os.environ,
        **_QUIET,
        "PYTHONPATH": str(words["paths"]),
        "MODEL": str(words["model"]),
        "PORT": str(port),
    }
    env["PATH"] = f"{words['bin']}{os.pathsep}{env['PATH']}"
    env |= {name: value.format(**words) for name, value in contestant.variables.items()}
    log = own / "server.log"
    if not log.exists():
        for name, content in contestant.files.items():
            (own / name).write_text(json.dumps(content).replace("{model}", str(words["model"])))
        if contestant.before:
            before = _filled(contestant.before, words)
            subprocess.run(before, cwd=own, env=env, check=True, capture_output=True)
    began = time.monotonic()
    with log.open("wb") as said:
        process = subprocess.Popen(
            pinned(_filled(contestant.command, words), cores),
            cwd=own,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Server(contestant, port, 0.0)
        while not server.answers(body):
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                end = log.read_text(errors="replace")[-2_000:]
                raise NotRunningError(f"it did not answer; it said: {end.strip() or 'nothing'}")
            time.sleep(0.05)
        yield Server(contestant, port, time.monotonic() - began)
    finally:
        _stop(process)


def _filled(command: str, words: Mapping[str, Any]) -> list[str]:
    return [word.format(**words) for word in command.split()]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then tell everything that it started."""
    process.terminate()
    for sign in (None, signal.SIGTERM, signal.SIGKILL):
        for left in descendants(os.getpid()) if sign else []:
            with suppress(ProcessLookupError):
                os.kill(left, sign)
        until, none_seen = time.monotonic() + _STOP_SECONDS, 0
        while time.monotonic() < until:
            process.poll()
            with suppress(ChildProcessError):
                while process.returncode is not None and os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            # Twice: a parent that ends while /proc is read hides its children once.
            none_seen = 0 if descendants(os.getpid()) else none_seen + 1
            if none_seen == 2:
                return
            time.sleep(0.05)
    raise AssertionError(f"left running: {descendants(os.getpid())}")
