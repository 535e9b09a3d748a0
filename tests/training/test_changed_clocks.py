"""On days on which clocks are changed, training sets, explanations and the command line mean the same instants as plain Python and the oracle."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from click.testing import CliRunner

import sameworld as sw
from sameworld.cli.main import main
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.model import Model
from sameworld.testing import oracle
from sameworld.training.world_file import load_world

ZONE = "America/New_York"
MINUTE, HOUR, DAY = 60_000_000, 3_600_000_000, 86_400_000_000
# Clocks skip 02:00 to 03:00 on the first and show 01:00 to 02:00 twice on the second.
DAYS = (datetime(2024, 3, 10), datetime(2024, 11, 3))
Histories = dict[tuple[str, str], list[oracle.Version]]  # way, shop -> rows
WORLD = f"""
import sameworld as sw

class Untrained:
    def fit(self, *_): ...
    def predict(self, *_): ...

ways = {{
    "column": "loaded",
    "delay": sw.delay("50m"),
    "clocks": sw.daily("01:30", lag="40m", timezone="{ZONE}"),
    "utc": sw.daily("06:30", lag="40m"),
}}
visits = {{
    name: sw.Source(f"visits_{{name}}", "visits.csv", event_time="entered", available_at=way, timezone="{ZONE}")
    for name, way in ways.items()
}}
features = {{"opens_" + part: getattr(sw.field("opens"), part)(timezone="{ZONE}") for part in ("hour", "minute_of_day", "weekday", "month")}}
for name, source in visits.items():
    of = source.by("shop")
    features[f"{{name}}_count"] = of.count(over=["1h", "1d"])
    features[f"{{name}}_soon"] = of.count(over=sw.ahead("2h"))
    features[f"{{name}}_age"] = of.age()
    features[f"{{name}}_last"] = of.last("amount", over="24h")
model = sw.Model(
    "visits",
    moments=sw.Moments("asked.csv", at="asked", timezone="{ZONE}"),
    features=features,
    label=sw.Label(visits["column"].by("shop").count() > 0, within="1h"),
    estimator=Untrained(),
)
"""


def instant(shown: datetime) -> int:
    """What a clock of the zone that shows this means: the later of two; what a skipped time would have been before the change."""
    both = [shown.replace(tzinfo=ZoneInfo(ZONE), fold=fold) for fold in (0, 1)]
    return max((moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for moment in both)


def landing(event: int, way: str, loaded: int) -> int:
    if way in ("column", "delay"):
        return loaded if way == "column" else event + 50 * MINUTE
    ready = event + 40 * MINUTE
    around = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ready)
    days = [
        datetime(around.year, around.month, around.day) + timedelta(days=number) for number in range(-2, 3)
    ]
    if way == "clocks":
        landings = [instant(day + timedelta(hours=1, minutes=30)) for day in days]
    else:
        landings = [int(day.replace(tzinfo=UTC).timestamp()) * 1_000_000 + 390 * MINUTE for day in days]
    return min(when for when in landings if when >= ready)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, datetime, datetime, int]]:
    """What clocks showed when somebody entered and when it was written; on both days, skipped and repeated times among them."""
    chance = random.Random(3)
    made = []
    for day in DAYS:
        for number in range(-44, 12):
            entered = day + timedelta(minutes=30 * number + chance.randrange(30))
            made.append((chance.choice("ab"), entered, entered + timedelta(minutes=chance.randrange(180))))
    return [(*row, amount) for amount, row in enumerate(made)]


@pytest.fixture(scope="module")
def asked() -> list[tuple[str, datetime]]:
    return [
        (shop, day + timedelta(minutes=30 * number))
        for day in DAYS
        for number in range(1, 13)
        for shop in "ab"
    ]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], asked: list[tuple[str, datetime]]
) -> Path:
    made = tmp_path_factory.mktemp("clocks")
    (made / "world.py").write_text(WORLD)
    tables = {
        "visits.csv": [("shop", "entered", "loaded", "amount"), *rows],
        "asked.csv": [("shop", "asked", "opens"), *((shop, shown, shown) for shop, shown in asked)],
    }
    for name, table in tables.items():
        with (made / name).open("w", newline="") as file:
            csv.writer(file).writerows(table)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_world(folder / "world.py").model(None)


@pytest.fixture(scope="module")
def histories(rows: list[Any]) -> Histories:
    return {
        (way, shop): [
            oracle.Version((of,), instant(entered), landing(instant(entered), way, instant(loaded)), amount)
            for of, entered, loaded, amount in rows
            if of == shop
        ]
        for way in ("column", "delay", "clocks", "utc")
        for shop in "ab"
    }


def expected(histories: Histories, name: str, shop: str, at: int) -> Iterator[tuple[str, Any]]:
    """What a feature's columns are at an instant: name -> value, by the oracle."""
    way, what = name.split("_")
    history = histories[way, shop]
    windows = {
        "count": {"_1h": (-HOUR, 0), "_1d": (-DAY, 0)},
        "soon": {"": (0, 2 * HOUR)},
        "age": {"": (None, 0)},
        "last": {"": (-DAY, 0)},
    }
    operation = "count" if what == "soon" else what
    for suffix, (start, end) in windows[what].items():
        yield name + suffix, oracle.value_at(history, operation, (shop,), at, start=start, end=end)


