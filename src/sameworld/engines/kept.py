"""Nothing twice: sorted sources, their inputs and finished feature columns, kept under the hash of everything they were made from.

- `rows`: a source's row versions by entity, sorted, from the files with certain contents;
- `input`: a condition or a column of those rows, in the same order;
- `column`: an aggregate over one window at certain moments.

A value read from here is the value that would be computed: the hash covers the definition, the files' contents, the moments, and this code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import sameworld.asof
from sameworld.asof import spill
from sameworld.asof.columns import InputColumn, Texts, input_words
from sameworld.asof.plan import Grouping, Input, Read, only
from sameworld.asof.prepared import Reading, Sorted, World, gathered, sort
from sameworld.asof.read import SortedRows, read_windows
from sameworld.asof.schema import Schema
from sameworld.asof.threads import Threads
from sameworld.definitions.hashing import content_hash
from sameworld.engines.cache import Cache, fingerprint_of_files
from sameworld.engines.interface import Asked, Rows

BLOCK = 1_000_000
"""Moments are kept in blocks of this many, so that more of them at the end cost only themselves."""

_MOST_BLOCKS = 8
"""More blocks than this are not read together, so that memory is bounded."""

_MOST_ROWS = 30_000_000
"""More rows than this are sorted in parts, on disk."""


class Scans(Protocol):
    """What an engine does for this: read a source's files."""

    def count(self, data: Any) -> int: ...

    def number_entities(self, grouping: Grouping, schema: Schema, rows: Rows) -> pa.Table:
        """Number all entities of a source; give their keys and how many rows each has, in order of their numbers."""
        ...

    def batches(self, grouping: Grouping, schema: Schema, rows: Rows) -> Iterator[pa.RecordBatch]:
        """Give all prepared rows with the numbers of their entities, and `row`."""
        ...

    def inputs(
        self, grouping: Grouping, schema: Schema, rows: Rows, inputs: Sequence[Input]
    ) -> Iterator[pa.RecordBatch]:
        """Give some inputs of all rows, in the files' order."""
        ...

    def codes(self, entities: Path, grouping: Grouping, schema: Schema, asked: Asked) -> NDArray[np.int64]:
        """Give each moment's entity, -1 where no row has its keys."""
        ...


@dataclass(frozen=True)
class _Open:
    """Sorted rows of a source as they lie in the cache."""

    key: str
    folder: Path
    rows: Sorted
    latest: int
    """No row became readable or was superseded after this."""


@dataclass
class _Block:
    """Some of the moments asked about, and what is known of them."""

    first: int
    asked: Asked
    keys: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    found: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def missing(self) -> frozenset[str]:
        return frozenset(self.keys.keys() - self.found.keys())


