"""What is said about files of tests is said about files that there are."""

from __future__ import annotations

from pathlib import Path

from spread import LONGEST, ON_CLUSTERS

ROOT = Path(__file__).resolve().parents[1]


def test_the_longest_files_are_there_once() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_files_with_clusters_are_run_by_one_process() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "from cluster_sessions import" in path.read_text() and path != Path(__file__)
    ]
    assert sorted(users) == sorted(ON_CLUSTERS)
