"""Sorted sources and their inputs, kept under the hash of what they were made from; more files are merged into what is there already."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sameworld.asof import row_files
from sameworld.asof.aggregations import NEVER
from sameworld.asof.columns import NO_WORDS, InputColumn, Texts, input_words
from sameworld.asof.entity_parts import EntityParts
from sameworld.asof.parts import MOST_BYTES, Scratch, Words
from sameworld.asof.plan import Grouping, Input
from sameworld.asof.prepared import Reading, Sorted, World, gathered
from sameworld.asof.schema import Schema, supported
from sameworld.asof.threads import Threads
from sameworld.definitions.hashing import content_hash
from sameworld.engines.cache import Cache, Entry, fingerprint_of_files
from sameworld.engines.interface import Asked, Rows
from sameworld.errors import DataError

_ABOUT = "about.json"
_ROWS_AT_A_TIME = 1_000_000
_BYTES_A_VALUE = 18  # as it is read and as it is sorted, each with whether it is there


class Scans(Protocol):
    """What an engine does for this: read a source's files."""

    def count(self, files: Sequence[Path]) -> int:
        """Give how many rows there are at most, where that costs nothing to know; else 0."""
        ...

    def total(self, files: Sequence[Path]) -> int:
        """Give how many rows there are."""
        ...

    def describe(self, data: Any, what: str) -> dict[str, str]:
        """Give the columns and their DuckDB types."""
        ...

    def number_entities(self, grouping: Grouping, schema: Schema, rows: Rows, known: Path | None) -> pa.Table:
        """Number all entities of a source, those of the file `known` as they are there; give their keys, by number."""
        ...

    def prepared_batches(self, grouping: Grouping, schema: Schema, rows: Rows) -> Iterator[pa.RecordBatch]:
        """Give all prepared rows with the numbers of their entities, and `row`."""
        ...

    def input_batches(
        self, grouping: Grouping, schema: Schema, files: Sequence[Path], inputs: Sequence[Input]
    ) -> Iterator[pa.RecordBatch]:
        """Give some inputs of all rows, in the order of the files."""
        ...

    def codes(self, entities: Path, grouping: Grouping, schema: Schema, asked: Asked) -> NDArray[np.int64]:
        """Give each moment's entity, -1 where no row has its keys."""
        ...


@dataclass(frozen=True)
class Opened:
    """Sorted rows of a source as they lie in the cache.

    Args:
        key: of the entry.
        folder: the entry's.
        rows: mapped into memory.
        files: the source's, in the order of their rows.
        latest: microseconds; no row became readable or was superseded after this.
        base: the rows that these were merged into, if any.
    """

    key: str
    folder: Path
    rows: Sorted
    files: list[Path]
    latest: int
    base: Base | None


@dataclass(frozen=True)
class Base:
    """What rows were merged into, and which entities have more rows than then.

    Args:
        key: of the entry.
        latest: its.
        files: how many files it has, the first of the merged ones.
        total: how many rows those have.
        fresh: shape (entities,), microseconds; when the first of its further rows became readable, NEVER for an entity without any.
    """

    key: str
    latest: int
    files: int
    total: int
    fresh: NDArray[np.int64]


