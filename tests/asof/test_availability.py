"""When a row becomes readable: the four ways to say it, and the clocks of naive timestamps."""

import datetime as dt
import random
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest

import sameworld as sw
from sameworld.asof.rows import available_sql
from sameworld.errors import DefinitionError

DAY = dt.timedelta(days=1)
MICROSECOND = dt.timedelta(microseconds=1)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def micros(moment: dt.datetime) -> int:
    return (moment - utc("1970-01-01")) // MICROSECOND


@pytest.fixture
def readable_from(ask):
    """Give a function that says whether a row of this event time is first readable just after this time."""

    def check(
        event: dt.datetime | None, available: dt.datetime, *, column: dt.datetime | None = None, **options
    ) -> bool:
        rows = [{"k": "ann", "e": event, "a": column, "id": None, "v": None, "d": None, "x": 1.0}]
        before, after = ask(
            rows,
            lambda source: source.by("k").count(over=[sw.ahead("200w")]),
            [("ann", micros(available)), ("ann", micros(available) + 1)],
            **options,
        )
        # The window that looks ahead does not see events before the moment: use all history for those.
        past = ask(
            rows,
            lambda source: source.by("k").count(),
            [("ann", micros(available)), ("ann", micros(available) + 1)],
            **options,
        )
        return (before, past[0]) == (0, 0) and max(after, past[1]) == 1

    return check


def test_a_delay_counts_from_the_event(readable_from) -> None:
    assert readable_from(utc("2024-01-05T10:00"), utc("2024-01-05T10:10"), available_at=sw.delay("10m"))


def test_a_delay_of_nothing_is_at_event_time(readable_from) -> None:
    for available in (sw.delay("0s"), sw.at_event_time()):
        assert readable_from(utc("2024-01-05T10:00"), utc("2024-01-05T10:00"), available_at=available)


@pytest.mark.parametrize(
    ("event", "lag", "published"),
    [
        ("2024-01-05T05:59:59.999999", "0s", "2024-01-05T06:00"),
        ("2024-01-05T06:00", "0s", "2024-01-05T06:00"),
        ("2024-01-05T06:00:00.000001", "0s", "2024-01-06T06:00"),
        ("2024-01-05T00:00", "0s", "2024-01-05T06:00"),
        ("2024-01-05T23:59:59.999999", "0s", "2024-01-06T06:00"),
        ("2024-01-05T06:00", "2d", "2024-01-07T06:00"),
        ("2024-01-05T06:00:00.000001", "2d", "2024-01-08T06:00"),
        ("2024-01-05T03:00", "3h", "2024-01-05T06:00"),
        ("2024-01-05T03:00", "3h1us", "2024-01-06T06:00"),
        ("2024-02-28T07:00", "0s", "2024-02-29T06:00"),
        ("1969-12-31T06:00", "0s", "1969-12-31T06:00"),
        ("1969-12-30T06:00:00.000001", "0s", "1969-12-31T06:00"),
        ("1960-07-01T05:00", "1d", "1960-07-02T06:00"),
    ],
)
def test_a_daily_batch_has_what_was_ready_by_then(
    readable_from, event: str, lag: str, published: str
) -> None:
    assert readable_from(utc(event), utc(published), available_at=sw.daily("06:00", lag=lag))


@pytest.mark.parametrize("at", ["00:00", "23:59"])
def test_a_daily_batch_may_come_at_any_time_of_day(readable_from, at: str) -> None:
    hour, minute = map(int, at.split(":"))
    published = utc("2024-01-06").replace(hour=hour, minute=minute)
    assert readable_from(published, published, available_at=sw.daily(at))
    assert readable_from(published - DAY + MICROSECOND, published, available_at=sw.daily(at))


def lands(event: int, lag: int, at: str, zone: str) -> int:
    """When a batch on the clocks of a zone has a row: in plain Python, trying every day around it. All in microseconds."""
    clocks, ready = ZoneInfo(zone), event + lag
    hour, minute = map(int, at.split(":"))
    around = (utc("1970-01-01") + dt.timedelta(microseconds=ready)).replace(hour=hour, minute=minute)
    landings = []
    for days in range(-3, 4):
        shown = (around + days * DAY).replace(second=0, microsecond=0, tzinfo=clocks)
        # of a time that clocks show twice the later one; of one that they skip what they would have shown before it
        landings += [max(micros(shown.replace(fold=fold)) for fold in (0, 1))]
    return min(landing for landing in landings if landing >= ready)


