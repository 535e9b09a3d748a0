"""Bytes of events -> checked values; answers and errors -> bytes. One place knows status codes."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from sameworld.errors import (
    BundleError,
    DataError,
    LogError,
    ReplayOrderError,
    RequestError,
    SameworldError,
)
from sameworld.server.asked import Given

_STATUS: list[tuple[type[SameworldError], int]] = [
    (ReplayOrderError, 409),
    (LogError, 503),
    (BundleError, 503),
    (RequestError, 400),
    (DataError, 400),
]


class NotFoundError(RequestError):
    """There is no such thing here."""


class ConflictError(RequestError):
    """It contradicts what was sent before."""


class ForbiddenError(RequestError):
    """The token is missing or wrong."""


class UnavailableError(SameworldError):
    """It could not be done now, whoever is to blame; the same request may be answered later."""

    @classmethod
    def of(cls, error: Exception, where: str) -> UnavailableError:
        """Give what a caller is told of an error that nobody expected."""
        return cls(
            f"The server could not do this now: {type(error).__name__}: {error}",
            where=where,
            do="send it again, events with the same Idempotency-Key; if it stays so, see the server's incidents.",
        )


def status_of(error: SameworldError) -> int:
    """Give the status code of an error."""
    own: dict[type[SameworldError], int] = {
        NotFoundError: 404,
        ConflictError: 409,
        ForbiddenError: 403,
        UnavailableError: 503,
    }
    return own.get(type(error)) or next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


class _Events(msgspec.Struct, forbid_unknown_fields=True):
    events: msgspec.Raw


_events = msgspec.json.Decoder(_Events).decode


def read_events(data: bytes) -> bytes:
    """Give the bytes of the array in `{"events": [...]}`."""
    try:
        _ = data.isascii() or data.decode()  # the array is read later, and by others
        return bytes(_events(data).events)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            "The body has no events.",
            expected='{"events": [{...}, ...]}',
            found=str(error),
            do="send JSON of that form.",
        ) from error


class _Version(msgspec.Struct, forbid_unknown_fields=True):
    version: str | None = None


_version = msgspec.json.Decoder(_Version).decode


def read_version(data: bytes) -> str | None:
    """Give the address in `{"version": address}`; None where there is none."""
    try:
        return _version(data or b"{}").version
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            "The body does not say which version to serve.",
            expected='{"version": "the address of a bundle"}, or {} for the newest in the registry',
            found=str(error),
            do="send JSON of that form.",
        ) from error


_encode = msgspec.json.Encoder().encode


def predictions_body(given: list[Given]) -> bytes:
    """Give `{"predictions": [...]}`."""
    return _encode({"predictions": given})


def error_body(error: SameworldError) -> bytes:
    """Give an error's facts as JSON."""
    return _encode(error.as_json())


def deadline_seconds(given: str | None) -> float:
    """Give a caller's deadline in seconds from its header's milliseconds; infinite without one.

    Raises:
        RequestError: it is no positive number.
    """
    if given is None:
        return math.inf
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0.0:
        raise RequestError(
            "The header X-Deadline-Ms is not a number of milliseconds.",
            expected="a number greater than 0",
            found=repr(given),
            do="correct the header, or leave it out: the model's own deadline holds then.",
        )
    return milliseconds / 1e3


def json_body(value: Any) -> bytes:
    return _encode(value)