class KeptRows:
    """Sorted sources, by way of the cache.

    Args:
        cache: where.
        scans: reads the files.
        threads: how many.
        say: told what is being done.
    """

    def __init__(self, cache: Cache, scans: Scans, threads: int, say: Callable[[str], None]) -> None:
        self._cache, self._scans, self._threads, self._say = cache, scans, threads, say
        self._open: dict[str, Opened] = {}

    def forget(self) -> None:
        """Let go of what is open: it may not be there any more."""
        self._open.clear()

    def open(
        self, grouping: Grouping, schema: Schema, rows: Rows, world: World, files: Sequence[Path]
    ) -> Opened:
        """Give a source's sorted rows; made, or merged, when they are not kept yet."""
        contents = self._contents(files)
        parts = {
            "source": grouping.source.content,
            "schema": dict(schema),
            "keys": list(grouping.keys),
            "files": sorted(contents.values()),
            "cutover": rows.cutover,
            "world": world,
            "duckdb": duckdb.__version__,
            "code": code(),
        }
        key = content_hash(parts, digits=32)
        if key not in self._open:
            folder = self._cache.get("rows", key)
            if folder is None:
                with self._cache.lock("rows", key):
                    folder = self._cache.get("rows", key) or self._make(
                        key, parts, grouping, schema, rows, world, contents
                    )
            self._open[key] = self._opened(key, folder, contents)
        return self._open[key]

    def _contents(self, files: Sequence[Path]) -> dict[str, str]:
        """Give path -> digest of the file's contents, with the columns that its folders name (`day=2026-01-31`)."""
        found = fingerprint_of_files(files, self._cache, self._threads)
        return {
            str(path): named_content(path, digest) for path, (_, _, digest) in zip(files, found, strict=True)
        }

    def _opened(self, key: str, folder: Path, contents: Mapping[str, str]) -> Opened:
        about = row_files.read_about(folder / _ABOUT)
        base = None
        if about["base"] is not None:
            fresh = np.fromfile(folder / "fresh", np.int64)
            base = Base(**about["base"], fresh=fresh)
        paths: dict[str, list[Path]] = {}
        for path, digest in contents.items():
            paths.setdefault(digest, []).append(Path(path))
        files = [paths[digest].pop(0) for digest in about["files"]]
        return Opened(key, folder, row_files.read(folder), files, about["latest"], base)

    def _make(
        self,
        key: str,
        parts: Mapping[str, Any],
        grouping: Grouping,
        schema: Schema,
        rows: Rows,
        world: World,
        contents: Mapping[str, str],
    ) -> Path:
        base = self._base(parts)
        known = [] if base is None else _files_of(base)
        if base is not None and not self._alike(_without(contents, known), schema):
            base, known = None, []
        more = _without(contents, known)
        title = f"{grouping.source.name} by {', '.join(grouping.keys)}"
        where = Rows(tuple(more), rows.cutover)
        self._say(
            f"sorting {title}"
            if base is None
            else f"merging {len(more)} of {len(contents)} files into {title}"
        )
        entities = self._scans.number_entities(
            grouping, schema, where, None if base is None else base.folder / "entities.parquet"
        )
        inputs = grouping.inputs if base is None else ()
        wanted = Grouping(grouping.source, grouping.keys, inputs, ())
        with ExitStack() as stack:
            run = stack.enter_context(Threads(self._threads))
            building = stack.enter_context(self._cache.build("rows", key, title, parts))
            folders = [
                stack.enter_context(self._cache.build("input", *_input_key(key, item))).folder
                for item in inputs
            ]
            about: dict[str, Any] = {"files": [*known, *(contents[str(path)] for path in more)], "base": None}
            families = [item.family(schema) for item in inputs]
            reading = Reading(families, world, grouping.source.corrections_within_microseconds)
            words = (reading.words(batch) for batch in self._scans.prepared_batches(wanted, schema, where))
            if base is not None:
                about["base"] = _about(base)
                words = _merged(base, building.folder, words, reading, entities.num_rows)
            if grouping.source.id is not None:
                # Whatever comes later may supersede any version, and be superseded by it.
                words = row_files.writing_words(_made(building.folder / "versions"), words)
            scratch = stack.enter_context(Scratch())
            count = self._scans.count([Path(path) for path in contents])
            made = EntityParts(words, reading, entities.num_rows, rows=count, run=run, scratch=scratch)
            written = run.each(made.sorted, range(made.cuts.shape[0] - 1))
            about["latest"] = row_files.write(building.folder, written, folders)
            about["total"] = self._scans.total([Path(path) for path in contents])
            pq.write_table(entities, building.folder / "entities.parquet")
            (building.folder / _ABOUT).write_text(json.dumps(about))
            again = self._contents([Path(path) for path in contents])
            if again != contents:
                raise DataError(
                    f"The files of source {grouping.source.name!r} changed while they were read.",
                    where=", ".join(path for path in contents if again[path] != contents[path]),
                    do="run it again when they are complete.",
                )
        return building.path

    def _alike(self, files: Sequence[Path], schema: Schema) -> bool:
        """Whether files read by themselves have the types that they have among the others: of CSV files, say, the first ones decide for all."""
        return supported(self._scans.describe(tuple(files), "further files")) == dict(schema)

    def _base(self, parts: Mapping[str, Any]) -> Entry | None:
        """Give the kept rows of the most of these files and of no other, all else being equal."""
        wanted = Counter(parts["files"])
        same = {name: part for name, part in parts.items() if name != "files"}
        found = [
            entry
            for entry in self._cache.entries("rows")
            if {name: part for name, part in entry.parts.items() if name != "files"} == same
            and Counter(entry.parts["files"]) <= wanted
        ]
        return max(found, key=lambda entry: len(entry.parts["files"]), default=None)

    # inputs

    def inputs(
        self, opened: Opened, grouping: Grouping, schema: Schema, numbers: Sequence[int]
    ) -> list[InputColumn]:
        """Give some of a grouping's inputs in the order of its rows."""
        items = [grouping.inputs[number] for number in numbers]
        keys = [_input_key(opened.key, item) for item in items]
        folders = [self._cache.get("input", key) for key, _, _ in keys]
        made = {
            place: row_files.read_input(folder) for place, folder in enumerate(folders) if folder is not None
        }
        missing = [place for place in range(len(items)) if place not in made]
        if missing:
            self._say(f"reading {', '.join(keys[place][1] for place in missing)} of {grouping.source.name}")
            together = max(MOST_BYTES // (_BYTES_A_VALUE * max(opened.rows.row.shape[0], 1)), 1)
            for first in range(0, len(missing), together):
                places = missing[first : first + together]
                read = self._read(opened, grouping, schema, [items[place] for place in places])
                for place, column in zip(places, read, strict=True):
                    made[place] = column
                    with telling(self._say):
                        with self._cache.build("input", *keys[place]) as building:
                            row_files.write_input(building.folder, column)
                        made[place] = row_files.read_input(
                            building.path
                        )  # mapped, so that memory is not held
        return [made[place] for place in range(len(items))]

    def _read(
        self, opened: Opened, grouping: Grouping, schema: Schema, items: Sequence[Input]
    ) -> list[InputColumn]:
        """Read inputs from the files; where a base has them, only from the files that came after."""
        olds = self._of_base(opened, grouping, items)
        after = opened.base.files if opened.base is not None and olds is not None else 0
        families = [item.family(schema) for item in items]
        texts = [Texts() if family == "text" else None for family in families]
        first: Words = {}
        if olds is not None and opened.base is not None:
            at = np.zeros(opened.base.total, np.int64)
            at[olds[0][0]] = np.arange(olds[0][0].shape[0])
            for number, (_, column) in enumerate(olds):
                known = texts[number]
                if known is not None and column.texts is not None:
                    known.numbers(column.texts)
                first[f"valid_{number}"] = (
                    column.valid[at] if column.valid.shape[0] else np.zeros(at.shape[0], np.uint8)
                )
                if column.family is not None:
                    first[f"words_{number}"] = (
                        column.words[at] if column.words.shape[0] else np.zeros(at.shape[0], np.int64)
                    )

        def parts() -> Iterator[Words]:
            if first:
                yield first
            for batch in self._scans.input_batches(grouping, schema, opened.files[after:], items):
                part: Words = {}
                for number, family in enumerate(families):
                    words, valid = input_words(family, batch.column(number), texts[number])
                    part |= {f"valid_{number}": valid} | (
                        {} if family is None else {f"words_{number}": words}
                    )
                yield part

        columns = gathered(parts(), self._scans.count(opened.files))
        row = opened.rows.row
        result: list[InputColumn] = []
        with Threads(self._threads) as run:
            for number, family in enumerate(families):
                valid = run.take(columns.pop(f"valid_{number}"), row)
                words = run.take(columns.pop(f"words_{number}"), row) if family is not None else NO_WORDS
                known = texts[number]
                result.append(
                    InputColumn(family, words, valid) if known is None else known.column(words, valid)
                )
        return result

    def _of_base(
        self, opened: Opened, grouping: Grouping, items: Sequence[Input]
    ) -> list[tuple[NDArray[np.int64], InputColumn]] | None:
        """Give the rows' numbers and the inputs of the base, if it has all of them."""
        # Where corrections count for a time only, a version that did not live before may live now.
        if opened.base is None or grouping.source.corrections_within is not None:
            return None
        rows = self._cache.get("rows", opened.base.key)
        folders = [self._cache.get("input", _input_key(opened.base.key, item)[0]) for item in items]
        if rows is None or None in folders:
            return None
        row = row_files.read(rows).row
        row_files.check_places(rows, row, opened.base.total)
        made: list[tuple[NDArray[np.int64], InputColumn]] = []
        for folder in folders:
            assert folder is not None  # asked above
            column = row_files.read_input(folder)
            if column.texts is not None:
                row_files.check_places(folder, column.words, len(column.texts))
            made.append((row, column))
        return made


@contextmanager
def telling(say: Callable[[str], None]) -> Generator[None]:
    """Where something cannot be kept, tell it and go on: what was made is there all the same."""
    try:
        yield
    except OSError as error:
        say(f"not kept: {error}")


def _merged(
    base: Entry, folder: Path, words: Iterator[Words], reading: Reading, entities: int
) -> Iterator[Words]:
    """Give all rows of a base and the further ones, and note in a file `fresh` when the first of those became readable to each entity."""
    added = gathered(words)
    added["row"] = added["row"] + _about(base)["total"]
    readable = "event" if reading.world == "event_time" else "available"
    news = _News(added, readable, entities)
    for part in _words_of(base.folder):
        news.look_at(part)
        yield part
    news.fresh.tofile(folder / "fresh")
    yield added


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _words_of(folder: Path) -> Iterator[Words]:
    """Give all rows of an entry as they came: where there are ids every version, those that never live too; else those that live."""
    kept = row_files.read(folder)
    if (folder / "versions").exists():
        whole = row_files.read_words(folder / "versions")
        row_files.check_places(folder, whole["entity"], kept.rows.starts.shape[0] - 1, -1)
    else:
        rows = kept.rows
        whole = {"event": rows.event, "available": rows.available, "tie": kept.tie, "row": kept.row}
    for first in range(0, max(whole["row"].shape[0], 1), _ROWS_AT_A_TIME):
        part = {name: column[first : first + _ROWS_AT_A_TIME] for name, column in whole.items()}
        if "entity" not in part:
            number = np.arange(first, first + part["row"].shape[0])
            part["entity"] = np.searchsorted(kept.rows.starts, number, side="right") - 1
            part["gone"] = np.zeros(number.shape[0], np.bool_)
        yield part


class _News:
    """When the first of some further rows became readable that can change an entity's values.

    A row changes the values of its own entity, and of those that its fact belonged to before: whenever it is readable, not earlier.

    Args:
        added: the further rows.
        readable: their column of when.
        entities: how many there are.
    """

    def __init__(self, added: Words, readable: str, entities: int) -> None:
        self.fresh = np.full(entities, NEVER, np.int64)
        """Shape (entities,), NEVER where none can."""
        own = added["entity"] >= 0
        np.minimum.at(self.fresh, added["entity"][own], added[readable][own])
        self._facts, place = np.unique(added.get("fact_low", NO_WORDS), return_inverse=True)
        self._first = np.full(self._facts.shape[0], NEVER, np.int64)
        if self._facts.shape[0]:
            np.minimum.at(self._first, place, added[readable])

    def look_at(self, before: Words) -> None:
        """Take note of which entities the facts belonged to."""
        if not self._facts.shape[0]:
            return
        at = np.minimum(np.searchsorted(self._facts, before["fact_low"]), self._facts.shape[0] - 1)
        told = (before["entity"] >= 0) & (self._facts[at] == before["fact_low"])
        np.minimum.at(self.fresh, before["entity"][told], self._first[at[told]])


def _input_key(rows: str, item: Input) -> tuple[str, str, dict[str, Any]]:
    parts = {"rows": rows, "condition": item.condition, "column": item.column}
    about = (
        f"{item.column or 'which rows'} where {item.condition}" if item.condition else item.column or "rows"
    )
    return content_hash(parts, digits=32), about, parts


def _without(contents: Mapping[str, str], known: Sequence[str]) -> list[Path]:
    """Give the files whose contents are not among the known ones, each counted as often as it is there."""
    left = Counter(known)
    result: list[Path] = []
    for path, digest in contents.items():
        if left[digest] > 0:
            left[digest] -= 1
        else:
            result.append(Path(path))
    return result


def _files_of(base: Entry) -> list[str]:
    return row_files.read_about(base.folder / _ABOUT)["files"]


def _about(base: Entry) -> dict[str, Any]:
    about = row_files.read_about(base.folder / _ABOUT)
    return {
        "key": base.key,
        "latest": about["latest"],
        "files": len(about["files"]),
        "total": about["total"],
    }


def named_content(file: Path, digest: str) -> str:
    """Give what is in a file, the columns included that its folders name (`day=2026-01-31`)."""
    return " ".join([digest, *(part for part in file.parts[:-1] if "=" in part)])


@functools.cache
def code() -> str:
    """A hash of the code that gives values their meaning (between releases the version says nothing), and of what its results depend on besides."""
    state = hashlib.blake2b(digest_size=16)
    package = Path(__file__).parents[1]
    folders = [package / name for name in ("definitions", "asof", "engines")]
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        state.update(path.read_bytes())
    for module in (np, pa, duckdb):
        state.update(module.__version__.encode())
    return state.hexdigest()
