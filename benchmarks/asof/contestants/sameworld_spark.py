"""sameworld on Spark, on one machine: the values of `sameworld`, by way of Spark's shuffle, collected by the driver."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from benchmarks.asof.contestants.pyspark_sql import missing, session, versions
from benchmarks.asof.contestants.sameworld_engine import PLAIN, answer_of
from sameworld.engines.spark import spark_engine

__all__ = ["missing", "table", "versions", "windows"]


def windows(folder: Path) -> pa.Table:
    """As of, late rows included."""
    return answer_of(spark_engine(session(), folder), PLAIN, "as_of")


def table(answer: pa.Table) -> pa.Table:
    """Give the answer as Arrow."""
    return answer
