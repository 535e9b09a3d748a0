"""What is Spark's own: its tables as data, workers that are lost, and what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conformance import HOUR, bytes_of, make_world
from spark_session import needs_java, spark_session

import sameworld as sw
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.spark import spark_engine
from sameworld.training.world_file import load_world

START = 1_704_067_200_000_000
AS_OF = START + 90 * HOUR


def visits() -> pa.Table:
    """A column of every type that Spark and we have."""
    random = np.random.default_rng(5)
    at = START + random.integers(0, 60, 300) * HOUR
    whole = random.integers(-90, 90, 300)
    return pa.table(
        {
            "user": pa.array([None if i == 4 else f"u{i}" for i in random.integers(0, 5, 300)], pa.string()),
            "at": pa.array(at, pa.timestamp("us", tz="UTC")),
            "seen": pa.array(at + HOUR, pa.timestamp("us")),
            "tiny": pa.array(whole, pa.int8()),
            "small": pa.array(whole, pa.int16()),
            "middle": pa.array(whole, pa.int32()),
            "large": pa.array(whole * 2**40),
            "half": pa.array(random.random(300).astype(np.float32)),
            "full": pa.array(np.where(whole > 80, np.nan, whole / 7)),
            "yes": pa.array(whole > 0),
            "day": pa.array(whole.astype(np.int32), pa.date32()),
            "price": pa.array(whole).cast(pa.decimal128(21, 0)).cast(pa.decimal128(18, 2), safe=False),
            "raw": pa.array([b"not for us"] * 300),
        }
    )


def world(data: Any, asked: Any) -> dict[str, Any]:
    source = sw.Source("visits", data, event_time="at", available_at="seen", timezone="UTC")
    of_user = source.by("user")
    columns = ("tiny", "small", "middle", "large", "half", "full", "yes", "price")
    features: dict[str, Any] = {f"sum_{name}": of_user.sum(name, over="2d") for name in columns}
    features["last"] = of_user.last("large")
    features["days"] = of_user.nunique("day")
    features["fields"] = sw.field("fields")
    return {
        "model_or_features": features,
        "moments": sw.Moments(asked, at="asked_at"),
        "label": sw.Label(of_user.last("full") > 0, within="10h", otherwise=False),
        "as_of": AS_OF,
    }


@needs_java
def test_tables_of_spark_have_the_types_and_the_bits_of_the_same_rows_elsewhere(tmp_path: Path) -> None:
    session = spark_session()
    table = visits()
    at = pa.array(START + np.arange(80) * HOUR, pa.timestamp("us", tz="UTC"))
    users = pa.array([f"u{i % 6}" for i in range(80)])
    asked = pa.table({"user": users, "asked_at": at, "fields": pa.array(np.arange(80) / 3)})
    for name, some in (("visits", table), ("asked", asked)):
        pq.write_table(some, tmp_path / name)
    read = session.read.parquet(str(tmp_path / "visits"))
    frames = read.repartition(3), session.read.parquet(str(tmp_path / "asked"))
    engine, one = spark_engine(session, partitions=2), DuckDBEngine(threads=1)
    assert engine.describe(frames[0], "visits") == one.describe(table, "visits")

    given = sw.training_set(engine=engine, **world(*frames))

    expected = sw.training_set(engine=one, **world(table, asked))
    assert content_of(given) == content_of(expected)
    assert given.num_rows == 80
    assert 0 < given["sum_price"].null_count < 80
    # The fingerprint does not depend on the order of rows.
    assert engine.sums(frames[0], "visits") == engine.sums(read.sort("middle"), "visits")
    one.close()


@needs_java
def test_a_table_of_spark_given_to_another_engine_says_what_to_do() -> None:
    frame = spark_session().range(3)

    with pytest.raises(sw.SameworldError, match="engine='spark'"):
        DuckDBEngine(threads=1).describe(frame, "source 'visits'")


def test_spark_that_is_not_installed_says_what_to_install() -> None:
    program = """
import sys
import pyarrow as pa
import sameworld as sw

sys.modules["pyspark"] = None
moments = sw.Moments(pa.table({}), at="t")
try:
    sw.training_set({"x": sw.field("x")}, moments=moments, engine="spark")
except sw.SameworldError as error:
    print(error.do)
"""
    sources = str(Path(__file__).resolve().parents[2] / "src")

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "pip install 'sameworld[spark]'" in done.stdout


DEADLY = """    if len(pages) == 16:
        executor_loss.kill_executor(FLAG)
    return pages * FACTOR + share"""


@needs_java
@pytest.mark.slow
def test_an_executor_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    path = make_world(tmp_path)
    text = path.read_text().replace("    return pages * FACTOR + share", DEADLY)
    path.write_text(f"import executor_loss\nFLAG = {str(tmp_path / 'killed')!r}\n{text}")
    model = load_world(path).model("pages")
    sw.write_training_set(
        model, to=tmp_path / "one", folder=tmp_path, as_of=AS_OF, rows_a_file=16, cache=False
    )
    assert not (tmp_path / "killed").exists()
    here = Path(__file__).resolve()
    found = os.pathsep.join([str(here.parents[2] / "src"), str(here.parent)])

    done = subprocess.run(
        [
            sys.executable,
            str(here.parent / "executor_loss.py"),
            str(path),
            str(tmp_path / "other"),
            str(AS_OF),
        ],
        env={**os.environ, "PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    assert "Lost executor" in done.stderr
    assert bytes_of(tmp_path / "other") == bytes_of(tmp_path / "one")
