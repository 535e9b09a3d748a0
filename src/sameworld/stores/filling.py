"""Groupings are filled from the files and the event log while events arrive and requests are answered.

What is filled has keys of its own in the index, where nobody reads yet: first the rows as of one sequence, in short transactions; then, delivery by delivery
and by the code that takes events, what was logged meanwhile; the transaction that takes the last of it makes it readable. So nothing is lost or doubled, and
whoever is killed leaves only garbage.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import pyarrow.compute as pc

from sameworld.asof.plan import Grouping
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.engines.interface import Rows
from sameworld.errors import StoreError
from sameworld.stores import event_log
from sameworld.stores import fingerprint as fingerprints
from sameworld.stores.clock import Clock
from sameworld.stores.keeping import (
    Kept,
    KeptGrouping,
    KeptSource,
    Written,
    definition_of,
    keep,
    schema_hash,
)
from sameworld.stores.lmdb import new_prefix

if TYPE_CHECKING:
    from sameworld.stores.online import OnlineStore

Say = Callable[[str], None]
_CATCHING_UP_SECONDS = 0.02
_PAUSE_SECONDS = 0.001


def fill(
    store: OnlineStore, engine: DuckDBEngine, *, cutover: int | None = None, say: Say = lambda _: None
) -> None:
    """See `OnlineStore.fill`."""
    with _alone(store.folder):
        with store.index.write() as txn:
            border = _border(store.folder, store.clock, cutover)
            kept = store.catch_up(txn)
            _forget_unfinished(store, txn)
            wanted = store.missing_in(kept)
            sequence = store.log.next_number
            floor = max(border, store.index.get(txn, "floor", 0))
            fresh = Kept(_groupings(store, wanted), _sources(store, kept, wanted))
            if wanted:
                begun = {g.prefix for g in fresh.groupings.values()} | {
                    s.facts for s in fresh.sources.values()
                }
                begun -= {s.facts for s in kept.sources.values()}
                store.index.put(txn, "filling", [store.coming(txn), sorted(begun)])
        written = _written(kept, fresh) if wanted else {}
        heard = _write(store, engine, wanted, written, border, sequence, floor, say) if wanted else {}
        _finish(store, written, fresh, sequence, border, heard)
        store.index.sweep()


def forget_others(store: OnlineStore) -> None:
    """Keep nothing but what this store wants: its groupings, and its sources. What is being filled is somebody else's wish: then nothing is forgotten."""
    with contextlib.suppress(BlockingIOError), _alone(store.folder, wait=False):
        with store.index.write() as txn:
            kept = store.catch_up(txn)
            wanted = {grouping.content for grouping in store.groupings}
            mine = Kept(
                {content: g for content, g in kept.groupings.items() if content in wanted},
                {name: s for name, s in kept.sources.items() if name in store.wanted_sources},
                secrets.token_bytes(8),
            )
            if (mine.groupings, mine.sources) != (kept.groupings, kept.sources):
                keep(store.index, txn, mine, instead_of=kept)
        store.index.sweep()


