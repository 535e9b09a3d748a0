"""An index that cannot be read: every page of its trees forgets what it is, and gets it back."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_BRANCH, _LEAF = 1, 2  # as LMDB numbers them, in the 11th and 12th byte of a page
_FLAGS_AT = 10


@contextmanager
def unreadable(data: Path) -> Generator[None]:
    """Damage an LMDB data file, under the feet of all who have it open. Nobody may write meanwhile: hold the lock."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    with data.open("r+b", buffering=0) as file:
        content = np.fromfile(file, np.uint8)
        heads = content[: len(content) // page_bytes * page_bytes].reshape(-1, page_bytes)
        numbers = heads[:, :8].copy().view(np.uint64)[:, 0]
        flags = heads[:, _FLAGS_AT : _FLAGS_AT + 2].copy().view(np.uint16)[:, 0]
        # A page of a long value has anything there: it is left alone.
        is_tree = (numbers == np.arange(len(heads))) & np.isin(flags, [_BRANCH, _LEAF])
        places = (np.flatnonzero(is_tree) * page_bytes + _FLAGS_AT).tolist()
        try:
            for place in places:
                os.pwrite(file.fileno(), bytes(2), place)
            yield
        finally:
            for place, was in zip(places, flags[is_tree], strict=True):
                os.pwrite(file.fileno(), was.tobytes(), place)
