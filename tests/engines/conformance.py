"""What every engine must show: the oracle's bits, whatever happened to rows, and the same training set on disk. Few calls of many rows: a cluster takes seconds for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from every_aggregation import bits, plain, type_of
from histories import (
    CONDITION,
    HISTORIES,
    KEYS,
    SCHEMA,
    VERSIONED,
    Moment,
    Row,
    all_calls,
    placed,
    row,
    said_by_oracle,
    ties_of,
    versions,
)

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.asof.prepared import World
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.windows import Window
from sameworld.engines.contents import content_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Asked, Engine
from sameworld.errors import AsOfError
from sameworld.testing import oracle
from sameworld.training.world_file import load_world

WINDOWS = (Window(), Window("3us"), Window("4us", ahead=True))
HOUR = 3_600_000_000


def asked_for(asked: Sequence[Moment]) -> Asked:
    keys = {
        name: pa.array([key[i] for key, _, _ in asked], kind) for i, (name, kind) in enumerate(KEYS.items())
    }
    at, as_of = (np.array([moment[i] for moment in asked], np.int64) for i in (1, 2))
    return Asked(pa.table(keys), at, as_of)


def ask(
    engine: Engine, aggregates: Sequence[Aggregate], asked: Asked, world: World = "as_of"
) -> dict[str, pa.Array]:
    sources = {aggregate.source.content: aggregate.source for aggregate in aggregates}
    schemas = {content: engine.describe(source.data, "rows") for content, source in sources.items()}
    return engine.aggregates(groupings_of(aggregates), schemas, asked, rows={}, world=world)


def named_histories() -> dict[str, list[Row]]:
    """Every history with entities and facts of its own, so that one table can have them all."""

    def own(number: int, text: str | None) -> str | None:
        return None if text is None else f"{number}{text}"

    return {
        name: [r | {"k1": own(number, r["k1"]), "id": own(number, r["id"])} for r in told]
        for number, (name, told) in enumerate(HISTORIES.items())
    }


@functools.cache
def said_of_named_histories(world: World) -> tuple[list[Aggregate], Asked, dict[str, list[Any]]]:
    """Give every aggregation in every way to tell versions apart, moments, and what the oracle says: column -> bits."""
    histories = named_histories()
    told = [r for history in histories.values() for r in history]
    table = pa.Table.from_pylist(told, schema=SCHEMA)
    asked: list[Moment] = []
    spans: list[tuple[slice, slice]] = []
    first = 0
    for number, history in enumerate(histories.values()):
        keys = [(f"{number}{who}", None, None) for who in ("a", "b", "nobody")]
        some = [(key, t, t) for key in keys for t in range(1, 15, 2)]
        some += [(keys[0], t, 13) for t in range(0, 12, 3)]
        spans.append((slice(first, first + len(history)), slice(len(asked), len(asked) + len(some))))
        first += len(history)
        asked += some
    expected: dict[str, list[Any]] = {}
    fitting: list[Aggregate] = []
    one = DuckDBEngine(threads=1)
    for versioned, options in VERSIONED.items():
        source = sw.Source(f"rows_{versioned}", table, event_time="e", available_at="a", **options)
        ties = ties_of(one, source, one.describe(table, "rows"), (), table)
        for aggregate in all_calls(source, WINDOWS):
            every = versions(source, aggregate, told, ties)
            said: dict[str, list[Any]] = {column: [] for column in aggregate.columns}
            for rows, moments in spans:
                own = every[rows]
                if world == "event_time":
                    own = oracle.joined_by_event_time(own)
                answers = said_by_oracle(aggregate, own, asked[moments])
                if answers is None:  # a sum that does not fit: another test's
                    break
                for column, values in answers.items():
                    said[column] += values
            else:
                fitting.append(aggregate)
                expected |= said
    one.close()
    assert len(fitting) > 80
    return fitting, asked_for(asked), expected


def check_equal(
    got: dict[str, pa.Array], aggregates: Sequence[Aggregate], said: dict[str, list[Any]]
) -> None:
    for aggregate in aggregates:
        for column in aggregate.columns:
            assert got[column].type == type_of(aggregate), column
            assert [bits(value) for value in plain(got[column])] == said[column], column


def check_named_histories(engine: Engine, world: World) -> None:
    """Everything that can happen to rows, in one call."""
    aggregates, asked, said = said_of_named_histories(world)
    check_equal(ask(engine, aggregates, asked, world), aggregates, said)


def many_rows() -> tuple[sw.Source, list[Aggregate], Asked]:
    """Corrected rows of skewed entities with three keys, some of them null; a third of all rows belong to one entity."""
    random = np.random.default_rng(7)
    told: list[Row] = []
    for _ in range(6_000):
        hot = random.random() < 0.33
        keys = (
            ("hot", 1, True)
            if hot
            else (f"k{random.integers(40)}", int(random.integers(3)), bool(random.integers(2)))
        )
        lost = random.random() < 0.03
        told.append(
            row(
                int(random.integers(0, 900)),
                int(random.integers(0, 1_200)),
                id=f"f{random.integers(2_000)}",
                v=int(random.integers(4)),
                d=random.random() < 0.05,
                **placed(int(random.integers(1, 40))),
            )
            | {"k1": None if lost else keys[0], "k2": keys[1], "k3": keys[2]}
        )
    source = sw.Source(
        "many",
        pa.Table.from_pylist(told, schema=SCHEMA),
        event_time="e",
        available_at="a",
        corrections_within="500us",
        **VERSIONED["by_version"],
    )
    over = (Window(), Window("100us"), Window("60us", ahead=True))
    grouped = [source.by("k1", "k2", "k3"), source.where(CONDITION).by("k2"), source.by("k3", "k1")]
    aggregates = [
        made
        for g in grouped
        for made in (
            g.count(over=over),
            g.sum("x", over=over),
            g.last("s", over=over),
            g.std("n", over=over),
            g.last_n("w", 3, over=over),
        )
    ]
    who = [("hot", 1, True), ("k1", 0, False), ("k7", 2, True), ("nobody", 0, True), (None, 1, None)]
    asked = [
        (who[i % 5], int(t), int(t + random.integers(0, 300)))
        for i, t in enumerate(random.integers(0, 1_300, 400))
    ]
    return source, aggregates, asked_for(asked)


def check_many_rows(engine: Engine) -> None:
    """Against the engine of one machine, which the oracle has checked."""
    _, aggregates, asked = many_rows()
    one = DuckDBEngine(threads=1)
    expected = ask(one, aggregates, asked)
    one.close()
    got = ask(engine, aggregates, asked)
    assert list(got) == list(expected)
    for name, column in got.items():
        assert column.type == expected[name].type
        assert [bits(value) for value in plain(column)] == [bits(value) for value in plain(expected[name])], (
            name
        )


def check_nothing(engine: Engine) -> None:
    """No rows, and no moments."""
    table = pa.Table.from_pylist([], schema=SCHEMA)
    source = sw.Source("nothing", table, event_time="e", available_at="a", **VERSIONED["by_version"])
    aggregates = all_calls(source)
    of_nobody = ask(engine, aggregates, asked_for([]))
    for aggregate in aggregates:
        assert of_nobody[aggregate.columns[0]].type == type_of(aggregate)
        assert len(of_nobody[aggregate.columns[0]]) == 0
    of_nothing = ask(
        engine, [source.by("k1").count(), source.by("k1").sum("x")], asked_for([(("a", None, None), 5, 5)])
    )
    assert [column.to_pylist() for column in of_nothing.values()] == [[0], [None]]


def check_one_entity(engine: Engine) -> None:
    """All rows and moments in one partition, and nothing in the others."""
    told = [row(t, t, id=f"f{t}", v=t) for t in range(50)]
    source = sw.Source(
        "one",
        pa.Table.from_pylist(told, schema=SCHEMA),
        event_time="e",
        available_at="a",
        **VERSIONED["by_version"],
    )
    asked = asked_for([(("a", None, None), t, t) for t in range(0, 60, 7)])
    aggregates = [source.by("k1").count(), source.by("k1").last("e")]
    one = DuckDBEngine(threads=1)
    expected = ask(one, aggregates, asked)
    one.close()
    assert [column.to_pylist() for column in ask(engine, aggregates, asked).values()] == [
        column.to_pylist() for column in expected.values()
    ]


def check_an_error_arrives_as_it_was(engine_in: Callable[[Path], Engine], folder: Path) -> None:
    """An error of a worker is the error that one machine gives, whatever else is asked for together with it."""
    rows = pa.Table.from_pylist(HISTORIES["an integer sum beyond int64"], schema=SCHEMA)
    source = sw.Source("rows", rows, event_time="e", available_at="a")
    at = pa.array([4] * 40, pa.timestamp("us", tz="UTC"))
    asks = sw.Moments(pa.table({"k1": [f"{i}" for i in range(39)] + ["a"], "at": at}), at="at")
    features = {"count": source.by("k1").count(), "sum": source.by("k1").sum("n")}
    said: list[str] = []
    for number, engine in enumerate((DuckDBEngine(folder, threads=1), engine_in(folder))):
        for call, options in (
            (sw.training_set, {}),
            (sw.write_training_set, {"to": folder / f"set-{number}"}),
        ):
            with pytest.raises(AsOfError, match="does not fit 64 bits") as raised:
                call(features, moments=asks, engine=engine, folder=folder, **options)
            # A worker knows its moments by their places among those of its partition.
            said.append(re.sub("moment [0-9]+", "a moment", str(raised.value)))
    assert len(set(said)) == 1, said


WORLD = """
import numpy as np
import sameworld as sw

