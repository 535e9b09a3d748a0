"""A world whose models read every aggregation of every family of columns is trained, served and proved to the bit."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from every_aggregation import CASES
from small_world import SmallWorld, instants, write_data

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.training.world_file import load_world

WORLD = '''"""Will an order be paid, by everything there is to know?"""

import numpy as np
from lightgbm import LGBMClassifier

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS

COLUMNS = {"float": "amount", "integer": "quantity", "boolean": "express", "decimal": "price", "instant": "due", "text": "note"}

orders = sw.Source(
    "orders", "data/orders.parquet", event_time="ordered_at", available_at="seen_at", id="order_id", version="revision"
)
outcomes = sw.Source("outcomes", "data/outcomes.parquet", event_time="settled_at", available_at=sw.delay("5m"))
asks = sw.Moments("data/asks.parquet", at="asked_at")


def summed(lists):
    return np.array([np.nan if items is None else float(sum(items)) for items in lists])


def days(microseconds):
    return np.floor(microseconds / 86_400_000_000)


def joined(lists):
    return np.array([None if items is None else "".join(items) for items in lists], object)


def total(prices, halves):
    return prices * 2 + halves


arguments = {"by": "quantity", "prior": 0.5, "weight": 2.0, "n": 3}
features, lists = {}, {}
for operation, entry in AGGREGATIONS.items():
    for family in sorted(entry.columns) or [None]:
        given = {name: arguments[name] for name in entry.arguments}
        column = [COLUMNS[family]] if family else []
        made = getattr(orders.by("user"), operation)(*column, **given, over="2d")
        name = "_".join([operation, *column])
        if entry.gives == "list":
            lists[name] = made
            lists[f"of_{name}"] = sw.derive(joined, name).category() if family == "text" else sw.derive(summed, name)
        elif entry.gives == "column" and family == "text":
            features[name] = made.category()
        elif entry.gives == "column" and family == "instant":
            lists[name] = made
            lists[f"of_{name}"] = sw.derive(days, name)
        else:
            features[name] = made
features["price_as_category"] = orders.by("user").last("price").category()
paid = sw.Label(outcomes.by("ask_id").last("paid") > 0.5, within="1h", otherwise=False)
given = {"moments": asks, "label": paid, "fallbacks": [sw.Rate(by="shop"), sw.Constant(0.5)], "service": sw.Service(deadline="20s")}


def estimator():
    return LGBMClassifier(n_estimators=5, min_child_samples=5, n_jobs=1)


plain = sw.Model("plain", features=features, estimator=estimator(), **given)
derived = sw.Model(
    "derived",
    features={"last_price": features["last_price"], "half": features["ratio_price"]} | lists
    | {"total": sw.derive(total, "last_price", "half")},
    estimator=estimator(),
    **given,
)
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    folder: Path = tmp_path_factory.mktemp("every") / "world"
    write_data(folder / "data")
    (folder / "world.py").write_text(WORLD)
    made = SmallWorld(folder, tuple(load_world(folder / "world.py").models))
    orders = made.table("orders")
    random = np.random.default_rng(3)
    rows = orders.num_rows

    def some(values: pa.Array) -> pa.Array:
        return pa.array(values.to_pylist(), values.type, mask=random.random(rows) < 0.1)

    cents = random.integers(-(10**6), 10**12, rows).tolist()
    columns = {
        "quantity": pa.array(random.integers(-5, 2**50, rows)),
        "express": pa.array(random.random(rows) < 0.5),
        "price": pa.array([Decimal(cent).scaleb(-2) for cent in cents], pa.decimal128(18, 2)),
        "due": instants(random.integers(0, 2**50, rows)),
        "note": pa.array([chr(0x430 + number) for number in random.integers(0, 30, rows)]),
    }
    for name, values in columns.items():
        orders = orders.append_column(name, some(values))
    made.write("orders", orders)
    made.train()
    return made


def test_every_aggregation_is_trained_served_and_proved(world: SmallWorld) -> None:
    assert set(world.play().statuses) == {200}
    asked = len(world.asks().at)
    for against in ("log", "files"):
        proof = world.prove(against)
        assert (proof.vectors, proof.different, proof.without_vector) == (2 * asked, 0, 0), proof.as_json()
    tiers = {prediction.tier for prediction in world.logged()}
    assert tiers == {"model"}
    # and every entry of the table was among it, with values that are not all null
    vectors: dict[str, list[object]] = {}
    for model in world.models:
        types = world.registry.load(world.registry.newest(model) or "", without_code=True).types
        logged = [prediction.features or [] for prediction in world.logged() if prediction.model == model]
        vectors |= dict(zip(types, map(list, zip(*logged, strict=True)), strict=True))
    served = {name.split("_")[0] if not name.startswith("last_n") else "last_n" for name in vectors}
    assert set(AGGREGATIONS) <= served
    assert not [name for name, values in vectors.items() if set(map(repr, values)) == {"None"}]
    assert len(CASES) <= len(vectors)
    # and what was served is the next training set
    moments = [
        sw.Moments.from_log("derived", state=world.state, features=how) for how in ("served", "recomputed")
    ]
    model = world.load().model("derived")
    served, recomputed = (sw.training_set(model, moments=given, folder=world.folder) for given in moments)
    assert served == recomputed
    assert pa.types.is_timestamp(served["last_due"].type)


def test_a_digit_of_a_logged_decimal_and_an_item_of_a_logged_list_are_seen(
    world: SmallWorld, tmp_path: Path
) -> None:
    here = world.copy(tmp_path / "world")
    if not (here.state / "predictions").exists():
        here.play()
    types = list(here.registry.load(here.registry.newest("derived") or "", without_code=True).types)
    places = {name: types.index(name) for name in ("last_price", "last_n_price", "last_n_amount")}
    spoilt: set[str] = set()

    def change(prediction):
        if prediction.model != "derived":
            return prediction
        vector = list(prediction.features)
        for name, place in places.items():
            if name in spoilt or vector[place] is None:
                continue
            spoilt.add(name)
            match vector[place]:
                case str(text):
                    vector[place] = str(Decimal(text) + Decimal("0.01"))
                case [*items, str(text)]:
                    vector[place] = [*items, str(Decimal(text) + Decimal("0.01"))]
                case [*items, last]:
                    vector[place] = [*items, float(np.nextafter(last, np.inf))]
            break
        return type(prediction)(
            **{name: getattr(prediction, name) for name in prediction.__struct_fields__}
            | {"features": vector}
        )

    here.rewrite_log(change)
    proof = here.prove()
    assert spoilt == set(places)
    assert proof.different == 3
    assert {difference.feature for difference in proof.differences} == set(places)
    assert proof.causes == {"log": 3}
