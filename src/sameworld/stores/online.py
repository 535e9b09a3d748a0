"""The online world: one commit order for all events, and snapshots of it.

A delivery is first in the event log, then in the index, then acknowledged, all under the index's write lock, which the kernel frees when its holder is
killed; the next writer applies what the log has and the index lacks. A reader opens its snapshot first and then takes its moment, after the last stamp in
it, so that "readable before t" and "in the snapshot that was read" are the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import lmdb
import numpy as np
import pyarrow as pa

from sameworld.asof.plan import Grouping
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.source import Source
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Rows
from sameworld.errors import ReplayOrderError, RequestError, StoreError, nearest
from sameworld.stores import event_log
from sameworld.stores import fingerprint as fingerprints
from sameworld.stores.chunks import Layout, RowWords, Texts
from sameworld.stores.clock import Clock, SystemClock
from sameworld.stores.event_log import Delivery
from sameworld.stores.events import EventReader, PreparedRow, Preparer
from sameworld.stores.lmdb import CHUNK_ROWS, Index, Reach, check_room
from sameworld.stores.record_log import Durability, RecordLog

Say = Callable[[str], None]


class _Written:
    """What one source needs when its events are committed."""

    def __init__(self, source: Source, schema: Mapping[str, str], groupings: Sequence[Grouping]) -> None:
        self.source = source
        self.schema = dict(schema)
        self.groupings = list(groupings)
        self.reader = EventReader(source, schema)
        self.preparer = Preparer(self.reader, groupings)
        self.layouts = {grouping.content: Layout(grouping, schema) for grouping in groupings}
        self.places = [
            (grouping, self.layouts[grouping.content], *self.preparer.places[grouping.content])
            for grouping in groupings
        ]


@dataclass(frozen=True)
class Taken:
    """An acknowledged delivery: how many events it has, and whether it had been taken before."""

    accepted: int
    repeated: bool
    sequence: int


@dataclass(frozen=True)
class Incoming:
    """A delivery on its way in, its events read and prepared already."""

    source: str
    key: str
    events: bytes
    rows: list[PreparedRow]


class Snapshot:
    """One consistent view of the store. Close it soon."""

    def __init__(self, store: OnlineStore, txn: lmdb.Transaction) -> None:
        self._store = store
        self._txn = txn
        self.sequence: int = store.index.get(txn, "sequence", 0)
        self.stamp: int = store.index.get(txn, "stamp", 0)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self._txn.abort()

    def moment(self) -> int:
        """Give the moment of this snapshot: now, and after everything that is in it."""
        return max(self._store.clock.now(), self.stamp + 1)

    def aggregates(
        self, groupings: Sequence[Grouping], fields: Mapping[str, Sequence[Any]], t: int
    ) -> dict[str, pa.Array]:
        """Give every read of every grouping for a batch of requests at one moment.

        Args:
            groupings: what to read.
            fields: request field -> values, one a request; instants in microseconds.
            t: the moment.
        """
        result: dict[str, pa.Array] = {}
        filled = self._store.filled(self._txn)
        for grouping in groupings:
            if grouping.content not in filled:
                raise StoreError(
                    f"The rows of source {grouping.source.name!r} by {', '.join(grouping.keys)} are not filled.",
                    where=str(self._store.folder),
                    do="fill the store; a server that serves other models may have written to it.",
                )
            reach = self._store.reach(grouping)
            keys = list(zip(*(fields[key] for key in grouping.keys), strict=True))
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            parts: list[tuple[RowWords, Texts]] = []
            starts = [0]
            for key in numbers:
                found = self._store.index.entity(self._txn, reach, key, t) if None not in key else []
                parts += found
                starts.append(starts[-1] + sum(len(part[0]) for part in found))
            rows, texts = reach.layout.together(parts)
            places = np.array([numbers[key] for key in keys], np.int64) if len(numbers) < len(keys) else None
            result.update(reach.reads.values(rows, np.array(starts), t, texts, places))
        return result


class OnlineStore:
    """Event log and index under one folder.

    Args:
        folder: `events/` and `index/` in it.
        groupings: what to keep.
        schemas: source content -> pinned schema.
        durability: what an acknowledged event survives: "process" any kill, "disk" a power cut.
        replay: events say themselves when they became readable, and what is earlier than what has passed is refused.
        clock: this machine's by default.
        chunk_rows: see `Index`.
        sources: whose events are logged even where no grouping reads them, such as those of outcomes.
    """

    def __init__(
        self,
        folder: Path,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Mapping[str, str]],
        *,
        durability: Durability = "disk",
        replay: bool = False,
        clock: Clock | None = None,
        chunk_rows: int = CHUNK_ROWS,
        sources: Sequence[Source] = (),
    ) -> None:
        check_room(folder)
        self.folder = folder
        self.groupings = list(groupings)
        self.replay = replay
        self.clock = clock or SystemClock()
        self._schemas = schemas
        self._written: dict[str, _Written] = {}
        self._schema_hashes = {
            # Ties are hashes of one version of DuckDB: another one fills its index anew.
            g.content: content_hash([duckdb.__version__, dict(schemas[g.source.content])])
            for g in groupings
        }
        self._filled: tuple[bytes, frozenset[str]] = (b"", frozenset())
        self._reaches: dict[int, Reach] = {}
        read = {grouping.source.content: grouping.source for grouping in groupings}
        for source in {**read, **{source.content: source for source in sources}}.values():
            own = [grouping for grouping in groupings if grouping.source.content == source.content]
            if source.name in self._written:
                raise StoreError(
                    f"Two different sources are called {source.name!r}.",
                    do="rename one of them, or serve their models from two servers.",
                )
            self._written[source.name] = _Written(source, schemas[source.content], own)
        _drop_after_power_cut(folder)
        self.index = Index(folder / "index", chunk_rows=chunk_rows)
        with self.index.write():
            # Under the lock: opening cuts what a killed writer left half-written.
            self.log = RecordLog.open(folder / "events", durability=durability)

    def close(self) -> None:
        self.log.close()
        self.index.close()

    @property
    def sources(self) -> dict[str, Source]:
        """Source name -> source."""
        return {name: written.source for name, written in self._written.items()}

    def reach(self, grouping: Grouping) -> Reach:
        """Give how far a grouping's reads reach; worked out at the first read."""
        found = self._reaches.get(id(grouping))
        if found is None or found.grouping is not grouping:
            found = self._reaches[id(grouping)] = Reach(grouping, self.layout(grouping))
        return found

    def layout(self, grouping: Grouping) -> Layout:
        return self._written[grouping.source.name].layouts[grouping.content]

    # filling and rebuilding

    def missing(self) -> list[Grouping]:
        """Give the groupings that are not filled yet."""
        with self.index.read() as txn:
            filled = self.filled(txn)
        return [grouping for grouping in self.groupings if grouping.content not in filled]

    def filled(self, txn: lmdb.Transaction) -> frozenset[str]:
        """Give the contents of this store's groupings that the index has all rows of."""
        raw = self.index.raw(txn, "filled")
        known, found = self._filled
        if raw != known:
            kept: dict[str, list[Any]] = self.index.get(txn, "filled", {})
            found = frozenset(g.content for g in self.groupings if self._has_all(g, kept.get(g.content)))
            self._filled = raw, found
        return found

    def _has_all(self, grouping: Grouping, kept: list[Any] | None) -> bool:
        """Whether what is kept has this store's layout and goes back as far as its windows."""
        if kept is None or kept[0] != self._schema_hashes[grouping.content]:
            return False
        return kept[1] is None or (grouping.longest_past is not None and grouping.longest_past <= kept[1])

    def cutover(self) -> int | None:
        """Give the recorded cutover in microseconds: rows readable before it come from the files, later ones from the log."""
        recorded = self.folder / "cutover"
        return int(recorded.read_text()) if recorded.exists() else None

    def fill(self, engine: DuckDBEngine, *, cutover: int | None = None, say: Say = lambda _: None) -> None:
        """Fill what is missing from the sources' files up to the cutover and from the event log after it.

        Args:
            engine: reads the files.
            cutover: recorded the first time; now by default. A later call may not change it.
            say: told what is being done.
        """
        with self.index.write() as txn:
            border = self._border(cutover)
            self.log.refresh()
            self._apply_missing(txn)
            filled = self.filled(txn)
            wanted = [grouping for grouping in self.groupings if grouping.content not in filled]
            if wanted:
                self._fill(txn, engine, border, wanted, say)
                kept = self.index.get(txn, "filled", {})
                kept.update({g.content: [self._schema_hashes[g.content], g.longest_past] for g in wanted})
                self.index.put(txn, "filled", kept)
            self._record(border)

    def _border(self, cutover: int | None) -> int:
        """Give the recorded cutover, or a new one; called under the lock, so that there is one first time."""
        recorded = self.cutover()
        if recorded is not None and cutover is not None and cutover != recorded:
            raise StoreError(
                "The cutover of this store is recorded already.",
                where=str(self.folder),
                expected=str(recorded),
                found=str(cutover),
                do="leave the cutover out, or give another --state folder.",
            )
        if recorded is not None:
            return recorded
        return cutover if cutover is not None else self.clock.now()

    def _record(self, border: int) -> None:
        """Write the cutover beside the index: it outlives it, and with it what is in the files and what in the log."""
        if (self.folder / "cutover").exists():
            return
        fresh = self.folder / ".cutover"
        with fresh.open("w") as out:
            out.write(str(border))
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, self.folder / "cutover")

    def _fill(
        self, txn: lmdb.Transaction, engine: DuckDBEngine, border: int, wanted: list[Grouping], say: Say
    ) -> None:
        logged = event_log.raw_rows(
            self.folder / "events", {name: w.reader for name, w in self._written.items()}
        )
        floor = max(border, self.index.get(txn, "floor", 0))
        for grouping in wanted:
            written = self._written[grouping.source.name]
            rows = Rows(grouping.source.data, border, logged.get(grouping.source.name))
            table = engine.sorted_rows(grouping, written.schema, rows, "as_of")
            self.index.fill(
                txn, grouping, written.layouts[grouping.content], written.schema, table, floor, say
            )
        for written in self._written.values():
            if written.source.id is not None and any(
                g.source.content == written.source.content for g in wanted
            ):
                union = Grouping(written.source, tuple(written.preparer.keys), (), ())
                rows = Rows(written.source.data, border, logged.get(written.source.name))
                heads = engine.heads(union, written.schema, rows)
                within = written.source.corrections_within_microseconds
                self.index.fill_facts(txn, written.source.content, heads, union.keys, within)
        sources = {grouping.source.content: grouping.source for grouping in wanted}
        fingerprints.save(
            self.folder,
            {c: fingerprints.fingerprint(engine, s, self._schemas[c], border) for c, s in sources.items()},
        )
        self.index.put(txn, "stamp", max(border - 1, self.index.get(txn, "stamp", 0)))
        self.index.put(txn, "floor", floor)

    # writing

    def prepare(self, source: str, key: str, events: bytes) -> Incoming:
        """Read and prepare a delivery's events; nothing is written.

        Raises:
            RequestError: no such source.
            DataError: the events are not the source's.
        """
        written = self._written.get(source)
        if written is None:
            raise RequestError(
                f"There is no source {source!r} here.",
                expected=f"nearest: {nearest(source, self._written)}",
                do="correct the source's name.",
            )
        raw = written.reader.read(events)
        return Incoming(source, key, events, written.preparer.prepare(raw))

    def commit(self, group: Sequence[Incoming]) -> list[Taken | RequestError]:
        """Take a group of deliveries in one commit; one answer each, in their order.

        Raises:
            LogError: the event log cannot be written; nothing was taken.
        """
        answers: list[Taken | RequestError] = []
        with self.index.write() as txn:
            self.log.refresh()
            self._apply_missing(txn)
            fresh: list[tuple[Incoming, Delivery]] = []
            digests: dict[str, bytes] = {}
            firsts: dict[tuple[str, str], int] = {}
            last = self.index.get(txn, "stamp", 0)
            passed = self.index.get(txn, "passed", 0)
            sequence = self.log.next_number
            for incoming in group:
                digest = hashlib.blake2b(
                    incoming.source.encode() + b"\0" + incoming.events, digest_size=16
                ).digest()
                known = digests.get(incoming.key) or self.index.delivery(txn, incoming.key)
                early = None
                if self.replay and known is None:
                    early = self._too_early(incoming, passed) or self._before_its_first(txn, incoming, firsts)
                if known is not None:
                    answers.append(_repeated(incoming, known, digest, sequence))
                elif early is not None:
                    answers.append(early)
                else:
                    last = last if self.replay else max(self.clock.now(), last + 1)
                    sequence += 1
                    source = self._written[incoming.source].source
                    fresh.append(
                        (
                            incoming,
                            Delivery(
                                0 if self.replay else last,
                                incoming.source,
                                source.content,
                                incoming.key,
                                incoming.events,
                                self.clock.now(),
                            ),
                        )
                    )
                    digests[incoming.key] = digest
                    answers.append(Taken(len(incoming.rows), False, sequence))
            if fresh:
                self.log.append([event_log.encode(delivery) for _, delivery in fresh])
                laid_out = self._laid_out(txn)
                for incoming, delivery in fresh:
                    self._apply(txn, delivery, incoming.rows, laid_out)
                self._advance(txn, self.log.next_number)
                self._close_facts(txn, 2 * sum(len(incoming.rows) for incoming, _ in fresh))
        return answers

    def _close_facts(self, txn: lmdb.Transaction, most: int) -> None:
        """Once everything logged is applied: forget facts that nothing to come can correct."""
        passed, stamp = self.index.get(txn, "passed", 0), self.index.get(txn, "stamp", 0)
        self.index.close_facts(txn, passed if self.replay else stamp + 1, most)

    def _advance(self, txn: lmdb.Transaction, sequence: int) -> None:
        """Note what has been applied. Groupings of models that only other servers have were not: they are not filled any more."""
        kept: dict[str, list[Any]] = self.index.get(txn, "filled", {})
        current = {
            content: how for content, how in kept.items() if self._schema_hashes.get(content) == how[0]
        }
        if len(current) < len(kept):
            self.index.put(txn, "filled", current)
        self.index.put(txn, "sequence", sequence)

    def _too_early(self, incoming: Incoming, passed: int) -> ReplayOrderError | None:
        early = [
            row.available_at
            for row in incoming.rows
            if row.available_at is not None and row.available_at < passed
        ]
        if not early:
            return None
        return ReplayOrderError(
            f"{len(early)} events of source {incoming.source!r} became readable before a moment that has passed.",
            expected=f"available times of at least {passed} us", found=f"{min(early)} us", do="replay events and requests in the order of time.",
        )  # fmt: skip

    def _before_its_first(
        self, txn: lmdb.Transaction, incoming: Incoming, firsts: dict[tuple[str, str], int]
    ) -> ReplayOrderError | None:
        """Refuse versions that became readable before the first one of their fact: what had been forgotten on its account might count again.

        Args:
            firsts: (source, fact) -> when its first version became readable, of deliveries taken in this commit; added to.
        """
        source = self._written[incoming.source].source
        if source.corrections_within is None:
            return None
        earliest: dict[str, int] = {}
        for row in incoming.rows:
            if row.fact is not None and row.available_at is not None:
                earliest[row.fact] = min(row.available_at, earliest.get(row.fact, row.available_at))
        early: list[tuple[str, int, int]] = []
        for fact, time in earliest.items():
            first = firsts.get((source.name, fact), self.index.first_available(txn, source.content, fact))
            if first is not None and time < first:
                early.append((fact, time, first))
        if not early:
            for fact, time in earliest.items():
                firsts.setdefault((source.name, fact), time)
            return None
        fact, time, first = early[0]
        return ReplayOrderError(
            f"{len(early)} facts of source {source.name!r} have versions that became readable before the first one that came.",
            where=f"fact {fact!r}", expected=f"available times of at least {first} us", found=f"{time} us",
            do=f"replay events in the order of time: corrections count within {source.corrections_within} of the first version.",
        )  # fmt: skip

    def pass_moment(self, t: int) -> bool:
        """In a replay, before the snapshot is opened: note that requests at `t` are being answered, so that nothing earlier may come.

        Returns:
            False, and notes nothing, when something has become readable at `t` or after it already.
        """
        with self.index.write() as txn:
            if self.index.get(txn, "stamp", 0) >= t:
                return False
            if t > self.index.get(txn, "passed", 0):
                self.index.put(txn, "passed", t)
                self.index.put(txn, "floor", t)
            return True

    def _apply(
        self, txn: lmdb.Transaction, delivery: Delivery, rows: Sequence[PreparedRow], laid_out: set[str]
    ) -> None:
        stamp = latest = delivery.stamp
        floor = stamp or self.index.get(txn, "floor", 0)
        written = self._written.get(delivery.source)
        places = [place for place in written.places if place[0].content in laid_out] if written else []
        within = written.source.corrections_within_microseconds if written else None
        if within is not None and not stamp:  # the first version of a fact first
            rows = sorted(rows, key=lambda row: row.available_at or 0)
        for row in rows:
            available = stamp or row.available_at  # no stamp: it was a replay
            if available is None:
                continue
            latest = max(latest, available)
            if written is not None and places:
                names = written.preparer.keys
                self.index.apply(txn, written.source.content, row, names, available, places, floor, within)
        self.index.put(txn, "stamp", max(latest, self.index.get(txn, "stamp", 0)))
        digest = hashlib.blake2b(delivery.source.encode() + b"\0" + delivery.events, digest_size=16).digest()
        self.index.note_delivery(txn, delivery.key, digest)

    def _laid_out(self, txn: lmdb.Transaction) -> set[str]:
        """Give the contents of this store's groupings that the index has rows of, in this store's layout."""
        kept: dict[str, list[Any]] = self.index.get(txn, "filled", {})
        return {content for content, how in kept.items() if self._schema_hashes.get(content) == how[0]}

    def _apply_missing(self, txn: lmdb.Transaction) -> None:
        """Apply what a killed writer had logged but not indexed."""
        applied = self.index.get(txn, "sequence", 0)
        if applied >= self.log.next_number:
            return
        laid_out = self._laid_out(txn)
        for _, delivery in event_log.deliveries(self.folder / "events", applied):
            written = self._written.get(delivery.source)
            raw = written.reader.read(delivery.events) if written is not None else None
            self._apply(txn, delivery, written.preparer.prepare(raw) if written and raw else [], laid_out)
        self._advance(txn, self.log.next_number)

    # reading

    def snapshot(self) -> Snapshot:
        """Open a consistent view of the store."""
        return Snapshot(self, self.index.read())


def _drop_after_power_cut(folder: Path) -> None:
    """The index is never synced, so one of another boot is not to be trusted, not even to be opened: it is filled again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    now = boot.read_text().strip() if boot.exists() else "unknown"
    with (folder / "boot.lock").open("a") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # whoever is first in this boot drops it, and nobody has opened it before
        recorded = folder / "boot"
        if not recorded.exists() or recorded.read_text() != now:
            shutil.rmtree(folder / "index", ignore_errors=True)
            recorded.write_text(now)


def _repeated(incoming: Incoming, known: bytes, digest: bytes, sequence: int) -> Taken | RequestError:
    if known == digest:
        return Taken(len(incoming.rows), True, sequence)
    return RequestError(
        f"The delivery key {incoming.key!r} was used for other events.",
        where=f"source {incoming.source!r}",
        expected="the same events under the same key",
        do="give every delivery its own Idempotency-Key.",
    )
