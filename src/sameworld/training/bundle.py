"""The bundle: one content-addressed artefact with everything that turns a moment into an answer, loaded alike by training, server and proof.

Nothing here is unpickled unless this registry wrote it: a bundle's address is the hash of its files, and the address is signed with the registry's key.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import pickle
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from sameworld.asof.schema import type_named
from sameworld.definitions.fallbacks import Constant, Popular, Rate
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.model import Model, model_from_json
from sameworld.errors import BundleError
from sameworld.training.encoding import ColumnEncoding, matrix
from sameworld.training.environment import environment
from sameworld.training.fitted import Compiled, How, Scorer, parts_of
from sameworld.training.gate import Gate, first_difference
from sameworld.training.popular import PopularTable
from sameworld.training.rates import RateTable
from sameworld.training.trees import Trees
from sameworld.training.world_file import functions_in


class Histogram(msgspec.Struct, frozen=True):
    """A feature as it was in training: how many nulls, and how many values up to each edge."""

    rows: int
    nulls: int
    edges: list[float]
    counts: list[int]


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle says about itself; everything but the fitted estimator."""

    model: Any
    content: str
    world: str
    trained_until: int
    schemas: dict[str, dict[str, str]]
    request: dict[str, str]
    types: dict[str, str]
    encodings: list[ColumnEncoding]
    calibration: tuple[list[float], list[float]] | None
    rates: list[RateTable]
    fixed_shape: bool
    native: bool
    histograms: dict[str, Histogram]
    importance: dict[str, float]
    scores: dict[str, list[float]]
    environment: dict[str, str]
    parts: list[How | None] = []
    also: list[Any] = []
    popular: list[PopularTable | None] = []
    gate: Gate | None = None


