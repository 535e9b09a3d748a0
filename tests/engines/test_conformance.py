"""Every engine passes the suite: see `conformance`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import conformance
import pytest
from cluster_sessions import CLUSTERS, cluster_engine_in
from in_process import InProcess

from sameworld.asof.prepared import World
from sameworld.engines.cluster import ClusterEngine
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Engine

EngineIn = Callable[[Path], Engine]


@pytest.fixture(scope="module", params=["duckdb", "in process", *CLUSTERS])
def engine_in(request: pytest.FixtureRequest) -> Iterator[EngineIn]:
    """Give a function: folder -> engine."""
    match request.param:
        case "duckdb":
            yield lambda folder: DuckDBEngine(folder, threads=2)
        case "in process":
            # More partitions than entities, and a memory in which no row stays.
            yield lambda folder: ClusterEngine(InProcess(), folder, partitions=7, memory_bytes=0)
        case _:
            yield cluster_engine_in(request.param)


@pytest.fixture(scope="module")
def engine(engine_in: EngineIn) -> Engine:
    return engine_in(Path())


@pytest.mark.parametrize("world", ["as_of", "event_time"])
def test_every_aggregation_of_every_history_equals_the_oracle(engine: Engine, world: World) -> None:
    conformance.check_named_histories(engine, world)


def test_rows_of_skewed_entities_give_the_same_bits_as_on_one_machine(engine: Engine) -> None:
    conformance.check_many_rows(engine)


def test_nothing_has_the_same_types(engine: Engine) -> None:
    conformance.check_nothing(engine)


def test_more_partitions_than_entities_are_empty_ones(engine: Engine) -> None:
    conformance.check_one_entity(engine)


def test_an_error_in_a_worker_arrives_as_it_was(engine_in: EngineIn, tmp_path: Path) -> None:
    conformance.check_an_error_arrives_as_it_was(engine_in, tmp_path)


def test_a_training_set_has_the_same_values_schema_fingerprint_and_files(
    engine_in: EngineIn, tmp_path: Path
) -> None:
    conformance.check_written_sets(engine_in, tmp_path)
