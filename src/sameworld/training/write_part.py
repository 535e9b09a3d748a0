"""One part of a training set, made and written by a worker of a cluster. It is the same file that one machine writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sameworld.definitions.feature import Aggregate, Category, Derive, Feature, Outcome
from sameworld.definitions.label import Label
from sameworld.training.batches import another_type
from sameworld.training.fingerprint import Fingerprint
from sameworld.training.moments import MomentTable, moment_table
from sameworld.training.part_files import Partition, check_names, part_of, write
from sameworld.training.row_independence import check_row_independence
from sameworld.training.training_set import Plan, label_of

_COMPARED_ROWS = 200


class Wrote(msgspec.Struct, frozen=True):
    """What the driver is told of a part: its number, its files, and column -> type."""

    part: int
    files: list[str]
    types: dict[str, str]


@dataclass(frozen=True)
class WritePart:
    """What a worker is sent; it has no data in it.

    Args:
        plan: without data and without an engine.
        made_of: goes into every file.
        to: the folder; the same on every machine.
        rows_a_file, partition_by: as for `write_training_set`.
        read: gives the moments of a raw table.
    """

    plan: Plan
    made_of: Fingerprint
    to: Path
    rows_a_file: int
    partition_by: Partition | None
    read: Callable[[pa.Table], MomentTable]

    @classmethod
    def of(
        cls, plan: Plan, made_of: Fingerprint, to: Path, rows_a_file: int, partition_by: Partition | None
    ) -> WritePart:
        """Leave out of a plan what need not be sent."""
        bare = dataclasses.replace(
            plan,
            features={name: _feature(feature) for name, feature in plan.features.items()},
            moments=msgspec.structs.replace(plan.moments, data=None),
            label=None if plan.label is None else _label(plan.label),
            engine=None,
            rows={},
            outcomes={},
            groupings=(),
        )
        read = functools.partial(moment_table, moments=bare.moments, schema=dict(plan.asks))
        return cls(bare, made_of, to.resolve(), rows_a_file, partition_by, read)

    @property
    def functions(self) -> list[Callable[..., Any]]:
        """The functions of the world that it calls."""
        plain = [
            feature.of if isinstance(feature, Category) else feature
            for feature in self.plan.features.values()
        ]
        return [f.function.call for f in plain if isinstance(f, Derive) and f.function.call is not None]

    def __call__(self, number: int, read: MomentTable, columns: Sequence[dict[str, pa.Array]]) -> bytes:
        """Compute and write part `number`; `columns` are those of `Plan.reads`. Gives a `Wrote` as JSON."""
        plan, first = self.plan, number * self.rows_a_file
        outcome = None if plan.label is None else label_of(plan.label, columns[-1])
        of_features = columns if plan.label is None else columns[:-1]
        aggregates = {name: column for some in of_features for name, column in some.items()}
        computed = plan.computed(read, aggregates, outcome)
        table = plan.table(computed).replace_schema_metadata(self.made_of.metadata())
        check_row_independence(plan.features, computed, np.arange(min(read.at.shape[0], _COMPARED_ROWS)))
        check_names(table, self.partition_by)
        part = part_of(self.to, number, first, read, self.partition_by)
        write(part, table, first)
        types = {field.name: str(field.type) for field in table.schema}
        return msgspec.json.encode(
            Wrote(number, [str(path.relative_to(self.to)) for path in part.files], types)
        )


def check_alike(written: Sequence[Wrote]) -> Sequence[Wrote]:
    """Give what was written.

    Raises:
        DefinitionError: a function of `sw.derive` gives one type in one part and another one in another.
    """
    for one in written:
        for name, kind in one.types.items():
            if kind != written[0].types[name]:
                raise another_type(name, written[0].types[name], kind)
    return written


def _aggregate(aggregate: Aggregate) -> Aggregate:
    source = msgspec.structs.replace(aggregate.source, data=None)
    return msgspec.structs.replace(aggregate, source=source)


def _feature(feature: Feature) -> Feature:
    match feature:
        case Aggregate():
            return _aggregate(feature)
        case Category(of=Aggregate() as aggregate):
            return Category(_aggregate(aggregate))
        case _:
            return feature


def _label(label: Label) -> Label:
    outcome = label.outcome
    if isinstance(outcome, Outcome):
        return msgspec.structs.replace(
            label, outcome=msgspec.structs.replace(outcome, aggregate=_aggregate(outcome.aggregate))
        )
    return msgspec.structs.replace(label, outcome=_aggregate(outcome))
