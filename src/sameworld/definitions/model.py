"""A model: moments, features, label, estimator, calibration, fallbacks and service level, versioned by the hash of all that."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from sameworld.definitions import durations
from sameworld.definitions.estimator import Estimator
from sameworld.definitions.fallbacks import (
    KINDS,
    Constant,
    Fallback,
    LastKnown,
    Popular,
    Rate,
    Smaller,
    Without,
    with_functions,
)
from sameworld.definitions.feature import Aggregate, Category, Derive, Feature, Field
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.hashing import as_first_hashed, content_hash
from sameworld.definitions.label import Label
from sameworld.definitions.moments import Moments
from sameworld.definitions.names import check_name
from sameworld.definitions.parts import aggregate_columns, features_seen
from sameworld.definitions.problems import report
from sameworld.definitions.ranking import Ranking
from sameworld.definitions.source import Source
from sameworld.definitions.where_defined import caller
from sameworld.errors import DefinitionError, nearest

Output = Literal["probability", "number", "classes", "ranking"]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The service level: what a caller is promised.

    Args:
        deadline: one budget for the whole request; what misses it is answered by the next fallback.
        p99: the latency that 99 % of the answers should keep.
        max_error_rate: the share of answers that may come from a fallback because something broke.
    """

    deadline: str = "50ms"
    p99: str | None = None
    max_error_rate: float | None = None

    def __post_init__(self) -> None:
        try:
            durations.microseconds(self.deadline, of="sw.Service deadline")
            if self.p99 is not None:
                durations.microseconds(self.p99, of="sw.Service p99")
        except DefinitionError as problem:
            report(problem)

    @property
    def deadline_seconds(self) -> float:
        return durations.microseconds(self.deadline, of="sw.Service deadline") / 1e6


class _Named(msgspec.Struct, frozen=True):
    name: str


