"""A server's settings come from a file, the environment and flags; what nobody knows is an error that names the nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sameworld.cli.main import main
from sameworld.errors import DefinitionError, Problems, RequestError
from sameworld.server.config import ServerConfig
from sameworld.server.settings import Settings, resolve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sameworld.toml"
    path.write_text(
        '[serve]\nport = 1\nhost = "127.0.0.2"\nstate = "kept"\nmodels = ["a", "b=c"]\nreplay = true\n'
    )
    return path


def test_flags_come_before_variables_and_these_before_the_file(file: Path) -> None:
    resolved = resolve({"port": 3}, {"SAMEWORLD_PORT": "2", "SAMEWORLD_HOST": "127.0.0.3", "PATH": "x"}, file)
    assert (resolved.settings.port, resolved.settings.host, resolved.settings.models) == (
        3,
        "127.0.0.3",
        ["a", "b=c"],
    )
    assert resolved.settings.state == str(file.parent / "kept")
    assert resolved.settings.durability == "disk"
    assert {name: resolved.origins[name] for name in ("port", "host", "models", "durability")} == {
        "port": "flag",
        "host": "SAMEWORLD_HOST",
        "models": str(file),
        "durability": "default",
    }


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("SAMEWORLD_REPLAY", "true", True),
        ("SAMEWORLD_REPLAY", "0", False),
        ("SAMEWORLD_PORT", "81", 81),
        ("SAMEWORLD_MODELS", "a, b=c d", ["a", "b=c", "d"]),
        ("SAMEWORLD_MEMORY", "2GB", "2GB"),
        ("SAMEWORLD_TOKEN", "123", "123"),
    ],
)
def test_a_variable_is_read_as_its_setting_is(variable: str, text: str, value: object) -> None:
    settings = resolve({}, {variable: text}, None).settings
    assert getattr(settings, variable.removeprefix("SAMEWORLD_").lower()) == value


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "sameworld.toml"
    file.write_text('other = 1\n[serve]\nprt = 1\ndurability = "tape"\n')
    with pytest.raises(Problems) as caught:
        resolve({}, {"SAMEWORLD_PORT": "many", "SAMEWORLD_TOKN": "x", "SAMEWORLD_SERVER": "{}"}, file)
    assert str(caught.value) == (
        "The configuration has 5 problems.\n"
        "1. Nobody knows the table or setting 'other'.\n"
        f"  in: {file}\n"
        "  expected: nearest: serve\n"
        "  do: correct its name, or take it out.\n"
        "2. Nobody knows the setting 'prt'.\n"
        f"  in: [serve] of {file}\n"
        "  expected: nearest: port\n"
        "  do: correct its name, or take it out.\n"
        "3. Nobody knows the variable SAMEWORLD_TOKN.\n"
        "  in: the environment\n"
        "  expected: nearest: SAMEWORLD_TOKEN, SAMEWORLD_STORE, SAMEWORLD_CONFIG\n"
        "  do: correct its name, or take it out.\n"
        "4. Setting 'port' has a value that is none.\n"
        "  in: SAMEWORLD_PORT\n"
        "  expected: Expected `int`, got `str`\n"
        "  found: 'many'\n"
        "  do: correct it.\n"
        "5. Setting 'durability' has a value that is none.\n"
        f"  in: {file}\n"
        "  expected: Invalid enum value 'tape'\n"
        "  found: 'tape'\n"
        "  do: correct it."
    )


@pytest.mark.parametrize("text", ["[serve", "\x00", None])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "sameworld.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DefinitionError, match="The configuration file cannot be read"):
        resolve({}, {}, file)


def test_show_config_says_where_each_setting_was_said_and_shows_no_token(file: Path) -> None:
    ran = CliRunner().invoke(
        main,
        ["serve", "plain", "--config", str(file), "--show-config", "--json", "--durability", "process"],
        env={"SAMEWORLD_TOKEN": "very secret"},
    )
    assert ran.exit_code == 0, ran.output
    assert "very secret" not in ran.output
    shown = {each["setting"]: (each["value"], each["from"]) for each in json.loads(ran.stdout)["settings"]}
    assert set(shown) == set(Settings.__struct_fields__)
    assert shown["token"] == ("(set)", "SAMEWORLD_TOKEN")
    assert shown["models"] == (["plain"], "flag")
    assert shown["durability"] == ("process", "flag")
    assert shown["port"] == (1, str(file))
    assert shown["registry"] == (".sameworld", "default")


def test_every_setting_is_a_flag() -> None:
    flags = {parameter.name for parameter in main.commands["serve"].params}
    assert set(Settings.__struct_fields__) - {"token"} <= flags


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_a_server_that_can_be_reached_from_outside_needs_a_token(host: str) -> None:
    given = {"registry": "r", "state": "s", "models": {}, "host": host}
    with pytest.raises(RequestError, match="without a token"):
        ServerConfig(**given).check()  # type: ignore[arg-type] # as the command line has them
    ServerConfig(**given, token="x").check()  # type: ignore[arg-type]
