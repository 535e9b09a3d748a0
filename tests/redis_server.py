"""A Redis of a test's own, on a socket in a folder, to be stopped, frozen and emptied."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis


class RedisServer:
    """Started when it is made; keeps nothing on disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # a socket's path must be short
        self._socket = Path(self._folder.name) / "redis"
        self.address = f"unix://{self._socket}?db=0"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        client = redis.Redis.from_url(self.address)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.01)
        client.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        with redis.Redis.from_url(self.address) as client:
            client.flushall()

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()
