"""The prediction log: for every answer what is needed to replay it bit for bit."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from sameworld.errors import LogError
from sameworld.stores.clock import Clock
from sameworld.stores.record_log import RecordLog, read


class Prediction(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One answer.

    Args:
        id: unique.
        model, version: the model's name and its bundle's address.
        t: microseconds; the moment.
        sequence: the last event in the snapshot that was read.
        value, tier, reason: what the caller got.
        request: the request's fields in the bundle's order; instants in microseconds.
        features: the feature columns in the bundle's order, as the model saw them (see `logged`); None when it saw none.
        replayed: whether the moment was given by a replay.
        elapsed_us: from the request's arrival to the writing of this row.
        policy, propensity, seed: of an explored decision; none yet.
    """

    id: str
    model: str
    version: str
    t: int
    sequence: int
    value: float
    tier: str
    reason: str
    request: list[Any]
    features: list[Any] | None
    replayed: bool
    elapsed_us: int
    policy: str | None = None
    propensity: float | None = None
    seed: int | None = None


def logged(column: pa.Array) -> list[Any]:
    """Give a feature column's values as a record has them, to the bit: instants in microseconds, decimals as text."""
    if _has(column.type, pa.types.is_timestamp):
        column = column.cast(pa.list_(pa.int64()) if pa.types.is_list(column.type) else pa.int64())
    values = column.to_pylist()
    return _each(values, str) if _has(column.type, pa.types.is_decimal) else values


def column_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Give the feature column of what `logged` gave."""
    return pa.array(_each(values, Decimal) if _has(kind, pa.types.is_decimal) else list(values), kind)


def _has(kind: pa.DataType, is_one: Callable[[pa.DataType], bool]) -> bool:
    """Whether values of this type are, or are lists of, what is asked about."""
    return is_one(kind.value_type if pa.types.is_list(kind) else kind)


def _each(values: Sequence[Any], change: Callable[[Any], Any]) -> list[Any]:
    return [
        None if value is None else _each(value, change) if isinstance(value, list) else change(value)
        for value in values
    ]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Prediction).decode


class PredictionLog:
    """One process's own log under `predictions/`; written before the answer goes out, so that it survives the process.

    Args:
        folder: the store's.
        clock: names the log.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.process = f"{clock.now():x}-{os.getpid():x}-{secrets.token_hex(2)}"
        self._log = RecordLog.open(folder / "predictions" / self.process, durability="process")
        self._count = 0

    def next_id(self) -> str:
        """Give an id that no other answer has."""
        self._count += 1
        return f"{self.process}-{self._count:x}"

    def write(self, predictions: Sequence[Prediction]) -> str:
        """Append predictions; give why it failed, or nothing."""
        try:
            self._log.append([_encode(prediction) for prediction in predictions])
        except LogError as error:
            return error.what
        return ""

    def close(self) -> None:
        self._log.close()


def predictions(folder: Path) -> Iterator[tuple[str, Prediction | None]]:
    """Give (where, prediction) of every process's log under a store's folder, oldest process first; None for a record that is damaged."""
    for log in sorted((folder / "predictions").glob("*")):
        for number, record in read(log, damaged="skip"):
            yield f"{log.name}#{number}", None if record is None else _decode(record)
