"""The flights tables keep the file's facts and put its local clocks on one UTC line."""

import importlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"

ROWS = {"schedule": 336_776, "departures": 336_776, "arrivals": 336_776, "weather": 26_115}


@pytest.fixture(scope="module")
def ask(folder: Path) -> Callable[[str], list[Any]]:
    """One row of an SQL query over the four tables, its instants in UTC."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for table in ROWS:
        connection.read_parquet(str(folder / f"{table}.parquet")).create_view(table)

    def row(query: str) -> list[Any]:
        # Through Arrow: DuckDB alone would want pytz to make a datetime with a zone.
        (found,) = connection.sql(query).to_arrow_table().to_pylist()
        return list(found.values())

    return row


def utc(month: int, day: int, hour: int, minute: int) -> datetime:
    return datetime(2013, month, day, hour, minute, tzinfo=UTC)


def instants_of(flight_id: int) -> str:
    return (
        "SELECT asked_at, schedule.scheduled_at, scheduled_arrival, left_at, landed_at "
        "FROM schedule JOIN departures USING (flight_id) JOIN arrivals USING (flight_id) "
        f"WHERE flight_id = {flight_id}"
    )


def test_a_second_call_writes_nothing(tables: ModuleType, folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    assert tables.lay_out(folder) == ROWS

    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert sorted(before) == ["arrivals.parquet", "departures.parquet", "schedule.parquet", "weather.parquet"]


def test_every_instant_is_utc_in_microseconds(folder: Path) -> None:
    found = {
        (table, field.name): field.type
        for table in ROWS
        for field in pq.read_schema(folder / f"{table}.parquet")
        if field.name.endswith("_at") or field.name == "scheduled_arrival"
    }

    assert len(found) == 8
    assert set(found.values()) == {pa.timestamp("us", tz="UTC")}


def test_the_schedule_says_only_what_the_timetable_says(folder: Path) -> None:
    schema = pq.read_schema(folder / "schedule.parquet")

    assert schema.names == [
        *("flight_id", "asked_at", "scheduled_at", "scheduled_arrival", "carrier", "flight", "tailnum"),
        *("origin", "dest", "distance", "seats", "year_built"),
    ]
    assert schema.field("flight_id").type == pa.int64()
    assert {schema.field(name).type for name in ("seats", "year_built")} == {pa.int32()}


def test_the_schedule_is_sorted_by_when_it_was_asked(folder: Path) -> None:
    table = pq.read_table(folder / "schedule.parquet", columns=["asked_at", "flight_id"])

    assert table.equals(table.sort_by([("asked_at", "ascending"), ("flight_id", "ascending")]))


# The instants of these three were worked out by hand: New York is UTC-5 in winter and UTC-4 in summer.
def test_houston_in_winter_is_six_hours_behind_utc(ask: Callable[[str], list[Any]]) -> None:
    # 05:15 in New York, two minutes late; 08:19 in Houston, eleven minutes late.
    found = ask(instants_of(0))

    assert found == [
        utc(1, 1, 8, 15),
        utc(1, 1, 10, 15),
        utc(1, 1, 14, 19),
        utc(1, 1, 10, 17),
        utc(1, 1, 14, 30),
    ]


def test_san_juan_has_no_summer_time_and_midnight_is_crossed(ask: Callable[[str], list[Any]]) -> None:
    # 23:59 in New York (UTC-4), 43 minutes late; 03:44 in San Juan (UTC-4), landed at 04:25.
    found = ask(instants_of(254904))

    assert found == [utc(7, 7, 1, 59), utc(7, 7, 3, 59), utc(7, 7, 7, 44), utc(7, 7, 4, 42), utc(7, 7, 8, 25)]


def test_honolulu_on_the_day_summer_time_begins(ask: Callable[[str], list[Any]]) -> None:
    # 10 March: 10:00 in New York is now UTC-4, one minute late.
    # 15:30 in Honolulu (UTC-10), sixteen minutes early.
    found = ask(instants_of(144751))

    assert found == [
        utc(3, 10, 12, 0),
        utc(3, 10, 14, 0),
        utc(3, 11, 1, 30),
        utc(3, 10, 14, 1),
        utc(3, 11, 1, 14),
    ]


def test_a_day_that_loses_an_hour_begins_at_five_and_ends_at_four(ask: Callable[[str], list[Any]]) -> None:
    found = ask(
        "SELECT min(scheduled_at), max(scheduled_at) < '2013-03-11 04:00+00', count(*) "
        "FROM schedule WHERE timezone('America/New_York', scheduled_at)::DATE = '2013-03-10'"
    )

    assert found == [utc(3, 10, 9, 0), True, 908]


def test_the_hour_lived_twice_is_resolved_by_the_delay(ask: Callable[[str], list[Any]]) -> None:
    # JFK-LAX on 2 November, due 20:15 in Los Angeles (UTC-7), 299 minutes late: 01:14, the first of two.
    found = ask("SELECT landed_at, arr_delay FROM arrivals WHERE flight_id = 57551")

    assert found == [utc(11, 3, 8, 14), 299]


def test_a_flight_lands_after_it_left(ask: Callable[[str], list[Any]]) -> None:
    both = (
        "FROM departures JOIN arrivals USING (flight_id) WHERE landed_at IS NOT NULL AND left_at IS NOT NULL"
    )

    assert ask(f"SELECT count(*), bool_and(landed_at > left_at) {both}") == [328_063, True]
    assert ask(f"SELECT bool_and(landed_at >= left_at + to_minutes(air_time)) {both}") == [True]
    assert ask(f"SELECT max(landed_at - left_at) < INTERVAL 24 HOURS {both}") == [True]


def test_nulls_are_the_cancelled_the_lost_and_the_diverted(ask: Callable[[str], list[Any]]) -> None:
    assert ask(
        "SELECT count(*) - count(scheduled_at), count(*) - count(scheduled_arrival) FROM schedule"
    ) == [0, 0]
    assert ask("SELECT count(*) - count(left_at), count(*) - count(dep_delay) FROM departures") == [
        8_255,
        8_255,
    ]
    assert ask("SELECT count(*) - count(landed_at) FROM arrivals") == [8_255 + 458]
    assert ask("SELECT count(*) FROM arrivals WHERE landed_at IS NOT NULL AND arr_delay IS NULL") == [717]


def test_the_weather_is_one_row_an_hour_and_airport(ask: Callable[[str], list[Any]]) -> None:
    found = ask(
        "SELECT count(DISTINCT (origin, observed_at)), min(observed_at), count(DISTINCT origin) FROM weather"
    )

    assert found == [ROWS["weather"], utc(1, 1, 6, 0), 3]


def test_the_demo_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    # what it calls by name is there; the whole of it is `make demo`
    monkeypatch.syspath_prepend(str(FLIGHTS))

    assert importlib.import_module("demo").UNTIL == 1_380_600_000_000_000
