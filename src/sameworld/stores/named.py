"""Stores of several hosts by address. An adapter and its library are imported when they are asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sameworld.errors import StoreError

if TYPE_CHECKING:
    from sameworld.stores.redis import Shared


def opened_shared(folder: Path, address: str, *, reading_seconds: float) -> Shared:
    """Give the store at an address; nothing is sent there yet.

    Args:
        folder: this host's part of it.
        reading_seconds: how long a read may take.

    Raises:
        StoreError: the address is none, or what it needs is not installed.
    """
    try:
        from sameworld.stores.redis import Shared  # noqa: PLC0415 # needs redis-py
    except ModuleNotFoundError as missing:
        raise StoreError(
            "A store in Redis needs the package 'redis'.",
            where="--store",
            found=str(missing),
            do="pip install 'sameworld[redis]'.",
        ) from missing
    return Shared(folder, address, reading_seconds=reading_seconds)


def without_password(address: str) -> str:
    """Give an address to be shown."""
    return re.sub(r"//[^@/]*@", "//", address)
