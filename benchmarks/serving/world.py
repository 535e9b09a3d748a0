"""What is served: 300 trees of 30 numbers that stand in the request (`bare`), the same behind a class of a user's own (`guarded`), and trees of 9 aggregates of 3 entities (`honest`)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.world_file import load_world

DAY = 86_400_000_000
START = 1_700_000_000_000_000
NUMBERS = 30
TREES_FILE = "trees.txt"
_DAYS = 10

_WORLD = """
import sameworld as sw
from lightgbm import LGBMClassifier
from theirs import Theirs

paid = sw.Source("paid", "paid.parquet", event_time="paid_at", available_at=sw.delay("1s"))
clicks = sw.Source("clicks", "clicks.parquet", event_time="clicked_at", available_at=sw.delay("1s"))
asks = sw.Moments("asks.parquet", at="asked_at")
label = sw.Label(paid.by("ask").count() > 0, within="1h", otherwise=False)
user, shop, item = clicks.by("user"), clicks.by("shop"), clicks.by("item")
trees = LGBMClassifier(
    n_estimators=300, num_leaves=31, n_jobs=1, random_state=0, verbosity=-1, deterministic=True, force_row_wise=True,
)


def model(name, features, estimator):
    return sw.Model(
        name, moments=asks, features=features, label=label, estimator=estimator, calibration=None,
        fallbacks=[sw.Constant(0.5)], service=sw.Service(deadline="1s"),
    )


numbers = {f"x{i}": sw.field(f"x{i}") for i in range(30)}
bare = model("bare", numbers, trees)
guarded = model("guarded", numbers, Theirs(trees))
honest = model("honest", {
    "user_clicks": user.count(over="4000d"), "user_mean": user.mean("seconds", over="4000d"), "user_last": user.last("seconds"),
    "shop_clicks": shop.count(over="4000d"), "shop_sum": shop.sum("seconds", over="4000d"), "shop_max": shop.max("seconds", over="4000d"),
    "item_clicks": item.count(over="4000d"), "item_mean": item.mean("seconds", over="4000d"), "item_idle": item.age(),
}, trees)
"""

_THEIRS = '''"""An estimator of the user's own, which the server does not know: it runs in the guarded lane."""

import numpy as np


class Theirs:
    def __init__(self, trees):
        self.trees = trees

    def get_params(self, deep=False):
        return {"trees": self.trees}

    def fit(self, rows, label):
        self.fitted = self.trees.fit(rows, label).booster_
        return self

    def predict(self, rows):
        return self.fitted.predict(rows, num_threads=1)

    def predict_proba(self, rows):
        p = self.predict(rows)
        return np.stack([1 - p, p], axis=1)
'''


def lay_out(folder: Path, models: Collection[str], count: int, asks: int) -> None:
    """Write the world, its tables, what was trained on them, and the trees of `bare`, if that is trained, as LightGBM's own file.

    Args:
        folder: empty.
        models: which to train.
        count: how many different entities of a kind there are; clicks are 40 times as many.
        asks: how many rows to train on.
    """
    chance = np.random.default_rng(0)

    def times(count: int) -> pa.Array:
        return pa.array(START + chance.integers(0, _DAYS * DAY, count), pa.timestamp("us", tz="UTC"))

    def entities(rows: int) -> dict[str, list[str]]:
        return {
            kind: [f"{kind[0]}{i}" for i in chance.integers(0, count, rows)]
            for kind in ("user", "shop", "item")
        }

    clicks = {
        **entities(40 * count),
        "seconds": chance.exponential(30, 40 * count),
        "clicked_at": times(40 * count),
    }
    numbers = chance.normal(size=(asks, NUMBERS))
    asked = times(asks)
    asked_for = {f"x{i}": numbers[:, i] for i in range(NUMBERS)}
    bought = numbers[:, 0] + numbers[:, 1] * numbers[:, 2] + chance.normal(size=asks) > 0
    later = np.asarray(asked.cast(pa.int64()))[bought] + 60_000_000
    tables = {
        "clicks": clicks,
        "asks": {"ask": np.arange(asks), **entities(asks), **asked_for, "asked_at": asked},
        "paid": {"ask": np.flatnonzero(bought), "paid_at": pa.array(later, pa.timestamp("us", tz="UTC"))},
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    (folder / "theirs.py").write_text(_THEIRS)
    (folder / "world.py").write_text(_WORLD)
    registry = Registry(folder / "registry")
    declared = load_world(folder / "world.py").models
    for name in sorted(models):
        fitted = train(declared[name], registry=registry, until=START + (_DAYS + 1) * DAY, folder=folder)
        if name == "bare":
            fitted.bundle.estimator.save_model(str(folder / TREES_FILE))


def rows(count: int) -> list[list[float]]:
    """Give as many different rows of numbers."""
    return np.round(np.random.default_rng(1).normal(size=(count, NUMBERS)), 6).tolist()


def entities(count: int) -> list[dict[str, str]]:
    """Give as many different requests to `honest`: every user, shop and item once."""
    chance = np.random.default_rng(1)
    turns = [chance.permutation(count).tolist() for _ in range(3)]
    return [{"user": f"u{u}", "shop": f"s{s}", "item": f"i{i}"} for u, s, i in zip(*turns, strict=True)]


def lightgbm_says(folder: Path, asked: list[list[float]]) -> list[Any]:
    """Give what LightGBM itself answers to rows, from the file that everybody serves."""
    return lightgbm.Booster(model_file=str(folder / TREES_FILE)).predict(np.array(asked)).tolist()
