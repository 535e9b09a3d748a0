"""The online world: one commit order for all events, and snapshots of it.

A delivery is first in the event log, then in the index, then acknowledged, all under the index's write lock, which the kernel frees when its holder is
killed; the next writer applies what the log has and the index lacks. A reader opens its snapshot first and then takes its moment, after the last stamp in
it, so that "readable before t" and "in the snapshot that was read" are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import shutil
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from sameworld.asof.plan import Grouping
from sameworld.definitions.source import Source
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import ReplayOrderError, RequestError, StoreError, nearest
from sameworld.stores import event_log, filling
from sameworld.stores.chunks import Layout
from sameworld.stores.clock import Clock, SystemClock
from sameworld.stores.deliveries import (
    Incoming,
    Logged,
    Taken,
    digest_of,
    in_parts,
    prepare_all,
    read_logged,
    repeated,
    too_early,
)
from sameworld.stores.event_log import Delivery
from sameworld.stores.keeping import (
    NOTHING,
    Kept,
    KeptSource,
    Written,
    definition_of,
    keep,
    kept_in,
    planned,
    schema_hash,
    token_of,
    written_of,
)
from sameworld.stores.lmdb import SIZES, Index, Sizes, check_room
from sameworld.stores.prepared import Prepared
from sameworld.stores.reach import Reach
from sameworld.stores.record_log import Durability, RecordLog
from sameworld.stores.snapshot import Asks, Snapshot, wanted
from sameworld.stores.view import IndexView, SharedStore

Say = Callable[[str], None]
_FORMAT = 3
"""Of the index: one of another is dropped and filled again."""


class OnlineStore:
    """Event log and index under one folder.

    Args:
        folder: `events/` and `index/` in it.
        groupings: what to keep.
        schemas: source content -> pinned schema.
        durability: what an acknowledged event survives: "process" any kill, "disk" a power cut.
        replay: events say themselves when they became readable, and what is earlier than what has passed is refused.
        clock: this machine's by default.
        sizes: see `Index`.
        sources: whose events are logged even where no grouping reads them, such as those of outcomes.
        shared: where this host publishes every commit, and what snapshots are read from then.
        follow: another host takes events and publishes; here nothing is kept and none are taken.
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
        sizes: Sizes = SIZES,
        sources: Sequence[Source] = (),
        shared: SharedStore | None = None,
        follow: bool = False,
    ) -> None:
        check_room(folder)
        self.shared = shared
        self.follows = follow and shared is not None
        self.folder = folder
        self.replay = replay
        self.clock = clock or SystemClock()
        self.wanted_sources = _by_name(groupings, sources)
        _drop_after_power_cut(folder)
        self.index = Index(folder / "index", sizes=sizes)
        self._kept = NOTHING
        self._latest: tuple[bytes, Mapping[str, int]] = (b"", {})
        self._reaches: dict[int, Reach] = {}
        self._equal: weakref.WeakValueDictionary[Any, Reach] = weakref.WeakValueDictionary()
        self._written: tuple[bytes, dict[str, Written]] = (b"", {})
        with self.index.write():
            # Under the lock: opening cuts what a killed writer left half-written.
            self.log = RecordLog.open(folder / "events", durability=durability)
        self.want(groupings, schemas, sources)

    def close(self) -> None:
        if self.shared is not None:
            self.shared.close()
        self.log.close()
        self.index.close()

    # what is kept

    def want(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Mapping[str, str]],
        sources: Sequence[Source] = (),
    ) -> None:
        """Say what is to be read from now on, as when the store was opened; what of it is missing can be filled then.

        Raises:
            StoreError: two sources have one name; what was wanted before still is.
        """
        by_name = _by_name(groupings, sources)
        kept = NOTHING
        with contextlib.suppress(*([StoreError] if self.follows else [])):  # then what is there is seen later
            kept = self._kept_now()
        found = planned(groupings, kept, schemas)
        self.wanted_sources, self.schemas, self.groupings = by_name, schemas, found

    @contextmanager
    def wanting(
        self,
        groupings: Sequence[Grouping],
        schemas: Mapping[str, Mapping[str, str]],
        sources: Sequence[Source],
    ) -> Generator[None]:
        """Want something else from now on, and what was wanted before again where something goes wrong meanwhile."""
        before = self.wanted_sources, self.schemas, self.groupings
        try:
            self.want(groupings, schemas, sources)
            yield
        except BaseException:  # nothing is read for this: the store may be what is wrong
            self.wanted_sources, self.schemas, self.groupings = before
            raise

    def _kept_now(self) -> Kept:
        if self.shared is not None and self.follows:
            return self.shared.kept()
        with self.index.read() as txn:
            return self.kept(txn)

    def kept(self, txn: lmdb.Transaction) -> Kept:
        """Give what the index keeps in this snapshot."""
        known = self._kept
        if known.token != token_of(self.index, txn):
            known = self._kept = kept_in(self.index, txn)
        return known

    def written(self, txn: lmdb.Transaction) -> dict[str, Written]:
        """Give source name -> what its events need, for everything that is kept, and for this store's own sources before they are."""
        kept = self.kept(txn)
        token, written = self._written
        if not written or token != kept.token:
            own = {
                name: KeptSource(definition_of(source), dict(self.schemas[source.content]), b"")
                for name, source in self.wanted_sources.items()
            }
            written = written_of(Kept(kept.groupings, {**own, **kept.sources}), written)
            self._written = kept.token, written
        return written

    def _written_now(self) -> dict[str, Written]:
        with self.index.read() as txn:
            return self.written(txn)

    @property
    def sources(self) -> dict[str, Source]:
        """Source name -> source."""
        return {name: written.source for name, written in self._written_now().items()}

    def reach(self, grouping: Grouping) -> Reach:
        """Give how far a grouping's reads reach; worked out at the first read, and once for groupings that are equal."""
        found = self._reaches.get(id(grouping))
        if found is None:
            schema = self.schemas[grouping.source.content]
            same = (grouping.content, grouping.reads, schema_hash(schema))
            found = self._equal.get(same)
            if found is None:
                found = self._equal[same] = Reach(grouping, Layout(grouping, schema), same[2])
            self._reaches[id(grouping)] = found
            weakref.finalize(grouping, self._reaches.pop, id(grouping), None)
        return found

    def latest(self, txn: lmdb.Transaction) -> Mapping[str, int]:
        """Give source content -> when its latest row became readable, in microseconds."""
        raw = self.index.raw(txn, "latest")
        known, found = self._latest
        if raw != known:
            found = self.index.get(txn, "latest", {})
            self._latest = raw, found
        return found

    def heard(self, txn: lmdb.Transaction, source: Source, at: int) -> None:
        """Note when a source's latest row became readable."""
        latest: dict[str, int] = self.index.get(txn, "latest", {})
        if at > latest.get(source.content, 0):
            self.index.put(txn, "latest", latest | {source.content: at})

    # filling and rebuilding

    def missing(self) -> list[Grouping]:
        """Give the groupings that are not filled yet."""
        return self.missing_in(self._kept_now())

    def missing_in(self, kept: Kept) -> list[Grouping]:
        """Give the groupings that something kept does not have all rows of."""
        return _unfilled(self.groupings, self.schemas, kept)

    def lacks(self, groupings: Sequence[Grouping], schemas: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether something would have to be filled before these could be read."""
        kept = self._kept_now()
        return bool(_unfilled(planned(groupings, kept, schemas), schemas, kept))

    def cutover(self) -> int | None:
        """Give the recorded cutover in microseconds: rows readable before it come from the files, later ones from the log."""
        return filling.recorded_cutover(self.folder)

    def fill(self, engine: DuckDBEngine, *, cutover: int | None = None, say: Say = lambda _: None) -> None:
        """Fill what is missing from the sources' files up to the cutover and from the event log after it. Others may write and read meanwhile.

        Args:
            engine: reads the files.
            cutover: recorded the first time; now by default. A later call may not change it.
            say: told what is being done.
        """
        if self.follows:
            return
        filling.fill(self, engine, cutover=cutover, say=say)
        with contextlib.suppress(StoreError):  # what cannot be published now will be when it can
            self.heal()

    def forget_others(self) -> None:
        """Keep nothing but what this store wants; for whoever knows that nobody else reads from it. While something is being filled nothing is forgotten."""
        if self.follows:
            return
        filling.forget_others(self)
        with contextlib.suppress(StoreError):
            self.heal()

    # writing

    def prepare(self, source: str, key: str, events: bytes) -> Incoming:
        """Read a delivery's events; nothing is written.

        Raises:
            RequestError: no such source.
            DataError: the events are not the source's.
        """
        if self.follows:
            raise RequestError(
                "This server follows the store of another host.",
                where=f"source {source!r}",
                do="send events to the server that was started without --follow.",
            )
        known = self._written_now()
        written = known.get(source)
        if written is None:
            raise RequestError(
                f"There is no source {source!r} here.",
                expected=f"nearest: {nearest(source, known)}",
                do="correct the source's name.",
            )
        return Incoming(source, key, events, written.reader.read(events))

    def commit(self, group: Sequence[Incoming]) -> list[Taken | Exception]:
        """Take a group of deliveries in one commit; one answer each, in their order: what was taken, or why nothing was.

        Raises:
            LogError: the event log cannot be written; nothing was taken.
        """
        answers: list[Taken | Exception] = []
        before = self._written_now()
        prepared = prepare_all(group, before)
        with self.index.write() as txn:
            self.catch_up(txn)
            written = self.written(txn)
            if any(before[one.source] is not written[one.source] for one in group):  # a filling has ended
                prepared = prepare_all(group, written)
            fresh: list[Logged] = []
            digests: dict[str, bytes] = {}
            firsts: dict[tuple[str, str], int] = {}
            last = self.index.get(txn, "stamp", 0)
            passed = self.index.get(txn, "passed", 0)
            sequence = self.log.next_number
            for incoming, rows in zip(group, prepared, strict=True):
                digest = digest_of(incoming.source, incoming.events)
                known = digests.get(incoming.key) or self.index.delivery(txn, incoming.key)
                if known is not None:
                    answers.append(repeated(incoming, known, digest, sequence))
                elif isinstance(rows, Exception):
                    answers.append(rows)
                elif self.replay and (early := self._early(txn, incoming.source, rows, passed, firsts)):
                    answers.append(early)
                else:
                    last = last if self.replay else max(self.clock.now(), last + 1)
                    sequence += 1
                    content = written[incoming.source].source.content
                    stamp = 0 if self.replay else last
                    delivery = Delivery(stamp, incoming.source, content, incoming.key, incoming.events, self.clock.now())  # fmt: skip
                    fresh.append(Logged(delivery, digest, rows))
                    digests[incoming.key] = digest
                    answers.append(Taken(len(rows), False, sequence))
            if fresh:
                self.log.append([event_log.encode(coming.delivery) for coming in fresh])
                self._apply(txn, written, fresh)
                self._advance(txn)
                self._close_facts(txn, 2 * sum(len(coming.rows) for coming in fresh))
        if self.shared is not None and fresh and not self.shared.away:
            with contextlib.suppress(StoreError):  # it is kept, and will be published when it can
                self.shared.publish(self.index)
        return answers

    def _close_facts(self, txn: lmdb.Transaction, most: int) -> None:
        """Once everything logged is applied: forget facts that nothing to come can correct, not even what a filling has still to take."""
        filling_from = self.index.get(txn, "filling")
        coming = self.coming(txn)
        self.index.close_facts(txn, min(coming, filling_from[0]) if filling_from else coming, most)

    def coming(self, txn: lmdb.Transaction) -> int:
        """Give the time at which whatever is not applied yet becomes readable, or before it."""
        passed, stamp = self.index.get(txn, "passed", 0), self.index.get(txn, "stamp", 0)
        return passed if self.replay else stamp + 1

    def _advance(self, txn: lmdb.Transaction) -> None:
        """Note what has been applied, to everything kept that this process can keep up: what it cannot is not kept any more."""
        kept = self.kept(txn)
        keeping_up = {place.prefix for written in self.written(txn).values() for place in written.places}
        left = {content: g for content, g in kept.groupings.items() if g.prefix in keeping_up}
        if len(left) < len(kept.groupings):
            now = Kept(left, kept.sources, secrets.token_bytes(8))
            keep(self.index, txn, now, instead_of=kept)
        if self.shared is not None:
            before = self.index.get(txn, "sequence", 0)
            self.index.note_changes(txn, before, self.log.next_number, self.shared.published)
        self.index.put(txn, "sequence", self.log.next_number)

    def _early(
        self,
        txn: lmdb.Transaction,
        source: str,
        rows: Prepared,
        passed: int,
        firsts: dict[tuple[str, str], int],
    ) -> ReplayOrderError | None:
        return too_early(source, rows, passed) or self._before_its_first(txn, source, rows, firsts)

    def _before_its_first(
        self, txn: lmdb.Transaction, name: str, rows: Prepared, firsts: dict[tuple[str, str], int]
    ) -> ReplayOrderError | None:
        """Refuse versions that became readable before the first one of their fact: what had been forgotten on its account might count again.

        Args:
            firsts: (source, fact) -> when its first version became readable, of deliveries taken in this commit; added to.
        """
        own = self.written(txn)[name]
        source, facts = own.source, own.facts
        if source.corrections_within is None:
            return None
        earliest: dict[str, int] = {}
        columns = (rows.values(column) for column in ("fact", "available_at"))
        for fact, available in zip(*columns, strict=True):
            if fact is not None and available is not None:
                earliest[fact] = min(available, earliest.get(fact, available))
        early: list[tuple[str, int, int]] = []
        for fact, time in earliest.items():
            first = firsts.get((source.name, fact), self.index.first_available(txn, facts, fact))
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

    def _apply(self, txn: lmdb.Transaction, written: Mapping[str, Written], coming: Sequence[Logged]) -> None:
        """Take logged deliveries into the index, those of each source together."""
        by_source: dict[str, list[tuple[Prepared, int]]] = {}
        for delivery, digest, rows in coming:
            by_source.setdefault(delivery.source, []).append((rows, delivery.stamp))
            self.index.note_delivery(txn, delivery.key, digest)
        last = max(delivery.stamp for delivery, _, _ in coming)
        # Whoever reads has all of them or none, and asks about a moment after the last.
        floor = last or self.index.get(txn, "floor", 0)
        for name, deliveries in by_source.items():
            if name in written:
                latest = written[name].apply(self.index, txn, deliveries, floor)
                self.heard(txn, written[name].source, latest)
                last = max(last, latest)
        self.index.put(txn, "stamp", max(last, self.index.get(txn, "stamp", 0)))

    def catch_up(self, txn: lmdb.Transaction) -> Kept:
        """Apply what a killed writer had logged but not indexed; give what is kept."""
        self.log.refresh()
        applied = self.index.get(txn, "sequence", 0)
        if applied < self.log.next_number:
            written = self.written(txn)
            for some in in_parts(event_log.deliveries(self.folder / "events", applied)):
                self._apply(txn, written, read_logged(some, written))
            self._advance(txn)
        return self.kept(txn)

    # reading

    def snapshot(self, asked: Asks = lambda: (), at: int | None = None) -> Snapshot:
        """Open a consistent view of the store.

        Args:
            asked: gives what will be read, which a store of several hosts has to know.
            at: the moment in a replay.
        """
        if self.shared is not None:
            view = self.shared.view(wanted(self, asked()), self.clock.now() if at is None else at)
            if self.replay and view.sequence != self.sequence():
                raise StoreError("Redis has not got all events yet.", do="send the request again.")
            return Snapshot(self, view)
        txn = self.index.read()
        facts = self.index.get(txn, "sequence", 0), self.index.get(txn, "stamp", 0)
        return Snapshot(self, IndexView(*facts, self.kept(txn), self.latest(txn), self.index, txn))

    def sequence(self) -> int:
        """Give the last delivery that the index of this host has."""
        with self.index.read() as txn:
            return self.index.get(txn, "sequence", 0)

    # publishing

    def heal(self) -> None:
        """Publish what is not published yet, whatever became of it; nothing where one host serves alone.

        Raises:
            StoreError: it cannot be published now.
        """
        if self.shared is not None and not self.follows:
            self.shared.heal(self.index)


def _unfilled(
    groupings: Iterable[Grouping], schemas: Mapping[str, Mapping[str, str]], kept: Kept
) -> list[Grouping]:
    return [
        grouping
        for grouping in groupings
        if (place := kept.groupings.get(grouping.content)) is None
        or place.schema_hash != schema_hash(schemas[grouping.source.content])
        or not place.reaches(grouping.longest_past)
    ]


def _by_name(groupings: Sequence[Grouping], sources: Sequence[Source]) -> dict[str, Source]:
    """Give source name -> source, of groupings and of others."""
    by_content = {grouping.source.content: grouping.source for grouping in groupings}
    result: dict[str, Source] = {}
    for source in {**by_content, **{source.content: source for source in sources}}.values():
        if source.name in result:
            raise StoreError(
                f"Two different sources are called {source.name!r}.",
                do="rename one of them, or serve their models from two servers.",
            )
        result[source.name] = source
    return result


def _drop_after_power_cut(folder: Path) -> None:
    """The index is never synced, so one of another boot (or format) is not to be trusted, not even to be opened: it is filled again."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    now = f"{boot.read_text().strip() if boot.exists() else 'unknown'} {_FORMAT}"
    with (folder / "boot.lock").open("a") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # whoever is first in this boot drops it, and nobody has opened it before
        recorded = folder / "boot"
        if not recorded.exists() or recorded.read_text() != now:
            shutil.rmtree(folder / "index", ignore_errors=True)
            recorded.write_text(now)
