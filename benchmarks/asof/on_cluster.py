"""What a training set costs on a cluster's engine, for docs/scale.md: seconds, seconds of tasks, bytes shuffled, bytes written, the driver's memory.

python -m benchmarks.asof.on_cluster spark|ray|dask EVENTS...       each size in a process of its own, on all cores
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.asof.contestants import WINDOWS

Cost = Callable[[], tuple[float, int]]
"""Gives the seconds of tasks and the bytes shuffled until now."""


def on_spark(folder: Path) -> tuple[Any, Cost]:
    """Give an engine, and what its tasks took: Spark counts both, bytes as it compresses them."""
    from sameworld.engines.spark import local_session, spark_engine  # noqa: PLC0415 # only what is measured is there

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = local_session()
    store = session.sparkContext._jsc.sc().statusStore()

    def cost() -> tuple[float, int]:
        told = store.executorSummary("driver")
        return told.totalDuration() / 1e3, told.totalShuffleWrite()

    return spark_engine(session, folder), cost


def on_ray(folder: Path) -> tuple[Any, Cost]:
    """Give an engine, and what its tasks took: processor time of all that Ray started, and the size of what tasks gave to others."""
    import ray  # noqa: PLC0415 # see above
    from ray.experimental import get_object_locations  # noqa: PLC0415

    from benchmarks.asof.processes import descendants, ticks  # noqa: PLC0415
    from sameworld.engines.cluster import ClusterEngine  # noqa: PLC0415
    from sameworld.engines.ray import RayFlow, Task, local_ray  # noqa: PLC0415

    local_ray()
    given: list[Any] = []

    class Counted(RayFlow):
        """Remembers what goes from task to task."""

        def shuffled(self, blobs: list[Task], parts: int, stage: Any) -> list[Task]:
            """See `Flow`."""
            tasks = super().shuffled(blobs, parts, stage)
            given.extend(piece for task in tasks for piece in task.given)
            return tasks

    def cost() -> tuple[float, int]:
        taken = sum(ticks(process) for process in descendants(os.getpid())) / os.sysconf("SC_CLK_TCK")
        ray.wait(given, num_returns=len(given)) if given else None
        sizes = [told["object_size"] or 0 for told in get_object_locations(given).values()] if given else []
        return taken, sum(sizes)

    return ClusterEngine(Counted(own=True), folder), cost


def on_dask(folder: Path) -> tuple[Any, Cost]:
    """Give an engine, and what its tasks took: processor time of the workers, and the size of what is given to shuffles. The scheduler is in the driver."""
    from dask.delayed import Delayed, delayed  # noqa: PLC0415 # see above

    from benchmarks.asof.processes import descendants, ticks  # noqa: PLC0415
    from sameworld.engines.cluster import ClusterEngine  # noqa: PLC0415
    from sameworld.engines.dask import DaskFlow, local_client  # noqa: PLC0415

    sizes = folder / "shuffled"

    class Counted(DaskFlow):
        """Has workers note what goes from task to task."""

        def shuffled(self, blobs: list[Delayed], parts: int, stage: Any) -> list[Delayed]:
            """See `Flow`."""
            noted = [delayed(_noted, pure=False)(table, str(sizes)) for table in blobs]
            return super().shuffled(noted, parts, stage)

    def cost() -> tuple[float, int]:
        taken = sum(ticks(process) for process in descendants(os.getpid())) / os.sysconf("SC_CLK_TCK")
        return taken, sum(map(int, sizes.read_text().split())) if sizes.exists() else 0

    return ClusterEngine(Counted(local_client(), own=True), folder), cost


def _noted(blobs: Any, sizes: str) -> Any:
    with open(sizes, "a") as file:
        file.write(f"{blobs.nbytes}\n")
    return blobs


def own_table(name: str, file: Path) -> Any:
    """Give a Parquet file as a table of the engine's own."""
    match name:
        case "spark":
            from pyspark.sql import SparkSession  # noqa: PLC0415 # see above

            return SparkSession.getActiveSession().read.parquet(str(file))
        case "ray":
            import ray.data  # noqa: PLC0415

            ray.data.DataContext.get_current().enable_progress_bars = False
            return ray.data.read_parquet(str(file))
        case _:
            import dask.dataframe as dd  # noqa: PLC0415

            return dd.read_parquet(file, dtype_backend="pyarrow")


def measure(name: str, events: int) -> None:
    """Write training sets of plain rows (with moments in files, and as a table of the engine's own) and of rows with ids, by workers; print a line of JSON each."""
    import sameworld as sw  # noqa: PLC0415 # see above
    from benchmarks.asof.contestants.sameworld_engine import CORRECTED, PLAIN  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        child = [sys.executable, "-m", "benchmarks.asof.child", "generate", made, str(events), "1", "0", "1"]
        subprocess.run(child, check=True, stdout=subprocess.DEVNULL)  # its memory is not the driver's
        engine, cost = {"spark": on_spark, "ray": on_ray, "dask": on_dask}[name](folder)
        runs = ((PLAIN, "earlier", False), (PLAIN, "moments", False), (CORRECTED, "moments", False))
        for source, asked, own in (*runs, (PLAIN, "moments", True)):
            grouped, over = source.by("k"), list(WINDOWS)
            features = {
                "count": grouped.count(over=over),
                "sum": grouped.sum("x", over=over),
                "mean": grouped.mean("x", over=over),
                "max": grouped.max("x", over=over),
                "last": grouped.last("x"),
            }
            file = folder / f"{asked}.parquet"
            moments = sw.Moments(own_table(name, file) if own else str(file), at="t")
            to = folder / f"{source.name}-{asked}-{own}"
            before, begin = cost(), time.perf_counter()
            written = sw.write_training_set(features, moments=moments, to=to, engine=engine, folder=folder)
            seconds, after = time.perf_counter() - begin, cost()
            if asked == "earlier":  # starts workers, and loads kernels in them
                continue
            found = {
                "engine": name,
                "source": source.name,
                "events": events,
                "moments": written.rows,
                "moments_are": "the engine's own table" if own else "Parquet files",
                "seconds": round(seconds, 1),
                "task_seconds": round(after[0] - before[0], 1),
                "shuffled_bytes": after[1] - before[1],
                "written_bytes": sum(path.stat().st_size for path in to.glob("*.parquet")),
                "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            }
            print(json.dumps(found), flush=True)
        engine.close()


if __name__ == "__main__":
    if sys.argv[1] == "one":
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        for size in sys.argv[2:]:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.asof.on_cluster", "one", sys.argv[1], size], check=True
            )
