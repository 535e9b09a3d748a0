"""The cache: an entry is there whole or not at all, whoever builds, reads, trims or is killed at the same time."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sameworld.engines.cache import Cache, fingerprint_of_files
from sameworld.errors import DataError

SOURCES = Path(__file__).resolve().parents[2] / "src"
BEGIN = """
import os, sys, time
from pathlib import Path
from sameworld.engines.cache import Cache, fingerprint_of_files
folder = Path(sys.argv[1])
cache = Cache(folder)
"""


@contextmanager
def running(script: str, folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process of its own; it does not outlive the block."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")])),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, str(folder), *more],
        env=env,
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> str:
    """What a script printed, when it has ended well."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def put(cache: Cache, key: str, size: int = 10, kind: str = "rows") -> Path:
    with cache.build(kind, key, f"about {key}", {"of": key}) as building:
        (building.folder / "data").write_bytes(b"x" * size)
    return building.path


def keys(cache: Cache) -> list[str]:
    return [entry.key for entry in cache.entries()]


def leftovers(cache: Cache) -> list[str]:
    return [
        str(path.relative_to(cache.folder))
        for name in ("tmp", "locks")
        for path in (cache.folder / name).glob("*")
    ]


# entries


def test_an_entry_is_there_when_its_build_has_ended_and_not_before(tmp_path: Path) -> None:
    clock = Clock()
    cache = Cache(tmp_path / "deep" / "cache", clock=clock)
    with cache.build("rows", "abcd", "orders by user", {"files": ["1"], "n": 2}) as building:
        (building.folder / "data").write_bytes(b"12345")
        (building.folder / "sub").mkdir()
        (building.folder / "sub" / "more").write_bytes(b"678")
        assert cache.get("rows", "abcd") is None
        assert cache.entries() == []
        assert building.folder.stat().st_dev == cache.folder.stat().st_dev
    clock.now += 5
    assert cache.get("rows", "abcd") == building.path == cache.folder / "rows" / "ab" / "abcd"
    assert not building.folder.exists()
    (entry,) = cache.entries()
    assert (entry.kind, entry.key, entry.about, entry.bytes) == ("rows", "abcd", "orders by user", 8)
    assert (entry.parts, entry.folder) == ({"files": ["1"], "n": 2}, building.path)
    assert (entry.created, entry.used) == (1_700_000_000.0, 1_700_000_005.0)
    assert json.loads((building.path / "entry.json").read_text()) == {
        "format": 2,
        "kind": "rows",
        "key": "abcd",
        "about": "orders by user",
        "parts": {"files": ["1"], "n": 2},
        "files": {"data": 5, "sub/more": 3},
        "digests": {
            "data": "000afbf3f1f0bdecbb9748dad8b42825",
            "sub/more": "86287975c2325c6edf047d24c2ef83b4",
        },
        "bytes": 8,
        "created": 1_700_000_000.0,
    }
    assert cache.entries("column") == []
    assert leftovers(cache) == []


def test_reading_a_cache_that_is_not_there_makes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get("rows", "abcd") is None
    with cache.pinned("rows", "abcd") as found:
        assert found is None
    assert cache.entries() == []
    assert cache.trim(0, 0) == []
    assert not cache.folder.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_build_that_failed(tmp_path: Path, error: type[BaseException]) -> None:
    cache = Cache(tmp_path / "cache")

    def fail() -> None:
        with cache.build("rows", "abcd", "", {}) as building:
            (building.folder / "data").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert cache.get("rows", "abcd") is None
    assert leftovers(cache) == []


def test_the_entry_that_was_finished_first_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with cache.build("rows", "abcd", "second", {}) as building:
        (building.folder / "data").write_text("second")
        put(cache, "abcd")
    assert (building.path / "data").read_bytes() == b"x" * 10
    assert [entry.about for entry in cache.entries()] == ["about abcd"]
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    "name", [("tmp", "k"), ("locks", "k"), ("rows", ".."), ("../rows", "k"), ("rows", "a/b")]
)
def test_an_entry_lies_nowhere_but_in_its_place(tmp_path: Path, name: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="no entry can be kept"):
        Cache(tmp_path).get(*name)