class Bundle:
    """A fitted model: description, definition and estimator.

    Args:
        description, model, estimator: the model's.
        selftest: feature columns, with `__answer` of the model and `__answer_1` and so on of its fallbacks that have an estimator.
        address: what `Registry.save` gave.
        others: the fitted estimator of each fallback, None for one that has none.
        compiled: the flat trees of the model's estimator, and of each fallback's, None for one that has none.
    """

    def __init__(
        self,
        description: Description,
        model: Model,
        estimator: Any,
        selftest: pa.Table | None = None,
        address: str = "",
        others: Sequence[Any] = (),
        compiled: Sequence[Compiled | None] = (),
    ) -> None:
        self.description = description
        self.model = model
        self.estimator = estimator
        self.selftest = selftest
        self.address = address
        own, *flat = compiled or [None] * (len(model.fallbacks) + 1)
        self.scorer = Scorer(
            description.encodings,
            description.calibration,
            description.fixed_shape,
            model.probability,
            estimator,
            own,
        )
        others = others or [None] * len(model.fallbacks)
        self.parts = parts_of(model, description.parts, description.encodings, others, flat)
        self.types = {name: type_named(kind) for name, kind in description.types.items()}

    @property
    def scorers(self) -> list[tuple[int, Scorer]]:
        """The model's estimator (0), and those of its fallbacks that have one (the first is 1)."""
        fallbacks = [
            (number, part.scorer)
            for number, part in enumerate(self.parts, 1)
            if part is not None and isinstance(part.scorer, Scorer)
        ]
        return [(0, self.scorer), *fallbacks]

    @property
    def execution(self) -> str:
        """What computes the model's answers: `compiled`, or `library` and why."""
        compiled = self.scorer.compiled
        if compiled is not None and compiled.distrusted:
            return f"library: {compiled.distrusted}"
        gate = self.description.gate
        if gate is not None and not gate.refused and compiled is None and self.estimator is not None:
            return "library: there are no flat trees in the bundle that this version can read"
        return gate.says if gate is not None else "library: the bundle is from before there were others"

    def scores(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of feature columns, shape (rows,)."""
        return self.scorer.scores(columns)

    def scores_of(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the calibrated answer for every row of an encoded matrix; one row at a time where the estimator's bits depend on its neighbours."""
        return self.scorer.scores_of(rows)

    def fallback(self, tier: int, fields: Mapping[str, Any]) -> float:
        """Give what fallback number `tier` (0 is the first) answers to a request, or says of one candidate; a ValueError when it needs more than their fields."""
        chosen = self.model.fallbacks[tier]
        match chosen:
            case Constant(value):
                return float(value)
            case Rate(by):
                table = next(table for table in self.description.rates if table.by == by)
                return table.answer(fields.get(by) if by else None)
            case Popular(of, by=by):
                popular = self.description.popular[tier]
                assert popular is not None
                return popular.answer(fields.get(of.keys[0]), fields.get(by) if by else None)
            case _:
                raise ValueError(f"{chosen!r} needs more than a request's fields")

    def check(self) -> None:
        """Compare the self-test rows with what they gave where the bundle was made: alone, in batch and permuted. Flat trees that give something else here do not answer.

        Raises:
            BundleError: a bit differs.
        """
        if self.selftest is None:
            return
        table = self.selftest
        columns = {name: table[name].combine_chunks() for name in table.column_names if name in self.types}
        for number, scorer in self.scorers:
            if not scorer.is_loaded:
                continue
            rows, expected = matrix(scorer.encodings, columns), table[answer_column(number)].to_numpy()
            of = f" of fallback {number}" if number else ""
            if scorer.estimator is not None:
                wrong = _difference(
                    lambda rows, by=scorer: by.calibrated(by.library_raw_of(rows)), rows, expected
                )
                if wrong is not None:
                    here, there = environment(), self.description.environment
                    changed = ", ".join(
                        f"{name} {there.get(name)} -> {here[name]}"
                        for name in here
                        if here[name] != there.get(name)
                    )
                    raise BundleError(
                        f"Bundle {self.address} does not answer its self-test rows as it did where it was made ({wrong.way}).",
                        where=f"row {wrong.row}{of}", expected=repr(wrong.expected), found=repr(wrong.found), do=f"serve it in the environment it was trained in{': ' + changed if changed else ''}, or train it again.",
                    )  # fmt: skip
            if scorer.compiled is not None:
                wrong = _difference(scorer.scores_of, rows, expected)
                if wrong is not None:
                    scorer.compiled.distrust(
                        f"self-test row {wrong.row}{of} is {wrong.found!r} here, compiled, and was {wrong.expected!r} where the bundle was made"
                    )


class _Wrong(NamedTuple):
    way: str
    row: int
    expected: float
    found: float


def _difference(
    says: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    rows: NDArray[np.float64],
    expected: NDArray[np.float64],
) -> _Wrong | None:
    order = np.arange(rows.shape[0])[::-1]
    ways = {
        "in batch": says(rows),
        "permuted": says(rows[order])[order],
        "alone": np.concatenate([says(rows[i : i + 1]) for i in range(rows.shape[0])]),
    }
    for way, answers in ways.items():
        row = first_difference(expected, answers)
        if row is not None:
            return _Wrong(way, row, float(expected[row]), float(answers[row]))
    return None


def answer_column(number: int) -> str:
    """Name the self-test's answers of the model (0) or of one of its fallbacks (the first is 1)."""
    return f"__answer_{number}" if number else "__answer"


class Registry:
    """Where bundles lie: `bundles/<address>/`, and `models/<name>.<world>` naming the newest of each.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, bundle: Bundle) -> str:
        """Write a bundle and make it the newest of its model and world; give its address. A crash leaves the old one or the new one."""
        bundles = self.folder / "bundles"
        bundles.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=bundles, prefix=".new-"))
        (scratch / "bundle.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(bundle.description), indent=1)
        )
        for number, scorer in bundle.scorers:
            _write_estimator(scratch, file_name(number), scorer.estimator)
            if scorer.compiled is not None:
                trees = msgspec.msgpack.encode(scorer.compiled.trees)
                (scratch / f"{file_name(number)}.trees").write_bytes(trees)
        assert bundle.selftest is not None
        with (
            pa.OSFile(str(scratch / "selftest.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, bundle.selftest.schema) as writer,
        ):
            writer.write_table(bundle.selftest)
        address = _address(scratch)
        (scratch / "signature").write_text(
            f"{self._sign(address)}\n{self._sign_description(scratch, address)}"
        )
        target = bundles / address
        if target.exists():
            shutil.rmtree(scratch)
        else:
            os.chmod(scratch, 0o755)
            os.replace(scratch, target)
        bundle.address = address
        self.point(bundle.model.name, bundle.description.world, address)
        return address

    def point(self, model: str, world: str, address: str) -> None:
        """Make a bundle the one that a model's name means in a world."""
        pointer = self.folder / "models" / f"{model}.{world}"
        pointer.parent.mkdir(parents=True, exist_ok=True)
        fresh = pointer.with_name(f".{pointer.name}.{os.getpid()}")
        fresh.write_text(address)
        os.replace(fresh, pointer)

    def newest(self, model: str, world: str = "as_of") -> str | None:
        """Give the address of a model's newest bundle, or None."""
        pointer = self.folder / "models" / f"{model}.{world}"
        return pointer.read_text().strip() if pointer.exists() else None

    def load(
        self,
        address: str,
        functions: Sequence[NamedFunction] = (),
        *,
        without_code: bool = False,
        without_estimator: bool = False,
        unpickle: bool = True,
    ) -> Bundle:
        """Read a bundle, check its bytes, its signature and its self-test rows.

        Args:
            address: what `save` gave.
            functions: the world's functions for `sw.derive`.
            unpickle: False leaves an estimator that is not the library's own where it is, and runs nothing of it; its flat trees answer, if there are some.
            without_estimator: give the bundle as far as it is small: it plans reads and answers by fallbacks, and gives no scores.
            without_code: give the bundle even where a function is missing, to compare with and not to serve.

        Raises:
            BundleError: it is missing, damaged, not written by this registry, or answers otherwise than it did.
        """
        place = self._place(address)
        if _address(place) != address:
            raise BundleError(
                f"Bundle {address} is damaged: its files do not have that hash.",
                where=str(place),
                do="train it again, or restore the files.",
            )
        if not _same(_signatures(place)[:1], self._sign(address)):
            raise BundleError(
                f"Bundle {address} was not written by this registry.",
                where=str(place),
                do="nothing in it was loaded. Train it here, or copy the registry with its key.",
            )
        description, model = _described(place, functions)
        names = [file_name(number) for number in range(len(model.fallbacks) + 1)]
        estimators: list[Any] = [None] * len(names)
        compiled: list[Compiled | None] = [None] * len(names)
        if not without_estimator:
            estimators = [_read_estimator(place, name, unpickle=unpickle) for name in names]
            compiled = [_read_compiled(place, *both) for both in zip(names, estimators, strict=True)]
        selftest = None
        if any(one is not None for one in (*estimators, *compiled)):
            with pa.OSFile(str(place / "selftest.arrow")) as source:
                selftest = pyarrow.ipc.open_file(source).read_all()
        bundle = Bundle(description, model, estimators[0], selftest, address, estimators[1:], compiled)
        missing = [function.name for function in functions_in([model]) if function.call is None]
        if missing and not without_code:
            raise BundleError(
                f"Bundle {address} needs code that is not here: {', '.join(missing)}.",
                do="serve with the world file it was trained with, or train again with the present one.",
            )
        bundle.check()
        return bundle

    def described(self, address: str) -> Bundle:
        """Read what a bundle says of itself, whatever has become of its other files: enough for the fallbacks that need no estimator.

        Raises:
            BundleError: that is missing or damaged, too, or was not written by this registry.
        """
        place = self._place(address)
        if not _same(_signatures(place)[1:], self._sign_description(place, address)):
            raise BundleError(
                f"Bundle {address} is damaged: its description is not what this registry wrote.",
                where=str(place),
                do="train it again, or restore the files.",
            )
        description, model = _described(place, ())
        return Bundle(description, model, None, None, address)

    def _place(self, address: str) -> Path:
        place = self.folder / "bundles" / address
        if not (place / "bundle.json").exists():
            raise BundleError(
                f"There is no bundle {address}.",
                where=str(self.folder),
                do="train the model first: sameworld train.",
            )
        return place

    def _sign_description(self, place: Path, address: str) -> str:
        return self._sign(f"{address} {hashlib.sha256((place / 'bundle.json').read_bytes()).hexdigest()}")

    def _sign(self, address: str) -> str:
        return hmac.new(self._key(), address.encode(), hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        path = self.folder / "registry.key"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(fresh, path)  # the first of several processes wins
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return path.read_bytes()


def _signatures(place: Path) -> list[str]:
    """Give what signs the bundle, and what signs its description alone; older bundles have no second."""
    try:
        return (place / "signature").read_text().split()
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def _same(found: Sequence[str], expected: str) -> bool:
    return len(found) > 0 and hmac.compare_digest(found[0].encode(), expected.encode())


def _described(place: Path, functions: Sequence[NamedFunction]) -> tuple[Description, Model]:
    try:
        description = msgspec.json.decode((place / "bundle.json").read_bytes(), type=Description)
        known = {function.code: function for function in functions}
        return description, model_from_json(description.model, known)
    except (msgspec.MsgspecError, LookupError, TypeError) as error:
        raise BundleError(
            f"Bundle {place.name} cannot be read by this version of sameworld.",
            where=str(place),
            found=str(error),
            do="serve it with the version that wrote it, or train it again.",
        ) from error


def file_name(number: int) -> str:
    """Name the file, without its ending, of the model's estimator (0) or of one of its fallbacks' (the first is 1)."""
    return f"fallback_{number}" if number else "model"


def _write_estimator(folder: Path, name: str, estimator: Any) -> None:
    if isinstance(estimator, lightgbm.Booster):
        (folder / f"{name}.txt").write_text(estimator.model_to_string())
    else:
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(estimator, protocol=5))


def _read_estimator(folder: Path, name: str, *, unpickle: bool) -> Any:
    """Give a fitted estimator; None where there is none, or it is not the library's own and is to be left where it is."""
    text, pickled = folder / f"{name}.txt", folder / f"{name}.pickle"
    if text.exists():
        return lightgbm.Booster(model_str=text.read_text())
    return pickle.loads(pickled.read_bytes()) if unpickle and pickled.exists() else None


def _read_compiled(folder: Path, name: str, estimator: Any) -> Compiled | None:
    """Give an estimator's flat trees; where it was left in its file, it is read from there when it is asked for."""
    path, pickled = folder / f"{name}.trees", folder / f"{name}.pickle"
    if not path.exists():
        return None
    try:
        trees = msgspec.msgpack.decode(path.read_bytes(), type=Trees)
    except msgspec.MsgspecError:  # another version's: the library answers
        return None
    if estimator is not None:
        return Compiled(trees, lambda: estimator)
    signed = hashlib.sha256(pickled.read_bytes()).digest()

    @functools.cache
    def library() -> Any:
        content = pickled.read_bytes()
        if hashlib.sha256(content).digest() != signed:
            raise BundleError(
                f"Bundle {folder.name} is damaged: its estimator is not what it was when it was loaded.",
                where=str(pickled),
                do="restore the file; nothing in it was loaded.",
            )
        return pickle.loads(content)

    return Compiled(trees, library)


def _address(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != "signature":
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]
