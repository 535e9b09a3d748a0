"""Tables whose values were really revised, or really came late, give what a plain recount of them gives.

- cdc_covid_asof (Apache-2.0; US CDC data): two weekly series, every vintage in full.
- dengue_puerto_rico (MIT; the package NobBS): cases by week of onset and week of report.
- usgs_earthquakes (US public domain): events with the time of their last revision.
"""

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import sameworld as sw

DAY = 86_400_000_000
INSTANT = pa.timestamp("us", tz="UTC")


def instants(microseconds: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(microseconds, np.int64), pa.int64()).cast(INSTANT)


def query(text: str, **tables: pa.Table) -> pa.Table:
    with duckdb.connect(config={"threads": 2}) as con:
        con.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            con.register(name, table)
        return con.sql(text).to_arrow_table()


def asked(features: dict[str, Any], moments: pa.Table) -> dict[str, list[Any]]:
    """Give every feature of moments whose time of asking is `t`, in their order."""
    made = sw.training_set(features, moments=sw.Moments(moments, at="t"))
    return {name: made[name].to_pylist() for name in features}


# COVID: a cell is the value of one week in one place; its vintages are its versions.

CELL = "concat_ws('|', target, location, target_end_date) AS cell"
VINTAGES = 84
CHANGED = 31_583  # rows that say something new of their cell, its first value included
SERIES_VINTAGES = 7_268
# Cells of vintages that have another value when later revisions do not count.
TOO_LATE = {"7d": 262_682, "70d": 86_135}


@pytest.fixture(scope="module")
def covid(real_data: Path) -> pa.Table:
    """All rows: which series and place (key), which week (cell, ended), in which vintage (known), with what value."""
    path = real_data / "cdc_covid_asof" / "time_series.parquet"
    return query(
        f"SELECT {CELL}, target || '|' || location AS series, target_end_date::TIMESTAMP AT TIME ZONE 'UTC' AS ended, "
        f"as_of::TIMESTAMP AT TIME ZONE 'UTC' AS known, target, observation FROM read_parquet('{path}')"
    )


def covid_source(rows: pa.Table, **options: Any) -> sw.Source:
    return sw.Source("cells", rows, event_time="ended", available_at="known", id="cell", **options)


def changed_only(rows: pa.Table) -> pa.Table:
    """Leave out what only repeats what the vintage before said of the cell."""
    before = "lag(observation) OVER (PARTITION BY cell ORDER BY known)"
    return query(f"SELECT * FROM rows QUALIFY {before} IS DISTINCT FROM observation", rows=rows)


def test_the_vintages_are_what_their_readme_says(covid: pa.Table) -> None:
    found = query(
        "SELECT count(*), count(DISTINCT cell), (SELECT count(*) FROM (SELECT cell FROM rows GROUP BY cell HAVING count(DISTINCT observation) > 1)), "
        "count(DISTINCT known), count(DISTINCT (cell, known)), count(observation), count(*) FILTER (known <= ended) FROM rows",
        rows=covid,
    )
    assert list(found.to_pylist()[0].values()) == [702_878, 15_485, 7_096, VINTAGES, 702_878, 702_878, 0]


def test_a_cell_never_leaves_the_vintages_of_its_series(covid: pa.Table) -> None:
    # So that no deletion is needed. A series as a whole is not in every vintage: visits to emergency departments begin 30 vintages after admissions.
    found = query(
        "WITH vintages AS (SELECT target, known, row_number() OVER (PARTITION BY target ORDER BY known) AS number FROM (SELECT DISTINCT target, known FROM rows)), "
        "cells AS (SELECT target, cell, count(*) AS times, min(number) AS first, max(number) AS last FROM rows JOIN vintages USING (target, known) GROUP BY ALL) "
        "SELECT target, max(last) AS vintages, count(*) FILTER (last - first + 1 <> times) AS holes, count(*) FILTER (last < (SELECT max(number) FROM vintages v WHERE v.target = cells.target)) AS gone "
        "FROM cells GROUP BY target ORDER BY target",
        rows=covid,
    )
    assert found.drop_columns("target").to_pylist() == [
        {"vintages": 84, "holes": 0, "gone": 0},
        {"vintages": 55, "holes": 0, "gone": 0},
    ]


