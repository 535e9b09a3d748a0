"""Sorted rows and their inputs as files of words, mapped into memory when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.aggregations import BEGINNING, NEVER
from sameworld.asof.arrivals import Arrivals, Listed
from sameworld.asof.columns import NO_WORDS, InputColumn
from sameworld.asof.moments import InOrder
from sameworld.asof.order import NO_KEY
from sameworld.asof.parts import Words
from sameworld.asof.prepared import Sorted
from sameworld.asof.read import SortedRows


class _Files:
    """Columns of words, each appended to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, BinaryIO] = {}
        self.kinds: dict[str, str] = {}

    def add(self, name: str, column: NDArray[Any]) -> None:
        if name not in self._open:
            self._open[name] = (self._folder / name).open("wb", buffering=1 << 20)
            self.kinds[name] = column.dtype.str
        self._open[name].write(np.ascontiguousarray(column).data)

    def close(self, **about: Any) -> None:
        for file in self._open.values():
            file.close()
        (self._folder / "layout.json").write_text(json.dumps({"kinds": self.kinds, **about}))


def write(folder: Path, parts: Iterable[Sorted], inputs: Sequence[Path]) -> int:
    """Write sorted rows, part after part of their entities, as files of words.

    Args:
        folder: for the rows.
        parts: at least one.
        inputs: a folder for each input.

    Returns:
        The latest time at which a row became readable or was superseded; BEGINNING when there is no row.
    """
    files, of_inputs = _Files(folder), [_Files(path) for path in inputs]
    starts: list[NDArray[np.int64]] = []
    rows, latest, corrected = 0, BEGINNING, False
    last: Sequence[InputColumn] = []
    for part in parts:
        kept, last = part.rows, part.rows.inputs
        starts.append(kept.starts[:-1] + rows)
        before, rows = rows, rows + int(kept.starts[-1])
        latest = max(latest, int(kept.available.max(initial=BEGINNING)))
        files.add("event", kept.event)
        files.add("available", kept.available)
        files.add("row", part.row)
        files.add("tie", part.tie)
        ends = kept.superseded
        if ends.shape[0] and not corrected:
            files.add("superseded", np.full(before, NEVER))
            corrected = True
        if corrected:
            files.add("superseded", ends if ends.shape[0] else np.full(rows - before, NEVER))
        latest = max(latest, int(ends[ends != NEVER].max(initial=BEGINNING)))
        for column, its in zip(kept.inputs, of_inputs, strict=True):
            _add_input(its, column)
    files.add("starts", np.concatenate([*starts, [rows]]).astype(np.int64))
    files.close()
    for path, column, its in zip(inputs, last, of_inputs, strict=True):
        _close_input(path, its, column)
    return latest


def write_input(folder: Path, column: InputColumn) -> None:
    """Write one input of all rows."""
    files = _Files(folder)
    _add_input(files, column)
    _close_input(folder, files, column)


def _add_input(files: _Files, column: InputColumn) -> None:
    files.add("valid", column.valid)
    if column.family is not None:
        files.add("words", column.words)


