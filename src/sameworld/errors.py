"""One tree of errors; each carries its parts as fields, so that the terminal, JSON and the log print the same facts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class SameworldError(Exception):
    """What was wrong, where, what was expected and found, and what to do."""

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", found: str = "", do: str = ""
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.do = do
        super().__init__(self.text())

    def text(self) -> str:
        """The message as a person reads it: one line of what, then the parts that are known."""
        parts = [("in", self.where), ("expected", self.expected), ("found", self.found), ("do", self.do)]
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in parts if value)])

    def as_json(self) -> dict[str, Any]:
        """The same facts for a script."""
        facts = {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "do": self.do,
        }
        return {name: value for name, value in facts.items() if value}

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.found, self.do))


def _rebuild(
    kind: type[SameworldError], what: str, where: str, expected: str, found: str, do: str
) -> SameworldError:
    return kind(what, where=where, expected=expected, found=found, do=do)


class DefinitionError(SameworldError):
    """A definition that cannot mean anything: found when it is built, or when it meets its data."""


class DataError(SameworldError):
    """Data that cannot be read as the definition says: a missing file, a naive timestamp, an event without its time."""


class AsOfError(SameworldError):
    """A value that cannot be represented, such as an integer sum beyond int64."""


class TrainingError(SameworldError):
    """A training run that cannot give an honest model."""


class BundleError(SameworldError):
    """A bundle that is damaged, or does not do here what it did where it was made."""


class LogError(SameworldError):
    """A log that cannot be written, or whose records are damaged."""


class StoreError(SameworldError):
    """The online store cannot do what was asked."""


class CacheError(SameworldError):
    """The cache cannot be changed. Whatever is in it can be computed again."""


class RequestError(SameworldError):
    """A request that cannot be understood. Only the server knows which status code that is."""


class ReplayOrderError(RequestError):
    """A replayed request or event that is earlier than what has already passed."""


class ProofError(SameworldError):
    """A proof that cannot be made at all (as against one that finds differences)."""


class Problems(SameworldError):
    """All problems of a plan at once."""

    def __init__(self, subject: str, problems: Sequence[SameworldError]) -> None:
        self.problems = tuple(problems)
        self.subject = subject
        count = len(self.problems)
        super().__init__(f"{subject} has {count} problem{'s' if count != 1 else ''}.")

    def text(self) -> str:
        """Every problem in full, numbered."""
        blocks = [f"{number}. {problem.text()}" for number, problem in enumerate(self.problems, 1)]
        return "\n".join([self.what, *blocks])

    def as_json(self) -> dict[str, Any]:
        """Every problem's facts."""
        return {"error": "Problems", "what": self.what, "problems": [p.as_json() for p in self.problems]}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Problems, (self.subject, self.problems))


def nearest(name: str, known: Iterable[str]) -> str:
    """The few known names most like this one, for an error; never the whole list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return ", ".join(close) if close else "(none)"
