"""Definitions that do not fit their data are refused with everything that is wrong, at once."""

import pytest

import sameworld as sw
from sameworld.asof.check import check_model
from sameworld.definitions.source import Source

INSTANT = "TIMESTAMP WITH TIME ZONE"
ROWS = {
    "user": "VARCHAR",
    "number": "BIGINT",
    "amount": "DOUBLE",
    "clicked_at": INSTANT,
    "naive": "TIMESTAMP",
    "huge": "HUGEINT",
    "is_spam": "BOOLEAN",
}
REQUEST = {"asked_at": INSTANT, "user": "VARCHAR", "number": "INTEGER", "distance": "INTEGER", "due": INSTANT}
MOMENTS = sw.Moments("moments.parquet", at="asked_at")
CLICKS = sw.Source("clicks", "clicks.parquet", event_time="clicked_at", available_at=sw.delay("1m"))
COUNT = {"clicks": CLICKS.by("user").count()}


def total(a, b):
    return a + b


def problems(
    features=COUNT,
    label=None,
    *,
    source: Source = CLICKS,
    rows=ROWS,
    request=REQUEST,
    moments=MOMENTS,
    fallbacks=(),
):
    schemas = {source.content: rows, CLICKS.content: rows}
    return [
        str(problem)
        for problem in check_model(features, label, moments, schemas, request, fallbacks=fallbacks)
    ]


def source(**changed):
    return sw.Source(
        "clicks", "clicks.parquet", **({"event_time": "clicked_at", "available_at": sw.delay("1m")} | changed)
    )


def of_source(rows=ROWS, **changed):
    given = source(**changed)
    return problems({"clicks": given.by("user").count()}, source=given, rows=rows)


def test_definitions_that_fit_have_no_problems() -> None:
    label = sw.Label(CLICKS.by("user").count() > 0, within="1d")
    features = {
        "clicks": CLICKS.where("amount > 0 AND NOT is_spam")
        .by("user", "number")
        .sum("amount", over=["1h", "1d"]),
        "who": sw.field("user").category(),
        "hour": sw.field("due").hour(timezone="Europe/Berlin"),
        "last": CLICKS.by("user").last("user").category(),
        "distance": sw.field("distance"),
        "both": sw.derive(total, "clicks_1h", "distance"),
        "again": sw.derive(total, "both", "number"),
    }
    assert problems(features, label, fallbacks=(sw.Rate(by="user"), sw.Rate(), sw.Constant(0.5))) == []


def test_a_missing_column_of_a_source_is_named_with_the_nearest() -> None:
    assert of_source(event_time="click_at") == [
        "Source 'clicks' has no column 'click_at'.\n"
        "  in: source 'clicks', event_time='click_at'\n"
        "  expected: columns of 'clicks' nearest to it: clicked_at, is_spam\n"
        "  do: correct the name, or add the column."
    ]


def test_all_problems_of_a_source_come_at_once() -> None:
    found = of_source(event_time="when", available_at="seen", id="key", version="revision", deleted="gone")
    assert [text.splitlines()[0] for text in found] == [
        f"Source 'clicks' has no column {name!r}." for name in ("when", "seen", "key", "revision", "gone")
    ]


def test_a_naive_timestamp_is_refused() -> None:
    assert of_source(event_time="naive") == [
        "Column 'naive' of source 'clicks' has naive timestamps.\n"
        "  in: source 'clicks'\n"
        "  expected: timestamps with a time zone, or timezone= on sw.Source\n"
        "  found: TIMESTAMP\n"
        "  do: name the zone whose clocks they show, for example timezone='UTC'."
    ]


@pytest.mark.parametrize("role", ["event_time", "available_at"])
def test_a_naive_timestamp_of_a_source_with_a_timezone_is_fine(role: str) -> None:
    assert of_source(**{role: "naive"}, timezone="America/New_York") == []


def test_an_available_time_that_is_no_timestamp_is_refused() -> None:
    assert of_source(available_at="number") == [
        "Column 'number' of source 'clicks' is no timestamp.\n"
        "  in: source 'clicks', available_at='number'\n"
        "  expected: a timestamp with a time zone, or a naive one and timezone= on sw.Source\n"
        "  found: BIGINT\n"
        "  do: name another column, or cast it in the source's own query: to_timestamp(seconds)."
    ]


