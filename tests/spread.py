"""How tests are spread over processes: a file to each, the longest first, so that all of them end together."""

from __future__ import annotations

from typing import Any

import pytest

ON_CLUSTERS = (
    "tests/engines/test_clusters.py",
    "tests/engines/test_conformance.py",
    "tests/evaluation/test_prove.py",
    "tests/engines/test_flights.py",
)
"""One process has all of these: Spark, Ray and Dask take seconds to start, and memory as long as they run."""
LONGEST = (
    *ON_CLUSTERS,
    "tests/stores/test_online.py",
    "tests/docs/test_snippets.py",
    "tests/server/test_control.py",
    "tests/stores/test_live_proof.py",
    "tests/test_chaos.py",
    "tests/asof/test_engine_against_oracle.py",
    "tests/training/test_write_training_set.py",
    "tests/examples/test_flights_stores.py",
    "tests/test_benchmarks.py",
    "tests/engines/test_kept.py",
    "tests/server/test_portfolio.py",
    "tests/stores/test_replay_kill.py",
    "tests/server/test_workers.py",
    "tests/server/test_outages.py",
    "tests/server/test_lanes.py",
    "tests/stores/test_rotation.py",
    "tests/evaluation/test_explain.py",
    "tests/training/test_batches.py",
)
"""Files that take a dozen seconds or more, the longest first; the others fill up what is left."""


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def longest_first(items: list[pytest.Item]) -> None:
    """Put the tests of the files named above first, in that order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(file_of(item.nodeid), len(places)))


def scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a scheduler that keeps the order of files, and those with clusters together; None without --dist loadfile."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # xdist takes files with many tests for long ones

    class Spread(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = file_of(nodeid)
            return "clusters" if file in ON_CLUSTERS else file

    return Spread(config, log)
