"""Whether a function of `sw.derive` treats each row alone, so that its bits do not depend on how moments are cut into calls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.asof.request import call_derived
from sameworld.definitions.feature import Category, Derive, Feature
from sameworld.errors import DefinitionError
from sameworld.training.training_set import TrainingSet


def check_row_independence(
    features: Mapping[str, Feature], data: TrainingSet, rows: NDArray[np.int64]
) -> None:
    """Refuse a derived feature whose bits depend on the other rows of the call."""
    fields = {name: data.moments.fields[name].combine_chunks() for name in data.moments.fields.column_names}
    for name, feature in features.items():
        plain = feature.of if isinstance(feature, Category) else feature
        if not isinstance(plain, Derive):
            continue
        columns = {**fields, **data.features}
        given = [columns[item].take(pa.array(rows)) for item in plain.inputs]
        kind = data.features[name].type
        batch = call_derived(plain, name, given, kind)
        alone = pa.concat_arrays(
            [call_derived(plain, name, [g.slice(i, 1) for g in given], kind) for i in range(rows.size)]
            or [batch]
        )
        order = pa.array(np.arange(rows.size)[::-1])
        permuted = call_derived(plain, name, [g.take(order) for g in given], kind).take(order)
        for way, other in (("alone", alone), ("permuted", permuted)):
            if not _same_bits(batch, other):
                raise DefinitionError(
                    f"The function {plain.function.name!r} of feature {name!r} is not row-independent.",
                    where=_place(plain),
                    expected="the same bits for a row whatever other rows are in the call",
                    found=f"a row gives another value {way} than in a batch of {rows.size}",
                    do="compute each row from its own inputs only; put means, ranks and scales of the data into constants.",
                )


def _place(plain: Derive) -> str:
    code = getattr(plain.function.call, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def _same_bits(first: pa.Array, second: pa.Array) -> bool:
    if pa.types.is_floating(first.type):
        pairs = (a.fill_null(0.0).to_numpy(zero_copy_only=False).view(np.int64) for a in (first, second))
        return bool(np.array_equal(*pairs)) and first.is_null().equals(second.is_null())
    return first.equals(second)
