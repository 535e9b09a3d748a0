"""Before anybody is measured: on a small set without ties, everybody answers right, or the benchmark ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.asof.contestants import COLUMNS, EASIER, WINDOWS, Contestant, World
from benchmarks.asof.runner import SMALL, Ended, Runner
from sameworld.testing.oracle import Version, value_at

ENTITIES = 100
SAMPLE = 25
RELATIVE = 1e-9


def wrong(runner: Runner, contestants: Sequence[Contestant]) -> list[str]:
    """Give what is wrong with the contestants' answers; nothing when nothing is."""
    folder = runner.data(SMALL, ENTITIES)
    problems = _ties(folder)
    easier = _read(runner.answer(EASIER, folder))
    problems += against_oracle(folder, easier, EASIER.name, "event_time")
    for contestant in contestants:
        if not contestant.columns:
            continue
        try:
            answer = _read(runner.answer(contestant, folder))
        except Ended as ended:
            problems.append(f"{contestant.name}: {ended}")
            continue
        if contestant.world == "event_time":
            problems += differences(easier, answer, contestant)
        else:
            problems += against_oracle(folder, answer, contestant.name, contestant.world)
    return problems


def _read(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    # By entity and moment, time as a number, nothing as NaN: every column becomes a float64 that holds its values exactly.
    return table.set_column(table.schema.get_field_index("t"), "t", _number(table["t"])).sort_by(
        [("k", "ascending"), ("t", "ascending")]
    )


def _number(column: Any) -> Any:
    return pc.cast(pc.cast(column, pa.timestamp("us", tz="UTC")), pa.int64())


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(pc.cast(table[name], pa.float64()).to_numpy(), np.float64)


def _ties(folder: Path) -> list[str]:
    events, moments = pq.read_table(folder / "events.parquet"), pq.read_table(folder / "moments.parquet")
    times = np.concatenate([_number(events["e"]).to_numpy(), _number(moments["t"]).to_numpy()])
    return [] if len(np.unique(times)) == len(times) else ["the check's data have ties: take another --seed"]


def differences(expected: pa.Table, answer: pa.Table, contestant: Contestant) -> list[str]:
    """Give where an answer by event time differs. A sum over no row may be null or 0; sums and means may differ by rounding."""
    if contestant.omits:
        given = set(zip(*(answer[name].to_pylist() for name in ("k", "t")), strict=True))
        place = zip(*(expected[name].to_pylist() for name in ("k", "t")), strict=True)
        has_value = pc.is_valid(expected["last"]).to_pylist()
        expected = expected.filter(
            pa.array([key in given or value for key, value in zip(place, has_value, strict=True)])
        )
    for name in ("k", "t"):
        if expected[name].to_pylist() != answer[name].to_pylist():
            return [f"{contestant.name}: its {name} are not the moments'"]
    problems: list[str] = []
    for name in contestant.columns:
        want, got = _column(expected, name), _column(answer, name)
        if name.startswith("sum"):
            want, got = np.nan_to_num(want), np.nan_to_num(got)
        relative = RELATIVE if name.startswith(("sum", "mean")) else 0.0
        same = np.isclose(got, want, rtol=relative, atol=0.0, equal_nan=True)
        if not same.all():
            at = int(np.flatnonzero(~same)[0])
            problems.append(
                f"{contestant.name}: {name} differs at {int((~same).sum())} of {len(same)} moments; "
                f"the first has {got[at]} and should have {want[at]}"
            )
    return problems


def against_oracle(folder: Path, answer: pa.Table, name: str, world: World) -> list[str]:
    """Give where an answer of sameworld is not, bit for bit, the oracle's, at a sample of the moments."""
    versions = list(_versions(folder, world))
    told: dict[int, list[Version]] = defaultdict(list)
    for version in versions:
        told[version.key[0]].append(version)
    by_fact: dict[str, list[Version]] = defaultdict(list)
    for version in versions:
        if version.fact is not None:
            by_fact[version.fact].append(version)
    step = max(answer.num_rows // SAMPLE, 1)
    for row in answer.take(list(range(0, answer.num_rows, step))).to_pylist():
        # What can matter to an entity: its rows, and all other versions of their facts.
        facts = {version.fact for version in told[row["k"]] if version.fact is not None}
        mattering = (
            [version for fact in sorted(facts) for version in by_fact[fact]] if facts else told[row["k"]]
        )
        for column in COLUMNS:
            operation, _, window = column.partition("_")
            start = -WINDOWS[window] * 1_000_000 if window else None
            want = value_at(mattering, operation, (row["k"],), row["t"], start=start)
            if want != row[column]:
                return [
                    f"{name}: {column} of entity {row['k']} at {row['t']} is {row[column]!r}, the oracle says {want!r}"
                ]
    return []


def _versions(folder: Path, world: World) -> Iterable[Version]:
    table = pq.read_table(folder / ("corrected.parquet" if world == "corrected" else "events.parquet"))
    for name in ("e", "a"):
        table = table.set_column(table.schema.get_field_index(name), name, _number(table[name]))
    for row in table.to_pylist():
        yield Version(
            (row["k"],),
            row["e"],
            row["e"] if world == "event_time" else row["a"],
            row["x"],
            fact=str(row["id"]) if "id" in row else None,
            version=row.get("version", 0),
        )
