"""What is each cluster's own: its tables as data, workers that are lost, and what is missing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_sessions import CLUSTERS, cluster_engine_in, needs_java, spark_session
from conformance import HOUR, bytes_of, make_world
from executor_loss import FEW, QUICK

import sameworld as sw
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.training.world_file import load_world

START = 1_704_067_200_000_000
AS_OF = START + 90 * HOUR


def visits() -> pa.Table:
    """A column of every type that all have: large integers with nulls, NaN and -0.0 among the values."""
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
            "large": pa.array(whole * 2**40 + 1, mask=whole % 9 == 0),
            "half": pa.array(random.random(300).astype(np.float32)),
            "full": pa.array(np.where(whole > 80, np.nan, whole / -7)),
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


def tables_of(name: str, files: Sequence[Path]) -> list[Any]:
    """Give Parquet files as tables of a cluster's own kind."""
    match name:
        case "spark":
            return [spark_session().read.parquet(str(file)) for file in files]
        case "ray":
            import ray.data

            return [ray.data.read_parquet(str(file)) for file in files]
        case _:
            import dask.dataframe as dd

            return [dd.read_parquet(file, dtype_backend="pyarrow") for file in files]


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> str:
    """The name of a cluster."""
    return request.param


def test_tables_of_a_cluster_have_the_types_and_the_bits_of_the_same_rows_elsewhere(
    cluster: str, tmp_path: Path
) -> None:
    engine = cluster_engine_in(cluster, partitions=2)(tmp_path)
    table = visits()
    at = pa.array(START + np.arange(80) * HOUR, pa.timestamp("us", tz="UTC"))
    users = pa.array([f"u{i % 6}" for i in range(80)])
    asked = pa.table({"user": users, "asked_at": at, "fields": pa.array(np.arange(80) / 3)})
    files = [tmp_path / f"{name}.parquet" for name in ("visits", "backwards", "asked")]
    for file, some in zip(files, (table, table.take(pa.array(range(299, -1, -1))), asked), strict=True):
        pq.write_table(some, file)
    own, backwards, moments = tables_of(cluster, files)
    one = DuckDBEngine(threads=1)
    assert engine.describe(own, "visits") == one.describe(table, "visits")

    given = sw.training_set(engine=engine, **world(own, moments))

    expected = sw.training_set(engine=one, **world(table, asked))
    assert content_of(given) == content_of(expected)
    assert given.num_rows == 80
    assert 0 < given["sum_price"].null_count < 80
    # The fingerprint does not depend on the order of rows.
    assert engine.sums(own, "visits") == engine.sums(backwards, "visits")
    one.close()


def test_a_table_of_a_cluster_given_to_another_engine_says_what_to_do(cluster: str, tmp_path: Path) -> None:
    pq.write_table(visits(), tmp_path / "visits.parquet")
    (own,) = tables_of(cluster, [tmp_path / "visits.parquet"])

    with pytest.raises(sw.SameworldError, match="use the engine whose table it is"):
        DuckDBEngine(threads=1).describe(own, "source 'visits'")


