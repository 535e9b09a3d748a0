"""What a prediction costs by the library and by flat trees, one row or some at a time, and whether they say the same.

    python -m benchmarks.predict [--trees 300] [--columns 30] [--rounds 5]

One core's processor time, every call with rows that were not asked before: of rows that come again a processor knows the branches by heart. XGBoost and ONNX Runtime take part where they are installed (`pip install xgboost-cpu onnxruntime
onnxmltools onnxconverter-common`).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from benchmarks.asof.table import machine
from sameworld.training.encoding import ColumnEncoding
from sameworld.training.fitted import raw_scores
from sameworld.training.gate import through_gate

Rows = NDArray[np.float64]
Says = Callable[[Rows], Rows]
TRAINING_ROWS, AT_ONCE = 50_000, (1, 16, 64)


def learnable(columns: int) -> tuple[Rows, NDArray[np.int64]]:
    """Make rows, and a label that some of their columns decide."""
    chance = np.random.default_rng(0)
    rows = chance.normal(size=(TRAINING_ROWS, columns))
    return rows, (rows[:, 0] + rows[:, 1] * rows[:, 2] + chance.normal(size=TRAINING_ROWS) > 0).astype(
        np.int64
    )


def directly(booster: lightgbm.Booster, columns: int) -> Says:
    """LightGBM's own way for one row at a time, by its C interface: a handle that knows the shape."""
    library = lightgbm.basic._LIB
    handle, length = ctypes.c_void_p(), ctypes.c_int64()
    options = ctypes.c_char_p(b"num_threads=1")
    if library.LGBM_BoosterPredictForMatSingleRowFastInit(booster._handle, 0, 0, -1, 1, columns, options, ctypes.byref(handle)):  # fmt: skip
        raise RuntimeError("LightGBM's interface for one row does not begin")

    def says(rows: Rows) -> Rows:
        said = np.empty(rows.shape[0])
        for number in range(rows.shape[0]):
            row, out = rows.ctypes.data + number * rows.strides[0], said.ctypes.data + 8 * number
            library.LGBM_BoosterPredictForMatSingleRowFast(handle, ctypes.c_void_p(row), ctypes.byref(length), ctypes.c_void_p(out))  # fmt: skip
        return said

    return says


def onnx(booster: lightgbm.Booster, columns: int) -> Says:
    """The same trees on ONNX Runtime, one thread."""
    import onnxruntime  # noqa: PLC0415
    from onnxmltools import convert_lightgbm  # noqa: PLC0415
    from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: PLC0415

    model = convert_lightgbm(booster, initial_types=[("x", FloatTensorType([None, columns]))], zipmap=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda rows: session.run(["probabilities"], {"x": rows.astype(np.float32)})[0][:, 1].astype(
        np.float64
    )


def contestants(trees: int, columns: int) -> Iterator[tuple[str, Any, dict[str, Says]]]:
    """Give each library with its estimator, and other ways to ask it."""
    rows, label = learnable(columns)
    fitted = lightgbm.LGBMClassifier(
        n_estimators=trees, num_leaves=31, n_jobs=1, verbosity=-1, random_state=0
    )
    booster = lightgbm.Booster(model_str=fitted.fit(rows, label).booster_.model_to_string())
    ways = {"its C interface, row by row": directly(booster, columns)}
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxmltools"):
        ways["ONNX Runtime"] = onnx(booster, columns)
    yield "LightGBM", booster, ways
    if importlib.util.find_spec("xgboost"):
        import xgboost  # noqa: PLC0415

        yield (
            "XGBoost",
            xgboost.XGBClassifier(n_estimators=trees, max_depth=5, n_jobs=1).fit(rows, label),
            {},
        )
    yield "HistGradientBoosting", HistGradientBoostingClassifier(max_iter=trees, early_stopping=False).fit(rows, label), {}  # fmt: skip
    yield "RandomForest, 100 trees", RandomForestClassifier(100, min_samples_leaf=50, random_state=0).fit(rows, label), {}  # fmt: skip


def microseconds(says: Says, rows: Rows, at_once: int, rounds: int) -> float:
    """Give the least of some rounds' processor microseconds a row."""
    says(rows[:at_once])
    taken: list[float] = []
    place = 0
    for _ in range(rounds):
        calls, begun = 0, time.process_time()
        while time.process_time() - begun < 0.1:
            says(rows[place : place + at_once])
            place = (place + at_once) % (rows.shape[0] - at_once)
            calls += 1
        taken.append((time.process_time() - begun) / (calls * at_once))
    return min(taken) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    asked = np.random.default_rng(1).normal(size=(100_000, given.columns))
    training, _ = learnable(given.columns)
    encodings = [ColumnEncoding(f"x{i}") for i in range(given.columns)]
    print("| trees | answers by | " + " | ".join(f"µs a row at {count}" for count in AT_ONCE) + " | other bits |")  # fmt: skip
    print("| --- | --- | " + "--- | " * len(AT_ONCE) + "--- |", flush=True)
    for name, estimator, ways in contestants(given.trees, given.columns):

        def library(rows: Rows, estimator: Any = estimator) -> Rows:
            return raw_scores(estimator, rows, probability=True)

        trees, gate = through_gate(estimator, library, training, encodings, probability=True)
        asking = {"the library": library, **ways}
        if trees is not None:
            asking["flat trees"] = trees.raw_of
        expected = library(asked[:2_000])
        took: dict[int, float] = {}
        for way, says in asking.items():
            cells: list[str] = []
            for count in AT_ONCE:
                each = microseconds(says, asked, count, given.rounds)
                ratio = took.setdefault(count, each) / each
                cells.append(f"{each:,.1f}" + ("" if way == "the library" else f" ({ratio:.1f}×)"))
            different = int((says(asked[:2_000]).view(np.int64) != expected.view(np.int64)).sum())
            cells.append(f"{different} of 2,000")
            print(f"| {name} | {way} | " + " | ".join(cells) + " |", flush=True)
        print(f"| {name} | gate | {gate.says}; {gate.rows:,} training rows and {gate.placed:,} placed ones |" + " |" * len(AT_ONCE), flush=True)  # fmt: skip
    print(f"\n{machine()}; times as fast as the library in brackets.")


if __name__ == "__main__":
    main()
