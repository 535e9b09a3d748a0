"""A server in processes of its own, started from the command line, for tests that kill them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from small_world import SmallWorld, free_port

from sameworld.server.client import Client
from sameworld.server.replay import wait_until_ready

BODY = msgspec.json.encode(
    {"request": {"user": "u1", "shop": "s1", "basket": 10.5, "opened_at": "2024-03-16T10:00:00Z"}}
)


@dataclass(frozen=True)
class Running:
    """A server: a client of it, its supervisor, and where it keeps its state."""

    client: Client
    supervisor: subprocess.Popen[bytes]
    state: Path
    port: int

    def workers(self) -> list[dict[str, Any]]:
        """Give what the supervisor writes of each worker."""
        return msgspec.json.decode((self.state / f"workers-{self.port}.json").read_bytes())["workers"]

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.workers()]


@asynccontextmanager
async def running(
    world: SmallWorld, models: Sequence[str], *options: str, state: str = "served", patience: float = 5.0
) -> AsyncIterator[Running]:
    """Give a server once it is ready; end it afterwards, whatever has become of it."""
    port = free_port()
    place = world.folder / state
    command = [sys.executable, "-m", "sameworld.cli.main", "serve", *models, "--world", str(world.file)]
    command += ["--registry", str(world.folder / "registry"), "--state", str(place), "--port", str(port)]
    command += ["--durability", "process", *options]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    client = Client("127.0.0.1", port, patience_seconds=patience)
    try:
        await wait_until_ready(client, server)
        yield Running(client, server, place, port)
    finally:
        await client.close()
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
