"""Write the parts of the documentation that the code decides: the command-line reference and the table of aggregations.

    python docs/generate.py            writes them between their markers
    python docs/generate.py --check    changes nothing; exit status 1 when a part is stale

It must not word anything itself: what it writes is what `--help` prints and what the table in the code says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.cli.main import main

DOCS = Path(__file__).parent
WIDTH = 100


def command_line() -> str:
    """Give what `--help` prints for every command, as Markdown."""
    return "\n\n".join(f"### `{name}`\n\n```text\n{text}\n```" for name, text in _helps(main, "sameworld"))


def _helps(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name.rsplit(maxsplit=1)[-1], parent=parent, **settings)
    yield name, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            yield from _helps(command.commands[inner], f"{name} {inner}", context)


def aggregations() -> str:
    """Give the table of aggregations as Markdown."""
    gives = {
        "column": "the column's own type",
        "sum": "the column's own type; integer for booleans",
        "list": "a list of the column's own type",
    }
    rows = ["| aggregation | columns | gives | over no row | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, entry in AGGREGATIONS.items():
        columns = ", ".join(sorted(entry.columns)) or "none"
        empty = "null" if entry.empty is None else str(entry.empty).lower()
        value = gives.get(entry.gives, entry.gives)
        rows.append(f"| `{name}` | {columns} | {value} | {empty} | {entry.meaning} |")
    return "\n".join(rows)


PARTS = {
    ("reference.md", "command line"): command_line,
    ("semantics.md", "aggregations"): aggregations,
}


def between(text: str, marker: str) -> str:
    """Give what stands between a marker's two lines."""
    return text.split(f"<!-- {marker} -->\n", 1)[1].split(f"\n<!-- /{marker} -->", 1)[0]


def written(text: str, marker: str, part: str) -> str:
    """Give the text with another part between the marker's two lines."""
    before, rest = text.split(f"<!-- {marker} -->\n", 1)
    after = rest.split(f"\n<!-- /{marker} -->", 1)[1]
    return f"{before}<!-- {marker} -->\n{part}\n<!-- /{marker} -->{after}"


if __name__ == "__main__":
    stale = False
    for (page, marker), make in PARTS.items():
        path = DOCS / page
        old = path.read_text()
        new = written(old, marker, make())
        if new == old:
            continue
        stale = True
        print(f"docs/{page}: {marker} was stale")
        if "--check" not in sys.argv[1:]:
            path.write_text(new)
    sys.exit(1 if stale and "--check" in sys.argv[1:] else 0)
