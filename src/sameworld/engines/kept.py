"""Nothing twice: finished feature columns, kept under the hash of everything they were made from, beside their sorted sources (`kept_rows`).

- `rows`: a source's row versions by entity, sorted, from files with certain contents;
- `input`: a condition or a column of those rows, in the same order;
- `order`: certain moments by the entities of those rows;
- `arrivals`: which of the rows come and go between those moments, for windows that end alike;
- `column`: an aggregate over one window at certain moments.

A value read from here is the value that would be computed: the hash covers the definition, the files' contents, the moments, and this code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof import row_files
from sameworld.asof.aggregations import NEVER
from sameworld.asof.arrivals import Arrivals
from sameworld.asof.columns import NO_WORDS, InputColumn
from sameworld.asof.instant_text import instant_text
from sameworld.asof.moments import InOrder, Slices, arrivals_at, fits_at_once, in_order, values_at
from sameworld.asof.plan import Grouping, Read, only
from sameworld.asof.prepared import World
from sameworld.asof.read import ends_of
from sameworld.asof.schema import Schema
from sameworld.asof.threads import Threads
from sameworld.definitions.hashing import content_hash
from sameworld.engines.cache import Cache
from sameworld.engines.interface import Asked, Change, Rows
from sameworld.engines.kept_columns import Before, alike, digest, read_column, write_column
from sameworld.engines.kept_rows import Base, KeptRows, Opened, Scans, telling

_NAMED = 5
BLOCK = 1_000_000
"""Moments are kept in blocks of this many, so that more of them at the end cost only themselves."""


@dataclass
class _Block:
    """Some of the moments asked about, a hash of them, and what is known of them."""

    first: int
    asked: Asked
    moments: str
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
        near = runs and runs[-1][-1].first + BLOCK == block.first
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
        self._rows = KeptRows(cache, scans, threads, say)
        self._before: dict[str, Before] = {}
        self.changes: list[Change] = []

    def forget(self) -> None:
        """Let go of what is open: it may not be there any more."""
        self._rows.forget()

    def aggregates(
        self,
        grouping: Grouping,
        schema: Schema,
        asked: Asked,
        rows: Rows,
        world: World,
        files: Sequence[Path],
    ) -> dict[str, pa.Array]:
        """Give every read of a grouping at every moment, as `Engine.aggregates` does; in chunks, where there are several blocks."""
        opened = self._rows.open(grouping, schema, rows, world, files)
        # Nothing changes after the latest row: whoever asks later than that asks the same.
        known = np.minimum(asked.as_of, opened.latest + 1)
        keys = asked.keys.select(list(grouping.keys))
        places = [slice(first, first + BLOCK) for first in range(0, max(asked.at.shape[0], 1), BLOCK)]
        parts = [Asked(keys.slice(place.start, BLOCK), asked.at[place], known[place]) for place in places]
        with Threads(self._threads) as run:
            digests = run.each(digest, parts)
            blocks = [
                _Block(place.start, part, digest)
                for place, part, digest in zip(places, parts, digests, strict=True)
            ]
        for block in blocks:
            self._find(block, opened, grouping)
            if opened.base is not None and block.missing:
                self._renew(block, opened, opened.base, grouping, schema, asked)
        for near in _runs(blocks):
            together = slice(near[0].first, near[-1].first + BLOCK)
            some = Asked(keys.slice(near[0].first, BLOCK * len(near)), asked.at[together], known[together])
            missing = near[0].missing
            reads = only(grouping.reads, missing)
            moments = [block.moments for block in near]
            for name, values in self._compute(opened, grouping, schema, some, reads, moments).items():
                for block, own in zip(near, values.chunks, strict=True):
                    block.found[name] = own
            for block in near:
                self._compare(block, sorted(missing), opened, asked)
            self._keep([(block, name) for block in near for name in sorted(block.keys.keys() & missing)])
        return {
            name: blocks[0].found[name]
            if len(blocks) == 1
            else pa.chunked_array([block.found[name] for block in blocks])
            for read in grouping.reads
            for name in read.names
        }

    def _find(self, block: _Block, opened: Opened, grouping: Grouping) -> None:
        """Find what is kept of a block's columns, and note what is missing."""
        for name, parts in _parts(opened.key, block.moments, grouping):
            block.keys[name] = content_hash(parts, digits=32), parts
            values = self._column(block.keys[name][0])
            if values is not None:
                block.found[name] = values

    def _column(self, key: str) -> pa.Array | None:
        kept = self._cache.get("column", key)
        return None if kept is None else read_column(kept)

    def _renew(
        self, block: _Block, opened: Opened, base: Base, grouping: Grouping, schema: Schema, asked: Asked
    ) -> None:
        """Where a column was finished before further rows came, compute only the moments that could have read one of them."""
        moments = slice(block.first, block.first + BLOCK)
        then = Asked(block.asked.keys, block.asked.at, np.minimum(asked.as_of[moments], base.latest + 1))
        olds = {
            name: column
            for name, parts in _parts(base.key, digest(then), grouping)
            if name in block.missing and (column := self._column(content_hash(parts, digits=32))) is not None
        }
        if not olds:
            return
        codes = self._scans.codes(opened.folder / "entities.parquet", grouping, schema, block.asked)
        fresh = np.append(base.fresh, NEVER)[codes]  # a code of -1 is the one at the end
        touched = np.flatnonzero(fresh < block.asked.as_of)
        some = Asked(
            block.asked.keys.take(pa.array(touched)), block.asked.at[touched], block.asked.as_of[touched]
        )
        news = self._compute(opened, grouping, schema, some, only(grouping.reads, olds))
        for name, old in olds.items():
            (new,) = news[name].chunks
            changed = touched[~alike(old.take(pa.array(touched)), new)]
            block.found[name] = _replaced(old, touched, new)
            self._tell(block, name, changed, len(old))
        self._keep([(block, name) for name in olds])

    def _compare(self, block: _Block, names: Iterable[str], opened: Opened, asked: Asked) -> None:
        """Where columns were finished when the source had other files, at these moments or at the first of them, say which values are others now."""
        if opened.key not in self._before:
            self._before[opened.key] = Before(self._cache, opened.key)
        before = self._before[opened.key]
        as_of = asked.as_of[block.first : block.first + BLOCK]
        known = before.known(Asked(block.asked.keys, block.asked.at, as_of))
        for name in names:
            old = before.column(block.keys[name][1], known)
            if old is not None:
                changed = np.flatnonzero(~alike(old, block.found[name][: len(old)]))
                self._tell(block, name, changed, len(old))

    def _tell(self, block: _Block, name: str, changed: NDArray[np.int64], known: int) -> None:
        """Say that the values of some of a block's moments are others than they were; before they are kept, so that nobody who is killed has kept it to himself."""
        if not changed.shape[0]:
            return
        self.changes.append(Change(name, changed + block.first, known))
        at = block.asked.at[changed]
        named = ", ".join(str(row + block.first) for row in changed[:_NAMED])
        more = f" and {changed.shape[0] - _NAMED:,} more" if changed.shape[0] > _NAMED else ""
        span = " to ".join(instant_text(int(when)) for when in dict.fromkeys((at.min(), at.max())))
        self._say(
            f"{changed.shape[0]:,} of {known:,} known values of {name} changed, since rows came late: moments {named}{more}, asked {span}"
        )

    def _compute(
        self,
        opened: Opened,
        grouping: Grouping,
        schema: Schema,
        asked: Asked,
        reads: Sequence[Read],
        moments: Sequence[str] = (),
    ) -> dict[str, pa.ChunkedArray]:
        """Give some reads at some moments, in blocks; `moments` are their hashes, where they will be asked about again."""
        used = sorted({number for read in reads for number in read.inputs})
        inputs = dict(zip(used, self._rows.inputs(opened, grouping, schema, used), strict=True))
        placed = [inputs.get(number, _NO_INPUT) for number in range(len(grouping.inputs))]
        parts = Slices(dataclasses.replace(opened.rows.rows, inputs=placed))
        with Threads(self._threads) as run:
            ordered = self._in_order(opened, grouping, schema, asked, moments, run)
            known = self._arrivals(opened, moments, parts, ordered, reads, run) if moments else None
            return values_at(parts, ordered, reads, run, known=known, piece=BLOCK)

    def _in_order(
        self,
        opened: Opened,
        grouping: Grouping,
        schema: Schema,
        asked: Asked,
        moments: Sequence[str],
        run: Threads,
    ) -> InOrder:
        """Put moments in the order of the rows' entities; kept where `moments` says what they are."""
        parts = {"rows": opened.key, "moments": list(moments)}
        key = content_hash(parts, digits=32)
        folder = self._cache.get("order", key) if moments else None
        if folder is not None:
            return row_files.read_order(folder)
        codes = self._scans.codes(opened.folder / "entities.parquet", grouping, schema, asked)
        entities = opened.rows.rows.starts.shape[0] - 1
        made = in_order(codes, entities, asked.as_of, asked.at, run)
        if moments:
            title = f"{asked.at.shape[0]:,} moments of {grouping.source.name} by {', '.join(grouping.keys)}"
            with telling(self._say), self._cache.build("order", key, title, parts) as building:
                row_files.write_order(building.folder, made)
        return made

    def _arrivals(
        self,
        opened: Opened,
        moments: Sequence[str],
        rows: Slices,
        ordered: InOrder,
        reads: Sequence[Read],
        run: Threads,
    ) -> dict[int, Arrivals]:
        """Give the arrivals for some reads, by their end; none that cannot be kept."""
        known: dict[int, Arrivals] = {}
        for end in ends_of(reads):
            parts = {"rows": opened.key, "moments": list(moments), "end": end}
            key = content_hash(parts, digits=32)
            folder = self._cache.get("arrivals", key)
            if folder is None and fits_at_once(rows, ordered):
                title = f"{ordered.at.shape[0]:,} moments, windows until {end / 1e6:g} s after"
                with telling(self._say):
                    with self._cache.build("arrivals", key, title, parts) as building:
                        row_files.write_arrivals(building.folder, arrivals_at(rows, ordered, end, run))
                    folder = building.path
            if folder is not None:
                known[end] = row_files.read_arrivals(folder)
        return known

    def _keep(self, made: Sequence[tuple[_Block, str]]) -> None:
        """Keep columns that were made; several at a time, since each waits for the disk."""
        with telling(self._say), Threads(self._threads) as run:
            for _ in run.each(self._keep_column, made):
                pass

    def _keep_column(self, made: tuple[_Block, str]) -> None:
        block, name = made
        key, parts = block.keys[name]
        with self._cache.build("column", key, name, parts) as building:
            write_column(building.folder, block.found[name])


_NO_INPUT = InputColumn(None, NO_WORDS, np.zeros(0, np.uint8))


def _replaced(old: pa.Array, places: NDArray[np.int64], new: pa.Array) -> pa.Array:
    """Give a column with some values replaced."""
    source = np.arange(len(old))
    source[places] = len(old) + np.arange(places.shape[0])
    return pa.concat_arrays([old, new]).take(pa.array(source))


def _parts(rows: str, moments: str, grouping: Grouping) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give what each of a grouping's columns at some moments, given by their hash, is kept under."""
    for read in grouping.reads:
        for window, name in zip(read.windows, read.names, strict=True):
            yield name, {"rows": rows, "moments": moments, **_meaning(grouping, read, window)}


def _meaning(grouping: Grouping, read: Read, window: Any) -> dict[str, Any]:
    inputs = [grouping.inputs[number] for number in read.inputs]
    return {
        "operation": read.operation,
        "inputs": [[item.condition, item.column] for item in inputs],
        "arguments": list(read.arguments),
        "window": msgspec.to_builtins(window),
    }
