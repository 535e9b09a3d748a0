"""Several windows of a few entities at one moment, read from rows of words where they lie: what a server needs. The partials are the kernel's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof import tally
from sameworld.asof.aggregations import (
    AGGREGATIONS,
    DISTINCT,
    FIRST,
    LAST,
    LATEST,
    MAX,
    MIN,
    SQUARES,
    SUM,
    value_family,
)
from sameworld.asof.column import ArrowColumn, Block, Column
from sameworld.asof.columns import NO_WORDS, InputColumn, input_column
from sameworld.asof.compiled import compiled
from sameworld.asof.exact import HEADER, exponents_of, limbs_for
from sameworld.asof.exact_variance import (
    INTEGER_SQUARE_LIMBS,
    INTEGER_SUM_LIMBS,
    scratch_size,
    square_limbs_for,
)
from sameworld.asof.kernel import TURN, add, key_of, read
from sameworld.asof.plan import Read
from sameworld.asof.read import partials_of, values_of, words_for
from sameworld.asof.schedule import edge_time, first_at_or_after
from sameworld.asof.schema import value_type
from sameworld.asof.tally import Tallied
from sameworld.asof.values import (
    ALL,
    HOW,
    as_numbers,
    does_not_fit,
    how_of,
    make_values,
    numbers_of,
    to_floats,
)

# The words of a row as a store keeps it: int64 all of them, so that a run of rows is a table that is read where it lies.
EVENT, AVAILABLE, SUPERSEDED, VERSION, TIE, FIRST_VALID = range(6)
VALID_BITS = 62

_NO_VALID = np.zeros(0, np.uint8)
_NO_TIMES = np.zeros(0, np.int64)
_NO_TALLIES = np.zeros((0, 0), np.int64)
_IN_BLOCKS = ("float", "integer", "boolean", "instant")
_words = numba.types.Array(numba.int64, 1, "C", readonly=True)
_table = numba.types.Array(numba.int64, 2, "C", readonly=True)


# Of each read: the partial, the word and bit that say whether a row takes part, the word of its value (those of `more` follow those of `rows`), whether that
# is a float64's bits, how many rows are wanted, the first column of `out` it goes to, and the window.
_OP, _VALID, _MASK, _VALUE, _FLOAT, _WANTED, _COLUMN, _START, _END = range(9)


@compiled(
    numba.void(
        _table, _table, _words, numba.int64, _table, _words, _words, _table, _table, numba.int64[:, ::1], numba.int64[:, ::1]
    ))  # fmt: skip
def read_entities(
    rows: NDArray[np.int64],
    more: NDArray[np.int64],
    row_starts: NDArray[np.int64],
    t: int,
    reads: NDArray[np.int64],
    tally_starts: NDArray[np.int64],
    tally_times: NDArray[np.int64],
    tallies: NDArray[np.int64],
    items: NDArray[np.int64],
    out: NDArray[np.int64],
    out_words: NDArray[np.int64],
) -> None:
    """Read several windows of several entities at one moment, walking their rows and the tallies of others.

    Args:
        rows: shape (rows, words), each entity's in order; see EVENT and what follows it.
        more: shape (rows, further words): value words that the store does not keep, such as the codes of texts.
        row_starts: shape (entities + 1,).
        t: the moment.
        reads: shape (reads, 9), what to read; see above.
        tally_starts: shape (entities + 1,), where each entity's tallies begin.
        tally_times: shape (tallies,), from which event time on each has rows: it is in a window as a whole, or not at all.
        tallies: shape (tallies, words), of rows that are readable and not in `rows`; see `tally`.
        items: shape (reads, 10), where each read finds its cells in a tally.
        out, out_words: shape (entities, columns), written; see `kernel`.
    """
    event, available, superseded = rows[:, EVENT], rows[:, AVAILABLE], rows[:, SUPERSEDED]
    number = np.empty(1, np.float64)
    for entity in range(row_starts.shape[0] - 1):
        first, stop = row_starts[entity], row_starts[entity + 1]
        for place in range(reads.shape[0]):
            asked = reads[place]
            op, mask, is_float, to = asked[_OP], asked[_MASK], asked[_FLOAT] != 0, asked[_COLUMN]
            value = asked[_VALUE]
            words = rows[:, value] if value < rows.shape[1] else more[:, value - rows.shape[1]]
            valid = rows[:, asked[_VALID]]
            begin, end = edge_time(t, asked[_START]), edge_time(t, asked[_END])
            low = first_at_or_after(event, first, stop, begin)
            high = first_at_or_after(event, low, stop, end)
            tally_low = tally_high = tally_starts[entity]
            if tally_low < tally_starts[entity + 1]:
                tally_low = first_at_or_after(tally_times, tally_low, tally_starts[entity + 1], begin)
                tally_high = first_at_or_after(tally_times, tally_low, tally_starts[entity + 1], end)
            item = items[place]
            at = item[tally.AT]
            if op in (FIRST, LAST, LATEST):
                found, wanted = 0, asked[_WANTED]
                for step in range(high - low):
                    row = low + step if op == FIRST else high - 1 - step
                    if valid[row] & mask != 0 and available[row] < t <= superseded[row]:
                        out[entity, to + found] = row
                        if found == 0:
                            out_words[entity, to] = words[row]
                        found += 1
                        if found == wanted:
                            break
                out[entity, to + found : to + wanted] = -1
            elif op in (MIN, MAX):
                some, best, turn = 0, np.int64(0), TURN if is_float else np.int64(0)
                for row in range(low, high):
                    if valid[row] & mask != 0 and available[row] < t <= superseded[row]:
                        key = key_of(words[row], turn)
                        if some == 0 or (key < best if op == MIN else key > best):
                            some, best = 1, key
                extreme = at + HEADER + item[tally.SUM_LIMBS] + item[tally.SQUARE_LIMBS] + (op == MAX)
                for each in range(tally_low, tally_high):
                    if tallies[each, at] != 0:
                        key = tallies[each, extreme]
                        if some == 0 or (key < best if op == MIN else key > best):
                            some, best = 1, key
                out[entity, to], out_words[entity, to] = some, key_of(best, turn)
            elif op == DISTINCT:
                seen = np.empty(high - low, np.int64)
                found = 0
                for row in range(low, high):
                    if valid[row] & mask != 0 and available[row] < t <= superseded[row]:
                        seen[found] = words[row]
                        found += 1
                seen = np.sort(seen[:found])
                different = 0
                for i in range(found):
                    if i == 0 or seen[i] != seen[i - 1]:
                        different += 1
                out[entity, to] = different
            else:
                base, sum_limbs, square_limbs = 0, 0, 0
                if op in (SUM, SQUARES):
                    sum_limbs, square_limbs = INTEGER_SUM_LIMBS, INTEGER_SQUARE_LIMBS if op == SQUARES else 0
                    if is_float:
                        base, highest = exponents_of(words, valid, mask, low, high)
                        if tally_low < tally_high:
                            base = min(base, item[tally.BASE]) & -32
                            highest = max(highest, item[tally.HIGHEST])
                        sum_limbs = limbs_for(base, highest)
                        square_limbs = square_limbs_for(base, highest) if op == SQUARES else 0
                cell = np.zeros(HEADER + sum_limbs + square_limbs, np.int64)
                for row in range(low, high):
                    if valid[row] & mask != 0 and available[row] < t <= superseded[row]:
                        add(op, cell, words[row], is_float, base, sum_limbs, 1)
                for each in range(tally_low, tally_high):
                    tally.add_tally(op, cell, tallies[each], item, base, sum_limbs)
                scratch = np.empty(scratch_size(sum_limbs, square_limbs), np.int64)
                count, word = read(op, cell, is_float, base, sum_limbs, square_limbs, scratch, number)
                out[entity, to], out_words[entity, to] = count, word


class Words:
    """Where the inputs of a grouping are in a row of words, as a store keeps it; see `read_entities`.

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
        self.tally = tally.TallyWords(families, self.valid, self.values, after, AVAILABLE)


