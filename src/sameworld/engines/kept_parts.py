"""A source's rows in partitions of entities, as a cluster's workers have left them: who asks the same source about other moments moves only those.

An entry of the cache, kind `parts`: one file a partition that has rows, in Arrow's own form, written by the task that had the partition.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sameworld.asof.plan import Grouping
from sameworld.definitions.hashing import content_hash
from sameworld.engines.answer import is_ordered
from sameworld.engines.blobs import ERROR, Blobs, blob, by_part, unpacked
from sameworld.engines.kept_rows import code
from sameworld.engines.reading import Question

KIND = "parts"


def key_of(
    question: Question, grouping: Grouping, files: Sequence[str], cutover: int | None
) -> tuple[str, dict[str, Any]]:
    """Give what partitions are kept under, and what that is a hash of.

    Args:
        question: what is asked.
        grouping: its, with its data.
        files: what says what is in each of them.
        cutover: rows readable at it or after it do not count.
    """
    parts = {
        "source": grouping.source.content,
        "schema": dict(question.schema),
        "keys": list(grouping.keys),
        "inputs": [[item.condition, item.column] for item in grouping.inputs],
        "ordered": is_ordered(grouping),
        "files": sorted(files),
        "cutover": cutover,
        "world": question.world,
        "partitions": question.parts,
        "code": code(),
    }
    return content_hash(parts, digits=32), parts


@dataclass(frozen=True)
class Keep:
    """Write a question's partitions of entities to their files in a folder, the same on every machine."""

    folder: Path

    def __call__(self, blobs: Blobs) -> Blobs:
        for part, some in by_part(blobs):
            pieces = iter(some)
            first = next(pieces)
            if first[0] == ERROR:
                yield from (blob(0, ERROR, data.to_pybytes()) for _, data in itertools.chain([first], pieces))
                continue
            file = _file(self.folder, part)
            # A task that is run again, or twice at a time, writes the same under the same name.
            own = file.with_suffix(f".{secrets.token_hex(4)}")
            batch = unpacked(first[1])
            with pa.OSFile(str(own), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
                for _, data in pieces:
                    writer.write_batch(unpacked(data))
            own.replace(file)


def sweep(folder: Path) -> None:
    """Remove what killed tasks have left."""
    for file in folder.iterdir():
        if file.suffix != ".arrow":
            with suppress(FileNotFoundError):
                file.unlink()


def rows_of(folder: Path, part: int) -> Iterator[pa.RecordBatch]:
    """Give the rows of a question's partition; nothing where it has none."""
    file = _file(folder, part)
    if not file.exists():
        return
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:06d}.arrow"
