"""Deliveries on their way in: read, prepared in one query a source, and told apart from repeated ones. Nothing is written here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import pyarrow as pa

from sameworld.errors import ReplayOrderError, RequestError
from sameworld.stores.event_log import Delivery
from sameworld.stores.keeping import Written
from sameworld.stores.prepared import Prepared

_TOGETHER_BYTES = 4 << 20
_NONE = Prepared(pa.schema([]), [])


@dataclass(frozen=True)
class Taken:
    """An acknowledged delivery: how many events it has, and whether it had been taken before."""

    accepted: int
    repeated: bool
    sequence: int


@dataclass(frozen=True)
class Incoming:
    """A delivery on its way in, its events read already.

    Args:
        events: as they came.
        raw: the same as a table in the source's schema.
    """

    source: str
    key: str
    events: bytes
    raw: pa.Table


class Logged(NamedTuple):
    """A logged delivery on its way into the index, and its prepared rows."""

    delivery: Delivery
    digest: bytes
    rows: Prepared


def digest_of(source: str, events: bytes) -> bytes:
    return hashlib.blake2b(source.encode() + b"\0" + events, digest_size=16).digest()


def prepare_all(group: Sequence[Incoming], written: Mapping[str, Written]) -> list[Prepared | Exception]:
    """Give the prepared rows of deliveries, in one query a source; an exception for those that cannot be prepared."""
    result: list[Prepared | Exception] = [_NONE] * len(group)
    for name in {incoming.source for incoming in group}:
        places = [place for place, incoming in enumerate(group) if incoming.source == name]
        try:
            tables = written[name].prepare([group[place].raw for place in places])
        except duckdb.Error:
            tables = [_prepared_alone(group[place], written[name]) for place in places]
        for place, table in zip(places, tables, strict=True):
            result[place] = table
    return result


def _prepared_alone(incoming: Incoming, written: Written) -> Prepared | Exception:
    try:
        return written.prepare([incoming.raw])[0]
    except duckdb.Error as error:
        return error


def in_parts(logged: Iterable[tuple[int, Delivery]]) -> Iterator[list[Delivery]]:
    """Give deliveries in groups of bounded size."""
    some, size = list[Delivery](), 0
    for _, delivery in logged:
        some.append(delivery)
        size += len(delivery.events)
        if size > _TOGETHER_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


def read_logged(deliveries: Sequence[Delivery], written: Mapping[str, Written]) -> list[Logged]:
    """Read and prepare logged deliveries; those of sources that are not known any more have no rows."""
    known = [d for d in deliveries if d.source in written]
    group = [Incoming(d.source, d.key, d.events, written[d.source].reader.read(d.events)) for d in known]
    prepared = iter(prepare_all(group, written))
    result: list[Logged] = []
    for delivery in deliveries:
        rows = next(prepared) if delivery.source in written else _NONE
        if isinstance(rows, Exception):
            raise rows
        result.append(Logged(delivery, digest_of(delivery.source, delivery.events), rows))
    return result


def too_early(source: str, rows: Prepared, passed: int) -> ReplayOrderError | None:
    early = [time for time in rows.values("available_at") if time is not None and time < passed]
    if not early:
        return None
    return ReplayOrderError(
        f"{len(early)} events of source {source!r} became readable before a moment that has passed.",
        expected=f"available times of at least {passed} us", found=f"{min(early)} us", do="replay events and requests in the order of time.",
    )  # fmt: skip


def repeated(incoming: Incoming, known: bytes, digest: bytes, sequence: int) -> Taken | RequestError:
    if known == digest:
        return Taken(incoming.raw.num_rows, True, sequence)
    return RequestError(
        f"The delivery key {incoming.key!r} was used for other events.",
        where=f"source {incoming.source!r}",
        expected="the same events under the same key",
        do="give every delivery its own Idempotency-Key.",
    )
