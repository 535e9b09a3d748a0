"""Bytes of a prediction request -> checked values."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec.structs import astuple

from sameworld.definitions.ranking import Ranking
from sameworld.errors import RequestError, nearest

_TYPES: dict[str, Any] = {
    "integer": int,
    "float": float,
    "boolean": bool,
    "text": str,
    "instant": Annotated[datetime.datetime, msgspec.Meta(tz=True)],
}
_TOP: Any = Annotated[int, msgspec.Meta(ge=1)]
_CARRIED = "candidates"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)
_LEAST, _MOST = -(2**63), 2**63 - 1


class Carried(NamedTuple):
    """A request to a model that ranks.

    Args:
        fields: in the order of the model's fields, None in the place of a candidate's.
        candidates: of each different candidate all fields, the request's too.
        top: how many the answer is to list; what the model's ranking says where it is None.
    """

    fields: list[Any]
    candidates: list[list[Any]]
    top: int | None = None


class RequestReader:
    """Reads the body of a prediction request of one model.

    Args:
        model: its name.
        fields: request field -> family. A field that is left out is null.
        ranking: what of a request the model ranks, if anything.
    """

    def __init__(self, model: str, fields: Mapping[str, str], ranking: Ranking | None = None) -> None:
        self._model = model
        self._ranking = ranking
        self._names = list(fields)
        attributes = [f"f{i}" for i in range(len(fields))]
        families = list(fields.values())

        def struct_of(kind: str, places: Sequence[int], carried: Any = None) -> Any:
            own: list[Any] = [(attributes[place], _TYPES[families[place]] | None, None) for place in places]
            names = dict(zip(attributes, self._names, strict=True))
            if ranking is not None and carried is not None:
                own.append((_CARRIED, list[carried] | None, None))
                names[_CARRIED] = ranking.candidates
            return msgspec.defstruct(kind, own, rename=names, forbid_unknown_fields=True, gc=False)

        self._of_candidate = [] if ranking is None else [self._names.index(n) for n in ranking.of_candidate]
        self._of_request = [place for place in range(len(fields)) if place not in self._of_candidate]
        self._checks_of_request, self._checks_of_candidate = (
            [[place for place in places if families[place] == family] for family in ("instant", "integer")]
            for places in (self._of_request, self._of_candidate)
        )
        candidate = struct_of("Candidate", self._of_candidate) if ranking is not None else None
        struct = struct_of("Request", self._of_request, candidate)
        body: Any = msgspec.defstruct(
            "Body",
            [
                ("request", struct | msgspec.UnsetType, msgspec.UNSET),
                ("requests", list[struct] | msgspec.UnsetType, msgspec.UNSET),
                ("at", _TYPES["instant"] | None, None),
                *([] if ranking is None else [("top", _TOP | None, None)]),
            ],
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(body).decode

    def read(self, data: bytes) -> tuple[list[list[Any]] | list[Carried], int | None]:
        """Give the requests' values in the order of the fields (instants in microseconds) and the moment, where one is given.

        Raises:
            RequestError: not JSON, an unknown field, a value of another type, no request, a candidate without a key, too many of them.
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
        at = None if body.at is None else (body.at - _EPOCH) // _MICROSECOND
        if self._ranking is None:
            checks = self._checks_of_request
            return [self._checked(list(astuple(request)), checks) for request in requests], at
        return [self._carried(request, self._ranking, body.top) for request in requests], at

    def _carried(self, request: Any, ranking: Ranking, top: int | None) -> Carried:
        """Give a request and its different candidates; of those with one key the first."""
        *values, carried = astuple(request)
        row: list[Any] = [None] * len(self._names)
        for place, value in zip(self._of_request, values, strict=True):
            row[place] = value
        self._checked(row, self._checks_of_request)
        found: dict[Any, list[Any]] = {}
        came: set[Any] = set()
        for candidate in carried or ():
            values = astuple(candidate)
            if values[0] in came:
                continue
            came.add(values[0])
            own = row.copy()
            for place, value in zip(self._of_candidate, values, strict=True):
                own[place] = value
            key = self._checked(own, self._checks_of_candidate)[self._of_candidate[0]]
            if key is None:
                raise RequestError(
                    f"A candidate has no {ranking.key!r}.",
                    where=f"model {self._model!r}, {ranking.candidates}",
                    do="send what names each candidate, or leave it out.",
                )
            found.setdefault(key, own)
            if len(found) > ranking.most:  # the rest is not even looked at
                raise RequestError(
                    f"The request carries more than {ranking.most} different candidates.",
                    where=f"model {self._model!r}, {ranking.candidates}",
                    found=f"a list of {len(carried)}",
                    do="send fewer, or allow more with most= in sw.Ranking.",
                )
        return Carried(row, list(found.values()), top)

    def _checked(self, values: list[Any], checks: list[list[int]]) -> list[Any]:
        """Give values with instants in microseconds.

        Args:
            checks: the places of instants, and those of integers.

        Raises:
            RequestError: an integer does not fit.
        """
        instants, integers = checks
        for place in instants:
            if values[place] is not None:
                values[place] = (values[place] - _EPOCH) // _MICROSECOND
        for place in integers:
            if values[place] is not None and not _LEAST <= values[place] <= _MOST:
                raise RequestError(
                    f"Field {self._names[place]!r} does not fit 64 bits.",
                    where=f"model {self._model!r}",
                    expected="an integer within int64",
                    found=str(values[place])[:40],
                    do="send a smaller one.",
                )
        return values

    def _explain(self, found: str, where: str) -> RequestError:
        if "unknown field" in found:
            name = found.split("unknown field `", 1)[1].split("`", 1)[0]
            if name not in ("request", "requests", "at", "top"):
                carried = self._ranking is not None and f".{self._ranking.candidates}[" in found
                own = [self._names[p] for p in (self._of_candidate if carried else self._of_request)]
                return RequestError(
                    f"{'A candidate of the' if carried else 'The'} request has an unknown field {name!r}.",
                    where=where,
                    expected=f"nearest: {nearest(name, own)}",
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
