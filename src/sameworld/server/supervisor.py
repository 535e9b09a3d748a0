"""Keeps workers answering behind one port: takes the port, starts them, replaces the dead and the frozen, and drains them at the end. Answers nothing itself.

Run as `python -m sameworld.server.supervisor`, by `instead`: it has one thread and has only imported, so that workers are forked of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from sameworld.errors import SameworldError
from sameworld.server import worker as worker_process
from sameworld.server.config import ENVIRONMENT, ServerConfig, from_environment
from sameworld.server.counts import place
from sameworld.server.forked import SETTINGS, Forked, can_fork, forked
from sameworld.server.http import BACKLOG
from sameworld.server.worker import LONGEST_DRAIN_SECONDS, bound
from sameworld.serving.supervision import BEAT_SECONDS, pause_before, verdict

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SPARE_SECONDS = 5.0
_AGAIN_SECONDS = 0.5


@dataclass
class _Worker:
    """One place for a worker, and who has it. Times are seconds on the steady clock; `heard` is 0 until its loop turns. `counts` are those of all who had it."""

    number: int
    counts: int
    process: subprocess.Popen[bytes] | Forked | None = None
    heartbeat: int = -1
    since: float = 0.0
    heard: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    replaced: int = 0
    cause: str = ""


class Supervisor:
    """Runs until SIGTERM or SIGINT.

    Args:
        config: the server's.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._workers = [_Worker(number, place()) for number in range(config.workers)]
        self._selector = selectors.DefaultSelector()
        self._answered = False
        self._noted = True
        self._stopping = False

    def run(self) -> None:
        """Keep workers alive; drain them when told to stop.

        Raises:
            SameworldError: the port cannot be had, or the first workers end before any of them answers.
        """
        self._listener = _taken(self._config)
        self._port = self._listener.getsockname()[1]
        before = {number: signal.signal(number, self._stop) for number in _STOPPING}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        try:
            self._keep()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _keep(self) -> None:
        ticked = time.monotonic()
        while not self._stopping:
            for worker in self._workers:
                if worker.process is None and time.monotonic() >= worker.start_at:
                    self._start(worker)
            if not self._noted:
                self._note()
            self._listen_for(BEAT_SECONDS)
            now = time.monotonic()
            # While this process had no turn itself, nobody's silence counts.
            missed = max(now - ticked - 2 * BEAT_SECONDS, 0.0)
            ticked = now
            for worker in self._workers:
                if worker.process is None:
                    continue
                if worker.heard:
                    worker.heard += missed
                    why = verdict(now - worker.heard, stopped=_is_stopped(worker.process.pid))
                    if why:
                        worker.process.kill()
                        self._lost(worker, why)
                        continue
                if (status := worker.process.poll()) is not None:
                    self._lost(worker, _ending(status))

    def _start(self, worker: _Worker) -> None:
        ours, theirs = os.pipe()
        counts = [worker.counts, *(other.counts for other in self._workers if other is not worker)]
        places = ",".join(map(str, counts))
        arguments = [str(theirs), places]
        given = [theirs, *counts]
        if (
            self._config.workers == 1
        ):  # nobody to share with: connections wait in this queue while it is replaced
            arguments.append(str(self._listener.fileno()))
            given.append(self._listener.fileno())
        config = msgspec.structs.replace(self._config, port=self._port)
        worker.process = _begun(arguments, given, config)
        os.close(theirs)
        os.set_blocking(ours, False)
        worker.heartbeat, worker.since, worker.heard = ours, time.time(), 0.0
        self._selector.register(ours, selectors.EVENT_READ, worker)
        self._note()

    def _listen_for(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            worker: _Worker = key.data
            with contextlib.suppress(BlockingIOError):
                if os.read(key.fd, 4096):
                    first, worker.heard = not worker.heard, time.monotonic()
                    if first:
                        self._answered = True
                        self._note()
                else:  # its end is closed: it is ending
                    self._selector.unregister(key.fd)
                    assert worker.process is not None
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        worker.process.wait(BEAT_SECONDS)

    def _lost(self, worker: _Worker, cause: str) -> None:
        assert worker.process is not None
        worker.process.wait()
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.heartbeat)
        os.close(worker.heartbeat)
        pid, worker.process = worker.process.pid, None
        if not self._answered:
            raise SameworldError(
                f"The server did not start: {cause} before it answered.",
                where=f"worker {worker.number}, process {pid}",
                do="see what it wrote above, correct that, and start again.",
            )
        worker.failures = 0 if worker.heard else worker.failures + 1
        worker.heard = 0.0
        worker.start_at = time.monotonic() + pause_before(worker.failures)
        worker.replaced += 1
        worker.cause = cause
        self._note()
        _say("worker replaced", worker=worker.number, pid=pid, cause=cause)

    def _note(self) -> None:
        """Write who works beside the store, for those who want to know."""
        facts = {
            "supervisor": os.getpid(),
            "port": self._port,
            "workers": [
                {
                    "worker": worker.number,
                    "pid": worker.process.pid if worker.process else None,
                    "since": worker.since,
                    "answers": worker.heard > 0.0,
                    "replaced": worker.replaced,
                    "cause": worker.cause,
                }
                for worker in self._workers
            ],
        }
        fresh = self._place.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(facts))
            os.replace(fresh, self._place)
        except OSError:  # a full disk must not end who keeps the others alive; it is tried again
            self._noted = False
        else:
            self._noted = True

    @property
    def _place(self) -> Path:
        return workers_file(self._config, self._port)

    def _end(self) -> None:
        alive = [worker.process for worker in self._workers if worker.process is not None]
        until = time.monotonic() + self._config.drain_seconds + LONGEST_DRAIN_SECONDS + _SPARE_SECONDS
        while alive and time.monotonic() < until:
            for (
                process
            ) in alive:  # again and again: one that was just about to turn its loop has lost the first
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                alive[0].wait(_AGAIN_SECONDS)
            alive = [process for process in alive if process.poll() is None]
        for process in alive:
            process.kill()
            process.wait()
        self._listener.close()
        for worker in self._workers:
            os.close(worker.counts)
        with contextlib.suppress(OSError):
            self._place.unlink(missing_ok=True)


