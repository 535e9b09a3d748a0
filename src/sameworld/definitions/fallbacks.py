"""What answers when the model cannot, in the order in which a model declares it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.estimator import Estimator
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.problems import report
from sameworld.definitions.source import Source
from sameworld.errors import DefinitionError

MODEL = "model"
"""The name of the tier that is no fallback."""


class Without(msgspec.Struct, frozen=True, tag="without"):
    """The same model trained without the features of one or several sources: it knows the world in which they are missing.

    Trained with the model, on the same moments and with the same estimator and calibration. A feature that is derived from one of theirs is left out too.

    Args:
        sources: a source or its name, or several of them.
    """

    sources: Any

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "sources", _names_of(self.sources))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources."""
        return self.sources


class Smaller(msgspec.Struct, frozen=True, kw_only=True, tag="smaller"):
    """A model with fewer features, another estimator, or both, trained with the model on the same moments.

    Args:
        features: names of the model's features that it keeps; all by default.
        estimator: an object with scikit-learn's fit and predict; the model's by default.
    """

    features: tuple[str, ...] | None = None
    estimator: Any = None

    def __post_init__(self) -> None:
        set_ = msgspec.structs.force_setattr
        if self.features is None and self.estimator is None:
            report(
                DefinitionError(
                    "sw.Smaller() is the model itself.",
                    expected="fewer features, another estimator, or both",
                    do="name the features it keeps, or give an estimator.",
                )
            )
        if self.features is not None:
            set_(self, "features", _texts(self.features))
        if self.estimator is not None:
            set_(self, "estimator", Estimator.of(self.estimator))


class Rule(msgspec.Struct, frozen=True, tag="rule"):
    """A named Python function of features and request fields. It runs in a process of its own, as all user's Python does.

    Args:
        function: as for `sw.derive`. What it gives is the answer; NaN leaves it to the next fallback.
        inputs: a name, or several, of features of the model or of request fields.
    """

    function: Any
    inputs: Any

    def __post_init__(self) -> None:
        set_ = msgspec.structs.force_setattr
        if not isinstance(self.function, NamedFunction):
            set_(self, "function", NamedFunction.of(self.function))
        set_(self, "inputs", _texts(self.inputs))
        if not self.inputs:
            report(
                DefinitionError(
                    "sw.Rule names no input.",
                    do="name the features or request fields that the function reads.",
                )
            )


class LastKnown(msgspec.Struct, frozen=True, tag="last_known"):
    """Repeat the model's own last answer about the same entity, while it is not too old.

    Kept in the server's memory, for a bounded number of entities: after a restart there is none yet.

    Args:
        max_age: a duration; an older answer is not repeated.
        by: a request field, or several, that say what is the same; by default all that name entities of the model's features, or all where none does.
    """

    max_age: str
    by: Any = None

    def __post_init__(self) -> None:
        set_ = msgspec.structs.force_setattr
        try:
            set_(self, "max_age", durations.text_of(durations.microseconds(self.max_age, of="sw.LastKnown")))
        except DefinitionError as problem:
            report(problem)
        if self.by is not None:
            set_(self, "by", _texts(self.by))

    @property
    def microseconds(self) -> int:
        """The greatest age of an answer that is repeated."""
        return durations.microseconds(self.max_age, of="sw.LastKnown")


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """Answer always the same value. Needs nothing, so it never fails."""

    value: float

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float) or not math.isfinite(self.value):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    f"sw.Constant({self.value!r}) is not a finite number.", do="give the value to answer."
                )
            )


class Rate(msgspec.Struct, frozen=True, tag="rate"):
    """Answer the label's mean among the training moments with the same value of a request field; unseen values get the overall mean."""

    by: str | None = None


class _Counted(msgspec.Struct, frozen=True):
    of: Aggregate


class Popular(_Counted, frozen=True, kw_only=True, tag="popular"):
    """Rank candidates by how popular they were at the time of training; of a ranking model only.

    A table in the bundle has the candidates of the moments up to that time. What is not in it comes after what is.

    Args:
        of: what counts as popular, by the candidate's key, for example `clicks.by("item_id").count(over="7d")`.
        by: a field that is a column of the source, too: candidates are as popular as among its rows with the request's value, overall where that is unseen.
        top: how many candidates are kept, overall and for every value of `by`.
    """

    by: str | None = None
    top: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.of, Aggregate):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
            report(
                DefinitionError(
                    "sw.Popular needs something to count.",
                    expected="an aggregate by the candidate's key over one window",
                    found=repr(self.of)[:80],
                    do="write for example sw.Popular(clicks.by('item_id').count(over='7d')).",
                )
            )
        elif len(self.of.windows) != 1 or self.of.windows[0].ahead:
            report(
                DefinitionError(
                    "sw.Popular counts over one window that ends at the time of training.",
                    found=", ".join(window.label for window in self.of.windows),
                    do="give one duration in over=.",
                )
            )
        if self.top < 1:
            report(DefinitionError(f"sw.Popular(top={self.top}) keeps no candidate.", do="give at least 1."))

    @property
    def aggregates(self) -> tuple[Aggregate, ...]:
        """What is counted: overall, and for every value of `by`."""
        if self.by is None:
            return (self.of,)
        return self.of, msgspec.structs.replace(self.of, keys=(*self.of.keys, self.by))


Fallback = Without | Smaller | Rule | LastKnown | Popular | Rate | Constant
KINDS = "sw.Without, sw.Smaller, sw.Rule, sw.LastKnown, sw.Popular, sw.Rate or sw.Constant"


def tier_name(number: int, fallback: Fallback) -> str:
    """Name a fallback in answers, logs and metrics, such as 'fallback_1_rate'."""
    match fallback:
        case Without():
            kind = "without"
        case Smaller():
            kind = "smaller"
        case Rule():
            kind = "rule"
        case LastKnown():
            kind = "last_known"
        case Popular():
            kind = "popular"
        case Rate():
            kind = "rate"
        case Constant():
            kind = "constant"
    return f"fallback_{number + 1}_{kind}"


def _texts(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _names_of(given: Source | str | Sequence[Source | str]) -> tuple[str, ...]:
    several = (given,) if isinstance(given, Source | str) else tuple(given)
    return tuple(each.name if isinstance(each, Source) else each for each in several)


def with_functions(data: Any, function_of: Callable[[Any], NamedFunction]) -> Any:
    """Give a fallback's JSON with what JSON cannot hold put back: its function, its estimator.

    Args:
        data: of one fallback, as `as_json` gives it.
        function_of: gives a function from its JSON.
    """
    if data["type"] == "rule":
        return {**data, "function": function_of(data["function"])}
    if data["type"] == "smaller" and data["estimator"] is not None:
        return {**data, "estimator": Estimator.from_json(data["estimator"])}
    return data
