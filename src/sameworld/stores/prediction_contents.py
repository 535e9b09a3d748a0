"""What a prediction log holds, counted: by model version, with the tiers that answered. It reads no request and no feature of what is rotated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sameworld.errors import LogError
from sameworld.stores.prediction_log import all_segments, by_version, part_table, raw, records

_COUNTED = ("model", "version", "tier", "asked_at", "candidate")


@dataclass
class Held:
    """The predictions of one model version.

    Args:
        model, version: the model's name and its bundle's address.
        rows: how many.
        raw: how many of them are not rotated yet.
        tiers: tier -> how many it answered.
        first, last: microseconds; the earliest and the latest moment.
        bytes: of what is rotated.
    """

    model: str
    version: str
    rows: int = 0
    raw: int = 0
    tiers: Counter[str] = field(default_factory=Counter[str])
    first: int = 0
    last: int = 0
    bytes: int = 0

    def add(self, tiers: Counter[str], at: NDArray[np.int64]) -> None:
        """Count some more of them, at least one."""
        first, last = int(at.min()), int(at.max())
        self.first, self.last = (
            (first, last) if self.rows == 0 else (min(self.first, first), max(self.last, last))
        )
        self.rows += at.size
        self.tiers.update(tiers)


@dataclass
class Contents:
    """What a prediction log holds.

    Args:
        versions: by model, then by their earliest moment.
        raw_bytes: of segments that are not rotated yet.
        damaged: records and parts that cannot be read.
    """

    versions: list[Held]
    raw_bytes: int = 0
    damaged: int = 0


def contents(state: Path) -> Contents:
    """Count what the prediction log in a server's folder holds."""
    found: dict[tuple[str, str], Held] = {}
    result = Contents([])

    def count(model: str, version: str, tiers: list[str], at: NDArray[np.int64]) -> Held:
        held = found.setdefault((model, version), Held(model, version))
        if at.size:
            held.add(Counter(tiers), at)
        return held

    for segment in all_segments(state):
        rows = records(state, segment)
        if rows is not None:
            whole = [row for row in rows if row[1] is not None]
            result.damaged += len(rows) - len(whole)
            for (model, version), own in by_version(whole, segment).items():
                at = np.array([row.t for _, row in own], np.int64)
                count(model, version, [row.tier for _, row in own], at).raw += len(own)
            continue
        for path in segment.parts(state):
            try:
                part = part_table(path, lambda name: name in _COUNTED)
            except LogError:
                result.damaged += 1
                continue
            if part is not None and part.num_rows:
                model, version = (part[name][0].as_py() for name in ("model", "version"))
                if "candidate" in part.column_names:  # one row an answer
                    part = part.filter(pc.equal(pc.fill_null(part["candidate"], 0), 0))
                at = part["asked_at"].cast(pa.int64()).to_numpy()
                count(model, version, part["tier"].to_pylist(), at).bytes += path.stat().st_size
    folders = {segment.raw_folder(state) for segment in raw(state)}
    result.raw_bytes = sum(path.stat().st_size for folder in folders for path in folder.glob("*.log"))
    result.versions = sorted(found.values(), key=lambda each: (each.model, each.first))
    return result