@contextmanager
def _alone(folder: Path, *, wait: bool = True) -> Generator[None]:
    """One process fills at a time; the kernel frees the lock of one that is killed.

    Raises:
        BlockingIOError: another does, and there is to be no waiting.
    """
    with (folder / "filling.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _border(folder: Path, clock: Clock, cutover: int | None) -> int:
    """Give the recorded cutover, or a new one."""
    recorded = recorded_cutover(folder)
    if recorded is not None and cutover is not None and cutover != recorded:
        raise StoreError(
            "The cutover of this store is recorded already.",
            where=str(folder),
            expected=str(recorded),
            found=str(cutover),
            do="leave the cutover out, or give another --state folder.",
        )
    if recorded is not None:
        return recorded
    return cutover if cutover is not None else clock.now()


def recorded_cutover(folder: Path) -> int | None:
    """Give the recorded cutover in microseconds."""
    recorded = folder / "cutover"
    return int(recorded.read_text()) if recorded.exists() else None


def _record(folder: Path, border: int) -> None:
    """Write the cutover beside the index: it outlives it, and with it what is in the files and what in the log."""
    if (folder / "cutover").exists():
        return
    fresh = folder / ".cutover"
    with fresh.open("w") as out:
        out.write(str(border))
        out.flush()
        os.fsync(out.fileno())
    os.replace(fresh, folder / "cutover")


def _forget_unfinished(store: OnlineStore, txn: lmdb.Transaction) -> None:
    """Make what a killed filling left garbage."""
    left = store.index.get(txn, "filling")
    if left is not None:
        store.index.put(txn, "garbage", [*store.index.get(txn, "garbage", []), *left[1]])
        store.index.put(txn, "filling", None)


def _sources(store: OnlineStore, kept: Kept, wanted: Sequence[Grouping]) -> dict[str, KeptSource]:
    """Give the sources as they will be kept. One with groupings to fill notes its facts anew: these need keys that older notes do not have."""
    filled = {grouping.source.content for grouping in wanted}
    result: dict[str, KeptSource] = {}
    for name, source in store.wanted_sources.items():
        before = kept.sources.get(name)
        same = before is not None and before.source.content == source.content
        facts = before.facts if before and same and source.content not in filled else new_prefix()
        result[name] = KeptSource(definition_of(source), dict(store.schemas[source.content]), facts)
    return result


def _groupings(store: OnlineStore, wanted: Sequence[Grouping]) -> dict[str, KeptGrouping]:
    return {
        g.content: KeptGrouping(
            g.source.content, g.keys, tuple((i.condition, i.column) for i in g.inputs),
            schema_hash(store.schemas[g.source.content]), g.longest_past, new_prefix(),
        )
        for g in wanted
    }  # fmt: skip


def _written(kept: Kept, fresh: Kept) -> dict[str, Written]:
    """Give source name -> what its events need to get into what is being filled; its prepared rows have the keys of what is kept, too."""
    prefixes = {g.prefix for g in fresh.groupings.values()}
    result: dict[str, Written] = {}
    for name, source in fresh.sources.items():
        own = (source.source.content, schema_hash(source.schema))
        over = [
            g for both in (kept, fresh) for g in both.groupings.values() if (g.source, g.schema_hash) == own
        ]
        result[name] = Written(source, over)
        result[name].places = [place for place in result[name].places if place.prefix in prefixes]
    return result


def _write(
    store: OnlineStore,
    engine: DuckDBEngine,
    wanted: Sequence[Grouping],
    written: dict[str, Written],
    border: int,
    sequence: int,
    floor: int,
    say: Say,
) -> dict[str, int]:
    """Write rows and facts as of a sequence, where nobody reads yet; give source name -> when its latest row became readable."""
    heard: dict[str, int] = {}
    readers = {name: found.reader for name, found in written.items()}
    logged = event_log.raw_rows(store.folder / "events", readers, up_to=sequence)
    prints: dict[str, fingerprints.Fingerprint] = {}
    for source in {g.source.content: g.source for g in wanted}.values():
        own = written[source.name]
        rows = Rows(source.data, border, logged.get(source.name))
        for place in own.places:
            table = engine.sorted_rows(replace(place.grouping, source=source), own.schema, rows, "as_of")
            if table.num_rows:
                heard[source.name] = int(pc.max(table["available_at"]).as_py())
            count = store.index.write_gently(store.index.rows_to_fill(place, own.schema, table, floor))
            say(
                f"filled {source.name} by {', '.join(place.grouping.keys)}: {table.num_rows:,} rows in {count:,} chunks"
            )
        if source.id is not None:
            union = Grouping(source, tuple(own.preparer.keys), (), ())
            heads = engine.heads(union, own.schema, rows)
            within = source.corrections_within_microseconds
            store.index.write_gently(store.index.facts_to_fill(own.facts, heads, union.keys, within))
        prints[source.content] = fingerprints.fingerprint(engine, source, own.schema, border)
    fingerprints.save(store.folder, prints)
    return heard


def _finish(
    store: OnlineStore,
    written: dict[str, Written],
    fresh: Kept,
    sequence: int,
    border: int,
    heard: dict[str, int],
) -> None:
    """Take what was logged since, and make it all readable in the transaction that takes the last of it."""
    filled = {g.source for g in fresh.groupings.values()}
    seconds = _CATCHING_UP_SECONDS
    while True:
        with store.index.write() as txn:
            kept = store.catch_up(txn)
            until = time.monotonic() + seconds
            if filled and sequence < store.log.next_number:
                floor = max(border, store.index.get(txn, "floor", 0))
                for number, delivery in event_log.deliveries(store.folder / "events", sequence):
                    own = written.get(delivery.source)
                    if own is not None and own.source.content in filled:
                        (rows,) = own.prepare([own.reader.read(delivery.events)])
                        own.apply(store.index, txn, [(rows, delivery.stamp)], delivery.stamp or floor)
                    sequence = number
                    if time.monotonic() > until:
                        break
            if not filled or sequence >= store.log.next_number:
                sources = {**kept.sources, **fresh.sources}
                served = {(s.source.content, schema_hash(s.schema)) for s in sources.values()}
                groupings = {
                    content: g
                    for content, g in {**kept.groupings, **fresh.groupings}.items()
                    if (g.source, g.schema_hash) in served
                }
                now = Kept(groupings, sources, secrets.token_bytes(8))
                if (now.groupings, now.sources) != (kept.groupings, kept.sources):
                    keep(store.index, txn, now, instead_of=kept)
                for name, at in heard.items():
                    store.heard(txn, written[name].source, at)
                if filled:
                    store.index.put(txn, "filling", None)
                    store.index.put(txn, "stamp", max(border - 1, store.index.get(txn, "stamp", 0)))
                    store.index.put(txn, "floor", max(border, store.index.get(txn, "floor", 0)))
                _record(store.folder, border)
                return
        seconds *= 2  # so that it ends however fast events come
        time.sleep(_PAUSE_SECONDS)
