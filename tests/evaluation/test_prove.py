"""A proof finds nothing where nothing differs, and finds and names every difference that is planted."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cluster_sessions import CLUSTERS, cluster_engine_in
from small_world import END, HOUR, UNTIL, SmallWorld, instants, serving

from sameworld.errors import ProofError
from sameworld.evaluation.prove import Difference, Proof, prove, same_bits
from sameworld.stores.prediction_log import Prediction
from sameworld.training.bundle import Registry


def test_what_was_served_is_what_the_sources_give(played_world: SmallWorld) -> None:
    asked = len(played_world.asks().at)
    for against in ("log", "files"):
        proof = played_world.prove(against)
        assert (proof.vectors, proof.values, proof.different, proof.without_vector) == (
            2 * asked,
            asked * (9 + 10),
            0,
            0,
        )
        assert proof.as_json() == {
            "vectors": 2 * asked,
            "values": 19 * asked,
            "different": 0,
            "without_vector": 0,
            "causes": {},
            "defaults": {},
            "replaced": {},
            "kept": 0,
            "kept_unjudged": 0,
            "differences": [],
        }


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_cluster_proves_what_one_machine_proves(played: SmallWorld, cluster: str) -> None:
    """Files up to the cutover and the event log after it. With a row taken away, the same cells differ for the same causes."""
    engine = cluster_engine_in(cluster, partitions=2)(played.folder)
    orders, row = played.table("orders"), used_order(played, BEFORE)
    played.write("orders", pa.concat_tables([orders[:row], orders[row + 1 :]]))

    proof = prove(played.load().models, played.registry, played.state, engine=engine)

    assert 0 < proof.different < proof.values
    assert proof.as_json() == played.prove().as_json()


def test_the_small_world_is_hard_enough(played_world: SmallWorld) -> None:
    """Late rows, corrections on both sides of the cutover, nulls and unknown entities are among what was proved."""
    orders = played_world.table("orders")
    seen = orders["seen_at"].cast(pa.int64()).to_numpy()
    revision = orders["revision"].to_numpy()
    assert ((revision == 2) & (seen < UNTIL)).any()
    assert ((revision == 2) & (seen >= UNTIL)).any()
    vectors = [p.features for p in played_world.logged() if p.model == "plain"]
    columns = list(played_world.registry.load(played_world.registry.newest("plain") or "").types)
    by_name = dict(zip(columns, zip(*vectors, strict=True), strict=True))
    assert None in by_name["spent_6h"]
    assert None in by_name["last_amount"]
    assert None in by_name["basket"]
    assert len(set(by_name["shop_mean"])) > 50


# Each difference alone.


def column_of(world: SmallWorld, name: str, model: str = "plain") -> int:
    """Give a column's place in a model's logged vectors."""
    from sameworld.training.world_file import functions_of

    bundle = world.registry.load(world.registry.newest(model) or "", functions_of(world.file))
    return list(bundle.types).index(name)


def chosen(world: SmallWorld, column: str) -> Prediction:
    """Give the last logged answer of the plain model with a value in a column."""
    place = column_of(world, column)
    return next(p for p in reversed(world.logged()) if p.model == "plain" and (p.features or [])[place])


def with_cell(prediction: Prediction, place: int, change: Callable[[Any], Any]) -> Prediction:
    features = list(prediction.features or [])
    features[place] = change(features[place])
    return msgspec.structs.replace(prediction, features=features)


def only(proof: Proof, cause: str) -> list[Difference]:
    """Check that a proof found differences, all of one cause, and that each says all there is to say."""
    assert proof.different == len(proof.differences) > 0
    assert dict(proof.causes) == {cause: proof.different}
    for difference in proof.differences:
        assert difference.cause == cause
        assert difference.detail
        assert difference.model
        assert difference.feature
        assert difference.t >= UNTIL
        assert "#" in difference.where
        assert (difference.logged, type(difference.logged)) != (
            difference.recomputed,
            type(difference.recomputed),
        )
    return proof.differences


@pytest.mark.parametrize("against", ["log", "files"])
def test_one_bit_flipped_in_a_logged_vector_is_found(played: SmallWorld, against: Any) -> None:
    victim = chosen(played, "shop_mean")
    place = column_of(played, "shop_mean")
    old = (victim.features or [])[place]
    flipped = float(np.nextafter(old, np.inf))
    played.rewrite_log(lambda p: with_cell(p, place, lambda _: flipped) if p.id == victim.id else p)
    (difference,) = only(played.prove(against), "log")
    shop = victim.request[2]
    assert difference.text() == (
        f"plain shop_mean of shop={shop!r} at {np.datetime64(victim.t, 'us')}Z ({difference.where})\n"
        f"  logged: {flipped!r} ({struct.pack('>d', flipped).hex()})\n"
        f"  recomputed: {old!r} ({struct.pack('>d', old).hex()})\n"
        "  cause: log; nothing the sources ever held gives the logged value: the log was altered, or the server computed"
        " otherwise"
    )


def test_a_flipped_request_field_is_found(played: SmallWorld) -> None:
    victim = chosen(played, "basket")
    place = column_of(played, "basket")
    played.rewrite_log(lambda p: with_cell(p, place, lambda v: v + 0.25) if p.id == victim.id else p)
    (difference,) = only(played.prove(), "log")
    assert (difference.feature, difference.logged) == ("basket", difference.recomputed + 0.25)


def test_a_record_whose_checksum_is_broken_is_found(played: SmallWorld) -> None:
    played.rewrite_log(
        lambda prediction: prediction
    )  # records again, which a stopped server leaves as Parquet
    (segment,) = (played.state / "predictions").glob("*/*.log")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    before = len(played.logged())
    proof = played.prove()
    assert (proof.different, dict(proof.causes), proof.vectors) == (1, {"log": 1}, before)
    assert proof.differences[0].text().endswith("cause: log; the record's bytes do not match their checksum")


def test_a_null_served_where_the_sources_have_a_value_is_a_default(played: SmallWorld) -> None:
    victim = chosen(played, "last_amount")
    place = column_of(played, "last_amount")
    played.rewrite_log(lambda p: with_cell(p, place, lambda _: None) if p.id == victim.id else p)
    (difference,) = only(played.prove(), "default")
    assert difference.logged is None
    assert difference.recomputed == (victim.features or [])[place]
    assert difference.entity == {"user": victim.request[1]}


# Where the sources changed: after the cutover the files are compared with what came over the wire, before it with their fingerprint.
AFTER, BEFORE = "files", "log"


def used_order(world: SmallWorld, side: str) -> int:
    """Give the row of an order, never corrected, that was readable on one side of the cutover and counted in later answers."""
    orders = world.table("orders")
    seen = orders["seen_at"].cast(pa.int64()).to_numpy()
    corrected = pc.is_in(orders["order_id"], orders.filter(pc.equal(orders["revision"], 2))["order_id"])
    alone = ~corrected.to_numpy(zero_copy_only=False)
    if side == AFTER:
        ours = alone & (seen > UNTIL + HOUR) & (seen < END - 24 * HOUR)
    else:
        ours = alone & (seen < UNTIL - 2 * HOUR) & (seen > UNTIL - 6 * HOUR)
    return int(np.flatnonzero(ours)[0])


def replaced(table: pa.Table, row: int, **values: Any) -> pa.Table:
    for name, value in values.items():
        column = table[name].combine_chunks()
        one = (
            pa.array([value], pa.int64()).cast(column.type)
            if isinstance(value, int)
            else pa.array([value], column.type)
        )
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.concat_arrays([column[:row], one, column[row + 1 :]]))
    return table


def entities(table: pa.Table, row: int) -> set[tuple[str, str]]:
    return {("user", table["user"][row].as_py()), ("shop", table["shop"][row].as_py())}


def about(differences: list[Difference], table: pa.Table, row: int) -> None:
    """Check that differences are of the row's entities, or of features derived from theirs."""
    found = {pair for difference in differences for pair in difference.entity.items()}
    assert found == entities(table, row)
    assert {difference.feature for difference in differences} >= {"spent_2d", "orders", "shop_mean"}


