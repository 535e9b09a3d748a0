"""Tables in a bundle are looked up by the value of a request's field, whatever its type."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lightgbm import LGBMClassifier
from small_world import DAY, HOUR, UNTIL, instants

import sameworld as sw
from sameworld.server.requests import RequestReader
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.fit import train
from sameworld.training.rates import rate_table

FIRST = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
DAYS = [FIRST, FIRST + datetime.timedelta(days=1), None]
# Field -> a column of three values, and the same as a caller sends them; the last is none that could be learnt from.
KINDS: dict[str, tuple[pa.Array, list[Any]]] = {
    "instant": (
        pa.array(DAYS, pa.timestamp("us", tz="UTC")),
        ["2024-01-01T00:00:00Z", "2024-01-02T01:00:00+01:00", None],
    ),
    "naive": (
        pa.array([day and day.replace(tzinfo=None) for day in DAYS], pa.timestamp("ms")),
        ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", None],
    ),
    "date": (
        pa.array([day and day.date() for day in DAYS], pa.date32()),
        ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z", None],
    ),
    "decimal": (pa.array([Decimal("0.10"), Decimal("7.25"), None], pa.decimal128(9, 2)), [0.1, 7.25, None]),
    "flag": (pa.array([False, True, None]), [False, True, None]),
    "small": (pa.array([0, 1, None], pa.int8()), [0, 1, None]),
    "number": (pa.array([2**62, -(2**62), None]), [2**62, -(2**62), None]),
    "float": (pa.array([-0.0, 0.5, float("nan")]), [0, 0.5, None]),
    "text": (pa.array(["", "Å", None]), ["", "Å", None]),
}
KEYS = ["instant", "flag", "small", "number", "text"]
"""The kinds by which rows can be grouped, and so counted."""
CHANCES = [0.0, 0.75, 1.0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model with a rate and a popularity by every kind of field; read again from its registry."""
    folder = tmp_path_factory.mktemp("kinds")
    place = np.arange(120) % 3
    at = UNTIL - 20 * DAY + np.arange(120) * HOUR
    bought = (np.arange(120) // 3) % 4 < 4 * np.array(CHANCES)[place]
    fields = {name: column.take(pa.array(place)) for name, (column, _) in KINDS.items()}
    rows = {"at": instants(at), "item": np.where(bought, "a", "b"), **fields}
    asked = {**rows, "ask": np.arange(120).astype(str), "price": np.arange(120.0)}
    pq.write_table(pa.table(rows), folder / "sales.parquet")
    pq.write_table(pa.table(asked), folder / "asked.parquet")
    paid = {"ask": asked["ask"], "paid_at": instants(at + 1), "paid": bought.astype(float)}
    pq.write_table(pa.table(paid), folder / "paid.parquet")
    sales = sw.Source("sales", str(folder / "sales.parquet"), event_time="at", available_at=sw.at_event_time(), timezone="UTC")  # fmt: skip
    outcomes = sw.Source("paid", str(folder / "paid.parquet"), event_time="paid_at", available_at=sw.at_event_time())  # fmt: skip
    model = sw.Model(
        "kinds",
        moments=sw.Moments(str(folder / "asked.parquet"), at="at", timezone="UTC"),
        features={"price": sw.field("price")},
        label=sw.Label(outcomes.by("ask").last("paid") > 0.5, within="1h", otherwise=False),
        estimator=LGBMClassifier(n_estimators=2, n_jobs=1, verbose=-1),
        calibration=None,
        ranking=sw.Ranking("items", key="item", request="ask", fields=["price", *KINDS]),
        fallbacks=[
            *(sw.Rate(by=name) for name in KINDS),
            *(sw.Popular(sales.by("item").count(), by=name) for name in KEYS),
        ],
    )
    made = train(model, registry=folder / "registry", until=UNTIL - DAY, folder=folder).bundle
    return Registry(folder / "registry").load(made.address)


@pytest.mark.parametrize("name", KINDS)
def test_a_request_is_answered_from_the_rows_with_its_value_whatever_its_type(
    bundle: Bundle, name: str
) -> None:
    number = list(KINDS).index(name)
    reader = RequestReader("kinds", bundle.description.request, bundle.model.ranking)
    table = bundle.description.rates[number]
    assert len(table.rates) == 2

    for value, chance in zip(KINDS[name][1][:2], CHANCES[:2], strict=True):
        body = {"request": {"items": [{"item": "a", name: value}, {"item": "b", name: value}]}}
        ((request,), _) = reader.read(msgspec.json.encode(body))
        a, b = (dict(zip(bundle.description.request, row, strict=True)) for row in request.candidates)  # pyright: ignore[reportAttributeAccessIssue] # a ranking's
        assert bundle.fallback(number, a) == chance
        if name in KEYS:
            popular = [bundle.fallback(len(KINDS) + KEYS.index(name), row) for row in (a, b)]
            assert popular == [40 * chance, 40 * (1 - chance)]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_null_or_unseen_is_answered_from_all_rows(bundle: Bundle, name: str) -> None:
    number = list(KINDS).index(name)
    for value in (None, "never seen"):
        assert bundle.fallback(number, {name: value}) == bundle.description.rates[number].overall
        if name in KEYS:
            popular = bundle.fallback(len(KINDS) + KEYS.index(name), {name: value, "item": "a"})
            assert popular == sum(40 * chance for chance in CHANCES)


def test_rates_of_rows_are_those_of_requests() -> None:
    column = pa.chunked_array([pa.array([-0.0, 0.0, float("nan"), None, 2.0])])
    table = rate_table("x", pa.table({"x": column}), np.array([1.0, 0.0, 1.0, 1.0, 1.0]))
    assert table.answers(pa.table({"x": column})).tolist() == [0.5, 0.5, 0.8, 0.8, 1.0]
    assert (
        rate_table(None, pa.table({"x": column}), np.ones(5)).answers(pa.table({"x": column})).tolist()
        == [1.0] * 5
    )
