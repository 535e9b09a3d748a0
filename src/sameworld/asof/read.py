"""Sorted rows -> the values of a grouping's reads, at millions of moments. `entity` reads one moment for the server; both end in `values`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof import exact, kernel
from sameworld.asof.aggregations import (
    AGGREGATIONS,
    BEGINNING,
    COUNT,
    DISTINCT,
    FIRST,
    LAST,
    LATEST,
    MAX,
    MIN,
    SQUARES,
    SUM,
    type_of,
)
from sameworld.asof.arrivals import Arrivals, arrivals_in, recall_entities
from sameworld.asof.codes import local_codes
from sameworld.asof.columns import NO_WORDS, InputColumn
from sameworld.asof.exact_variance import INTEGER_SQUARE_LIMBS, INTEGER_SUM_LIMBS, square_limbs_for
from sameworld.asof.plan import Read
from sameworld.asof.schedule import Schedule, schedule_entities
from sameworld.asof.threads import SERIAL, Threads
from sameworld.asof.values import array_of, as_float

_NO_OUT = np.zeros((0, 0), np.int64)


@dataclass
class SortedRows:
    """Row versions sorted by (entity, event time, available time, version, tie).

    Args:
        starts: shape (entities + 1,), where each entity's rows begin.
        event, available: shape (rows,), microseconds since 1970.
        superseded: the same; empty when none ever is.
        inputs: the grouping's inputs, in its order.
    """

    starts: NDArray[np.int64]
    event: NDArray[np.int64]
    available: NDArray[np.int64]
    superseded: NDArray[np.int64]
    inputs: Sequence[InputColumn]


@dataclass(frozen=True)
class _Kept:
    """A partial of an input over several windows, as the kernel gives it."""

    out: NDArray[np.int64]
    words: NDArray[np.int64]


_PIECE = 1 << 21
Partial = tuple[int, int, int]
"""What the kernel keeps, of which input, and how many rows it gives."""


def partials_of(read: Read) -> list[Partial]:
    """Give the partials that a read needs, one an input."""
    partial = AGGREGATIONS[read.operation].partial
    return [(partial, item, int(read.arguments[0]) if partial == LATEST else 1) for item in read.inputs]


def words_for(partial: int, column: InputColumn) -> tuple[NDArray[np.int64], bool]:
    """Give an input's words as a partial takes them, and whether they are float64's bits."""
    if partial == SQUARES and column.family is not None and column.family.startswith("decimal"):
        return as_float(column.family, column.words).view(np.int64), True
    return column.words, column.is_float


def values_of(
    operation: str,
    columns: Sequence[InputColumn],
    kept: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    at: NDArray[np.int64],
    arguments: tuple[Any, ...],
) -> pa.Array:
    """Give an aggregation's values over one window; see `values.array_of`."""
    kind = type_of(operation, columns[0].family)
    return array_of(operation, AGGREGATIONS[operation].value, kind, columns, kept, at, arguments)


def read_windows(
    reads: Sequence[Read],
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    run: Threads = SERIAL,
    known: Mapping[int, Arrivals] | None = None,
) -> dict[str, pa.Array]:
    """Give every window of every read at every moment.

    Args:
        reads: the grouping's reads.
        rows: its rows.
        moment_starts: shape (entities + 1,), where each entity's moments begin.
        as_of, at: shape (moments,), sorted by (entity, as_of, at).
        run: threads.
        known: by their end, arrivals that need not be worked out; where they are known for all of `ends_of(reads)`, `as_of` is not looked at.

    Returns:
        Column name -> array of shape (moments,).

    Raises:
        AsOfError: an integer sum does not fit int64.
        OSError: the arrivals are those of something else.
    """
    result: dict[str, pa.Array] = {}
    for some in _together(reads):
        result |= _read_together(some, rows, moment_starts, as_of, at, run, known or {})
    return result


def ends_of(reads: Sequence[Read]) -> list[int]:
    """Give the ends that arrivals for some reads have, in microseconds after the moment."""
    return sorted({_end_of(some) for some in _together(reads)})


def _together(reads: Sequence[Read]) -> list[list[Read]]:
    """Part the reads whose schedules differ: a window that has a beginning never reaches most rows where moments come in the order of time."""
    ever = [read for read in reads if int(read.edges[0].min()) == BEGINNING]
    return [some for some in (ever, [read for read in reads if read not in ever]) if some]


