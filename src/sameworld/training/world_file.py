"""A world file -> the models it declares, with everything that is wrong with it at once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sameworld.definitions.fallbacks import Rule
from sameworld.definitions.feature import Category, Derive
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.model import Model
from sameworld.definitions.problems import collecting
from sameworld.errors import DefinitionError, Problems, SameworldError, nearest


@dataclass(frozen=True)
class WorldFile:
    """What a world file declares.

    Args:
        path: the file.
        models: name -> model.
    """

    path: Path
    models: dict[str, Model]

    @property
    def folder(self) -> Path:
        """What relative paths in the file start from."""
        return self.path.parent

    def model(self, name: str | None) -> Model:
        """Give the model of a name, or the only one.

        Raises:
            DefinitionError: there is no such model, or a name is needed.
        """
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name is None or name not in self.models:
            raise DefinitionError(
                f"There is no model {name!r} in the world." if name else "The world has several models.",
                where=str(self.path),
                expected=f"one of: {nearest(name or '', self.models)}",
                do="name the model.",
            )
        return self.models[name]


def load_world(path: Path) -> WorldFile:
    """Read a world file.

    Raises:
        DefinitionError: there is no such file, it does not run, or it declares no model.
        Problems: everything that is wrong with its definitions.
    """
    path = path.resolve()
    if not path.exists():
        raise DefinitionError(
            "The world file does not exist.", where=str(path), do="give its path with --world."
        )
    name = f"sameworld_world_{content_hash(str(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(
            "The world is not a Python file.", where=str(path), do="give a .py file with --world."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    failure: Exception | None = None
    with collecting() as problems:
        try:
            spec.loader.exec_module(module)
        except SameworldError as error:
            problems.append(error)
        except Exception as error:  # noqa: BLE001 # the edge: a user's file may raise anything, and is told what
            failure = error
    if problems:
        raise Problems(f"The world {path.name}", problems)
    if failure is not None:
        trace = failure.__traceback__
        line = 0
        while trace is not None:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(path) else line
            trace = trace.tb_next
        if isinstance(failure, SyntaxError) and failure.filename == str(path):
            line = failure.lineno or 0
        raise DefinitionError(
            f"The world file does not run: {type(failure).__name__}: {failure}",
            where=f"{path}:{line}",
            do="correct the file; it is ordinary Python.",
        ) from failure
    models = {value.name: value for value in vars(module).values() if isinstance(value, Model)}
    if not models:
        raise DefinitionError(
            "The world declares no model.",
            where=str(path),
            expected="a module-level sw.Model(...)",
            do="add one.",
        )
    return WorldFile(path, models)


def functions_of(path: Path) -> list[NamedFunction]:
    """Give the functions that a world file's models are derived with."""
    return functions_in(load_world(path).models.values())


def functions_in(models: Iterable[Model]) -> list[NamedFunction]:
    """Give the functions that models are derived with, and those of their rules."""
    found: list[NamedFunction] = []
    for model in models:
        for feature in model.features.values():
            plain = feature.of if isinstance(feature, Category) else feature
            if isinstance(plain, Derive):
                found.append(plain.function)
        found += [fallback.function for fallback in model.fallbacks if isinstance(fallback, Rule)]
    return found
