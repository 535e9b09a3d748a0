"""Where a served source's rows are: its files up to the recorded cutover, and the event log after it. A row is in exactly one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from sameworld.asof.schema import Schema
from sameworld.definitions.source import Source
from sameworld.engines.interface import Rows
from sameworld.stores import event_log
from sameworld.stores.events import EventReader


def served_rows(folder: Path, sources: Iterable[Source], schemas: Mapping[str, Schema]) -> dict[str, Rows]:
    """Give source content -> rows, as the server whose store is in `folder` has them.

    Args:
        folder: the store's.
        sources: which.
        schemas: source content -> pinned schema.
    """
    sources = list(sources)
    cutover = folder / "cutover"
    border = int(cutover.read_text()) if cutover.exists() else None
    logged = event_log.raw_rows(
        folder / "events", {s.name: EventReader(s, schemas[s.content]) for s in sources}
    )
    return {s.content: Rows(s.data, border, logged.get(s.name)) for s in sources}
