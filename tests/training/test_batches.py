"""Batches are the training set's own rows, bit for bit, however they are cut; and its schema says what it was made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_world import DAY, END, HOUR, START, UNTIL, SmallWorld, instants

import sameworld as sw
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import DataError, DefinitionError, Problems
from sameworld.training.fingerprint import changes, fingerprint_in

AS_OF = UNTIL
ROOT = Path(__file__).resolve().parents[2]


def per_page(pages: Any, count: Any) -> Any:
    return pages / (count + 1.0)


def per_page_otherwise(pages: Any, count: Any) -> Any:
    return pages / (count + 2.0)


def share(pages: Any) -> Any:
    return pages / pages.size


def visits(changed: int | None = None) -> pa.Table:
    times = [START + i * HOUR for i in range(10)]
    pages = [changed if i == 7 and changed is not None else i for i in range(10)]
    return pa.table({"user": ["ann", "bob"] * 5, "pages": pages, "at": instants(times)})


def asks(moments: int = 40) -> pa.Table:
    rows = np.arange(moments)
    return pa.table(
        {
            "user": pa.array([("ann", "bob", "nobody", None)[i % 4] for i in rows], pa.string()),
            "shop": pa.array([f"s{i % 3}" for i in rows], pa.string()),
            "asked_at": instants(START + (rows * 7 % 11) * HOUR + 1),
        }
    )


def source(data: Any) -> sw.Source:
    return sw.Source("visits", data, event_time="at", available_at=sw.delay("1h"))


def features(data: Any, function: Callable[..., Any] = per_page) -> dict[str, Any]:
    of_user = source(data).by("user")
    return {
        "pages": of_user.sum("pages", over=["5h", "2h"]),
        "count": of_user.count(),
        "last": of_user.last("pages"),
        "shop": sw.field("shop").category(),
        "per_page": sw.derive(function, "pages_5h", "count"),
    }


def label(data: Any, over: float = 4) -> sw.Label:
    return sw.Label(source(data).by("user").last("pages") > over, within="2h")


def made(data: Any = None, asked: Any = None, **options: Any) -> pa.Table:
    data = visits() if data is None else data
    moments = sw.Moments(asks() if asked is None else asked, at="asked_at")
    given: dict[str, Any] = {"moments": moments, "label": label(data), "as_of": START + 8 * HOUR} | options
    return sw.training_set(given.pop("features", features(data)), **given)


def fingerprint(table: pa.Table) -> str:
    return json.loads(table.schema.metadata[b"sameworld"])["fingerprint"]


def same_bits(one: pa.Table, other: pa.Table) -> bool:
    return one.schema.equals(other.schema, check_metadata=True) and content_of(one) == content_of(other)


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_batches_of_any_size_are_the_training_set_bit_for_bit(rows: int) -> None:
    data = visits()
    given: dict[str, Any] = {
        "moments": sw.Moments(asks(), at="asked_at"),
        "label": label(data),
        "as_of": START + 8 * HOUR,
    }
    batches = list(sw.training_batches(features(data), rows_a_batch=rows, **given))
    assert [batch.num_rows for batch in batches] == [min(rows, 40 - i) for i in range(0, 40, rows)]
    whole = sw.training_set(features(data), **given)
    assert same_bits(pa.Table.from_batches(batches), whole)
    assert whole["label"].null_count > 0


@pytest.mark.parametrize("data", ["files", "query", "naive", "csv"])
def test_moments_are_streamed_from_wherever_they_are(
    trained_world: SmallWorld, data: str, tmp_path: Path
) -> None:
    model = trained_world.load().model("plain")
    moments = model.moments
    asked = trained_world.table("asks")
    if data == "query":
        path = trained_world.folder / "data" / "asks.parquet"
        moments = sw.Moments(f"SELECT * FROM '{path}' ORDER BY ask_id", at="asked_at")
    elif data == "naive":
        naive = asked["asked_at"].cast(pa.timestamp("us"))
        moments = sw.Moments(
            asked.set_column(asked.column_names.index("asked_at"), "asked_at", naive),
            at="asked_at",
            timezone="Europe/Berlin",
        )
    elif data == "csv":
        naive = [str(time)[:19] for time in asked["asked_at"].to_pylist()]
        rows = asked.to_pylist()
        lines = [
            ",".join(
                [
                    time,
                    row["ask_id"],
                    row["user"],
                    row["shop"],
                    str(row["basket"] or ""),
                    f"{row['opened_at']}",
                ]
            )
            for time, row in zip(naive, rows, strict=True)
        ]
        (tmp_path / "asks.csv").write_text(
            "\n".join(["asked_at,ask_id,user,shop,basket,opened_at", *lines, ""])
        )
        moments = sw.Moments(str(tmp_path / "asks.csv"), at="asked_at", timezone="America/New_York")
    given: dict[str, Any] = {"moments": moments, "as_of": END, "folder": trained_world.folder}
    whole = sw.training_set(model, **given)
    streamed = sw.training_batches(model, rows_a_batch=250, **given).read_all()
    assert whole.num_rows == 900
    assert same_bits(streamed, whole)


def test_an_engine_gives_a_file_of_many_row_groups_in_its_order(tmp_path: Path) -> None:
    rows = 300_000
    pq.write_table(pa.table({"row": np.arange(rows)}), tmp_path / "rows.parquet", row_group_size=10_000)
    engine = DuckDBEngine(tmp_path)
    next_row = 0
    for table in engine.batches("rows.parquet", "the rows", rows=70_001):
        assert engine.table("SELECT 1 AS one", "another")["one"].to_pylist() == [1]
        found = table["row"].to_numpy()
        assert (found == np.arange(next_row, next_row + found.size)).all()
        assert found.size == 70_001 or next_row + found.size == rows
        next_row += found.size
    assert next_row == rows


def test_no_moments_give_no_batch_but_the_schema() -> None:
    data = visits()
    moments = sw.Moments(asks(0), at="asked_at")
    reader = sw.training_batches(features(data), moments=moments, label=label(data), as_of=AS_OF)
    assert reader.schema.names == [
        *("asked_at", "pages_5h", "pages_2h", "count", "last", "shop", "per_page", "label")
    ]
    assert reader.read_all().num_rows == 0


def test_problems_are_told_before_the_first_batch() -> None:
    wrong: dict[str, Any] = {"sum": source(visits()).by("user").sum("page")}
    with pytest.raises(Problems):
        sw.training_batches(wrong, moments=sw.Moments(asks(), at="asked_at"))
    with pytest.raises(DefinitionError) as caught:
        sw.training_batches(features(visits()), moments=sw.Moments(asks(), at="asked_at"), rows_a_batch=0)
    assert str(caught.value) == ("A batch needs rows.\n  found: rows_a_batch=0\n  do: give at least 1.")


def test_a_query_that_breaks_on_the_way_names_what_was_read() -> None:
    text = "SELECT 'ann' AS user, to_timestamp(CASE WHEN range > 60000 THEN error('rotten') ELSE range END) AS asked_at FROM range(70000)"
    engine = DuckDBEngine()
    with pytest.raises(DataError) as caught:
        list(engine.batches(text, "the moments", rows=1000))
    assert caught.value.what == "The data of the moments cannot be read."
    assert "rotten" in caught.value.found


def test_a_function_that_looks_at_other_rows_is_refused_since_batches_would_change_it() -> None:
    wrong = features(visits()) | {"share": sw.derive(share, "pages_5h")}
    with pytest.raises(DefinitionError) as caught:
        sw.training_batches(wrong, moments=sw.Moments(asks(), at="asked_at"))
    assert caught.value.what == "The function 'share' of feature 'share' is not row-independent."


def test_progress_is_told_after_every_batch() -> None:
    told: list[tuple[int, int | None]] = []
    said: list[str] = []
    reader = sw.training_batches(
        features(visits()),
        moments=sw.Moments(asks(), at="asked_at"),
        rows_a_batch=15,
        say=said.append,
        progress=lambda done, total: told.append((done, total)),
    )
    reader.read_all()
    assert told == [(15, 40), (30, 40), (40, 40), (40, 40)]
    assert said == ["40 moments, 5 features of 1 sources (as_of)"]


def test_a_file_that_changes_on_the_way_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "visits.parquet"
    pq.write_table(visits(), path)
    reader = sw.training_batches(
        features(str(path)), moments=sw.Moments(asks(), at="asked_at"), rows_a_batch=15
    )
    reader.read_next_batch()
    pq.write_table(visits(changed=100), path)
    with pytest.raises(DataError) as caught:
        reader.read_all()
    assert str(caught.value) == (
        "A file of source 'visits' changed while the training set was made.\n"
        f"  in: {path}\n"
        "  do: run again when nobody writes to it."
    )


def test_two_runs_over_the_same_inputs_have_the_same_fingerprint(tmp_path: Path) -> None:
    assert made().schema.metadata == made().schema.metadata
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        pq.write_table(visits(), tmp_path / folder / "visits.parquet")
    here, there = (made(str(tmp_path / folder / "visits.parquet")) for folder in ("here", "there"))
    # Where the data lie changes nothing.
    assert here.schema.metadata == there.schema.metadata
    # Without a label nothing depends on when it is known.
    assert fingerprint(made(label=None, as_of=1)) == fingerprint(made(label=None, as_of=2))


CHANGES: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "a feature": (
        lambda: made(
            features=features(visits())
            | {"pages": source(visits()).by("user").max("pages", over=["5h", "2h"])}
        ),
        "feature 'pages' is changed",
    ),
    "a function": (
        lambda: made(features=features(visits(), function=per_page_otherwise)),
        "feature 'per_page' is changed",
    ),
    "a feature less": (
        lambda: made(features={n: f for n, f in features(visits()).items() if n != "last"}),
        "feature 'last' is gone",
    ),
    "a feature more": (
        lambda: made(features=features(visits()) | {"x": sw.field("shop").category()}),
        "feature 'x' is new",
    ),
    "the order": (
        lambda: made(features=dict(reversed(features(visits()).items()))),
        "the features are in another order",
    ),
    "the label": (lambda: made(label=label(visits(), over=5)), "the label is defined otherwise"),
    "a value of a source": (lambda: made(visits(changed=100)), "source 'visits' has other data"),
    "a type of a source": (
        lambda: made(visits().set_column(1, "pages", visits()["pages"].cast(pa.int32()))),
        "source 'visits' has other data",
    ),
    "the moments": (lambda: made(asked=asks(39)), "the moments are others"),
    "the world": (lambda: made(world="event_time"), "world as_of -> event_time"),
    "as of": (lambda: made(as_of=START), f"as_of {START + 8 * HOUR} -> {START}"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_can_change_a_value_changes_the_fingerprint_and_is_named(name: str) -> None:
    make, what = CHANGES[name]
    before, after = made(), make()
    assert fingerprint(before) != fingerprint(after)
    old, new = (fingerprint_in(table.schema.metadata) for table in (before, after))
    assert old is not None
    assert new is not None
    assert what in changes(old, new)
    assert changes(old, old) == []


def test_the_versions_of_what_computes_are_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    from sameworld.training import fingerprint as module

    before = fingerprint_in(made().schema.metadata)
    assert before is not None
    libraries = {"sameworld", "sameworld code", "duckdb", "pyarrow", "numpy", "numba"}
    assert set(before.versions) == libraries | {"python", "machine", "cpu"}
    plain = fingerprint_in(made(features={"shop": sw.field("shop").category()}).schema.metadata)
    assert plain is not None
    assert set(plain.versions) == libraries
    known = module.environment()
    monkeypatch.setattr(module, "environment", lambda: known | {"duckdb": "0.1"})
    after = fingerprint_in(made().schema.metadata)
    assert after is not None
    assert changes(before, after) == [f"duckdb {known['duckdb']} -> 0.1"]


def test_the_fingerprint_of_a_query_is_that_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "visits.parquet"
    pq.write_table(visits(), path)
    query = f"SELECT * FROM '{path}'"
    before = fingerprint_in(made(query).schema.metadata)
    again = fingerprint_in(made(f"{query} ORDER BY pages DESC").schema.metadata)
    pq.write_table(visits(changed=8), path)
    after = fingerprint_in(made(query).schema.metadata)
    assert before is not None
    assert again is not None
    assert after is not None
    assert (before.sources["visits"].kind, before.sources["visits"].rows) == ("query", 10)
    assert before.sources["visits"].query == query
    assert before.content == again.content
    assert changes(before, after) == ["source 'visits' has other data"]


def test_the_fingerprint_of_files_is_of_names_and_bytes(tmp_path: Path) -> None:
    def of(**files: pa.Table) -> Any:
        for old in tmp_path.glob("*/*.parquet"):
            old.unlink()
        for name, table in files.items():
            (tmp_path / f"part={name}").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / f"part={name}" / "rows.parquet")
        return fingerprint_in(made(str(tmp_path / "*" / "*.parquet")).schema.metadata)

    first = of(a=visits().slice(0, 5), b=visits().slice(5))
    assert (first.sources["visits"].files, first.sources["visits"].rows) == (2, 10)
    assert first == of(a=visits().slice(0, 5), b=visits().slice(5))
    assert first != of(a=visits().slice(0, 5), c=visits().slice(5))
    assert first != of(a=visits().slice(0, 5), b=visits(changed=8).slice(5))


def test_the_hash_of_a_table_knows_nulls_from_values_and_nothing_of_its_layout() -> None:
    texts = ["a", None, "", "bc", "d"]
    columns: dict[str, list[Any]] = {
        "text": texts,
        "number": [0, None, 1, 2, 3],
        "true": [False, None, True, True, False],
        "time": [START, None, 0, 1, 2],
        "many": [[1], None, [], [2, None], [3]],
    }
    table = pa.table(columns)
    seen = {content_of(table)}
    for name, values in columns.items():
        changed = [values[2] if value is None else value for value in values]
        seen.add(
            content_of(table.set_column(table.column_names.index(name), name, pa.array([changed])[0].values))
        )
    seen.add(content_of(table.rename_columns([*table.column_names[1:], "x"])))
    seen.add(content_of(table.slice(0, 4)))
    assert len(seen) == len(columns) + 3
    cut = pa.concat_tables([table.slice(0, 2), table.slice(2, 0), table.slice(2)])
    coded = table.set_column(0, "text", table["text"].dictionary_encode())
    assert content_of(cut) == content_of(table)
    assert content_of(coded.set_column(0, "text", coded["text"].cast(pa.string()))) == content_of(table)


STREAM = """
import sys
import sameworld as sw

