"""An estimator as a definition: an object with fit and predict, known by its class and parameters."""

from __future__ import annotations

import inspect
import math
from typing import Any

from sameworld.definitions.problems import report
from sameworld.errors import DefinitionError


class Estimator:
    """An object with scikit-learn's fit and predict, known by its class and parameters."""

    def __init__(self, kind: str, parameters: dict[str, Any], unfitted: Any) -> None:
        self.kind = kind
        self.parameters = parameters
        self.unfitted = unfitted

    @classmethod
    def of(cls, estimator: Any) -> Estimator:
        if isinstance(estimator, Estimator):
            return estimator
        if not hasattr(estimator, "fit") or not hasattr(estimator, "predict"):
            report(
                DefinitionError(
                    "The estimator cannot be trained.",
                    where="sw.Model estimator",
                    expected="an object with fit and predict, as scikit-learn's are",
                    found=type(estimator).__name__,
                    do="pass an instance, for example LGBMClassifier(n_estimators=300).",
                )
            )
        parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
        kind = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
        return cls(kind, {name: _plain(value) for name, value in parameters.items()}, estimator)

    @classmethod
    def from_json(cls, data: Any) -> Estimator:
        """Give the estimator of a model that was read from a bundle, which holds the fitted one."""
        return cls(data["estimator"], data["parameters"], None)

    @property
    def ranks(self) -> bool:
        """Whether it learns from requests as groups of rows, as LGBMRanker does."""
        fit = getattr(self.unfitted, "fit", None)
        try:
            return fit is not None and "group" in inspect.signature(fit).parameters
        except (TypeError, ValueError):  # it does not say what it takes
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Estimator) and (self.kind, self.parameters) == (other.kind, other.parameters)

    def __hash__(self) -> int:
        return hash((self.kind, repr(sorted(self.parameters.items()))))

    def __repr__(self) -> str:
        return f"Estimator({self.kind})"


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str | type(None)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return f"{type(value).__module__}.{type(value).__qualname__}"
