"""Options that several commands have, and how every command ends when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from sameworld.cli import show
from sameworld.errors import SameworldError

Command = Callable[..., Any]


def told(command: Command) -> Command:
    """Print errors as this tool does."""

    @wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        try:
            command(*args, as_json=as_json, **options)
        except SameworldError as error:
            show.failure(error, as_json=as_json)
            sys.exit(1)
        except KeyboardInterrupt:
            show.err.print("Interrupted; nothing is half-written.", style="yellow")
            sys.exit(130)

    return run


def common(command: Command) -> Command:
    """Add --world and --json, and print errors as this tool does."""

    @click.option(
        "--world",
        "world",
        type=click.Path(path_type=Path),
        default=Path("world.py"),
        show_default=True,
        help="The world file.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @told
    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        command(*args, **options)

    return run


registry_option = click.option(
    "--registry",
    type=click.Path(path_type=Path),
    default=Path(".sameworld"),
    show_default=True,
    help="Where bundles lie.",
)
state_option = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path(".sameworld/state"),
    show_default=True,
    help="Where logs and the store lie.",
)


engine_option = click.option(
    "--engine",
    type=click.Choice(["duckdb", "spark", "ray", "dask"]),
    default="duckdb",
    show_default=True,
    help="duckdb: this machine. spark, ray, dask: the workers of a local one.",
)
against_option = click.option(
    "--against",
    type=click.Choice(["log", "files"]),
    default="log",
    show_default=True,
    help="log: files up to the cutover and the event log after it. files: the files alone.",
)


in_world_option = click.option(
    "--in-world",
    type=click.Choice(["as_of", "event_time"]),
    default="as_of",
    show_default=True,
    help="event_time: as a join on event times would have it.",
)
