"""PySpark on one machine: RANGE windows on microseconds. It computes every column and throws the rows away (the noop sink)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from benchmarks.asof.contestants import WINDOWS

HEAP = "10g"


def missing(function: str) -> str:
    """Say what else is not there."""
    return "" if os.environ.get("JAVA_HOME") or shutil.which("java") else "Java 17 or newer"


def versions() -> dict[str, str]:
    """Say what matters beside the distributions."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    return {"java": said.split('"')[1]}


def session() -> SparkSession:
    """Give the session of both contestants on Spark."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[*]")
        .config("spark.driver.memory", HEAP)
        .config("spark.driver.maxResultSize", 0)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", 4 * (os.cpu_count() or 1))
        .config("spark.ui.enabled", False)
        .config("spark.ui.showConsoleProgress", False)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def windows(folder: Path) -> DataFrame:
    """RANGE frames over events and moments together."""
    spark = session()
    for name in ("events", "moments"):
        spark.read.parquet(str(folder / f"{name}.parquet")).createOrReplaceTempView(name)
    columns = ", ".join(
        f"count(x) OVER w{name} AS count_{name}, sum(x) OVER w{name} AS sum_{name}, "
        f"avg(x) OVER w{name} AS mean_{name}, max(x) OVER w{name} AS max_{name}"
        for name in WINDOWS
    )
    frames = ", ".join(
        f"w{name} AS (PARTITION BY k ORDER BY t RANGE BETWEEN {seconds * 1_000_000} PRECEDING AND 1 PRECEDING)"
        for name, seconds in WINDOWS.items()
    )
    last = "last(x, true) OVER (PARTITION BY k ORDER BY t RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    both = (
        "SELECT k, unix_micros(e) AS t, x, false AS asked FROM events "
        "UNION ALL SELECT k, unix_micros(t), NULL, true FROM moments"
    )
    result = spark.sql(
        f"SELECT * FROM (SELECT k, t, asked, {columns}, {last} AS last FROM ({both}) WINDOW {frames}) WHERE asked"
    )
    result.write.format("noop").mode("overwrite").save()
    return result


def table(answer: DataFrame) -> pa.Table:
    """Give the answer as Arrow."""
    rows = answer.toArrow()
    place = rows.schema.get_field_index("t")
    return rows.set_column(place, "t", rows["t"].cast(pa.timestamp("us", tz="UTC")))
