"""One Spark session for all tests: it takes seconds to start."""

from __future__ import annotations

import functools
import warnings
from typing import Any


@functools.cache
def spark_session() -> Any:
    """Give a session of two workers; it ends with this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Spark's own making
        from sameworld.engines.spark import local_session

        return local_session("local[2,4]")