@pytest.mark.parametrize("rows", ["all", "changed"])
def test_every_cell_of_every_vintage_is_known_from_just_after_it(covid: pa.Table, rows: str) -> None:
    table = covid if rows == "all" else changed_only(covid)
    assert table.num_rows == (702_878 if rows == "all" else CHANGED)
    cells = covid_source(table)
    # asked of each cell that a vintage has, a microsecond after the vintage and at its very instant
    order = query("SELECT cell, epoch_us(known) AS known, observation FROM rows", rows=covid)
    known = order["known"].to_numpy()
    moments = pa.table({"cell": order["cell"], "t": instants(known + 1)})
    made = asked({"value": cells.by("cell").last("observation"), "n": cells.by("cell").count()}, moments)
    assert made["value"] == order["observation"].to_pylist()
    assert set(made["n"]) == {1}


def test_at_the_instant_of_a_vintage_the_one_before_is_known(covid: pa.Table) -> None:
    cells = covid_source(changed_only(covid))
    before = query(
        "SELECT cell, epoch_us(known) AS known, lag(observation) OVER (PARTITION BY cell ORDER BY known) AS observation FROM rows",
        rows=covid,
    )
    moments = pa.table({"cell": before["cell"], "t": instants(before["known"].to_numpy())})
    made = asked({"value": cells.by("cell").last("observation")}, moments)
    assert made["value"] == before["observation"].to_pylist()


def test_the_last_value_and_a_sum_of_weeks_of_every_series_are_the_vintages_own(covid: pa.Table) -> None:
    cells = covid_source(changed_only(covid))
    # the vintage's own table, summed without sameworld: sums of a few floats, so exactly and rounded once
    own = query(
        "SELECT series, epoch_us(known) AS known, max_by(observation, ended) AS last, "
        "list(observation) FILTER (epoch_us(ended) >= epoch_us(known) + 1 - 28 * 86400000000) AS weeks, count(*) AS cells FROM rows GROUP BY series, known",
        rows=covid,
    )
    moments = pa.table({"series": own["series"], "t": instants(own["known"].to_numpy() + 1)})
    by = cells.by("series")
    made = asked(
        {
            "last": by.last("observation"),
            "weeks": by.sum("observation", over="28d"),
            "cells": by.count(),
        },
        moments,
    )
    assert own.num_rows == SERIES_VINTAGES
    assert made["last"] == own["last"].to_pylist()
    assert made["weeks"] == [math.fsum(weeks) if weeks else None for weeks in own["weeks"].to_pylist()]
    assert made["cells"] == own["cells"].to_pylist()


@pytest.mark.parametrize("within", ["7d", "70d"])
def test_revisions_count_within_a_time_of_the_first_value_only(covid: pa.Table, within: str) -> None:
    cells = covid_source(changed_only(covid), corrections_within=within)
    limit = int(within.removesuffix("d")) * DAY
    order = query(
        "SELECT cell, epoch_us(known) AS known, observation FROM rows ORDER BY cell, known", rows=covid
    )
    cell, known = order["cell"].to_numpy(), order["known"].to_numpy()
    value = order["observation"].to_numpy()
    # plainly: go through each cell's vintages in order and stop taking values when it has closed
    wanted, first, current = np.empty(len(value)), 0, 0.0
    for i in range(len(value)):
        if i == 0 or cell[i] != cell[i - 1]:
            first = known[i]
        if known[i] < first + limit:
            current = value[i]
        wanted[i] = current
    made = asked(
        {"value": cells.by("cell").last("observation")},
        pa.table({"cell": order["cell"], "t": instants(known + 1)}),
    )
    assert made["value"] == wanted.tolist()
    assert int((wanted != value).sum()) == TOO_LATE[within]


# Dengue: one row a case, reported weeks after its onset; nothing is revised.


