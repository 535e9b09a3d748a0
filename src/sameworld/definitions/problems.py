"""Definitions say what is wrong when they are built: at once in a script, all together while a world file is read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from sameworld.errors import SameworldError

_collected: ContextVar[list[SameworldError] | None] = ContextVar("collected problems", default=None)


def report(problem: SameworldError) -> None:
    """Raise the problem, or note it when somebody is collecting."""
    noted = _collected.get()
    if noted is None:
        raise problem
    noted.append(problem)


@contextmanager
def collecting() -> Generator[list[SameworldError]]:
    """Let definitions be built to the end and give the list of what was wrong with them."""
    noted: list[SameworldError] = []
    token = _collected.set(noted)
    try:
        yield noted
    finally:
        _collected.reset(token)
