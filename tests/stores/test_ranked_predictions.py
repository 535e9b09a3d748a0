"""A ranking in the log: one record an answer, one row a candidate in Parquet, and back to the bit."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from sameworld.stores.clock import SystemClock
from sameworld.stores.prediction import Prediction, Ranked, Shape
from sameworld.stores.prediction_contents import contents
from sameworld.stores.prediction_log import PredictionLog, predictions
from sameworld.stores.prediction_table import predictions_of, table_of
from sameworld.stores.rotation import rotate

SHAPE = Shape(
    {"user": "text", "item": "text", "at": "instant", "price": "float"},
    {"clicks": "int64", "price": "double"},
    {"clicks": "c", "price": "p"},
    ["item", "price"],
)


def ranking(values: list[float], ranks: list[int], *, vectors: bool = True, number: int = 0) -> Prediction:
    candidates = [[f"i{place}", None if place == 1 else place / 3] for place in range(len(values))]
    features = [[place, candidate[1]] for place, candidate in enumerate(candidates)]
    value = values[ranks.index(1)] if ranks else math.nan
    return Prediction(
        f"id{number}", "feed", "v1", 10**15 + number, 5, value, "model" if vectors else "none", "", ["u1", None, 7, None],
        features if vectors and values else None, False, 100, ages={"clicks": 3}, ranked=Ranked([1, 3], candidates, values, ranks),
    )  # fmt: skip


RECORDS = [
    ranking([0.1, 0.1 + 0.2, -0.0], [2, 1, 3]),
    ranking([], [], number=1),
    ranking([0.0, 0.0], [1, 2], vectors=False, number=2),
    ranking([5e-324], [1], number=3),
]


def same(first: Prediction, second: Prediction) -> bool:
    return msgspec.msgpack.encode(first) == msgspec.msgpack.encode(second)


def test_a_ranking_is_one_row_a_candidate_and_comes_back_to_the_bit() -> None:
    table = table_of("p", list(enumerate(RECORDS)), SHAPE)

    assert table.select(["number", "candidate", "rank", "value", "request_item", "feature_clicks"]).slice(
        0, 4
    ).to_pylist()[:3] == [
        {"number": 0, "candidate": 0, "rank": 2, "value": 0.1, "request_item": "i0", "feature_clicks": 0},
        {"number": 0, "candidate": 1, "rank": 1, "value": 0.1 + 0.2, "request_item": "i1", "feature_clicks": 1},
        {"number": 0, "candidate": 2, "rank": 3, "value": -0.0, "request_item": "i2", "feature_clicks": 2},
    ]  # fmt: skip
    assert table["candidate"].to_pylist() == [0, 1, 2, None, 0, 1, 0]
    back = list(predictions_of(table))
    assert [number for number, _ in back] == [0, 1, 2, 3]
    assert all(same(one, other) for (_, one), other in zip(back, RECORDS, strict=True))


def test_rows_of_a_ranking_are_moments_of_their_own() -> None:
    first, second, third = RECORDS[0].rows()
    assert (second.request, second.features, second.value, second.ranked) == (
        ["u1", "i1", 7, None],
        [1, None],
        0.1 + 0.2,
        None,
    )
    assert [row.id for row in (first, second, third)] == ["id0"] * 3
    assert list(RECORDS[1].rows()) == []
    assert [row.features for row in RECORDS[2].rows()] == [None, None]
    plain = msgspec.structs.replace(RECORDS[0], ranked=None)
    assert list(plain.rows()) == [plain]


def test_a_record_of_another_kind_is_not_made_a_row_of() -> None:
    plain = msgspec.structs.replace(RECORDS[0], ranked=None, request=["u1", "i1", 7, 0.5], features=[1, 0.5])
    with pytest.raises(ValueError, match="a record is no ranking"):
        table_of("p", [(0, plain)], SHAPE)
    with pytest.raises(ValueError, match="a record is a ranking"):
        table_of("p", [(0, RECORDS[0])], msgspec.structs.replace(SHAPE, candidate=[]))


def test_rotated_or_not_the_log_has_the_same_answers(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, SystemClock())
    assert log.write(RECORDS, SHAPE) == ""
    log.close()
    raw = [prediction for _, prediction in predictions(tmp_path)]
    counted = contents(tmp_path).versions[0]

    done = rotate(tmp_path)

    rotated = [prediction for _, prediction in predictions(tmp_path)]
    assert (done.rows, done.stayed) == (4, [])
    assert all(one and other and same(one, other) for one, other in zip(raw, rotated, strict=True))
    held = contents(tmp_path).versions[0]
    assert (held.rows, held.tiers) == (counted.rows, counted.tiers) == (4, {"model": 3, "none": 1})