class Model(_Named, frozen=True, kw_only=True):
    """Moments + features + label + estimator + calibration + fallbacks + service level.

    Args:
        name: how the route, the log and the registry call it.
        moments: when the model is asked, with which fields.
        features: name -> feature. An aggregate over several windows becomes one column a window.
        label: what came of a moment.
        estimator: an object with scikit-learn's fit and predict (predict_proba for a probability).
        calibration: how scores become probabilities, on a slice of time after the training slice.
        fallbacks: what to answer, in this order, when the model cannot.
        service: the service level.
        ranking: what of a request is ranked; None for a model that gives one value a request.
    """

    moments: Moments
    features: dict[str, Feature]
    label: Label
    estimator: Any
    calibration: Literal["isotonic"] | None = "isotonic"
    fallbacks: tuple[Fallback, ...] = ()
    service: Service = Service()
    ranking: Ranking | None = None

    def __post_init__(self) -> None:
        where = f"model {self.name!r} {caller()}".strip()
        set_ = msgspec.structs.force_setattr
        set_(self, "estimator", Estimator.of(self.estimator))
        set_(self, "fallbacks", tuple(self.fallbacks))
        if not self.name or not self.name.replace("_", "a").replace("-", "a").isalnum():
            report(
                DefinitionError(
                    f"{self.name!r} is not a model name.",
                    where=where,
                    expected="letters, digits, '-' and '_'",
                    do="rename the model.",
                )
            )
        if self.calibration not in ("isotonic", None):
            report(
                DefinitionError(
                    f"{self.calibration!r} is not a calibration.",
                    where=where,
                    expected="'isotonic' or None",
                    do="choose one of them.",
                )
            )
        if not self.features:
            report(
                DefinitionError(f"Model {self.name!r} has no features.", where=where, do="add at least one.")
            )
        for name, feature in self.features.items():
            if check_feature(name, feature, where):
                self._check_feature(name, feature, where)
        for fallback in self.fallbacks:
            if not isinstance(fallback, Fallback):  # pyright: ignore[reportUnnecessaryIsInstance] # callers are not all checked
                report(
                    DefinitionError(
                        "A fallback is of no known kind.",
                        where=where,
                        expected=KINDS,
                        found=repr(fallback)[:80],
                        do="replace it.",
                    )
                )
            else:
                self._check_fallback(fallback, where)
                self._check_ranked(fallback, where)
        if self.ranking is None and self.estimator.ranks:
            report(
                DefinitionError(
                    f"The estimator of model {self.name!r} ranks, and nothing says what.",
                    where=where,
                    found=self.estimator.kind,
                    do='add ranking=sw.Ranking("items", key="item_id", request="request_id").',
                )
            )
        self._check_staleness(where)
        if len({source.name for source in self.sources}) != len({source.content for source in self.sources}):
            report(
                DefinitionError(
                    f"Model {self.name!r} reads two different sources of one name.",
                    where=where,
                    do="give each source its own name.",
                )
            )

    def _check_feature(self, name: str, feature: Feature, where: str) -> None:
        plain = feature.of if isinstance(feature, Category) else feature
        if isinstance(feature, Category) and isinstance(plain, Aggregate) and len(plain.windows) != 1:
            report(
                DefinitionError(
                    f"Feature {name!r} makes a category of several windows.",
                    where=where,
                    do="use one window a feature.",
                )
            )
        if (
            isinstance(plain, Derive)
            and name in plain.inputs
            and not isinstance(self.features.get(name), Field)
        ):
            report(
                DefinitionError(
                    f"Feature {name!r} is derived from itself.",
                    where=where,
                    do=f"rename it; its inputs are {', '.join(plain.inputs)}.",
                )
            )

    def _check_fallback(self, fallback: Fallback, where: str) -> None:
        kept = features_seen(self.features, fallback)
        match fallback:
            case Without():
                known = [source.name for source in self.sources]
                for name in fallback.names:
                    if name not in known:
                        report(
                            DefinitionError(
                                f"sw.Without names {name!r}, which is no source of the features of model {self.name!r}.",
                                where=where,
                                expected=f"nearest: {nearest(name, known)}",
                                do="correct the name.",
                            )
                        )
            case Smaller(features=names):
                for name in names or ():
                    if name not in self.features:
                        report(unknown_feature("sw.Smaller", name, list(self.features), where))
            case _:
                return
        if not kept:
            report(
                DefinitionError(
                    f"A fallback of model {self.name!r} is left without features.",
                    where=where,
                    found=repr(fallback)[:80],
                    do="use sw.Rate or sw.Constant in its place.",
                )
            )

    def _check_ranked(self, fallback: Fallback, where: str) -> None:
        """Whether a fallback can tell one candidate from another."""
        what = f"sw.{type(fallback).__name__}"
        if self.ranking is None:
            if isinstance(fallback, Popular):
                report(
                    DefinitionError(
                        f"sw.Popular ranks candidates, and model {self.name!r} has none.",
                        where=where,
                        do="add ranking=sw.Ranking(...), or use sw.Rate.",
                    )
                )
            return
        match fallback:
            case Popular(of=Aggregate() as of, by=by) if (
                of.keys != (self.ranking.key,) or by == self.ranking.key
            ):
                report(
                    DefinitionError(
                        f"sw.Popular of model {self.name!r} does not count by what names a candidate.",
                        where=where,
                        expected=f"an aggregate by({self.ranking.key!r}), and another field or nothing in by=",
                        found=f"by({', '.join(map(repr, of.keys))}){f', by={by!r}' if by else ''}",
                        do="correct the keys.",
                    )
                )
            case Rate(by=by) if by not in self.ranking.of_candidate:
                report(
                    DefinitionError(
                        f"sw.Rate of model {self.name!r} says the same of every candidate.",
                        where=where,
                        expected=f"by= a field of a candidate: {', '.join(map(repr, self.ranking.of_candidate))}",
                        found=f"by={by!r}",
                        do="name one of them.",
                    )
                )
            case Constant() | LastKnown():
                report(
                    DefinitionError(
                        f"{what} of model {self.name!r} ranks nothing.",
                        where=where,
                        expected="sw.Without, sw.Smaller, sw.Rule, sw.Popular or sw.Rate by a field of a candidate",
                        do="leave it out: when all fallbacks fail, candidates keep the order in which they came.",
                    )
                )
            case _:
                pass

    def _check_staleness(self, where: str) -> None:
        """A column is read once, whichever features show it: they must agree on what happens when its source is stale."""
        said: dict[str, tuple[str, Any]] = {}
        for column, aggregate, own in aggregate_columns(self.features):
            other, policy = said.setdefault(own, (column, aggregate.stale))
            if policy != aggregate.stale:
                report(
                    DefinitionError(
                        f"Columns {other!r} and {column!r} of model {self.name!r} are the same, with different when_stale.",
                        where=where,
                        do="say the same in both, or drop one of them.",
                    )
                )

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the features, each once, in order of first use."""
        found: dict[str, Source] = {}
        for feature in self.features.values():
            plain = feature.of if isinstance(feature, Category) else feature
            if isinstance(plain, Aggregate):
                found.setdefault(plain.source.content, plain.source)
        return tuple(found.values())

    @property
    def output(self) -> Output:
        """The shape of an answer."""
        if self.ranking is not None:
            return "ranking"
        return "probability" if self.label.binary else "number"

    @property
    def probability(self) -> bool:
        """Whether an estimator that gives probabilities is asked for the second class's: of a request, or of each of its candidates."""
        return self.label.binary

    @property
    def content(self) -> str:
        """The hash of all that makes the model what it is; where the data lie is not part of it."""
        return content_hash(meaning_of(self))


