"""Times as people write them, as microseconds since 1970, UTC."""

from __future__ import annotations

import datetime

from sameworld.errors import DataError


def instant(text: str, flag: str) -> int:
    """Read an ISO 8601 time with its zone as microseconds since 1970; one without a zone is not guessed at.

    Raises:
        DataError: it is no such time.

    >>> instant("1970-01-01T01:00:01+01:00", "--at")
    1000000
    """
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(
            f"{flag} is not a time.",
            expected="ISO 8601 with a zone, such as 2026-01-31T12:00:00Z or 2026-01-31T12:00:00.25-05:00",
            found=text,
            do="write the time like that.",
        ) from error
    if parsed.tzinfo is None:
        raise DataError(
            f"{flag} has no zone.",
            expected="ISO 8601 with a zone",
            found=text,
            do="add Z for UTC, or the offset of the clocks it was read on: 2026-01-31T00:00Z.",
        )
    return (parsed - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
