"""The world that is broken: a native model, and a guarded one whose estimator misbehaves while a file says how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.training.fit import train
from sameworld.training.world_file import load_world

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
MOOD_FILE = "mood"

ESTIMATOR = '''"""An estimator that misbehaves as a file says; or by itself, but not while it is trained and loaded."""

import ctypes
import os
import resource
import time

import numpy as np


def is_served():
    """A server limits the memory of its process once the model is loaded."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


class Moody:
    def __init__(self, file, mood=""):
        self.file, self.mood = file, mood

    def get_params(self, deep=False):
        return {"file": self.file, "mood": self.mood}

    def fit(self, rows, label):
        self.mean = float(label.mean())
        return self

    def predict(self, rows):
        return self.predict_proba(rows)[:, 1]

    def predict_proba(self, rows):
        mood = self.mood if is_served() else ""
        try:
            with open(self.file) as file:
                mood = file.read()
        except FileNotFoundError:
            pass
        p = np.full(len(rows), self.mean)
        match mood:
            case "hang":
                time.sleep(10)
            case "hang in C":
                ctypes.PyDLL(None).usleep(10_000_000)
            case "spin":
                while self.mood or os.path.exists(self.file):
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
    """A trained world under one folder.

    Args:
        steady: the addresses of bundles of the native model, which are as good as each other.
        moody: mood -> address of a bundle of the guarded model; "" behaves.
    """

    folder: Path
    steady: Sequence[str]
    moody: Mapping[str, str]

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
            (self.folder / MOOD_FILE).unlink(missing_ok=True)
            return
        fresh = self.folder / ".mood"
        fresh.write_text(mood)
        fresh.rename(self.folder / MOOD_FILE)


def make(folder: Path, moods: Sequence[str] = ()) -> World:
    """Lay the world out and train its models, the guarded one in these moods, too."""
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
    (folder / "moody.py").write_text(ESTIMATOR)

    def trained(name: str, file: str, trees: int = 100, mood: str = "") -> str:
        moody = f"{str(folder / MOOD_FILE)!r}, {mood!r}"
        text = WORLD.replace("Moody(MOOD)", f"Moody({moody})").replace("=100,", f"={trees},")
        (folder / file).write_text(text)
        model = load_world(folder / file).models[name]
        return train(model, registry=folder / "registry", folder=folder).bundle.address

    # Each from a file of its own: Python would take one that is changed within a second for the same.
    moody = {mood: trained("moody", f"moody_{n}.py", mood=mood) for n, mood in enumerate(moods)}
    steady = [trained("steady", "fewer_trees.py", trees=80)]
    # Last what is served at first.
    return World(
        folder,
        [*steady, trained("steady", "world.py")],
        {**moody, "": trained("moody", "world.py")},
    )
