"""Live rows answered a second time by the library itself, after their answer has left: where flat trees say something else, they answer no more."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from sameworld.server.metrics import Metrics
from sameworld.server.served import Served
from sameworld.server.served_tier import ServedTier
from sameworld.training.fitted import Scorer
from sameworld.training.gate import first_difference

_EVERY_SECONDS = 5.0
_AFTER_SECONDS = 0.02
_MOST_ROWS = 16


class Rechecking:
    """Looks at some rows of each tier once in a while, in a thread of its own.

    Args:
        metrics: counts rows, and is told of a difference.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recheck")

    def note(
        self,
        served: Served,
        tier: ServedTier,
        rows: NDArray[np.float64],
        said: NDArray[np.float64],
        now: float,
    ) -> None:
        """Take some rows that a tier has answered just now, its `recheck_at` being over.

        Args:
            rows: encoded.
            said: the answers, as `Scorer.scores_of` gives them; of a ranking as `Scorer.raw_of` does.
            now: seconds on the steady clock.
        """
        tier.recheck_at = now + _EVERY_SECONDS
        scorer = tier.scorer or served.bundle.scorer
        if scorer.compiled is None or scorer.compiled.distrusted:
            return
        some = rows[:_MOST_ROWS].copy(), said[:_MOST_ROWS].copy()
        begin = asyncio.get_running_loop().call_later
        begin(_AFTER_SECONDS, self._begin, served, tier, scorer, *some)

    def _begin(
        self,
        served: Served,
        tier: ServedTier,
        scorer: Scorer,
        rows: NDArray[np.float64],
        said: NDArray[np.float64],
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            looked = loop.run_in_executor(self._thread, _difference, served, scorer, rows, said)
        except RuntimeError:  # the server has stopped meanwhile
            return

        def tell(done: asyncio.Future[str]) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is not None:
                self._metrics.broken("recheck", f"{served.name}: {type(error).__name__}: {error}")
                return
            different = done.result()
            self._metrics.rechecked(served.name, rows.shape[0], different=bool(different))
            if different and scorer.compiled is not None:
                scorer.compiled.distrust(different)
                if served.kept is not None:
                    served.kept.clear()
                self._metrics.broken("flat trees", f"{served.name}, {tier.name}: {different}")

        looked.add_done_callback(tell)

    def stop(self) -> None:
        """Look at nothing more."""
        self._thread.shutdown(cancel_futures=True)


def _difference(served: Served, scorer: Scorer, rows: NDArray[np.float64], said: NDArray[np.float64]) -> str:
    """Say where the library's answer is another one; nothing where it is the same."""
    raw = scorer.library_raw_of(rows)
    expected = raw if served.ranks is not None else scorer.calibrated(raw)
    wrong = first_difference(expected, said)
    if wrong is None:
        return ""
    return f"a live row was answered with {float(said[wrong])!r} and is {float(expected[wrong])!r} by the library: {rows[wrong].tolist()}"
