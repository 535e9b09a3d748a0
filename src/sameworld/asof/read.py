"""Sorted rows -> the values of a grouping's reads. Engines call it with millions of rows, the server with one entity's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof import exact
from sameworld.asof.aggregations import AGGREGATIONS, COUNT, SUM, value_family
from sameworld.asof.kernel import EVENT, FIRST_VALID, VALID_BITS, order_keys, read_entities, sweep
from sameworld.asof.plan import Read
from sameworld.asof.schema import VALUE_TYPES
from sameworld.errors import AsOfError

_NO_VALUES = np.zeros(1, np.int64)
_NO_VALID = np.zeros(0, np.uint8)


@dataclass
class InputColumn:
    """One input of sorted rows.

    Args:
        family: the family of its values; None for an input that only counts rows.
        values: shape (rows,); int64 for integers, booleans and instants, float64 for floats, objects for text; None when family is.
        valid: shape (rows,), uint8: 1 where the row takes part.
    """

    family: str | None
    values: NDArray[np.generic] | None
    valid: NDArray[np.uint8]


@dataclass
class SortedRows:
    """Row versions sorted by (entity, event time, available time, version, tie).

    Args:
        starts: shape (entities + 1,), where each entity's rows begin.
        event, available, superseded: shape (rows,), microseconds since 1970.
        inputs: the grouping's inputs, in its order.
    """

    starts: NDArray[np.int64]
    event: NDArray[np.int64]
    available: NDArray[np.int64]
    superseded: NDArray[np.int64]
    inputs: list[InputColumn]


def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give floats their one form: -0.0 becomes 0.0, every NaN the same NaN."""
    result = values + 0.0
    lost = np.isnan(result)
    if lost.any():
        result[lost] = np.nan
    return result


def _order_keys(column: InputColumn) -> NDArray[np.int64]:
    """int64 keys in the order of the values; NaN is the greatest."""
    assert column.values is not None
    if column.family != "float":
        return column.values.astype(np.int64, copy=False)
    bits = normalised(column.values.astype(np.float64, copy=False)).view(np.int64)
    return order_keys(bits, 0, bits.shape[0])


def read_windows(
    reads: Sequence[Read],
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    *,
    places: NDArray[np.int64] | None = None,
    threads: int = 1,
) -> dict[str, pa.Array]:
    """Give every window of every read at every moment.

    Args:
        reads: the grouping's reads.
        rows: its rows.
        moment_starts: shape (entities + 1,), where each entity's moments begin.
        as_of, at: shape (moments,), sorted by (entity, as_of).
        places: which of these moments each value of the result is of; by default each once, in their order.
        threads: how many entities' ranges to sweep at a time.

    Returns:
        Column name -> array of shape (moments,), or as long as `places`.

    Raises:
        AsOfError: an integer sum does not fit int64.
    """
    result: dict[str, pa.Array] = {}
    row_starts, event, available, superseded = rows.starts, rows.event, rows.available, rows.superseded
    for read in reads:
        column = rows.inputs[read.input]
        valid = column.valid
        aggregation = AGGREGATIONS[read.operation]
        base = limb_count = 0
        is_float = column.family == "float"
        values = _NO_VALUES
        if aggregation.partial == SUM:
            assert column.values is not None
            if is_float:
                values = normalised(column.values.astype(np.float64, copy=False)).view(np.int64)
                base, highest = exact.exponent_range(values, valid)
                limb_count = exact.limbs_for(base, highest)
            else:
                values, limb_count = column.values.astype(np.int64, copy=False), 3
        elif read.operation in ("min", "max"):
            values = _order_keys(column)
        starts, ends = read.edges
        out = np.empty((at.shape[0], len(read.windows)), np.int64)
        out_float = np.empty(
            (at.shape[0] if aggregation.partial == SUM else 0, len(read.windows)), np.float64
        )

        about = (event, available, superseded, values, valid, is_float, base, limb_count)
        asked = (as_of, at, starts, ends, at.shape[0] == 1, out, out_float)
        _sweep_all(aggregation.partial, row_starts, moment_starts, (*about, *asked), threads)
        if places is not None:
            out, out_float = out[places], out_float[places] if aggregation.partial == SUM else out_float
        asked_at = at if places is None else at[places]
        for number, name in enumerate(read.names):
            result[name] = _value(
                read.operation, column, event, asked_at, out[:, number], out_float[:, number]
            )
    return result