@pytest.mark.parametrize("against", [AFTER, BEFORE])
def test_an_event_removed_from_the_files_is_a_missing_source(played: SmallWorld, against: Any) -> None:
    orders = played.table("orders")
    row = used_order(played, against)
    played.write("orders", pa.concat_tables([orders[:row], orders[row + 1 :]]))
    differences = only(played.prove(against), "missing source")
    about(differences, orders, row)
    assert {(d.logged, d.recomputed) for d in differences if d.feature == "orders"} == {
        (d.logged, d.logged - 1) for d in differences if d.feature == "orders"
    }


@pytest.mark.parametrize("against", [AFTER, BEFORE])
def test_an_event_made_late_is_a_late_row(played: SmallWorld, against: Any) -> None:
    orders = played.table("orders")
    row = used_order(played, against)
    seen = orders["seen_at"].cast(pa.int64())[row].as_py()
    if against == AFTER:
        played.write("orders", replaced(orders, row, seen_at=seen + 12 * HOUR))
        differences = only(played.prove(against), "late row")
        about(differences, orders, row)
        assert all(seen < d.t <= seen + 12 * HOUR for d in differences)
        assert differences[0].detail.endswith(
            f"became readable at {np.datetime64(seen + 12 * HOUR, 'us')}Z, after the moment"
        )
    else:
        played.write("orders", replaced(orders, row, seen_at=UNTIL + 6 * HOUR))
        differences = only(played.prove(against), "late row")
        about(differences, orders, row)


@pytest.mark.parametrize("against", [AFTER, BEFORE])
def test_an_event_added_to_the_past_is_a_late_row(played: SmallWorld, against: Any) -> None:
    orders = played.table("orders")
    row = used_order(played, against)
    extra = replaced(orders[row : row + 1], 0, order_id="added")
    played.write("orders", pa.concat_tables([orders, extra]))
    about(only(played.prove(against), "late row"), orders, row)


