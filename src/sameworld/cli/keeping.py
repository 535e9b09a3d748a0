"""Commands that show and trim what is kept: the prediction log, and what earlier runs computed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sameworld.cli import show
from sameworld.cli.options import common, state_option, told
from sameworld.errors import CacheError

if TYPE_CHECKING:
    from sameworld.engines.cache import Entry


@click.command("log")
@state_option
@click.option("--rotate", is_flag=True, help="Make Parquet of all segments that are complete.")
@click.option("--trim", help="Rotate, and keep at most so much Parquet, such as 50GB: the oldest goes first.")
@click.option("--older-than", help="Rotate, and remove Parquet that was written so long ago, such as 90d.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@told
def prediction_log(
    state: Path, rotate: bool, trim: str | None, older_than: str | None, as_json: bool
) -> None:
    """Show what the prediction log holds, by model and version; rotate it to Parquet, and trim that."""
    from sameworld.cli import logged  # noqa: PLC0415
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.stores.prediction_contents import contents  # noqa: PLC0415
    from sameworld.stores.rotation import Rotated  # noqa: PLC0415
    from sameworld.stores.rotation import rotate as run  # noqa: PLC0415

    keep_bytes = None if trim is None else show.size(trim, of="--trim")
    keep_days = None if older_than is None else microseconds(older_than, of="--older-than") / 86_400e6
    done: Rotated | None = None
    if rotate or trim is not None or older_than is not None:
        done = run(state, keep_bytes=keep_bytes, keep_days=keep_days)
    held = contents(state)
    if as_json:
        show.json_out(logged.as_json(state, held, done))
    else:
        logged.tell(state, held, done)
    if done is not None and done.stayed:
        sys.exit(1)


def _facts(entry: Entry) -> dict[str, Any]:
    times = {"created": entry.created, "used": entry.used}
    return {
        "kind": entry.kind,
        "key": entry.key,
        "about": entry.about,
        "bytes": entry.bytes,
        **{name: show.iso(int(time) * 1_000_000) for name, time in times.items()},
    }


def _counted(entries: int) -> str:
    return f"{entries:,} {'entry' if entries == 1 else 'entries'}"


@click.command()
@common
@click.option(
    "--trim", help="Keep at most so much, such as 500MB or 10GB: the least recently used goes first."
)
@click.option("--older-than", help="Remove what was not used for so long, such as 12h or 30d.")
def cache(world: Path, as_json: bool, trim: str | None, older_than: str | None) -> None:
    """Show what is kept of earlier runs, the least recently used first, and trim it. All of it can be computed again."""
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.engines.cache import DEFAULT, Cache  # noqa: PLC0415

    limit = None if trim is None else show.size(trim, of="--trim")
    age = None if older_than is None else microseconds(older_than, of="--older-than") / 1e6
    folder = world.resolve().parent / DEFAULT
    kept = Cache(folder)
    try:
        gone = [] if limit is None and age is None else kept.trim(limit, age)
    except OSError as error:
        raise CacheError(
            f"The cache cannot be trimmed: {error.strerror}.",
            where=str(error.filename or folder),
            do="trim it as the user whose files they are.",
        ) from error
    entries = kept.entries()
    total = sum(entry.bytes for entry in entries)
    if as_json:
        show.json_out(
            {
                "folder": str(folder),
                "bytes": total,
                "entries": [_facts(entry) for entry in entries],
                "removed": [_facts(entry) for entry in gone],
            }
        )
        return
    if gone:
        show.out.print(f"removed {_counted(len(gone))}, {show.size_text(sum(entry.bytes for entry in gone))}")
    if not entries:
        show.out.print(f"Nothing is kept in {folder}", markup=False, soft_wrap=True)
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("kind", "what", "size")
    for title in ("created (UTC)", "last used"):
        table.add_column(title, no_wrap=True)
    for entry in entries:
        facts = _facts(entry)
        minutes = [facts[name][:16].replace("T", " ") for name in ("created", "used")]
        table.add_row(entry.kind, Text(entry.about), show.size_text(entry.bytes), *minutes)
    show.out.print(table)
    show.out.print(
        f"{_counted(len(entries))}, {show.size_text(total)}, in {folder}", markup=False, soft_wrap=True
    )
