"""A condition is one expression that the row alone decides."""

import duckdb
import pytest

from sameworld.asof.expressions import check_expression

SCHEMA = {
    "x": "INTEGER",
    "s": "VARCHAR",
    "ts": "TIMESTAMP WITH TIME ZONE",
    "on time": "BOOLEAN",
    "parts": "INTEGER[]",
}
EXPECTED = "  expected: one true-or-false expression that the row's own columns decide\n"


@pytest.fixture(scope="module")
def con():
    with duckdb.connect() as made:
        yield made


def first_line(con, expression: str) -> str:
    (problem,) = check_expression(con, expression, SCHEMA, "feature 'f'")
    return str(problem).splitlines()[0].removeprefix(f"The condition {expression!r} ")


@pytest.mark.parametrize(
    "expression",
    [
        "x > 0",
        'X > 0 AND "on time"',
        "s LIKE 'a%' AND hour(ts) = 3 OR s IS NULL",
        "x BETWEEN 1 AND 2 AND s IS NOT DISTINCT FROM 'u' AND x IN (1, 2)",
        "age(ts, timestamptz '2020-01-01') > interval '1 day'",
        "CASE WHEN x > 1 THEN true ELSE x // 0 = 1 END",
        "list_transform([x], lambda q: q + 1)[1] > 1",
        "list_sum([x, 1]) > 1",
        "(x > 0) AND (x < 3)",
        "true",
    ],
)
def test_what_the_row_decides_is_a_condition(con, expression: str) -> None:
    assert check_expression(con, expression, SCHEMA, "feature 'f'") == []


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("x > (SELECT 1)", "has a subquery."),
        ("EXISTS (SELECT 1)", "has a subquery."),
        ("sum(x) > 1", "calls the aggregate sum()."),
        ("count(*) > 1", "calls the aggregate count()."),
        ("wavg(x, x) > 1", "calls the aggregate wavg()."),
        ("sum(x) OVER () > 1", "calls sum(), which is about several rows."),
        ("unnest([x]) > 1", "calls unnest(), which is about several rows."),
        ("now() > ts", "calls now(), whose value the row does not decide."),
        ("random() > 0.5", "calls random(), whose value the row does not decide."),
        ("uuid()::VARCHAR = s", "calls uuid(), whose value the row does not decide."),
        (
            "current_setting('threads')::INTEGER = x",
            "calls current_setting(), whose value the row does not decide.",
        ),
        ("current_date > ts", "calls current_date, whose value the row does not decide."),
        ("current_timestamp > ts", "calls current_timestamp, whose value the row does not decide."),
        ("localtimestamp > ts", "calls localtimestamp, whose value the row does not decide."),
        ("age(ts) > interval '1 day'", "calls age(), whose value the row does not decide."),
        ("ago(interval '1 day') > ts", "calls ago(), whose value the row does not decide."),
        ("try(random()) > 0.5", "calls random(), whose value the row does not decide."),
        ("x > ?", "has a parameter."),
        ("x > $a", "has a parameter."),
        ("COLUMNS('x') > 1", "has a '*' for all columns."),
        ("#1 > 1", "has a column by its position."),
        ("rowid = 1", "names 'rowid', which is not a column of the rows."),
        ("other.x = 1", "names 'other.x', which is not a column of the rows."),
        ("list_transform([x], lambda q: q + y)[1] > 1", "names 'y', which is not a column of the rows."),
        ("parts[1] > 1", "names 'parts', whose type has no rule."),
        ("s > 1", "does not fit the columns' types."),
        ("nothing_such(x)", "does not fit the columns' types."),
        ("x", "is not true or false."),
        ("NULL", "is not true or false."),
        ("", "is not one expression."),
        ("x > 1; SELECT 1", "is not one expression."),
        ("x > 1) OR (x < 2", "is not one expression."),
        ("x > 1 -- and so on", "is not one expression."),
        ("x > 1 AS y", "is not one expression."),
        ("x > 1 FROM t", "is not one expression."),
        ("x > 1, x", "is not one expression."),
        ("x > 1 ORDER BY 1", "is not one expression."),
        ("DISTINCT x > 1", "is not one expression."),
    ],
)
def test_what_the_row_does_not_decide_is_refused(con, expression: str, reason: str) -> None:
    assert first_line(con, expression) == reason


def test_types_are_meaning(con) -> None:
    (problem,) = check_expression(con, "s > 1", SCHEMA, "feature 'f'")
    assert str(problem) == (
        "The condition 's > 1' does not fit the columns' types.\n"
        "  in: feature 'f'\n"
        + EXPECTED
        + "  found: Binder Error: Cannot compare values of type VARCHAR and type INTEGER_LITERAL "
        "- an explicit cast is required\n"
        "  do: correct it, or cast explicitly."
    )


def test_every_problem_of_a_condition_is_told(con) -> None:
    problems = check_expression(con, "random() > y AND now() > z", SCHEMA, "feature 'f'")
    assert [
        problem.what.removeprefix("The condition 'random() > y AND now() > z' ") for problem in problems
    ] == [
        "calls random(), whose value the row does not decide.",
        "names 'y', which is not a column of the rows.",
        "calls now(), whose value the row does not decide.",
        "names 'z', which is not a column of the rows.",
    ]


def test_a_column_may_be_called_like_a_function(con) -> None:
    assert check_expression(con, "current_date > 3", {"current_date": "INTEGER"}, "feature 'f'") == []


def test_nothing_is_run(con) -> None:
    assert check_expression(con, "(1 / 0) > x AND 'a'::INTEGER > x", SCHEMA, "feature 'f'") == []
