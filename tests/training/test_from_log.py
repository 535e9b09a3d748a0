"""Moments from the prediction log: what was served is the next training set, to the bit."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from driven_server import driven
from small_world import DAY, END, UNTIL, SmallWorld

import sameworld as sw
from sameworld.errors import DataError, DefinitionError
from sameworld.evaluation.prove import same_bits
from sameworld.stores.prediction_log import Prediction, column_of
from sameworld.training.bundle import Registry
from sameworld.training.fit import Trained, train
from sameworld.training.training_set import problems_of

KNOWN = END + 30 * DAY


def in_order(rows: Sequence[Prediction], model: str) -> list[Prediction]:
    """Give a model's predictions in the order of their moments; the log of one process is in the order of the rest."""
    return sorted((row for row in rows if row.model == model), key=lambda row: row.t)


def as_served(world: SmallWorld, model: str) -> dict[str, pa.Array]:
    """Give the logged vectors as columns; null where there is none."""
    types = world.registry.load(world.registry.newest(model) or "", without_code=True).types
    rows = [row.features or [None] * len(types) for row in in_order(world.logged(), model)]
    return {
        name: column_of(values, kind)
        for (name, kind), values in zip(types.items(), zip(*rows, strict=True), strict=True)
    }


def differing(table: pa.Table, columns: dict[str, pa.Array]) -> list[str]:
    assert table.num_rows
    return [
        name for name, column in columns.items() if not same_bits(table[name].combine_chunks(), column).all()
    ]


def from_log(model: str = "plain", **options: Any) -> sw.Moments:
    return sw.Moments.from_log(model, state="state", **options)


def training_set(world: SmallWorld, moments: sw.Moments, model: str = "plain", **options: Any) -> pa.Table:
    chosen = world.load().models[model]
    return sw.training_set(chosen, moments=moments, folder=world.folder, as_of=KNOWN, cache=False, **options)


@pytest.mark.parametrize("model", ["plain", "derived"])
def test_a_training_set_from_the_log_is_what_was_served(played_world: SmallWorld, model: str) -> None:
    served = as_served(played_world, model)

    recomputed = training_set(played_world, from_log(model), model)
    taken = training_set(played_world, from_log(played_world.load().models[model], features="served"), model)

    assert recomputed.column_names == ["asked_at", *served, "label"]
    assert differing(recomputed, served) == []
    assert taken.replace_schema_metadata(None) == recomputed.replace_schema_metadata(None)
    asked = [row.t for row in in_order(played_world.logged(), model)]
    assert recomputed["asked_at"].cast(pa.int64()).to_pylist() == asked


def test_it_is_the_training_set_of_the_table_that_was_asked(played_world: SmallWorld) -> None:
    from_table = training_set(played_world, played_world.load().models["plain"].moments)
    chosen = pc.greater_equal(from_table["asked_at"].cast(pa.int64()), UNTIL)

    table = training_set(played_world, from_log())

    expected = from_table.filter(chosen).sort_by("asked_at")
    assert table.replace_schema_metadata(None) == expected.replace_schema_metadata(None)
    assert 0 < pc.sum(table["label"]).as_py() < table.num_rows


LATER = {
    "user": "u1",
    "shop": "s1",
    "basket": 12.5,
    "opened_at": "2024-03-16T10:00:00Z",
    "ask_id": "live",
}


def test_live_answers_come_back_with_what_their_snapshots_had(trained: SmallWorld) -> None:
    now = datetime.datetime.now(datetime.UTC)
    with driven(trained.config(), cutover=UNTIL) as server:
        for number in range(6):
            order = {
                "order_id": f"n{number // 2}", "revision": number % 2, "user": "u1", "shop": "s1", "amount": 10.25 + number,
                "ordered_at": (now - datetime.timedelta(hours=number)).isoformat(), "seen_at": now.isoformat(),
            }  # fmt: skip
            assert server.events({"events": [order]}, key=f"e{number}")[0] == 200
            status, body = server.predict({"requests": [LATER, LATER | {"user": None, "basket": None}]})
            assert (status, {p["tier"] for p in body["predictions"]}) == (200, {"model"})
        outcome = {
            "ask_id": "live",
            "paid": 1.0,
            "settled_at": (now + datetime.timedelta(minutes=5)).isoformat(),
        }
        assert server.events({"events": [outcome]}, source="outcomes")[0] == 200
        # An answer that nothing could be read for.
        answering = server.client.server._answering
        store, answering._store = answering._store, Broken(answering._store)
        assert server.predict({"request": LATER})[1]["predictions"][0]["tier"] == "fallback_1_rate"
        answering._store = store
        raw = training_set(trained, from_log())

    table = training_set(trained, from_log())
    taken = training_set(trained, from_log(features="served"))

    served = as_served(trained, "plain")
    assert len(set(served["spent_2d"].to_pylist())) > 5
    assert table.num_rows == 13
    assert differing(table[:12], {name: column[:12] for name, column in served.items()}) == []
    assert differing(taken, served) == []
    # The fallback's moment is one too; recomputed, it has what could have been read.
    assert {name: taken[name][12].as_py() for name in served} == dict.fromkeys(served)
    assert table["spent_2d"][12] == table["spent_2d"][10]
    # Rotated or not, it is the same.
    assert raw.equals(table, check_metadata=True)