def test_a_training_set_over_changed_clocks_is_the_oracles(
    folder: Path, model: Model, histories: Histories, asked: list[tuple[str, datetime]]
) -> None:
    table = sw.training_set(model.features, moments=model.moments, folder=folder)
    assert table["asked"].cast(pa.int64()).to_pylist() == [instant(shown) for _, shown in asked]
    for row, (shop, shown) in zip(table.to_pylist(), asked, strict=True):
        here = datetime.fromtimestamp(instant(shown) / 1e6, ZoneInfo(ZONE))
        parts = [here.hour, here.hour * 60 + here.minute, here.weekday(), here.month]
        assert [row[f"opens_{part}"] for part in ("hour", "minute_of_day", "weekday", "month")] == parts
        for name, feature in model.features.items():
            if isinstance(feature, Aggregate):
                for column, value in expected(histories, name, shop, instant(shown)):
                    assert row[column] == value, (column, shop, shown)


def test_moments_given_as_instants_are_those_that_clocks_show(
    folder: Path, model: Model, asked: list[tuple[str, datetime]]
) -> None:
    shown = sw.training_set(model.features, moments=model.moments, folder=folder)
    at = pa.array([instant(when) for _, when in asked], pa.timestamp("us", tz="Europe/Berlin"))
    given = pa.table({"shop": [shop for shop, _ in asked], "asked": at, "opens": at})
    assert sw.training_set(model.features, moments=sw.Moments(given, at="asked"), folder=folder) == shown


@pytest.mark.parametrize("name", ["column_count", "clocks_last", "utc_age"])
@pytest.mark.parametrize(
    "at",
    [
        "2024-03-10T01:59:59-05:00",
        "2024-03-10T03:00:01-04:00",
        "2024-11-03T01:30:00.000001-04:00",
        "2024-11-03T01:30:00.000001-05:00",
        "2024-11-03T06:30:00.000001Z",
    ],
)
def test_an_explanation_on_such_a_day_is_of_the_instant_that_is_named(
    folder: Path, histories: Histories, name: str, at: str
) -> None:
    command = ["explain", "visits", name, "--entity", "shop=a", "--at", at, "--json"]
    told = CliRunner().invoke(main, [*command, "--world", str(folder / "world.py")])
    assert told.exit_code == 0, told.output
    moment = datetime.fromisoformat(at)
    instant_asked = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    answer = json.loads(told.stdout)
    assert datetime.fromisoformat(answer["at"]) == moment
    columns = {column["column"]: column["value"] for column in answer["columns"]}
    assert columns == dict(expected(histories, name, "a", instant_asked))


def test_a_moment_that_clocks_show_twice_has_to_say_which(folder: Path) -> None:
    command = ["explain", "visits", "utc_age", "--entity", "shop=a", "--at", "2024-11-03T01:30:00"]
    told = CliRunner().invoke(main, [*command, "--world", str(folder / "world.py")])
    assert told.exit_code == 1
    assert "--at has no zone." in told.output