def _begun(
    arguments: Sequence[str], given: Sequence[int], config: ServerConfig
) -> subprocess.Popen[bytes] | Forked:
    """Begin a worker, in a group of its own: Ctrl-C is for the supervisor, which drains."""
    told = {ENVIRONMENT: msgspec.json.encode(config).decode()}
    if not can_fork():
        command = [sys.executable, "-m", "sameworld.server.worker", *arguments]
        return subprocess.Popen(command, pass_fds=given, env={**os.environ, **told}, process_group=0)

    def run() -> None:
        os.setpgid(0, 0)
        os.environ.update(told)
        worker_process.main(arguments)

    return forked(run, given)


def workers_file(config: ServerConfig, port: int) -> Path:
    """Where the supervisor of a port writes who works: JSON with each one's process, since when, whether it answers yet, how often it was replaced and why last."""
    return Path(config.state) / f"workers-{port}.json"


def _taken(config: ServerConfig) -> socket.socket:
    """Take the port, alone: a second server is refused. Where there are several workers, let them in, and only hold it."""
    try:
        alone = bound(config.host, config.port, together=False)
        if config.workers == 1:
            alone.listen(BACKLOG)
            return alone
        alone.listen(1)  # is refused where another listens
        port = alone.getsockname()[1]
        alone.close()
        return bound(config.host, port, together=True)
    except OSError as error:
        raise SameworldError(
            f"The server cannot listen at {config.host}:{config.port}: {os.strerror(error.errno or 0)}.",
            do="stop what listens there, or give another --host or --port.",
        ) from error


def _is_stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has gone, or this system does not say
        return False
    return stat.rpartition(") ")[2][:1] in "Tt"


def _ending(status: int) -> str:
    return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"


def _say(incident: str, **facts: object) -> None:
    line = {"time": time.time(), "incident": incident, **facts}
    sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
    sys.stderr.flush()


def instead(config: ServerConfig, *, as_json: bool = False) -> NoReturn:
    """Let this process be the supervisor, and nothing of what it was.

    Args:
        as_json: whether an error is printed on stdout as JSON; on stderr otherwise.
    """
    told = {**SETTINGS, **os.environ, ENVIRONMENT: msgspec.json.encode(config).decode()}
    sys.stdout.flush()
    sys.stderr.flush()
    # Whoever stops the server while this imports is heard once it can be done in order.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    command = [sys.executable, "-m", "sameworld.server.supervisor", *(["--json"] if as_json else [])]
    os.execve(sys.executable, command, told)


def main(arguments: Sequence[str]) -> int:
    """Keep workers; give the exit status."""
    gc.freeze()  # what all share is not written to
    try:
        Supervisor(from_environment()).run()
    except SameworldError as error:
        if "--json" in arguments:
            sys.stdout.write(msgspec.json.encode(error.as_json()).decode() + "\n")
        else:
            sys.stderr.write(f"{error.text()}\n")
        return 1
    finally:
        gc.unfreeze()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
