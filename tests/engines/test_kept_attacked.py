"""What happens to kept values when processes are killed, disks are full, folders cannot be written and files are not what they were: nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_kept import features, rows, source, values, write

from sameworld.engines.cache import Cache

AT = range(0, 400, 9)

FORKING = """
import os, random, resource, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_kept import features, source, values
os.chdir(sys.argv[2])
AT = range(0, 400, 9)
of = source(**({"id": "id"} if sys.argv[3] == "facts" else {}))

def asked(cache, more=(), said=None):
    return values(Path(), features(of, more), AT, cache=cache, said=said)

def begun(call):
    # a process of its own, as warm as this one
    child = os.fork()
    if child:
        return child
    try:
        call()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def ended(child):
    assert os.waitpid(child, 0)[1] == 0

def wanted_from(cache, said=None):
    got, _, said = asked(cache, said=said)
    assert repr(sorted(got.items())) == Path("wanted").read_text(), said
    return said

def write_wanted():
    Path("wanted").write_text(repr(sorted(asked(None)[0].items())))
"""


def prepare(folder: Path, **options: str) -> None:
    """Have values of one file kept, and then a second file."""
    write(folder, "b", rows(1, 600))
    values(folder, features(source(**options)), AT, cache=folder / "cache")
    write(folder, "c", rows(2, 600, entities=6, least=60))


def run(script: str, folder: Path, kind: str) -> str:
    command = [sys.executable, "-c", FORKING + script, str(Path(__file__).parent), str(folder), kind]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_killed_at_any_instant_of_extending_a_cache_the_next_one_finishes(tmp_path: Path) -> None:
    prepare(tmp_path, id="id")
    script = """
class Told(list):
    # what was said, whatever becomes of who said it
    def __init__(self, path):
        self.path = path

    def append(self, line):
        with open(self.path, "a") as file:
            file.write(line + "\\n")

def changes(*paths):
    return {line for path in paths if path.exists() for line in path.read_text().splitlines() if "known values" in line}

ended(begun(write_wanted))
shutil.copytree("cache", "whole")
begin = time.perf_counter()
ended(begun(lambda: asked(Path("whole"), said=Told(Path("told")))))
took = time.perf_counter() - begin
killed = 0
for number in range(5):
    own = Path(f"own{number}")
    shutil.copytree("cache", own)
    child = begun(lambda: asked(own, said=Told(Path(f"told{number}"))))
    time.sleep(took * (number + random.random()) / 5)
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    ended(begun(lambda: wanted_from(own, Told(Path(f"more{number}")))))
    # every change was told by the killed one or by the next
    assert changes(Path("told")) == changes(Path(f"told{number}"), Path(f"more{number}"))
    assert [path for path in (own / "tmp").iterdir() if path.is_dir()] == []
    assert [path.name for path in (own / "locks").iterdir()] == []
assert killed
assert changes(Path("told"))
"""
    run(script, tmp_path, "facts")


def test_processes_that_extend_a_cache_at_once_merge_once_and_agree(tmp_path: Path) -> None:
    prepare(tmp_path, id="id")
    script = """
ended(begun(write_wanted))
def extends(number):
    Path(f"said{number}").write_text(" ".join(wanted_from(Path("cache"))))
children = [begun(lambda: extends(number)) for number in range(3)]
for child in children:
    ended(child)
print(sum("merging 1 of 2 files" in Path(f"said{number}").read_text() for number in range(3)))
"""
    assert run(script, tmp_path, "facts") == "1\n"


def test_a_disk_that_fills_up_at_any_byte_costs_only_time(tmp_path: Path) -> None:
    prepare(tmp_path)
    script = """
ended(begun(write_wanted))
def filling(most, cache):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    said = wanted_from(cache)
    assert any("without the cache" in line or "not kept" in line for line in said), said
for number, most in enumerate([100, 1_000, 3_000]):
    own = Path(f"own{number}")
    shutil.copytree("cache", own)
    ended(begun(lambda: filling(most, own)))
    ended(begun(lambda: wanted_from(own)))
"""
    run(script, tmp_path, "rows")


def test_a_cache_that_can_only_be_read_is_read_and_a_further_feature_is_computed_from_it(
    tmp_path: Path,
) -> None:
    prepare(tmp_path)
    script = """
