"""The world that is broken: a native model, and a guarded one whose estimator misbehaves while a file says how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.training.fit import train
from sameworld.training.world_file import load_world

DEADLINE_SECONDS = 0.050
MOODS = ("hang", "hang in C", "spin", "crash", "exit", "leak", "nan", "infinity", "shape", "raise")
_SECOND = 1_000_000
_BEGIN = 1_767_225_600 * _SECOND  # 2026-01-01
_DAYS = 20

WORLD = '''"""Will an order be paid?"""

from lightgbm import LGBMClassifier
from moody import Moody

import sameworld as sw

orders = sw.Source("orders", "orders.parquet", event_time="ordered_at", available_at="seen_at", id="order_id")
outcomes = sw.Source("outcomes", "outcomes.parquet", event_time="settled_at", available_at=sw.delay("5m"))
common = {
    "moments": sw.Moments("asks.parquet", at="asked_at"),
    "features": {
        "spent": orders.by("user").sum("amount", over=["6h", "2d"]),
        "orders": orders.by("user").count(over="2d"),
        "shop_mean": orders.by("shop").mean("amount", over="1d"),
        "basket": sw.field("basket"),
        "hour": sw.field("asked_at_home").hour(timezone="Europe/Berlin"),
    },
    "label": sw.Label(outcomes.by("ask_id").last("paid") > 0.5, within="1h", otherwise=False),
    "fallbacks": [sw.Rate(by="shop"), sw.Constant(0.5)],
    "service": sw.Service(deadline="50ms"),
}
steady = sw.Model("steady", estimator=LGBMClassifier(n_estimators=100, n_jobs=1), **common)
moody = sw.Model("moody", estimator=Moody(MOOD), calibration=None, **common)
'''

ESTIMATOR = '''"""An estimator that misbehaves as a file says."""

import ctypes
import os
import time

import numpy as np


class Moody:
    def __init__(self, mood):
        self.mood = mood

    def get_params(self, deep=False):
        return {"mood": self.mood}

    def fit(self, rows, label):
        self.mean = float(label.mean())
        return self

    def predict(self, rows):
        return self.predict_proba(rows)[:, 1]

    def predict_proba(self, rows):
        try:
            with open(self.mood) as file:
                mood = file.read()
        except FileNotFoundError:
            mood = ""
        p = np.full(len(rows), self.mean)
        match mood:
            case "hang":
                time.sleep(10)
            case "hang in C":
                ctypes.PyDLL(None).usleep(10_000_000)
            case "spin":
                while os.path.exists(self.mood):
                    sum(range(1000))
            case "crash":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "leak":
                self.leaked = [*getattr(self, "leaked", []), np.ones(20 << 20, np.uint8)]
            case "nan":
                p[:] = np.nan
            case "infinity":
                p[:] = np.inf
            case "shape":
                return np.zeros((len(rows) + 1, 3))
            case "raise":
                raise RuntimeError("no mood for this")
        return np.stack([1 - p, p], axis=1)
'''


@dataclass(frozen=True)
class World:
    """A trained world under one folder."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "world.py"

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def set_mood(self, mood: str) -> None:
        """Let the guarded model misbehave, or behave (no mood), from its next call on."""
        if not mood:
            (self.folder / "mood").unlink(missing_ok=True)
            return
        fresh = self.folder / ".mood"
        fresh.write_text(mood)
        fresh.rename(self.folder / "mood")


def make(folder: Path) -> World:
    """Lay the world out and train its models."""
    random = np.random.default_rng(7)
    count = 2000
    at = np.sort(random.integers(_BEGIN, _BEGIN + _DAYS * 86400 * _SECOND, count))
    instant = pa.timestamp("us", tz="UTC")
    number = np.arange(count).astype(str)
    basket = np.round(random.lognormal(3, 1, count), 2)
    tables = {
        "orders": {
            "order_id": np.char.add("o", number),
            "user": np.char.add("u", random.integers(0, 50, count).astype(str)),
            "shop": np.char.add("s", random.integers(0, 5, count).astype(str)),
            "amount": np.round(random.lognormal(3.5, 0.8, count), 2),
            "ordered_at": pa.array(at, instant),
            "seen_at": pa.array(at + random.integers(1, 3600 * _SECOND, count), instant),
        },
        "asks": {
            "ask_id": np.char.add("a", number),
            "user": np.char.add("u", random.integers(0, 50, count).astype(str)),
            "shop": np.char.add("s", random.integers(0, 5, count).astype(str)),
            "basket": basket,
            "asked_at": pa.array(at, instant),
            "asked_at_home": pa.array(at, instant),
        },
        "outcomes": {
            "ask_id": np.char.add("a", number),
            "paid": (basket + random.normal(0, 10, count) > 20).astype(np.float64),
            "settled_at": pa.array(at + random.integers(0, 3000 * _SECOND, count), instant),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    world = World(folder)
    (folder / "moody.py").write_text(ESTIMATOR)
    world.file.write_text(WORLD.replace("MOOD)", f"{str(folder / 'mood')!r})"))
    for model in load_world(world.file).models.values():
        train(model, registry=world.registry, folder=folder)
    return world
