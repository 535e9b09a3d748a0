"""Load on one server: different requests in turn from some connections, each with one at a time, for some seconds. wrk does it, or a slow client of our own."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """Give a command that keeps itself and all it starts to some processors."""
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


_JSON = {"content-type": "application/json"}
_SCRIPT = """
local method, headers, bodies, wanted = "POST", {["Content-Type"] = "application/json"}, {}, {WANTED}
local requests, turn = {}, 0
failed = 0
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  for line in io.lines("BODIES") do requests[#requests + 1] = wrk.format(method, "PATH", headers, line) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
if #wanted > 0 then
  function response(status, headers, body)
    for _, text in ipairs(wanted) do
      if status ~= 200 or not string.find(body, text, 1, true) then failed = failed + 1 break end
    end
  end
end
function done(summary, latency)
  local e, wrong = summary.errors, 0
  for _, thread in ipairs(threads) do wrong = wrong + thread:get("failed") end
  if #wanted == 0 then wrong = e.status end
  print(string.format('{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "p999": %d, "failed": %d}', summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9), wrong + e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class Seen:
    """What a load saw.

    Args:
        requests, failed: how many were answered; how many of them not with 200, or, of ours, not by the model or not logged.
        seconds: how long it took.
        p50_ms, p99_ms, p999_ms: milliseconds from a request to its answer; of a thousand requests one took longer than the last.
        busy: what share of a processor the client used; near 1 it is what was measured.
    """

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    busy: float


@dataclass(frozen=True)
class Load:
    """What a contestant is asked.

    Args:
        port, path: where.
        bodies: a file with a request's body a line; sent in turn.
        wanted: texts that every answer must contain.
    """

    port: int
    path: str
    bodies: Path
    wanted: Sequence[str]

    def wrk(self, connections: int, seconds: float, cores: Sequence[int]) -> Seen:
        """Send with one thread of wrk."""
        script = self.bodies.with_suffix(".lua")
        texts = ", ".join(f"'{text}'" for text in self.wanted)
        script.write_text(
            _SCRIPT.replace("WANTED", texts).replace("BODIES", str(self.bodies)).replace("PATH", self.path)
        )
        before = _children_seconds()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "-s", str(script)]
        done = subprocess.run(
            pinned([*command, f"http://127.0.0.1:{self.port}"], cores),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        busy = _children_seconds() - before
        said = json.loads(done.stdout.splitlines()[-1])
        took = said["microseconds"] / 1e6
        p50, p99, p999 = (said[name] / 1e3 for name in ("p50", "p99", "p999"))
        return Seen(said["requests"], said["failed"], took, p50, p99, p999, busy / took)

    def threads(self, connections: int, seconds: float, cores: Sequence[int]) -> Seen:
        """Send with threads of this process: works anywhere, and is slower than what it measures."""
        bodies = self.bodies.read_bytes().splitlines()
        until, taken, failed = time.monotonic() + seconds, [], []

        def send(first: int) -> None:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
            turn = first
            while time.monotonic() < until:
                began = time.perf_counter()
                try:
                    connection.request("POST", self.path, bodies[turn % len(bodies)], _JSON)
                    response = connection.getresponse()
                    said = response.read().decode()
                except (OSError, HTTPException):
                    connection.close()
                    failed.append(turn)
                    continue
                if response.status != 200 or not all(text in said for text in self.wanted):
                    failed.append(turn)
                taken.append(time.perf_counter() - began)
                turn += connections
            connection.close()

        before, began = time.process_time(), time.monotonic()
        senders = [threading.Thread(target=send, args=(first,)) for first in range(connections)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        took = time.monotonic() - began
        cuts = statistics.quantiles(taken, n=1000, method="inclusive") if len(taken) > 1 else [0.0] * 999
        busy = (time.process_time() - before) / took
        return Seen(len(taken), len(failed), took, cuts[499] * 1e3, cuts[989] * 1e3, cuts[998] * 1e3, busy)


Client = Callable[[Load, int, float, Sequence[int]], Seen]
CLIENTS: dict[str, Client] = {"wrk": Load.wrk, "threads": Load.threads}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
