"""sameworld's engine: every value as of its moment, late rows and corrections included."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

import sameworld as sw
from benchmarks.asof.contestants import AGGREGATIONS, WINDOWS
from sameworld.asof.plan import groupings_of
from sameworld.asof.schema import supported
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Engine, World

PLAIN = sw.Source("events", "events.parquet", event_time="e", available_at="a")
CORRECTED = sw.Source(
    "corrected", "corrected.parquet", event_time="e", available_at="a", id="id", version="version"
)


def set_up(function: str, folder: Path) -> None:
    """Before the clock: have a cache that an earlier run about other moments has filled, the first time in this process, and a copy of it for this one.

    The engine keeps finished columns too. A run that asked about the same moments before would only read its answer.
    """
    if function != "warm":
        return
    filled = folder / "cache"
    if not filled.exists():
        _answer(folder, PLAIN, "as_of", filled, "earlier.parquet")
    # Entries never change, so a second name of each is a copy.
    shutil.copytree(filled, _own(folder), copy_function=os.link)


def _own(folder: Path) -> Path:
    return folder / f"cache-{os.getpid()}"


def cold(folder: Path) -> pa.Table:
    """Nothing is kept from run to run."""
    return _answer(folder, PLAIN, "as_of", None)


def warm(folder: Path) -> pa.Table:
    """An earlier process has sorted the same source, for other moments."""
    return _answer(folder, PLAIN, "as_of", _own(folder))


def corrections(folder: Path) -> pa.Table:
    """Rows have ids, and a tenth of them correct other rows."""
    return _answer(folder, CORRECTED, "as_of", None)


def event_time(folder: Path) -> pa.Table:
    """The easier question, for the check: this answer must equal everybody's."""
    return _answer(folder, PLAIN, "event_time", None)


def _answer(
    folder: Path, source: sw.Source, world: World, cache: Path | None, asked: str = "moments.parquet"
) -> pa.Table:
    engine = DuckDBEngine(folder, cache=cache)
    answer = answer_of(engine, source, world, asked)
    engine.close()
    return answer


def answer_of(engine: Engine, source: sw.Source, world: World, asked: str = "moments.parquet") -> pa.Table:
    """Give an engine's answer."""
    grouped, over = source.by("k"), list(WINDOWS)
    wanted = {
        "count": grouped.count(over=over),
        "sum": grouped.sum("x", over=over),
        "mean": grouped.mean("x", over=over),
        "max": grouped.max("x", over=over),
    }
    last = grouped.last("x")
    schemas = {source.content: supported(engine.describe(source.data, source.name))}
    moments = engine.table(asked, "moments")
    at = pc.cast(moments["t"], pa.int64()).to_numpy()
    values = engine.aggregates(
        groupings_of([*wanted.values(), last]), schemas, Asked(moments, at, at), rows={}, world=world
    )
    columns = {
        f"{name}_{window}": values[column]
        for name in AGGREGATIONS
        for window, column in zip(over, wanted[name].columns, strict=True)
    }
    return pa.table({"k": moments["k"], "t": moments["t"], **columns, "last": values[last.columns[0]]})


def table(answer: pa.Table) -> pa.Table:
    """Give the answer as Arrow."""
    return answer