class Broken:
    """A store whose index cannot be read."""

    def __init__(self, store: Any) -> None:
        self.clock = store.clock

    def snapshot(self, *_: Any) -> Any:
        raise OSError("the disk is gone")


def test_parts_and_files_of_it_are_the_same(played_world: SmallWorld, tmp_path: Path) -> None:
    model = played_world.load().models["plain"]
    options: dict[str, Any] = {"moments": from_log(features="served"), "folder": played_world.folder}
    options |= {"as_of": KNOWN, "cache": False}
    whole = sw.training_set(model, **options)

    batches = sw.training_batches(model, rows_a_batch=17, **options)
    written = sw.write_training_set(model, to=tmp_path / "set", rows_a_file=17, **options)

    assert batches.read_all().equals(whole)
    assert written.rows == whole.num_rows
    assert written.made_of.content == msgspec.json.decode(whole.schema.metadata[b"sameworld"])["fingerprint"]


def test_its_fingerprint_has_the_events_too(played: SmallWorld) -> None:
    def fingerprint() -> Any:
        return msgspec.json.decode(training_set(played, from_log()).schema.metadata[b"sameworld"])

    before = fingerprint()
    assert fingerprint() == before
    (played.state / "cutover").write_text(str(UNTIL - 1))
    assert fingerprint()["sources"]["orders"]["content"] != before["sources"]["orders"]["content"]


def test_a_model_is_trained_from_its_log(played: SmallWorld) -> None:
    played.edit(
        'asks = sw.Moments("data/asks.parquet", at="asked_at")',
        'asks = sw.Moments.from_log("plain", state="state")',
    )
    model = played.load().models["plain"]
    middle = (UNTIL + END) // 2
    assert problems_of(model, played.engine()) == []

    trained = train(model, registry=played.registry, until=middle, as_of=KNOWN, folder=played.folder)

    assert trained.rows["fit"] > 10
    assert trained.rows["test"] > 10
    again = played.registry.load(played.registry.newest("plain") or "")
    assert again.address == trained.bundle.address
    assert again.description.request == trained.bundle.description.request


def test_versions_and_times_are_chosen(played_world: SmallWorld) -> None:
    version = played_world.registry.newest("plain") or ""
    whole = training_set(played_world, from_log(versions=[version]))
    middle = (UNTIL + END) // 2
    border = str(np.datetime64(middle, "us")) + "Z"

    early, late = (
        training_set(played_world, from_log(until=border)),
        training_set(played_world, from_log(since=border)),
    )

    assert early.num_rows > 0
    assert pa.concat_tables([early, late]).replace_schema_metadata(None) == whole.replace_schema_metadata(
        None
    )
    assert late["asked_at"].cast(pa.int64())[0].as_py() >= middle
    with pytest.raises(DataError, match="or none of those versions and times"):
        training_set(played_world, from_log(versions=["other"]))


def test_a_log_without_the_model_is_named(played_world: SmallWorld) -> None:
    with pytest.raises(DataError) as raised:
        training_set(played_world, from_log("plane"))

    assert raised.value.text() == (
        "The prediction log has no predictions of model 'plane'.\n"
        f"  in: {played_world.state}\n"
        "  do: serve the model first, or correct the model's name or state=; sameworld log lists what is there."
    )


def test_features_that_were_served_otherwise_are_not_taken_as_served(played: SmallWorld) -> None:
    played.edit(
        '"shop_mean": orders.by("shop").mean("amount", over="1d")',
        '"shop_mean": orders.by("shop").mean("amount", over="2d")',
    )
    played.edit('over=["6h", "2d"]', 'over=["6h", "3d"]')
    version = played.registry.newest("plain")

    with pytest.raises(DataError) as raised:
        training_set(played, from_log(features="served"))

    assert raised.value.text() == (
        "Not all features of model 'plain' were served as they are defined now.\n"
        "  in: sw.Moments.from_log, features='served'\n"
        f"  found: version {version}: spent_3d, shop_mean\n"
        "  do: leave features='served' out, so that they are recomputed, or choose other versions with versions=."
    )
    assert training_set(played, from_log()).num_rows


