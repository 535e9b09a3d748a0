"""`sameworld cache` shows what is kept beside the world file, and trims it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sameworld.cli import show
from sameworld.cli.main import main
from sameworld.engines.cache import DEFAULT, Cache
from sameworld.errors import DefinitionError

DAY = 86_400


def run(world: Path, *arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["cache", "--world", str(world), *arguments])


def facts(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A world file with three entries in its cache, last used 40 days, 2 days and a second ago."""
    file = tmp_path / "world.py"
    file.write_text("1 / 0  # it need not run")
    for ago, kind, about, size in [
        (40 * DAY, "rows", "orders by user", 2_500_000),
        (2 * DAY, "column", "amount where [x]", 400_000),
        (1, "column", "spent_2d", 999),
    ]:
        cache = Cache(tmp_path / DEFAULT, clock=lambda ago=ago: time.time() - ago)
        with cache.build(kind, f"{size:08d}", about, {"n": size}) as building:
            (building.folder / "data").write_bytes(b"x" * size)
    return file


def test_it_shows_what_is_kept_and_changes_nothing(world: Path) -> None:
    folder = world.parent / DEFAULT
    told = facts(run(world, "--json"))
    assert (told["folder"], told["bytes"], told["removed"]) == (str(folder), 2_900_999, [])
    assert [(one["kind"], one["about"], one["bytes"]) for one in told["entries"]] == [
        ("rows", "orders by user", 2_500_000),
        ("column", "amount where [x]", 400_000),
        ("column", "spent_2d", 999),
    ]
    assert set(told["entries"][0]) == {"kind", "key", "about", "bytes", "created", "used"}
    shown = run(world)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert all(title in lines[1] for title in ("kind", "what", "size", "created", "last used"))
    (row,) = (line for line in lines if "orders by user" in line)
    used = told["entries"][0]["used"][:16].replace("T", " ")
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "rows", "orders by user", "2.5 MB", used, used,
    ]  # fmt: skip
    assert "amount where [x]" in shown.stdout
    assert lines[-1] == f"3 entries, 2.9 MB, in {folder}"
    assert facts(run(world, "--json")) == told


def test_it_trims_to_a_size(world: Path) -> None:
    told = facts(run(world, "--trim", "500kB", "--json"))
    assert [one["about"] for one in told["removed"]] == ["orders by user"]
    assert told["bytes"] == 400_999
    shown = run(world, "--trim", "0B").stdout
    assert shown.splitlines() == [
        "removed 2 entries, 401.0 kB",
        f"Nothing is kept in {world.parent / DEFAULT}",
    ]


def test_it_trims_what_was_not_used_for_long(world: Path) -> None:
    shown = run(world, "--older-than", "30d").stdout.splitlines()
    assert shown[0] == "removed 1 entry, 2.5 MB"
    assert shown[-1].startswith("2 entries, 401.0 kB, in ")
    assert facts(run(world, "--older-than", "30d", "--trim", "10GB", "--json"))["removed"] == []


def test_without_a_cache_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["cache"], ["cache", "--trim", "10GB", "--older-than", "1d"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0
        assert result.stdout == f"Nothing is kept in {tmp_path / DEFAULT}\n"
    told = facts(CliRunner().invoke(main, ["cache", "--json"]))
    assert told == {"folder": str(tmp_path / DEFAULT), "bytes": 0, "entries": [], "removed": []}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "10", "GB", "10 parsecs", "-1GB", "1e3MB", "10GiB"])
def test_a_size_that_is_none_is_named_and_removes_nothing(world: Path, text: str) -> None:
    told = facts(run(world, "--trim", text, "--json"), status=1)
    assert told == {
        "error": "DefinitionError",
        "what": f"{text!r} is not a size.",
        "where": "--trim",
        "expected": "a number with one of the units B, kB, MB, GB, TB",
        "do": "write it like '500MB' or '10GB'; '0B' is nothing at all.",
    }
    assert facts(run(world, "--older-than", "a while", "--json"), status=1)["where"] == "--older-than"
    assert len(facts(run(world, "--json"))["entries"]) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0B", 0), ("500MB", 500 * 10**6), ("10gb", 10**10), ("1.5 kB", 1500), ("2TB", 2 * 10**12)],
)
def test_sizes_are_read_and_written_in_thousands(text: str, expected: int) -> None:
    assert show.size(text, of="x") == expected
    with pytest.raises(DefinitionError):
        show.size(f"{text} or so", of="x")
    written = {
        0: "0 B",
        999: "999 B",
        1000: "1.0 kB",
        999_949: "999.9 kB",
        999_950: "1.0 MB",
        10**16: "10000.0 TB",
    }
    assert {count: show.size_text(count) for count in written} == written


def test_a_cache_of_somebody_else_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(world.parent / DEFAULT / "tmp"))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert facts(run(world, "--trim", "0B", "--json"), status=1) == {
        "error": "CacheError",
        "what": "The cache cannot be trimmed: Permission denied.",
        "where": str(world.parent / DEFAULT / "tmp"),
        "do": "trim it as the user whose files they are.",
    }
