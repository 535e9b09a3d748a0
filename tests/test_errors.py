"""An error tells a person, a script and another process what was wrong, where, and what to do."""

import json
import pickle

import pytest

from sameworld.errors import DataError, DefinitionError, Problems, SameworldError, nearest

FULL = DefinitionError(
    "Feature 'clicks' is wrong.",
    where="features/user.py:31",
    expected="a number",
    found="text",
    do="correct it.",
)


def test_the_message_has_every_part_that_is_known() -> None:
    assert str(FULL) == (
        "Feature 'clicks' is wrong.\n"
        "  in: features/user.py:31\n"
        "  expected: a number\n"
        "  found: text\n"
        "  do: correct it."
    )
    assert (
        str(DataError("The file does not exist.", do="correct the path."))
        == "The file does not exist.\n  do: correct the path."
    )
    assert str(DataError("Only this.")) == "Only this."


def test_json_has_the_same_facts() -> None:
    assert FULL.as_json() == {
        "error": "DefinitionError",
        "what": "Feature 'clicks' is wrong.",
        "where": "features/user.py:31",
        "expected": "a number",
        "found": "text",
        "do": "correct it.",
    }
    assert DataError("Only this.").as_json() == {"error": "DataError", "what": "Only this."}


def test_problems_are_numbered() -> None:
    problems = Problems("The plan", [FULL, DataError("Only this.", do="look.")])
    assert str(problems) == (
        "The plan has 2 problems.\n"
        "1. Feature 'clicks' is wrong.\n"
        "  in: features/user.py:31\n"
        "  expected: a number\n"
        "  found: text\n"
        "  do: correct it.\n"
        "2. Only this.\n"
        "  do: look."
    )
    assert Problems("The plan", [FULL]).what == "The plan has 1 problem."
    assert json.loads(json.dumps(problems.as_json())) == {
        "error": "Problems",
        "what": "The plan has 2 problems.",
        "problems": [FULL.as_json(), {"error": "DataError", "what": "Only this.", "do": "look."}],
    }


@pytest.mark.parametrize("error", [FULL, DataError("Only this."), Problems("The plan", [FULL])])
def test_an_error_crosses_processes(error: SameworldError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.as_json() == error.as_json()


def _kinds(kind: type[SameworldError]) -> list[type[SameworldError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _kinds(child))]


def test_every_error_is_one_of_the_tree_and_says_what_it_is() -> None:
    for kind in _kinds(SameworldError):
        assert kind.__doc__, kind
        assert kind.__name__ == "Problems" or kind.__name__.endswith("Error")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("clicked_at", ["click_at", "created_at", "user", "amount"], "click_at, created_at"),
        ("zzz", ["c", "b", "a", "d"], "a, b, c"),
        ("a", [], "(none)"),
    ],
)
def test_only_the_nearest_few_names_are_shown(name: str, known: list[str], expected: str) -> None:
    assert nearest(name, known) == expected
