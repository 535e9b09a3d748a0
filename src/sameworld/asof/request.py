"""Request fields and aggregates -> the columns of the features. Called with all moments of a training set, or with one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.columns import normalised
from sameworld.asof.values import nearest_floats
from sameworld.definitions.feature import Aggregate, Category, ClockPart, Derive, Feature, Field
from sameworld.definitions.model import unknown_name
from sameworld.definitions.parts import feature_columns
from sameworld.errors import DefinitionError

Columns = Mapping[str, pa.Array]


def fields_read(features: Mapping[str, Feature]) -> set[str]:
    """Give the request fields that `evaluate` may ask for; keys of aggregates are not among them."""
    plain = [feature.of if isinstance(feature, Category) else feature for feature in features.values()]
    wanted = {feature.name for feature in plain if isinstance(feature, Field)} | {
        feature.field.name for feature in plain if isinstance(feature, ClockPart)
    }
    return wanted | {name for feature in plain if isinstance(feature, Derive) for name in feature.inputs}


def evaluate(
    features: Mapping[str, Feature],
    aggregates: Columns,
    fields: Columns,
    types: Mapping[str, pa.DataType] | None = None,
) -> dict[str, pa.Array]:
    """Give every column of the features, each row a function of its own moment alone.

    Args:
        features: the model's.
        aggregates: column name (see `Aggregate.columns`) -> values.
        fields: request field -> values, in the types of `schema.VALUE_TYPES`.
        types: the types pinned when the model was trained; none yet while it is.

    Raises:
        DefinitionError: a derived feature's function gives something that is no column.
    """
    evaluation = _Evaluation(features, aggregates, fields, types)
    for name, feature in features.items():
        if name not in evaluation.made:
            evaluation.value(name, feature)
    return {name: evaluation.made[name] for name, _ in feature_columns(features)}


class _Evaluation:
    """One call of `evaluate`. No functions that call each other: such a ring would keep every batch's columns until the collector looks for rings."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        aggregates: Columns,
        fields: Columns,
        types: Mapping[str, pa.DataType] | None,
    ) -> None:
        self.features = features
        self.aggregates = aggregates
        self.fields = fields
        self.types = types
        self.made: dict[str, pa.Array] = {}

    def column(self, name: str) -> pa.Array:
        if name in self.made:
            return self.made[name]
        if name in self.features and not isinstance(self.features[name], Field):
            self.value(name, self.features[name])
            if name not in self.made:
                raise DefinitionError(
                    f"Feature {name!r} has several windows, so it is no single input.",
                    do="name one of its columns, such as 'clicks_3h', or give it one window.",
                )
            return self.made[name]
        if name in self.fields:
            return self.fields[name]
        for known, feature in feature_columns(self.features):
            if known == name:
                self.value(feature, self.features[feature])
                return self.made[name]
        raise unknown_name(name, [*self.features, *self.fields], "sw.derive")

    def single(self, feature: Feature, name: str) -> pa.Array:
        match feature:
            case Aggregate():
                return self.aggregates[feature.columns[0]]
            case Field():
                return _one_form(self.fields[feature.name])
            case ClockPart():
                return _clock_part(feature, self.fields[feature.field.name])
            case Derive():
                return call_derived(
                    feature,
                    name,
                    [self.column(item) for item in feature.inputs],
                    self.types.get(name) if self.types else None,
                )
            case Category():
                return self.single(feature.of, name)

    def value(self, name: str, feature: Feature) -> None:
        if isinstance(feature, Aggregate) and len(feature.windows) > 1:
            for window, aggregate in zip(feature.windows, feature.columns, strict=True):
                self.made[f"{name}_{window.label}"] = self.aggregates[aggregate]
        else:
            self.made[name] = self.single(feature, name)


def _one_form(array: pa.Array) -> pa.Array:
    """Floats have one NaN and one zero wherever they come from."""
    if not pa.types.is_floating(array.type):
        return array
    return pa.array(
        normalised(array.fill_null(0.0).to_numpy(zero_copy_only=False)),
        mask=array.is_null().to_numpy(zero_copy_only=False),
    )


def _clock_part(feature: ClockPart, instants: pa.Array) -> pa.Array:
    local = instants.cast(pa.timestamp("us", tz=feature.timezone))
    match feature.part:
        case "hour":
            part = pc.hour(local)
        case "weekday":
            part = pc.day_of_week(local)
        case "month":
            part = pc.month(local)
        case "minute_of_day":
            part = pc.add(pc.multiply(pc.hour(local), 60), pc.minute(local))
    return part.cast(pa.int64())


def _whole(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _numpy(array: pa.Array) -> NDArray[Any]:
    """A column as a function of `sw.derive` gets it: float64 with NaN for null; objects with None for texts, and for lists, each an array of its own."""
    if pa.types.is_string(array.type):
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_list(array.type):
        items = _numpy(array.flatten())
        lists = np.full(len(array), None, object)
        end = 0
        for row, length in enumerate(array.value_lengths().to_pylist()):
            if length is not None:
                # A copy: what a function does to its list is not done to another row's.
                lists[row] = items[end : end + length].copy()
                end += length
        return lists
    return nearest_floats(array)


def call_derived(feature: Derive, name: str, inputs: list[pa.Array], pinned: pa.DataType | None) -> pa.Array:
    """Call a derived feature's function and check that it gave a column.

    Args:
        pinned: the type of the feature's column; None while it is being found out.
    """
    given = [_numpy(_whole(array)) for array in inputs]
    call = feature.function.call
    if call is None:
        raise DefinitionError(
            f"The code of {feature.function.name!r}, which feature {name!r} needs, is not here.",
            expected=f"code {feature.function.code}",
            do="serve with the world file that the model was trained with.",
        )
    result = np.asarray(call(*given))
    if result.shape != given[0].shape:
        raise DefinitionError(
            f"The function {feature.function.name!r} of feature {name!r} did not give one value a row.",
            expected=f"shape {given[0].shape}",
            found=f"shape {result.shape}",
            do="return an array as long as its inputs.",
        )
    if result.dtype.kind in "OUS":
        texts = pa.array([None if item is None else str(item) for item in result.tolist()], pa.string())
        return texts if pinned is None or pa.types.is_string(pinned) else pa.nulls(len(texts), pinned)
    numbers = result.astype(np.float64)
    return pa.array(normalised(numbers), mask=np.isnan(numbers))