DAMAGES = {
    "no entry.json": lambda path: (path / "entry.json").unlink(),
    "empty entry.json": lambda path: (path / "entry.json").write_text(""),
    "entry.json that is no JSON": lambda path: (path / "entry.json").write_bytes(b"\0" * 100),
    "entry.json of another shape": lambda path: (path / "entry.json").write_text(
        '{"format": 2, "files": []}'
    ),
    "another format": lambda path: (path / "entry.json").write_text(
        (path / "entry.json").read_text().replace('"format": 2', '"format": 3')
    ),
    "a shorter file": lambda path: os.truncate(path / "data", 3),
    "a missing file": lambda path: (path / "data").unlink(),
    "an empty folder": lambda path: [(path / name).unlink() for name in ("data", "entry.json")],
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("?")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_absent_and_goes(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path / "cache")
    for key in ("abcd", "efgh"):
        DAMAGES[damage](put(cache, key))
    whole = put(cache, "ijkl")
    assert cache.get("rows", "abcd") is None
    with cache.pinned("rows", "abcd") as found:
        assert found is None
    assert keys(cache) == ["ijkl"]
    assert (put(cache, "abcd") / "data").read_bytes() == b"x" * 10
    assert cache.trim() == []
    assert {path.name for path in (cache.folder / "rows").glob("*/*")} == {"abcd", "ijkl"}
    assert whole.exists()
    assert leftovers(cache) == []


# processes

BUILD_AND_WAIT = """
with cache.build("rows", sys.argv[2], "", {}) as building:
    (building.folder / "data").write_bytes(b"half")
    print(building.folder, flush=True)
    time.sleep(60)
"""


def test_nothing_is_left_of_a_killed_builder_and_living_ones_keep_their_folders(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with (
        running(BUILD_AND_WAIT, cache.folder, "dead") as dead,
        running(BUILD_AND_WAIT, cache.folder, "alive") as alive,
    ):
        of_dead, of_alive = Path(said(dead)), Path(said(alive))
        dead.kill()
        dead.wait()
        assert of_dead.exists()
        assert keys(cache) == []
        put(cache, "abcd")
        assert not of_dead.exists()
        assert (of_alive / "data").read_bytes() == b"half"
        assert cache.trim(0)[0].key == "abcd"
        assert (of_alive / "data").exists()
    cache.trim()
    assert not of_alive.exists()
    assert keys(cache) == leftovers(cache) == []


def test_several_processes_make_an_entry_once(tmp_path: Path) -> None:
    script = """
with cache.lock("rows", "abcd"):
    path = cache.get("rows", "abcd")
    if path is None:
        with cache.build("rows", "abcd", "", {}) as building:
            with open(sys.argv[2], "a") as log:
                log.write("built\\n")
            time.sleep(0.5)
            (building.folder / "data").write_text("done")
        path = building.path
print((path / "data").read_text())
"""
    cache, log = Cache(tmp_path / "cache"), tmp_path / "log"
    with (
        running(script, cache.folder, str(log)) as a,
        running(script, cache.folder, str(log)) as b,
        running(script, cache.folder, str(log)) as c,
    ):
        assert [ended(one) for one in (a, b, c)] == ["done\n"] * 3
    assert log.read_text() == "built\n"
    assert leftovers(cache) == []


HOLD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
print("asking", flush=True)
with cache.lock("rows", "abcd"):
    print("holding", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_lets_go_and_a_waiting_process_can_be_interrupted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with running(HOLD, cache.folder) as holder:
        assert [said(holder), said(holder)] == ["asking", "holding"]
        with running(HOLD, cache.folder) as waiting, running(HOLD, cache.folder) as patient:
            assert said(waiting) == said(patient) == "asking"
            time.sleep(0.2)  # it does wait
            waiting.send_signal(signal.SIGINT)
            out, err = waiting.communicate(timeout=60)
            assert (out, err.splitlines()[-1]) == ("", "KeyboardInterrupt")
            holder.kill()
            assert said(patient) == "holding"
    cache.trim()
    assert leftovers(cache) == []


STIR = """
import random
chance = random.Random(int(sys.argv[2]))
until = time.monotonic() + 2
while time.monotonic() < until:
    key = f"{chance.randrange(6):04d}"
    if chance.random() < 0.2:
        cache.trim(chance.randrange(3000))
        continue
    with cache.lock("rows", key):
        path = cache.get("rows", key)
        if path is None:
            with cache.build("rows", key, "", {}) as building:
                for name in "ab":
                    (building.folder / name).write_text(key * 100)
            path = building.path
    try:
        read = [(path / name).read_text() for name in "ab"]
    except FileNotFoundError:
        read = None  # trimmed meanwhile
    assert read in (None, [key * 100] * 2), read
    with cache.pinned("rows", key) as path:
        if path is not None:
            time.sleep(chance.random() / 500)
            assert [(path / name).read_text() for name in "ab"] == [key * 100] * 2
"""


def test_builders_readers_and_trimmers_and_kills_never_show_half_an_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    chance = random.Random(5)
    with (
        running(STIR, cache.folder, "1") as a,
        running(STIR, cache.folder, "2") as b,
        running(STIR, cache.folder, "3") as c,
    ):
        time.sleep(1 + chance.random())
        c.kill()
        ended(a)
        ended(b)
    for entry in cache.entries():
        assert (entry.folder / "a").read_text() == (entry.folder / "b").read_text() == entry.key * 100
    cache.trim()
    assert leftovers(cache) == []
    damaged = [p for p in (cache.folder / "rows").glob("*/*") if not (p / "entry.json").exists()]
    assert damaged == []


# trimming


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    clock = Clock()
    cache = Cache(tmp_path / "cache", clock=clock)
    for key in ("aaaa", "bbbb", "cccc", "dddd"):
        put(cache, key, 100)
        clock.now += 10
    cache.get("rows", "aaaa")
    clock.now += 10
    put(cache, "eeee", 1000, kind="column")
    assert keys(cache) == ["bbbb", "cccc", "dddd", "aaaa", "eeee"]
    assert cache.trim() == []
    assert [entry.key for entry in cache.trim(250, kinds=["rows"])] == ["bbbb", "cccc"]
    assert [entry.key for entry in cache.trim(older_than_seconds=15)] == ["dddd"]
    assert [entry.key for entry in cache.trim(500, kinds=["column"])] == ["eeee"]
    assert keys(cache) == ["aaaa"]
    assert leftovers(cache) == []


def test_trimming_harms_nobody_who_has_mapped_a_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    path = put(cache, "abcd", 3 << 20)
    with (path / "data").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        with running("print(len(cache.trim(0)))", cache.folder) as trimmer:
            assert ended(trimmer) == "1\n"
        assert cache.get("rows", "abcd") is None
        assert mapped[:] == b"x" * (3 << 20)
    assert leftovers(cache) == []


def test_a_pinned_entry_stays_until_it_is_let_go_of(tmp_path: Path) -> None:
    script = """
with cache.pinned("rows", "abcd") as path:
    print(path.name, flush=True)
    time.sleep(60)
"""
    cache = Cache(tmp_path / "cache")
    put(cache, "abcd")
    put(cache, "efgh")
    with running(script, cache.folder) as reader:
        assert said(reader) == "abcd"
        assert [entry.key for entry in cache.trim(0)] == ["efgh"]
        with cache.pinned("rows", "abcd") as path:
            assert path is not None
        assert keys(cache) == ["abcd"]
    assert [entry.key for entry in cache.trim(0)] == ["abcd"]


def test_what_is_used_while_a_trim_is_on_its_way_stays(tmp_path: Path) -> None:
    reader = Cache(tmp_path / "cache")
    put(reader, "abcd")
    put(reader, "efgh")

    def clock() -> float:  # a trim asks for the time after it has listed the entries
        reader.get("rows", "abcd")
        return time.time()

    assert [entry.key for entry in Cache(reader.folder, clock=clock).trim(0)] == ["efgh"]
    assert keys(reader) == ["abcd"]


@pytest.mark.parametrize("again", [False, True])
def test_who_pins_an_entry_that_is_just_being_trimmed_gets_what_is_there_then(
    tmp_path: Path, again: bool
) -> None:
    script = """
print("asking", flush=True)
with cache.pinned("rows", "abcd") as path:
    print(path, flush=True)
    time.sleep(60)
"""
    cache = Cache(tmp_path / "cache")
    path = put(cache, "abcd")
    with (path / "entry.json").open("rb") as trimmed:
        fcntl.flock(trimmed, fcntl.LOCK_EX)
        with running(script, cache.folder) as reader:
            assert said(reader) == "asking"
            time.sleep(0.2)
            path.rename(tmp_path / "gone")
            if again:
                put(cache, "abcd")
            trimmed.close()
            assert said(reader) == str(path if again else None)
            assert keys(cache) == ["abcd"] * again
            assert cache.trim(0) == []


# when it cannot be written

AS_NOBODY = """
os.chdir(folder.parent)  # the way there may be closed to others
cache = Cache(Path(folder.name))
if os.geteuid() == 0:
    os.seteuid(65534)
"""


def test_a_read_only_cache_can_be_read(tmp_path: Path) -> None:
    script = f"""{AS_NOBODY}
assert (cache.get("rows", "abcd") / "data").read_bytes() == b"x" * 10
with cache.pinned("rows", "abcd") as path:
    assert path is not None
assert [entry.key for entry in cache.entries()] == ["abcd"]
assert fingerprint_of_files([Path("file")], cache)[0][1] == 5
for change in (lambda: cache.build("rows", "efgh", "", {{}}), lambda: cache.lock("rows", "efgh")):
    try:
        with change():
            print("changed")
    except OSError as error:
        print(type(error).__name__)
try:
    cache.trim(0)
except OSError as error:
    print(type(error).__name__)
"""
    cache = Cache(tmp_path / "cache")
    put(cache, "abcd")
    (tmp_path / "file").write_text("12345")
    tmp_path.chmod(0o755)
    folders = [path for path in [cache.folder, *cache.folder.rglob("*")] if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    with running(script, cache.folder) as reader:
        assert ended(reader) == "PermissionError\n" * 3
    for path in folders:
        path.chmod(0o755)
    assert keys(cache) == ["abcd"]


def test_no_space_is_told_as_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with cache.build("rows", "abcd", "", {}) as building:
        (building.folder / "data").write_bytes(b"x" * 5000)
except OSError as error:
    print("went on without")
"""
    cache = Cache(tmp_path / "cache")
    with running(script, cache.folder) as process:
        assert ended(process) == "went on without\n"
    assert keys(cache) == leftovers(cache) == []
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(OSError, match="file"), Cache(tmp_path / "file").build("rows", "abcd", "", {}):
        pass


# fingerprints


def file(folder: Path, name: str = "file", text: str = "hello") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def later() -> float:
    return time.time() + 3


def tampered(memo: Cache) -> None:
    """Make what is remembered recognisable."""
    path = memo.folder / "digests.msgpack"
    known = msgspec.msgpack.decode(path.read_bytes())
    path.write_bytes(msgspec.msgpack.encode({name: (marks, "f" * 32) for name, (marks, _) in known.items()}))


def test_a_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    a, b, c = file(tmp_path, "a"), file(tmp_path, "b"), file(tmp_path, "c", "hellp")
    # b2sum -l 128
    hello = "46fb7408d4f285228f4af516ea25851b"
    found = fingerprint_of_files([a, b, c])
    assert found[:2] == [(str(a), 5, hello), (str(b), 5, hello)]
    assert found[2][2] != hello
    assert fingerprint_of_files([], Cache(tmp_path / "cache")) == []
    with pytest.raises(DataError) as error:
        fingerprint_of_files([tmp_path / "none"])
    assert error.value.text() == (
        f"A file cannot be read: No such file or directory.\n  in: {tmp_path / 'none'}\n  do: check that it is there and readable."
    )


def test_a_file_that_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, path = Cache(tmp_path / "cache", clock=later), file(tmp_path)
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.write_text("odd")
    first = fingerprint_of_files([path, odd], memo)
    assert fingerprint_of_files([path, odd], memo) == first == fingerprint_of_files([path, odd])
    tampered(memo)
    assert [digest for _, _, digest in fingerprint_of_files([path, odd], memo)] == ["f" * 32] * 2
    monkeypatch.chdir(tmp_path)
    assert fingerprint_of_files([Path("file")], memo) == [("file", 5, "f" * 32)]
    assert leftovers(memo) == []


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    memo, path = Cache(tmp_path / "cache", clock=later), file(tmp_path)
    before = path.stat()
    first = fingerprint_of_files([path], memo)
    file(tmp_path, text="other")  # as long
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` does
    second = fingerprint_of_files([path], memo)
    assert second == fingerprint_of_files([path]) != first
    file(tmp_path, "new", "third").replace(path)
    assert fingerprint_of_files([path], memo) == fingerprint_of_files([path]) not in (first, second)


def test_a_file_changed_within_two_seconds_is_not_remembered(tmp_path: Path) -> None:
    path = file(tmp_path)
    changed = max(path.stat().st_mtime, path.stat().st_ctime)
    for after, remembered in [(-3600.0, False), (0.0, False), (1.9, False), (2.1, True)]:
        memo = Cache(tmp_path / f"cache{after}", clock=lambda after=after: changed + after)
        first = fingerprint_of_files([path], memo)
        assert (memo.folder / "digests.msgpack").exists() == remembered
        # Even when nothing of its status tells: the contents decide.
        assert fingerprint_of_files([path], memo) == first


@pytest.mark.parametrize("damage", [b"", b"\0" * 50, b"\x93\x01", b"\x80garbage"])
def test_a_damaged_memory_is_none(tmp_path: Path, damage: bytes) -> None:
    memo, path = Cache(tmp_path / "cache", clock=later), file(tmp_path)
    first = fingerprint_of_files([path], memo)
    (memo.folder / "digests.msgpack").write_bytes(damage)
    assert fingerprint_of_files([path], memo) == first
    tampered(memo)
    assert fingerprint_of_files([path], memo)[0][2] == "f" * 32


def test_several_processes_remember_together(tmp_path: Path) -> None:
    script = """
cache.clock = lambda: time.time() + 3
for number in range(25):
    path = folder.parent / f"{sys.argv[2]}{number}"
    path.write_text(path.name)
    fingerprint_of_files([path], cache)
"""
    memo = Cache(tmp_path / "cache", clock=later)
    with running(script, memo.folder, "a") as a, running(script, memo.folder, "b") as b:
        ended(a)
        ended(b)
    tampered(memo)
    paths = [tmp_path / f"{name}{number}" for name in "ab" for number in range(25)]
    assert {digest for _, _, digest in fingerprint_of_files(paths, memo)} == {"f" * 32}
    assert leftovers(memo) == []
