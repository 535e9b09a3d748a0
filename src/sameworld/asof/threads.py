"""Work over ranges of entities in several threads; the kernels let go of Python's lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_RANGES_A_THREAD = 8
_FEW = 100_000

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """Calls a function over ranges of about equal load, several at a time.

    Args:
        threads: how many at a time.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, load: NDArray[np.int64], call: Callable[[int, int], Any]) -> None:
        """Call with (first, last + 1) of every range.

        Args:
            load: shape (entities,), how much work each is.
        """
        entities = load.shape[0]
        if self._pool is None or entities < 2 * self._threads:
            call(0, entities)
            return
        total = np.cumsum(load)
        inner = np.searchsorted(total, np.linspace(0, total[-1], self._threads * _RANGES_A_THREAD + 1)[1:-1])
        cuts = np.unique(np.concatenate([[0], inner, [entities]])).tolist()
        list(self._pool.map(call, cuts[:-1], cuts[1:]))

    def each(self, call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Give call(item) of every item, in their order; few are begun before those ahead of them are taken."""
        if self._pool is None:
            yield from map(call, items)
            return
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(self._pool.submit(call, item))
                if len(begun) > 2 * self._threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()

    def take(self, source: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
        """Give source[places]; all places are within it."""
        result = np.empty(places.shape[0], source.dtype)
        cuts = np.linspace(0, places.shape[0], self._threads * _RANGES_A_THREAD + 1).astype(np.int64).tolist()
        if source.shape[0] == 0:
            return result

        def part(first: int, last: int) -> None:
            # Clipping clips nothing here, and spares NumPy a copy; it also lets go of Python's lock.
            np.take(source, places[first:last], out=result[first:last], mode="clip")

        if self._pool is None or places.shape[0] < _FEW:
            part(0, places.shape[0])
        else:
            list(self._pool.map(part, cuts[:-1], cuts[1:]))
        return result


SERIAL = Threads(1)
"""One after the other, in the caller's thread."""
