"""A training set on disk is whole parts only, can be stopped at any instant and gone on with, and is never mixed with another one."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_world import DAY, HOUR, START, SmallWorld, instants

import sameworld as sw
from sameworld.engines.contents import content_of
from sameworld.errors import DefinitionError, TrainingError
from sameworld.training.write import MANIFEST, Manifest

ROOT = Path(__file__).resolve().parents[2]
ROWS = 100
AS_OF = START + 50 * HOUR


def visits(changed: int = 0) -> pa.Table:
    times = [START + i * HOUR for i in range(100)]
    return pa.table({"user": ["ann", "bob"] * 50, "pages": [changed, *range(1, 100)], "at": instants(times)})


def asks(rows: int = ROWS) -> pa.Table:
    # Not in the order of time: a part has moments of several days, and a day moments of several parts.
    at = START + (np.arange(rows) * 37 % 100) * HOUR + 1
    users = pa.array([("ann", "bob", "nobody", None)[i % 4] for i in range(rows)], pa.string())
    return pa.table({"user": users, "asked_at": instants(at)})


def world(data: Any = None, asked: Any = None, last: str = "last") -> dict[str, Any]:
    source = sw.Source(
        "visits", visits() if data is None else data, event_time="at", available_at=sw.delay("1h")
    )
    of_user = source.by("user")
    features: dict[str, Any] = {
        "pages": of_user.sum("pages", over=["5h", "2d"]),
        last: of_user.last("pages"),
        "user": sw.field("user").category(),
    }
    return {
        "model_or_features": features,
        "moments": sw.Moments(asks() if asked is None else asked, at="asked_at"),
        "label": sw.Label(of_user.last("pages") > 30, within="10h"),
    }


def table(**options: Any) -> pa.Table:
    return sw.training_set(**({**world(), "as_of": AS_OF} | options))


def write(to: Path, **options: Any) -> Any:
    return sw.write_training_set(**({**world(), "to": to, "as_of": AS_OF, "rows_a_file": 7} | options))


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("part-*.parquet"))


def read(folder: Path) -> pa.Table:
    """Read all parts in an order of no meaning, and give their rows in the moments' order."""
    tables = [pq.ParquetFile(path).read() for path in reversed(parts(folder))]
    whole = pa.concat_tables(t.replace_schema_metadata(None) for t in tables).sort_by("__moment")
    assert whole["__moment"].to_pylist() == list(range(whole.num_rows))
    return whole.drop_columns("__moment")


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    return one.schema.equals(other.schema) and content_of(one) == content_of(other)


def manifest(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)


