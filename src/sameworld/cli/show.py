"""How results look in a terminal: tables, progress, errors; JSON where a script listens."""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sameworld.definitions import instants
from sameworld.errors import DefinitionError, SameworldError

instant = instants.instant
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?b)", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_SECONDS_A_LINE = 5


def say(text: str) -> None:
    """Tell what is being done; never on stdout, where results go."""
    err.print(f"  {text}", style="dim", markup=False)


def json_out(value: Any) -> None:
    """Print a result for a script."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def failure(error: SameworldError, *, as_json: bool) -> None:
    """Print an error: on stdout as JSON for a script, on stderr for a person."""
    if as_json:
        json_out(error.as_json())
    else:
        err.print(error.text(), style="red", markup=False)


class _Rate(ProgressColumn):
    """So many a second, lately."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} a second")


@contextmanager
def progress(label: str, unit: str) -> Generator[Callable[[int, int | None], None]]:
    """Give a function to report (done, all, if known) to: a bar on a terminal, a line every few seconds otherwise."""
    if err.is_terminal:
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Rate(),
            TimeRemainingColumn(),
            console=err,
        ) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    begun = last = time.monotonic()
    first: int | None = None
    told = (-1, -1)

    def line(done: int, total: int | None) -> None:
        nonlocal first, begun, last, told
        now = time.monotonic()
        if first is None:
            # What was there before this run says nothing about how fast it is.
            first, begun = (done, now) if done != total else (0, begun)
        if (now - last > _SECONDS_A_LINE or done == total) and (done, total) != told:
            last, told = now, (done, total or -1)
            say(progress_line(label, unit, done, total, done - first, now - begun))

    yield line


def progress_line(label: str, unit: str, done: int, total: int | None, lately: int, seconds: float) -> str:
    """Give one line of progress.

    >>> progress_line("writing", "moments", 3_000_000, 9_000_000, 2_000_000, 100)
    'writing: 3,000,000 of 9,000,000 moments, 20,000 a second, 5 min left'
    >>> progress_line("writing", "moments", 500, None, 500, 2)
    'writing: 500 moments, 250 a second'

    Args:
        lately: of `done`, what took `seconds`.
    """
    text = f"{label}: {done:,} {unit}" if total is None else f"{label}: {done:,} of {total:,} {unit}"
    if lately <= 0 or seconds <= 0:
        return text
    text += f", {lately / seconds:,.0f} a second"
    if total is None or total <= done:
        return text
    left = (total - done) * seconds / lately
    return f"{text}, {f'{left:.0f} s' if left < 100 else f'{left / 60:,.0f} min'} left"


def iso(microseconds: int) -> str:
    """Write microseconds since 1970 as people read them.

    >>> iso(1_000_000)
    '1970-01-01T00:00:01Z'
    """
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
        microseconds=microseconds
    )
    return moment.isoformat().replace("+00:00", "Z")


def size(text: str, *, of: str) -> int:
    """Read a size as bytes.

    Args:
        text: a number with one of the units B, kB, MB, GB, TB, each a thousand of the one before.
        of: what the size is for, for the error.

    Raises:
        DefinitionError: the text is not a size.

    >>> size("1.5GB", of="--trim")
    1500000000
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise DefinitionError(
            f"{text!r} is not a size.",
            where=of,
            expected="a number with one of the units B, kB, MB, GB, TB",
            do="write it like '500MB' or '10GB'; '0B' is nothing at all.",
        )
    return round(float(match[1]) * _UNITS[match[2].lower()])


def age_text(seconds: float) -> str:
    """Write how long ago something was, as people read it.

    >>> age_text(0.2), age_text(95), age_text(200_000)
    ('0 s', '95 s', '2 d')
    """
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def size_text(count: int) -> str:
    """Write bytes as people read them.

    >>> size_text(999), size_text(1_234_567)
    ('999 B', '1.2 MB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
