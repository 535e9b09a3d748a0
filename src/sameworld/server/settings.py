"""Settings of `sameworld serve` from a file, the environment and flags, in this order of increasing precedence; what nobody knows is an error."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sameworld.errors import DefinitionError, Problems, SameworldError, nearest
from sameworld.server.config import ENVIRONMENT
from sameworld.stores.named import without_password

PREFIX = "SAMEWORLD_"
OTHERS = frozenset({ENVIRONMENT, "SAMEWORLD_CONFIG", "SAMEWORLD_URL"})
"""Variables that are read elsewhere."""
_LISTS = ("models", "cache")
_PATHS = ("world", "registry", "state")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `sameworld serve` can be told; see its `--help`."""

    world: str = "world.py"
    registry: str = ".sameworld"
    state: str = ".sameworld/state"
    models: list[str] = []
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    replay: bool = False
    cutover: str | None = None
    durability: Literal["process", "disk"] = "disk"
    prediction_durability: Literal["process", "disk"] = "process"
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    drain: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    guarded_memory: str = "2GB"
    memory: str | None = None
    cache: list[str] = []
    store: str | None = None
    follow: bool = False
    keep_predictions: str | None = None
    keep_predictions_for: str | None = None


@dataclass(frozen=True)
class Resolved:
    """Settings, and where each of them was said.

    Args:
        origins: name -> a file, a variable, "flag" or "default".
    """

    settings: Settings
    origins: dict[str, str]

    def shown(self) -> list[dict[str, Any]]:
        """Give name, value and origin of every setting; a token is not shown."""
        values = msgspec.to_builtins(self.settings)
        values["token"] = "(set)" if values["token"] else None
        values["store"] = without_password(values["store"]) if values["store"] else None
        return [
            {"setting": name, "value": value, "from": self.origins[name]} for name, value in values.items()
        ]


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Resolved:
    """Give the settings.

    Args:
        flags: those that were given.
        environment: its variables `SAMEWORLD_*`.
        file: a TOML file with a table `[serve]`; paths in it start from its folder.

    Raises:
        Problems: names that nobody knows, values of another type; all of them.
    """
    names = Settings.__struct_fields__
    given: dict[str, tuple[Any, str]] = {}
    problems: list[SameworldError] = []
    if file is not None:
        for name, value in _read(file, problems).items():
            if name in names:
                placed = str(file.parent / value) if name in _PATHS and isinstance(value, str) else value
                given[name] = placed, str(file)
            else:
                problems.append(_unknown(f"setting {name!r}", name, names, f"[serve] of {file}"))
    variables = {f"{PREFIX}{name.upper()}": name for name in names}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in OTHERS:
            continue
        if variable in variables:
            name = variables[variable]
            given[name] = text.replace(",", " ").split() if name in _LISTS else text, variable
        else:
            problems.append(
                _unknown(f"variable {variable}", variable, [*variables, *OTHERS], "the environment")
            )
    given |= {name: (value, "flag") for name, value in flags.items()}
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        if field.name in given:
            value, origin = given[field.name]
            try:
                values[field.name] = msgspec.convert(value, field.type, strict=not isinstance(value, str))
            except msgspec.ValidationError as error:
                problems.append(
                    DefinitionError(
                        f"Setting {field.name!r} has a value that is none.",
                        where=origin,
                        expected=str(error),
                        found=repr(value),
                        do="correct it.",
                    )
                )
    if problems:
        raise Problems("The configuration", problems)
    origins = {name: given[name][1] if name in given else "default" for name in names}
    return Resolved(Settings(**values), origins)


def _read(file: Path, problems: list[SameworldError]) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DefinitionError(
            "The configuration file cannot be read.",
            where=str(file),
            expected="TOML with a table [serve]",
            found=str(error),
            do="correct the file, or give another with --config.",
        ) from error
    for name in found:
        if name != "serve":
            problems.append(_unknown(f"table or setting {name!r}", name, ["serve"], str(file)))
    serve = found.get("serve", {})
    if not isinstance(serve, dict):
        problems.append(DefinitionError("'serve' is not a table.", where=str(file), do="write [serve]."))
        return {}
    return serve


def _unknown(what: str, name: str, known: Any, where: str) -> DefinitionError:
    return DefinitionError(
        f"Nobody knows the {what}.",
        where=where,
        expected=f"nearest: {nearest(name, known)}",
        do="correct its name, or take it out.",
    )