class EntityReads:
    """The reads of a grouping, laid out once for `read_entities`.

    Args:
        reads: the grouping's.
        words: where its inputs are.
    """

    def __init__(self, reads: Sequence[Read], words: Words) -> None:
        self._words = words
        # Those that come one by one, and those whose values are made in one go, by type.
        self._single: list[tuple[str, Read, list[tuple[int, int, int]]]] = []
        together: dict[str, list[tuple[str, list[int], list[float]]]] = {}
        self._more: dict[tuple[int, int], int] = {}
        layout: list[tuple[int, ...]] = []
        items: list[int] = []
        width = 0
        for read_ in reads:
            for name, start, end in zip(read_.names, *read_.edges, strict=True):
                taken: list[tuple[int, int, int]] = []
                for partial, item, many in partials_of(read_):
                    family = words.families[item]
                    converted = partial == SQUARES and str(family).startswith("decimal")
                    place = words.values[item]
                    if family == "text" or converted:
                        further = self._more.setdefault((item, SQUARES if converted else 0), len(self._more))
                        place = words.width + further
                    is_float = family == "float" or converted
                    layout.append((partial, *words.valid[item], place, is_float, many, width, start, end))
                    items.append(words.tally.item(partial, item))
                    taken.append((partial, width, many))
                    width += many
                families = [words.families[item] for item in read_.inputs]
                value, kind = AGGREGATIONS[read_.operation].value, value_family(read_.operation, families[0])
                if kind not in _IN_BLOCKS or any(to_floats(value, family) for family in families):
                    self._single.append((name, read_, taken))
                else:
                    how = how_of(value, families, [to for _, to, _ in taken])
                    numbers_ = numbers_of(value, read_.arguments)
                    together.setdefault(kind, []).append((name, how, numbers_))
        self._width = width
        self._layout = np.array(layout, np.int64).reshape(-1, _END + 1)
        self._items = np.array(items, np.int64)
        self._no_items = np.zeros((len(items), tally.WHOLE + 1), np.int64)
        windows = [window for some in together.values() for window in some]
        self._how = np.array([how for _, how, _ in windows], np.int64).reshape(-1, HOW)
        self._numbers = np.array([numbers_ for *_, numbers_ in windows], np.float64).reshape(-1, 2)
        self._blocks = [(value_type(kind), [name for name, *_ in some]) for kind, some in together.items()]

    def values(
        self,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        t: int,
        texts: Mapping[int, NDArray[Any]],
        places: NDArray[np.int64] | None,
        tallied: Tallied | None = None,
    ) -> dict[str, Column]:
        """Give every window of every read at one moment.

        Args:
            rows: shape (rows, words), the entities' in order.
            starts: shape (entities + 1,), where each entity's rows begin.
            t: the moment.
            texts: input -> its texts, one a row, for the inputs that are text.
            places: which entity each value of the result is of; by default each once, in their order.
            tallied: what is not in `rows`.
        """
        inputs = self._inputs(rows, texts) if self._single or self._more else []
        more = np.empty((rows.shape[0], len(self._more)), np.int64)
        for (item, partial), place in self._more.items():
            more[:, place] = words_for(partial, inputs[item])[0]
        out = np.empty((starts.shape[0] - 1, self._width), np.int64)
        out_words = np.empty(out.shape, np.int64)
        if tallied is None:
            none = np.zeros(starts.shape[0], np.int64)
            read_entities(rows, more, starts, t, self._layout, none, _NO_TIMES, _NO_TALLIES, self._no_items, out, out_words)  # fmt: skip
        else:
            tallies = tallied.tallies
            items = self._words.tally.items(tallies.ranges)[self._items]
            read_entities(rows, more, starts, t, self._layout, tallied.entities, tallies.starts, tallies.table, items, out, out_words)  # fmt: skip
        count = out.shape[0] if places is None else places.shape[0]
        at = np.full(count, t, np.int64)
        result: dict[str, Column] = {}
        if self._blocks:
            values = np.empty((self._how.shape[0], count), np.int64)
            none = np.empty(values.shape, np.bool_)
            every = ALL if places is None else places
            wrong = make_values(self._how, self._numbers, every, out, out_words, at, values, none)
            if wrong >= 0:
                raise does_not_fit("sum", wrong, t)
            first = 0
            for kind, names in self._blocks:
                some = slice(first, first + len(names))
                block = Block(kind, as_numbers(values[some], kind), none[some])
                result.update(zip(names, block.columns(), strict=True))
                first += len(names)
        if self._single and places is not None:
            out, out_words = out[places], out_words[places]
        for name, read_, taken in self._single:
            kept = [
                (out[:, to : to + many] if partial == LATEST else out[:, to], out_words[:, to])
                for partial, to, many in taken
            ]
            columns = [inputs[item] for item in read_.inputs]
            result[name] = ArrowColumn(values_of(read_.operation, columns, kept, at, read_.arguments))
        return result

    def _inputs(self, rows: NDArray[np.int64], texts: Mapping[int, NDArray[Any]]) -> list[InputColumn]:
        return [
            input_column("text", pa.array(texts[number], pa.string()))
            if family == "text"
            else InputColumn(
                family, NO_WORDS if family is None else rows[:, self._words.values[number]], _NO_VALID
            )
            for number, family in enumerate(self._words.families)
        ]
