"""Definitions are data: compared, hashed, written as JSON; what cannot mean anything is refused at once."""

import json
import subprocess
import sys
from datetime import UTC, timedelta

import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

import sameworld as sw
from sameworld.definitions import durations
from sameworld.definitions.functions import NamedFunction
from sameworld.definitions.hashing import content_hash
from sameworld.definitions.model import as_json, meaning_of, model_from_json
from sameworld.definitions.problems import collecting
from sameworld.definitions.windows import Window
from sameworld.errors import DefinitionError

LIMIT = 3
TABLE = {"near": 1.0, "far": 2.0}


def clip(values):
    """Cut at the limit."""
    return values.clip(max=LIMIT)


def twice(values):
    return clip(values) * 2


def listed(values):
    return [LIMIT * value for value in values]


def nested(values):
    def inner(value):
        return value + LIMIT

    return [inner(value) for value in values]


def keyword(values, *, limit=LIMIT):
    return values + limit


def world(data="clicks.parquet", *, moments="moments.parquet", **changed):
    clicks = sw.Source(
        "clicks",
        data,
        event_time="clicked_at",
        available_at=sw.daily("06:00", lag="2h"),
        id="id",
        version="v",
        deleted="gone",
    )
    seen = sw.Source("seen", data, event_time="t", available_at="arrived_at", timezone="Europe/Berlin")
    given = {
        "moments": moments if isinstance(moments, sw.Moments) else sw.Moments(moments, at="asked_at"),
        "features": {
            "clicks": clicks.by("user").count(over=["1h", "7d"]),
            "spent": clicks.where("amount > 0").by("user", "shop").sum("amount", over="90m"),
            "next": seen.by("user").count(over=sw.ahead("1d")),
            "page": seen.by("user").last("page").category(),
            "age": seen.by("user").age(),
            "distance": sw.field("distance"),
            "hour": sw.field("due").hour(timezone="America/New_York").category(),
            "short": sw.derive(clip, "distance"),
        },
        "label": sw.Label(clicks.by("user").sum("amount") > 15, within="1d", otherwise=False),
        "estimator": LogisticRegression(C=0.5),
        "fallbacks": [sw.Rate(by="user"), sw.Constant(0.25)],
        "service": sw.Service(deadline="20ms", p99="5ms", max_error_rate=0.01),
    }
    return sw.Model("spend", **(given | changed))


def problem(make) -> str:
    with pytest.raises(DefinitionError) as caught:
        make()
    # Where a definition was written is this file: its line does not matter.
    return "\n".join(
        line.split(f" {__file__}")[0].split(f"{__file__}")[0] for line in str(caught.value).splitlines()
    )


# Equality and hashes


def test_equal_definitions_are_equal() -> None:
    assert world() == world()
    assert world().content == world().content
    assert world() != world(calibration=None)


@pytest.mark.parametrize(
    "changed",
    [
        {"features": {"clicks": sw.field("distance")}},
        {
            "label": sw.Label(
                sw.Source("s", "f", event_time="t", available_at="a").by("k").count(), within="1d"
            )
        },
        {"estimator": LogisticRegression(C=0.25)},
        {"estimator": LinearRegression()},
        {"calibration": None},
        {"fallbacks": [sw.Constant(0.25)]},
        {"service": sw.Service(deadline="21ms")},
        {"moments": sw.Moments("moments.parquet", at="asked_at", timezone="UTC")},
    ],
)
def test_whatever_a_model_says_is_in_its_hash(changed: dict) -> None:
    assert world(**changed).content != world().content


def test_the_order_of_features_is_in_the_hash() -> None:
    features = world().features
    assert world(features=dict(reversed(features.items()))).content != world().content


def test_where_data_lie_is_not_in_the_hash() -> None:
    elsewhere = world("s3/other.parquet", moments=pa.table({"asked_at": [1]}))
    assert elsewhere.content == world().content
    assert elsewhere.sources[0].content == world().sources[0].content


