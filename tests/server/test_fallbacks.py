"""Whatever breaks, a request that can be read gets 200, a value, the tier it comes from and why; what broke is counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driven_server import Driven, driven
from numpy.typing import NDArray
from small_world import UNTIL, WORLD, SmallWorld, make

from sameworld.server.lanes import NativeLane
from sameworld.stores.prediction_log import predictions

REQUEST = {"user": "u1", "shop": "s1", "basket": 12.5, "opened_at": "2024-03-16T10:00:00Z"}


@pytest.fixture
def server(trained: SmallWorld) -> Iterator[Driven]:
    with driven(trained.config(), cutover=UNTIL) as running:
        yield running


def one(answer: tuple[int, Any]) -> dict[str, Any]:
    """Give the only prediction of a 200."""
    status, body = answer
    assert status == 200, body
    (prediction,) = body["predictions"]
    assert np.isfinite(prediction["value"])
    return prediction


def count(server: Driven, name: str) -> float:
    text = server.send("GET", "/metrics")[1]
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def rate(world: SmallWorld, shop: str | None) -> float:
    bundle = world.registry.load(world.registry.newest("plain") or "")
    (table,) = bundle.description.rates
    return dict(table.rates).get(shop, table.overall)


class BrokenStore:
    """A store whose index cannot be read."""

    def __init__(self, store: Any) -> None:
        self.clock = store.clock

    def snapshot(self, *_: Any) -> Any:
        raise OSError("the disk is gone")


def test_a_store_that_cannot_be_read_is_answered_by_the_first_fallback(
    server: Driven, trained: SmallWorld
) -> None:
    answering = server.client.server._answering
    sound, answering._store = answering._store, BrokenStore(answering._store)
    found = one(server.predict({"request": REQUEST}))
    assert (found["tier"], found["reason"]) == ("fallback_1_rate", "store: OSError: the disk is gone")
    assert found["value"] == rate(trained, "s1")
    assert found["logged"]
    several = server.predict({"requests": [REQUEST, {}]})[1]["predictions"]
    assert [p["value"] for p in several] == [rate(trained, "s1"), rate(trained, None)]
    # It comes back by itself.
    answering._store = sound
    assert one(server.predict({"request": REQUEST}))["tier"] == "model"
    assert count(server, 'sameworld_incidents_total{part="store"}') == 2
    assert count(server, 'sameworld_predictions_total{model="plain",tier="fallback_1_rate"}') == 3


def test_a_store_that_was_closed_is_a_store_that_cannot_be_read(trained: SmallWorld) -> None:
    with driven(trained.config(), cutover=UNTIL) as server:
        server.client.server.store.index.close()
        found = one(server.predict({"request": REQUEST}))
        assert found["tier"] == "fallback_1_rate"
        assert found["reason"].startswith("store: ")
        assert server.send("GET", "/livez")[0] == 200


def test_a_rate_of_an_unseen_value_is_the_overall_mean(server: Driven, trained: SmallWorld) -> None:
    answering = server.client.server._answering
    answering._store = BrokenStore(answering._store)
    overall = rate(trained, "nowhere")
    for shop in ("nowhere", None, ""):
        assert one(server.predict({"request": REQUEST | {"shop": shop}}))["value"] == overall
    assert overall not in {rate(trained, shop) for shop in ("s0", "s1", "s2")}


def test_without_fallbacks_the_answer_says_that_it_is_none(tmp_path: Path) -> None:
    world = make(
        tmp_path / "world",
        WORLD.replace("fallbacks=fallbacks, ", "").replace("    fallbacks=fallbacks,", "   "),
    )
    with driven(world.config(), cutover=UNTIL) as server:
        answering = server.client.server._answering
        answering._store = BrokenStore(answering._store)
        found = one(server.predict({"request": REQUEST}))
    assert (found["value"], found["tier"]) == (0.0, "none")
    assert found["reason"] == "store: OSError: the disk is gone; no fallback answered"


class Late:
    """A bundle that answers after the deadline."""

    def __init__(self, bundle: Any) -> None:
        self._bundle = bundle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bundle, name)

    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        import time

        time.sleep(0.08)
        return self._bundle.scores_of(rows)


class Wrong(Late):
    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.answer(rows)


@pytest.fixture
def hurried(trained: SmallWorld) -> Iterator[Driven]:
    trained.edit('deadline="20s"', 'deadline="50ms"')
    trained.train()
    with driven(trained.config(), cutover=UNTIL) as running:
        yield running


def test_what_misses_the_deadline_is_answered_by_a_fallback(hurried: Driven) -> None:
    served = hurried.client.server.portfolio.models["plain"]
    assert isinstance(served.lane, NativeLane)
    served.bundle = Late(served.bundle)
    found = one(hurried.predict({"request": REQUEST}))
    assert (found["tier"], found["reason"], found["logged"]) == ("fallback_1_rate", "deadline", True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda rows: np.full(len(rows), np.nan), "model: it gave nan"),
        (lambda rows: np.full(len(rows), -np.inf), "model: it gave -inf"),
        (lambda rows: np.zeros(len(rows) + 1), "model: it gave shape (2,) for 1 requests"),
        (lambda rows: np.zeros((len(rows), 2)), "model: it gave shape (1, 2) for 1 requests"),
        (lambda rows: 1 / 0, "model: ZeroDivisionError: division by zero"),
    ],
)
def test_a_model_that_gives_no_number_is_answered_by_a_fallback(
    server: Driven, answer: Any, reason: str
) -> None:
    served = server.client.server.portfolio.models["plain"]
    sound, served.bundle = served.bundle, Wrong(served.bundle)
    served.bundle.answer = answer
    found = one(server.predict({"request": REQUEST}))
    assert (found["tier"], found["reason"]) == ("fallback_1_rate", reason)
    served.bundle = sound
    assert one(server.predict({"request": REQUEST}))["tier"] == "model"


# The prediction log.


def test_an_answer_that_cannot_be_logged_still_goes_out(
    server: Driven, trained: SmallWorld, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = next((trained.state / "predictions").iterdir())
    assert one(server.predict({"request": REQUEST}))["logged"]
    kept = len(list(predictions(trained.state)))
    aside = folder.with_name("aside")
    shutil.move(folder, aside)
    folder.write_text("a file where the log's folder was")
    # The segment that is open can still be written; a new one cannot be begun.
    server.client.server.log._log._segment_bytes = 0
    found = one(server.predict({"request": REQUEST}))
    assert (found["tier"], found["logged"]) == ("model", False)
    assert count(server, 'sameworld_unlogged_predictions_total{model="plain"}') == 1
    assert count(server, 'sameworld_incidents_total{part="prediction log"}') == 1
    # It is logged again as soon as it can be, and nothing that was logged is lost.
    folder.unlink()
    shutil.move(aside, folder)
    assert one(server.predict({"request": REQUEST}))["logged"]
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["incident"], line["of"]) for line in told] == [
        ("broken", "prediction log"),
        ("recovered", "prediction log"),
    ]
    assert len(list(predictions(trained.state))) == kept + 1


LIMITED = """
import json, resource, signal, sys
from pathlib import Path

sys.path[:0] = [{tests!r}]
from driven_server import driven
from small_world import UNTIL, SmallWorld

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
world = SmallWorld(Path({folder!r}), ("plain",))
request = {request!r}
with driven(world.config(), cutover=UNTIL) as server:
    log = next(server.client.server.log._log._folder.glob("*.log"))
    ask = lambda: server.predict({{"request": request}})[1]["predictions"][0]
    logged = [ask()["logged"]]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 100, hard))
    logged += [ask()["logged"] for _ in range(3)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    logged += [ask()["logged"]]
    metrics = server.send("GET", "/metrics")[1]
print(json.dumps([logged, metrics]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_counted_and_passes(trained: SmallWorld) -> None:
    code = LIMITED.format(
        tests=str(Path(__file__).parent.parent), folder=str(trained.folder), request=REQUEST
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    logged, metrics = json.loads(ran.stdout.splitlines()[-1])
    assert logged == [True, False, False, False, True]
    assert 'sameworld_unlogged_predictions_total{model="plain"} 3.0' in metrics
    assert 'sameworld_incidents_total{part="prediction log"} 3.0' in metrics
    # Only whole records are in it.
    assert len([p for _, p in predictions(trained.state) if p is not None]) == 2
    assert trained.prove().different == 0