source = sw.Source("visits", "visits.parquet", event_time="at", available_at=sw.delay("1h"))
features = {"count": source.by("user").count(over=["1h", "2h", "5h"]), "pages": source.by("user").sum("pages"), "shop": sw.field("shop").category()}
moments = sw.Moments(f"asks-{sys.argv[1]}.parquet", at="asked_at")
rows = 0
for batch in sw.training_batches(features, moments=moments, rows_a_batch=50_000):
    rows += batch.num_rows
assert rows == int(sys.argv[1]), rows
# ru_maxrss would begin with what the process that started this one had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak there")
def test_memory_is_bounded_by_the_batch(tmp_path: Path) -> None:
    pq.write_table(visits(), tmp_path / "visits.parquet")
    peaks = {}
    for moments in (2_000_000, 4_000_000):
        rows = np.arange(moments)
        table = pa.table(
            {
                "user": pa.array(["ann", "bob", "nobody", None]).take(pa.array(rows % 4)),
                "shop": pa.array([f"a shop with a long name {i}" for i in range(1000)]).take(
                    pa.array(rows % 1000)
                ),
                "asked_at": instants(START + rows * DAY // 100_000),
            }
        )
        pq.write_table(table, tmp_path / f"asks-{moments}.parquet", row_group_size=50_000)
        paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        ran = subprocess.run(
            [sys.executable, "-c", STREAM, str(moments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        peaks[moments] = int(ran.stdout) // 1024
    # As a whole, the other two million rows would take 400 MB.
    assert peaks[4_000_000] < peaks[2_000_000] + 120, peaks