@pytest.mark.parametrize("rows_a_file", [1, 7, 100, 1000])
@pytest.mark.parametrize("partition_by", [None, "day", "month"])
def test_the_parts_are_the_training_set_bit_for_bit(
    tmp_path: Path, rows_a_file: int, partition_by: Any
) -> None:
    to = tmp_path / "set"
    written = write(to, rows_a_file=rows_a_file, partition_by=partition_by)
    assert same_bits(read(to), table())
    assert (written.rows, written.parts, written.kept) == (100, -(-100 // rows_a_file), 0)
    found = manifest(to)
    assert (found.complete, found.rows, found.parts) == (True, 100, written.parts)
    metadata = table().schema.metadata[b"sameworld"]
    assert json.loads(metadata)["fingerprint"] == found.fingerprint == written.made_of.content
    for path in parts(to):
        assert pq.read_schema(path).metadata[b"sameworld"] == metadata
        assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_a_folder_is_of_the_moments_of_its_day(tmp_path: Path) -> None:
    write(tmp_path / "set", partition_by="day", rows_a_file=50)
    days = sorted(path.name for path in (tmp_path / "set").iterdir() if path.is_dir())
    assert days == [f"day=2024-03-0{i}" for i in range(1, 6)]
    for number, day in enumerate(days):
        times = pq.ParquetDataset(tmp_path / "set" / day).read()["asked_at"].cast(pa.int64()).to_numpy()
        assert ((times - START) // DAY == number).all()
    # The usual readers see one table, and neither the manifest nor the lock.
    assert pq.read_table(tmp_path / "set").num_rows == 100


def test_no_moments_are_one_part_without_rows(tmp_path: Path) -> None:
    moments = sw.Moments(asks(0), at="asked_at")
    written = write(tmp_path / "set", moments=moments)
    assert (written.rows, written.parts) == (0, 1)
    assert same_bits(read(tmp_path / "set"), table(moments=moments))
    assert manifest(tmp_path / "set").complete


def test_a_second_call_keeps_what_is_there(tmp_path: Path) -> None:
    to = tmp_path / "set"
    write(to)
    before = {path: path.stat().st_mtime_ns for path in parts(to)}
    told: list[Any] = []
    again = write(to, progress=lambda *now: told.append(now))
    assert (again.parts, again.kept) == (15, 15)
    assert {path: path.stat().st_mtime_ns for path in parts(to)} == before
    assert told == [(100, 100)]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _of_another_run(path: Path) -> None:
    found = pq.ParquetFile(path).read()
    metadata = {**found.schema.metadata, b"sameworld": b"{}"}
    pq.write_table(found.replace_schema_metadata(metadata), path)


def _fewer_rows(path: Path) -> None:
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)


def _of_another_part(path: Path) -> None:
    path.write_bytes(path.with_name("part-000000.parquet").read_bytes())


@pytest.mark.parametrize("spoil", [Path.unlink, _truncate, _of_another_run, _fewer_rows, _of_another_part])
@pytest.mark.parametrize("partition_by", [None, "month"])
def test_a_part_that_is_not_as_it_should_be_is_written_again(
    tmp_path: Path, spoil: Any, partition_by: Any
) -> None:
    to = tmp_path / "set"
    write(to, partition_by=partition_by)
    spoil(parts(to)[3])
    (parts(to)[0].parent / ".part-000007.parquet.new").write_bytes(b"half")
    told: list[Any] = []
    again = write(to, partition_by=partition_by, progress=lambda *now: told.append(now))
    assert (again.parts, again.kept) == (15, 14)
    # Progress begins with what was there.
    assert told == [(21, 100), (28, 100), (100, 100)]
    assert same_bits(read(to), table())
    assert not list(to.rglob("*.new"))


def test_a_run_that_goes_on_knows_labels_as_of_when_it_began(tmp_path: Path) -> None:
    to = tmp_path / "set"

    class Stopped(Exception):
        pass

    def stop(done: int, _: int | None) -> None:
        if done >= 49:
            raise Stopped

    with pytest.raises(Stopped):
        write(to, as_of=None, progress=stop)
    begun = manifest(to)
    assert not begun.complete
    assert len(parts(to)) == 7
    written = write(to, as_of=None)
    assert (written.kept, written.made_of.as_of) == (7, begun.made_of.as_of)
    assert same_bits(read(to), table(as_of=begun.made_of.as_of))
    with pytest.raises(TrainingError) as caught:
        write(to)
    assert caught.value.found == f"as_of {begun.made_of.as_of} -> {AS_OF}"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (world(visits(changed=5)), "source 'visits' has other data"),
        (world(asked=asks(99)), "the moments are others"),
        (world(last="latest"), "feature 'last' is gone; feature 'latest' is new"),
        ({"label": None}, f"the label is defined otherwise; as_of {AS_OF} -> None"),
        ({"world": "event_time"}, "world as_of -> event_time"),
        ({"rows_a_file": 8, "partition_by": "day"}, "rows_a_file 7 -> 8; partition_by None -> day"),
    ],
)
def test_another_training_set_is_refused_and_what_changed_is_named(
    tmp_path: Path, options: dict[str, Any], found: str
) -> None:
    to = tmp_path / "set"
    fingerprint = write(to).made_of.content
    before = {path: path.read_bytes() for path in [*parts(to), to / MANIFEST]}
    with pytest.raises(TrainingError) as caught:
        write(to, **options)
    assert str(caught.value) == (
        "The folder holds another training set.\n"
        f"  in: {to}\n"
        f"  expected: one made of the same, fingerprint {fingerprint}\n"
        f"  found: {found}\n"
        "  do: write to another folder, or replace what is there with overwrite=True (--overwrite)."
    )
    assert {path: path.read_bytes() for path in [*parts(to), to / MANIFEST]} == before