@pytest.mark.parametrize(
    "changed",
    [
        {"event_time": "t2"},
        {"available_at": sw.delay("2m")},
        {"available_at": "arrived_at"},
        {"id": "id"},
        {"id": "id", "version": "v"},
        {"id": "id", "corrections_within": "30d"},
        {"timezone": "UTC"},
    ],
)
def test_whatever_a_source_says_is_in_its_hash(changed: dict) -> None:
    given = {"event_time": "t", "available_at": sw.delay("1m")}
    assert sw.Source("s", "f", **(given | changed)).content != sw.Source("s", "f", **given).content


def test_an_option_that_came_later_is_in_the_hash_only_when_it_is_given() -> None:
    plain = sw.Source("s", "f", event_time="t", available_at="a")
    full = sw.Source(
        "s",
        "f",
        event_time="t",
        available_at=sw.delay("1m"),
        id="i",
        version="v",
        deleted="d",
        timezone="UTC",
    )
    # as they were before there was corrections_within
    assert (plain.content, full.content) == ("12e67cbfdecdf295", "7a2abdfa8f99bd38")
    assert "corrections_within" not in json.dumps(meaning_of(world()))
    closing = sw.Source("s", "f", event_time="t", available_at="a", id="i", corrections_within="30d")
    model = world(features={"n": closing.by("user").count(over="1h")})
    assert '"corrections_within": "30d"' in json.dumps(meaning_of(model))
    assert model_from_json(json.loads(json.dumps(as_json(model))), {}).sources[0].content == closing.content


def test_a_duration_for_corrections_has_one_form() -> None:
    one, other, longer = (
        sw.Source("s", "f", event_time="t", available_at="a", id="i", corrections_within=text)
        for text in ("36h", "1d12h", "2d")
    )
    assert one == other
    assert one.content == other.content != longer.content
    assert one.corrections_within_microseconds == 36 * 3_600_000_000


