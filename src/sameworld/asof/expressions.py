"""Conditions of `where=`: one true-or-false expression that the row alone decides, the same on every engine.

DuckDB parses and binds, here as everywhere; nothing is run. Binding happens against the pinned types, because
types are meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from sameworld.asof.rows import quoted
from sameworld.asof.schema import Schema, supported
from sameworld.errors import DefinitionError, nearest

_EXPECTED = "one true-or-false expression that the row's own columns decide"
# DuckDB marks these as consistent, or does not list them, yet they read the clock or the installation.
# So does `age` of one argument.
_MARKED_WRONGLY = frozenset(
    {
        "current_localtime",
        "current_localtimestamp",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "version",
    }
)


@dataclass(frozen=True)
class _Functions:
    """DuckDB's functions by name, in lower case."""

    scalars: frozenset[str]
    aggregates: frozenset[str]
    undecided: frozenset[str]
    macros: dict[str, tuple[str, ...]]


def check_expression(
    con: duckdb.DuckDBPyConnection, expression: str, schema: Schema, where: str
) -> list[DefinitionError]:
    """Give what keeps a condition from being one deterministic expression over the row's own columns.

    Args:
        con: any connection; it is asked to parse and to bind, never to run the condition.
        expression: the condition.
        schema: the source's columns.
        where: whose condition it is, for the errors.
    """
    cursor = con.cursor()
    try:
        tree = _parsed(cursor, expression)
        if isinstance(tree, str):
            return [
                _problem(
                    expression,
                    "is not one expression",
                    where,
                    found=tree,
                    do="write one condition, without comments, ';' or unmatched parentheses.",
                )
            ]
        problems = _unique(_problems(cursor, expression, tree, schema, where))
        return problems or _unbound(cursor, expression, schema, where)
    finally:
        cursor.close()


def _problem(
    expression: str, reason: str, where: str, *, expected: str = _EXPECTED, found: str = "", do: str
) -> DefinitionError:
    return DefinitionError(
        f"The condition {expression!r} {reason}.", where=where, expected=expected, found=found, do=do
    )


def _unique(problems: Iterable[DefinitionError]) -> list[DefinitionError]:
    return list({problem.text(): problem for problem in problems}.values())


def _parsed(cursor: duckdb.DuckDBPyConnection, expression: str) -> Any:
    """Give the expression's syntax tree, or in words why it is not one expression."""
    trees: list[Any] = []
    # In parentheses is how it is used; without them is what was written. `a) OR (b`, `a AS b` and `a -- b`
    # are only one of the two.
    for text in (f"SELECT {expression}", f"SELECT ({expression})"):
        answer = _serialized(cursor, text)
        if answer["error"]:
            return str(answer["error_message"]).splitlines()[0]
        if len(answer["statements"]) != 1:
            return f"{len(answer['statements'])} statements"
        trees.append(_without_places(answer["statements"][0]["node"]))
    if trees[0] != trees[1]:
        return "something that means another thing in parentheses"
    node = trees[0]
    empty = ("where_clause", "having", "qualify", "sample", "group_expressions", "modifiers")
    if (
        node.get("type") != "SELECT_NODE"
        or len(node["select_list"]) != 1
        or node["from_table"]["type"] != "EMPTY"
        or any(node[part] for part in empty)
    ):
        return "a whole query"
    return node["select_list"][0]


def _serialized(cursor: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    (serialized,) = cursor.execute("SELECT json_serialize_sql(?)", [text]).fetchone() or ("{}",)
    return json.loads(serialized)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_places(item)
            for name, item in value.items()
            if not name.startswith("query_location")
        }
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return value


def _functions(cursor: duckdb.DuckDBPyConnection) -> _Functions:
    rows = cursor.execute(
        "SELECT lower(function_name), function_type, stability, macro_definition FROM duckdb_functions()"
    ).fetchall()
    of_kind = {
        kind: frozenset(name for name, its, _, _ in rows if its == kind)
        for kind in ("scalar", "aggregate", "macro")
    }
    macros = {
        name: tuple(text for other, its, _, text in rows if other == name and its == "macro")
        for name in of_kind["macro"]
    }
    undecided = {name for name, kind, stability, _ in rows if kind == "scalar" and stability != "CONSISTENT"}
    return _Functions(
        of_kind["scalar"],
        of_kind["aggregate"] - of_kind["scalar"] - of_kind["macro"],
        frozenset(undecided | _MARKED_WRONGLY),
        macros,
    )