more = [of.by("k").min("x", over="33us"), of.by("k").min("s")]
def as_nobody():
    asked(Path("cache"))
    wanted = asked(None, more)[0]
    for path in [Path("cache"), *Path("cache").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    got, _, said = asked(Path("cache"), more)
    assert got == wanted
    assert any(line.startswith("not kept") for line in said), said
    assert not any("sorting" in line or "merging" in line or "without" in line for line in said), said
Path(".").chmod(0o755)
ended(begun(as_nobody))
for path in [Path("cache"), *Path("cache").rglob("*")]:
    path.chmod(0o755)
"""
    run(script, tmp_path, "rows")


@pytest.mark.parametrize("harm", [b"\xff", b"\x00", b"{"])
def test_files_written_over_at_their_size_are_made_again(tmp_path: Path, harm: bytes) -> None:
    write(tmp_path, "b", rows(1, 60))
    of, cache = source(id="id"), tmp_path / "cache"
    wanted = values(tmp_path, features(of), AT, cache=cache)[0]
    for entry in Cache(cache).entries():
        for path in entry.folder.rglob("*"):
            if path.is_file() and path.name != "entry.json":
                path.write_bytes(harm * path.stat().st_size)
    for _ in range(2):
        assert values(tmp_path, features(of), AT, cache=cache)[0] == wanted


PLACES = {
    "rows": ["starts", "layout.json", "about.json"],
    "input": ["texts", "words", "layout.json"],
    "order": ["starts", "back", "layout.json"],
    "arrivals": ["late_starts", "late_ranks", "gone_starts", "gone_ranks", "ends", "layout.json"],
}
MERGED = {"rows": ["versions/entity", "row", "entities.parquet"], "input": ["texts", "words"]}


@pytest.mark.parametrize("more", [False, True], ids=["another feature", "another file"])
def test_numbers_that_point_outside_the_rows_are_told_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, more: bool
) -> None:
    # given files too large for their contents to be compared
    monkeypatch.setattr("sameworld.engines.cache._SMALL", -1)
    of, harmed = source(id="id"), list[str]()
    write(tmp_path, "b", rows(1, 60))
    values(tmp_path, features(of), AT, cache=tmp_path / "cache")
    if more:
        write(tmp_path, "c", rows(2, 60, entities=6, least=60))
    further = [*features(of), of.by("k").last("s", over="50us"), of.by("k").min("x", over="33us")]
    wanted = values(tmp_path, further, AT)[0]
    entries = Cache(tmp_path / "cache").entries()
    for kind, names in (MERGED if more else PLACES).items():
        for name in names:
            # when in one of them all numbers are such that nothing is there
            own = tmp_path / f"{kind} {name.replace('/', ' ')}"
            shutil.copytree(tmp_path / "cache", own)
            for entry in entries:
                path = own / entry.folder.relative_to(tmp_path / "cache") / name
                of_texts = (path.parent / "texts").exists()
                if entry.kind == kind and path.exists() and (of_texts or name != "words"):
                    path.write_bytes(b"\x7f" * path.stat().st_size)
                    harmed.append(f"{kind}/{name}")
            if not more:
                shutil.rmtree(own / "column")
            # then it is said, and the values are made of the files
            got, _, said = values(tmp_path, further, AT, cache=own)
            assert got == wanted, name
            assert any(line.startswith("going on without the cache") for line in said), (kind, name)
    assert {place.split("/")[0] for place in harmed} == set(MERGED if more else PLACES)
    assert len(set(harmed)) == sum(map(len, (MERGED if more else PLACES).values()))


def _put(folder: Path, table: pa.Table) -> None:
    # of one size, whatever the values
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, folder / "rows" / "c.parquet", **plain)


def _at_its_size_and_time(folder: Path) -> None:
    path, table = folder / "rows" / "c.parquet", rows(2, 50, least=60)
    before = path.stat()
    _put(folder, table.set_column(3, "x", table["x"].take(pa.array(range(49, -1, -1)))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": lambda folder: _put(folder, rows(7, 50)),
    "shrunk": lambda folder: _put(folder, rows(2, 50, least=60).slice(0, 20)),
    "removed": lambda folder: (folder / "rows" / "c.parquet").unlink(),
    "renamed": lambda folder: (folder / "rows" / "c.parquet").rename(folder / "rows" / "a.parquet"),
    "written over at its size and time": _at_its_size_and_time,
}


@pytest.mark.parametrize("options", [{}, {"id": "id"}], ids=["rows", "facts"])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_happens_to_a_source_s_file_the_values_are_those_of_the_files_now(
    tmp_path: Path, change: str, options: dict[str, str]
) -> None:
    of, cache = source(**options), tmp_path / "cache"
    write(tmp_path, "b", rows(1, 60))
    _put(tmp_path, rows(2, 50, least=60))
    before = values(tmp_path, features(of), AT, cache=cache)[0]
    CHANGES[change](tmp_path)
    got, _, said = values(tmp_path, features(of), AT, cache=cache)
    assert got == values(tmp_path, features(of), AT)[0]
    assert (got == before) == (change == "renamed")
    assert bool(said) == (change != "renamed")  # nothing is sorted for another name
