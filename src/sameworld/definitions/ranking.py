"""Ranking: what a model's request carries to be ranked, and what belongs to each candidate."""

from __future__ import annotations

import msgspec

from sameworld.definitions.problems import report
from sameworld.definitions.where_defined import caller
from sameworld.errors import DefinitionError


class _Named(msgspec.Struct, frozen=True):
    candidates: str


class Ranking(_Named, frozen=True, kw_only=True):
    """A model that ranks the candidates of a request. Its moments have one row a candidate that was shown; fields that are not a candidate's are the request's.

    Args:
        candidates: the name of the list in a request: `{"user": "u1", "items": [{"item_id": "i1"}, ...]}`.
        key: the field that names a candidate. Of several with the same key in a request the first counts.
        request: the field that names a request, by which the moments' rows belong together. A caller need not send it.
        fields: the other fields of a candidate.
        top: how many the answer lists, best first; all by default. A caller may say another number: `{"request": {...}, "top": 3}`. The prediction log has all of them.
        most: how many different candidates a request may carry; one that carries more is refused.
    """

    key: str
    request: str
    fields: tuple[str, ...] = ()
    top: int | None = None
    most: int = 500

    def __post_init__(self) -> None:
        where = f"sw.Ranking {caller()}".strip()
        fields = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
        msgspec.structs.force_setattr(self, "fields", fields)
        names = [self.candidates, self.request, *self.of_candidate]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            report(
                DefinitionError(
                    f"sw.Ranking uses the name {twice[0]!r} twice.",
                    where=where,
                    expected="different names for the list, the request and every field of a candidate",
                    do="leave the key out of fields=, and rename what has the same name in the moments.",
                )
            )
        for name, count in (("top", self.top), ("most", self.most)):
            if count is not None and count < 1:
                report(
                    DefinitionError(
                        f"{name}={count} ranks nothing.", where=where, do="give at least 1, or leave it out."
                    )
                )

    @property
    def of_candidate(self) -> tuple[str, ...]:
        """The fields of a candidate, the key first."""
        return (self.key, *self.fields)