class Words:
    """Where the inputs of a grouping are in a row of words, as a store keeps it; see `kernel.read_entities`.

    Args:
        families: of the inputs' types; None for an input that only counts rows.
    """

    def __init__(self, families: Sequence[str | None]) -> None:
        self.families = list(families)
        self.valid = [
            (FIRST_VALID + number // VALID_BITS, 1 << number % VALID_BITS) for number in range(len(families))
        ]
        after = FIRST_VALID + (len(families) + VALID_BITS - 1) // VALID_BITS
        self.values: list[int] = []
        for family in families:
            self.values.append(after if family not in (None, "text") else 0)
            after += family not in (None, "text")
        self.width = after


class EntityReads:
    """The reads of a grouping, laid out once for the kernel.

    Args:
        reads: the grouping's.
        words: where its inputs are.
    """

    def __init__(self, reads: Sequence[Read], words: Words) -> None:
        each = [
            (read, name, start, end)
            for read in reads
            for name, start, end in zip(read.names, *read.edges, strict=True)
        ]
        self._words = words
        self._names = [(name, read.operation, read.input) for read, name, _, _ in each]
        self._ops = np.array([AGGREGATIONS[read.operation].partial for read, *_ in each], np.int64)
        self._valid = np.array([words.valid[read.input][0] for read, *_ in each], np.int64)
        self._masks = np.array([words.valid[read.input][1] for read, *_ in each], np.int64)
        self._values = np.array([words.values[read.input] for read, *_ in each], np.int64)
        self._floats = np.array([words.families[read.input] == "float" for read, *_ in each], np.uint8)
        self._starts = np.array([start for *_, start, _ in each], np.int64)
        self._ends = np.array([end for *_, end in each], np.int64)

    def values(
        self,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        t: int,
        texts: Mapping[int, NDArray[Any]],
        places: NDArray[np.int64] | None,
    ) -> dict[str, pa.Array]:
        """Give every window of every read at one moment.

        Args:
            rows: shape (rows, words), the entities' in order.
            starts: shape (entities + 1,), where each entity's rows begin.
            t: the moment.
            texts: input -> its texts, one a row, for the inputs that are text.
            places: which entity each value of the result is of; by default each once, in their order.
        """
        out = np.empty((starts.shape[0] - 1, self._ops.shape[0]), np.int64)
        out_float = np.empty(out.shape, np.float64)
        read_entities(
            rows, starts, t, self._ops, self._valid, self._masks, self._values, self._floats, self._starts, self._ends, out, out_float
        )  # fmt: skip
        if places is not None:
            out, out_float = out[places], out_float[places]
        at = np.full(out.shape[0], t, np.int64)
        result: dict[str, pa.Array] = {}
        for number, (name, operation, place) in enumerate(self._names):
            family = self._words.families[place]
            kept = texts.get(place)
            if kept is None and family is not None:
                kept = rows[:, self._words.values[place]]
                kept = kept.view(np.float64) if family == "float" else kept
            column = InputColumn(family, kept, _NO_VALID)
            result[name] = _value(operation, column, rows[:, EVENT], at, out[:, number], out_float[:, number])
        return result


def _sweep_all(
    partial: int,
    row_starts: NDArray[np.int64],
    moment_starts: NDArray[np.int64],
    rest: tuple[Any, ...],
    threads: int,
) -> None:
    """Sweep all entities, with several threads in ranges of about equal load."""
    entities = row_starts.shape[0] - 1
    if threads <= 1 or entities < 2 * threads:
        sweep(partial, row_starts, moment_starts, 0, entities, *rest)
        return
    load = row_starts[:-1] + moment_starts[:-1]
    parts = threads * 8
    inner = np.searchsorted(load, np.linspace(0, load[-1], parts + 1)[1:-1])
    cuts = np.unique(np.concatenate([[0], inner, [entities]])).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(
            pool.map(
                lambda first, last: sweep(partial, row_starts, moment_starts, first, last, *rest),
                cuts[:-1],
                cuts[1:],
            )
        )


def _value(
    operation: str,
    column: InputColumn,
    event: NDArray[np.int64],
    at: NDArray[np.int64],
    out: NDArray[np.int64],
    out_float: NDArray[np.float64],
) -> pa.Array:
    family = value_family(operation, column.family)
    if AGGREGATIONS[operation].partial == COUNT:
        return pa.array(np.ascontiguousarray(out))
    if AGGREGATIONS[operation].partial == SUM:
        return _sum(operation, column, out, np.ascontiguousarray(out_float))
    none = out < 0
    if event.shape[0] == 0:
        return pa.nulls(out.shape[0], VALUE_TYPES[family])
    row = np.where(none, 0, out)
    if operation == "age":
        return pa.array((at - event[row]) / 1e6, mask=none)
    assert column.values is not None
    taken = column.values[row]
    if family == "float":
        return pa.array(normalised(taken.astype(np.float64, copy=False)), mask=none)
    if family == "boolean":
        return pa.array(taken.astype(np.bool_), mask=none)
    return pa.array(taken, type=VALUE_TYPES[family], mask=none)


def _sum(
    operation: str, column: InputColumn, count: NDArray[np.int64], total: NDArray[np.float64]
) -> pa.Array:
    none = count == 0
    if column.family == "float":
        if operation == "sum":
            return pa.array(normalised(total), mask=none)
        return pa.array(normalised(total / np.where(none, 1, count)), mask=none)
    if (count < 0).any():
        raise AsOfError(
            f"An integer {operation} at moment {int(np.argmax(count < 0))} does not fit int64.",
            expected="a sum within int64",
            do="sum a DOUBLE column instead (cast it in the source's query), or use a shorter window.",
        )
    integers = total.view(np.int64)
    if operation == "sum":
        return pa.array(integers, mask=none)
    return pa.array(integers / np.where(none, 1, count), mask=none)
