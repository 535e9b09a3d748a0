"""Moments: the (request, time) pairs at which a model is or was asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import msgspec

from sameworld.definitions.instants import instant
from sameworld.definitions.names import check_name
from sameworld.definitions.problems import report
from sameworld.definitions.source import check_timezone
from sameworld.definitions.where_defined import caller
from sameworld.errors import DataError, DefinitionError


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """A model's predictions in a server's prediction log, as the data of moments.

    Args:
        model: its name there.
        state: the server's folder.
        versions: of which bundles; of all by default.
        since, until: microseconds; moments in [since, until).
        outcomes: where labels are read: "log" is files up to the cutover and the event log after it, "files" the files alone.
    """

    model: str
    state: str
    versions: tuple[str, ...] | None = None
    since: int | None = None
    until: int | None = None
    outcomes: Literal["log", "files"] = "log"


class _Model(Protocol):
    @property
    def name(self) -> str: ...


class _Table(msgspec.Struct, frozen=True):
    data: Any


class Moments(_Table, frozen=True, kw_only=True):
    """A table of moments; its columns other than `at` are the fields of a request.

    Args:
        data: as of a source; see also `Moments.from_log`.
        at: the column of the time at which the model is asked.
        timezone: the zone of naive timestamps in this table. Without it they are an error.
        served: whether features are what a prediction log says was served.
    """

    at: str
    timezone: str | None = None
    served: bool = False

    def __post_init__(self) -> None:
        check_name(self.at, "a column", f"moments {caller()}, at".strip())
        check_timezone(self.timezone, f"moments {caller()}".strip())
        if self.served and not isinstance(self.data, Log | dict):  # a bundle has the JSON of the log
            report(
                DefinitionError(
                    "Only a prediction log says what was served.",
                    where=f"moments {caller()}".strip(),
                    do="use sw.Moments.from_log(model, features='served').",
                )
            )

    @classmethod
    def from_log(
        cls,
        model: str | _Model,
        *,
        state: str | Path = ".sameworld/state",
        features: Literal["recomputed", "served"] = "recomputed",
        versions: Sequence[str] | None = None,
        since: str | None = None,
        until: str | None = None,
        outcomes: Literal["log", "files"] = "log",
        at: str = "asked_at",
    ) -> Self:
        """Give the moments at which a served model was asked, from its prediction log: the requests, their exact times and what was readable then.

        Every answer is a moment, those of fallbacks too. Features are recomputed from the rows that the server had: the files up to the cutover and the
        event log after it, as far as each answer's snapshot went.

        Args:
            model: the model, or its name in the log.
            state: the server's folder; relative paths start from the world file's.
            features: "served" takes them as they were served instead, nulls and defaults included; all null where no model saw any.
            versions: bundles whose answers count; all by default.
            since, until: ISO 8601 with a zone; moments in [since, until) count.
            outcomes: where labels are read: "log" as features are, except that a source of which nothing was delivered is its files; "files" is the
                files alone, whatever was delivered.
            at: what the column of the time is called.
        """
        where = f"sw.Moments.from_log {caller()}".strip()
        for name, given, known in (
            ("features", features, ("recomputed", "served")),
            ("outcomes", outcomes, ("log", "files")),
        ):
            if given not in known:
                report(
                    DefinitionError(
                        f"{given!r} is not a way to read {name}.",
                        where=where,
                        expected=" or ".join(map(repr, known)),
                        do="choose one of them.",
                    )
                )
        log = Log(
            model=model if isinstance(model, str) else model.name,
            state=str(state),
            versions=None if versions is None else tuple(versions),
            since=_instant(since, "since", where),
            until=_instant(until, "until", where),
            outcomes=outcomes,
        )
        return cls(log, at=at, served=features == "served")


def _instant(text: str | None, name: str, where: str) -> int | None:
    try:
        return None if text is None else instant(text, name)
    except DataError as error:
        report(
            DefinitionError(error.what, where=where, expected=error.expected, found=error.found, do=error.do)
        )
        return None
