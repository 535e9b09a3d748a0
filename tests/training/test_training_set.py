"""A training set is one row a moment, in the moments' order, in the world that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_world import HOUR, START, instants

import sameworld as sw
from sameworld.engines import kept
from sameworld.errors import DataError, DefinitionError, Problems


def visits(late: int = HOUR) -> sw.Source:
    """A visit every hour, each readable so long after it happened."""
    times = [START + i * HOUR for i in range(10)]
    rows = pa.table(
        {
            "user": ["ann", "bob"] * 5,
            "pages": list(range(10)),
            "at": instants(times),
            "seen": instants([t + late for t in times]),
        }
    )
    return sw.Source("visits", rows, event_time="at", available_at="seen")


def asked(*moments: tuple[str | None, int]) -> sw.Moments:
    rows = pa.table(
        {
            "user": pa.array([user for user, _ in moments], pa.string()),
            "asked_at": instants([START + t for _, t in moments]),
        }
    )
    return sw.Moments(rows, at="asked_at")


def test_rows_keep_the_moments_order_and_repeats() -> None:
    moments = asked(("bob", 9 * HOUR), ("ann", 1), ("nobody", 5 * HOUR), ("bob", 9 * HOUR), (None, 5 * HOUR))
    features: dict[str, Any] = {"count": visits().by("user").count(), "user": sw.field("user").category()}
    table = sw.training_set(features, moments=moments)
    assert table.column_names == ["asked_at", "count", "user"]
    assert table["asked_at"].equals(moments.data["asked_at"])
    assert table["user"].to_pylist() == ["bob", "ann", "nobody", "bob", None]
    counts = table["count"].to_pylist()
    # ann was seen at 1 h first, and bob's visits of 1, 3, 5 and 7 h an hour after each.
    assert counts[:4] == [4, 0, 0, 4]


def doubled(pages: Any) -> Any:
    return pages * 2


def test_kept_columns_in_many_blocks_give_the_same_training_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(visits().data, tmp_path / "visits.parquet")
    source = sw.Source("visits", "visits.parquet", event_time="at", available_at="seen")
    by = source.by("user")
    moments = asked(*[(user, hour * HOUR) for hour in range(12) for user in ("ann", "bob", None)])
    label = sw.Label(by.last("pages") > 5, within="2h", otherwise=False)
    features = {
        "pages": by.sum("pages", over=["5h", "1h"]),
        "last": by.last("pages").category(),
        "pages_ever": by.sum("pages"),
        "twice": sw.derive(doubled, "pages_ever"),
        "three": sw.derive(doubled, "pages_5h"),
    }
    asking: dict[str, Any] = {"moments": moments, "label": label, "folder": tmp_path}
    wanted = sw.training_set(features, **asking, cache=False)
    monkeypatch.setattr(kept, "BLOCK", 5)
    for _ in range(2):
        got = sw.training_set(features, **asking, cache=tmp_path / "cache")
        assert got.to_pylist() == wanted.to_pylist()
        assert got.schema == wanted.schema


def test_one_column_a_window_in_the_order_declared() -> None:
    features = {"pages": visits().by("user").sum("pages", over=["5h", "1h", "1d"])}
    table = sw.training_set(features, moments=asked(("ann", 9 * HOUR)))
    assert table.column_names == ["asked_at", "pages_5h", "pages_1h", "pages_1d"]
    assert table["pages_1d"].to_pylist() == [0 + 2 + 4 + 6]


def test_the_event_time_world_sees_what_was_not_readable_yet() -> None:
    features = {"count": visits(late=3 * HOUR).by("user").count(over="1d")}
    moments = asked(("ann", 4 * HOUR + 1))
    assert sw.training_set(features, moments=moments)["count"].to_pylist() == [1]
    assert sw.training_set(features, moments=moments, world="event_time")["count"].to_pylist() == [3]


def test_a_label_is_null_until_it_has_matured() -> None:
    source = visits(late=0)
    label = sw.Label(source.by("user").last("pages") > 4, within="2h", otherwise=False)
    moments = asked(("ann", 0), ("ann", 4 * HOUR), ("bob", 5 * HOUR), ("nobody", 0))
    features = {"count": source.by("user").count()}

    def labels(as_of: int) -> list[bool | None]:
        table = sw.training_set(features, moments=moments, label=label, as_of=START + as_of)
        return table["label"].to_pylist()

    assert labels(100 * HOUR) == [False, False, True, False]
    assert labels(7 * HOUR) == [False, False, None, False]
    assert labels(7 * HOUR + 1) == [False, False, True, False]
    assert labels(2 * HOUR) == [None] * 4


def test_without_otherwise_a_moment_whose_outcome_never_came_has_no_label() -> None:
    source = visits(late=0)
    label = sw.Label(source.by("user").last("pages"), within="2h")
    table = sw.training_set(
        {"count": source.by("user").count()}, moments=asked(("ann", 0), ("nobody", 0)), label=label
    )
    assert table["label"].to_pylist() == [0.0, None]


def test_no_moments_give_no_rows() -> None:
    table = sw.training_set({"count": visits().by("user").count()}, moments=asked())
    assert (table.num_rows, table.column_names) == (0, ["asked_at", "count"])


@pytest.mark.parametrize("query", ["{} -- end", "-- begin\n{}", "/* both */ ({}) -- end"])
def test_a_query_may_have_comments_and_parentheses(query: str) -> None:
    rows = "SELECT 'ann' AS user, make_timestamptz(1) AS at, make_timestamptz(2) AS seen"
    source = sw.Source("visits", query.format(rows), event_time="at", available_at="seen")
    features: dict[str, Any] = {"count": source.by("user").count()}
    assert sw.training_set(features, moments=asked(("ann", 0)))["count"].to_pylist() == [1]


def test_two_columns_of_one_name_in_the_moments_are_named() -> None:
    table = asked(("ann", 1)).data
    twice = table.append_column("user", table["user"])
    features: dict[str, Any] = {"count": visits().by("user").count()}
    with pytest.raises(DataError) as error:
        sw.training_set(features, moments=sw.Moments(twice, at="asked_at"))
    assert error.value.what == "The moments have 2 columns 'user'."


def test_without_moments_there_is_nothing_to_ask() -> None:
    with pytest.raises(DefinitionError) as caught:
        sw.training_set({"count": visits().by("user").count()})
    assert str(caught.value) == "A training set needs moments.\n  do: pass moments=sw.Moments(...)."


def test_all_problems_are_listed_at_once() -> None:
    source = visits()
    features: dict[str, Any] = {
        "sum": source.by("user").sum("page"),
        "by": source.by("usr").count(),
        "where": source.where("pges > 1").by("user").count(),
        "field": sw.field("usr"),
    }
    label = sw.Label(source.by("user").last("pagess") > 1, within="2h")
    with pytest.raises(Problems) as caught:
        sw.training_set(features, moments=asked(("ann", 0)), label=label)
    whats = [problem.what for problem in caught.value.problems]
    assert len(whats) >= 5
    for name in ("'page'", "'usr'", "pges", "'pagess'"):
        assert any(name in what for what in (p.text() for p in caught.value.problems)), name
    assert str(caught.value).startswith(f"The plan has {len(whats)} problems.\n1. ")
