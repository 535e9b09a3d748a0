"""Spark brings blobs together: `mapInArrow` runs a stage, `repartitionById` moves its blobs. Spark does the shuffling, the spilling and the retries."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from sameworld.engines.blobs import Blobs, Stage
from sameworld.engines.cluster import ClusterEngine, Options, checked, pickled_by_value
from sameworld.errors import DataError, DefinitionError

try:
    from pyspark import cloudpickle
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import types as kinds
except ImportError as error:
    raise DefinitionError(
        'engine="spark" needs PySpark.',
        found=str(error),
        do="pip install 'sameworld[spark]'; Java 17 or newer is needed, too.",
    ) from error

_BLOBS = "part int, kind int, data binary"
_DUCKDB: dict[type[kinds.DataType], str] = {
    kinds.ByteType: "TINYINT",
    kinds.ShortType: "SMALLINT",
    kinds.IntegerType: "INTEGER",
    kinds.LongType: "BIGINT",
    kinds.FloatType: "FLOAT",
    kinds.DoubleType: "DOUBLE",
    kinds.BooleanType: "BOOLEAN",
    kinds.StringType: "VARCHAR",
    kinds.TimestampType: "TIMESTAMP WITH TIME ZONE",
    kinds.TimestampNTZType: "TIMESTAMP",
    kinds.DateType: "DATE",
    kinds.BinaryType: "BLOB",
}


def spark_engine(
    session: SparkSession | None = None,
    folder: Path | None = None,
    **options: Unpack[Options],
) -> ClusterEngine:
    """Give an engine that works on Spark.

    Args:
        session: yours; it is not stopped. Without one, that of this process, or a local one that is stopped in the end.
        folder: as for `ClusterEngine`.
        options: see `Options`.
    """
    do = "spark_engine(session, folder); the session is one of Spark's own, not of Spark Connect."
    active = checked(session, SparkSession, "Spark session", do) or SparkSession.getActiveSession()
    flow = SparkFlow(active or local_session(), own=active is None)
    return ClusterEngine(flow, folder, **options)


class SparkFlow:
    """See `Flow`. Its blobs lie in DataFrames.

    Args:
        session: where they are made.
        own: whether to stop it in the end.
    """

    def __init__(self, session: SparkSession, *, own: bool = False) -> None:
        self._session, self._own = session, own

    @property
    def parallelism(self) -> int:
        return self._session.sparkContext.defaultParallelism

    def owns(self, data: Any) -> bool:
        return isinstance(data, DataFrame)

    def describe(self, data: DataFrame) -> dict[str, str]:
        return {field.name: _duckdb_type(field.dataType) for field in data.schema.fields}

    def table(self, data: DataFrame) -> pa.Table:
        return data.toArrow()

    def given(self, blobs: pa.Table) -> DataFrame:
        return self._session.createDataFrame(blobs, _BLOBS)

    def tasks(self, count: int, call: Callable[[int], Blobs]) -> DataFrame:
        return self._session.range(0, count, 1, count).mapInArrow(_EachNumber(call), _BLOBS)

    def batches(self, data: DataFrame, columns: Sequence[str], stage: Stage) -> DataFrame:
        quoted = [f"`{name.replace('`', '``')}`" for name in columns]
        return data.select(*quoted).mapInArrow(stage, _BLOBS)

    def union(self, several: Sequence[DataFrame]) -> DataFrame:
        first, *others = several
        for other in others:
            first = first.unionAll(other)
        return first

    def shuffled(self, blobs: DataFrame, parts: int, stage: Stage) -> DataFrame:
        return (
            blobs.repartitionById(parts, "part")
            .sortWithinPartitions("part", "kind")
            .mapInArrow(stage, _BLOBS)
        )

    def by_value(self, functions: Sequence[Callable[..., Any]]) -> AbstractContextManager[None]:
        return pickled_by_value(cloudpickle, functions)

    def collected(self, blobs: DataFrame) -> Iterable[pa.RecordBatch]:
        return blobs.toArrow().to_batches()

    def close(self) -> None:
        if self._own:
            self._session.stop()


class _EachNumber:
    """Calls a task for every number that comes."""

    def __init__(self, call: Callable[[int], Blobs]) -> None:
        self._call = call

    def __call__(self, batches: Blobs) -> Blobs:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from self._call(number)


def _duckdb_type(kind: kinds.DataType) -> str:
    if isinstance(kind, kinds.DecimalType):
        return f"DECIMAL({kind.precision},{kind.scale})"
    return _DUCKDB.get(type(kind), kind.simpleString().upper())


def local_session(master: str = "local[*,4]") -> SparkSession:
    """Start Spark on this machine: workers of this Python, no page, no progress bar, a quarter of the memory for Java, and a task may fail four times."""
    if "JAVA_HOME" not in os.environ and shutil.which("java") is None:
        raise DataError(
            'engine="spark" needs Java.',
            expected="Java 17 or newer",
            found="no java on the path, and no JAVA_HOME",
            do="install it, or pass a session of a cluster.",
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    before = os.environ.get("PYSPARK_PYTHON")
    os.environ["PYSPARK_PYTHON"] = before or sys.executable
    try:
        session = (
            SparkSession.builder.master(master)
            .appName("sameworld")
            .config("spark.driver.memory", f"{max(memory >> 22, 1024)}m")
            .config("spark.driver.maxResultSize", 0)
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.enabled", False)
            .config("spark.ui.showConsoleProgress", False)
            .getOrCreate()
        )
    finally:
        if before is None:
            del os.environ["PYSPARK_PYTHON"]
    session.sparkContext.setLogLevel("ERROR")
    return session