def _end_of(reads: Sequence[Read]) -> int:
    return max(int(read.edges[1].max()) for read in reads)


def _read_together(
    reads: Sequence[Read],
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    run: Threads,
    known: Mapping[int, Arrivals],
) -> dict[str, pa.Array]:
    result: dict[str, pa.Array] = {}
    offsets = np.unique(np.concatenate([edge for read in reads for edge in read.edges]))
    arrivals = known.get(_end_of(reads))
    if arrivals is None:
        schedule = _schedule(rows, moment_starts, as_of, at, offsets, run)
    else:
        schedule = _recalled(rows, moment_starts, at, offsets, arrivals, run)
    for partial, sharing in _shared(reads).items():
        spans = sorted({span for read in sharing for span in zip(*read.edges, strict=True)})
        kept = [
            _keep(item, rows, schedule, offsets, spans, run)
            for item in ((partial[0], number, partial[2]) for number in partial[1])
        ]
        for read in sharing:
            for name, span in zip(read.names, zip(*read.edges, strict=True), strict=True):
                window = spans.index(span)
                taken = [_window(one, window, partial) for one in kept]
                if partial[0] in (FIRST, LAST):
                    taken = [
                        (out, _of_rows(rows, item, out))
                        for item, (out, _) in zip(read.inputs, taken, strict=True)
                    ]
                columns = [rows.inputs[item] for item in read.inputs]
                result[name] = values_of(read.operation, columns, taken, at, read.arguments)
    return result


def _shared(reads: Iterable[Read]) -> dict[tuple[int, tuple[int, ...], int], list[Read]]:
    """Group reads that can be read from the same partials: a sum and a mean, a last value and an age."""
    groups: dict[tuple[int, tuple[int, ...], int], list[Read]] = {}
    for read in reads:
        partials = partials_of(read)
        groups.setdefault((partials[0][0], read.inputs, partials[0][2]), []).append(read)
    return groups