def test_a_version_is_an_integer_or_a_timestamp() -> None:
    assert of_source(id="user", version="number") == []
    assert of_source(id="user", version="clicked_at") == []
    assert of_source(id="user", version="amount") == [
        "Source 'clicks' has version='amount', which has the wrong type.\n"
        "  in: source 'clicks'\n"
        "  expected: an integer or a timestamp\n"
        "  found: DOUBLE\n"
        "  do: name another column, or cast 'amount' in the source's own query."
    ]


def test_deleted_is_a_boolean() -> None:
    assert of_source(id="user", deleted="is_spam") == []
    assert of_source(id="user", deleted="number") == [
        "Source 'clicks' has deleted='number', which has the wrong type.\n"
        "  in: source 'clicks'\n"
        "  expected: a boolean\n"
        "  found: BIGINT\n"
        "  do: name another column, or cast 'number' in the source's own query."
    ]


def test_two_sources_of_one_name_are_refused() -> None:
    other = source(available_at=sw.delay("2m"))
    features = {"a": CLICKS.by("user").count(), "b": other.by("user").count()}
    assert problems(features, source=other) == [
        "Two different sources are called 'clicks'.\n"
        "  in: source 'clicks'\n"
        "  do: give each source its own name."
    ]


def test_a_missing_column_of_a_feature_is_named_with_the_nearest() -> None:
    assert problems({"spent": CLICKS.by("user").sum("amont")}) == [
        "Feature 'spent' reads source 'clicks', which has no column 'amont'.\n"
        "  in: feature 'spent', sum('amont')\n"
        "  expected: columns of 'clicks' nearest to it: amount\n"
        "  do: correct the name, or add the column."
    ]


def test_a_type_without_a_rule_is_refused() -> None:
    assert problems({"spent": CLICKS.by("user").sum("huge")}) == [
        "Column 'huge' of source 'clicks' has a type without a rule.\n"
        "  in: feature 'spent', sum('huge')\n"
        "  expected: a number up to 64 bits, text, boolean, date or timestamp\n"
        "  found: HUGEINT\n"
        "  do: cast the column in the source's own query."
    ]


def test_an_aggregation_takes_only_its_types() -> None:
    assert problems({"spent": CLICKS.by("user").sum("user")}) == [
        "Feature 'spent' takes the sum of column 'user', which has the wrong type.\n"
        "  in: feature 'spent'\n"
        "  expected: an integer or a float or a decimal of up to 18 digits or a boolean\n"
        "  found: VARCHAR\n"
        "  do: aggregate another column, or cast it in the source's own query."
    ]


def test_a_key_must_be_a_field_of_the_request() -> None:
    assert problems({"clicks": CLICKS.by("is_spam").count()}) == [
        "Feature 'clicks' needs the key 'is_spam', which the moments do not have.\n"
        "  in: feature 'clicks'\n"
        "  expected: fields nearest to it: distance\n"
        "  do: correct the name, or add the column; a request carries every key it needs."
    ]


def test_a_key_is_of_one_kind_everywhere() -> None:
    assert problems({"clicks": CLICKS.by("number").count()}, request=REQUEST | {"number": "VARCHAR"}) == [
        "Feature 'clicks' groups by 'number', which is an integer in the source, text in the moments.\n"
        "  in: feature 'clicks'\n"
        "  expected: BIGINT\n"
        "  found: VARCHAR\n"
        "  do: cast one of them, so that both are of one kind."
    ]


def test_a_float_is_no_key() -> None:
    assert problems({"clicks": CLICKS.by("amount").count()}, request=REQUEST | {"amount": "DOUBLE"}) == [
        "Feature 'clicks' groups by 'amount' of source 'clicks', which cannot be a key.\n"
        "  in: feature 'clicks'\n"
        "  expected: an integer or a boolean or text or a timestamp\n"
        "  found: DOUBLE\n"
        "  do: floats are not equal reliably: cast it to an integer or to text, here and in the moments."
    ]


def test_a_condition_is_checked_with_its_feature_named() -> None:
    assert problems({"late": CLICKS.where("amont > 15").by("user").count()}) == [
        "The condition 'amont > 15' names 'amont', which is not a column of the rows.\n"
        "  in: feature 'late', source 'clicks'\n"
        "  expected: nearest columns: amount\n"
        "  do: correct the name."
    ]


