"""Bytes of a request -> checked values; answers and errors -> bytes. One place knows status codes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from sameworld.errors import (
    BundleError,
    DataError,
    LogError,
    ReplayOrderError,
    RequestError,
    SameworldError,
    nearest,
)
from sameworld.server.answering import Given

_TYPES: dict[str, Any] = {
    "integer": int,
    "float": float,
    "boolean": bool,
    "text": str,
    "instant": Annotated[datetime.datetime, msgspec.Meta(tz=True)],
}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
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


def status_of(error: SameworldError) -> int:
    """Give the status code of an error."""
    own: dict[type[SameworldError], int] = {NotFoundError: 404, ConflictError: 409, ForbiddenError: 403}
    return own.get(type(error)) or next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


class RequestReader:
    """Reads the body of a prediction request of one model.

    Args:
        model: its name.
        fields: request field -> family. A field that is left out is null.
    """

    def __init__(self, model: str, fields: Mapping[str, str]) -> None:
        self._model = model
        self._names = list(fields)
        attributes = [f"f{i}" for i in range(len(fields))]
        self._attributes = attributes
        self._instants = [family == "instant" for family in fields.values()]
        struct = msgspec.defstruct(
            "Request",
            [
                (attribute, _TYPES[family] | None, None)
                for attribute, family in zip(attributes, fields.values(), strict=True)
            ],
            rename=dict(zip(attributes, self._names, strict=True)),
            forbid_unknown_fields=True,
            gc=False,
        )
        body: Any = msgspec.defstruct(
            "Body",
            [
                ("request", struct | msgspec.UnsetType, msgspec.UNSET),
                ("requests", list[struct] | msgspec.UnsetType, msgspec.UNSET),
                ("at", _TYPES["instant"] | None, None),
            ],
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(body).decode

    def read(self, data: bytes) -> tuple[list[list[Any]], int | None]:
        """Give the requests' values in the order of the fields (instants in microseconds) and the moment, where one is given.

        Raises:
            RequestError: not JSON, an unknown field, a value of another type, no request.
        """
        where = f"model {self._model!r}"
        try:
            body = self._decode(data)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._explain(str(error), where) from error
        single, several = body.request, body.requests
        if (single is msgspec.UNSET) == (several is msgspec.UNSET):
            found = "neither request nor requests" if single is msgspec.UNSET else "both request and requests"
            raise RequestError(
                f"The body has {found}.",
                where=where,
                expected='{"request": {...}} or {"requests": [...]}',
                do="send one of them.",
            )
        requests = [single] if several is msgspec.UNSET else several
        rows: list[list[Any]] = []
        for request in requests:
            values = [getattr(request, attribute) for attribute in self._attributes]
            for place, instant in enumerate(self._instants):
                if instant and values[place] is not None:
                    values[place] = (values[place] - _EPOCH) // _MICROSECOND
                elif isinstance(values[place], int) and not -(2**63) <= values[place] < 2**63:
                    raise RequestError(
                        f"Field {self._names[place]!r} does not fit 64 bits.",
                        where=where,
                        expected="an integer within int64",
                        found=str(values[place])[:40],
                        do="send a smaller one.",
                    )
            rows.append(values)
        return rows, None if body.at is None else (body.at - _EPOCH) // _MICROSECOND

    def _explain(self, found: str, where: str) -> RequestError:
        if "unknown field" in found:
            name = found.split("unknown field `", 1)[1].split("`", 1)[0]
            if name not in ("request", "requests", "at"):
                return RequestError(
                    f"The request has an unknown field {name!r}.",
                    where=where,
                    expected=f"nearest: {nearest(name, self._names)}",
                    found=found,
                    do="correct the field's name, or leave it out: a missing field is null.",
                )
        return RequestError(
            "The request cannot be read.",
            where=where,
            expected="JSON such as {\"request\": {...}} with values of the fields' types; instants as '2026-01-31T12:00:00Z'",
            found=found,
            do="correct the request.",
        )


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


class _Answer(msgspec.Struct, gc=False):
    value: float
    tier: str
    reason: str
    version: str
    id: str
    logged: bool


_encode = msgspec.json.Encoder().encode


def predictions_body(given: list[Given]) -> bytes:
    """Give `{"predictions": [...]}`."""
    return _encode(
        {"predictions": [_Answer(g.value, g.tier, g.reason, g.version, g.id, g.logged) for g in given]}
    )


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
