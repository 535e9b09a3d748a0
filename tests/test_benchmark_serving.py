"""The serving benchmark in small: ours alone, with the slow client, which is everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc and pins processes to processors")
def test_serving_benchmark_proves_measures_and_writes_its_table(tmp_path: Path) -> None:
    page, found = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text("before\n<!-- serving -->\nold\n<!-- /serving -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks.serving", "--only=sameworld honest", "--client=threads"]
    command += ["--rounds=1", "--seconds=0.3", "--warm-seconds=0.1", "--connections=1,4", "--requests=50"]
    command += ["--rows=1000", f"--markdown={page}", f"--json={found}", f"--folder={tmp_path}"]
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    # 48 at once, and those until it was ready.
    proved = re.search(r"(\d+) vectors are what their sources give", done.stderr)
    assert proved is not None
    assert int(proved[1]) > 48
    (measured,) = json.loads(found.read_text())["measurements"]
    assert [load["connections"] for load in measured["loads"]] == [1, 4]
    for load in measured["loads"]:
        assert load["requests_a_second"] > 0
        assert load["processor_microseconds"] > 0
        assert [seen["failed"] for seen in load["rounds"]] == [0]
    assert "before\n<!-- serving -->\n| contestant |" in page.read_text()
    assert not list(tmp_path.glob("tmp*")), "what it wrote is removed"


def test_answer_that_is_not_lightgbms_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.serving import contestants, runner

    class Server:
        contestant = contestants.CONTESTANTS["FastAPI"]

        def at_once(self, bodies: list[bytes]) -> list[float]:
            return [0.5, 0.25 + 1e-12]

    checking = runner.Runner(tmp_path, 2, runner.Load.threads, [0], [0], print)
    checking.__dict__["_expected"] = [0.5, 0.25]

    with pytest.raises(runner.WrongError) as raised:
        checking._check(Server(), [b"", b""])  # pyright: ignore
    assert str(raised.value) == "FastAPI: row 1 of 48 sent at once\n  expected: 0.25\n  found: 0.250000000001"


@pytest.mark.parametrize(("collector", "enabled"), [("own", "False"), ("python", "True"), ("off", "False")])
def test_collections_are_watched_and_what_is_said_to_the_collector_is_heard_of_its_own_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collector: str, enabled: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.serving import contestants

    hooked = contestants.with_collector(contestants.CONTESTANTS["FastAPI"], collector)
    given = {name: value.format(folder=tmp_path, paths="") for name, value in hooked.variables.items()}
    says = "import gc; gc.collect(); gc.disable(); print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", says], env={**os.environ, **given}, capture_output=True, text=True, check=True)  # fmt: skip

    assert done.stdout.strip() == enabled
    assert int((tmp_path / contestants.COLLECTIONS).read_text().split()[-1]) >= 0
