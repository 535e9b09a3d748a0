"""Moments that are a table of a cluster's own, written to files once by its workers: their numbers are their places in those files ever after.

A table may give its rows in another order every time that it is read. What is numbered twice must be numbered alike, be it for the question and for the answer, or
before and after a run was stopped.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sameworld.asof.schema import Schema
from sameworld.engines.blobs import ROWS, Blobs, blob
from sameworld.engines.reading import connected, no_rows, reader_of, typed


@dataclass(frozen=True)
class WriteMoments:
    """Write batches of rows to a file in a folder, the same on every machine; give its name. Nothing is written of no rows.

    Args:
        folder: where.
        schema: the columns, which are cast to its types.
    """

    folder: Path
    schema: dict[str, str]

    def __call__(self, batches: Blobs) -> Blobs:
        reader = reader_of(batch for batch in batches if batch.num_rows)
        if reader is None:
            return
        # Of its own name: a task may run twice.
        file = self.folder / f"{secrets.token_hex(16)}.parquet"
        with connected() as con:
            con.register("raw", reader)
            rows = con.sql(f"SELECT {typed(self.schema)} FROM raw").to_arrow_reader()
            with pq.ParquetWriter(file, rows.schema) as writer:
                for batch in rows:
                    writer.write_batch(batch)
        yield blob(0, ROWS, json.dumps(file.name).encode())


def staged(folder: Path, schema: Schema, run: Callable[[Path], Iterable[str]]) -> Path:
    """Give the folder of the files of a table, whose names in order are the order of its rows; it is made if it is not there.

    Args:
        folder: where it is or will be; it appears whole or not at all.
        schema: the columns of the table.
        run: has workers write files to a folder, each as `WriteMoments` does; gives their names.
    """
    if folder.exists():
        return folder
    making = _making(folder)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    names = list(run(making))
    for number, name in enumerate(names):
        (making / name).rename(making / f"moments-{number:09d}.parquet")
    for left in making.iterdir():
        if not left.name.startswith("moments-"):
            left.unlink()
    if not names:
        pq.write_table(_nothing(schema), making / "moments-000000000.parquet")
    making.rename(folder)
    return folder


def drop(folder: Path) -> None:
    """Remove the files of a table: all of them at once for whoever comes after."""
    making = _making(folder)
    if folder != making:
        shutil.rmtree(making, ignore_errors=True)
        folder.rename(making)
    shutil.rmtree(making)


def _making(folder: Path) -> Path:
    return folder.with_suffix(".making")


def _nothing(schema: Schema) -> pa.Table:
    with connected() as con:
        return con.sql(f"SELECT * FROM {no_rows(schema)}").to_arrow_table()
