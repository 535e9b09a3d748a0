"""The event log: every delivery in commit order, each with its stamp. With the files up to the cutover it is all a store is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import NEVER
from sameworld.stores.events import EventReader
from sameworld.stores.record_log import read


class Delivery(msgspec.Struct, array_like=True, gc=False):
    """One committed delivery.

    Args:
        stamp: microseconds; when its rows became readable. 0 in a replay, where each row says it itself.
        source: the source's name.
        content: the source's content hash then.
        key: the delivery's key.
        events: the JSON array as it came.
        received: microseconds on the server's clock.
    """

    stamp: int
    source: str
    content: str
    key: str
    events: bytes
    received: int


encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(Delivery).decode


def deliveries(folder: Path, start: int = 0) -> Iterator[tuple[int, Delivery]]:
    """Give (sequence, delivery) from the log, in commit order; the first sequence is 1."""
    for number, record in read(folder, start):
        yield number + 1, _decode(record)


def raw_rows(
    folder: Path, readers: Mapping[str, EventReader], *, up_to: int | None = None
) -> dict[str, pa.Table]:
    """Give the log's rows of every source as tables in its pinned schema.

    Args:
        folder: the event log's.
        readers: source name -> reader.
        up_to: the last sequence to take; all by default.

    Returns:
        Source name -> its raw columns, `__available_us` (the stamp; null where the row says it itself) and `__sequence`.
    """
    tables: dict[str, list[pa.Table]] = {}
    for sequence, delivery in deliveries(folder):
        if up_to is not None and sequence > up_to:
            break
        reader = readers.get(delivery.source)
        if reader is None:
            continue
        raw = reader.read(delivery.events)
        stamp = pa.array([delivery.stamp or None] * raw.num_rows, pa.int64())
        place = pa.array(np.full(raw.num_rows, sequence, np.int64))
        tables.setdefault(delivery.source, []).append(
            raw.append_column("__available_us", stamp).append_column("__sequence", place)
        )
    return {name: pa.concat_tables(parts).combine_chunks() for name, parts in tables.items()}


def first_unseen(folder: Path, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give, for each sequence that a reader saw, the stamp of the first delivery it did not see: what is readable from then on was not in its snapshot.

    A delivery is stamped before it is in the index, and much before it if its writer was killed in between; so a reader's moment may be after the stamp
    of a delivery that its snapshot lacks. Stamps and sequences rise together, so rows stamped before this one are exactly those the reader had.

    Args:
        folder: the event log's.
        sequences: shape (n,), as logged with predictions.

    Returns:
        shape (n,), microseconds; NEVER where there is none, as after the last delivery and in a replay.
    """
    stamps = [delivery.stamp or NEVER for _, delivery in deliveries(folder)]
    following = np.minimum.accumulate(np.array([*stamps, NEVER], np.int64)[::-1])[::-1]
    return following[np.minimum(sequences, len(stamps))]
