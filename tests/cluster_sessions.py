"""One session of every cluster for all tests: each takes seconds to start. They end with this process."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sameworld.engines.interface import Engine

needs_java = pytest.mark.skipif(
    shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs Java 17 or newer"
)
CLUSTERS = [pytest.param("spark", marks=needs_java), "ray", "dask"]


@functools.cache
def spark_session() -> Any:
    """Give a session of two workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Spark's own making
        from sameworld.engines.spark import local_session

        return local_session("local[2,4]")


@functools.cache
def ray_session() -> None:
    """Have Ray with two workers at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own making
        import ray.data

        from sameworld.engines.ray import local_ray

        ray.data.DataContext.get_current()
        local_ray(num_cpus=2, object_store_memory=256 << 20)


@functools.cache
def dask_client() -> Any:
    """Give a client of two workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Dask's own making
        from sameworld.engines.dask import local_client

        return local_client(2)


def cluster_engine_in(name: str, partitions: int = 3, **options: Any) -> Callable[[Path], Engine]:
    """Give a function: folder -> an engine of that name."""
    match name:
        case "spark":
            from sameworld.engines.spark import spark_engine

            return lambda folder: spark_engine(spark_session(), folder, partitions=partitions, **options)
        case "ray":
            from sameworld.engines.ray import ray_engine

            ray_session()
            return lambda folder: ray_engine(folder=folder, partitions=partitions, **options)
        case "dask by its shuffle":
            from sameworld.engines.cluster import ClusterEngine
            from sameworld.engines.dask import DaskFlow

            flow = DaskFlow(dask_client(), most_pieces=0)
            return lambda folder: ClusterEngine(flow, folder, partitions=partitions, **options)
        case _:
            from sameworld.engines.dask import dask_engine

            return lambda folder: dask_engine(dask_client(), folder, partitions=partitions, **options)