def test_what_is_wrong_with_it_is_said_where_it_is_written() -> None:
    with pytest.raises(DefinitionError, match="'seen' is not a way to read features"):
        sw.Moments.from_log("m", features="seen")  # pyright: ignore[reportArgumentType] # that is the test
    with pytest.raises(DefinitionError, match="since has no zone"):
        sw.Moments.from_log("m", since="2026-01-01")
    with pytest.raises(DefinitionError, match="Only a prediction log says what was served"):
        sw.Moments("asks.parquet", at="at", served=True)


def test_the_time_needs_a_name_of_its_own(played_world: SmallWorld) -> None:
    with pytest.raises(DataError, match="have a field 'basket', which is what the column of the time"):
        training_set(played_world, from_log(at="basket"))


def asks(world: SmallWorld, columns: str = "*", where: str = "true") -> sw.Moments:
    query = f"SELECT {columns} FROM '{world.folder}/data/asks.parquet' WHERE {where} ORDER BY asked_at"
    return sw.Moments(query, at="asked_at")


def retrained(
    world: SmallWorld, registry: Path, *moments: sw.Moments, calibration: str | None = None
) -> Trained:
    """Train "plain" at the end of what was played, from several tables of moments."""
    model = world.load().models["plain"]
    model = msgspec.structs.replace(model, moments=moments[0], calibration=calibration)
    return train(model, also=moments[1:], registry=registry, until=END, as_of=KNOWN, folder=world.folder)


BEFORE, SINCE = (f"asked_at {side} make_timestamptz({UNTIL})" for side in ("<", ">="))


def test_learning_from_history_and_from_what_was_served_since_is_learning_from_all(
    played_world: SmallWorld, tmp_path: Path
) -> None:
    history, since = asks(played_world, where=BEFORE), asks(played_world, where=SINCE)
    served = from_log(features="served")

    told = [
        retrained(played_world, tmp_path, *moments)
        for moments in ([asks(played_world)], [history, served], [history, since], [history])
    ]

    trees = [one.bundle.estimator.model_to_string() for one in told]
    assert trees[0] == trees[1] == trees[2] != trees[3]
    (also,) = Registry(tmp_path).load(told[1].bundle.address).description.also
    assert (also["data"]["model"], also["served"]) == ("plain", True)


def test_each_table_of_moments_has_its_own_calibration_slice(
    played_world: SmallWorld, tmp_path: Path
) -> None:
    """By time alone, what was served last would all calibrate, and nothing would be learnt from it."""
    history = asks(played_world, where=BEFORE)
    alone = retrained(played_world, tmp_path, history, calibration="isotonic").rows
    served = retrained(played_world, tmp_path, from_log(), calibration="isotonic").rows

    both = retrained(
        played_world, tmp_path, history, from_log(features="served"), calibration="isotonic"
    ).rows

    assert served["fit"] > served["calibration"] > 0
    for name in ("fit", "calibration"):
        assert both[name] == alone[name] + served[name]


def test_moments_with_other_fields_are_not_learnt_from_together(
    played_world: SmallWorld, tmp_path: Path
) -> None:
    other = asks(played_world, "* EXCLUDE (basket), basket::INTEGER AS basket, 'web' AS channel")
    with pytest.raises(DataError) as raised:
        retrained(played_world, tmp_path, asks(played_world), from_log(), other)
    assert raised.value.text() == (
        "Two tables of moments do not have the same fields.\n"
        "  in: also[1]\n"
        "  expected: basket: float, channel: none\n"
        "  found: basket: integer, channel: text\n"
        "  do: give both the same columns, in the same types."
    )


def test_models_keep_their_contents(trained_world: SmallWorld) -> None:
    """A model's hash does not say where its moments lie, and the option that they did not always have is not in it."""
    model = trained_world.load().models["plain"]
    bundle = trained_world.registry.load(trained_world.registry.newest("plain") or "")

    assert (
        msgspec.structs.replace(model, moments=from_log()).content
        == model.content
        == bundle.description.content
    )
    assert msgspec.structs.replace(model, moments=from_log(features="served")).content != model.content
