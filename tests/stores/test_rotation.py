"""Rotated predictions are the predictions: to the bit, exactly once, whoever is killed when."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from every_aggregation import COLUMNS

from sameworld.asof.schema import value_type
from sameworld.errors import LogError
from sameworld.stores import prediction_log
from sameworld.stores.clock import SystemClock
from sameworld.stores.prediction_log import (
    Prediction,
    PredictionLog,
    Shape,
    column_of,
    logged,
    predictions,
    raw,
    rotated,
    tables,
)
from sameworld.stores.record_log import read_segment
from sameworld.stores.rotation import rotate, waiting

FAMILIES = [*(family for family in COLUMNS if family != "decimal"), "decimal(2)", "decimal(18)"]
ODD: dict[str, list[Any]] = {
    "integer": [0, -(2**63), 2**63 - 1],
    "float": [float("nan"), -0.0, 5e-324],
    "boolean": [True, False, True],
    "text": ["", "ü\0\n", "s0"],
    "instant": [0, -62135596800000000, 253402300799999999],
    "decimal(2)": [Decimal("0.10"), Decimal("-92233720368547758.08"), Decimal("0.00")],
    "decimal(18)": [Decimal("1E-18"), Decimal("9.223372036854775807"), Decimal("-0.5")],
}
TYPES = {
    **{family: value_type(family) for family in FAMILIES},
    **{f"list of {family}": value_type(f"list of {family}") for family in FAMILIES},
}
ONE = Shape({"user": "text"}, {"x": "double"}, {"x": "1"})


class Fixed:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = 1_700_000_000_000_000

    def now(self) -> int:
        return self.time


def prediction(number: int, log: PredictionLog, **other: Any) -> Prediction:
    """Give a prediction of shape `ONE` that says which it is."""
    given: dict[str, Any] = {
        "id": log.next_id(), "model": "m", "version": "v1", "t": number, "sequence": number, "value": 0.5, "tier": "model", "reason": "",
        "request": [f"u{number}"], "features": [float(number)], "replayed": False, "elapsed_us": 1,
    }  # fmt: skip
    return Prediction(**(given | other))


def written(state: Path, count: int, **options: Any) -> PredictionLog:
    """Write predictions one by one."""
    log = PredictionLog(state, SystemClock(), **options)
    for number in range(count):
        assert log.write([prediction(number, log)], ONE) == ""
    return log


def bits(state: Path) -> list[str]:
    """Give the log so that no two different bits look the same."""
    return [f"{where} {msgspec.msgpack.encode(p).hex()}" for where, p in predictions(state)]


def every_value(log: PredictionLog) -> tuple[Shape, list[Prediction]]:
    """Give predictions with every type of request field and of feature, and every kind of answer."""
    request = {family: family for family in ("integer", "float", "boolean", "text", "instant")}
    shape = Shape(request, {name: str(kind) for name, kind in TYPES.items()}, {})
    columns: list[list[Any]] = []
    for name, kind in TYPES.items():
        odd = [str(v) if isinstance(v, Decimal) else v for v in ODD[name.removeprefix("list of ")]]
        columns.append(logged(column_of([*odd, None] if name in ODD else [odd, odd[:1], [], None], kind)))
    rows = [
        prediction(
            number, log, request=[[*ODD[family], None][number] for family in request], features=[c[number] for c in columns],
            ages={"orders": 5, "other": None} if number else {}, defaults=["x"] if number else [], propensity=0.25, seed=7, policy="p",
        )
        for number in range(4)
    ]  # fmt: skip
    nothing = msgspec.structs.replace(
        rows[0], features=None, tier="fallback_1_rate", reason="deadline", ages=None
    )
    return shape, [*rows, nothing, msgspec.structs.replace(rows[1], features=[None] * len(columns))]


def test_a_rotated_prediction_is_the_same_to_the_bit(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, SystemClock())
    shape, rows = every_value(log)
    assert log.write(rows, shape) == ""
    assert log.write([prediction(9, log, model="other", version="v2")], ONE) == ""
    assert log.write([msgspec.structs.replace(row, version="v3") for row in rows], shape) == ""
    before = bits(tmp_path)
    log.close()

    done = rotate(tmp_path)

    assert (done.segments, done.rows, done.stayed) == (1, 13, [])
    assert raw(tmp_path) == []
    assert len(pa.concat_tables(tables(tmp_path, "m"))) == 12
    assert bits(tmp_path) == before


def test_duckdb_reads_all_versions_of_a_model_with_their_types(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, SystemClock())
    shape, rows = every_value(log)
    log.write(rows, shape)
    log.write([prediction(9, log, version="v2", t=1_000_000)], ONE)
    log.close()
    rotate(tmp_path)

    files = f"read_parquet('{tmp_path}/predictions/parquet/model=m/**/*.parquet', union_by_name = true)"
    with duckdb.connect() as con:
        kinds = dict(
            con.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {files})").fetchall()
        )
        counts = con.sql(
            f"SELECT version, count(*), count(feature_x) FROM {files} GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        when = con.sql(f"SELECT epoch_us(asked_at) FROM {files} WHERE version = 'v2'").fetchall()

    assert counts == [("v1", 6, 0), ("v2", 1, 1)]
    assert when == [(1_000_000,)]
    assert {name: kinds[name] for name in ("model", "asked_at", "value", "ages", "defaults", "request_instant")} == {
        "model": "VARCHAR", "asked_at": "TIMESTAMP WITH TIME ZONE", "value": "DOUBLE", "ages": "MAP(VARCHAR, BIGINT)", "defaults": "VARCHAR[]",
        "request_instant": "TIMESTAMP WITH TIME ZONE",
    }  # fmt: skip
    assert kinds["feature_decimal(18)"] == "DECIMAL(38,18)"
    assert kinds["feature_list of instant"] == "TIMESTAMP WITH TIME ZONE[]"


def test_only_complete_segments_of_a_living_process_are_rotated(tmp_path: Path) -> None:
    clock = Fixed()
    log = PredictionLog(tmp_path, clock)
    log.write([prediction(0, log)], ONE)
    log.complete(60)
    assert not waiting(tmp_path)
    assert rotate(tmp_path).segments == 0

    clock.time += 61_000_000
    log.complete(60)
    assert waiting(tmp_path)
    assert rotate(tmp_path).rows == 1
    log.write([prediction(1, log)], ONE)
    assert rotate(tmp_path).rows == 0
    assert [where.split("#")[1] for where, _ in predictions(tmp_path)] == ["0", "1"]

    assert not waiting(tmp_path)
    log.close()
    assert waiting(tmp_path)
    assert rotate(tmp_path).rows == 1
    assert [path.name for path in (tmp_path / "predictions").iterdir() if path.is_dir()] == ["parquet"]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from sameworld.stores import rotation

state, count = Path(sys.argv[1]), 0

def counted(call):
    def run(*given, **named):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)
    return run

for name in ("replace", "fsync", "open"):
    setattr(os, name, counted(getattr(os, name)))
for name in ("unlink", "rmdir", "open", "mkdir"):
    setattr(Path, name, counted(getattr(Path, name)))
step = 0
while True:
    step += 1
    copy = state.with_name(f"killed-{step}")
    shutil.copytree(state, copy)
    child = os.fork()
    if child == 0:
        count = 0
        rotation.rotate(copy)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def test_a_rotation_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    log = PredictionLog(state, SystemClock(), segment_bytes=200)
    for number in range(3):  # two segments, one with two models
        log.write([prediction(number, log, model="ab"[number % 2])], ONE)
    log.close()
    before = bits(state)

    subprocess.run([sys.executable, "-c", KILLED, str(state)], check=True, timeout=120)

    copies = list(tmp_path.glob("killed-*"))
    assert len(copies) > 20
    for copy in copies:
        assert bits(copy) == before
        ids = [
            name for path in copy.rglob("part-*.parquet") for name in pq.read_table(path)["id"].to_pylist()
        ]
        assert len(ids) == len(set(ids))
        assert rotate(copy).stayed == []
        assert bits(copy) == before
        assert raw(copy) == []
        assert not list(copy.rglob("*.new"))


WRITER = """
import sys, time
sys.path[:0] = [{tests!r}]
from pathlib import Path
from stores.test_rotation import ONE, PredictionLog, SystemClock, prediction

