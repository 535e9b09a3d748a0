"""The real flights of a month, with features of the whole year, are the same training set on every cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cluster_sessions import CLUSTERS, cluster_engine_in

import sameworld as sw
from benchmarks.asof.flights import lay_out
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine

AS_OF = 1_385_856_000_000_000  # 1 December 2013
NOVEMBER = "asked_at >= '2013-11-01 00:00:00+00' AND asked_at < '2013-12-01 00:00:00+00'"


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], pa.Table]:
    """The model, the options, and what one machine gives."""
    folder = tmp_path_factory.mktemp("flights")
    model = lay_out(folder)
    moments = sw.Moments(f"{model.moments.data} AND {NOVEMBER}", at=model.moments.at)
    options = {"moments": moments, "as_of": AS_OF}
    one = DuckDBEngine(folder, threads=1)
    made = sw.training_set(model, engine=one, **options)
    one.close()
    return model, options, made


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_flights_of_a_month_are_the_same_training_set(
    flights: tuple[Any, dict[str, Any], pa.Table], cluster: str, tmp_path: Path
) -> None:
    model, options, expected = flights

    made = sw.training_set(model, engine=cluster_engine_in(cluster)(tmp_path), **options)

    assert made.num_rows == expected.num_rows > 20_000
    assert made.schema.equals(expected.schema, check_metadata=True)  # the fingerprint is in it
    assert content_of(made) == content_of(expected)
