"""The index of one machine: every entity's living rows in bounded chunks, in LMDB. It can be rebuilt from the files and the event log.

Only what lives is kept: a reader's moment is always after everything in its snapshot, so a superseded row version can never be read again. Rows that no
window reaches any more go when their entity is written to.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.asof.entity import EVENT
from sameworld.asof.plan import Grouping
from sameworld.asof.schema import Schema
from sameworld.asof.versions import closes_at
from sameworld.engines.duckdb import input_columns
from sameworld.errors import StoreError
from sameworld.stores import tallies
from sameworld.stores.chunks import Layout
from sameworld.stores.reach import Reach, still_wanted
from sameworld.stores.tallies import Found


class Sizes(NamedTuple):
    """How an entity's rows are cut: no value depends on it.

    Args:
        rows: as many are written together; more only where they share an event time.
        few: up to so many chunks are read as they lie, without their tallies.
        tallies: as many are written together.
    """

    rows: int = 128
    few: int = 16
    tallies: int = 256


SIZES = Sizes()

_MAP_BYTES = 1 << 40
_LONGEST_KEY = 400
_GENTLE_SECONDS = 0.02
_PAUSE_SECONDS = 0.001
"""A lock that is freed and taken at once is never got by who waits for it."""
_MOST_CHANGES = 1000
_BEGINNING = -(2**63)
_EDGE = 8
"""The bytes at the end of a chunk's key that say from which event time on it has rows."""
_NOTHING: dict[int, int] = {}


class Head(msgspec.Struct, array_like=True, gc=False):
    """The greatest version of a fact that was readable so far, and where its row is.

    `first_available` is when the fact's first version became readable, where corrections count within a time only.
    """

    version: int
    available_at: int
    tie: int
    deleted: bool
    event_time: int | None
    keys: dict[str, Any]
    first_available: int | None = None


_CLOSED = b""
"""Stands for the head of a fact whose corrections do not count any more. It must stay: without it the next one would be taken for a new fact."""
_encode = msgspec.msgpack.encode
_head = msgspec.msgpack.Decoder(Head).decode


@dataclass(frozen=True)
class Place:
    """Where a grouping's rows are written, and how.

    Args:
        prefix: the first bytes of their keys, as many for every place; those of each filling are its own, so that one is written beside what is being read.
        longest_past: how far back its rows go in microseconds; None is all of history.
        keys, inputs: places of its keys and inputs in the prepared rows of its source.
    """

    grouping: Grouping
    layout: Layout
    prefix: bytes
    longest_past: int | None
    keys: list[int]
    inputs: list[int]


Put = tuple[str, bytes, bytes]
"""(database, key, value): what a filling writes."""


