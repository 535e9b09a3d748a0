"""What flat trees answered live is asked of their library, too: where they differ, the library answers from then on, and it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from driven_server import Driven, driven
from small_world import WORLD, SmallWorld, make

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.evaluation.kept import kept_answers, not_judged, wrong_answers
from sameworld.server.app import Server
from sameworld.server.lanes import GuardedLane, NativeLane
from sameworld.stores.prediction_log import predictions
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.fitted import Compiled
from sameworld.training.trees import Trees

HISTOGRAMS = """
from sklearn.ensemble import HistGradientBoostingClassifier

histograms = sw.Model(
    "histograms", moments=asks, features=features, label=paid, estimator=HistGradientBoostingClassifier(max_iter=10),
    fallbacks=fallbacks, service=service,
)
"""
REQUEST = {"request": {"user": "u1", "shop": "s1", "basket": 10.5, "opened_at": "2024-03-16T10:00:00Z"}}
MODELS = ["plain", "histograms"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return make(tmp_path_factory.mktemp("rechecked") / "world", WORLD + HISTOGRAMS)


def harmed(trees: Trees) -> Trees:
    """Every leaf of the first tree says much more: a little may mean the same answer, calibrated."""
    nodes, values, roots = (array.copy() for array in trees.arrays[:3])
    leaves = np.flatnonzero(nodes["left"] == np.arange(nodes.size))
    values[leaves[leaves < roots[1]]] += 10.0
    return msgspec.structs.replace(trees, values=values.tobytes())


def counted(server: Driven, name: str) -> dict[str, float]:
    text = server.send("GET", "/metrics")[1]
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
    return {key.removeprefix(name): float(value) for key, _, value in lines}


def waited(server: Driven, what: Callable[[], Any]) -> Any:
    until = time.monotonic() + 20
    while not (found := what()) and time.monotonic() < until:
        server.run(asyncio.sleep(0.02))
    return found


def bundle_of(server: Driven, model: str) -> Bundle:
    return server.client.server.portfolio.models[model].bundle


def value(server: Driven, model: str) -> float:
    status, answer = server.predict(REQUEST, model)
    (prediction,) = answer["predictions"]
    assert (status, prediction["tier"], prediction["reason"]) == (200, "model", "")
    return prediction["value"]


def test_kept_answers_that_a_proof_cannot_compute_are_counted(world: SmallWorld, tmp_path: Path) -> None:
    copied = world.copy(tmp_path / "world")
    with driven(copied.config(cache={"histograms": 100_000})) as server:
        assert value(server, "histograms") == value(server, "histograms")
    proof = copied.prove()
    assert (proof.kept, proof.kept_unjudged, proof.different) == (1, 0, 0)
    address = copied.registry.newest("histograms") or ""
    bundle = copied.registry.load(address, without_code=True, unpickle=False)
    kept = kept_answers([(where, one) for where, one in predictions(copied.state) if one is not None])
    assert not_judged(bundle, kept) == (0, "")
    assert bundle.scorer.compiled is not None
    bundle.scorer.compiled.distrust("another processor computes another exp")
    assert not_judged(bundle, kept) == (1, "another processor computes another exp")
    assert list(wrong_answers(bundle, kept)) == []


@pytest.mark.parametrize("model", MODELS)
def test_a_difference_on_a_live_row_lets_the_library_answer_from_then_on(
    world: SmallWorld, tmp_path: Path, model: str
) -> None:
    copied = world.copy(tmp_path / "world")
    with driven(copied.config(cache={model: 100_000})) as server:
        right = value(server, model)
        assert waited(server, lambda: counted(server, "sameworld_rechecked_rows_total")) == {
            f'{{model="{model}",outcome="equal"}}': 1.0
        }
        bundle = bundle_of(server, model)
        assert (bundle.execution, bundle.estimator is None) == ("compiled", model == "histograms")
        compiled = bundle.scorer.compiled
        assert compiled is not None
        compiled.trees = harmed(compiled.trees)
        served = server.client.server.portfolio.models[model]
        served.tiers[0].recheck_at = 0.0
        assert served.kept is not None
        served.kept.clear()
        wrong = value(server, model)
        assert wrong != right
        assert waited(server, lambda: compiled.distrusted)
        assert value(server, model) == right
        told = compiled.distrusted
        assert told.startswith(f"a live row was answered with {wrong!r} and is {right!r} by the library: [")
        assert (
            counted(server, "sameworld_rechecked_rows_total")[f'{{model="{model}",outcome="different"}}'] == 1
        )
        assert counted(server, "sameworld_incidents_total")['{part="flat trees"}'] == 1
        status = server.send("GET", "/control/status")[1]
        assert [m["execution"] for m in status["models"] if m["model"] == model] == [f"library: {told}"]


def with_harmed_trees(world: SmallWorld, folder: Path, model: str) -> SmallWorld:
    """Give a copy whose newest bundle of a model has trees that say something else."""
    copied = world.copy(folder)
    registry = Registry(copied.folder / "registry")
    bundle = registry.load(registry.newest(model) or "")
    assert bundle.scorer.compiled is not None
    compiled = Compiled(harmed(bundle.scorer.compiled.trees), lambda: bundle.estimator)
    none = [None] * len(bundle.parts)
    registry.save(Bundle(bundle.description, bundle.model, bundle.estimator, bundle.selftest, compiled=[compiled, *none]))  # fmt: skip
    return copied


@pytest.mark.parametrize(("model", "lane"), [("plain", NativeLane), ("histograms", GuardedLane)])
def test_trees_that_say_something_else_where_they_are_served_do_not_answer(
    world: SmallWorld, tmp_path: Path, model: str, lane: type
) -> None:
    copied = with_harmed_trees(world, tmp_path / "world", model)
    with driven(copied.config()) as server:
        # What is in the file is what this registry signed: only the self-test rows show what is wrong.
        assert isinstance(server.client.server.portfolio.models[model].lane, lane)
        with driven_like(world, tmp_path) as healthy:
            assert value(server, model) == value(healthy, model)
        assert bundle_of(server, model).execution.startswith("library: self-test row 0 is ") or lane is GuardedLane  # fmt: skip


def test_a_model_that_moves_to_a_process_of_its_own_is_waited_for(world: SmallWorld, tmp_path: Path) -> None:
    copied = with_harmed_trees(world, tmp_path / "world", "histograms")

    async def run() -> None:
        server = Server(copied.config())
        server.store.fill(DuckDBEngine(copied.folder))
        server.start()
        try:
            async with asyncio.timeout(60):
                while server.not_ready():
                    await asyncio.sleep(0)  # looked at in every turn of the loop
            lane = server.portfolio.models["histograms"].lane
            assert isinstance(lane, GuardedLane)
            assert lane.ready
        finally:
            await server.stop()

    asyncio.run(run())


def driven_like(world: SmallWorld, tmp_path: Path) -> Any:
    return driven(world.copy(tmp_path / "healthy").config())
