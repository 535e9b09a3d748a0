"""Training sets of several tables of moments -> one, such as history's and what was served since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.errors import DataError
from sameworld.training.moments import MomentTable
from sameworld.training.training_set import TrainingSet


def joined(sets: Sequence[TrainingSet]) -> TrainingSet:
    """Give training sets of the same features and label, computed at the same times, as one in their order.

    Raises:
        DataError: a request's field or a feature has another name or type than in the first one; names the columns.
    """
    first = sets[0]
    if len(sets) == 1:
        return first
    for number, other in enumerate(sets[1:], 1):
        _check_alike("fields", first.request, other.request, number)
        _check_alike("features", _types(first), _types(other), number)
    fields = [other.moments.fields.select(first.moments.fields.column_names) for other in sets]
    at = np.concatenate([other.moments.at for other in sets])
    return replace(
        first,
        moments=MomentTable(at, pa.concat_tables(fields), answer=_answers(sets)),
        features={
            name: pa.concat_arrays([other.features[name] for other in sets]) for name in first.features
        },
        label=_together([other.label for other in sets]),
        label_then=_together([other.label_then for other in sets]),
        mature=np.concatenate([other.mature for other in sets]),
        table=np.repeat(np.arange(len(sets)), [other.moments.at.size for other in sets]),
    )


def _together(labels: Sequence[pa.Array | None]) -> pa.Array | None:
    known = [label for label in labels if label is not None]
    return pa.concat_arrays(known) if known else None


def _answers(sets: Sequence[TrainingSet]) -> NDArray[np.int64] | None:
    if all(other.moments.answer is None for other in sets):
        return None
    of_table = [np.full(other.moments.at.size, -1, np.int64) for other in sets]
    return np.concatenate(
        [o.moments.answer if o.moments.answer is not None else t for o, t in zip(sets, of_table, strict=True)]
    )


def _types(data: TrainingSet) -> dict[str, str]:
    return {name: str(column.type) for name, column in data.features.items()}


def _check_alike(what: str, first: Mapping[str, str], other: Mapping[str, str], number: int) -> None:
    unlike = [name for name in dict.fromkeys([*first, *other]) if first.get(name) != other.get(name)]
    if unlike:
        raise DataError(
            f"Two tables of moments do not have the same {what}.",
            where=f"also[{number - 1}]",
            expected=", ".join(f"{name}: {first.get(name, 'none')}" for name in unlike[:5]),
            found=", ".join(f"{name}: {other.get(name, 'none')}" for name in unlike[:5]),
            do="give both the same columns, in the same types.",
        )
