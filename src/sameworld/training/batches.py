"""Training sets in parts: the same rows as `training_set`, bit for bit, without ever holding all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from sameworld.definitions.feature import Feature
from sameworld.definitions.label import Label
from sameworld.definitions.model import Model
from sameworld.definitions.moments import Moments
from sameworld.engines.cache import cache_folder
from sameworld.engines.interface import Engine, World
from sameworld.engines.named import EngineName, opened_engine
from sameworld.errors import DefinitionError
from sameworld.training.fingerprint import Fingerprint, Seen
from sameworld.training.moments import MomentTable, moment_batches
from sameworld.training.row_independence import check_row_independence
from sameworld.training.training_set import Plan, Say, asked_for, planned, silent

Progress = Callable[[int, int | None], None]
"""Told (moments done, all moments where that is known)."""

ROWS = 1_000_000
_COMPARED_ROWS = 200


def unseen(_done: int, _total: int | None) -> None:
    """Show no progress."""


def training_batches(
    model_or_features: Model | Mapping[str, Feature],
    *,
    moments: Moments | None = None,
    label: Label | None = None,
    engine: EngineName | Engine = "duckdb",
    world: World = "as_of",
    as_of: int | None = None,
    folder: Path | None = None,
    cache: Path | bool = True,
    rows_a_batch: int = ROWS,
    say: Say = silent,
    progress: Progress = unseen,
) -> pa.RecordBatchReader:
    """Give the rows of `training_set` as a stream of record batches, in the moments' order.

    The moments are read as they are needed. What is in memory is one batch of them with its features, and what the engine holds of the sources.
    The first batch is computed before this returns, so that errors come at once.

    Args:
        model_or_features, moments, label, engine, world, as_of, folder, cache: as in `training_set`. `as_of` is fixed when this is called.
        rows_a_batch: how many moments are computed at a time.
        say: told what is being done.
        progress: told after every batch how many moments are done, and of how many.

    Raises:
        Problems: everything that is wrong with the definitions and their data, at once.
        DefinitionError: a function of `sw.derive` does not treat each row alone, so that batches would change what it gives.
    """
    features, moments, label = asked_for(model_or_features, moments, label)
    if rows_a_batch < 1:
        raise DefinitionError(
            "A batch needs rows.", found=f"rows_a_batch={rows_a_batch}", do="give at least 1."
        )
    own = ExitStack()
    chosen = own.enter_context(opened_engine(engine, folder, cache=cache_folder(folder, cache), say=say))
    plan = planned(features, moments, label, engine=chosen, world=world, as_of=as_of)
    seen = plan.seen()
    total = seen.moments.rows
    say(plan.summary(total))
    parts = Parts(plan, seen, plan.fingerprint(seen))
    tables = (parts.compute(read) for read in moment_batches(chosen, plan.moments, rows_a_batch))
    first = next(tables)
    schema = first.schema
    waiting = itertools.chain([first], tables)
    del first

    def stream() -> Iterator[pa.RecordBatch]:
        done = 0
        try:
            for table in waiting:
                yield from table.combine_chunks().to_batches()
                done += table.num_rows
                progress(done, total)
            progress(done, done)
        finally:
            own.close()

    return pa.RecordBatchReader.from_batches(schema, stream())


def another_type(feature: str, before: str, now: str) -> DefinitionError:
    """The error of a derived feature whose type depends on the moments."""
    return DefinitionError(
        f"The function of feature {feature!r} gives one type for some moments and another for others.",
        expected=before,
        found=now,
        do="let it give floats always, or texts always.",
    )


class Parts:
    """Computes one part of the moments after another, and sees to it that together they are one training set.

    Args:
        plan: what to compute.
        seen: the data when the run began.
        made_of: goes into every part's schema.
    """

    def __init__(self, plan: Plan, seen: Seen, made_of: Fingerprint) -> None:
        self._plan, self._seen, self._made_of = plan, seen, made_of
        self._schema: pa.Schema | None = None

    def compute(self, read: MomentTable) -> pa.Table:
        """Give some moments' rows.

        Raises:
            DataError: a file is no more what it was when the run began.
            DefinitionError: a function of `sw.derive` depends on the other rows of its call, or gives another type than before.
        """
        computed = self._plan.at(read)
        table = self._plan.table(computed).replace_schema_metadata(self._made_of.metadata())
        schema = self._schema or table.schema
        if self._schema is None:
            some = np.arange(min(read.at.shape[0], _COMPARED_ROWS))
            check_row_independence(self._plan.features, computed, some)
            self._schema = schema
        for before, now in zip(schema, table.schema, strict=True):
            if before.type != now.type:
                raise another_type(now.name, str(before.type), str(now.type))
        self._seen.check()
        return table
