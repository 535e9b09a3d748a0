"""sameworld on Ray, on one machine: the values of `sameworld`, by way of Ray's object store, collected by the driver."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from benchmarks.asof.contestants.ray_pandas import start
from benchmarks.asof.contestants.sameworld_engine import PLAIN, answer_of
from sameworld.engines.ray import ray_engine


def windows(folder: Path) -> pa.Table:
    """As of, late rows included."""
    start()
    return answer_of(ray_engine(folder=folder), PLAIN, "as_of")


def table(answer: pa.Table) -> pa.Table:
    """Give the answer as Arrow."""
    return answer
