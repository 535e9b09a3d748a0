"""What an index keeps, as it says itself: sources, their schemas, groupings. Whoever writes keeps all of it up, whichever models it serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import duckdb
import lmdb
import msgspec
import pyarrow as pa

from sameworld.asof.plan import Grouping, Input, Read
from sameworld.asof.schema import Schema
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.source import Source
from sameworld.stores.chunks import Layout
from sameworld.stores.events import EventReader
from sameworld.stores.lmdb import Index, Place
from sameworld.stores.prepared import Prepared, Preparer
from sameworld.stores.reach import Reach
from sameworld.stores.taking import Coming, take


class KeptSource(msgspec.Struct, frozen=True, array_like=True):
    """A source whose events are taken.

    Args:
        definition: the source as JSON, without where its files are.
        schema: pinned.
        facts: the first bytes of what is known of its facts.
    """

    definition: Any
    schema: dict[str, str]
    facts: bytes

    @property
    def source(self) -> Source:
        return msgspec.convert(self.definition, Source)


class KeptGrouping(msgspec.Struct, frozen=True, array_like=True):
    """A grouping that the index has all rows of.

    Args:
        source: its source's content hash.
        keys, inputs: what is kept of a row; inputs as (condition, column).
        schema_hash: see `schema_hash`.
        longest_past: how far back its rows go in microseconds; None is all of history.
        prefix: the first bytes of its rows' keys.
    """

    source: str
    keys: tuple[str, ...]
    inputs: tuple[tuple[str | None, str | None], ...]
    schema_hash: str
    longest_past: int | None
    prefix: bytes

    def grouping(self, source: Source) -> Grouping:
        """Give the grouping, without reads."""
        return Grouping(source, self.keys, tuple(Input(*item) for item in self.inputs), ())

    def reaches(self, longest_past: int | None) -> bool:
        """Whether its rows go back so far."""
        return self.longest_past is None or (longest_past is not None and longest_past <= self.longest_past)


def has_all(place: KeptGrouping, reach: Reach) -> bool:
    """Whether rows are laid out as a reader takes them, and go back as far as its windows."""
    return place.schema_hash == reach.schema_hash and place.reaches(reach.longest_past)


class Kept(msgspec.Struct, frozen=True):
    """All that an index keeps.

    Args:
        groupings: content -> grouping.
        sources: name -> source.
        token: differs when anything else does.
    """

    groupings: dict[str, KeptGrouping] = {}
    sources: dict[str, KeptSource] = {}
    token: bytes = b""


_decode = msgspec.msgpack.Decoder(Kept).decode
NOTHING = Kept()


def token_of(index: Index, txn: lmdb.Transaction) -> bytes:
    """Give the token of what the index keeps in this snapshot, without reading it."""
    return index.get(txn, "layout", b"")


def kept_in(index: Index, txn: lmdb.Transaction) -> Kept:
    """Read what the index keeps."""
    return kept_from(index.raw(txn, "kept"))


def kept_from(found: bytes) -> Kept:
    """Read what an index keeps from its bytes there."""
    return _decode(found) if found else NOTHING


def keep(index: Index, txn: lmdb.Transaction, kept: Kept, *, instead_of: Kept) -> None:
    """Write what the index keeps from now on; what it kept before and keeps no more becomes garbage."""
    gone = _prefixes(instead_of) - _prefixes(kept)
    if gone:
        index.put(txn, "garbage", [*index.get(txn, "garbage", []), *sorted(gone)])
    index.put(txn, "kept", kept)
    index.put(txn, "layout", kept.token)


def _prefixes(kept: Kept) -> set[bytes]:
    return {g.prefix for g in kept.groupings.values()} | {s.facts for s in kept.sources.values()}


def schema_hash(schema: Schema) -> str:
    """Hash what rows were written with. Ties are hashes of one version of DuckDB: another one fills its index anew."""
    return content_hash([duckdb.__version__, dict(schema)])


def definition_of(source: Source) -> Any:
    """Give a source as JSON, without where its files are."""
    return msgspec.to_builtins(msgspec.structs.replace(source, data=None))


def planned(
    wanted: Iterable[Grouping], kept: Kept, schemas: Mapping[str, Mapping[str, str]]
) -> list[Grouping]:
    """Give groupings with the wanted reads, each over rows that are kept already where those have all it needs.

    Args:
        wanted: the fewest groupings for the reads.
        kept: what the index has.
        schemas: source content -> pinned schema.
    """
    hashes = {content: schema_hash(schema) for content, schema in schemas.items()}
    result: list[Grouping] = []
    for grouping in wanted:
        needed = {(item.condition, item.column) for item in grouping.inputs}
        fitting = [
            (content != grouping.content, len(found.inputs), content)
            for content, found in kept.groupings.items()
            if (found.source, found.keys) == (grouping.source.content, grouping.keys)
            and found.schema_hash == hashes[found.source]
            and needed <= set(found.inputs)
            and found.reaches(grouping.longest_past)
        ]
        if fitting:
            found = kept.groupings[min(fitting)[2]]
            result.append(_over(grouping, tuple(Input(*item) for item in found.inputs)))
        else:
            result.append(grouping)
    return result


def _over(grouping: Grouping, inputs: tuple[Input, ...]) -> Grouping:
    """Give the same reads over more inputs."""
    if inputs == grouping.inputs:
        return grouping
    places = [inputs.index(item) for item in grouping.inputs]
    reads = [
        Read(read.operation, tuple(places[i] for i in read.inputs), read.arguments, read.windows, read.names)
        for read in grouping.reads
    ]
    return replace(grouping, inputs=inputs, reads=tuple(reads))


class Written:
    """What one source needs when its events are committed.

    Args:
        kept: the source.
        groupings: those kept over it; its prepared rows have what all of them need.
    """

    def __init__(self, kept: KeptSource, groupings: Sequence[KeptGrouping]) -> None:
        self.source = kept.source
        self.schema = kept.schema
        self.facts = kept.facts
        self.made_of = (kept, tuple(groupings))
        self.reader = EventReader(self.source, self.schema)
        named = [found.grouping(self.source) for found in groupings]
        self.preparer = Preparer(self.reader, named)
        self.places = [
            Place(
                grouping, Layout(grouping, self.schema), found.prefix, found.longest_past, *self.preparer.places[grouping.content]
            )
            for grouping, found in zip(named, groupings, strict=True)
        ]  # fmt: skip

    def prepare(self, raw: Sequence[pa.Table]) -> list[Prepared]:
        """Give the prepared rows of deliveries, all of them in one query."""
        if len(raw) == 1:
            return [self.preparer.prepare(raw[0])]
        return self.preparer.prepare(pa.concat_tables(raw)).parts([table.num_rows for table in raw])

    def apply(
        self, index: Index, txn: lmdb.Transaction, deliveries: Sequence[tuple[Prepared, int]], floor: int
    ) -> int:
        """Take prepared rows into every place; give the latest available time among them.

        Args:
            deliveries: rows, and when they become readable; 0 in a replay, where each row says it.
            floor: no moment before this will be asked about any more.
        """
        within = self.source.corrections_within_microseconds
        coming = Coming.of(deliveries, self.preparer.keys, within)
        if self.places and coming.available:
            take(index, txn, self.facts, coming, self.places, floor, within)
        latest = max(stamp for _, stamp in deliveries)
        return max([latest, *coming.available])


def written_of(kept: Kept, known: Mapping[str, Written]) -> dict[str, Written]:
    """Give source name -> what its events need, taking over what is known and has not changed."""
    result: dict[str, Written] = {}
    for name, source in kept.sources.items():
        content, hashed = source.source.content, schema_hash(source.schema)
        groupings = [g for g in kept.groupings.values() if (g.source, g.schema_hash) == (content, hashed)]
        same = known.get(name)
        if same is not None and same.made_of == (source, tuple(groupings)):
            result[name] = same
        else:
            result[name] = Written(source, groupings)
    return result
