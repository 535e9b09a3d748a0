"""What a model has said of feature vectors, for a bounded number of bytes: asked again, it is not computed again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Says = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_ENTRY_BYTES = 280
"""What an entry takes beside its key, about: two numbers in a pair, and a place in a table that is at most two thirds full."""


class KeptAnswers:
    """Keeps the answers of one version of a model by the bits of its encoded rows. What has not been asked for the longest is forgotten first, half of all at a time.

    Args:
        most_bytes: what they may take, about.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes // 2
        self._young: dict[bytes, tuple[float, int]] = {}
        self._old: dict[bytes, tuple[float, int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + sum(key not in self._young for key in self._old)

    def clear(self) -> None:
        """Forget all of them."""
        self._young, self._old, self._bytes = {}, {}, 0

    def scores(
        self, tier: int, says: Says, rows: NDArray[np.float64], t: int
    ) -> tuple[NDArray[np.float64], list[int | None]]:
        """Give what a tier says of rows, shape (rows,), and how old each answer is, in microseconds: None for one that was computed now.

        Args:
            tier: its number; tiers see other columns.
            says: computes the answers to rows.
            rows: encoded, float64.
            t: microseconds; the moment.
        """
        keys = [tier.to_bytes(2) + row.tobytes() for row in rows]
        known = [self._of(key) for key in keys]
        ages = [None if one is None else max(t - one[1], 0) for one in known]
        missing = [place for place, one in enumerate(known) if one is None]
        if not missing:
            return np.array([one[0] for one in known if one is not None], np.float64), ages
        computed = says(rows[missing])
        if computed.shape != (len(missing),) or len(missing) == len(keys):
            values = computed
        else:
            values = np.array([0.0 if one is None else one[0] for one in known], np.float64)
            values[missing] = computed
        if computed.shape == (len(missing),):
            for place, value in zip(missing, computed.tolist(), strict=True):
                if math.isfinite(value):
                    self._keep(keys[place], (value, t))
        return values, ages

    def _of(self, key: bytes) -> tuple[float, int] | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self._keep(key, found)
        return found

    def _keep(self, key: bytes, answer: tuple[float, int]) -> None:
        size = len(key) + _ENTRY_BYTES
        if self._bytes + size > self._most:
            self._young, self._old, self._bytes = {}, self._young, 0
        if size <= self._most:
            self._young[key] = answer
            self._bytes += size
