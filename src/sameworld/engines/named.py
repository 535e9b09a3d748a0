"""Engines by name. An adapter and its library are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Engine
from sameworld.errors import DefinitionError

EngineName = Literal["duckdb", "spark", "ray", "dask"]


@contextmanager
def opened_engine(
    engine: EngineName | Engine, folder: Path | None, *, cache: Path | None, say: Callable[[str], None]
) -> Generator[Engine]:
    """Give an engine; one that is asked for by its name is made, and closed in the end.

    Args:
        engine: its name, or the engine itself.
        folder: what relative paths start from.
        cache: where the engine of one machine keeps what it may need again; None: nowhere.
        say: told what is being done.

    Raises:
        DefinitionError: there is no engine of that name, or what it needs is not installed.
    """
    if not isinstance(engine, str):
        yield engine
        return
    folder = None if folder is None else Path(folder)  # a notebook gives text
    match engine:
        case "duckdb":
            own = DuckDBEngine(folder, cache=cache, say=say)
        case "spark":
            from sameworld.engines.spark import spark_engine  # noqa: PLC0415 # needs PySpark and Java

            own = spark_engine(folder=folder, say=say)
        case "ray":
            from sameworld.engines.ray import ray_engine  # noqa: PLC0415 # needs Ray

            own = ray_engine(folder=folder, say=say)
        case "dask":
            from sameworld.engines.dask import dask_engine  # noqa: PLC0415 # needs Dask

            own = dask_engine(folder=folder, say=say)
        case _:
            raise DefinitionError(
                f"There is no engine {engine!r}.",
                expected="'duckdb', 'spark', 'ray', 'dask' or an engine",
                do="correct the name.",
            )
    try:
        yield own
    finally:
        own.close()
