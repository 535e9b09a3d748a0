"""What a training set is made of: definitions, data, the time of knowing and versions, each as a hash, so that what changed can be named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.asof.schema import Schema
from sameworld.definitions.feature import Category, Derive, Feature
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.label import Label
from sameworld.definitions.model import STALENESS, as_json, without_data
from sameworld.definitions.moments import Moments
from sameworld.definitions.source import Source
from sameworld.engines.contents import content_of
from sameworld.engines.interface import Engine, Rows, World
from sameworld.engines.kept_rows import code
from sameworld.errors import DataError
from sameworld.training.environment import environment

KEY = b"sameworld"
"""Where a table's schema and a file's footer have the fingerprint."""

_ALWAYS = ("sameworld", "duckdb", "pyarrow", "numpy", "numba")
_WITH_FUNCTIONS = ("python", "machine", "cpu")


class Data(msgspec.Struct, frozen=True, omit_defaults=True):
    """A table as it was read.

    Args:
        kind: of what it was given as.
        content: hash of its columns, types and rows. Of files: their names, sizes and bytes. Of a query: of the rows that it gave when the run
            began, in any order; DuckDB's 64-bit hash of each, added up.
        rows: where they are known without reading.
        files, bytes: how many.
        query: its text. It is told and takes no part in any hash.
    """

    kind: Literal["files", "table", "query"]
    content: str
    rows: int | None = None
    files: int | None = None
    bytes: int | None = None
    query: str | None = None


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the values of a training set are made of. Equal inputs give equal fingerprints; what can change a value changes it.

    Args:
        features: name -> hash of its definition, that of its sources and the code of its function included; in order.
        label: the same of the label.
        sources: name -> its data.
        moments: their data, with the column of the time of asking.
        world: which rows count as readable when.
        as_of: microseconds; labels are as known then. None without a label.
        versions: of the libraries; of Python and the processor too where a function of `sw.derive` is called.
    """

    features: dict[str, str]
    label: str | None
    sources: dict[str, Data]
    moments: Data
    world: World
    as_of: int | None
    versions: dict[str, str]

    @property
    def content(self) -> str:
        """One hash of it all."""
        contents = {name: data.content for name, data in self.sources.items()}
        rest = [self.label, contents, self.moments.content, self.world, self.as_of, self.versions]
        return content_hash([list(self.features.items()), *rest])

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON data; `fingerprint` is the hash of it all."""
        return {"fingerprint": self.content, **msgspec.to_builtins(self)}

    def metadata(self) -> dict[bytes, bytes]:
        """Give it as the metadata of an Arrow schema."""
        return {KEY: msgspec.json.encode(self.as_json())}


def fingerprint_in(metadata: Mapping[bytes, bytes] | None) -> Fingerprint | None:
    """Give the fingerprint in the metadata of a schema or a footer; None when there is none that this version reads."""
    try:
        return msgspec.json.decode((metadata or {}).get(KEY, b""), type=Fingerprint)
    except msgspec.DecodeError:
        return None


def changes(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Name every part in which two fingerprints differ."""
    found: list[str] = []
    for name in [*old.features, *(name for name in new.features if name not in old.features)]:
        if old.features.get(name) != new.features.get(name):
            how = (
                "changed"
                if name in old.features and name in new.features
                else "new"
                if name in new.features
                else "gone"
            )
            found.append(f"feature {name!r} is {how}")
    if not found and list(old.features) != list(new.features):
        found.append("the features are in another order")
    if old.label != new.label:
        found.append("the label is defined otherwise")
    for name in sorted({*old.sources, *new.sources}):
        before, after = old.sources.get(name), new.sources.get(name)
        if before is None or after is None:
            found.append(f"source {name!r} is {'new' if before is None else 'gone'}")
        elif before.content != after.content:
            found.append(f"source {name!r} has other data")
    if old.moments.content != new.moments.content:
        found.append("the moments are others")
    found += [
        f"{name} {before} -> {after}"
        for name, before, after in (("world", old.world, new.world), ("as_of", old.as_of, new.as_of))
        if before != after
    ]
    for name in sorted({*old.versions, *new.versions}):
        before, after = old.versions.get(name, "none"), new.versions.get(name, "none")
        if before != after:
            found.append(f"{name} {before} -> {after}")
    return found


