"""Which rows of a training set are candidates of one request."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sameworld.definitions.ranking import Ranking
from sameworld.engines.interface import MomentTable
from sameworld.errors import DataError

Numbers = NDArray[np.int64]


def requests_of(ranking: Ranking, moments: MomentTable, table: Numbers | None = None) -> Numbers:
    """Give each row's request, numbered from 0 without gaps; shape (moments,).

    Rows belong together by the field that names a request; those of a prediction log by the answer that they are of.

    Args:
        ranking: names the field.
        moments: one row a candidate.
        table: shape (moments,), which table of moments each row is of; a name means another request in another table.

    Raises:
        DataError: a row names no request, or a request has several times.
    """
    names = moments.fields[ranking.request].combine_chunks().dictionary_encode()
    answers = moments.answer if moments.answer is not None else np.full(moments.at.shape[0], -1, np.int64)
    unnamed = names.is_null().to_numpy(zero_copy_only=False) & (answers < 0)
    if unnamed.any():
        raise DataError(
            f"{int(unnamed.sum()):,} candidates are of no request.",
            where=f"the moments, column {ranking.request!r}",
            found="null",
            do="name each row's request, or leave such rows out of the moments.",
        )
    named = names.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    number = np.where(answers < 0, named, len(names.dictionary) + answers)
    if table is not None and number.size:
        number += table * (int(number.max()) + 1)
    _, first, request = np.unique(number, return_index=True, return_inverse=True)
    late = np.flatnonzero(moments.at != moments.at[first][request])
    if late.size:
        raise DataError(
            f"{np.unique(request[late]).size:,} requests have candidates of different times.",
            where=f"the moments, request {_shown(moments.fields[ranking.request], int(late[0]))}",
            expected="one time a request: its candidates are ranked at one moment",
            do="give every candidate the time of its request.",
        )
    return request.astype(np.int64)


def _shown(column: pa.ChunkedArray, row: int) -> str:
    return repr(column[row].as_py())
