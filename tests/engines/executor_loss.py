"""Write a training set on two Spark executors; a world's function may kill the one it runs on: python executor_loss.py WORLD TO AS_OF."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def parent(process: int) -> int:
    """Give the process that started a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def kill_executor(flag: str) -> None:
    """Kill the Java process whose daemon forked this Python worker, and with it what it keeps for others; once, and only there."""
    daemon = os.getppid()
    if b"pyspark.daemon" in Path(f"/proc/{daemon}/cmdline").read_bytes():
        Path(flag).touch()
        os.kill(parent(daemon), signal.SIGKILL)


FEW = ("pages", "grade", "scaled")
"""The features of the world that are enough here: two groupings, one of a source with ids."""
QUICK = {
    "spark.locality.wait": "0s",
    "spark.shuffle.io.maxRetries": "1",
    "spark.shuffle.io.retryWait": "100ms",
}
"""So that Spark does not wait, in turn, for an executor that is not there any more."""

if __name__ == "__main__":
    import sameworld as sw
    from sameworld.engines.spark import local_session, spark_engine
    from sameworld.training.world_file import load_world

    world, to, as_of = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    session = local_session("local-cluster[2,1,1024]")
    engine = spark_engine(session, world.parent, partitions=2)
    options = {"folder": world.parent, "as_of": as_of, "rows_a_file": 16}
    model = load_world(world).model("pages")
    few = {name: model.features[name] for name in FEW}
    written = sw.write_training_set(few, moments=model.moments, to=to, engine=engine, **options)
    print(written.rows, written.parts)
    session.stop()