def test_cases_by_report_week_equal_a_recount(real_data: Path) -> None:
    path = real_data / "dengue_puerto_rico" / "denguedat.parquet"
    rows = query(
        "SELECT onset_week::TIMESTAMP AT TIME ZONE 'UTC' AS onset, report_week::TIMESTAMP AT TIME ZONE 'UTC' AS reported, gender "
        f"FROM read_parquet('{path}')"
    )
    cases = sw.Source("cases", rows, event_time="onset", available_at="reported")
    onset, reported = (rows[name].cast(pa.int64()).to_numpy() for name in ("onset", "reported"))
    genders = rows["gender"].to_numpy(zero_copy_only=False)
    weeks = np.unique(reported)
    # at the very instant of each report week, just after it, and between two
    at = np.concatenate([weeks, weeks + 1, weeks + 3 * DAY])
    moments = pa.table(
        {
            "gender": np.repeat(["Female", "Male"], len(at)),
            "t": instants(np.tile(at, 2)),
        }
    )
    windows = {"7d": 7, "28d": 28, "364d": 364}
    by = cases.by("gender")
    made = sw.training_set(
        {"cases": by.count(over=list(windows)), "ever": by.count()}, moments=sw.Moments(moments, at="t")
    )
    assert rows.num_rows == 52_987
    for place, gender in enumerate(("Female", "Male")):
        own = genders == gender
        happened, known = onset[own], reported[own]
        part = slice(place * len(at), (place + 1) * len(at))
        for name, days in {**{f"cases_{w}": d for w, d in windows.items()}, "ever": None}.items():
            got = made[name].to_numpy()[part]
            wanted = [
                np.count_nonzero(
                    (known < t) & (happened < t) & (True if days is None else happened >= t - days * DAY)
                )
                for t in at
            ]
            assert np.array_equal(got, wanted), (gender, name)


# Earthquakes: only the last revision of each is there, so it is readable from that revision on.


@pytest.mark.parametrize("key", ["net", "magType", "size"])
def test_earthquakes_known_by_their_last_revision_equal_a_recount(real_data: Path, key: str) -> None:
    path = real_data / "usgs_earthquakes" / "events.parquet"
    rows = query(
        f"SELECT id, time, updated, net, magType, floor(mag)::BIGINT AS size, mag FROM read_parquet('{path}')"
    )
    quakes = sw.Source("quakes", rows, event_time="time", available_at="updated", id="id")
    time, updated = (rows[name].cast(pa.int64()).to_numpy() for name in ("time", "updated"))
    mag = rows["mag"].to_numpy()
    values, codes = np.unique(rows[key].to_numpy(zero_copy_only=False), return_inverse=True)
    # at the instants of real revisions and events, where strictly before matters, and a microsecond after them
    chosen = np.random.default_rng(7).choice(np.concatenate([time, updated]), 150, replace=False)
    at = np.unique(np.concatenate([chosen, chosen + 1]))
    moments = pa.table({key: np.repeat(values, len(at)), "t": instants(np.tile(at, len(values)))})
    by = quakes.by(key)
    made = sw.training_set(
        {"quakes": by.count(over=["1d", "7d"]), "largest": by.max("mag", over="7d"), "ever": by.count()},
        moments=sw.Moments(moments, at="t"),
    )
    assert rows.num_rows == 18_875
    for code in range(len(values)):
        own = codes == code
        part = slice(code * len(at), (code + 1) * len(at))
        readable = (time[own] < at[:, None]) & (updated[own] < at[:, None])
        day, week = (readable & (time[own] >= at[:, None] - days * DAY) for days in (1, 7))
        assert np.array_equal(made["ever"].to_numpy()[part], readable.sum(1))
        assert np.array_equal(made["quakes_1d"].to_numpy()[part], day.sum(1))
        assert np.array_equal(made["quakes_7d"].to_numpy()[part], week.sum(1))
        largest = [max(mag[own][inside], default=None) for inside in week]
        assert made["largest"].to_pylist()[part] == largest
