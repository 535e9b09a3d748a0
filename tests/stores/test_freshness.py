"""A snapshot knows when each source's latest row became readable: from files, from commits, after a rebuild."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import sameworld as sw
from sameworld.asof.plan import groupings_of
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.stores.online import OnlineStore

SECOND = 1_000_000
INSTANT = pa.timestamp("us", tz="UTC")
CUTOVER = 1_700_000_000 * SECOND


class FakeClock:
    def __init__(self, time: int) -> None:
        self.time = time

    def now(self) -> int:
        return self.time


def source(name: str, available: list[int]) -> sw.Source:
    rows = pa.table(
        {
            "user": pa.array(["u"] * len(available), pa.string()),
            "t": pa.array([CUTOVER - 90 * SECOND] * len(available), INSTANT),
            "seen_at": pa.array(available, INSTANT),
        }
    )
    return sw.Source(name, rows, event_time="t", available_at="seen_at")


# One has rows that were readable 5 and 60 seconds before the cutover, and one that was not yet; the other never had any.
CLICKS = source("clicks", [CUTOVER - 60 * SECOND, CUTOVER - 5 * SECOND, CUTOVER + 5 * SECOND])
ORDERS = source("orders", [])
CLOCK = FakeClock(CUTOVER + SECOND)


@contextmanager
def store(folder: Path, *, replay: bool = False) -> Iterator[OnlineStore]:
    engine = DuckDBEngine()
    schemas = {s.content: engine.describe(s.data, s.name) for s in (CLICKS, ORDERS)}
    groupings = groupings_of([CLICKS.by("user").count(), ORDERS.by("user").count()])
    opened = OnlineStore(folder, groupings, schemas, durability="process", replay=replay, clock=CLOCK)
    try:
        opened.fill(engine, cutover=CUTOVER if not (folder / "cutover").exists() else None)
        yield opened
    finally:
        opened.close()


def latest(opened: OnlineStore) -> dict[str, int]:
    names = {CLICKS.content: "clicks", ORDERS.content: "orders"}
    with opened.snapshot() as snapshot:
        return {names[content]: at for content, at in snapshot.latest().items()}


def tell(opened: OnlineStore, name: str, *available: int) -> None:
    events: list[dict[str, Any]] = [
        {"user": "u", "t": f"{np.datetime64(at, 'us')}Z", "seen_at": f"{np.datetime64(at, 'us')}Z"}
        for at in available
    ]
    key = f"{name} {available} {CLOCK.time}"
    opened.commit([opened.prepare(name, key, json.dumps(events).encode())])


def test_it_is_that_of_the_latest_row_of_the_files_up_to_the_cutover_and_of_the_last_commit_after_it(
    tmp_path: Path,
) -> None:
    with store(tmp_path) as opened:
        assert latest(opened) == {"clicks": CUTOVER - 5 * SECOND}
        CLOCK.time = CUTOVER + 10 * SECOND
        tell(opened, "orders", CUTOVER - 3 * SECOND)  # live, the commit decides
        known = {"clicks": CUTOVER - 5 * SECOND, "orders": CUTOVER + 10 * SECOND}
        assert latest(opened) == known
        with opened.snapshot() as before:
            CLOCK.time = CUTOVER + 20 * SECOND
            tell(opened, "clicks", CUTOVER)
            assert before.latest()[CLICKS.content] == CUTOVER - 5 * SECOND
        assert latest(opened) == known | {"clicks": CUTOVER + 20 * SECOND}
    # The index is made again from the files and the log, and knows the same.
    shutil.rmtree(tmp_path / "index")
    with store(tmp_path) as opened:
        assert latest(opened) == known | {"clicks": CUTOVER + 20 * SECOND}


def test_a_delivery_without_rows_says_that_the_feed_is_alive(tmp_path: Path) -> None:
    with store(tmp_path) as opened:
        CLOCK.time = CUTOVER + 30 * SECOND
        tell(opened, "clicks")
        assert latest(opened) == {"clicks": CUTOVER + 30 * SECOND}


def test_in_a_replay_it_is_what_the_rows_say_themselves(tmp_path: Path) -> None:
    with store(tmp_path, replay=True) as opened:
        tell(opened, "clicks", CUTOVER + SECOND, CUTOVER + 3 * SECOND, CUTOVER + 2 * SECOND)
        assert latest(opened) == {"clicks": CUTOVER + 3 * SECOND}
        tell(opened, "orders")
        assert latest(opened) == {"clicks": CUTOVER + 3 * SECOND}
