"""What a source's files held when a store was filled from them, in a few numbers, so that a proof can say how they have changed since."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sameworld.asof.plan import Grouping
from sameworld.asof.schema import Schema
from sameworld.definitions.source import Source
from sameworld.engines.duckdb import DuckDBEngine


class Fingerprint(msgspec.Struct, frozen=True):
    """Sums that do not depend on the order of rows.

    Args:
        rows: readable before the cutover.
        facts: different ids among them.
        contents: sum over the rows' contents.
        times: sum over contents together with available times.
    """

    rows: int
    facts: int
    contents: str
    times: str


def fingerprint(engine: DuckDBEngine, source: Source, schema: Schema, cutover: int | None) -> Fingerprint:
    """Take the fingerprint of the rows of a source's files that are readable before the cutover."""
    return Fingerprint(*engine.fingerprint(Grouping(source, (), (), ()), schema, cutover))


def save(folder: Path, found: Mapping[str, Fingerprint]) -> None:
    """Note source content -> fingerprint beside a store; what is noted already stays."""
    path = folder / "filled.json"
    fresh = path.with_name(f".filled.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode({**found, **load(folder)}))
    os.replace(fresh, path)


def load(folder: Path) -> dict[str, Fingerprint]:
    """Read what `save` noted."""
    path = folder / "filled.json"
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Fingerprint]) if path.exists() else {}
