"""The order of candidates, decided by what is said of each."""

from __future__ import annotations

from collections.abc import Sequence


def ranks_of(said: Sequence[float]) -> list[int]:
    """Give each candidate's rank, from 1 for the greatest; where the same is said of two, the one that came first goes first.

    >>> ranks_of([0.2, 0.9, 0.2])
    [2, 1, 3]
    """
    ranks = [0] * len(said)
    for rank, place in enumerate(sorted(range(len(said)), key=lambda place: -said[place]), 1):
        ranks[place] = rank
    return ranks