log = PredictionLog(Path(sys.argv[1]), SystemClock(), segment_bytes=20_000)
number = 0
while True:
    group = [prediction(number + i, log) for i in range(8)]
    assert log.write(group, ONE) == ""
    number += 8
    print(number, flush=True)
    time.sleep(0.004)
"""
ROTATOR = """
import sys
from pathlib import Path
from sameworld.stores.rotation import rotate

while True:
    rotate(Path(sys.argv[1]))
"""


def started(code: str, state: Path, **options: Any) -> "subprocess.Popen[bytes]":
    code = code.replace("{tests!r}", repr(str(Path(__file__).parent.parent)))
    return subprocess.Popen([sys.executable, "-c", code, str(state)], **options)


def numbers_once(state: Path) -> int:
    """Give how many predictions a reader sees, which must be the first ones of each process, each once."""
    seen: dict[str, list[int]] = {}
    for where, found in predictions(state):
        assert found is not None
        process, number = where.split("#")
        assert found.t == int(number)
        seen.setdefault(process, []).append(found.t)
    for numbers in seen.values():
        assert numbers == list(range(len(numbers)))
    return sum(map(len, seen.values()))


def test_readers_see_every_prediction_once_while_all_are_killed(tmp_path: Path) -> None:
    chance = random.Random(3)
    acknowledged = tmp_path / "acknowledged"
    state = tmp_path / "state"
    with acknowledged.open("wb") as file:
        writer = started(WRITER, state, stdout=file)
        try:
            seen = 0
            for _ in range(3):
                before, ends = len(rotated(state)), time.monotonic() + 60
                rotator = started(ROTATOR, state)
                while len(rotated(state)) <= before and time.monotonic() < ends:
                    now = numbers_once(state)
                    assert now >= seen
                    seen = now
                time.sleep(chance.random() / 5)
                rotator.kill()
                rotator.wait()
        finally:
            writer.kill()
            writer.wait()
    assert rotated(state)
    count = numbers_once(state)
    assert count >= max(int(line) for line in acknowledged.read_text().split("\n")[:-1]) > 0

    assert rotate(state).stayed == []

    assert raw(state) == []
    assert numbers_once(state) == count


def test_a_segment_that_is_rotated_while_it_is_read_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path, 1, segment_bytes=100)
    before = bits(tmp_path)

    def slowly(folder: Path, first: int) -> Iterator[tuple[int, bytes | None]]:
        reading = read_segment(folder, first)
        yield next(reading)
        monkeypatch.undo()
        for number in range(1, 4):
            log.write([prediction(number, log)], ONE)
        assert rotate(tmp_path).rows == 3
        yield from reading

    monkeypatch.setattr(prediction_log, "read_segment", slowly)

    assert bits(tmp_path) == before
    log.close()


def test_a_damaged_segment_and_what_comes_after_it_stay(tmp_path: Path) -> None:
    written(tmp_path, 6, segment_bytes=300).close()
    second = raw(tmp_path)[1]
    path = second.raw_folder(tmp_path) / f"{second.first:020d}.log"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    before = bits_or_none(tmp_path)
    assert before.count(None) == 1

    done = rotate(tmp_path)

    assert len(done.stayed) == 1
    assert "damaged" in done.stayed[0]
    assert raw(tmp_path)[0] == second
    assert bits_or_none(tmp_path) == before


def bits_or_none(state: Path) -> list[str | None]:
    return [None if p is None else f"{where} {p}" for where, p in predictions(state)]


def test_a_segment_that_cannot_be_rotated_is_kept_until_it_can(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    before = bits(tmp_path)
    (tmp_path / "predictions" / "parquet").write_text("in the way")

    assert rotate(tmp_path).stayed

    assert bits(tmp_path) == before
    (tmp_path / "predictions" / "parquet").unlink()
    assert rotate(tmp_path).stayed == []
    assert bits(tmp_path) == before


def parts_by_age(state: Path, ages_days: Sequence[float]) -> list[Path]:
    """Give the parts, oldest first, after making them so old."""
    paths = [path for _, paths in sorted(rotated(state).items()) for path in paths]
    for path, days in zip(paths, ages_days, strict=True):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    return paths


@pytest.mark.parametrize("limit", ["bytes", "days"])
def test_retention_removes_the_oldest_parts_only(tmp_path: Path, limit: str) -> None:
    log = written(tmp_path, 4, segment_bytes=100)
    rotate(tmp_path)
    oldest, middle, newest = parts_by_age(tmp_path, [30, 20, 10])
    size = middle.stat().st_size + newest.stat().st_size

    done = rotate(tmp_path, **({"keep_bytes": size} if limit == "bytes" else {"keep_days": 25}))

    assert done.removed == [oldest]
    assert [where.split("#")[1] for where, _ in predictions(tmp_path)] == ["1", "2", "3"]
    assert rotate(tmp_path, keep_bytes=0).removed == [middle, newest]
    # What is not rotated yet is not touched.
    assert [where.split("#")[1] for where, _ in predictions(tmp_path)] == ["3"]
    log.close()


def test_a_log_that_cannot_be_begun_begins_when_it_can(tmp_path: Path) -> None:
    in_the_way = tmp_path / "predictions"
    in_the_way.write_text("no folder")
    log = PredictionLog(tmp_path, SystemClock())
    assert log.write([prediction(0, log)], ONE) != ""

    in_the_way.unlink()

    assert log.write([prediction(1, log)], ONE) == ""
    log.close()
    assert [p.t for _, p in predictions(tmp_path) if p is not None] == [1]
    assert rotate(tmp_path).rows == 1


def test_a_log_that_was_removed_is_begun_again(tmp_path: Path) -> None:
    log = written(tmp_path, 2)
    shutil.rmtree(tmp_path / "predictions")

    log.complete(3600)

    assert log.write([prediction(2, log)], ONE) == ""
    log.close()
    assert rotate(tmp_path).rows == 1
    assert [p.t for _, p in predictions(tmp_path) if p is not None] == [2]


def test_a_value_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, SystemClock())

    refused = log.write([prediction(0, log, request=[2**70])], ONE)

    assert refused.startswith("A value cannot be written to the prediction log")
    assert log.write([prediction(1, log)], ONE) == ""
    log.close()
    assert rotate(tmp_path).rows == 1


def test_a_damaged_part_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    written(tmp_path, 3, segment_bytes=100).close()
    rotate(tmp_path)
    path = sorted(path for paths in rotated(tmp_path).values() for path in paths)[1]
    content = bytearray(path.read_bytes())
    content[content.index(b"u1")] ^= 1
    path.write_bytes(content)

    found = list(predictions(tmp_path))

    assert [None if p is None else p.t for _, p in found] == [0, None, 2]
    assert found[1][0].endswith(path.name)
    with pytest.raises(LogError, match="is damaged"):
        list(tables(tmp_path, "m"))