def test_moments_need_their_time() -> None:
    assert problems(moments=sw.Moments("moments.parquet", at="ask_at")) == [
        "The moments have no column 'ask_at'.\n"
        "  in: the moments\n"
        "  expected: columns nearest to it: asked_at\n"
        "  do: set at= to the column of the time of asking."
    ]


def test_naive_moments_are_refused_without_a_timezone() -> None:
    naive = REQUEST | {"asked_at": "TIMESTAMP"}
    assert problems(request=naive, moments=sw.Moments("m.parquet", at="asked_at", timezone="UTC")) == []
    assert problems(request=naive) == [
        "Column 'asked_at' of the moments has naive timestamps.\n"
        "  in: the moments\n"
        "  expected: timestamps with a time zone, or timezone= on sw.Moments\n"
        "  found: TIMESTAMP\n"
        "  do: name the zone whose clocks they show, for example timezone='UTC'."
    ]


def test_a_field_must_be_in_the_request() -> None:
    assert problems({"far": sw.field("distence")}) == [
        "Feature 'far' needs the field 'distence', which the moments do not have.\n"
        "  in: feature 'far'\n"
        "  expected: fields nearest to it: distance\n"
        "  do: correct the name, or add the column; a request carries every field it needs."
    ]


def test_the_time_of_asking_is_no_field() -> None:
    assert problems({"when": sw.field("asked_at").hour(timezone="UTC")})[0].splitlines()[0] == (
        "Feature 'when' uses 'asked_at' as a field, which is the time of asking and no field of the request."
    )


def test_text_must_be_made_a_category() -> None:
    for feature in (sw.field("user"), CLICKS.by("user").last("user")):
        assert problems({"who": feature}) == [
            "Feature 'who' is text, which a model cannot count with.\n"
            "  in: feature 'who'\n"
            "  found: text\n"
            "  do: add .category() to use it as a category."
        ]


def test_a_list_is_there_for_a_derived_feature_to_read() -> None:
    three, several = (
        CLICKS.by("user").last_n("amount", 3),
        CLICKS.by("user").last_n("amount", 3, over=["1d", "2d"]),
    )
    assert problems({"three": three, "sum": sw.derive(total, "three")}) == []
    assert problems({"three": three, "kind": sw.derive(total, "three").category()}) == []
    assert problems({"three": several, "sum": sw.derive(total, "three_2d")}) == []
    for features in (
        {"three": three},
        {"three": three, "sum": sw.derive(total, "distance")},
        {"three": three.category(), "sum": sw.derive(total, "three")},
    ):
        assert problems(features) == [
            "Feature 'three' is a list, which a model cannot count with.\n"
            "  in: feature 'three'\n"
            "  expected: a number, a boolean or a category\n"
            "  do: make a number of it, too: sw.derive(function, 'three')."
        ]


def test_a_list_is_no_label() -> None:
    assert problems(label=sw.Label(CLICKS.by("user").last_n("amount", 3) > 1, within="1d")) == [
        "The label compares a list with a number.\n"
        "  in: the label\n"
        "  expected: a number or a boolean\n"
        "  found: DOUBLE\n"
        "  do: make a number of it in the source's own query, or count rows with source.where(...)."
    ]


def test_a_decimal_is_counted_with_up_to_18_digits() -> None:
    features = {"spent": CLICKS.by("user").sum("price"), "kind": CLICKS.by("user").last("price").category()}
    assert problems(features, rows=ROWS | {"price": "DECIMAL(18,2)"}) == []
    assert [
        problem.splitlines()[0] for problem in problems(features, rows=ROWS | {"price": "DECIMAL(19,2)"})
    ] == ["Column 'price' of source 'clicks' has a type without a rule."] * 2


def test_a_timestamp_is_no_feature() -> None:
    shared = (
        "Feature 'when' is a timestamp, which means another thing to a model every day.\n"
        "  in: feature 'when'\n"
        "  expected: a number, a boolean or a category\n"
        "  found: a timestamp\n"
    )
    assert problems({"when": sw.field("due")}) == [
        shared + "  do: take a part of it, for example sw.field(...).hour(timezone='UTC')."
    ]
    assert problems({"when": CLICKS.by("user").last("clicked_at")}) == [
        shared
        + "  do: make a number of it, too: sw.derive(function, 'when'); or use .age(), the time since the last event."
    ]
    latest = CLICKS.by("user").last("clicked_at")
    assert problems({"when": latest, "days": sw.derive(total, "when")}) == []
    assert problems({"when": latest.category(), "days": sw.derive(total, "when")}) != []


