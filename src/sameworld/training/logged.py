"""What was served comes back: moments, and features as they were, from the prediction log."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sameworld.asof.request import feature_columns
from sameworld.definitions.feature import Aggregate, Feature
from sameworld.stores.prediction import Shape
from sameworld.training.bundle import Bundle
from sameworld.training.fingerprint import meaning


def column_meanings(features: Mapping[str, Feature]) -> dict[str, str]:
    """Give feature column -> hash of its definition; that of one window where a feature has several."""
    result: dict[str, str] = {}
    for name, feature in features.items():
        columns = [column for column, _ in feature_columns({name: feature})]
        if isinstance(feature, Aggregate):
            single = [msgspec.structs.replace(feature, windows=(window,)) for window in feature.windows]
        else:
            single = [feature]
        result.update({column: meaning(part) for column, part in zip(columns, single, strict=True)})
    return result


def shape_of(bundle: Bundle) -> Shape:
    """Give the names and types of what a bundle's predictions list in the log."""
    types = {name: str(kind) for name, kind in bundle.types.items()}
    return Shape(bundle.description.request, types, column_meanings(bundle.model.features))
