"""A named function whose meaning has a hash: its code, and the constants and functions that the code refers to."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from sameworld.definitions.hashing import content_hash
from sameworld.definitions.problems import report
from sameworld.errors import DefinitionError

_PLAIN = (int, float, str, bytes, bool, type(None))


class NamedFunction:
    """A function together with its name and the hash of its code; equal when the code is."""

    def __init__(self, name: str, code: str, call: Callable[..., Any] | None) -> None:
        self.name = name
        self.code = code
        self.call = call

    @classmethod
    def of(cls, function: object) -> NamedFunction:
        """Hash a function by its code and constants.

        Raises:
            DefinitionError: it is not a plain named function, its source cannot be read, or it refers to something without a stable content.
        """
        name = getattr(function, "__qualname__", repr(function))
        try:
            if not isinstance(function, types.FunctionType):
                raise _Unhashable("it is not a plain Python function")
            if function.__name__ == "<lambda>":
                raise _Unhashable("it is a lambda, which has no name")
            return cls(function.__name__, content_hash(_content(function, set())), function)
        except _Unhashable as reason:
            report(
                DefinitionError(
                    f"The function {name} cannot be hashed: {reason}.",
                    where=_where(function),
                    expected="a function made with def whose code and constants decide what it gives",
                    do="define it at the top of a module; pass what it needs as inputs or module-level constants (numbers, text, tuples of them).",
                )
            )
            return cls(name, "", None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedFunction) and (self.name, self.code) == (other.name, other.code)

    def __hash__(self) -> int:
        return hash((self.name, self.code))

    def __repr__(self) -> str:
        return f"NamedFunction({self.name}, code={self.code})"


class _Unhashable(Exception):
    """Why a function has no stable content."""


def _where(function: object) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def _content(function: types.FunctionType, seen: set[types.FunctionType]) -> Any:
    if function in seen:
        return f"again {function.__name__}"
    seen.add(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError) as error:
        raise _Unhashable("its source cannot be read") from error
    body = tree.body[0]
    if isinstance(body, ast.FunctionDef) and ast.get_docstring(body) is not None:
        body.body = body.body[1:] or [ast.Pass()]
    names = {
        name: function.__globals__[name]
        for name in _global_names(function.__code__)
        if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError as error:
            raise _Unhashable(f"it refers to {name}, which has no value yet") from error
    refers = {name: _constant(name, names[name], seen) for name in sorted(names)}
    defaults = [function.__defaults__, function.__kwdefaults__]
    return {"code": _shape(body), "refers": refers, "defaults": _constant("defaults", defaults, seen)}


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Give the global names that code reads, that of comprehensions and functions inside it included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _shape(node: Any) -> Any:
    """Give a syntax tree as plain data without its empty parts: newer Pythons add some, and the hash must not change."""
    if isinstance(node, ast.AST):
        parts = {name: part for name, part in ast.iter_fields(node) if part is not None and part != []}
        return [type(node).__name__, {name: _shape(part) for name, part in parts.items()}]
    return [_shape(item) for item in node] if isinstance(node, list) else repr(node)


def _constant(name: str, value: Any, seen: set[types.FunctionType]) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple | list | set | frozenset):
        items = [_constant(name, item, seen) for item in value]
        return [
            type(value).__name__,
            sorted(items, key=repr) if isinstance(value, set | frozenset) else items,
        ]
    if isinstance(value, dict):
        return ["dict", [[_constant(name, k, seen), _constant(name, v, seen)] for k, v in value.items()]]
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, types.FunctionType):
        if value.__module__.split(".")[0] in {"numpy", "pyarrow", "math"}:
            return f"function {value.__module__}.{value.__qualname__}"
        return _content(value, seen)
    if isinstance(value, types.BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    raise _Unhashable(f"it refers to {name}, a {type(value).__name__}")
