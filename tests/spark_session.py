"""One Spark session for all tests: it takes seconds to start."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from typing import Any

import pytest

needs_java = pytest.mark.skipif(
    shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="Spark needs Java 17 or newer"
)


@functools.cache
def spark_session() -> Any:
    """Give a session of two workers; it ends with this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Spark's own making
        from sameworld.engines.spark import local_session

        return local_session("local[2,4]")
