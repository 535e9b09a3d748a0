"""Several workers behind one port: a dead or frozen one is replaced while the others answer, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from served_world import BODY, Running, gone, running
from small_world import SmallWorld

from sameworld.server.client import Client
from sameworld.stores import event_log
from sameworld.stores.prediction_log import predictions

PREDICT = "/v1/models/plain/predict"


async def replaced(server: Running, place: int, pid: int, *, within: float = 30.0) -> dict[str, Any]:
    """Wait until another process has the place of a worker; give what is known of the place."""
    async with asyncio.timeout(within):
        while server.workers()[place]["pid"] in (pid, None):
            await asyncio.sleep(0.05)
    return server.workers()[place]


class Load:
    """Requests and events from many connections, until told to stop; keeps what was answered."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.statuses: Counter[int] = Counter()
        self.answers: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(8)]
        self._tasks += [asyncio.create_task(self._post(poster)) for poster in range(2)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        while not self._stop:
            response = await self.server.client.request("POST", PREDICT, BODY)
            self.statuses[response.status] += 1
            (prediction,) = msgspec.json.decode(response.body)["predictions"]
            assert prediction["logged"]
            self.answers[prediction["id"]] += 1

    async def _post(self, poster: int) -> None:
        number = 0
        while not self._stop:
            number += 1
            key = f"{poster}-{number}"
            event = {
                "order_id": key,
                "revision": 1,
                "user": "u1",
                "shop": "s1",
                "amount": 1.0,
                "ordered_at": "2024-03-16T09:00:00Z",
            }
            body = msgspec.json.encode({"events": [event]})
            response = await self.server.client.request("POST", "/v1/sources/orders/events", body, key=key)
            self.statuses[response.status] += 1
            assert response.status == 200, response.body
            self.acknowledged.add(key)
            await asyncio.sleep(0.002)

    async def some(self, count: int = 200) -> None:
        """Wait for so many more answers."""
        until = sum(self.answers.values()) + count
        async with asyncio.timeout(30):
            while sum(self.answers.values()) < until:
                await asyncio.sleep(0.01)


@pytest.mark.slow
def test_a_killed_or_frozen_worker_is_replaced_while_the_others_answer(trained: SmallWorld) -> None:
    async def story() -> tuple[Load, Running, list[int]]:
        async with running(trained, ["plain"], "--workers", "2", patience=30.0) as server:
            load = Load(server)
            async with load:
                await load.some()
                for place, number, cause in (
                    (0, signal.SIGKILL, "it was killed by signal 9"),
                    (1, signal.SIGSTOP, "it was frozen"),
                ):
                    pid = server.pids()[place]
                    os.kill(pid, number)
                    await load.some()
                    found = await replaced(server, place, pid)
                    assert (found["worker"], found["cause"]) == (place, cause)
                    assert gone(pid)
                    # The next is hit only when this one's successor answers, so that there is always one that does.
                    await both_answer(server)
            counted = await counts(server)
            await ended_with_their_supervisor(server)
            return load, server, counted

    load, server, counted = asyncio.run(story())
    print(f"{sum(load.statuses.values())} answers, {server.client.retries} sent again")
    # Whoever was cut off sent it again; nobody got an error.
    assert set(load.statuses) == {200}
    # Every answer is in the log exactly once.
    logged = Counter(prediction.id for _, prediction in predictions(server.state) if prediction is not None)
    assert set(logged.values()) == {1}
    assert set(load.answers) <= set(logged)
    # Whichever worker is asked counts what all have answered, the dead ones too.
    assert len(set(counted)) == 1
    assert len(load.answers) <= counted[0] <= len(logged)
    # Every acknowledged event is in the event log exactly once, in one order.
    kept = Counter(delivery.key for _, delivery in event_log.deliveries(server.state / "events"))
    assert set(kept.values()) == {1}
    assert load.acknowledged <= set(kept)
    stamps = [delivery.stamp for _, delivery in event_log.deliveries(server.state / "events")]
    assert stamps == sorted(set(stamps))


async def counts(server: Running) -> list[int]:
    """Give how many answers are counted, asked on several connections."""
    found: list[int] = []
    for _ in range(8):
        fresh = Client("127.0.0.1", server.port)
        text = (await fresh.request("GET", "/metrics")).body.decode()
        await fresh.close()
        lines = [line for line in text.splitlines() if line.startswith("sameworld_predictions_total")]
        found.append(int(sum(float(line.rsplit(" ", 1)[1]) for line in lines)))
    return found


async def ended_with_their_supervisor(server: Running) -> None:
    """Nobody answers unsupervised, and the port is free for the next one."""
    pids = server.pids()
    os.kill(server.supervisor.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while not all(gone(pid) for pid in pids):
            await asyncio.sleep(0.05)
    with socket.create_server(("127.0.0.1", server.port)):
        pass


async def both_answer(server: Running) -> None:
    """Wait until answers come from every worker there is: the process is in an answer's id."""
    wanted = {f"{pid:x}" for pid in server.pids()}
    async with asyncio.timeout(30):
        seen: set[str] = set()
        while not wanted <= seen:
            fresh = Client("127.0.0.1", server.port)
            answers = await asyncio.gather(*(fresh.request("POST", PREDICT, BODY) for _ in range(8)))
            await fresh.close()
            for answer in answers:
                (prediction,) = msgspec.json.decode(answer.body)["predictions"]
                seen.add(prediction["id"].split("-")[1])


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_drops_no_request(trained: SmallWorld) -> None:
    async def story() -> None:
        async with running(trained, ["plain"], "--drain", "3", "--workers", "2") as server:
            pids = server.pids()
            # An idle connection is open when the server is told to stop, and others are busy.
            idle = Client("127.0.0.1", server.port)
            assert (await idle.request("GET", "/readyz")).status == 200
            answered = asyncio.gather(*(until_closed(server.port) for _ in range(8)))
            await asyncio.sleep(0.2)
            os.kill(server.supervisor.pid, signal.SIGTERM)
            # It says that it stops, and still answers, on new connections too.
            late = Client("127.0.0.1", server.port)
            async with asyncio.timeout(10):
                while (await late.request("GET", "/readyz")).status != 503:
                    await asyncio.sleep(0.05)
            assert (await late.request("POST", PREDICT, BODY)).status == 200
            counts = await answered
            assert min(counts) > 0
            assert await asyncio.to_thread(server.supervisor.wait, 20) == 0
            assert all(gone(pid) for pid in pids)
            assert not list(server.state.glob("workers-*.json"))
            await idle.close()
            await late.close()

    asyncio.run(story())


async def until_closed(port: int) -> int:
    """Ask on one connection until the server says that it closes it; give how many were answered. No answer is missing, and none is cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
    count = 0
    while True:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        count += 1
        if b"connection: close" in head:
            assert await reader.read() == b""
            writer.close()
            return count


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_server_that_is_stopped_while_it_starts_ends_in_order(
    trained_world: SmallWorld, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sameworld.cli.main", "serve", "plain", "--port", "0"]
    command += ["--world", str(trained_world.file), "--registry", str(trained_world.folder / "registry")]
    with subprocess.Popen(
        [*command, "--state", str(tmp_path / "state")], stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        # It is not what it was any more, and not yet what it will be.
        while "supervisor" not in Path(f"/proc/{server.pid}/cmdline").read_text():
            assert server.poll() is None
            time.sleep(0.01)
        server.send_signal(signal.SIGINT)
        said = server.stderr.read()
        assert server.wait(30) == 0, said
        assert "Traceback" not in said


def test_a_port_that_is_taken_is_said(trained_world: SmallWorld, tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sameworld.cli.main", "serve", "plain", "--port", str(port)]
        command += ["--world", str(trained_world.file), "--registry", str(trained_world.folder / "registry")]
        ran = subprocess.run(
            [*command, "--state", str(tmp_path / "state")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert f"The server cannot listen at 127.0.0.1:{port}: Address already in use." in " ".join(
        ran.stderr.split()
    )