@pytest.mark.parametrize("text", ["0s", "", "soon", "-1d", "1000000w"])
def test_corrections_count_within_a_positive_duration(text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        sw.Source("s", "f", event_time="t", available_at="a", id="i", corrections_within=text)
    assert caught.value.where.startswith("source 's'")
    assert caught.value.where.endswith(", corrections_within")
    assert "uration" in caught.value.what


def test_a_hash_is_the_same_in_another_process() -> None:
    code = (
        "import sameworld as sw; s = sw.Source('s', 'f', event_time='t', available_at=sw.daily('06:00', "
        "lag='2d'), id='i'); "
        "print(s.content, sw.Source('s', 'g', event_time='t', available_at='a').content)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }
    here = sw.Source("s", "x", event_time="t", available_at=sw.daily("06:00", lag="2d"), id="i")
    other = sw.Source("s", "x", event_time="t", available_at="a")
    assert printed == {f"{here.content} {other.content}\n"}


def test_hashes_of_today_are_those_of_tomorrow() -> None:
    assert (
        content_hash({"b": [1, "ü", None], "a": 0.1})
        == content_hash({"a": 0.1, "b": [1, "ü", None]})
        == "1b9df72336ce71df"
    )


def test_equal_aggregates_can_be_used_as_keys() -> None:
    first, second = (
        sw.Source("s", "f", event_time="t", available_at="a").by("k").mean("x", over="1h") for _ in range(2)
    )
    assert {first: 1}[second] == 1


# JSON


def test_a_model_comes_back_from_its_json() -> None:
    model = world()
    functions = {NamedFunction.of(clip).code: NamedFunction.of(clip)}
    back = model_from_json(json.loads(json.dumps(as_json(model))), functions)
    assert back == model
    assert back.content == model.content
    assert list(back.features) == list(model.features)
    assert back.features["short"].function.call is clip


def test_a_model_comes_back_without_its_code() -> None:
    back = model_from_json(json.loads(json.dumps(as_json(world()))), {})
    assert back.content == world().content
    assert back.features["short"].function.call is None


# Functions


def test_the_same_code_has_the_same_hash() -> None:
    before = NamedFunction.of(clip)
    again = NamedFunction.of(clip)
    assert before == again
    assert hash(before) == hash(again)
    assert before.name == "clip"


@pytest.mark.parametrize("function", [clip, twice, listed, nested])
def test_a_changed_constant_changes_the_hash(monkeypatch, function) -> None:
    before = NamedFunction.of(function).code
    monkeypatch.setitem(function.__globals__, "LIMIT", 4)
    assert NamedFunction.of(function).code != before


def test_a_changed_default_changes_the_hash(monkeypatch) -> None:
    before = NamedFunction.of(keyword).code
    monkeypatch.setattr(keyword, "__kwdefaults__", {"limit": 4})
    assert NamedFunction.of(keyword).code != before


def test_an_integer_constant_is_not_a_float(monkeypatch) -> None:
    before = NamedFunction.of(clip).code
    monkeypatch.setitem(clip.__globals__, "LIMIT", 3.0)
    assert NamedFunction.of(clip).code != before


def test_a_docstring_and_comments_are_not_code(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plain_code.py").write_text("def f(x):\n    return x + 1\n")
    (tmp_path / "noted_code.py").write_text(
        'def f(x):\n    """Add."""\n    # one\n    return (x +\n        1)\n'
    )
    (tmp_path / "other_code.py").write_text("def f(x):\n    return x + 2\n")
    plain, noted, other = (
        NamedFunction.of(__import__(name).f).code for name in ("plain_code", "noted_code", "other_code")
    )
    assert plain == noted != other


def test_a_lambda_is_refused() -> None:
    text = problem(lambda: sw.derive(lambda x: x, "distance"))
    assert text.splitlines()[0].endswith("cannot be hashed: it is a lambda, which has no name.")
    assert text.splitlines()[-1] == (
        "  do: define it at the top of a module; pass what it needs as inputs or module-level constants "
        "(numbers, text, tuples of them)."
    )


def test_a_closure_over_an_object_is_refused() -> None:
    model = LogisticRegression()

    def closes(x):
        return model.predict(x)

    assert "it refers to model, a LogisticRegression" in problem(lambda: sw.derive(closes, "distance"))


def test_a_closure_over_a_constant_is_its_constant() -> None:
    def adds(limit):
        def add(x):
            return x + limit

        return add

    assert NamedFunction.of(adds(1)) == NamedFunction.of(adds(1)) != NamedFunction.of(adds(2))


@pytest.mark.parametrize("thing", [len, LogisticRegression, 3, "clip"])
def test_what_is_no_function_is_refused(thing) -> None:
    assert "it is not a plain Python function" in problem(lambda: sw.derive(thing, "distance"))


def test_a_derived_feature_needs_an_input() -> None:
    assert (
        problem(lambda: sw.derive(clip))
        == "sw.derive names no input.\n  do: name the features or request fields that the function reads."
    )


# Durations and windows


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("1us", 1, "1us"),
        ("10ms", 10_000, "10ms"),
        ("90m", 5_400_000_000, "90m"),
        ("1h30m", 5_400_000_000, "90m"),
        ("24h", 86_400_000_000, "1d"),
        ("1w", 604_800_000_000, "7d"),
        ("60s", 60_000_000, "1m"),
    ],
)
def test_a_duration_is_read_and_written(text: str, expected: int, canonical: str) -> None:
    assert durations.microseconds(text, of="a window") == expected
    assert durations.text_of(expected) == canonical
    assert durations.microseconds(canonical, of="a window") == expected


@pytest.mark.parametrize("text", ["", "3", "h", "3 h", "-3h", "1.5h", "3H", "3h ", "1mo", None, 3])
def test_what_is_no_duration_is_refused(text) -> None:
    assert problem(lambda: durations.microseconds(text, of="a window")) == (
        f"{text!r} is not a duration.\n"
        "  in: a window\n"
        "  expected: whole numbers with units, such as '10m', '3h', '7d' or '1h30m'\n"
        "  do: write the duration as a string; a day is 24 hours."
    )


@pytest.mark.parametrize("text", ["0s", "201w0d99999d", "999999999999w"])
def test_a_duration_out_of_range_is_refused(text: str) -> None:
    assert problem(lambda: durations.microseconds(text, of="a window")) == (
        f"The duration {text!r} is out of range.\n"
        "  in: a window\n"
        "  expected: more than 0 and at most 200 years\n"
        "  do: give another duration."
    )


def test_no_delay_at_all_is_a_delay() -> None:
    assert sw.delay("0s").microseconds == 0


def test_windows_of_equal_length_are_equal() -> None:
    grouped = sw.Source("s", "f", event_time="t", available_at="a").by("k")
    assert grouped.count(over="24h") == grouped.count(over=["1d"])
    assert grouped.count().windows == (Window(),)
    assert grouped.count(over=["1h", sw.ahead("1h")]).windows == (Window("1h"), Window("1h", ahead=True))


def test_windows_say_their_bounds_and_names() -> None:
    hour = 3_600_000_000
    assert [
        (window.bounds, window.label) for window in (Window(), Window("1h"), Window("1h", ahead=True))
    ] == [
        ((None, 0), "ever"),
        ((-hour, 0), "1h"),
        ((0, hour), "ahead_1h"),
    ]


def test_a_window_is_named_once() -> None:
    grouped = sw.Source("s", "f", event_time="t", available_at="a").by("k")
    for over in (["1d", "24h"], []):
        assert problem(lambda over=over: grouped.count(over=over)) == (
            "over= has no window, or the same one twice.\n"
            "  in: s.count\n"
            f"  found: {over!r}\n"
            "  do: name each window once."
        )


# What a definition refuses


def test_a_source_says_when_its_rows_become_readable() -> None:
    assert problem(lambda: sw.Source("clicks", "f", event_time="t")) == (
        "Source 'clicks' does not say when its rows become readable.\n"
        "  in: source 'clicks'\n"
        "  expected: available_at\n"
        "  found: nothing\n"
        "  do: say it in one of four ways: available_at='column' (each row says it itself), "
        "available_at=sw.delay('10m') (so long after the event), "
        "available_at=sw.daily('06:00', lag='2d') (in a daily batch), or "
        "available_at=sw.at_event_time() (at once, and you are sure of it)."
    )


def test_the_place_of_a_definition_is_named() -> None:
    with pytest.raises(DefinitionError) as caught:
        sw.Source("clicks", "f", event_time="t")
    assert caught.value.where.startswith(f"source 'clicks' {__file__}:")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a.b"])
def test_a_source_name_fits_in_a_route(name: str) -> None:
    assert problem(lambda: sw.Source(name, "f", event_time="t", available_at="a")) == (
        f"{name!r} is not a source name.\n"
        f"  in: source {name!r}\n"
        "  expected: letters, digits, '-' and '_'\n"
        "  do: rename the source."
    )


@pytest.mark.parametrize("given", ["version", "deleted", "corrections_within"])
def test_corrections_need_an_id(given: str) -> None:
    assert problem(lambda: sw.Source("s", "f", event_time="t", available_at="a", **{given: "1d"})) == (
        f"Source 's' has {given}= but no id=.\n"
        "  in: source 's'\n"
        "  expected: the column that names the fact\n"
        "  do: add id='...'."
    )


@pytest.mark.parametrize("zone", ["America/New_Yorkk", "", "../etc"])
def test_a_timezone_is_known(zone: str) -> None:
    rest = "\n  expected: a name such as 'America/New_York' or 'UTC'\n  do: correct timezone=."
    assert (
        problem(lambda: sw.Source("s", "f", event_time="t", available_at="a", timezone=zone))
        == f"{zone!r} is not a time zone.\n  in: source 's'" + rest
    )
    assert (
        problem(lambda: sw.Moments("f", at="t", timezone=zone))
        == f"{zone!r} is not a time zone.\n  in: moments" + rest
    )
    assert (
        problem(lambda: sw.field("due").hour(timezone=zone))
        == f"{zone!r} is not a time zone.\n  in: field 'due'" + rest
    )


@pytest.mark.parametrize("at", ["6:00", "24:00", "06:60", "06", "06:00:00", ""])
def test_a_daily_batch_has_a_time_of_day(at: str) -> None:
    assert problem(lambda: sw.daily(at)) == (
        f"{at!r} is not a time of day.\n"
        "  in: sw.daily\n"
        "  expected: 'HH:MM'\n"
        "  do: write for example sw.daily('06:00', lag='2d')."
    )


def test_an_aggregate_has_an_entity() -> None:
    source = sw.Source("s", "f", event_time="t", available_at="a")
    assert problem(source.by().count) == (
        "The aggregate count of source 's' has no entity.\n"
        "  in: s.count\n"
        "  expected: one or several key columns\n"
        "  do: group first, for example source.by('user'), or source.by('user', 'shop') for pairs."
    )
    assert "found: ['user', 'shop']" in problem(source.by(["user", "shop"]).count)


def test_a_label_has_an_outcome_without_a_window() -> None:
    grouped = sw.Source("s", "f", event_time="t", available_at="a").by("k")
    assert problem(lambda: sw.Label(grouped.count(over="1h"), within="1d")) == (
        "A label's outcome has a window of its own.\n"
        "  in: label\n"
        "  found: over=\n"
        "  do: leave over= out: `within` is the window of a label."
    )
    assert problem(lambda: sw.Label(3, within="1d")) == (
        "A label needs an outcome.\n"
        "  in: label\n"
        "  expected: an aggregate over a source's rows, or one compared with a number\n"
        "  found: 3\n"
        "  do: write for example source.by('id').last('x') > 15."
    )


def test_a_label_settles_when_its_source_does() -> None:
    def settles(available, **given) -> int:
        source = sw.Source("s", "f", event_time="t", available_at=available)
        return sw.Label(source.by("k").count(), within="1d", **given).settles_microseconds

    assert settles(sw.delay("10m")) == 600_000_000
    assert settles(sw.daily("06:00", lag="2d")) == 3 * 86_400_000_000
    assert settles("a") == settles(sw.at_event_time()) == 0
    assert settles("a", settles="1h") == 3_600_000_000


def test_a_model_says_all_that_is_wrong_with_it() -> None:
    with collecting() as problems:
        sw.Model(
            "a b",
            moments=sw.Moments("f", at="t"),
            features={},
            label=world().label,
            estimator=3,
            calibration="plattt",
            fallbacks=[1],
        )
    assert [problem.what for problem in problems] == [
        "The estimator cannot be trained.",
        "'a b' is not a model name.",
        "'plattt' is not a calibration.",
        "Model 'a b' has no features.",
        "A fallback is of no known kind.",
    ]


NOTHING = float("nan")
NAMED = sw.Source("s", "f", event_time="t", available_at="a")


@pytest.mark.parametrize(
    ("make", "what", "place"),
    [
        (lambda: sw.Source("s", "f", event_time=None, available_at="a"), "None", "a column"),
        (lambda: sw.Source("s", "f", event_time="t", available_at="a", id=5), "5", "a column"),
        (lambda: sw.Moments("f", at=""), "''", "a column"),
        (lambda: sw.field(3), "3", "a field"),
        (lambda: NAMED.by("k").sum(None), "None", "a column"),
        (lambda: NAMED.by("k").ratio("x", 3), "3", "a column"),
        (lambda: world(features={3: sw.field("x")}), "3", "a feature"),
    ],
)
def test_a_name_is_text(make, what: str, place: str) -> None:
    first, *_, last = problem(make).splitlines()
    assert (first, last) == (
        f"{what} is not the name of {place}.",
        f"  do: write the name of {place} as text.",
    )


def test_a_derived_feature_names_its_inputs() -> None:
    # and does not take them as they are
    text = problem(lambda: sw.derive(clip, NAMED.by("k").count()))
    assert text.startswith("Aggregate(source=Source(")
    assert " is not the name of a feature or of a request field.\n" in text
    assert text.endswith("do: make it a feature of the model, and write its name here.")
    assert problem(lambda: sw.derive(clip, ["x", "y"])).startswith("['x', 'y'] is not the name of a feature")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: NAMED.by("k").count(over=3600), "3600 is not a duration."),
        (
            lambda: NAMED.by("k").count(over=timedelta(days=1)),
            "datetime.timedelta(days=1) is not a duration.",
        ),
        (lambda: sw.daily(6), "6 is not a time of day."),
        (lambda: NAMED.by("k").last_n("x", "3"), "last_n needs a length."),
        (lambda: NAMED.by("k").last_n("x", True), "last_n needs a length."),
        (
            lambda: NAMED.by("k").ratio("x", "y", prior="1"),
            "The prior of a ratio must be a finite number, and its weight one that is not negative.",
        ),
        (lambda: NAMED.by("k").count() > None, "An aggregate can only be compared with a number."),
        (lambda: NAMED.by("k").count() > NOTHING, "An aggregate can only be compared with a number."),
        (lambda: NAMED.where(3), "3 is not a condition."),
        (lambda: NAMED.where(" "), "' ' is not a condition."),
        (lambda: sw.field("x").hour(timezone=None), "The hour of a field needs a time zone."),
        (lambda: sw.field("x").hour(timezone=UTC), "datetime.timezone.utc is not a time zone."),
        (lambda: sw.Source(5, "f", event_time="t", available_at="a"), "5 is not a source name."),
        (
            lambda: sw.Source("s", "f", event_time="t", available_at=5),
            "Source 's' does not say when its rows become readable.",
        ),
    ],
)
def test_what_is_no_definition_is_told(make, what: str) -> None:
    assert problem(make).splitlines()[0] == what


