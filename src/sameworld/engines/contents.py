"""What is in a table, as a hash: its columns, types and rows, however they lie in memory."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sameworld.definitions.hashing import content_hash


def content_of(table: pa.Table) -> str:
    """Give the hash of a table's columns, types and rows in their order, however they lie in memory.

    >>> halves = pa.concat_tables([pa.table({"x": [1, None]}), pa.table({"x": [3]})])
    >>> content_of(halves) == content_of(pa.table({"x": [1, None, 3]}))
    True
    """
    digest = _hasher()
    for field, column in zip(table.schema, table.columns, strict=True):
        digest.update(content_hash([field.name, str(field.type), table.num_rows]).encode())
        parts = [_hasher(), _hasher(), _hasher()]
        for chunk in column.chunks:
            for part, content in zip(parts, _bytes(chunk), strict=False):
                part.update(content)
        digest.update(b"".join(part.digest() for part in parts))
    return digest.hexdigest()


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _bytes(array: pa.Array) -> tuple[Any, ...]:
    """Give which values are there, and the values, as bytes that depend on nothing else."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _bytes(array.cast(kind.value_type))
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(kind):
        return valid, array.fill_null(False).to_numpy(zero_copy_only=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        whole = array.cast(pa.large_string()).fill_null("")
        _, offsets, text = whole.buffers()
        first, last = np.frombuffer(offsets, np.int64)[[whole.offset, whole.offset + len(whole)]]
        return (
            valid,
            pc.binary_length(whole).to_numpy(zero_copy_only=False),
            memoryview(text or b"")[first:last],
        )
    width = kind.bit_width // 8 if _fixed(kind) else 0
    if width == 0:
        return valid, "".join(f"{value!r}\n" for value in array.to_pylist()).encode()
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)[array.offset * width :][: len(array) * width]
    if array.null_count:
        values = np.where(valid[:, None], values.reshape(-1, width), 0)
    return valid, np.ascontiguousarray(values)


def _fixed(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind)
