"""A value along time is drawn so that it can be read without colour, in the width there is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sameworld.cli.explained import drawing, entity
from sameworld.errors import DataError
from sameworld.evaluation.explanation import Timeline

NOON = 1_380_628_800_000_000
MINUTE = 60_000_000


def line(*points: tuple[int, Any], end: int = 100, **options: Any) -> Timeline:
    """A timeline from minute 0, in minutes before and after noon."""
    given = {"cut": False, "of_knowledge": False, "sampled": False} | options
    return Timeline(
        NOON, NOON + end * MINUTE, tuple((NOON + at * MINUTE, value) for at, value in points), **given
    )


def test_numbers_are_a_profile_with_a_mark_at_the_moment() -> None:
    drawn = drawing(line((0, None), (25, 1.0), (50, 4.0), (75, 2.0)), NOON + 50 * MINUTE, 64)
    assert drawn == [
        "4 ┤                              ███████████████",
        "  │                              ███████████████",
        "  │                              ██████████████████████████████",
        "0 ┤···············█████████████████████████████████████████████",
        "  └──────────────────────────────┴─────────────────────────────",
        "                                 ▲ 2013-10-01 12:50:00Z: 4.0",
        "   2013-10-01 12:00:00Z                     2013-10-01 13:40:00Z",
        "4.0 since 2013-10-01 12:50:00Z, 1.0 before",
        "2.0 at 2013-10-01 13:15:00Z, 25 min after the moment",
    ]


def test_other_values_are_letters_and_what_they_stand_for() -> None:
    drawn = drawing(line((0, None), (25, "u"), (50, "ж"), (75, "u"), cut=True), NOON + 50 * MINUTE, 64)
    assert drawn == [
        " │················AAAAAAAAAAAAAABBBBBBBBBBBBBBBBAAAAAAAAAAAAAAA",
        " └──────────────────────────────┴──────────────────────────────",
        "                                ▲ 2013-10-01 12:50:00Z: 'ж'",
        "  2013-10-01 12:00:00Z                      2013-10-01 13:40:00Z",
        "  A 'u'",
        "  B 'ж'",
        "'ж' since 2013-10-01 12:50:00Z, 'u' before",
        "'u' at 2013-10-01 13:15:00Z, 25 min after the moment",
        "There are more changes than these 4; the line is cut.",
    ]


def test_numbers_that_are_no_height_are_marked() -> None:
    drawn = drawing(line((0, math.nan), (30, math.inf), (60, -2.0), (90, 1.0)), NOON + 5 * MINUTE, 64)
    assert drawn[0].startswith(" 1 ┤                  ██████████████████  ")
    assert drawn[3].startswith("-2 ┤??????????????????██████████████████▁▁")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("at", [0, 1, 50, 99, 100])
@pytest.mark.parametrize(
    "value", [None, 3, -1.5, True, 1e300, "text that is longer than any value should be", [1.0, None]]
)
def test_a_drawing_fits_its_width_wherever_the_moment_is(width: int, at: int, value: Any) -> None:
    moment = NOON + at * MINUTE + 123_456
    drawn = drawing(line((0, None), (40, value)), min(moment, NOON + 100 * MINUTE), width)
    assert max(map(len, drawn[: 6 if value is None or not isinstance(value, str | list) else 4])) <= width
    (marked,) = [text for text in drawn if "▲" in text]
    assert drawn[drawn.index(marked) - 1][marked.index("▲")] == "┴"


def test_entities_are_keys_with_values() -> None:
    assert entity(["user=u1", "shop=a=b", "note="]) == {"user": "u1", "shop": "a=b", "note": ""}
    for wrong in (["user"], ["=u1"], ["user=u1", "user=u2"]):
        with pytest.raises(DataError):
            entity(wrong)
