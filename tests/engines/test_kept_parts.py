"""Rows that a cluster keeps in partitions are the rows of the source as it is, and are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from conformance import HOUR, make_world
from in_process import InProcess

import sameworld as sw
from sameworld.engines.cluster import ClusterEngine
from sameworld.engines.contents import content_of
from sameworld.training.world_file import load_world

AS_OF = 1_704_067_200_000_000 + 90 * HOUR


def test_kept_partitions_are_used_until_a_file_changes(tmp_path: Path) -> None:
    model = load_world(make_world(tmp_path)).model("pages")
    options: dict[str, Any] = {"as_of": AS_OF, "folder": tmp_path, "cache": False}
    said: list[str] = []
    engine = ClusterEngine(
        InProcess(), tmp_path, partitions=7, cache=tmp_path / "kept", say=said.append, memory_bytes=0
    )

    def put() -> list[str]:
        """Check values against those of one machine; give what was put into partitions."""
        said.clear()
        made, expected = (sw.training_set(model, engine=one, **options) for one in (engine, "duckdb"))
        assert content_of(made) == content_of(expected)
        return [line for line in said if line.startswith("putting")]

    def of(keys: str) -> str:
        return f"putting visits by {keys} into 7 partitions"

    # The label reads other columns than the features; staff.csv is no Parquet.
    assert put() == [of("user"), of("user, day"), of("user")]
    assert put() == []

    file = tmp_path / "visits" / "day=12" / "some.parquet"
    pq.write_table(pq.read_table(file, partitioning=None).slice(100), file)

    assert put() == [of("user"), of("user, day"), of("user")]
    sw.write_training_set(model, to=tmp_path / "set", engine=engine, **options)
    assert put() == []