@pytest.mark.parametrize("zone", ["America", "/etc/passwd", "right/Europe/Berlin", "localtime", "", "+02:00"])
def test_a_zone_is_one_that_every_machine_knows(zone: str) -> None:
    assert problem(lambda: sw.Source("s", "f", event_time="t", available_at="a", timezone=zone)) == (
        f"{zone!r} is not a time zone.\n"
        "  in: source 's'\n"
        "  expected: a name such as 'America/New_York' or 'UTC'\n"
        "  do: correct timezone=."
    )


def test_a_feature_is_a_feature() -> None:
    assert problem(lambda: world(features={"x": 3})) == (
        "Feature 'x' is not a feature.\n"
        "  in: model 'spend'\n"
        "  expected: an aggregate, sw.field(...), sw.derive(...) or one of them as a category\n"
        "  found: 3\n"
        "  do: correct its definition."
    )


def test_a_category_has_one_window() -> None:
    pages = sw.Source("s", "f", event_time="t", available_at="a").by("k").last("page", over=["1h", "1d"])
    assert problem(lambda: world(features={"x": pages.category()})) == (
        "Feature 'x' makes a category of several windows.\n"
        "  in: model 'spend'\n"
        "  do: use one window a feature."
    )


def test_a_feature_is_not_derived_from_itself() -> None:
    assert problem(lambda: world(features={"x": sw.derive(clip, "x")})) == (
        "Feature 'x' is derived from itself.\n  in: model 'spend'\n  do: rename it; its inputs are x."
    )


def test_a_model_reads_one_source_of_a_name() -> None:
    one, two = (sw.Source("s", "f", event_time=column, available_at="a") for column in "tu")
    assert problem(lambda: world(features={"x": one.by("k").count(), "y": two.by("k").count()})) == (
        "Model 'spend' reads two different sources of one name.\n"
        "  in: model 'spend'\n"
        "  do: give each source its own name."
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", None])
def test_a_constant_is_a_finite_number(value) -> None:
    assert (
        problem(lambda: sw.Constant(value))
        == f"sw.Constant({value!r}) is not a finite number.\n  do: give the value to answer."
    )


def test_a_service_level_has_durations() -> None:
    assert problem(lambda: sw.Service(deadline="soon")).splitlines()[:2] == [
        "'soon' is not a duration.",
        "  in: sw.Service deadline",
    ]
    assert problem(lambda: sw.Service(p99="fast")).splitlines()[:2] == [
        "'fast' is not a duration.",
        "  in: sw.Service p99",
    ]
