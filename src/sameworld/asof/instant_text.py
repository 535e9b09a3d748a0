"""Instants as people read them."""

from __future__ import annotations

import numpy as np


def instant_text(microseconds: int, between: str = " ") -> str:
    """Write microseconds since 1970 to the microsecond, without zeros that say nothing.

    >>> instant_text(1_500_000)
    '1970-01-01 00:00:01.5Z'
    """
    text = np.datetime_as_string(np.datetime64(microseconds, "us"))
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole.replace('T', between)}{'.' if fraction else ''}{fraction}Z"
