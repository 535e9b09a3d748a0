"""The files of one part of a training set on disk: whole or not there, and each says of which moments it is and what it was made of."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.definitions.hashing import content_hash
from sameworld.engines.contents import content_of
from sameworld.errors import DefinitionError
from sameworld.training.fingerprint import Fingerprint, fingerprint_in
from sameworld.training.moments import MomentTable

Partition = Literal["day", "month"]

NUMBER = "__moment"
"""The column of each row's place among the moments."""

_PART = b"sameworld.part"
_UNITS = {"day": "datetime64[D]", "month": "datetime64[M]"}


@dataclass(frozen=True)
class Part:
    """One part as it should lie on disk.

    Args:
        files: path -> its moments, as places in the part.
        note: what its footers say of it.
    """

    files: dict[Path, slice | Any]
    note: bytes
    rows: dict[Path, int]


def part_of(to: Path, number: int, first: int, read: MomentTable, partition_by: Partition | None) -> Part:
    """Say how a part should lie on disk."""
    count = read.at.shape[0]
    name = f"part-{number:06}.parquet"
    content = content_hash([content_of(pa.table({"at": read.at})), content_of(read.fields)])
    note = msgspec.json.encode({"part": number, "first": first, "rows": count, "moments": content})
    if partition_by is None:
        return Part({to / name: slice(None)}, note, {to / name: count})
    times = read.at.view("datetime64[us]").astype(_UNITS[partition_by])
    files = {to / f"{partition_by}={time}" / name: times == time for time in np.unique(times)}
    return Part(files, note, {path: int(chosen.sum()) for path, chosen in files.items()})


def check_names(table: pa.Table, partition_by: Partition | None) -> None:
    for name in (NUMBER, partition_by):
        if name in table.column_names:
            raise DefinitionError(
                f"A column of the training set is called {name!r}, and the files have one of that name of their own.",
                do="rename the feature, or partition otherwise.",
            )


def is_there(part: Part, made_of: Fingerprint) -> bool:
    """Whether all files of a part are there, of the same moments and made of the same."""
    for path, rows in part.rows.items():
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            return False
        noted = footer.metadata or {}
        known = fingerprint_in(noted)
        if (
            known is None
            or known.content != made_of.content
            or noted.get(_PART) != part.note
            or footer.num_rows != rows
        ):
            return False
    return True


def write(part: Part, table: pa.Table, first: int) -> None:
    """Write a part's files, each under another name until it is whole."""
    table = table.append_column(NUMBER, pa.array(np.arange(first, first + table.num_rows)))
    table = table.replace_schema_metadata({**table.schema.metadata, _PART: part.note})
    for path, chosen in part.files.items():
        path.parent.mkdir(exist_ok=True)
        rows = table if isinstance(chosen, slice) else table.filter(pa.array(chosen))
        # Of its own name: where a worker was thought to be lost, two write the same part.
        fresh = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.parquet.new")
        with fresh.open("wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)


def files_in(to: Path) -> set[Path]:
    """Give all files that this module has written to a folder, those that were not finished included."""
    return {
        path
        for folder in (to, *to.glob("day=*"), *to.glob("month=*"))
        for pattern in ("part-*.parquet", ".part-*.parquet.new")
        for path in folder.glob(pattern)
    }


def parts_in(to: Path, made_of: Fingerprint, rows_a_file: int) -> Iterator[tuple[int, int, set[Path]]]:
    """Give (number, rows, files) of every part in a folder that is whole and made of the same."""
    rows: dict[bytes, int] = {}
    files: dict[bytes, set[Path]] = {}
    for path in files_in(to):
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            continue
        noted = footer.metadata or {}
        known = fingerprint_in(noted)
        if known is not None and known.content == made_of.content and _PART in noted:
            note = noted[_PART]
            rows[note] = rows.get(note, 0) + footer.num_rows
            files.setdefault(note, set()).add(path)
    for note, found in files.items():
        said = msgspec.json.decode(note)
        if said["rows"] == rows[note] and said["first"] == said["part"] * rows_a_file:
            yield said["part"], said["rows"], found
