"""Names as users give them: of columns, of fields, of features. What is no text is told here, not by the first thing that trips over it."""

from __future__ import annotations

from sameworld.definitions.problems import report
from sameworld.errors import DefinitionError


def check_name(given: object, what: str, where: str, *, do: str = "") -> None:
    """Report what should be a name and is none.

    Args:
        given: what the user gave.
        what: what the name is of, such as "a column".
        where: the definition that it is part of.
        do: what to do about it; to write it as text by default.
    """
    if not isinstance(given, str) or not given:
        report(
            DefinitionError(
                f"{repr(given)[:80]} is not the name of {what}.",
                where=where,
                expected="text",
                do=do or f"write the name of {what} as text.",
            )
        )