def _problems(
    cursor: duckdb.DuckDBPyConnection, expression: str, tree: Any, schema: Schema, where: str
) -> Iterator[DefinitionError]:
    functions = _functions(cursor)
    known = {name.lower(): name for name in schema}
    usable = supported(schema)
    for kind, name in _uses(cursor, functions, tree, frozenset()):
        match kind:
            case "column" if name.lower() in functions.undecided and name.lower() not in known:
                yield _undecided(expression, name, where)
            case "column" if name.lower() not in known:
                yield _problem(
                    expression,
                    f"names {name!r}, which is not a column of the rows",
                    where,
                    expected=f"nearest columns: {nearest(name, usable)}",
                    do="correct the name.",
                )
            case "column" if known[name.lower()] not in usable:
                column = known[name.lower()]
                yield _problem(
                    expression,
                    f"names {column!r}, whose type has no rule",
                    where,
                    expected="a number, text, boolean, date or timestamp column",
                    found=schema[column],
                    do="cast the column in the source's own query.",
                )
            case "undecided":
                yield _undecided(expression, f"{name}()", where)
            case "aggregate":
                yield _problem(
                    expression,
                    f"calls the aggregate {name}()",
                    where,
                    do="a condition sees one row; aggregate with the feature, as in source.by(...).sum(...).",
                )
            case "several rows":
                yield _problem(
                    expression,
                    f"calls {name}(), which is about several rows",
                    where,
                    do="compute it as a column in the source's own query.",
                )
            case "subquery":
                yield _problem(
                    expression,
                    "has a subquery",
                    where,
                    do="compute it as a column in the source's own query; write x IN (1, 2) for a list.",
                )
            case "other":
                yield _problem(
                    expression, f"has {name}", where, do="name the columns and write the values themselves."
                )
            case _:
                pass


def _undecided(expression: str, name: str, where: str) -> DefinitionError:
    return _problem(
        expression,
        f"calls {name}, whose value the row does not decide",
        where,
        do="compare the row's own columns; a window already limits rows to times before the moment.",
    )


_OTHERS = {
    "PARAMETER": "a parameter",
    "STAR": "a '*' for all columns",
    "POSITIONAL_REFERENCE": "a column by its position",
    "DEFAULT": "the word DEFAULT",
}


def _uses(
    cursor: duckdb.DuckDBPyConnection,
    functions: _Functions,
    node: Any,
    bound: frozenset[str],
    through: frozenset[str] = frozenset(),
) -> Iterator[tuple[str, str]]:
    """Give (kind, name) of what needs a look in a syntax tree: columns, and what must not be there.

    Args:
        node: the tree.
        bound: names that stand for a lambda's parameters here.
        through: the macros whose definition this is part of.
    """
    if isinstance(node, list):
        for item in node:
            yield from _uses(cursor, functions, item, bound, through)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind == "COLUMN_REF":
        names = node["column_names"]
        if names[0].lower() not in bound:
            # Columns with a rule have no parts: a name with dots is a table's column or a struct's field.
            yield "column", ".".join(names)
        return
    if kind == "SUBQUERY":
        yield "subquery", ""
        return
    if kind == "LAMBDA" and node.get("syntax_type") != "SINGLE_ARROW":
        parameters = {name.lower() for _, name in _uses(cursor, functions, node["lhs"], frozenset(), through)}
        yield from _uses(cursor, functions, node["expr"], bound | parameters, through)
        return
    if kind == "WINDOW":
        yield "several rows", node["function_name"]
    elif kind in _OTHERS:
        yield "other", _OTHERS[kind]
    elif kind == "FUNCTION":
        yield from _calls(cursor, functions, node["function_name"].lower(), len(node["arguments"]), through)
    for part in node.values():
        yield from _uses(cursor, functions, part, bound, through)


def _calls(
    cursor: duckdb.DuckDBPyConnection,
    functions: _Functions,
    name: str,
    arguments: int,
    through: frozenset[str],
) -> Iterator[tuple[str, str]]:
    """Give (kind, name) of what must not be there about a call; a macro is what its definition is."""
    if name in functions.undecided or (name == "age" and arguments == 1):
        yield "undecided", name
    elif name in functions.aggregates:
        yield "aggregate", "count" if name == "count_star" else name
    elif name == "unnest":
        yield "several rows", name
    elif name not in functions.scalars and name not in through:
        for definition in functions.macros.get(name, ()):
            tree = _serialized(cursor, f"SELECT {definition}").get("statements", [])
            for kind, inner in _uses(cursor, functions, tree, frozenset(), through | {name}):
                # A macro's columns are its parameters, or functions that are called without parentheses.
                if kind != "column" or inner.lower() in functions.undecided:
                    yield ("undecided" if kind == "column" else kind), name


def _unbound(
    cursor: duckdb.DuckDBPyConnection, expression: str, schema: Schema, where: str
) -> list[DefinitionError]:
    """Give what DuckDB says about the expression's types."""
    columns = (
        ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in supported(schema).items())
        or "NULL AS nothing"
    )
    try:
        row = cursor.execute(
            f"DESCRIBE SELECT ({expression}) AS condition FROM (SELECT {columns})"
        ).fetchone()
    except duckdb.Error as error:
        message = str(error).splitlines()[0]
        return [
            _problem(
                expression,
                "does not fit the columns' types",
                where,
                found=message,
                do="correct it, or cast explicitly.",
            )
        ]
    kind = row[1] if row else ""
    if kind != "BOOLEAN":
        return [
            _problem(expression, "is not true or false", where, found=kind, do="compare it with something.")
        ]
    return []
