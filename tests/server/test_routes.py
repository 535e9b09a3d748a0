"""Whatever is sent, the answer is a clear one, and nothing is lost or half-written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from driven_server import Driven, driven
from small_world import UNTIL, SmallWorld

from sameworld.errors import DataError, RequestError, SameworldError
from sameworld.server.routes import status_of
from sameworld.stores.event_log import deliveries
from sameworld.stores.prediction_log import predictions

GOOD = {"user": "u1", "shop": "s1", "basket": 12.5, "ask_id": "x", "opened_at": "2024-03-16T10:00:00Z"}
ORDER = {
    "order_id": "new",
    "revision": 1,
    "user": "u1",
    "shop": "s1",
    "amount": 20.0,
    "ordered_at": "2024-03-16T10:00:00Z",
    "seen_at": "2024-03-16T10:05:00Z",
}


@pytest.fixture(scope="module")
def server(trained_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    state = tmp_path_factory.mktemp("routes") / "state"
    with driven(trained_world.config(state=str(state)), cutover=UNTIL) as running:
        yield running


def counted(server: Driven) -> tuple[int, int]:
    """Give how many (deliveries, predictions) are in the logs."""
    state = Path(server.client.server.config.state)
    return len(list(deliveries(state / "events"))), len(list(predictions(state)))


def refused(server: Driven, status: int, answer: tuple[int, Any], error: str) -> dict[str, str]:
    """Check that an answer is a refusal with facts."""
    assert answer[0] == status
    facts = answer[1]
    assert facts["error"] == error
    assert set(facts) <= {"error", "what", "where", "expected", "found", "do"}
    assert facts["what"].endswith(".")
    assert facts["do"]
    return facts


def test_a_good_request_is_answered_and_logged(server: Driven) -> None:
    before = counted(server)[1]
    status, answer = server.predict({"request": GOOD})
    assert status == 200
    (prediction,) = answer["predictions"]
    assert set(prediction) == {"value", "tier", "reason", "version", "id", "logged"}
    assert (prediction["tier"], prediction["reason"], prediction["logged"]) == ("model", "", True)
    assert prediction["version"] == server.client.server.config.models["plain"]
    assert counted(server)[1] == before + 1


def test_several_requests_are_answered_in_their_order(server: Driven) -> None:
    requests = [GOOD | {"basket": float(basket)} for basket in (1, 20, 400)]
    alone = [server.predict({"request": request})[1]["predictions"][0]["value"] for request in requests]
    together = server.predict({"requests": requests})[1]["predictions"]
    assert [prediction["value"] for prediction in together] == alone
    assert len({prediction["id"] for prediction in together}) == 3


def test_a_body_with_very_many_requests_holds_up_nobody(server: Driven) -> None:
    many = msgspec.json.encode({"requests": [GOOD | {"basket": float(number)} for number in range(4000)]})
    path, meanwhile = "/v1/models/plain/predict", 0

    async def story() -> list[Any]:
        nonlocal meanwhile
        asked = asyncio.create_task(server.client.request("POST", path, many))
        while not asked.done():
            few = await server.client.request("POST", path, msgspec.json.encode({"request": GOOD}))
            assert few.status == 200
            meanwhile += 1
        return msgspec.json.decode((await asked).body)["predictions"]

    assert len(server.run(story())) == 4000
    assert (
        meanwhile > 3
    )  # where it is one piece of work, the second is answered after it; 11 here, 6 beside other work


def test_no_requests_get_no_predictions(server: Driven) -> None:
    assert server.predict({"requests": []}) == (200, {"predictions": []})


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"user": None, "shop": None, "basket": None, "opened_at": None},
        {"user": "nobody ever saw this one", "shop": "nor this"},
        {"user": "", "shop": "s1"},
        {"user": "x" * 100_000},
        {"user": "a\u0000b", "shop": "\U0001f600"},
        {"basket": 1e308},
        {"basket": 7},
        {"basket": 10**18},
        {"opened_at": "1969-12-31T23:59:59.999999Z"},
        {"opened_at": "9999-12-31T23:59:59Z"},
        {"opened_at": "0001-01-01T00:00:00Z"},
        {"opened_at": "2024-03-16T10:00:00+14:00"},
    ],
    ids=repr,
)
def test_what_is_missing_or_unknown_is_null_by_the_rule_and_no_error(
    server: Driven, request_: dict[str, Any]
) -> None:
    status, answer = server.predict({"request": request_})
    assert status == 200
    (prediction,) = answer["predictions"]
    assert (prediction["tier"], prediction["reason"], prediction["logged"]) == ("model", "", True)


FORM = (
    "JSON such as {\"request\": {...}} with values of the fields' types; instants as '2026-01-31T12:00:00Z'"
)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b"?", "JSON is malformed: invalid character (byte 0)"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'"text"', "Expected `object`, got `str`"),
        (b'{"request": []}', "Expected `object`, got `array` - at `$.request`"),
        (b'{"requests": {}}', "Expected `array`, got `object` - at `$.requests`"),
        (b'{"request": {"basket": NaN}}', "JSON is malformed: invalid character (byte 23)"),
        (b'{"request": {"basket": Infinity}}', "JSON is malformed: invalid character (byte 23)"),
        (b'{"request": {"basket": "12"}}', "Expected `float | null`, got `str` - at `$.request.basket`"),
        (b'{"request": {"basket": true}}', "Expected `float | null`, got `bool` - at `$.request.basket`"),
        (b'{"request": {"user": 7}}', "Expected `str | null`, got `int` - at `$.request.user`"),
        (
            b'{"request": {"opened_at": 5}}',
            "Expected `datetime | null`, got `int` - at `$.request.opened_at`",
        ),
        (
            b'{"request": {"opened_at": "2024-03-16T10:00:00"}}',
            "Expected `datetime` with a timezone component - at `$.request.opened_at`",
        ),
        (
            b'{"request": {"opened_at": "soon"}}',
            "Invalid RFC3339 encoded datetime - at `$.request.opened_at`",
        ),
        (b'{"request": {}, "extra": 1}', "Object contains unknown field `extra`"),
        (b'{"request": {"user": "\xff"}}', ""),
        (b'{"request": {"user": "\\ud800"}}', ""),
        (b'{"request": {"basket": 1e999}}', "Number out of range - at `$.request.basket`"),
    ],
    ids=repr,
)
def test_a_request_that_cannot_be_read_is_refused(server: Driven, body: bytes, found: str) -> None:
    before = counted(server)
    facts = refused(server, 400, server.predict(body), "RequestError")
    assert counted(server) == before
    if found == "Object contains unknown field `extra`":
        assert "unknown field" in facts["what"] or facts["found"] == found
        return
    assert facts["what"] == "The request cannot be read."
    assert facts["where"] == "model 'plain'"
    assert facts["expected"] == FORM
    assert facts["do"] == "correct the request."
    if found:
        assert facts["found"] == found


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1" + "0" * 400, "1" * 5000])
def test_a_huge_integer_is_a_value_or_a_refusal(server: Driven, number: str) -> None:
    before = counted(server)
    refused(server, 400, server.predict(f'{{"request": {{"basket": {number}}}}}'.encode()), "RequestError")
    assert counted(server) == before


def test_an_unknown_field_is_answered_with_the_nearest_names(server: Driven) -> None:
    assert server.predict({"request": GOOD | {"baskett": 1.0}}) == (
        400,
        {
            "error": "RequestError",
            "what": "The request has an unknown field 'baskett'.",
            "where": "model 'plain'",
            "expected": "nearest: basket, ask_id",
            "found": "Object contains unknown field `baskett` - at `$.request`",
            "do": "correct the field's name, or leave it out: a missing field is null.",
        },
    )


def test_one_bad_request_among_several_answers_none(server: Driven) -> None:
    before = counted(server)
    refused(server, 400, server.predict({"requests": [GOOD, GOOD | {"basket": "x"}]}), "RequestError")
    assert counted(server) == before


@pytest.mark.parametrize("body", [{}, {"request": GOOD, "requests": [GOOD]}])
def test_a_body_has_one_of_request_and_requests(server: Driven, body: dict[str, Any]) -> None:
    assert server.predict(body) == (
        400,
        {
            "error": "RequestError",
            "what": f"The body has {'both request and' if body else 'neither request nor'} requests.",
            "where": "model 'plain'",
            "expected": '{"request": {...}} or {"requests": [...]}',
            "do": "send one of them.",
        },
    )


def test_an_unknown_model_is_not_found(server: Driven) -> None:
    assert server.predict({"request": GOOD}, model="plane") == (
        404,
        {
            "error": "NotFoundError",
            "what": "There is no model 'plane' here.",
            "expected": "nearest: plain",
            "do": "correct the model's name.",
        },
    )


def test_an_unknown_source_is_not_found(server: Driven) -> None:
    assert server.events({"events": [ORDER]}, source="order") == (
        404,
        {
            "error": "NotFoundError",
            "what": "There is no source 'order' here.",
            "expected": "nearest: orders",
            "do": "correct the source's name.",
        },
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/plain/predict"),
        ("PUT", "/v1/sources/orders/events"),
        ("POST", "/v1/models/plain"),
        ("GET", "/"),
        ("GET", "/v1/models/plain/predict/more"),
        ("GET", "/../../etc/passwd"),
    ],
)
def test_another_method_or_path_is_not_found(server: Driven, method: str, path: str) -> None:
    facts = refused(server, 404, server.send(method, path), "NotFoundError")
    assert facts["what"] == f"There is no {method} {path} here."


def test_a_moment_is_only_told_in_a_replay(server: Driven) -> None:
    assert server.predict({"request": GOOD, "at": "2024-03-16T10:00:00Z"}) == (
        400,
        {
            "error": "RequestError",
            "what": "Only a replay is told the moment.",
            "expected": 'no "at"',
            "do": "the server's own clock decides otherwise; start it with --replay to replay.",
        },
    )


# Events.


def test_events_are_taken_once_whatever_the_key(server: Driven) -> None:
    before = counted(server)[0]
    body = {"events": [ORDER | {"order_id": "once"}]}
    assert server.events(body, key="once") == (200, {"accepted": 1})
    assert server.events(body, key="once") == (200, {"accepted": 1})
    assert counted(server)[0] == before + 1


def test_a_key_that_was_used_for_other_events_is_a_conflict(server: Driven) -> None:
    assert server.events({"events": [ORDER | {"order_id": "k1"}]}, key="k")[0] == 200
    before = counted(server)
    assert server.events({"events": [ORDER | {"order_id": "k2"}]}, key="k") == (
        409,
        {
            "error": "ConflictError",
            "what": "The delivery key 'k' was used for other events.",
            "where": "source 'orders'",
            "expected": "the same events under the same key",
            "do": "give every delivery its own Idempotency-Key.",
        },
    )
    assert counted(server) == before


def test_no_events_are_taken_as_such(server: Driven) -> None:
    assert server.events({"events": []}) == (200, {"accepted": 0})
    assert server.predict({"request": GOOD})[0] == 200


def order(**changes: Any) -> dict[str, Any]:
    return {"events": [ORDER | {"order_id": "good"}, ORDER | changes]}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "The body has no events."),
        (b"[]", "The body has no events."),
        (b"{}", "The body has no events."),
        (b'{"events": [], "more": 1}', "The body has no events."),
        (b'{"events": [{"user": "\xff"}]}', "The body has no events."),
        (b'{"events": [{"user": "\\ud800"}]}', "The body has no events."),
        (b'{"events": [{}', "The body has no events."),
        ({"events": {}}, "The events cannot be read."),
        ({"events": None}, "The events cannot be read."),
        ({"events": [1]}, "The events cannot be read."),
        (order(ordered_at=None), "Event 1 has no time."),
        ({"events": [{"order_id": "x"}]}, "Event 0 has no time."),
        (order(amont=1.0), "Source 'orders' has no column 'amont'."),
        (order(amount="1"), "The events cannot be read."),
        (order(revision=1.5), "The events cannot be read."),
        (order(revision=2**70), "An event's value does not fit its column."),
        (order(ordered_at="2024-03-16T10:00:00"), "An event's timestamp does not fit its column."),
        (order(ordered_at="yesterday"), "The events cannot be read."),
        (b'{"events": [{"amount": NaN}]}', "The body has no events."),
    ],
    ids=repr,
)
def test_events_that_cannot_be_read_are_refused_whole(server: Driven, body: Any, what: str) -> None:
    before = counted(server)
    answer = server.events(body, key="refused")
    facts = refused(server, 400, answer, answer[1]["error"])
    assert facts["what"] == what
    assert counted(server) == before
    # A refused delivery does not use up its key.
    assert server.events({"events": [ORDER | {"order_id": f"after {what}"}]}, key=f"{before}")[0] == 200


def test_an_unknown_column_is_answered_with_the_nearest_names(server: Driven) -> None:
    assert server.events(order(amont=1.0)) == (
        400,
        {
            "error": "DataError",
            "what": "Source 'orders' has no column 'amont'.",
            "where": "events of source 'orders'",
            "expected": "nearest: amount",
            "found": "Object contains unknown field `amont` - at `$[1]`",
            "do": "correct the column's name, or leave it out.",
        },
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"user": None},
        {"user": "x" * 10_000},
        {"order_id": "y" * 10_000},
        {"order_id": None},
        {"amount": None},
        {"amount": 1e308},
        {"seen_at": None},
        {"ordered_at": "9999-12-31T23:59:59Z"},
        {"ordered_at": "0001-01-01T00:00:00Z"},
        {"user": "a\u0000b"},
    ],
    ids=lambda changes: repr(changes)[:40],
)
def test_odd_but_valid_events_are_taken_and_requests_go_on(server: Driven, changes: dict[str, Any]) -> None:
    assert server.events({"events": [ORDER | {"order_id": "odd"} | changes]}) == (200, {"accepted": 1})
    user = changes.get("user", "u1")
    assert server.predict({"request": GOOD | {"user": user}})[1]["predictions"][0]["tier"] == "model"


# A replay.


@pytest.fixture(scope="module")
def replayed(trained_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    state = tmp_path_factory.mktemp("replayed") / "state"
    with driven(trained_world.config(state=str(state), replay=True), cutover=UNTIL) as running:
        yield running


def test_a_replay_has_to_be_told_the_moment(replayed: Driven) -> None:
    assert replayed.predict({"request": GOOD}) == (
        400,
        {
            "error": "RequestError",
            "what": "A replay has to be told the moment.",
            "expected": '"at": the moment',
            "do": "the server's own clock decides otherwise; start it with --replay to replay.",
        },
    )


@pytest.mark.parametrize("at", ["2024-03-16T10:00:00", "now", 5, {}])
def test_a_moment_without_its_zone_is_refused(replayed: Driven, at: Any) -> None:
    refused(replayed, 400, replayed.predict({"request": GOOD, "at": at}), "RequestError")


def test_a_replay_goes_on_in_the_order_of_time_alone(replayed: Driven) -> None:
    """What has passed has passed, for events as for requests, and a refusal changes nothing."""
    assert replayed.events({"events": [ORDER | {"order_id": "r1"}]}) == (200, {"accepted": 1})
    assert replayed.predict({"request": GOOD, "at": "2024-03-16T11:00:00Z"})[0] == 200
    before = counted(replayed)
    late = ORDER | {"order_id": "r2", "seen_at": "2024-03-16T10:59:59.999999Z"}
    assert replayed.events({"events": [late]}) == (
        409,
        {
            "error": "ReplayOrderError",
            "what": "1 events of source 'orders' became readable before a moment that has passed.",
            "expected": "available times of at least 1710586800000000 us",
            "found": "1710586799999999 us",
            "do": "replay events and requests in the order of time.",
        },
    )
    refused(
        replayed, 409, replayed.predict({"request": GOOD, "at": "2024-03-14T23:00:00Z"}), "ReplayOrderError"
    )
    assert counted(replayed) == before
    # Readable at the very moment is not before it: it is used from the next microsecond on.
    assert replayed.events({"events": [late | {"seen_at": "2024-03-16T11:00:00Z"}]}) == (200, {"accepted": 1})
    assert replayed.predict({"request": GOOD, "at": "2024-03-16T11:00:00.000001Z"})[0] == 200


def test_requests_of_several_moments_at_once_are_answered_in_the_order_of_time(replayed: Driven) -> None:
    import asyncio

    import msgspec

    async def both() -> list[int]:
        bodies = [
            msgspec.json.encode({"request": GOOD, "at": f"2024-03-16T12:00:0{second}Z"})
            for second in (3, 1, 2)
        ]
        asked = (replayed.client.request("POST", "/v1/models/plain/predict", body) for body in bodies)
        return [response.status for response in await asyncio.gather(*asked)]

    assert replayed.run(both()) == [200, 200, 200]


# Who may write.


def test_outside_the_loopback_a_token_is_needed(trained_world: SmallWorld) -> None:
    for host in ("0.0.0.0", "::", "example.org", "192.168.1.2"):
        with pytest.raises(RequestError) as caught:
            trained_world.config(host=host).check()
        assert str(caught.value) == (
            f"The server would be reachable from outside at {host} without a token.\n"
            "  expected: SAMEWORLD_TOKEN, or a loopback address\n"
            "  do: set SAMEWORLD_TOKEN, or leave --host out."
        )
        trained_world.config(host=host, token="secret").check()
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        trained_world.config(host=host).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_events_need_the_token_where_there_is_one(
    trained_world: SmallWorld, tmp_path: Path, host: str
) -> None:
    config = trained_world.config(state=str(tmp_path / "state"), host=host, token="secret")
    with driven(config, cutover=UNTIL) as server:
        body = {"events": [ORDER]}
        path = "/v1/sources/orders/events"
        before = counted(server)
        for given in (None, "", "secret", "Bearer", "Bearer Secret", "Bearer secret2", "Bearer s\u00e9cret"):
            headers = {} if given is None else {"authorization": given}
            assert server.send("POST", path, body, headers=headers) == (
                403,
                {
                    "error": "ForbiddenError",
                    "what": "This route needs the server's token.",
                    "expected": "Authorization: Bearer TOKEN",
                    "do": "send the token that the server was started with.",
                },
            )
        assert counted(server) == before
        assert server.send("POST", path, body, headers={"authorization": "Bearer secret"}) == (
            200,
            {"accepted": 1},
        )
        assert server.predict({"request": GOOD})[0] == 200


# What operators ask.


def test_probes_and_metrics(server: Driven) -> None:
    assert server.send("GET", "/livez") == (200, {"live": True})
    assert server.send("GET", "/readyz") == (200, {"ready": True})
    server.predict({"request": GOOD})
    server.predict(b"nonsense")
    status, text = server.send("GET", "/metrics")
    assert status == 200
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counts['sameworld_predictions_total{model="plain",tier="model"}']) >= 1
    assert float(counts['sameworld_refused_requests_total{status="400"}']) >= 1
    assert float(counts["sameworld_event_sequence"]) == counted(server)[0]
    assert not any(name.startswith("sameworld_incidents_total") for name in counts)


def test_every_error_has_a_status() -> None:
    assert status_of(RequestError("x")) == 400
    assert status_of(DataError("x")) == 400
    assert status_of(SameworldError("x")) == 500
