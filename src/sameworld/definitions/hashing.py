"""Content hashes: equal definitions have equal hashes, on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_LATER: dict[str, Any] = {
    "corrections_within": None,
    "served": False,
    "fresh_within": None,
    "stale": None,
    "ranking": None,
}


def as_first_hashed(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out the options that definitions did not always have and that are not given, so that older definitions keep their hashes."""
    return {name: value for name, value in data.items() if not (name in _LATER and value == _LATER[name])}


def content_hash(value: Any, *, digits: int = 16) -> str:
    """Give the first hex digits of SHA-256 over the canonical JSON of plain data (dicts, lists, strings, numbers)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
