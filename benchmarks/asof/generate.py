"""The data that every contestant reads: skewed entities, rows that are readable late, moments; and the same with corrections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INSTANT = pa.timestamp("us", tz="UTC")
SPAN_SECONDS = 30 * 86_400
START = 1_700_000_000_000_000
LATENESS_SECONDS = 3_600.0
CORRECTION_SECONDS = 86_400.0
CORRECTIONS = 0.1
MOVED = 0.1
PART = 5_000_000
MOST_MOMENTS = 20_000_000


def moments_of(events: int) -> int:
    """Give how many moments are asked about: a tenth, as long as their values fit into memory."""
    return min(max(events // 10, 1), MOST_MOMENTS)


def entities_of(events: int) -> int:
    """Give how many entities there are."""
    return max(events // 200, 1)


def generate(
    folder: Path, events: int, seed: int, *, entities: int | None = None, corrected: bool = True
) -> None:
    """Write what the contestants read.

    events.parquet      k, e, a, x: entity, event time, available time (an hour late on average), value
    moments.parquet     k, t
    earlier.parquet     k, t: as many other moments, for whoever keeps something from run to run
    corrected.parquet   id, version, k, e, a, x: as many rows, a tenth of them corrections of other rows, with another x, readable later, some of another k
    """
    kinds = entities or entities_of(events)
    random = np.random.default_rng(seed)
    plain = pa.schema([("k", pa.int64()), ("e", INSTANT), ("a", INSTANT), ("x", pa.float64())])
    with pq.ParquetWriter(folder / "events.parquet", plain) as file:
        for _, rows in _parts(events):
            columns = _rows(random, rows, kinds)
            file.write_table(_table(plain, columns))
    moments = moments_of(events)
    asked = pa.schema([("k", pa.int64()), ("t", INSTANT)])
    for name in ("moments", "earlier"):
        columns = {"k": _entities(random, moments, kinds), "t": _times(random, moments)}
        pq.write_table(_table(asked, columns), folder / f"{name}.parquet")

    if not corrected:
        return
    random = np.random.default_rng([seed, 1])
    versions = pa.schema([("id", pa.int64()), ("version", pa.int64()), *plain])
    with pq.ParquetWriter(folder / "corrected.parquet", versions) as file:
        for first, rows in _parts(events):
            file.write_table(_table(versions, _corrected(random, first, rows, kinds)))


def _parts(rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, rows, PART):
        yield first, min(PART, rows - first)


def _table(schema: pa.Schema, columns: dict[str, np.ndarray]) -> pa.Table:
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _entities(random: np.random.Generator, count: int, entities: int) -> np.ndarray:
    return (entities * random.random(count) ** 3).astype(np.int64)


def _times(random: np.random.Generator, count: int) -> np.ndarray:
    return START + (random.random(count) * SPAN_SECONDS * 1e6).astype(np.int64)


def _late(random: np.random.Generator, count: int, seconds: float) -> np.ndarray:
    return (random.exponential(seconds, count) * 1e6).astype(np.int64)


def _rows(random: np.random.Generator, count: int, entities: int) -> dict[str, np.ndarray]:
    event = _times(random, count)
    return {
        "e": event,
        "a": event + _late(random, count, LATENESS_SECONDS),
        "k": _entities(random, count, entities),
        "x": random.lognormal(3.0, 1.0, count),
    }


def _corrected(random: np.random.Generator, first: int, count: int, entities: int) -> dict[str, np.ndarray]:
    corrections = int(count * CORRECTIONS)
    rows = _rows(random, count - corrections, entities)
    # A fact may be corrected several times, and its later version may be readable before an earlier one.
    of = np.sort(random.integers(0, count - corrections, corrections))
    _, starts, times = np.unique(of, return_index=True, return_counts=True)
    again = {
        "id": of,
        "version": np.arange(corrections) - np.repeat(starts, times) + 1,
        "e": rows["e"][of],
        "a": rows["a"][of] + _late(random, corrections, CORRECTION_SECONDS),
        "k": np.where(
            random.random(corrections) < MOVED, _entities(random, corrections, entities), rows["k"][of]
        ),
        "x": random.lognormal(3.0, 1.0, corrections),
    }
    rows["id"] = np.arange(count - corrections)
    rows["version"] = np.zeros(count - corrections, np.int64)
    order = random.permutation(count)
    columns = {name: np.concatenate([rows[name], again[name]])[order] for name in rows}
    columns["id"] += first
    return columns
