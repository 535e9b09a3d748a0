"""New groupings are filled beside a writer that does not stop, by processes that are killed: what is read then is what files and log give, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import test_online as online

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.definitions.feature import Aggregate
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Rows
from sameworld.stores import event_log
from sameworld.stores.events import EventReader
from sameworld.stores.online import OnlineStore

KILLS = 6
FACTS = 6000


def source_of(versions: str) -> sw.Source:
    """A source whose files have many facts, each with a few versions."""
    chance = np.random.default_rng(2)
    files = [
        online.row(
            id=f"f{chance.integers(FACTS)}", v=int(chance.integers(4)), d=bool(chance.random() < 0.05), a=number % 9 + 1, e=int(chance.integers(40)),
            k1=str(chance.integers(40)), k2=int(chance.integers(3)), x=float(chance.normal()), n=number,
        )
        for number in range(2 * FACTS)
    ]  # fmt: skip
    table = pa.Table.from_pylist(files, schema=online.SCHEMA)
    return sw.Source("rows", table, event_time="e", available_at="a", **online.NAMED[versions])


def aggregates_of(source: sw.Source) -> list[Aggregate]:
    """What is served from the beginning, and (after the first) what is added."""
    return [
        source.by("k1").count(),
        source.by("k1").sum("x"),
        source.by("k2", "k1").last("n"),
        source.by("k2").sum("x"),
    ]


def opened(folder: Path, source: sw.Source, many: int) -> OnlineStore:
    groupings = groupings_of(aggregates_of(source)[:many])
    return OnlineStore(
        folder / "state", groupings, {source.content: online.schema_of()}, durability="process"
    )


STORY = '''
"""A writer that never stops, and others that fill and are killed; forked, so that a start costs little."""
import os, random, signal, sys, time, traceback
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
import test_filling as tests
import test_online as online
from sameworld.engines.duckdb import DuckDBEngine

folder, versions = Path(sys.argv[1]), sys.argv[3]
source = tests.source_of(versions)

def forked(run):
    child = os.fork()
    if child:
        return child
    try:
        run()
        os._exit(0)
    except BaseException:
        (folder / "failed").write_text(traceback.format_exc())
    os._exit(1)

def write():
    store = tests.opened(folder, source, 1)
    store.fill(DuckDBEngine(threads=1))
    chance, number = random.Random(3), 0
    while not (folder / "enough").exists() and os.getppid() == parent:
        rows = [
            online.row(id=f"f{chance.randrange(tests.FACTS)}", v=chance.randrange(3, 9), d=chance.random() < 0.05, e=chance.randrange(40),
                       k1=str(chance.randrange(40)), k2=chance.randrange(3), x=chance.random(), n=number)
            for _ in range(3)
        ]
        store.commit([store.prepare("rows", f"key {number}", online.as_events(rows))])
        number += 1
        (folder / "telling").write_text(str(number))
        os.replace(folder / "telling", folder / "told")
    store.close()

def fill():
    store = tests.opened(folder, source, len(tests.aggregates_of(source)))
    before = told()
    store.fill(DuckDBEngine(threads=1))
    (folder / "meanwhile").write_text(str(told() - before))
    store.close()

def told():
    return int((folder / "told").read_text()) if (folder / "told").exists() else 0

def so_many(number):
    until = time.monotonic() + 60
    while told() < number and time.monotonic() < until and not (folder / "failed").exists():
        time.sleep(0.005)

parent = os.getpid()
random.seed(4)
writer = forked(write)
so_many(5)
for kill in range(tests.KILLS):
    filler = forked(fill)
    time.sleep(random.uniform(0.02, 0.6))
    os.kill(filler, signal.SIGKILL)
    _, status = os.waitpid(filler, 0)
    assert not (folder / "failed").exists(), (folder / "failed").read_text()
    if not os.WIFSIGNALED(status):
        break  # it was quicker
assert os.waitpid(forked(fill), 0)[1] == 0
so_many(told() + 20)
(folder / "enough").touch()
assert os.waitpid(writer, 0)[1] == 0
'''


@pytest.mark.slow
@pytest.mark.parametrize("versions", ["by_version", "append_only"])
def test_filling_beside_a_writer_and_killed_at_any_moment_neither_loses_nor_doubles_rows(
    versions: str, tmp_path: Path
) -> None:
    # given a writer of one grouping, and others being filled meanwhile
    script = tmp_path / "story.py"
    script.write_text(STORY)
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent), versions]
    ran = subprocess.run(command, check=False, timeout=100, capture_output=True, text=True)
    failed = tmp_path / "failed"
    assert ran.returncode == 0, ran.stderr + (failed.read_text() if failed.exists() else "")
    # when all are read
    source = source_of(versions)
    store = opened(tmp_path, source, 4)
    assert not store.missing()
    fields = {"k1": [str(k) for k in range(40)] * 3, "k2": [k for k in range(3) for _ in range(40)]}
    with store.snapshot() as snapshot:
        t = snapshot.moment()
        got = snapshot.aggregates(store.groupings, fields, t)
    # then it is what the files and the log give
    engine = DuckDBEngine(threads=1)
    reader = EventReader(source, online.schema_of())
    logged = event_log.raw_rows(tmp_path / "state" / "events", {"rows": reader})["rows"]
    cutover = store.cutover()
    rows = {source.content: Rows(source.data, cutover, logged)}
    at = np.full(120, t, np.int64)
    groupings = groupings_of(aggregates_of(source))
    wanted = engine.aggregates(
        groupings,
        {source.content: online.schema_of()},
        Asked(pa.table(fields), at, at),
        rows=rows,
        world="as_of",
    )
    assert {name: [online.bits(v) for v in column.to_pylist()] for name, column in got.items()} == {
        name: [online.bits(v) for v in column.to_pylist()] for name, column in wanted.items()
    }
    # and killed fillings have left nothing
    with store.index.read() as txn:
        kept = store.kept(txn)
        used = {g.prefix for g in kept.groupings.values()} | {s.facts for s in kept.sources.values()}
        for database in (store.index._rows, store.index._facts):
            with txn.cursor(database) as cursor:
                assert {bytes(key[:16]) for key, _ in cursor} <= used
    store.close()
    engine.close()
    meanwhile = int((tmp_path / "meanwhile").read_text())
    assert meanwhile > 0, "nothing was committed during the filling"
    print(f"{meanwhile} deliveries committed during the last filling, {logged.num_rows} rows in all")
