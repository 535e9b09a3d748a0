"""A bundle is what its address says, written by its registry, and answers as it did where it was made; or it is not loaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from small_world import DERIVED, UNTIL, WORLD, SmallWorld, make

import sameworld.training.bundle as bundles
from sameworld.errors import BundleError
from sameworld.training.bundle import Registry
from sameworld.training.fit import train
from sameworld.training.world_file import functions_of


def address_of(world: SmallWorld, model: str = "plain") -> str:
    return world.registry.newest(model) or ""


def refused(world: SmallWorld, address: str) -> str:
    with pytest.raises(BundleError) as caught:
        world.registry.load(address)
    return str(caught.value)


def test_what_is_loaded_is_what_was_saved(trained: SmallWorld) -> None:
    model = trained.load().model("plain")
    made = train(model, registry=trained.folder / "other", until=UNTIL, folder=trained.folder).bundle
    loaded = Registry(trained.folder / "other").load(made.address)
    assert msgspec.json.encode(loaded.description) == msgspec.json.encode(made.description)
    assert loaded.model.content == model.content
    assert made.selftest is not None
    columns = {name: made.selftest[name].combine_chunks() for name in made.types}
    assert np.array_equal(loaded.scores(columns).view(np.int64), made.scores(columns).view(np.int64))


def test_the_same_input_gives_the_same_address(trained: SmallWorld) -> None:
    first = address_of(trained)
    trained.train()
    assert address_of(trained) == first
    elsewhere = train(
        trained.load().model("plain"), registry=trained.folder / "other", until=UNTIL, folder=trained.folder
    )
    assert elsewhere.bundle.address == first


def test_where_the_world_lies_is_not_part_of_the_model(
    trained: SmallWorld, trained_world: SmallWorld
) -> None:
    assert trained.load().model("plain").content == trained_world.load().model("plain").content


def test_another_input_gives_another_address_and_the_old_bundle_stays(trained: SmallWorld) -> None:
    first = address_of(trained)
    trained.edit("n_estimators=10", "n_estimators=11")
    trained.train()
    assert address_of(trained) != first
    trained.registry.load(first)
    trained.registry.load(address_of(trained))


def test_an_unknown_bundle_is_refused(trained_world: SmallWorld) -> None:
    assert refused(trained_world, "0" * 32) == (
        f"There is no bundle {'0' * 32}.\n  in: {trained_world.folder / 'registry'}\n"
        "  do: train the model first: sameworld train."
    )
    assert trained_world.registry.newest("nobody") is None


@pytest.mark.parametrize("name", ["bundle.json", "model.txt", "selftest.arrow"])
def test_one_damaged_byte_anywhere_is_refused(trained: SmallWorld, name: str) -> None:
    address = address_of(trained)
    place = trained.folder / "registry" / "bundles" / address
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    assert refused(trained, address) == (
        f"Bundle {address} is damaged: its files do not have that hash.\n  in: {place}\n"
        "  do: train it again, or restore the files."
    )


def test_a_file_too_many_or_too_few_is_refused(trained: SmallWorld) -> None:
    address = address_of(trained)
    place = trained.folder / "registry" / "bundles" / address
    (place / "model.pickle").write_bytes(pickle.dumps(None))
    assert "is damaged" in refused(trained, address)
    (place / "model.pickle").unlink()
    (place / "selftest.arrow").unlink()
    assert "is damaged" in refused(trained, address)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_what_this_registry_did_not_write_is_never_unpickled(trained: SmallWorld) -> None:
    address = address_of(trained)
    folder = trained.folder / "registry" / "bundles"
    forged = folder / "forged"
    (folder / address).rename(forged)
    (forged / "model.txt").unlink()
    exploded = trained.folder / "exploded"
    (forged / "model.pickle").write_bytes(pickle.dumps(Bomb(exploded)))
    # The address fits the files, so that only the signature stands between them and us.
    forged_address = bundles._address(forged)
    place = forged.rename(folder / forged_address)
    message = (
        f"Bundle {forged_address} was not written by this registry.\n  in: {place}\n"
        "  do: nothing in it was loaded. Train it here, or copy the registry with its key."
    )
    assert refused(trained, forged_address) == message
    (place / "signature").unlink()
    assert refused(trained, forged_address) == message
    (place / "signature").write_text("0" * 64)
    assert refused(trained, forged_address) == message
    assert not exploded.exists()


def test_another_registrys_bundle_needs_its_key(trained: SmallWorld) -> None:
    address = address_of(trained)
    key = trained.folder / "registry" / "registry.key"
    assert key.stat().st_mode & 0o077 == 0
    kept = key.read_bytes()
    key.unlink()
    assert "was not written by this registry" in refused(trained, address)
    key.write_bytes(kept)
    trained.registry.load(address)


def test_a_bundle_that_answers_otherwise_than_where_it_was_made_is_refused(trained: SmallWorld) -> None:
    bundle = trained.registry.load(address_of(trained))
    assert bundle.selftest is not None
    answers = bundle.selftest["__answer"].to_numpy().copy()
    right = answers[3]
    answers[3] = np.nextafter(right, 2)
    place = bundle.selftest.schema.get_field_index("__answer")
    bundle.selftest = bundle.selftest.set_column(place, "__answer", pa.array(answers))
    bundle.description = msgspec.structs.replace(
        bundle.description, environment=bundle.description.environment | {"lightgbm": "0.1"}
    )
    here = bundles.environment()["lightgbm"]
    address = trained.registry.save(bundle)
    assert refused(trained, address) == (
        f"Bundle {address} does not answer its self-test rows as it did where it was made (in batch).\n"
        "  in: row 3\n"
        f"  expected: {float(answers[3])!r}\n"
        f"  found: {float(right)!r}\n"
        f"  do: serve it in the environment it was trained in: lightgbm 0.1 -> {here}, or train it again."
    )


def test_code_that_is_not_here_is_named(tmp_path: Path) -> None:
    world = make(tmp_path / "world", WORLD + DERIVED)
    address = address_of(world, "derived")
    assert refused(world, address) == (
        f"Bundle {address} needs code that is not here: per_order.\n"
        "  do: serve with the world file it was trained with, or train again with the present one."
    )
    assert not world.registry.load(address, functions_of(world.file)).description.native
    assert world.registry.load(address, without_code=True).model.name == "derived"


def test_a_crash_while_saving_leaves_the_old_bundle(
    trained: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address_of(trained)
    trained.edit("n_estimators=10", "n_estimators=12")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, "_address", crash)
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    monkeypatch.undo()
    assert address_of(trained) == address
    trained.registry.load(address)
