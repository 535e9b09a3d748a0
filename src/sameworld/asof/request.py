"""Request fields and aggregates -> the columns of the features. Called with all moments of a training set, or with one request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.asof.column import ArrowColumn, Column
from sameworld.asof.columns import normalised
from sameworld.asof.values import nearest_floats
from sameworld.definitions.feature import Aggregate, Category, ClockPart, Derive, Feature, Field
from sameworld.definitions.model import unknown_name
from sameworld.definitions.parts import feature_columns
from sameworld.errors import DefinitionError

Arrays = Mapping[str, pa.Array]
Columns = Mapping[str, Column]


def fields_read(features: Mapping[str, Feature]) -> set[str]:
    """Give the request fields that `evaluate` may ask for; keys of aggregates are not among them."""
    plain = [feature.of if isinstance(feature, Category) else feature for feature in features.values()]
    wanted = {feature.name for feature in plain if isinstance(feature, Field)} | {
        feature.field.name for feature in plain if isinstance(feature, ClockPart)
    }
    return wanted | {name for feature in plain if isinstance(feature, Derive) for name in feature.inputs}


def evaluate(
    features: Mapping[str, Feature],
    aggregates: Arrays,
    fields: Arrays,
    types: Mapping[str, pa.DataType] | None = None,
) -> dict[str, pa.Array]:
    """Give every column of the features as an array; see `Evaluator`."""
    given = ({name: ArrowColumn(array) for name, array in some.items()} for some in (aggregates, fields))
    return {name: column.arrow() for name, column in Evaluator(features, types)(*given).items()}


class Evaluator:
    """Gives every column of the features, each row a function of its own moment alone.

    Args:
        features: the model's.
        types: the types pinned when the model was trained; none yet while it is.
    """

    def __init__(
        self, features: Mapping[str, Feature], types: Mapping[str, pa.DataType] | None = None
    ) -> None:
        self._features = features
        self._types = types
        self._columns = [name for name, _ in feature_columns(features)]
        # What is only handed on is known beforehand.
        self._aggregates: list[tuple[str, str]] = []
        self._fields: list[tuple[str, str]] = []
        self._others: list[tuple[str, Feature]] = []
        for name, feature in features.items():
            own = feature.of if isinstance(feature, Category) else feature
            if isinstance(own, Aggregate):
                several = len(own.windows) > 1 and own is feature
                names = [f"{name}_{window.label}" for window in own.windows] if several else [name]
                self._aggregates += zip(names, own.columns, strict=False)
            elif isinstance(own, Field):
                self._fields.append((name, own.name))
            else:
                self._others.append((name, feature))

    def __call__(self, aggregates: Columns, fields: Columns) -> dict[str, Column]:
        """Give the columns.

        Args:
            aggregates: column name (see `Aggregate.columns`) -> values.
            fields: request field -> values, in the types of `schema.VALUE_TYPES`.

        Raises:
            DefinitionError: a derived feature's function gives something that is no column.
        """
        made = {name: aggregates[own] for name, own in self._aggregates}
        for name, own in self._fields:
            made[name] = fields[own].one_form()
        evaluation = _Evaluation(self._features, fields, self._types, made)
        for name, feature in self._others:
            if name not in made:
                evaluation.value(name, feature)
        return {name: made[name] for name in self._columns}


class _Evaluation:
    """One call of an `Evaluator`. No functions that call each other: such a ring would keep every batch's columns until the collector looks for rings."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        fields: Columns,
        types: Mapping[str, pa.DataType] | None,
        made: dict[str, Column],
    ) -> None:
        self.features = features
        self.fields = fields
        self.types = types
        self.made = made

    def column(self, name: str) -> Column:
        if name in self.made:
            return self.made[name]
        if name in self.features:
            feature = self.features[name]
            if isinstance(feature, Aggregate):
                raise DefinitionError(
                    f"Feature {name!r} has several windows, so it is no single input.",
                    do="name one of its columns, such as 'clicks_3h', or give it one window.",
                )
            self.value(name, feature)
            return self.made[name]
        if name in self.fields:
            return self.fields[name]
        raise unknown_name(name, [*self.features, *self.fields], "sw.derive")

    def value(self, name: str, feature: Feature) -> None:
        match feature:
            case ClockPart():
                made = _clock_part(feature, self.fields[feature.field.name].arrow())
            case Derive():
                inputs = [self.column(item).arrow() for item in feature.inputs]
                made = call_derived(feature, name, inputs, self.types.get(name) if self.types else None)
            case Category():
                self.value(name, feature.of)
                return
            case _:
                raise AssertionError(f"{name} is known beforehand")
        self.made[name] = ArrowColumn(made)


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
