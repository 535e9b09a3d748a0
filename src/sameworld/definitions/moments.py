"""Moments: the (request, time) pairs at which a model is or was asked."""

from __future__ import annotations

from typing import Any

import msgspec

from sameworld.definitions.source import check_timezone
from sameworld.definitions.where_defined import caller


class _Table(msgspec.Struct, frozen=True):
    data: Any


class Moments(_Table, frozen=True, kw_only=True):
    """A table of moments; its columns other than `at` are the fields of a request.

    Args:
        data: a Parquet or CSV path or glob, a DuckDB query, or an Arrow table.
        at: the column of the time at which the model is asked.
        timezone: the zone of naive timestamps in this table. Without it they are an error.
    """

    at: str
    timezone: str | None = None

    def __post_init__(self) -> None:
        check_timezone(self.timezone, f"moments {caller()}".strip())