FACTOR = 3.0

def scaled(pages, share):
    return pages * FACTOR + share

visits = sw.Source("visits", "visits", event_time="at", available_at="seen_at", id="visit", timezone="Europe/Berlin")
staff = sw.Source("staff", "staff.csv", event_time="since", available_at=sw.delay("1h"))
asks = sw.Moments("asks.parquet", at="asked_at", timezone="UTC")
of_user = visits.by("user")
model = sw.Model(
    "pages",
    moments=asks,
    features={
        "pages": of_user.sum("pages", over=["5h", "2d"]),
        "last_page": of_user.last("page").category(),
        "in_day": visits.by("user", "day").count(over="3d"),
        "grade": staff.by("user").last("grade"),
        "share": sw.field("share"),
        "scaled": sw.derive(scaled, "grade", "share"),
        "user": sw.field("user").category(),
    },
    label=sw.Label(of_user.last("pages") > 30, within="10h", otherwise=False),
    estimator=__import__("sklearn.linear_model").linear_model.LogisticRegression(),
)
"""


def make_world(folder: Path) -> Path:
    """A world file and its data: hive folders, naive clocks, a decimal field, several files, one of them empty, a CSV file."""
    random = np.random.default_rng(3)
    for day in range(3):
        count = 0 if day == 1 else 300
        at = 1_704_067_200_000_000 + (day * 24 + random.integers(0, 24, count)) * HOUR
        visits = pa.table(
            {
                "visit": pa.array(random.integers(0, 500, count)),
                "user": pa.array([f"u{i}" for i in random.integers(0, 9, count)], pa.string()),
                "pages": pa.array(random.integers(0, 60, count).astype(np.int32)),
                "page": pa.array([None if i % 7 == 0 else f"/{i}" for i in range(count)], pa.string()),
                "at": pa.array(at, pa.timestamp("us")),
                "seen_at": pa.array(at + random.integers(0, 9, count) * HOUR, pa.timestamp("us", tz="UTC")),
            }
        )
        path = folder / "visits" / f"day={10 + day}"
        path.mkdir(parents=True)
        pq.write_table(visits, path / "some.parquet", row_group_size=50)
    (folder / "staff.csv").write_text(
        "user,grade,since\n" + "".join(f"u{i},{i / 2},2024-01-01 0{i}:00:00+00\n" for i in range(5))
    )
    at = 1_704_067_200_000_000 + random.integers(0, 100, 70) * HOUR
    asks = pa.table(
        {
            "user": pa.array([None if i == 9 else f"u{i}" for i in random.integers(0, 11, 70)], pa.string()),
            "day": pa.array(random.integers(10, 13, 70)).cast(pa.int32()),
            "share": pa.array(
                [None if i % 9 == 0 else Decimal(i).scaleb(-2) for i in range(70)], pa.decimal128(9, 2)
            ),
            "asked_at": pa.array(at, pa.timestamp("us")),
        }
    )
    pq.write_table(asks, folder / "asks.parquet", row_group_size=8)
    (folder / "world.py").write_text(WORLD)
    return folder / "world.py"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_written_sets(engine_in: Callable[[Path], Engine], folder: Path) -> None:
    """The same table, schema and fingerprint included, and on disk the same bytes; parts that are there stay."""
    model = load_world(make_world(folder)).model("pages")
    as_of = 1_704_067_200_000_000 + 90 * HOUR
    options: dict[str, Any] = {"as_of": as_of, "folder": folder, "cache": False}
    engine = engine_in(folder)
    one, other = sw.training_set(model, **options), sw.training_set(model, engine=engine, **options)
    assert other.schema.equals(one.schema, check_metadata=True)
    assert content_of(other) == content_of(one)
    assert one["label"].null_count > 0
    assert one["pages_5h"].null_count < one.num_rows
    options |= {"rows_a_file": 16, "partition_by": "day"}
    sw.write_training_set(model, to=folder / "one", **options)
    written = sw.write_training_set(model, to=folder / "other", engine=engine, **options)
    assert (written.rows, written.parts, written.kept) == (70, 5, 0)
    expected = bytes_of(folder / "one")
    assert bytes_of(folder / "other") == expected
    for lost in (folder / "other").rglob("part-000002.parquet"):
        lost.unlink()
    again = sw.write_training_set(model, to=folder / "other", engine=engine, **options)
    assert (again.rows, again.parts, again.kept) == (70, 5, 4)
    assert bytes_of(folder / "other") == expected
    assert sw.write_training_set(model, to=folder / "other", engine=engine, **options).kept == 5