@pytest.mark.parametrize(
    ("event", "lag", "published"),
    [
        ("2024-03-09T10:59:59", "0s", "2024-03-09T11:00"),  # 06:00 in winter
        ("2024-03-09T11:00:00.000001", "0s", "2024-03-10T10:00"),  # a day of 23 hours later
        ("2024-03-10T10:00", "0s", "2024-03-10T10:00"),
        ("2024-03-10T10:00:00.000001", "0s", "2024-03-11T10:00"),
        ("2024-11-02T10:00:00.000001", "0s", "2024-11-03T11:00"),  # one of 25
        ("2024-11-02T10:00:00.000001", "1d", "2024-11-03T11:00"),  # a lag of a day is 24 hours, always
        ("2024-11-02T11:00:00.000001", "1d", "2024-11-04T11:00"),
        ("2024-11-02T11:00", "1d", "2024-11-03T11:00"),
    ],
)
def test_a_daily_batch_may_come_by_the_clocks_of_a_zone(
    readable_from, event: str, lag: str, published: str
) -> None:
    batch = sw.daily("06:00", lag=lag, timezone="America/New_York")
    assert readable_from(utc(event), utc(published), available_at=batch)


@pytest.mark.parametrize(
    ("event", "at", "published"),
    [
        ("2024-03-10T06:00", "02:30", "2024-03-10T07:30"),  # skipped by the clocks
        ("2024-03-10T07:30:00.000001", "02:30", "2024-03-11T06:30"),
        ("2024-11-03T05:00", "01:30", "2024-11-03T06:30"),  # shown twice by the clocks: the second time
        ("2024-11-03T05:30:00.000001", "01:30", "2024-11-03T06:30"),
        ("2024-11-03T06:30:00.000001", "01:30", "2024-11-04T06:30"),
    ],
)
def test_a_batch_at_a_time_that_clocks_skip_or_repeat_comes_once(
    readable_from, event: str, at: str, published: str
) -> None:
    batch = sw.daily(at, timezone="America/New_York")
    assert readable_from(utc(event), utc(published), available_at=batch)


# Changes by half an hour and by two hours, at midnight, a minute after it, and of a whole day; south of the equator; none.
ZONES = {
    "America/New_York": 2024,
    "Europe/Berlin": 2024,
    "Australia/Lord_Howe": 2024,
    "Antarctica/Troll": 2024,
    "America/Havana": 2024,
    "America/Goose_Bay": 2010,
    "Pacific/Apia": 2011,
    "Asia/Kathmandu": 2024,
}


@pytest.mark.parametrize(("zone", "year"), ZONES.items())
def test_a_batch_by_clocks_comes_when_plain_python_says(zone: str, year: int) -> None:
    start, end = micros(utc(f"{year}-01-01")), micros(utc(f"{year + 1}-01-02"))
    near = [
        hour
        for hour in range(start, end, 3_600_000_000)
        if offset(hour, zone) != offset(hour + 3_600_000_000, zone)
    ]
    chance = random.Random(year)
    events = [hour + chance.randrange(-2, 3) * 1_800_000_000 + late for hour in near for late in range(-1, 2)]
    events += [hour + chance.randrange(-120, 120) * 1_000_000 for hour in near for _ in range(60)]
    events += [hour + chance.randrange(-86_400_000_000, 86_400_000_000) for hour in near for _ in range(60)]
    events += [chance.randrange(start, end) for _ in range(60)]
    table = pa.table({"e": pa.array(events, pa.timestamp("us", tz="UTC"))})
    engine = duckdb.connect()
    engine.register("rows", table)
    for at in ("00:00", "00:30", "02:15", "06:00", "23:30"):
        source = sw.Source("rows", table, event_time="e", available_at=sw.daily(at, lag="1m", timezone=zone))
        query = f"SELECT {available_sql(source, {})} FROM (SELECT epoch_us(e) AS __event_us FROM rows)"
        got = [when for (when,) in engine.execute(query).fetchall()]
        assert got == [lands(event, 60_000_000, at, zone) for event in events]


