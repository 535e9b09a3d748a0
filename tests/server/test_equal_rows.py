"""Rows that are alike are computed once; answers are kept only where that was asked for, of one version, and the log and the proof know which were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from driven_server import Driven, driven
from numpy.typing import NDArray
from small_world import SmallWorld

from sameworld.stores.prediction import KEPT_ANSWER
from sameworld.stores.prediction_log import predictions
from sameworld.training.trees import Trees

SHOPS = ["s0", "s1", "s2"]


def body(*shops: str) -> dict[str, Any]:
    return {
        "requests": [
            {"user": "nobody", "shop": shop, "basket": 10.5, "opened_at": "2024-03-16T10:00:00Z"}
            for shop in shops
        ]
    }


@dataclass
class Counting:
    """Trees that remember how many rows they were asked about."""

    trees: Trees
    rows: int = 0

    def raw_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        self.rows += rows.shape[0]
        return self.trees.raw_of(rows)


def counting(server: Driven, model: str = "plain") -> Counting:
    compiled = server.client.server.portfolio.models[model].bundle.scorer.compiled
    assert compiled is not None
    counted = Counting(compiled.trees)
    compiled.trees = counted  # type: ignore[assignment] # as far as a scorer knows trees
    return counted


def values(server: Driven, *shops: str) -> list[float]:
    status, answer = server.predict(body(*shops))
    assert status == 200
    assert {one["tier"] for one in answer["predictions"]} == {"model"}
    return [one["value"] for one in answer["predictions"]]


def test_rows_that_are_alike_and_in_flight_together_are_computed_once(trained: SmallWorld) -> None:
    with driven(trained.config()) as server:
        counted = counting(server)
        alike = values(server, "s0", "s1", "s0", "s0", "s1")
        assert counted.rows == 2
        assert (alike[0], alike[1]) == (alike[2], alike[4])
        assert values(server, "s0") == alike[:1]
        assert counted.rows == 3  # nothing is kept beyond that
    assert not any(KEPT_ANSWER in (one.ages or {}) for one in trained.logged())


def test_kept_answers_are_given_again_marked_in_the_log_and_proved(trained: SmallWorld) -> None:
    with driven(trained.config(cache={"plain": 1 << 20})) as server:
        counted = counting(server)
        first = values(server, *SHOPS)
        assert values(server, *SHOPS, "s0") == [*first, first[0]]
        assert counted.rows == 3
    ages = [(one.ages or {}).get(KEPT_ANSWER) for one in trained.logged()]
    assert ages[:3] == [None] * 3
    assert all(age is not None and age >= 0 for age in ages[3:])
    proof = trained.prove()
    assert (proof.kept, proof.different, proof.vectors) == (4, 0, 7)


def test_a_kept_answer_that_its_model_would_not_give_is_found(trained: SmallWorld) -> None:
    with driven(trained.config(cache={"plain": 1 << 20})) as server:
        for _ in range(2):
            values(server, "s1")
    right = trained.logged()[1]
    trained.rewrite_log(lambda one: msgspec.structs.replace(one, value=one.value + (one.id == right.id) * 1e-12))  # fmt: skip
    proof = trained.prove()
    (difference,) = proof.differences
    assert (proof.different, difference.cause, difference.feature) == (1, "kept answer", "(answer)")
    assert (difference.logged, difference.recomputed) == (right.value + 1e-12, right.value)


def test_answers_are_never_kept_from_one_version_to_another(trained: SmallWorld) -> None:
    old = trained.registry.newest("plain") or ""
    trained.edit("n_estimators=10", "n_estimators=11")
    trained.train()
    new = trained.registry.newest("plain") or ""
    config = trained.config(cache={"plain": 1 << 20}, models={"plain": old})
    with driven(config) as server:
        before = values(server, *SHOPS)
        for version, expected in ((new, False), (old, True)):
            status, told = server.send("POST", "/control/models/plain", {"version": version})
            assert (status, told["version"]) == (200, version)
            counted = counting(server)
            assert (values(server, *SHOPS) == before) is expected
            assert counted.rows == 3


def test_what_may_be_kept_of_nobody_is_an_error(trained_world: SmallWorld, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from sameworld.cli.main import main

    arguments = ["serve", "plain", "--world", str(trained_world.file), "--registry", str(trained_world.folder / "registry")]  # fmt: skip
    for told, said in (
        ("plane=1MB", "There is no model 'plane'.\n  in: --cache\n  expected: nearest: plain\n  do: correct its name."),
        ("plain", "It is not said how much is kept of which model."),
    ):  # fmt: skip
        done = CliRunner().invoke(main, [*arguments, "--state", str(tmp_path), "--cache", told])
        assert done.exit_code != 0
        assert said in done.output


@pytest.mark.parametrize("size", [600, 10_000])
def test_a_small_cache_gives_right_answers_too(trained: SmallWorld, size: int) -> None:
    with driven(trained.config()) as server:
        right = values(server, *SHOPS)
    with driven(trained.config(cache={"plain": size})) as server:
        for _ in range(3):
            assert values(server, *SHOPS) == right


def test_equal_rows_of_a_guarded_model_get_each_their_own_answer(played: SmallWorld, tmp_path: Path) -> None:
    config = played.config(models={"derived": played.registry.newest("derived") or ""}, state=str(tmp_path / "state"))  # fmt: skip
    with driven(config) as server:
        each = {one: server.predict(body(one), "derived")[1]["predictions"][0]["value"] for one in SHOPS}
        asked = ["s1", "s0", "s1", "s2", "s0", "s0"]
        status, answer = server.predict(body(*asked), "derived")
    assert status == 200
    assert [one["tier"] for one in answer["predictions"]] == ["model"] * 6
    assert [one["value"] for one in answer["predictions"]] == [each[one] for one in asked]
    logged = [one for _, one in predictions(tmp_path / "state") if one is not None][-6:]
    shop = list(played.registry.described(config.models["derived"]).description.request).index("shop")
    assert [one.request[shop] for one in logged] == asked
    assert all(one.features is not None for one in logged)