def _close_input(folder: Path, files: _Files, column: InputColumn) -> None:
    files.close(family=column.family)
    if column.texts is not None:
        table = pa.table({"text": column.texts})
        with pa.OSFile(str(folder / "texts"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def writing_words(folder: Path, parts: Iterable[Words]) -> Iterator[Words]:
    """Give rows on, and write them as they are, without inputs."""
    files = _Files(folder)
    for part in parts:
        for name, column in part.items():
            if not name.startswith(("words_", "valid_")):
                files.add(name, column)
        yield part
    files.close()


def read_words(folder: Path) -> Words:
    """Give columns as `writing_words` wrote them, mapped into memory."""
    return _mapped_columns(folder)[0]


def write_order(folder: Path, moments: InOrder) -> None:
    """Write which moments are whose."""
    files = _Files(folder)
    for name, column in vars(moments).items():
        files.add(name, column)
    files.close()


def read_order(folder: Path) -> InOrder:
    """Give what `write_order` wrote, mapped into memory.

    Raises:
        OSError: something else has written to the files.
    """
    made = InOrder(**_mapped_columns(folder)[0])
    moments = made.back.shape[0]
    check_places(folder, made.back, moments)
    check(folder, made.as_of.shape[0] == made.at.shape[0] == moments)
    _check_starts(folder, made.starts, moments)
    return made


def write_arrivals(folder: Path, parts: Iterable[Arrivals]) -> None:
    """Write arrivals, part after part of their entities."""
    files = _Files(folder)
    lengths: dict[str, list[NDArray[np.int64]]] = {"late": [], "gone": []}
    for part in parts:
        files.add("ends", part.ends)
        for name, listed in (("late", part.late), ("gone", part.gone)):
            files.add(f"{name}_ranks", listed.ranks)
            files.add(f"{name}_done", listed.done)
            lengths[name].append(np.diff(listed.starts))
    for name, some in lengths.items():
        files.add(f"{name}_starts", np.cumsum(np.concatenate([[0], *some]), dtype=np.int64))
    files.close()


def read_arrivals(folder: Path) -> Arrivals:
    """Give what `write_arrivals` wrote, mapped into memory; whether it is of certain rows and moments is seen when they are read.

    Raises:
        OSError: something else has written to the files.
    """
    columns = _mapped_columns(folder)[0]

    def listed(name: str) -> Listed:
        one = Listed(columns[f"{name}_starts"], columns[f"{name}_ranks"], columns[f"{name}_done"])
        _check_starts(folder, one.starts, one.ranks.shape[0])
        return one

    return Arrivals(listed("late"), listed("gone"), columns["ends"])


def read(folder: Path) -> Sorted:
    """Give sorted rows as they were written, without inputs; the arrays are the files, mapped into memory.

    Raises:
        OSError: something else has written to the files.
    """
    columns = _mapped_columns(folder)[0]
    _check_starts(folder, columns["starts"], columns["row"].shape[0])
    rows = SortedRows(
        columns["starts"], columns["event"], columns["available"], columns.get("superseded", NO_KEY), []
    )
    return Sorted(rows, columns["row"], columns["tie"])


def read_input(folder: Path) -> InputColumn:
    """Give an input as it was written."""
    columns, about = _mapped_columns(folder)
    texts = _read_texts(folder / "texts") if about["family"] == "text" else None
    return InputColumn(about["family"], columns.get("words", NO_WORDS), columns["valid"], texts)


def _mapped_columns(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    about = read_about(folder / "layout.json")
    return {name: _mapped(folder / name, kind) for name, kind in about["kinds"].items()}, about


def read_about(path: Path) -> dict[str, Any]:
    """Give what a file of JSON says.

    Raises:
        OSError: something else has written to it.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise _written_to(path.parent) from error


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    """Give a file of words as an array; it is read when it is looked at."""
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))


def _read_texts(path: Path) -> pa.Array:
    """Give the texts that `_close_input` wrote."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return table["text"].combine_chunks() if table.num_rows else pa.array([], pa.string())


def _check_starts(folder: Path, starts: NDArray[np.int64], rows: int) -> None:
    check(folder, starts[0] == 0 and starts[-1] == rows and bool((np.diff(starts) >= 0).all()))


def check_places(folder: Path, places: NDArray[Any], count: int, least: int = 0) -> None:
    """See to it that all places are from `least` to count - 1."""
    check(folder, bool(places.min(initial=least) >= least and places.max(initial=least) < max(count, 1)))


def check(folder: Path, whole: bool) -> None:
    """See to it that whoever trusts such numbers stays within its arrays.

    Raises:
        OSError: something else has written to the files.
    """
    if not whole:
        raise _written_to(folder)


def _written_to(folder: Path) -> OSError:
    return OSError(f"{folder} was written to by something else; delete it")
