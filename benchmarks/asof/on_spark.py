"""What a training set costs on Spark, for docs/scale.md: seconds, seconds of tasks, bytes shuffled, bytes written, the driver's memory.

python -m benchmarks.asof.on_spark EVENTS...       each size in a process of its own, local[*]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.asof.contestants import WINDOWS


def measure(events: int) -> None:
    """Write a training set of plain rows, and one of rows with ids, by Spark's workers; print a line of JSON each."""
    import sameworld as sw  # noqa: PLC0415 # only the process that measures needs it
    from benchmarks.asof.contestants.sameworld_engine import CORRECTED, PLAIN  # noqa: PLC0415
    from sameworld.engines.spark import local_session, spark_engine  # noqa: PLC0415

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = local_session()
    store = session.sparkContext._jsc.sc().statusStore()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        child = [sys.executable, "-m", "benchmarks.asof.child", "generate", made, str(events), "1", "0", "1"]
        subprocess.run(child, check=True, stdout=subprocess.DEVNULL)  # its memory is not the driver's
        engine = spark_engine(session, folder)
        for source, asked in ((PLAIN, "earlier"), (PLAIN, "moments"), (CORRECTED, "moments")):
            grouped, over = source.by("k"), list(WINDOWS)
            features = {
                "count": grouped.count(over=over),
                "sum": grouped.sum("x", over=over),
                "mean": grouped.mean("x", over=over),
                "max": grouped.max("x", over=over),
                "last": grouped.last("x"),
            }
            moments = sw.Moments(f"{asked}.parquet", at="t")
            to = folder / f"{source.name}-{asked}"
            before, begin = store.executorSummary("driver"), time.perf_counter()
            written = sw.write_training_set(features, moments=moments, to=to, engine=engine, folder=folder)
            seconds, after = time.perf_counter() - begin, store.executorSummary("driver")
            if asked == "earlier":  # starts workers, and loads kernels in them
                continue
            found = {
                "source": source.name,
                "events": events,
                "moments": written.rows,
                "seconds": round(seconds, 1),
                "task_seconds": round((after.totalDuration() - before.totalDuration()) / 1e3, 1),
                "shuffled_bytes": after.totalShuffleWrite() - before.totalShuffleWrite(),
                "written_bytes": sum(path.stat().st_size for path in to.glob("*.parquet")),
                "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            }
            print(json.dumps(found), flush=True)
    session.stop()


if __name__ == "__main__":
    if sys.argv[1] == "one":
        measure(int(sys.argv[2]))
    else:
        for size in sys.argv[1:]:
            subprocess.run([sys.executable, "-m", "benchmarks.asof.on_spark", "one", size], check=True)