def _encode(value: Any) -> Any:
    match value:
        case NamedFunction():
            return {"function": value.name, "code": value.code}
        case Estimator():
            return {"estimator": value.kind, "parameters": value.parameters}
        case _:
            return {"table": type(value).__name__}


def as_json(definition: msgspec.Struct) -> Any:
    """Give any definition as plain JSON data."""
    return msgspec.to_builtins(definition, enc_hook=_encode)


def model_from_json(data: Any, functions: Mapping[str, NamedFunction]) -> Model:
    """Build a model from its JSON.

    Args:
        data: what `as_json` gave.
        functions: code hash -> function, for `sw.derive`; code that is missing here leaves a function that cannot be called.
    """

    def decode(kind: type, value: Any) -> Any:
        return function_of(value) if kind is NamedFunction else value

    def function_of(value: Any) -> NamedFunction:
        return functions.get(value["code"]) or NamedFunction(value["function"], value["code"], None)

    data = {
        **data,
        "estimator": Estimator.from_json(data["estimator"]),
        "fallbacks": [with_functions(fallback, function_of) for fallback in data["fallbacks"]],
    }
    return msgspec.convert(data, Model, dec_hook=decode)


def meaning_of(model: Model) -> Any:
    """The JSON that is hashed: everything but where data lie, with the order of the features kept."""
    data = as_json(model)
    data["features"] = [[name, feature] for name, feature in data["features"].items()]
    return without_data(data)


def without_data(value: Any, also: Collection[str] = ()) -> Any:
    """Leave out of a definition's JSON where data lie, and what else is named."""
    if isinstance(value, dict):
        kept = {name: item for name, item in as_first_hashed(value).items() if name not in ("data", *also)}
        return {name: without_data(item, also) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [without_data(item, also) for item in value]
    return value


STALENESS = ("fresh_within", "stale")
"""Options of definitions that no value depends on."""


def check_feature(name: object, feature: object, where: str) -> bool:
    """Say whether this is a feature; report what is none, and what has no name."""
    check_name(name, "a feature", where)
    if isinstance(feature, Feature):
        return True
    report(
        DefinitionError(
            f"Feature {name!r} is not a feature.",
            where=where,
            expected="an aggregate, sw.field(...), sw.derive(...) or one of them as a category",
            found=repr(feature)[:80],
            do="correct its definition.",
        )
    )
    return False


def unknown_feature(what: str, name: str, known: list[str], where: str) -> DefinitionError:
    """The error of a name that is no feature."""
    return DefinitionError(
        f"{what} names {name!r}, which is no feature of the model.",
        where=where,
        expected=f"nearest: {nearest(name, known)}",
        do="correct the name.",
    )


def unknown_name(name: str, known: list[str], where: str) -> DefinitionError:
    """The error of a name that is neither a feature nor a field."""
    return DefinitionError(
        f"{name!r} is neither a feature nor a field of the request.",
        where=where,
        expected=f"nearest: {nearest(name, known)}",
        do="correct the name.",
    )
