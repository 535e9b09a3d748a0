"""sameworld on Dask, on one machine: the values of `sameworld`, by way of Dask's shuffle, collected by the driver."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from benchmarks.asof.contestants.dask_pandas import client
from benchmarks.asof.contestants.sameworld_engine import PLAIN, answer_of
from sameworld.engines.dask import dask_engine


def windows(folder: Path) -> pa.Table:
    """As of, late rows included."""
    return answer_of(dask_engine(client(), folder), PLAIN, "as_of")


def table(answer: pa.Table) -> pa.Table:
    """Give the answer as Arrow."""
    return answer
