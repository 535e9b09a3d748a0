"""Which workers serve from a state folder, and what each last said of itself. A worker is there as long as it holds its lock, which the kernel frees at its end."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any

import msgspec


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says.

    Args:
        pid: its process.
        at: microseconds; when it said so.
        generation: of the record of models that it serves.
        trouble: why it does not serve a newer one; nothing when it does.
        models: route name -> how it is doing; see `Recent`.
    """

    pid: int
    at: int
    generation: int
    trouble: str = ""
    models: dict[str, dict[str, Any]] = {}


class RollCall:
    """This worker's place among the others.

    Args:
        state: the store's folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / "workers"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        unnamed = self._folder / f".{self._name}.locking"
        self._lock = unnamed.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # before it has its name: nobody takes it for one that is gone
        os.rename(unnamed, self._folder / f"{self._name}.lock")

    def say(self, said: Said) -> None:
        """Tell the others; a reader sees what was said before or this."""
        fresh = self._folder / f".{self._name}"
        fresh.write_bytes(msgspec.json.encode(said))
        os.replace(fresh, self._folder / f"{self._name}.json")

    def leave(self) -> None:
        """Be no worker any more."""
        for name in (f"{self._name}.json", f"{self._name}.lock"):
            (self._folder / name).unlink(missing_ok=True)
        self._lock.close()

    def others(self) -> list[Said]:
        """Give what the other workers that are there last said; clear up after those that are gone."""
        return [said for name, said in present(self._folder.parent).items() if name != self._name]


def present(state: Path) -> dict[str, Said]:
    """Give worker -> what it last said, of those that are there and have said something."""
    folder = state / "workers"
    result: dict[str, Said] = {}
    for lock in sorted(folder.glob("*.lock")):
        said = lock.with_suffix(".json")
        try:
            with lock.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    result[lock.stem] = msgspec.json.decode(said.read_bytes(), type=Said)
                else:
                    lock.unlink(missing_ok=True)
                    said.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
    return result
