"""What is kept is what would be computed: after more files, more moments, other features, in several processes, and when the cache fails."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.asof.schema import supported
from sameworld.definitions.feature import Aggregate
from sameworld.engines import kept
from sameworld.engines.cache import Cache
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Change

INSTANT = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        ("k", pa.string()),
        ("e", INSTANT),
        ("a", INSTANT),
        ("x", pa.float64()),
        ("s", pa.string()),
        ("id", pa.int64()),
    ]
)


def rows(seed: int, count: int, *, entities: int = 5, least: int = 0) -> pa.Table:
    """Random rows readable at `least` microseconds or later, nulls and ties among them."""
    chance = random.Random(seed)
    made = [
        {
            "k": chance.choice([f"k{i}" for i in range(entities)] + [None]),
            "e": chance.choice([None, *range(least, least + 100)]),
            "a": chance.choice([None, *range(least, least + 120)]),
            "x": chance.choice([None, float("nan"), -0.0, chance.random(), 1e15]),
            "s": chance.choice([None, "a", "ä", f"t{seed}"]),
            "id": chance.randrange(count),
        }
        for _ in range(count)
    ]
    return pa.Table.from_pylist(made, schema=SCHEMA)


def source(**options: str) -> sw.Source:
    return sw.Source("rows", "rows/*.parquet", event_time="e", available_at="a", **options)


def features(of: sw.Source, more: Sequence[Aggregate] = ()) -> list[Aggregate]:
    by, over = of.by("k"), ["20us", "70us"]
    return [
        by.count(over=over),
        by.sum("x", over=over),
        by.max("x"),
        by.last("s", over=over),
        by.nunique("s"),
        of.where("x > 0.5").by("k").exists(over=over),
        *more,
    ]


def values(
    folder: Path,
    wanted: Sequence[Aggregate],
    at: Sequence[int],
    *,
    cache: Path | None = None,
    said: list[str] | None = None,
) -> tuple[dict[str, list[object]], list[Change], list[str]]:
    """Give the values at moments of all entities, what changed, and what the engine said."""
    said = [] if said is None else said
    engine = DuckDBEngine(folder, threads=2, cache=cache, say=said.append)
    of = wanted[0].source
    schemas = {of.content: supported(engine.describe(of.data, "rows"))}
    when = np.repeat(np.array(at, np.int64), 7)
    keys = pa.table({"k": pa.array([*(f"k{i}" for i in range(6)), None] * len(at), pa.string())})
    got = engine.aggregates(groupings_of(wanted), schemas, Asked(keys, when, when), rows={}, world="as_of")
    changes = engine.changes
    engine.close()
    return (
        {name: [repr(value) for value in column.to_pylist()] for name, column in got.items()},
        changes,
        said,
    )


def write(folder: Path, name: str, table: pa.Table) -> None:
    (folder / "rows").mkdir(exist_ok=True)
    pq.write_table(table, folder / "rows" / f"{name}.parquet")


@pytest.mark.parametrize("options", [{}, {"id": "id"}])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_would_be_computed(tmp_path: Path, seed: int, options: dict[str, str]) -> None:
    of, cache, at = source(**options), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "b", rows(seed, 60))
    wanted = values(tmp_path, features(of), at)[0]
    assert values(tmp_path, features(of), at, cache=cache)[0] == wanted
    assert values(tmp_path, features(of), at, cache=cache)[0] == wanted
    # another feature reads one more input of rows that are sorted already
    more = [of.by("k").min("s"), of.by("k").mean("x", over="33us")]
    got, _, said = values(tmp_path, features(of, more), at, cache=cache)
    assert got == values(tmp_path, features(of, more), at)[0]
    assert not any("sorting" in line for line in said)


@pytest.mark.parametrize(
    "options", [{}, {"id": "id"}, {"id": "s"}, {"id": "id", "corrections_within": "40us"}], ids=str
)
@pytest.mark.parametrize("seed", range(6))
def test_more_files_give_what_a_rebuild_gives(tmp_path: Path, seed: int, options: dict[str, str]) -> None:
    of, cache, at = source(**options), tmp_path / "cache", range(0, 400, 9)
    write(tmp_path, "b", rows(seed, 50))
    before = values(tmp_path, features(of), at, cache=cache)[0]
    # a file that comes earlier by name, with further entities, rows that come late and texts that were not there
    write(tmp_path, "a", rows(seed + 100, 30, entities=6, least=60))
    got, changes, said = values(tmp_path, features(of), at, cache=cache)
    wanted = values(tmp_path, features(of), at)[0]
    assert got == wanted
    assert any("merging 1 of 2 files" in line for line in said)
    # and it is told which of the values known before are others now
    told = {change.column: set(change.moments.tolist()) for change in changes}
    other = {
        name: {i for i, (a, b) in enumerate(zip(before[name], wanted[name], strict=True)) if a != b}
        for name in wanted
    }
    assert told == {name: places for name, places in other.items() if places}
    # and once more, with another feature
    write(tmp_path, "c", rows(seed + 200, 30, entities=6, least=90))
    more = [of.by("k").min("s"), of.by("k").last("x")]
    assert (
        values(tmp_path, features(of, more), at, cache=cache)[0]
        == values(tmp_path, features(of, more), at)[0]
    )


BACKFILLS: dict[str, Callable[[Path, int], None]] = {
    "several files at once": lambda folder, seed: [
        write(folder, name, rows(seed + number, 30, entities=6, least=60)) for number, name in enumerate("ac")
    ],
    "a file written again with more rows": lambda folder, seed: write(
        folder, "b", pa.concat_tables([rows(seed, 50), rows(seed + 9, 20, least=60)])
    ),
    "nothing but what nobody had asked about": lambda folder, seed: write(
        folder, "c", rows(seed, 30, least=10_000)
    ),
}


@pytest.mark.parametrize(
    "options",
    [{}, {"id": "id"}, {"id": "id", "corrections_within": "40us"}],
    ids=["rows", "facts", "closing"],
)
@pytest.mark.parametrize("backfill", BACKFILLS)
@pytest.mark.parametrize("asked", ["the same moments", "more moments", "another feature first"])
def test_a_backfill_says_which_known_values_it_changes(
    tmp_path: Path, asked: str, backfill: str, options: dict[str, str]
) -> None:
    # given values of some moments, lists with NaN among them
    of, cache, at = source(**options), tmp_path / "cache", range(0, 250, 9)
    wanted = [*features(of), of.by("k").last_n("x", 3)]
    seed = len(asked + backfill)
    write(tmp_path, "b", rows(seed, 50))
    before = values(tmp_path, wanted, at, cache=cache)[0]
    # when rows come late
    BACKFILLS[backfill](tmp_path, seed)
    if asked == "more moments":
        at = range(0, 400, 9)
    elif asked == "another feature first":
        values(tmp_path, [of.by("k").min("s")], at, cache=cache)
        write(tmp_path, "d", rows(seed + 5, 20, least=80))
    got, changes, said = values(tmp_path, wanted, at, cache=cache)
    # then what is told is what differs from before, and nothing else
    assert got == values(tmp_path, wanted, at)[0]
    other = {
        name: [i for i, (a, b) in enumerate(zip(column, got[name], strict=False)) if a != b]
        for name, column in before.items()
    }
    told = {change.column: change.moments.tolist() for change in changes}
    assert told == {name: places for name, places in other.items() if places}
    assert {change.known for change in changes} <= {len(range(0, 250, 9)) * 7}
    assert sum("known values of" in line for line in said) == len(told)
    # once, and not again when there are more moments
    assert values(tmp_path, wanted, at, cache=cache)[1] == []
    assert values(tmp_path, wanted, range(0, 450, 9), cache=cache)[1] == []


def test_a_change_is_told_by_its_moments_and_their_times(tmp_path: Path) -> None:
    of, cache = source(), tmp_path / "cache"
    (tmp_path / "rows").mkdir()
    one = {"k": "k1", "e": 5, "a": 10, "x": 1.0, "s": None, "id": 1}
    write(tmp_path, "a", pa.Table.from_pylist([one], schema=SCHEMA))
    at = range(0, 90, 10)
    values(tmp_path, [of.by("k").count()], at, cache=cache)
    write(tmp_path, "b", pa.Table.from_pylist([one | {"a": 20}], schema=SCHEMA))
    said = values(tmp_path, [of.by("k").count()], at, cache=cache)[2]
    assert said[-1].partition("by k ")[2] == (
        "count(*) over ever changed, since rows came late: moments 22, 29, 36, 43, 50 and 1 more, "
        "asked 1970-01-01 00:00:00.00003Z to 1970-01-01 00:00:00.00008Z"
    )


@pytest.mark.parametrize("options", [{}, {"id": "id"}], ids=["rows", "facts"])
def test_files_without_rows_have_empty_values(tmp_path: Path, options: dict[str, str]) -> None:
    of, cache, at = source(**options), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "a", rows(1, 40).slice(0, 0))
    wanted = values(tmp_path, features(of), at)[0]
    assert values(tmp_path, features(of), at, cache=cache)[0] == wanted
    write(tmp_path, "b", rows(2, 40))
    assert values(tmp_path, features(of), at, cache=cache)[0] == values(tmp_path, features(of), at)[0]


def test_another_feature_asks_for_no_entity_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, cache, at = source(), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "b", rows(1, 60))
    more = [of.by("k").mean("x", over="33us")]
    wanted = values(tmp_path, more, at)[0]
    values(tmp_path, features(of), at, cache=cache)
    monkeypatch.delattr(DuckDBEngine, "codes")  # the moments' order is kept
    assert values(tmp_path, more, at, cache=cache)[0] == wanted


def test_more_moments_compute_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "BLOCK", 14)
    of, cache = source(), tmp_path / "cache"
    write(tmp_path, "b", rows(1, 60))
    values(tmp_path, features(of), range(0, 200, 10), cache=cache)
    columns = len(Cache(cache).entries("column"))
    got = values(tmp_path, features(of), range(0, 220, 10), cache=cache)[0]
    assert got == values(tmp_path, features(of), range(0, 220, 10))[0]
    per_block = columns // 10
    assert len(Cache(cache).entries("column")) == columns + per_block


@pytest.mark.parametrize("options", [{}, {"id": "id"}], ids=["rows", "facts"])
def test_rows_too_many_for_memory_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    of, at = source(**options), range(0, 250, 9)
    write(tmp_path, "b", rows(3, 300))
    wanted = values(tmp_path, features(of), at)[0]
    monkeypatch.setattr("sameworld.asof.parts.ROWS_A_PART", 40)
    monkeypatch.setattr("sameworld.asof.parts.MOST_BYTES", 100)
    monkeypatch.setattr("sameworld.asof.moments.MOST_MOMENTS", 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    # they wait in a folder that goes when the values are there
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        assert values(tmp_path, features(of), at, cache=cache)[0] == wanted
        assert list((tmp_path / "scratch").iterdir()) == []


def test_files_of_other_types_are_not_merged(tmp_path: Path) -> None:
    # the first file decides the types of all: 2.4 is read as 2
    of, cache, at = source(), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "a", rows(1, 40).set_column(3, "x", pa.array([2] * 40, pa.int64())))
    wanted = [of.where("x > 2.2").by("k").count(), of.by("k").sum("x")]
    values(tmp_path, wanted, at, cache=cache)
    write(tmp_path, "b", rows(2, 40).set_column(3, "x", pa.array([2.4] * 40)))
    assert values(tmp_path, wanted, at, cache=cache)[0] == values(tmp_path, wanted, at)[0]


def test_a_file_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "b[1]r"
    folder.mkdir()
    of, at = source(), range(0, 250, 9)
    write(folder, "a1", rows(1, 40))
    write(folder, "a[1]", rows(2, 40))
    got = values(folder, features(of), at, cache=tmp_path / "cache")[0]
    assert got == values(folder, features(of), at)[0]
    plain = tmp_path / "plain"
    plain.mkdir()
    write(plain, "a1", rows(1, 40))
    write(plain, "a2", rows(2, 40))
    assert got == values(plain, features(of), at)[0]


def test_a_cache_deleted_while_it_is_used_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, cache, at = source(), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "a", rows(1, 40))
    wanted = values(tmp_path, features(of), at)[0]
    codes = DuckDBEngine.codes

    def deleted(*given: Any) -> Any:
        shutil.rmtree(cache)
        return codes(*given)

    monkeypatch.setattr(DuckDBEngine, "codes", deleted)
    got, _, said = values(tmp_path, features(of), at, cache=cache)
    assert got == wanted
    assert any("without the cache" in line for line in said)


def test_a_changed_file_is_another_source(tmp_path: Path) -> None:
    of, cache, at = source(), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "b", rows(1, 60))
    first = values(tmp_path, features(of), at, cache=cache)[0]
    write(tmp_path, "b", rows(2, 60))
    second = values(tmp_path, features(of), at, cache=cache)[0]
    assert second == values(tmp_path, features(of), at)[0] != first


@pytest.mark.parametrize("harm", ["cut", "gone", "garbled"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, harm: str) -> None:
    of, cache, at = source(), tmp_path / "cache", range(0, 250, 9)
    write(tmp_path, "b", rows(1, 60))
    wanted = values(tmp_path, features(of), at, cache=cache)[0]
    for entry in Cache(cache).entries():
        for path in entry.folder.iterdir():
            if harm == "cut":
                os.truncate(path, path.stat().st_size // 2)
            elif harm == "gone" and path.name != "entry.json":
                path.unlink()
            elif harm == "garbled" and path.name == "entry.json":
                path.write_text("{")
    assert values(tmp_path, features(of), at, cache=cache)[0] == wanted
    assert values(tmp_path, features(of), at, cache=cache)[0] == wanted


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    of, at = source(), range(0, 250, 9)
    write(tmp_path, "b", rows(1, 60))
    (tmp_path / "cache").write_text("a file, not a folder")
    got, _, said = values(tmp_path, features(of), at, cache=tmp_path / "cache")
    assert got == values(tmp_path, features(of), at)[0]
    assert any("cache" in line for line in said)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_kept import features, source, values
values(Path(sys.argv[2]), features(source()), range(0, 250, 9), cache=Path(sys.argv[2]) / "cache")
"""


def test_processes_share_a_cache_and_may_be_killed(tmp_path: Path) -> None:
    # given processes that make the same entries, some of them killed on the way
    write(tmp_path, "b", rows(1, 20_000))
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    chance = random.Random(1)
    for _ in range(3):
        running = [subprocess.Popen(command) for _ in range(2)]
        time.sleep(1.0 + chance.random())
        running[0].send_signal(signal.SIGKILL)
        assert running[1].wait(120) == 0
        running[0].wait()
        shutil.rmtree(tmp_path / "cache" / "column", ignore_errors=True)
    # then what is there is whole, and nothing is left of what was killed
    got = values(tmp_path, features(source()), range(0, 250, 9), cache=tmp_path / "cache")[0]
    assert got == values(tmp_path, features(source()), range(0, 250, 9))[0]
    assert [path for path in (tmp_path / "cache" / "tmp").iterdir() if path.is_dir()] == []
