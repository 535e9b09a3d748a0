"""What happens is told once, as a line of JSON, and what goes on happening once a minute, with its count."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sameworld.server.incidents import Incidents


@dataclass
class Told:
    """Takes lines, and tells the time."""

    lines: list[str] = field(default_factory=list)
    time: float = 0.0

    def write(self, line: str) -> None:
        self.lines.append(line)

    def facts(self) -> list[dict[str, object]]:
        return [{n: v for n, v in json.loads(line).items() if n != "at"} for line in self.lines]


def test_an_incident_is_told_at_once_and_then_once_a_minute() -> None:
    told = Told()
    incidents = Incidents(told.write, lambda: told.time)
    for second in range(130):
        told.time = float(second)
        incidents.tell("model broken", "a", reason="it hangs")
    incidents.tell("model broken", "b")
    incidents.tell("swap", "a")
    assert told.facts() == [
        {"incident": "model broken", "of": "a", "reason": "it hangs"},
        {"incident": "model broken", "of": "a", "reason": "it hangs", "held_back": 59},
        {"incident": "model broken", "of": "a", "reason": "it hangs", "held_back": 59},
        {"incident": "model broken", "of": "b"},
        {"incident": "swap", "of": "a"},
    ]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in told.lines)


def test_a_reader_that_has_gone_stops_nobody() -> None:
    def gone(line: str) -> None:
        raise BrokenPipeError

    Incidents(gone).tell("model broken", "a")
