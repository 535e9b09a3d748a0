"""The reference says what the code does: generated parts are current, and nothing public is undocumented."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import click
import msgspec
import pytest

import sameworld as sw
from sameworld.asof.aggregations import AGGREGATIONS
from sameworld.cli.main import main
from sameworld.definitions.source import Rows

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = (DOCS / "reference.md").read_text()
GLOSSARY = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)

# Words that mean a thing of the glossary and are not its word. Read as prose: code in backticks is left out.
SYNONYMS = {
    "checkpoint": "bundle",
    "data source": "source",
    "dataset": "training set",
    "ingestion time": "available time",
    "point-in-time": "as of",
    "timeout": "deadline",
    "training data set": "training set",
    "time travel": "as of",
}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", list(generator().PARTS), ids=" ".join)
def test_generated_parts_are_current(part: tuple[str, str]) -> None:
    generate = generator()
    page, marker = part

    current = generate.between((DOCS / page).read_text(), marker)

    assert current == generate.PARTS[part](), "run: python docs/generate.py"


@pytest.mark.parametrize("name", sw.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"`sw\.{name}\b", REFERENCE)


@pytest.mark.parametrize("name", [n for n in sw.__all__ if n != "SameworldError"])
def test_every_argument_of_a_public_name_is_in_its_signature(name: str) -> None:
    thing = getattr(sw, name)
    arguments = (
        list(inspect.signature(thing).parameters)
        if not (isinstance(thing, type) and issubclass(thing, msgspec.Struct))
        else [field.name for field in msgspec.structs.fields(thing)]
    )

    (signature,) = re.findall(rf"^\| `sw\.{name}\(([^`]*)\)` \|", REFERENCE, re.MULTILINE)

    assert re.findall(r"(?:^|, )\*?(\w+)", re.sub(r"\([^()]*\)", "", signature)) == arguments


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_every_aggregation_has_a_method_and_a_line(name: str) -> None:
    parameters = list(inspect.signature(getattr(Rows, name)).parameters.values())[1:]
    given = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    named = [f"{p.name}={p.default!r}" for p in parameters if p.kind is p.KEYWORD_ONLY]

    assert f"`.{name}({', '.join([*given, '*', *named])})`" in REFERENCE


def test_every_command_and_flag_is_in_the_reference() -> None:
    missing = []
    for name, command in main.commands.items():
        if f"### `sameworld {name}`" not in REFERENCE:
            missing.append(name)
        for parameter in command.params:
            missing += [
                f"{name} {flag}"
                for flag in parameter.opts
                if isinstance(parameter, click.Option) and flag not in REFERENCE
            ]
    assert not missing


def test_every_option_of_a_command_has_its_help() -> None:
    bare = [
        f"{name} {parameter.opts[0]}"
        for name, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help and parameter.name != "port"
    ]
    assert not bare


def test_every_route_is_in_the_reference() -> None:
    app = (ROOT / "src" / "sameworld" / "server" / "app.py").read_text()
    (said,) = set(re.findall(r'expected="(POST /v1/models.*?)"', app)) or {""}

    assert said
    for route in re.findall(r"/[\w/{}]+", said):
        assert f"{route}`" in REFERENCE, route


def test_every_metric_is_in_the_reference() -> None:
    from sameworld.server.metrics import Metrics

    names = re.findall(r"# TYPE (\w+)", Metrics().text(0).decode())

    assert names
    for name in names:
        assert f"`{name}`" in REFERENCE


def test_every_cause_of_a_difference_is_explained() -> None:
    from sameworld.evaluation.prove import Difference

    assert dataclasses.is_dataclass(Difference)
    causes = re.search(r"cause: (.+?)\.\n", Difference.__doc__ or "", re.DOTALL)
    assert causes is not None
    page = (DOCS / "how-to.md").read_text()
    missing = [
        cause
        for cause in re.split(r",\s+", causes[1])
        if cause != "expired" and f"| {cause} |" not in page  # a declared cause that nothing gives yet
    ]
    assert not missing


def test_the_glossary_is_in_order_and_says_each_word_once() -> None:
    assert sorted(GLOSSARY, key=lambda word: word.lower().replace("-", " ")) == GLOSSARY
    assert len(set(GLOSSARY)) == len(GLOSSARY)


def test_the_glossary_has_the_words_of_the_code() -> None:
    words = {word.lower() for word in GLOSSARY}
    needed = {
        "source", "feature", "label", "model", "moment", "world", "event time", "available time", "as of",
        "entity", "window", "training set", "prediction log", "propensity", "shadow", "canary", "calibration",
        "drift", "fallback", "tier", "bundle", "cutover", "sequence", "stamp", "snapshot", "replay", "gap",
    } | {name.lower() for name in ("Source", "Label", "Model", "Rate", "Moment")}  # fmt: skip

    assert needed <= words


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_synonym_stands_for_a_word_of_the_glossary(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL).lower()

    assert not {word: instead for word, instead in SYNONYMS.items() if re.search(rf"\b{word}s?\b", prose)}


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((DOCS / "decisions").glob("*.md"))]

    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))
