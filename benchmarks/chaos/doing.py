"""What a worker's event loop was doing while an answer was late: from the notes of `inside/sitecustomize.py`."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

INSIDE = Path(__file__).parent / "inside"
"""On the path of the server's Python, this has its workers take notes."""
VARIABLE = "CHAOS_DOING"
"""Names the folder of the notes."""


class Note(NamedTuple):
    """What one worker wrote down.

    Args:
        at: seconds on the machine's steady clock.
        ran, waited: nanoseconds that its loop's thread has had a processor, and has waited for one, until then.
        loop: where the loop was; nothing where it was at nobody's work.
        beside: where the other threads were.
    """

    at: float
    ran: int
    waited: int
    loop: str
    beside: list[str]


class Slow(NamedTuple):
    """A late answer: when its request was sent, how long it took, its id, and for how long of it the load's own process waited for a processor; in seconds."""

    started: float
    seconds: float
    id: str
    waited: float


def notes(folder: Path) -> dict[str, list[Note]]:
    """Give what each worker wrote down, by its process as ids of answers have it; what a killed one was just writing is left out."""
    decode = msgspec.json.Decoder(Note).decode
    found: dict[str, list[Note]] = {}
    for path in folder.glob("*.doing"):
        found[path.stem] = [
            decode(line) for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")
        ]
    return found


def doing(slow: Slow, notes: dict[str, list[Note]]) -> Counter[str]:
    """Give the seconds that a late answer's worker has spent on what, from when its request was sent until it was answered."""
    spent = Counter({"the load waiting for a processor": slow.waited})
    until = slow.started + slow.seconds
    own = notes.get(slow.id.split("-")[1], []) if slow.id else []
    for before, note in pairwise(own):
        within = min(note.at, until) - max(before.at, slow.started)
        if within <= 0.0:
            continue
        share = within / (note.at - before.at)
        ran, waited = (note.ran - before.ran) / 1e9 * share, (note.waited - before.waited) / 1e9 * share
        spent["waiting for a processor"] += waited
        spent[f"at work: {note.loop or 'connections'}"] += ran
        spent[f"held up: {note.loop}" if note.loop else "asleep"] += max(within - ran - waited, 0.0)
        for place in note.beside:
            spent[f"beside it, {place}"] += within
    return spent