@pytest.mark.parametrize("against", [AFTER, BEFORE])
def test_a_correction_the_server_did_not_have_is_a_correction(played: SmallWorld, against: Any) -> None:
    orders = played.table("orders")
    row = used_order(played, against)
    seen = orders["seen_at"].cast(pa.int64())[row].as_py()
    extra = replaced(orders[row : row + 1], 0, revision=2, amount=1234.5)
    extra = replaced(extra, 0, seen_at=seen + HOUR)
    played.write("orders", pa.concat_tables([orders, extra]))
    differences = only(played.prove(against), "correction")
    found = {pair for difference in differences for pair in difference.entity.items()}
    assert found == entities(orders, row)
    assert all(d.t > (seen + HOUR if against == AFTER else UNTIL) for d in differences)


def test_a_condition_that_changed_is_a_definition(played: SmallWorld) -> None:
    played.edit('where("amount > 50")', 'where("amount > 45.5")')
    differences = only(played.prove(), "definition")
    assert {d.feature for d in differences} == {"large"}
    assert {d.detail for d in differences} == {"where: 'amount > 50' -> 'amount > 45.5'"}
    assert {d.model for d in differences} == {"plain", "derived"}


def test_a_window_that_changed_is_a_definition(played: SmallWorld) -> None:
    played.edit('over=["6h", "2d"]', 'over=["7h", "2d"]')
    differences = only(played.prove(), "definition")
    assert {d.feature for d in differences} == {"spent_6h"}
    assert {d.recomputed for d in differences} == {None}


def test_a_feature_of_another_type_is_a_definition(played: SmallWorld) -> None:
    played.edit('"basket": sw.field("basket")', '"basket": sw.field("shop")')
    assert {d.feature for d in only(played.prove(), "definition")} == {"basket"}


def test_the_code_of_a_derived_feature_that_changed_is_code(played: SmallWorld) -> None:
    played.edit("spent / (count + 1.0)", "spent / (count + 1.5)")
    differences = only(played.prove(), "code")
    assert {(d.model, d.feature) for d in differences} == {("derived", "per_order")}
    assert differences[0].detail.startswith("the code of 'per_order' is not that of the bundle (")


def test_a_derived_feature_that_is_gone_is_code(played: SmallWorld) -> None:
    text = played.file.read_text()
    played.file.write_text(text[: text.index("\nderived = ")])
    differences = only(played.prove(), "code")
    assert {(d.model, d.feature, d.recomputed) for d in differences} == {("derived", "per_order", None)}


def test_what_is_derived_from_a_changed_feature_says_so(played: SmallWorld) -> None:
    played.edit(
        '"orders": orders.by("user").count(over="2d")', '"orders": orders.by("shop").count(over="2d")'
    )
    differences = only(played.prove(), "definition")
    assert {(d.model, d.feature) for d in differences} == {
        ("plain", "orders"),
        ("derived", "orders"),
        ("derived", "per_order"),
    }


# What is proved without a replay.


def test_what_was_served_live_is_what_files_and_log_give(trained: SmallWorld) -> None:
    """Readable is what was in the snapshot, whatever the producer's times say."""
    orders = trained.table("orders")
    extra = orders.filter(
        pc.greater(orders["seen_at"], pa.scalar(UNTIL, pa.int64()).cast(orders["seen_at"].type))
    )
    events = [
        {**row, "ordered_at": row["ordered_at"].isoformat(), "seen_at": row["seen_at"].isoformat()}
        for row in extra.to_pylist()
    ][:60]

    async def live() -> None:
        async with serving(trained.config(), cutover=UNTIL) as client:
            for event in events:
                body = msgspec.json.encode({"events": [event]})
                ask = msgspec.json.encode(
                    {"request": {"user": event["user"], "shop": event["shop"], "basket": 3}}
                )
                answers = await asyncio.gather(
                    client.request("POST", "/v1/sources/orders/events", body),
                    *(client.request("POST", "/v1/models/plain/predict", ask) for _ in range(3)),
                )
                assert {answer.status for answer in answers} == {200}

    asyncio.run(live())
    proof = trained.prove()
    assert (proof.vectors, proof.different) == (3 * len(events), 0)


def test_without_a_log_there_is_nothing_to_prove(trained_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(ProofError) as caught:
        prove({}, Registry(tmp_path), tmp_path / "state", engine=trained_world.engine())
    assert str(caught.value) == (
        f"There is no prediction log.\n  in: {tmp_path / 'state'}\n  do: serve the model first, or give --state."
    )


def test_bits_are_compared_not_values() -> None:
    floats = pa.array([0.0, 1.0, None, None, 2.0])
    others = pa.array([-0.0, 1.0, None, 0.0, np.nextafter(2.0, 3)])
    assert same_bits(floats, others).tolist() == [False, True, True, False, False]
    big = pa.array([2**53, None, 2**53 + 1])
    assert same_bits(big, pa.array([2**53 + 1, None, 2**53 + 1])).tolist() == [False, True, True]
    assert same_bits(pa.array(["a", None]), pa.array(["a", "b"])).tolist() == [True, False]
    assert same_bits(instants([1, 2]), instants([1, 3])).tolist() == [True, False]
