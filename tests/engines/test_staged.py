"""Moments that are a table of a cluster's own have one number each, in whatever order they come, and whenever a run is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conformance import HOUR, make_world
from in_process import InProcess

import sameworld as sw
from sameworld.engines.blobs import Stage
from sameworld.engines.cluster import ClusterEngine
from sameworld.engines.worker import Finish
from sameworld.training.world_file import load_world

AS_OF = 1_704_067_200_000_000 + 90 * HOUR


class Unordered(InProcess):
    """Gives the batches of its tables in another order every time; stops where it is told to, once."""

    stops = False

    def batches(self, data: list[pa.RecordBatch], columns: Sequence[str], stage: Stage) -> pa.Table:
        data.append(data.pop(0))
        return super().batches(data, columns, stage)

    def shuffled(self, blobs: pa.Table, parts: int, stage: Any) -> pa.Table:
        if self.stops and isinstance(stage.stage, Finish):
            self.stops = False
            super().shuffled(blobs.filter(pc.less(blobs["part"], 2)), parts, stage)
            raise KeyboardInterrupt
        return super().shuffled(blobs, parts, stage)


def test_moments_that_never_come_in_the_same_order_have_one_number_each(tmp_path: Path) -> None:
    model = load_world(make_world(tmp_path)).model("pages")
    batches = pq.read_table(tmp_path / "asks.parquet").to_batches(max_chunksize=9)
    moments = sw.Moments(batches, at="asked_at", timezone="UTC")
    flow, said = Unordered(), list[str]()
    engine = ClusterEngine(flow, tmp_path, say=said.append)
    to, options = tmp_path / "set", {"as_of": AS_OF, "folder": tmp_path}
    expected = sw.training_set(model, cache=False, **options).to_pylist()

    def write() -> int:
        """Give how many parts were kept, when every moment is there once, with its values."""
        said.clear()
        written = sw.write_training_set(
            model, moments=moments, to=to, engine=engine, rows_a_file=16, **options
        )
        table = pq.read_table(to, partitioning=None)
        assert (written.rows, written.parts) == (70, 5)
        assert table["__moment"].to_pylist() == list(range(70))
        assert sorted(map(str, table.drop_columns(["__moment"]).to_pylist())) == sorted(map(str, expected))
        assert not list(to.glob(".moments*"))
        return written.kept

    flow.stops = True
    with pytest.raises(KeyboardInterrupt):
        write()
    assert len(list(to.glob("part-*"))) == 2
    # What is numbered stays so until all parts are there.
    assert write() == 2
    assert write() == 5
    (to / "part-000003.parquet").unlink()
    # Nobody knows any more which moments those of the lost part were.
    assert write() == 0


def test_no_moments_are_a_training_set_without_rows(tmp_path: Path) -> None:
    model = load_world(make_world(tmp_path)).model("pages")
    batches = pq.read_table(tmp_path / "asks.parquet").slice(0, 0).combine_chunks()
    nothing = [pa.RecordBatch.from_pylist([], schema=batches.schema)]
    engine = ClusterEngine(InProcess(), tmp_path)

    written = sw.write_training_set(
        model,
        moments=sw.Moments(nothing, at="asked_at", timezone="UTC"),
        to=tmp_path / "set",
        engine=engine,
        as_of=AS_OF,
        folder=tmp_path,
    )

    assert (written.rows, written.parts) == (0, 1)
    assert pq.read_table(tmp_path / "set" / "part-000000.parquet").num_rows == 0


def test_moments_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    model = load_world(make_world(tmp_path)).model("pages")
    batches = pq.read_table(tmp_path / "asks.parquet").to_batches(max_chunksize=9)

    class Fewer(InProcess):
        """Loses a batch every time that a table is read."""

        def batches(self, data: list[pa.RecordBatch], columns: Sequence[str], stage: Stage) -> pa.Table:
            data.pop()
            return super().batches(data, columns, stage)

    with pytest.raises(
        sw.SameworldError, match=r"change while they are read(?s:.*)expected: 64(?s:.*)found: 56"
    ):
        sw.write_training_set(
            model,
            moments=sw.Moments(batches, at="asked_at", timezone="UTC"),
            to=tmp_path / "set",
            engine=ClusterEngine(Fewer(), tmp_path),
            as_of=AS_OF,
            folder=tmp_path,
        )
    assert not list((tmp_path / "set").glob(".moments*"))