def test_an_hour_is_that_of_a_timestamp() -> None:
    assert problems({"hour": sw.field("distance").hour(timezone="UTC")}) == [
        "Feature 'hour' is the hour of 'distance', which is no timestamp.\n"
        "  in: feature 'hour'\n"
        "  expected: a timestamp with a time zone, or a naive one and timezone= on sw.Moments\n"
        "  found: INTEGER\n"
        "  do: use another field, or cast the column in the moments."
    ]


def test_a_derived_feature_reads_features_or_fields() -> None:
    assert problems({"both": sw.derive(total, "distance", "distanc")}) == [
        "'distanc' is neither a feature nor a field of the request.\n"
        "  in: feature 'both'\n"
        "  expected: nearest: distance\n"
        "  do: correct the name."
    ]


def test_a_circle_of_derived_features_is_shown() -> None:
    circle = {
        "a": sw.derive(total, "b"),
        "b": sw.derive(total, "c").category(),
        "c": sw.derive(total, "distance", "a"),
    }
    assert problems(circle) == [
        "Feature 'a' is derived from itself.\n"
        "  in: feature 'a'\n"
        "  found: a <- b <- c <- a\n"
        "  do: break the circle."
    ]


def test_several_windows_are_no_single_input() -> None:
    features = {
        "clicks": CLICKS.by("user").count(over=["1h", "1d"]),
        "both": sw.derive(total, "clicks", "distance"),
    }
    assert problems(features) == [
        "Feature 'both' is derived from 'clicks', which has several windows.\n"
        "  in: feature 'both'\n"
        "  expected: one of its columns: clicks_1h, clicks_1d\n"
        "  do: name one of them."
    ]


def test_a_column_has_one_owner() -> None:
    features = {"clicks": CLICKS.by("user").count(over=["1h", "1d"]), "clicks_1d": sw.field("distance")}
    assert problems(features) == [
        "Features 'clicks' and 'clicks_1d' both give a column 'clicks_1d'.\n"
        "  in: feature 'clicks_1d'\n"
        "  do: rename one of them."
    ]


def test_a_label_is_a_number() -> None:
    assert problems(label=sw.Label(CLICKS.by("user").last("user") > 15, within="1d")) == [
        "The label compares text with a number.\n"
        "  in: the label\n"
        "  expected: a number or a boolean\n"
        "  found: VARCHAR\n"
        "  do: make a number of it in the source's own query, or count rows with source.where(...)."
    ]


def test_the_label_needs_its_keys_too() -> None:
    assert problems(label=sw.Label(CLICKS.by("users").count(), within="1d")) == [
        "The label reads source 'clicks', which has no column 'users'.\n"
        "  in: the label, by('users')\n"
        "  expected: columns of 'clicks' nearest to it: user, number\n"
        "  do: correct the name, or add the column.",
        "The label needs the key 'users', which the moments do not have.\n"
        "  in: the label\n"
        "  expected: fields nearest to it: user, number, due\n"
        "  do: correct the name, or add the column; a request carries every key it needs.",
    ]


def test_a_rate_is_by_a_field() -> None:
    assert problems(fallbacks=(sw.Rate(by="users"),)) == [
        "Fallback sw.Rate(by='users') needs the field 'users', which the moments do not have.\n"
        "  in: fallback sw.Rate(by='users')\n"
        "  expected: fields nearest to it: user, number, due\n"
        "  do: correct the name, or add the column; a request carries every field it needs."
    ]


def test_what_fallbacks_read_is_there() -> None:
    features = {"clicks": CLICKS.by("user").count(over=["1h", "1d"]), "distance": sw.field("distance")}
    fallbacks = (
        sw.LastKnown("1h", by=("user", "users")),
        sw.Rule(total, ("clicks_1h", "number")),
        sw.Rule(total, ("distance", "distanc")),
        sw.Rule(total, ("distance", "clicks")),
    )
    found = [problem.splitlines()[0] for problem in problems(features, fallbacks=fallbacks)]
    assert found == [
        "Fallback sw.LastKnown(by='users') needs the field 'users', which the moments do not have.",
        "'distanc' is neither a feature nor a field of the request.",
        "Feature 'sw.Rule(total)' is derived from 'clicks', which has several windows.",
    ]