def _window(
    kept: _Kept, window: int, partial: tuple[int, tuple[int, ...], int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give one window of what was kept."""
    wanted = partial[2]
    if partial[0] == LATEST:
        return kept.out[:, window * wanted : (window + 1) * wanted], NO_WORDS
    out = np.ascontiguousarray(kept.out[:, window])
    return out, np.ascontiguousarray(kept.words[:, window]) if kept.words.shape[0] else NO_WORDS


def _of_rows(rows: SortedRows, item: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the words of an input's rows, or their event times where it only counts them; anything for -1."""
    column = rows.inputs[item]
    words = rows.event if column.family is None else column.words
    return words[np.maximum(places, 0)] if words.shape[0] else np.zeros(places.shape, np.int64)


def arrivals_of(
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    end: int,
    run: Threads = SERIAL,
) -> Arrivals:
    """Give the arrivals for windows of which the last ends at `end`; others as in `read_windows`."""
    offsets = np.array([BEGINNING, end], np.int64)
    return arrivals_in(_schedule(rows, moment_starts, as_of, at, offsets, run))


def _schedule(
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    as_of: NDArray[np.int64],
    at: NDArray[np.int64],
    offsets: NDArray[np.int64],
    run: Threads,
) -> Schedule:
    schedule = _empty_schedule(rows, moment_starts, offsets)
    about = (rows.event, rows.available, rows.superseded, as_of, at, offsets, *schedule[:2], *schedule[3:])
    run(
        _load(np.diff(rows.starts), moment_starts),
        lambda first, last: schedule_entities(rows.starts, moment_starts, first, last, *about),
    )
    return schedule


def _recalled(
    rows: SortedRows,
    moment_starts: NDArray[np.int64],
    at: NDArray[np.int64],
    offsets: NDArray[np.int64],
    arrivals: Arrivals,
    run: Threads,
) -> Schedule:
    """Give what `_schedule` gives, of arrivals that are known."""
    schedule = _empty_schedule(rows, moment_starts, offsets)
    late, gone, ends = arrivals.late, arrivals.gone, arrivals.ends
    pairs = [(late.starts, rows.starts), (gone.starts, rows.starts), (late.done, schedule.arrived), (gone.done, schedule.left), (ends, at)]  # fmt: skip
    whole = [given.shape == wanted.shape for given, wanted in pairs]
    about = (late.starts, late.ranks, late.done, gone.starts, gone.ranks, gone.done, ends)

    def recall(first: int, last: int) -> None:
        given = (rows.starts, moment_starts, first, last, rows.event, at, offsets)
        whole.append(recall_entities(*given, *about, *schedule[:2], *schedule[3:]))

    if all(whole):
        run(_load(np.diff(rows.starts), moment_starts), recall)
    if not all(whole):
        raise OSError("arrivals that were kept are not those of these rows and moments")
    return schedule


def _empty_schedule(
    rows: SortedRows, moment_starts: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Schedule:
    moments, supersedes = int(moment_starts[-1]), rows.superseded.shape[0] > 0
    return Schedule(
        np.empty(rows.starts.shape[0] - 1, np.int64),
        np.empty(rows.starts.shape[0] - 1, np.int64),
        np.array(moment_starts, np.int64),  # a copy: the kernels take only arrays that can be written here
        np.empty(rows.event.shape[0], np.uint8),
        np.empty(rows.event.shape[0], np.int32),
        np.empty(moments, np.int32),
        np.empty(rows.event.shape[0] if supersedes else 0, np.int32),
        np.empty(moments if supersedes else 0, np.int32),
        np.empty((offsets.shape[0], moments), np.int32),
    )


def _load(rows: NDArray[np.int64], moment_starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give about how much work each entity is."""
    moments = np.diff(moment_starts)
    return np.where(moments > 0, rows + 4 * moments, 0) + 1


def _keep(
    partial: Partial,
    rows: SortedRows,
    schedule: Schedule,
    offsets: NDArray[np.int64],
    spans: Sequence[tuple[int, int]],
    run: Threads,
) -> _Kept:
    """Run the kernel for one partial over several windows."""
    op, number, wanted = partial
    column = rows.inputs[number]
    words, is_float = words_for(op, column)
    starts = np.searchsorted(offsets, [start for start, _ in spans])
    ends = np.searchsorted(offsets, [end for _, end in spans])
    moments = schedule.arrived.shape[0]
    out = np.empty((moments, len(spans) * wanted), np.int64)
    load = _load(schedule.row_stops - schedule.row_starts, schedule.moment_starts)
    if op in (FIRST, LAST, LATEST):
        run(
            load,
            lambda first, last: kernel.positions(
                op, schedule, first, last, words, column.valid, starts, ends, wanted, out
            ),
        )
        return _Kept(out, _NO_OUT)
    if op in (MIN, MAX):
        out_words = np.empty(out.shape, np.int64)
        run(
            load,
            lambda first, last: kernel.extremes(
                op, schedule, first, last, words, column.valid, starts, ends, is_float, op == MIN, out, out_words
            ),
        )  # fmt: skip
        return _Kept(out, out_words)
    distinct = NO_WORDS
    if op == DISTINCT:
        words, distinct = local_codes(rows.starts, words, column.valid)
    base, sum_limbs, square_limbs = limbs_of(op, words, column.valid, is_float, run)
    out_words = np.empty(out.shape, np.int64) if op in (SUM, SQUARES) else _NO_OUT
    run(
        load,
        lambda first, last: kernel.slide(
            op, schedule, first, last, words, column.valid, starts, ends,
            is_float, base, sum_limbs, square_limbs, distinct, out, out_words,
        ),
    )  # fmt: skip
    return _Kept(out, out_words)


def limbs_of(
    op: int, words: NDArray[np.int64], valid: NDArray[np.uint8], is_float: bool, run: Threads
) -> tuple[int, int, int]:
    """Give the base, the limbs of a sum and those of a sum of squares that hold these words."""
    if op in (COUNT, DISTINCT):
        return 0, 0, 0
    if not is_float:
        return 0, INTEGER_SUM_LIMBS, INTEGER_SQUARE_LIMBS if op == SQUARES else 0
    places = [slice(first, first + _PIECE) for first in range(0, words.shape[0], _PIECE)]
    ranges = list(run.each(lambda place: exact.exponent_range(words[place], valid[place]), places))
    # Of a piece without values it is (0, 0): a wider range than there is holds them, too.
    base, highest = min((low for low, _ in ranges), default=0), max((high for _, high in ranges), default=0)
    return base, exact.limbs_for(base, highest), square_limbs_for(base, highest) if op == SQUARES else 0