def offset(instant: int, zone: str) -> dt.timedelta | None:
    return (utc("1970-01-01") + instant * MICROSECOND).astimezone(ZoneInfo(zone)).utcoffset()


def test_a_zone_of_a_batch_is_one() -> None:
    with pytest.raises(DefinitionError, match="'Mars' is not a time zone"):
        sw.Source("rows", "f", event_time="e", available_at=sw.daily("06:00", timezone="Mars"))


def test_a_column_says_it_row_by_row(readable_from) -> None:
    assert readable_from(
        utc("2024-01-05T10:00"), utc("2024-01-09T11:12:13.141516"), column=utc("2024-01-09T11:12:13.141516")
    )


def test_a_row_may_be_readable_before_its_event(readable_from) -> None:
    assert readable_from(utc("2024-01-05T10:00"), utc("2024-01-02T00:00"), column=utc("2024-01-02T00:00"))


def test_a_row_without_its_available_time_is_never_readable(ask) -> None:
    rows = [{"k": "ann", "e": utc("2024-01-05"), "a": None}]
    assert ask(rows, lambda source: source.by("k").count(), [("ann", micros(utc("2200-01-01")))]) == [0]


@pytest.mark.parametrize("available", [sw.delay("1h"), sw.daily("06:00"), sw.at_event_time(), "a"])
def test_a_row_without_its_event_time_is_in_no_window(ask, available) -> None:
    rows = [{"k": "ann", "e": None, "a": utc("2024-01-05")}]
    assert ask(
        rows,
        lambda source: source.by("k").count(),
        [("ann", micros(utc("2200-01-01")))],
        available_at=available,
    ) == [0]


@pytest.mark.parametrize(
    ("clock", "instant"),
    [
        ("2013-07-01T12:00", "2013-07-01T16:00"),
        ("2013-12-01T12:00", "2013-12-01T17:00"),
        ("2013-03-10T01:59:59.999999", "2013-03-10T06:59:59.999999"),
        (
            "2013-03-10T02:30",
            "2013-03-10T07:30",
        ),  # skipped by the clocks: as if they had not been changed yet
        ("2013-03-10T03:00", "2013-03-10T07:00"),
        ("2013-11-03T00:59", "2013-11-03T04:59"),
        (
            "2013-11-03T01:30",
            "2013-11-03T06:30",
        ),  # shown twice by the clocks: the second time, so nothing is known early
        ("2013-11-03T02:00", "2013-11-03T07:00"),
    ],
)
def test_naive_timestamps_are_read_on_the_clocks_of_their_zone(ask, clock: str, instant: str) -> None:
    naive = pa.array([dt.datetime.fromisoformat(clock)], pa.timestamp("us"))
    table = pa.table({"k": ["ann"], "e": naive, "a": naive})
    moments = [("ann", micros(utc(instant)) + later) for later in (-1, 0, 1, 2)]
    options = {"timezone": "America/New_York"}
    assert ask(table, lambda source: source.by("k").count(), moments, **options) == [0, 0, 1, 1]
    ages = ask(table, lambda source: source.by("k").age(), moments, **options)
    assert ages == [None, None, 1e-6, 2e-6]


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ns"), pa.date32()])
def test_naive_timestamps_of_every_resolution_mean_the_same(ask, kind: pa.DataType) -> None:
    naive = pa.array([dt.datetime(2013, 7, 1)], pa.timestamp("us")).cast(kind)
    table = pa.table({"k": ["ann"], "e": naive})
    moments = [("ann", micros(utc("2013-07-01T04:00")) + later) for later in (0, 1)]
    given = ask(
        table,
        lambda source: source.by("k").count(),
        moments,
        available_at=sw.at_event_time(),
        timezone="America/New_York",
    )
    assert given == [0, 1]


def test_instants_of_every_zone_are_the_same_instants(ask) -> None:
    berlin = pa.array([utc("2024-01-05T10:00")], pa.timestamp("us", tz="Europe/Berlin"))
    table = pa.table({"k": ["ann"], "e": berlin, "a": berlin})
    moments = [("ann", micros(utc("2024-01-05T10:00")) + later) for later in (0, 1)]
    assert ask(table, lambda source: source.by("k").count(), moments) == [0, 1]