def _runs(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Put neighbours that miss the same columns together: reading the rows costs the same for one block and for several."""
    runs: list[list[_Block]] = []
    for block in blocks:
        if not block.missing:
            continue
        near = runs and runs[-1][-1].first + BLOCK == block.first and len(runs[-1]) < _MOST_BLOCKS
        if near and runs[-1][0].missing == block.missing:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


class Kept:
    """Aggregates of sources that are files, by way of the cache.

    Args:
        cache: where.
        scans: reads the files.
        threads: how many.
        say: told what is being done.
    """

    def __init__(self, cache: Cache, scans: Scans, threads: int, say: Callable[[str], None]) -> None:
        self._cache, self._scans, self._threads, self._say = cache, scans, threads, say
        self._open: dict[str, _Open] = {}

    def aggregates(
        self,
        grouping: Grouping,
        schema: Schema,
        asked: Asked,
        rows: Rows,
        world: World,
        files: Sequence[Path],
    ) -> dict[str, pa.Array]:
        """Give every read of a grouping at every moment, as `Engine.aggregates` does."""
        opened = self._rows(grouping, schema, rows, world, files)
        # Nothing changes after the latest row: whoever asks later than that asks the same.
        known = np.minimum(asked.as_of, opened.latest + 1)
        keys = asked.keys.select(list(grouping.keys))
        blocks = [
            _Block(
                first,
                Asked(
                    keys.slice(first, BLOCK), asked.at[first : first + BLOCK], known[first : first + BLOCK]
                ),
            )
            for first in range(0, max(asked.at.shape[0], 1), BLOCK)
        ]
        for block in blocks:
            self._find(block, opened, grouping)
        for run in _runs(blocks):
            together = slice(run[0].first, run[-1].first + BLOCK)
            some = Asked(keys.slice(run[0].first, BLOCK * len(run)), asked.at[together], known[together])
            reads = only(grouping.reads, run[0].missing)
            for name, values in self._compute(opened, grouping, schema, some, rows, reads).items():
                for block in run:
                    block.found[name] = values[block.first - run[0].first :][:BLOCK]
                    self._keep_column(*block.keys[name], name, block.found[name])
        return {
            name: blocks[0].found[name]
            if len(blocks) == 1
            else pa.concat_arrays([block.found[name] for block in blocks])
            for read in grouping.reads
            for name in read.names
        }

    def _find(self, block: _Block, opened: _Open, grouping: Grouping) -> None:
        """Find what is kept of a block's columns, and note what is missing."""
        moments = _digest(block.asked)
        for read in grouping.reads:
            for window, name in zip(read.windows, read.names, strict=True):
                parts = {"rows": opened.key, "moments": moments, **_meaning(grouping, read, window)}
                block.keys[name] = content_hash(parts), parts
                kept = self._cache.get("column", block.keys[name][0])
                values = None if kept is None else _read_column(kept)
                if values is not None:
                    block.found[name] = values

    def _compute(
        self,
        opened: _Open,
        grouping: Grouping,
        schema: Schema,
        asked: Asked,
        rows: Rows,
        reads: Sequence[Read],
    ) -> dict[str, pa.Array]:
        used = sorted({number for read in reads for number in read.inputs})
        inputs = dict(zip(used, self._inputs(opened, grouping, schema, rows, used), strict=True))
        placed = [inputs.get(number, _NO_INPUT) for number in range(len(grouping.inputs))]
        kept = opened.rows.rows
        starts = np.append(kept.starts, kept.starts[-1])
        codes = self._scans.codes(opened.folder / "entities.parquet", grouping, schema, asked)
        whole = SortedRows(starts, kept.event, kept.available, kept.superseded, placed)
        with Threads(self._threads) as run:
            return read_at(whole, codes, asked, reads, run)

    # rows and inputs

    def _rows(
        self, grouping: Grouping, schema: Schema, rows: Rows, world: World, files: Sequence[Path]
    ) -> _Open:
        contents = sorted(digest for _, _, digest in fingerprint_of_files(files, self._cache))
        parts = {
            "source": grouping.source.content,
            "schema": dict(schema),
            "keys": list(grouping.keys),
            "files": contents,
            "cutover": rows.cutover,
            "world": world,
            "duckdb": duckdb.__version__,
            "code": code(),
        }
        key = content_hash(parts)
        if key in self._open:
            return self._open[key]
        folder = self._cache.get("rows", key)
        if folder is None:
            with self._cache.lock("rows", key):
                folder = self._cache.get("rows", key) or self._build(
                    key, parts, grouping, schema, rows, world
                )
        about = json.loads((folder / "about.json").read_text())
        self._open[key] = _Open(key, folder, spill.read(folder), about["latest"])
        return self._open[key]

    def _build(
        self,
        key: str,
        parts: Mapping[str, Any],
        grouping: Grouping,
        schema: Schema,
        rows: Rows,
        world: World,
    ) -> Path:
        source = grouping.source
        title = f"{source.name} by {', '.join(grouping.keys)}"
        self._say(f"sorting {title}")
        families = [item.family(schema) for item in grouping.inputs]
        reading = Reading(families, world)
        entities = self._scans.number_entities(grouping, schema, rows)
        count = self._scans.count(rows.data)
        with ExitStack() as stack:
            run = stack.enter_context(Threads(self._threads))
            building = stack.enter_context(self._cache.build("rows", key, title, parts))
            folders = [
                stack.enter_context(self._cache.build("input", *self._input_key(key, item))).folder
                for item in grouping.inputs
            ]
            words = (reading.words(batch) for batch in self._scans.batches(grouping, schema, rows))
            if count <= _MOST_ROWS or source.id is not None:
                made = iter([sort(gathered(words, count), reading, entities.num_rows, run)])
            else:
                ranges = building.folder / "ranges"
                ranges.mkdir()
                split = spill.Ranges(ranges, spill.cuts_of(entities["rows"].to_numpy(), _MOST_ROWS))
                for part in words:
                    split.put(part)
                made = split.sorted(reading, run)
            latest = spill.write(building.folder, made, folders)
            if (building.folder / "ranges").exists():
                (building.folder / "ranges").rmdir()
            pq.write_table(entities.drop_columns(["rows"]), building.folder / "entities.parquet")
            (building.folder / "about.json").write_text(json.dumps({"latest": latest}))
        return building.path

    def _input_key(self, rows: str, item: Input) -> tuple[str, str, dict[str, Any]]:
        parts = {"rows": rows, "condition": item.condition, "column": item.column}
        return content_hash(parts), f"{item.column or 'rows'} where {item.condition or 'true'}", parts

    def _inputs(
        self, opened: _Open, grouping: Grouping, schema: Schema, rows: Rows, numbers: Sequence[int]
    ) -> list[InputColumn]:
        items = [grouping.inputs[number] for number in numbers]
        keys = [self._input_key(opened.key, item) for item in items]
        folders = [self._cache.get("input", key[0]) for key in keys]
        missing = [place for place, folder in enumerate(folders) if folder is None]
        if missing:
            wanted = [items[place] for place in missing]
            self._say(f"reading {', '.join(keys[place][1] for place in missing)} of {grouping.source.name}")
            made = self._read_inputs(opened, grouping, schema, rows, wanted)
            for place, column in zip(missing, made, strict=True):
                with self._cache.build("input", *keys[place]) as building:
                    spill.write_input(building.folder, column)
                folders[place] = building.path
        return [spill.read_input(folder) for folder in folders if folder is not None]

    def _read_inputs(
        self, opened: _Open, grouping: Grouping, schema: Schema, rows: Rows, items: Sequence[Input]
    ) -> list[InputColumn]:
        families = [item.family(schema) for item in items]
        texts = [Texts() if family == "text" else None for family in families]

        def words() -> Iterator[dict[str, NDArray[Any]]]:
            for batch in self._scans.inputs(grouping, schema, rows, items):
                part: dict[str, NDArray[Any]] = {}
                for number, family in enumerate(families):
                    made, valid = input_words(family, batch.column(number), texts[number])
                    part |= {f"valid_{number}": valid} | ({} if family is None else {f"words_{number}": made})
                yield part

        columns = gathered(words(), self._scans.count(rows.data))
        row = opened.rows.row
        result: list[InputColumn] = []
        for number, family in enumerate(families):
            valid = columns.pop(f"valid_{number}")[row]
            made = columns.pop(f"words_{number}")[row] if family is not None else np.zeros(0, np.int64)
            known = texts[number]
            result.append(InputColumn(family, made, valid) if known is None else known.column(made, valid))
        return result

    def _keep_column(self, key: str, parts: Mapping[str, Any], name: str, values: pa.Array) -> None:
        with self._cache.build("column", key, name, parts) as building:
            table = pa.table({"value": values})
            with (
                pa.OSFile(str(building.folder / "column.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)


_NO_INPUT = InputColumn(None, np.zeros(0, np.int64), np.zeros(0, np.uint8))


def read_at(
    rows: SortedRows, codes: NDArray[np.int64], asked: Asked, reads: Sequence[Read], run: Threads
) -> dict[str, pa.Array]:
    """Give every window of every read at every moment, in the moments' order.

    Args:
        rows: its last entity has no rows: it is that of moments whose keys no row has.
        codes: shape (moments,), each one's entity; -1 for none.
    """
    entities = rows.starts.shape[0] - 1
    codes = np.where(codes < 0, entities - 1, codes)
    order = np.lexsort((asked.at, asked.as_of, codes))
    moment_starts = np.searchsorted(codes[order], np.arange(entities + 1))
    back = np.empty_like(order)
    back[order] = np.arange(order.shape[0])
    return read_windows(reads, rows, moment_starts, asked.as_of[order], asked.at[order], places=back, run=run)


def _meaning(grouping: Grouping, read: Read, window: Any) -> dict[str, Any]:
    inputs = [grouping.inputs[number] for number in read.inputs]
    return {
        "operation": read.operation,
        "inputs": [[item.condition, item.column] for item in inputs],
        "arguments": list(read.arguments),
        "window": msgspec.to_builtins(window),
    }


def _digest(asked: Asked) -> str:
    """A hash of moments: their keys and times."""
    state = hashlib.blake2b(digest_size=16)
    state.update(np.ascontiguousarray(asked.at).data)
    state.update(np.ascontiguousarray(asked.as_of).data)
    sink = pa.BufferOutputStream()
    table = asked.keys.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state.update(sink.getvalue())
    return state.hexdigest()


def _read_column(folder: Path) -> pa.Array | None:
    try:
        with pa.memory_map(str(folder / "column.arrow")) as source:
            column = pa.ipc.open_file(source).read_all()["value"]
    except (OSError, pa.ArrowInvalid):
        return None
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


@functools.cache
def code() -> str:
    """A hash of the code that gives values their meaning, and of whose results are kept here."""
    state = hashlib.blake2b(digest_size=16)
    folders = [Path(sameworld.asof.__file__).parent, Path(__file__).parent]
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        state.update(path.read_bytes())
    for module in (np, pa, duckdb):
        state.update(module.__version__.encode())
    return state.hexdigest()