@dataclass(frozen=True)
class Seen:
    """Data as they were when a run began.

    Args:
        sources: name -> data.
        moments: the moments' data.
        files: path -> whose it is, size and time of the last change.
    """

    sources: dict[str, Data]
    moments: Data
    files: dict[Path, tuple[str, int, int]]

    @classmethod
    def of(
        cls,
        engine: Engine,
        sources: Iterable[Source],
        schemas: Mapping[str, Schema],
        moments: Moments,
        asks: Schema,
        rows: Mapping[str, Sequence[Rows | None]],
    ) -> Seen:
        """Take the contents of all data.

        Args:
            schemas: source content -> its columns and their types.
            asks: the moments' columns and their types.
            rows: source content -> where its rows are beside its data.
        """
        files: dict[Path, tuple[str, int, int]] = {}
        known: dict[str, Data] = {}
        for source in sources:
            what = f"source {source.name!r}"
            about = [dict(schemas[source.content]), *_beside(rows.get(source.content, ()))]
            known[source.name] = _data(engine, source.data, what, about, files)
        asked = [dict(asks), moments.at, moments.timezone]
        return cls(known, _data(engine, moments.data, "the moments", asked, files), files)

    def check(self) -> None:
        """Raise when a file is no more what it was.

        Raises:
            DataError: values of before and after would stand in one training set.
        """
        for path, (what, size, changed) in self.files.items():
            if not path.exists() or (size, changed) != _stat(path):
                raise DataError(
                    f"A file of {what} changed while the training set was made.",
                    where=str(path),
                    do="run again when nobody writes to it.",
                )


def fingerprint_of(
    features: Mapping[str, Feature], label: Label | None, seen: Seen, *, world: World, as_of: int
) -> Fingerprint:
    """Give the fingerprint of a training set."""
    derived = any(isinstance(f.of if isinstance(f, Category) else f, Derive) for f in features.values())
    where = environment()
    versions = {name: where[name] for name in (*_ALWAYS, *(_WITH_FUNCTIONS if derived else ()))}
    return Fingerprint(
        features={name: meaning(feature) for name, feature in features.items()},
        label=None if label is None else meaning(label),
        sources=seen.sources,
        moments=seen.moments,
        world=world,
        as_of=None if label is None else as_of,
        versions={**versions, "sameworld code": code()},
    )


def meaning(definition: msgspec.Struct) -> str:
    """Give the hash of what a definition's values are; where its data lie, and when they are stale, is not part of it."""
    return content_hash(without_data(as_json(definition), STALENESS))


def _beside(rows: Sequence[Rows | None]) -> list[Any]:
    """Give what is to be hashed of a cutover and an event log; nothing where there is neither."""
    found = [
        None if each is None else [each.cutover, None if each.log is None else content_of(each.log)]
        for each in rows
    ]
    return found if any(each not in (None, [None, None]) for each in found) else []


def _data(
    engine: Engine, data: Any, what: str, about: list[Any], files: dict[Path, tuple[str, int, int]]
) -> Data:
    if isinstance(data, pa.Table):
        return Data("table", content_hash([content_of(data), *about]), rows=data.num_rows)
    paths = engine.files(data)
    if paths is None:
        rows, content = engine.sums(data, what)
        kind, query = ("query", data) if isinstance(data, str) else ("table", None)
        return Data(kind, content_hash([rows, content, *about]), rows=rows, query=query)
    files.update({path: (what, *_stat(path)) for path in paths})
    digests = engine.digests(paths)
    size = sum(length for length, _ in digests)
    rows = (
        sum(pq.read_metadata(path).num_rows for path in paths)
        if all(path.suffix == ".parquet" for path in paths)
        else None
    )
    found = [[name, *digest] for name, digest in zip(_names_of(paths), digests, strict=True)]
    content = content_hash([found, *about])
    return Data("files", content, rows=rows, files=len(paths), bytes=size)


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Give each file's name with the folders that tell the files apart or hold a hive column."""
    shared = len(Path(os.path.commonpath([path.parent for path in paths])).parts) if paths else 0

    def name(path: Path) -> str:
        hive = next((place for place, part in enumerate(path.parts) if "=" in part), len(path.parts))
        return "/".join(path.parts[min(shared, hive) :])

    return [name(path) for path in paths]