@pytest.mark.parametrize("partition_by", [None, "day"])
def test_overwriting_leaves_nothing_of_what_was_there(tmp_path: Path, partition_by: Any) -> None:
    to = tmp_path / "set"
    write(to, partition_by="month", rows_a_file=3)
    moments = sw.Moments(asks(50), at="asked_at")
    written = write(to, moments=moments, overwrite=True, partition_by=partition_by)
    assert (written.rows, written.kept) == (50, 0)
    assert same_bits(read(to), table(moments=moments))
    assert manifest(to).partition_by == partition_by


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError) as caught:
        write(tmp_path, overwrite=True)
    assert str(caught.value) == (
        "The folder is not empty and holds no training set.\n"
        f"  in: {tmp_path}\n"
        "  found: notes.txt\n"
        "  do: write to a folder of its own."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_two_processes_do_not_write_one_training_set(tmp_path: Path) -> None:
    def second(*_: Any) -> None:
        write(tmp_path / "set")

    with pytest.raises(TrainingError) as caught:
        write(tmp_path / "set", progress=second)
    assert caught.value.what == "Another process is writing this training set."


@pytest.mark.parametrize(("name", "options"), [("__moment", {}), ("day", {"partition_by": "day"})])
def test_a_feature_with_a_name_of_the_files_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(DefinitionError) as caught:
        write(tmp_path / "set", **(world(last=name) | options))
    assert repr(name) in caught.value.what
    assert not parts(tmp_path / "set")


def test_a_query_that_gives_its_moments_in_another_order_is_written_in_that_order(tmp_path: Path) -> None:
    """Parts of one order are never mixed with parts of another, although the rows are the same."""
    pq.write_table(asks(), tmp_path / "asks.parquet")
    query = f"SELECT * FROM '{tmp_path / 'asks.parquet'}'"
    to = tmp_path / "set"
    write(to, moments=sw.Moments(query, at="asked_at"))
    other = sw.Moments(f"{query} ORDER BY asked_at, user", at="asked_at")
    assert write(to, moments=other).kept < 15
    assert same_bits(read(to), table(moments=other))


SLOW = """
import sys, time
from pathlib import Path
import sameworld as sw

sys.path.insert(0, {tests!r})
from test_write_training_set import write

print("begun", flush=True)
write(Path(sys.argv[1]), as_of=None, rows_a_file=4, partition_by="day", progress=lambda *_: time.sleep(0.02))
"""


@pytest.mark.parametrize("room", [200, 4_000], ids=["for nothing", "for the manifest"])
def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path: Path, room: int) -> None:
    to, before = tmp_path / "set", resource.getrlimit(resource.RLIMIT_FSIZE)
    write(tmp_path / "whole", rows_a_file=50)
    assert max(path.stat().st_size for path in parts(tmp_path / "whole")) > room

    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(TrainingError) as told:
            write(to, rows_a_file=50, cache=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    error = told.value
    assert error.what == "The training set cannot be written."
    assert (error.where, error.found) == (str(to), "File too large")
    assert write(to, rows_a_file=50).kept == 0
    assert same_bits(read(to), table())
    assert not list(to.rglob("*.new"))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError) as told:
        write(tmp_path / "file" / "set")
    assert (told.value.where, told.value.found) == (str(tmp_path / "file" / "set"), "Not a directory")


@pytest.mark.slow
def test_killed_at_any_instant_only_the_part_being_written_is_lost(tmp_path: Path) -> None:
    to = tmp_path / "set"
    tests = str(ROOT / "tests")
    paths = [str(ROOT / "src"), tests, str(ROOT / "tests" / "training"), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    code = SLOW.format(tests=tests)
    whole: set[Path] = set()
    for wait in (0.15, 0.05, 0.111):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(to)], env=env, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        deadline = time.monotonic() + 60
        while len(parts(to)) <= len(whole) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        # What has its name is whole, and what was there stays.
        assert whole <= set(parts(to))
        whole = set(parts(to))
        for path in whole:
            pq.ParquetFile(path).read()
        assert not manifest(to).complete
    begun = manifest(to)
    written = write(to, as_of=None, rows_a_file=4, partition_by="day")
    assert 2 <= written.kept < 25
    assert written.made_of == begun.made_of
    assert same_bits(read(to), table(as_of=begun.made_of.as_of))
    assert not list(to.rglob("*.new"))


def test_a_world_file_s_model_is_written_as_it_is_computed(trained_world: SmallWorld, tmp_path: Path) -> None:
    model = trained_world.load().model("plain")
    sw.write_training_set(model, to=tmp_path / "set", folder=trained_world.folder, as_of=AS_OF)
    whole = sw.training_set(model, folder=trained_world.folder, as_of=AS_OF)
    assert same_bits(read(tmp_path / "set"), whole.replace_schema_metadata(None))
