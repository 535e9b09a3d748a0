"""What a prediction log holds, as a person reads it and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from sameworld.cli import show
from sameworld.stores.prediction_contents import Contents
from sameworld.stores.rotation import Rotated


def as_json(state: Path, held: Contents, done: Rotated | None) -> dict[str, Any]:
    """Give everything for a script; `rotation` is there when one was asked for."""
    told: dict[str, Any] = {
        "state": str(state),
        "raw_bytes": held.raw_bytes,
        "damaged": held.damaged,
        "versions": [
            {
                "model": each.model,
                "version": each.version,
                "predictions": each.rows,
                "not_rotated": each.raw,
                "tiers": dict(each.tiers.most_common()),
                "from": show.iso(each.first),
                "to": show.iso(each.last),
                "bytes": each.bytes,
            }
            for each in held.versions
        ],
    }
    if done is not None:
        told["rotation"] = {
            "segments": done.segments,
            "predictions": done.rows,
            "stayed": done.stayed,
            "removed": [str(path) for path in done.removed],
        }
    return told


def tell(state: Path, held: Contents, done: Rotated | None) -> None:
    """Print it."""
    if done is not None:
        removed = f"; removed {len(done.removed):,} parts" if done.removed else ""
        show.out.print(f"rotated {done.rows:,} predictions of {done.segments:,} segments{removed}")
        for why in done.stayed:
            show.out.print(f"not rotated: {why}", style="yellow", markup=False, soft_wrap=True)
    if not held.versions:
        show.out.print(f"No predictions are in {state}", markup=False, soft_wrap=True)
        return
    table = Table("model", "version", "predictions", "tiers", "from", "to", "Parquet")
    for each in held.versions:
        tiers = ", ".join(f"{tier} {count / each.rows:.1%}" for tier, count in each.tiers.most_common())
        times = show.iso(each.first), show.iso(each.last)
        table.add_row(
            each.model, each.version[:8], f"{each.rows:,}", tiers, *times, show.size_text(each.bytes)
        )
    show.out.print(table)
    raw = sum(each.raw for each in held.versions)
    show.out.print(
        f"{raw:,} predictions are not rotated yet, {show.size_text(held.raw_bytes)}, in {state}",
        markup=False,
        soft_wrap=True,
    )
    if held.damaged:
        show.out.print(
            f"{held.damaged:,} records or parts are damaged; sameworld prove names them", style="red"
        )
