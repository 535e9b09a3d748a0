"""Bytes of a prediction request -> checked values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec.structs import astuple

from sameworld.errors import RequestError, nearest

_TYPES: dict[str, Any] = {
    "integer": int,
    "float": float,
    "boolean": bool,
    "text": str,
    "instant": Annotated[datetime.datetime, msgspec.Meta(tz=True)],
}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_LEAST, _MOST = -(2**63), 2**63 - 1


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
        self._instants = [place for place, family in enumerate(fields.values()) if family == "instant"]
        self._integers = [place for place, family in enumerate(fields.values()) if family == "integer"]
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
            values = list(astuple(request))
            for place in self._instants:
                if values[place] is not None:
                    values[place] = (values[place] - _EPOCH) // _MICROSECOND
            for place in self._integers:
                if values[place] is not None and not _LEAST <= values[place] <= _MOST:
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