class Index:
    """An LMDB environment with the rows of all groupings.

    Args:
        folder: made when missing.
        map_bytes: the most it may grow to (address space, not disk).
        sizes: how rows are cut.
    """

    def __init__(self, folder: Path, *, map_bytes: int = _MAP_BYTES, sizes: Sizes = SIZES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sizes = sizes
        # The event log is the truth: the index need not survive a power cut, so it is never synced; see `online.py` for how that is noticed.
        self._env = lmdb.open(
            str(folder),
            map_size=map_bytes,
            max_dbs=8,
            sync=False,
            metasync=False,
            max_readers=1024,
            subdir=True,
        )
        # A killed reader keeps its place in the table of readers, and with it every page that was freed since.
        self._env.reader_check()
        self._rows = self._env.open_db(b"rows")
        self._tallies = self._env.open_db(b"tallies")
        self._facts = self._env.open_db(b"facts")
        self._closing = self._env.open_db(b"closing")
        self._deliveries = self._env.open_db(b"deliveries")
        self._meta = self._env.open_db(b"meta")
        self._changes = self._env.open_db(b"changes")
        self._touched: set[bytes] = set()
        self._tallied: set[bytes] = set()

    def close(self) -> None:
        self._env.close()

    def write(self) -> lmdb.Transaction:
        """Begin the one write transaction; waits for writers of other processes."""
        txn = self._env.begin(write=True)
        self._touched.clear()
        self._tallied.clear()
        return txn

    def read(self) -> lmdb.Transaction:
        """Open a snapshot."""
        return self._env.begin(buffers=True)

    # what has changed, for whoever publishes it

    def note_changes(self, txn: lmdb.Transaction, before: int, sequence: int, published: int) -> None:
        """Note the chunks and tallies that this transaction has written, which takes the index from one sequence to another.

        Args:
            published: notes up to this sequence go, and of the others the oldest when there are too many.
        """
        with txn.cursor(db=self._changes) as cursor:
            cursor.put(
                struct.pack(">Q", sequence), _encode((before, sorted(self._touched), sorted(self._tallied)))
            )
            entries = txn.stat(self._changes)["entries"]
            while cursor.first() and (
                entries > _MOST_CHANGES or struct.unpack(">Q", cursor.key())[0] <= published
            ):
                cursor.delete()
                entries -= 1

    def changed(
        self, txn: lmdb.Transaction, before: int, sequence: int
    ) -> tuple[set[bytes], set[bytes]] | None:
        """Give the keys of the chunks and of the records of tallies that were written between two sequences; None where that is not known any more."""
        chunks: set[bytes] = set()
        records: set[bytes] = set()
        with txn.cursor(db=self._changes) as cursor:
            more = cursor.set_range(struct.pack(">Q", before + 1))
            while more and before < sequence:
                since, some, tallied = msgspec.msgpack.decode(cursor.value())
                if since != before:
                    return None
                chunks.update(some)
                records.update(tallied)
                before = struct.unpack(">Q", cursor.key())[0]
                more = cursor.next()
        return (chunks, records) if before == sequence else None

    def chunk(self, txn: lmdb.Transaction, key: bytes) -> bytes:
        """Give a chunk by its key; nothing when it is gone."""
        return bytes(txn.get(key, db=self._rows) or b"")

    def all_chunks(self, txn: lmdb.Transaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Give every chunk of a grouping and its key."""
        return _all(txn.cursor(db=self._rows), prefix)

    def tally(self, txn: lmdb.Transaction, key: bytes) -> bytes:
        """Give a record of tallies by its key; nothing when it is gone."""
        return bytes(txn.get(key, db=self._tallies) or b"")

    def all_tallies(self, txn: lmdb.Transaction, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Give every record of tallies of a grouping and its key."""
        return _all(txn.cursor(db=self._tallies), prefix)

    # meta: small facts by name

    def raw(self, txn: lmdb.Transaction, name: str) -> bytes:
        """Give the bytes of a value, which differ when it does."""
        return bytes(txn.get(name.encode(), db=self._meta) or b"")

    def get(self, txn: lmdb.Transaction, name: str, default: Any = None) -> Any:
        found = txn.get(name.encode(), db=self._meta)
        return default if found is None else msgspec.msgpack.decode(found)

    def put(self, txn: lmdb.Transaction, name: str, value: Any) -> None:
        txn.put(name.encode(), _encode(value), db=self._meta)

    def delivery(self, txn: lmdb.Transaction, key: str) -> bytes | None:
        """Give the digest of a delivery already taken under this key."""
        found = txn.get(_short(key.encode()), db=self._deliveries)
        return None if found is None else bytes(found)

    def note_delivery(self, txn: lmdb.Transaction, key: str, digest: bytes) -> None:
        txn.put(_short(key.encode()), digest, db=self._deliveries)

    # rows

    def heads(self, txn: lmdb.Transaction, keys: Iterable[bytes]) -> dict[bytes, Head | None]:
        """Give what is known of facts by their keys; None of one that is closed, nothing of one that is not known."""
        with txn.cursor(db=self._facts) as cursor:
            found = cursor.getmulti(sorted(keys))
        return {bytes(key): _head(value) if value != _CLOSED else None for key, value in found}

    def note_heads(
        self, txn: lmdb.Transaction, heads: Iterable[tuple[bytes, Head]], closing: Iterable[tuple[int, bytes]]
    ) -> None:
        """Note the greatest versions of facts by their keys, and when facts close."""
        with txn.cursor(db=self._facts) as cursor:
            cursor.putmulti(sorted((key, _encode(head)) for key, head in heads))
        for closes, key in closing:
            txn.put(_closing_key(closes, key), b"", db=self._closing)

    def first_available(self, txn: lmdb.Transaction, facts: bytes, fact: str) -> int | None:
        """Give when the first version of a fact became readable; None where that is not known, or does not matter any more."""
        found = txn.get(fact_key(facts, fact), db=self._facts)
        return _head(found).first_available if found else None

    def close_facts(self, txn: lmdb.Transaction, coming: int, most: int) -> None:
        """Forget what is known of facts whose corrections do not count any more, but for there having been such facts.

        Args:
            coming: whatever is not applied yet becomes readable then or later.
            most: how many facts to close; the others wait for a later call.
        """
        cursor = txn.cursor(db=self._closing)
        for _ in range(most):
            if not cursor.first():
                return
            key = bytes(cursor.key())
            if start_of(key[:8]) > coming:
                return
            cursor.delete()
            if txn.get(key[8:], db=self._facts):  # after a filling it may not be there any more
                txn.put(key[8:], _CLOSED, db=self._facts)

    def chunks(self, txn: lmdb.Transaction) -> Chunks:
        """Give what reads and writes chunks."""
        return Chunks(txn.cursor(db=self._rows), self._touched)

    def renew_tallies(self, txn: lmdb.Transaction, layout: Layout, stale: Iterable[bytes]) -> None:
        """Bring the tallies of chunks up to what these have.

        Args:
            stale: the keys of those that have changed, or are gone.
        """
        chunks, cursor = self.chunks(txn), txn.cursor(db=self._tallies)
        changed: dict[tuple[bytes, bytes | None], list[tuple[int, bytes | None]]] = {}
        for key in sorted(stale):
            entity = key[:-_EDGE]
            found = chunks.at(entity, key)
            chunk = found[1] if found is not None and found[0] == key and found[2] is not None else None
            changed.setdefault((entity, _record_of(cursor, key)), []).append((start_of(key), chunk))
        for (entity, place), changes in changed.items():
            record = None
            if place is not None:
                record = tallies.Record(start_of(place), cursor.get(place) or b"")
                cursor.delete()
                self._tallied.add(place)
            for start, content in tallies.renewed(layout, record, changes, self.sizes.tallies):
                cursor.put(chunk_key(entity, start), content)
                self._tallied.add(chunk_key(entity, start))

    def chunks_of(
        self, txn: lmdb.Transaction, place: bytes, reach: Reach, keys: Iterable[Sequence[Any]], t: int
    ) -> list[Found]:
        """Give what a grouping's windows at `t` need of entities; nothing for a key that has a null.

        Args:
            place: the grouping's prefix.
            reach: how far back.
            keys: of the entities.
            t: the moment.
        """
        cursor = txn.cursor(db=self._rows)
        seek, key_of, value_of, previous = cursor.set_range, cursor.key, cursor.value, cursor.prev
        newest = struct.pack(">Q", t + reach.ahead - 1 + 2**63)
        oldest = struct.pack(">Q", max(t - reach.past, _BEGINNING) + 2**63)
        most = self.sizes.few
        found: list[Found] = []
        for key in keys:
            chunks: list[Any] = []
            found.append(Found(chunks))
            if None in key:
                continue
            prefix = entity_prefix(place, key)
            wanted, end = prefix + newest, len(prefix)
            # The last chunk that begins no later than what is wanted.
            there = (bytes(key_of()) == wanted or previous()) if seek(wanted) else cursor.last()
            searching = reach.latest
            while there:
                at = bytes(key_of())
                if at[:end] != prefix:
                    break
                if len(chunks) == most:
                    found[-1] = self._by_tallies(txn, prefix, reach, t)
                    break
                chunk = value_of()
                chunks.append(chunk)
                if searching and not reach.layout.ends_with(chunk, searching, t):
                    searching = still_wanted(searching, chunk, reach.layout, t)
                else:
                    searching = _NOTHING
                if not reach.everything and not searching and at[end:] <= oldest:
                    break
                there = previous()
            chunks.reverse()
        return found

    def _by_tallies(self, txn: lmdb.Transaction, prefix: bytes, reach: Reach, t: int) -> Found:
        """Give what windows need of an entity with many chunks."""
        edges = reach.windows.at(t)
        records: list[tallies.Record] = []
        cursor = txn.cursor(db=self._tallies)
        more = _to_last(cursor, prefix)
        while more and bytes(cursor.key()).startswith(prefix):
            records.append(tallies.Record(start_of(cursor.key()), cursor.value()))
            if records[-1].start <= edges.low:
                break
            more = cursor.prev()
        records.reverse()
        rows = txn.cursor(db=self._rows)
        _to_last(rows, prefix)
        last = start_of(rows.key()), rows.value()

        def chunk(start: int) -> Any:
            return txn.get(chunk_key(prefix, start), db=self._rows)

        return tallies.choose(edges, reach.layout, records, last, chunk)

    # filling

    def rows_to_fill(self, place: Place, schema: Schema, table: pa.Table, floor: int) -> Iterator[Put]:
        """Give what makes a grouping's rows those of a table sorted by key and then in the kernel's order."""
        grouping, layout = place.grouping, place.layout
        keep = np.asarray(table["superseded_at"].to_numpy() == NEVER)
        if place.longest_past is not None:
            keep &= table["event_time"].to_numpy() >= floor - place.longest_past
        table = table.filter(pa.array(keep)).combine_chunks()
        count = table.num_rows
        if count == 0:
            return
        columns = input_columns(grouping, schema, table)
        named = [table[name].to_numpy() for name in ("event_time", "available_at", "version", "tie")]
        rows, texts = layout.rows(named, columns)
        keys = list(zip(*(table[f"key_{i}"].to_pylist() for i in range(len(grouping.keys))), strict=True))
        begin = 0
        events = rows[:, EVENT]
        while begin < count:
            end = begin + 1
            while end < count and keys[end] == keys[begin]:
                end += 1
            entity = entity_prefix(place.prefix, list(keys[begin]))
            start, first = begin, _BEGINNING
            runs, firsts = [begin], list[int]()
            while start < end:
                stop = min(start + self.sizes.rows, end)
                while stop < end and events[stop] == events[stop - 1]:
                    stop += 1
                chunk = layout.pack(rows[start:stop], [column[start:stop] for column in texts])
                yield "rows", chunk_key(entity, first), chunk
                start = stop
                firsts.append(first)
                runs.append(stop)
                first = int(events[start]) if start < end else 0
            for some in range(0, len(firsts) - 1, self.sizes.tallies):  # of all chunks but the last
                until = min(some + self.sizes.tallies, len(firsts) - 1)
                starts, places = np.array(firsts[some:until], np.int64), np.array(runs[some : until + 1])
                mine = rows[places[0] : places[-1]]
                made = layout.words.tally.of(mine, places - places[0], starts)
                yield "tallies", chunk_key(entity, firsts[some]), tallies.pack(layout.words.tally, made)
            begin = end

    def facts_to_fill(
        self, facts: bytes, table: pa.Table, names: Sequence[str], within: int | None = None
    ) -> Iterator[Put]:
        """Give what notes the greatest version of every fact of a source; `facts` and `within` as in `apply`."""
        columns = [
            table[name].to_pylist()
            for name in (
                "fact",
                "version",
                "available_at",
                "tie",
                "deleted",
                "event_time",
                "first_available",
                *(f"key_{i}" for i in range(len(names))),
            )
        ]
        for fact, version, available_at, tie, deleted, event_time, first, *key in zip(*columns, strict=True):
            at = fact_key(facts, fact)
            keyed = dict(zip(names, key, strict=True))
            head = Head(version, available_at, tie, deleted, event_time, keyed)
            if within is not None:
                head.first_available = first
                yield "closing", _closing_key(closes_at(first, within), at), b""
            yield "facts", at, _encode(head)

    def write_gently(self, puts: Iterable[Put]) -> int:
        """Write in short transactions, with room for other writers between them; give how many puts there were."""
        databases = {
            "rows": self._rows,
            "tallies": self._tallies,
            "facts": self._facts,
            "closing": self._closing,
        }
        count, waiting = 0, iter(puts)
        following = next(waiting, None)
        while following is not None:
            with self.write() as txn:
                until = time.monotonic() + _GENTLE_SECONDS
                while following is not None and time.monotonic() < until:
                    database, key, value = following
                    txn.put(key, value, db=databases[database])
                    count += 1
                    following = next(waiting, None)
            time.sleep(_PAUSE_SECONDS)
        return count

    def sweep(self) -> None:
        """Delete what is noted as garbage (prefixes of rows and facts), in short transactions."""
        more = True
        while more:
            with self.write() as txn:
                garbage: list[bytes] = self.get(txn, "garbage", [])
                until = time.monotonic() + _GENTLE_SECONDS
                while garbage and time.monotonic() < until:
                    if not any(
                        self._delete_some(txn, garbage[-1], db)
                        for db in (self._rows, self._tallies, self._facts)
                    ):
                        garbage.pop()
                if garbage or self.raw(txn, "garbage"):
                    self.put(txn, "garbage", garbage)
                more = bool(garbage)
            time.sleep(_PAUSE_SECONDS if more else 0)

    def _delete_some(self, txn: lmdb.Transaction, prefix: bytes, database: Any, most: int = 100) -> int:
        cursor = txn.cursor(db=database)
        for count in range(most):
            if not cursor.set_range(prefix) or not bytes(cursor.key()).startswith(prefix):
                return count
            cursor.delete()
        return most


Chunk = tuple[bytes, bytes, bytes | None]
"""A chunk where it lies: its key, its bytes, and the key of the next one of its entity; None when this is the last."""


class Chunks:
    """Reads and writes chunks within one write transaction.

    Args:
        cursor: over all of them.
        touched: the keys of those that were written are added.

    Attributes:
        stale: the keys of those whose tallies may not be theirs any more; see `Index.renew_tallies`.
    """

    def __init__(self, cursor: lmdb.Cursor, touched: set[bytes]) -> None:
        self._cursor: Any = (
            cursor  # keys and values are bytes: no buffers are asked for where there is writing
        )
        self._touched = touched
        self.stale: set[bytes] = set()

    def put(self, key: bytes, chunk: bytes, *, last: bool = False) -> None:
        """Write a chunk; `last` is that of an entity's that has no tally, and has had none."""
        self._cursor.put(key, chunk)
        self._touched.add(key)
        if not last:
            self.stale.add(key)

    def put_all(self, chunks: Sequence[tuple[bytes, bytes]]) -> None:
        """Write chunks without tallies."""
        self._cursor.putmulti(chunks)
        self._touched.update(key for key, _ in chunks)

    def at(self, prefix: bytes, wanted: bytes) -> Chunk | None:
        """Give the chunk of an entity whose range of event times has that of the key `wanted`; None when the entity has no chunk."""
        cursor = self._cursor
        following = None
        if cursor.set_range(wanted):
            following = cursor.key()
            if following == wanted:
                chunk = cursor.value()
                following = cursor.key() if cursor.next() else b""
                return wanted, chunk, following if following.startswith(prefix) else None
            if not following.startswith(prefix):
                following = None
            if not cursor.prev():
                return None
        elif not cursor.last():
            return None
        key, chunk = cursor.item()
        return (key, chunk, following) if key.startswith(prefix) else None

    def first(self, prefix: bytes) -> bytes | None:
        """Give the key of an entity's first chunk: after expiry there may be none for rows that are earlier."""
        if not self._cursor.set_range(prefix):
            return None
        key = self._cursor.key()
        return key if key.startswith(prefix) else None

    def expire(self, prefix: bytes, before: int) -> None:
        """Drop an entity's chunks whose rows are all before a time."""
        cursor = self._cursor
        if not cursor.set_range(prefix):
            return
        place = cursor.key()
        while place.startswith(prefix) and cursor.next():
            following = cursor.key()
            if not following.startswith(prefix) or start_of(following) > before:
                return
            cursor.set_key(place)
            cursor.delete()  # moves on to the following
            self._touched.add(place)
            self.stale.add(place)
            place = cursor.key()


def new_prefix() -> bytes:
    """Give first bytes of keys that nothing has yet."""
    return secrets.token_bytes(16)


def entity_prefix(place: bytes, key: Sequence[Any]) -> bytes:
    """Give the first bytes of the keys of an entity's chunks: no entity's are those of another."""
    entity = _short(_encode(key))
    return place + len(entity).to_bytes(2, "big") + entity


def fact_key(facts: bytes, fact: str) -> bytes:
    """Give the key of what is known of a fact."""
    return facts + _short(fact.encode())


def _all(cursor: Any, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    more = cursor.set_range(prefix)
    while more and bytes(cursor.key()).startswith(prefix):
        yield bytes(cursor.key()), bytes(cursor.value())
        more = cursor.next()


def _to_last(cursor: Any, prefix: bytes) -> bool:
    """Go to the last key of an entity, or to one before all of its own."""
    return cursor.prev() if cursor.set_range(prefix + b"\xff" * (_EDGE + 1)) else cursor.last()


def _record_of(cursor: Any, key: bytes) -> bytes | None:
    """Give the key of the record that a chunk's tally is in, or belongs in: the last of its entity that begins no later, or the first; None where there is none."""
    prefix = key[:-_EDGE]
    if cursor.set_range(key):
        found = cursor.key()
        if found == key:
            return found
        following = found if found.startswith(prefix) else None
        before = cursor.prev()
    else:
        following, before = None, cursor.last()
    if before and cursor.key().startswith(prefix):
        return cursor.key()
    return following


def _closing_key(closes: int, fact: bytes) -> bytes:
    return struct.pack(">Q", closes + 2**63) + fact


def _short(key: bytes) -> bytes:
    """LMDB keys are short: a long one is known by its hash."""
    return key if 0 < len(key) <= _LONGEST_KEY else b"\xff" + hashlib.blake2b(key, digest_size=32).digest()


def chunk_key(prefix: bytes, start: int = _BEGINNING) -> bytes:
    """Give the key of an entity's chunk, which says from which event time on its rows are; by default of the first."""
    return prefix + struct.pack(">Q", start + 2**63)


def start_of(key: bytes | memoryview) -> int:
    """Give the event time from which on a chunk has rows, from its key."""
    return struct.unpack(">Q", key[-8:])[0] - 2**63


def chunk_edges(events: NDArray[np.int64]) -> bytes:
    """Give the last 8 bytes of `chunk_key` of each of several event times."""
    return (events.view(np.uint64) ^ np.uint64(2**63)).astype(">u8").tobytes()


def check_room(folder: Path) -> None:
    """Raise when the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):  # a name of its own: others may be starting, too
            pass
    except OSError as error:
        raise StoreError(
            f"The store's folder cannot be written to: {error}.",
            where=str(folder),
            do="give another --state folder.",
        ) from error
