"""What a state folder says of the models that are served from it: every worker follows it, and a restart serves what was served last."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

_NAME = "served.json"


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """The models as control routes left them.

    Args:
        generation: rises with every change.
        models: route name -> bundle address.
        since: route name -> microseconds; when that address was put there.
    """

    generation: int
    models: dict[str, str]
    since: dict[str, int] = {}


def recorded(state: Path) -> Recorded | None:
    """Give what is recorded; None where no control route ever changed anything."""
    try:
        return msgspec.json.decode((state / _NAME).read_bytes(), type=Recorded)
    except FileNotFoundError:
        return None


def record(state: Path, what: Recorded) -> None:
    """Record it, on disk and at once: a reader sees the old or the new."""
    fresh = state / f".{_NAME}.{os.getpid()}"
    with fresh.open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(what), indent=1))
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, state / _NAME)


def forget(state: Path) -> None:
    """Serve what the command line says again."""
    (state / _NAME).unlink(missing_ok=True)


def mark(state: Path) -> tuple[int, int] | None:
    """Give something that differs when the record does; cheap enough to look at several times a second."""
    try:
        found = (state / _NAME).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def changing(state: Path) -> Generator[None]:
    """Let one process at a time change what is served; the kernel frees the lock of one that is killed."""
    with (state / "served.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