def test_a_cluster_that_is_not_installed_says_what_to_install() -> None:
    program = """
import sys
import pyarrow as pa
import sameworld as sw

moments = sw.Moments(pa.table({}), at="t")
for name, library in (("spark", "pyspark"), ("ray", "ray"), ("dask", "dask")):
    sys.modules[library] = None
    try:
        sw.training_set({"x": sw.field("x")}, moments=moments, engine=name)
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

    for name in ("spark", "ray", "dask"):
        assert f"pip install 'sameworld[{name}]'" in done.stdout


def test_what_an_engine_cannot_be_told_is_an_error_that_says_so(cluster: str) -> None:
    cluster_engine_in(cluster)(Path())  # what is started is the tests' own
    made = importlib.import_module(f"sameworld.engines.{cluster}")
    engine = getattr(made, f"{cluster}_engine")

    with pytest.raises(sw.SameworldError, match=rf"(?s)This is no .*pathlib.*do: {cluster}_engine\("):
        engine(Path("folder"))
    with pytest.raises(sw.SameworldError, match=r"no option 'partition'(?s:.*)nearest: partitions"):
        engine(partition=3)
    with pytest.raises(sw.SameworldError, match="at least one partition"):
        engine(partitions=0)


def make_deadly_world(folder: Path, kill: str) -> tuple[Path, Path]:
    """Give a world whose function kills, once, somebody other than this process, and the file that says that it has."""
    path, flag = make_world(folder), folder / "killed"
    lines = [
        f"    if len(pages) == 16 and os.getpid() != {os.getpid()} and not os.path.exists(FLAG):",
        f"        {kill}",
        "    return pages * FACTOR + share",
    ]
    text = path.read_text().replace(lines[-1], "\n".join(lines))
    path.write_text(f"import os, signal\nFLAG = {str(flag)!r}\n{text}")
    return path, flag


OPTIONS: dict[str, Any] = {"as_of": AS_OF, "rows_a_file": 16}


@pytest.mark.parametrize("cluster", [*CLUSTERS, "dask by its shuffle"])
def test_a_worker_that_is_killed_changes_nothing(cluster: str, tmp_path: Path) -> None:
    path, killed = make_deadly_world(
        tmp_path, "open(FLAG, 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    model = load_world(path).model("pages")
    sw.write_training_set(model, to=tmp_path / "one", cache=False, folder=tmp_path, **OPTIONS)
    assert not killed.exists()

    engine = cluster_engine_in(cluster)(tmp_path)
    sw.write_training_set(model, to=tmp_path / "other", engine=engine, folder=tmp_path, **OPTIONS)

    assert killed.exists()
    assert bytes_of(tmp_path / "other") == bytes_of(tmp_path / "one")


@needs_java
def test_an_executor_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    path, killed = make_deadly_world(tmp_path, "import executor_loss; executor_loss.kill_executor(FLAG)")
    model = load_world(path).model("pages")
    few = {name: model.features[name] for name in FEW}
    one = {"moments": model.moments, "to": tmp_path / "one", "cache": False, "folder": tmp_path}
    sw.write_training_set(few, **one, **OPTIONS)
    assert not killed.exists()
    here = Path(__file__).resolve()
    submitted = " ".join([*(f"--conf {name}={value}" for name, value in QUICK.items()), "pyspark-shell"])
    found = os.pathsep.join([str(here.parents[2] / "src"), str(here.parent)])

    done = subprocess.run(
        [
            sys.executable,
            str(here.parent / "executor_loss.py"),
            str(path),
            str(tmp_path / "other"),
            str(AS_OF),
        ],
        env={**os.environ, "PYTHONPATH": found, "PYSPARK_SUBMIT_ARGS": submitted},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert killed.exists()
    assert "Lost executor" in done.stderr
    assert bytes_of(tmp_path / "other") == bytes_of(tmp_path / "one")


def test_moments_that_are_a_table_of_a_cluster_do_not_go_through_the_driver(
    cluster: str, tmp_path: Path
) -> None:
    model = load_world(make_world(tmp_path)).model("pages")
    folder = tmp_path / "asks"
    folder.mkdir()
    asks = pq.read_table(tmp_path / "asks.parquet")
    for number in range(3):
        pq.write_table(asks.slice(25 * number, 25), folder / f"{number}.parquet")
    (own,) = tables_of(cluster, [folder])
    said: list[str] = []
    engine = cluster_engine_in(cluster, say=said.append)(tmp_path)
    moments = sw.Moments(own, at="asked_at", timezone="UTC")

    sw.write_training_set(
        model, moments=moments, to=tmp_path / "set", engine=engine, folder=tmp_path, **OPTIONS
    )

    table = pq.read_table(tmp_path / "set", partitioning=None)
    assert table["__moment"].to_pylist() == list(range(70))
    rows = table.drop_columns(["__moment"]).to_pylist()
    expected = sw.training_set(model, cache=False, folder=tmp_path, as_of=AS_OF).to_pylist()
    assert sorted(map(str, rows)) == sorted(map(str, expected))
    assert "the moments are no Parquet, so the driver reads them" not in said
