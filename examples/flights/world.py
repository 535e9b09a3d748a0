"""The flights of New York in 2013: which will be late, asked two hours before they are scheduled to leave.

The rows become readable when they do in life: a departure delay when the flight has left, an arrival delay when it has landed, a weather report half an
hour after it was observed. A cancelled flight never leaves, so its row never becomes readable: its label is what `otherwise` says, once a day has passed.
"""

from pathlib import Path

from lightgbm import LGBMClassifier

import sameworld as sw

DATA = Path(__file__).parent / "data"
NEW_YORK = "America/New_York"

departures = sw.Source(
    "departures", str(DATA / "departures.parquet"), event_time="scheduled_at", available_at="left_at"
)
arrivals = sw.Source(
    "arrivals", str(DATA / "arrivals.parquet"), event_time="scheduled_at", available_at="landed_at"
)
weather = sw.Source(
    "weather", str(DATA / "weather.parquet"), event_time="observed_at", available_at=sw.delay("30m")
)

# The records name no aircraft for 2,512 flights, and every one of them was cancelled: "no aircraft" is written with hindsight, and no feature could
# tell that it is. Leaving them in would add 0.004 to every AUC.
schedule = sw.Moments(f"SELECT * FROM '{DATA}/schedule.parquet' WHERE tailnum IS NOT NULL", at="asked_at")

features = {
    "origin_delay": departures.by("origin").mean("dep_delay", over="3h"),
    "origin_departed": departures.by("origin").count(over="3h"),
    "carrier_delay": departures.by("carrier").mean("dep_delay", over="3h"),
    "carrier_arrival_delay": arrivals.by("carrier").mean("arr_delay", over=["3h", "1d"]),
    "dest_arrival_delay": arrivals.by("dest").mean("arr_delay", over="1d"),
    "tail_last_arrival_delay": arrivals.by("tailnum").last("arr_delay"),
    "tail_idle": arrivals.by("tailnum").age(),
    "wind": weather.by("origin").last("wind_speed", over="6h"),
    "visibility": weather.by("origin").min("visib", over="3h"),
    "carrier": sw.field("carrier").category(),
    "origin": sw.field("origin").category(),
    "dest": sw.field("dest").category(),
    "distance": sw.field("distance"),
    "hour": sw.field("scheduled_at").hour(timezone=NEW_YORK),
    "weekday": sw.field("scheduled_at").weekday(timezone=NEW_YORK),
}
late = sw.Label(arrivals.by("flight_id").last("arr_delay") > 15, within="24h", otherwise=True)

flight_delay = sw.Model(
    "flight-delay",
    moments=schedule,
    features=features,
    label=late,
    estimator=LGBMClassifier(n_estimators=120, learning_rate=0.1, num_leaves=31, min_child_samples=100),
    fallbacks=[sw.Rate(by="carrier"), sw.Constant(0.23)],
    service=sw.Service(deadline="500ms", p99="20ms", max_error_rate=0.001),
)
