"""Play a stretch of history against a real server: every event when it became readable, every request when it was asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sameworld.definitions.ranking import Ranking
from sameworld.definitions.source import Source
from sameworld.server.client import Client, Response
from sameworld.training.candidates import requests_of
from sameworld.training.moments import MomentTable

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_MOST_EVENTS = 5000


@dataclass
class Played:
    """What a replay saw.

    Args:
        answers: model -> one (moment number, value, tier, logged) an answered request.
        seconds: shape (requests,), each request's latency as its caller saw it.
        statuses: status code -> how many responses, events included.
        events: acknowledged.
        retries: requests sent again after a broken connection.
    """

    answers: dict[str, list[tuple[int, float, str, bool]]] = field(default_factory=dict[str, Any])
    seconds: list[float] = field(default_factory=list[float])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    events: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Feed:
    """One source's events of the stretch.

    Args:
        source: its definition.
        available: shape (events,), microseconds, ascending: when each became readable.
        events: the JSON of each.
    """

    source: Source
    available: NDArray[np.int64]
    events: Sequence[str]


async def replay(
    client: Client,
    models: Sequence[str],
    moments: MomentTable,
    feeds: Sequence[Feed],
    *,
    together: Sequence[str] = (),
    ranking: Ranking | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Played:
    """Interleave events and requests in the order of time.

    Before the requests of an instant all events that became readable before it are acknowledged; the requests of an instant are sent concurrently.

    Args:
        client: to a server started with replay.
        models: each is asked at every moment, one request a moment.
        moments: when, with which fields.
        feeds: the sources' events.
        together: models that are asked too, about all moments of an instant in one request.
        ranking: of the models, where they rank: the moments of one request are asked as one, and count as one.
        progress: told (moments done, moments in all).
    """
    played = Played(answers={model: [] for model in (*models, *together)})
    at, requests = _requests(moments, ranking)
    order = np.argsort(at, kind="stable")
    instants, starts = np.unique(at[order], return_index=True)
    ends = np.append(starts[1:], order.size)
    sent = dict.fromkeys(range(len(feeds)), 0)
    for t, start, end in zip(instants.tolist(), starts.tolist(), ends.tolist(), strict=True):
        posts = [
            _post_events(client, feeds[i], i, sent, int(np.searchsorted(feeds[i].available, t)), played)
            for i in range(len(feeds))
        ]
        await asyncio.gather(*posts)
        numbers = [int(number) for number in order[start:end]]
        sends = [(model, [number]) for number in numbers for model in models]
        sends += [(model, numbers) for model in together]
        expected = len(numbers) * (len(models) + len(together))
        headers = {"replay-together": str(expected)}
        responses = await asyncio.gather(
            *(
                client.request(
                    "POST", f"/v1/models/{model}/predict", _body(requests, group, t), headers=headers
                )
                for model, group in sends
            )
        )
        for (model, group), response in zip(sends, responses, strict=True):
            _note(played, model, group, response)
        progress(end, order.size)
    played.retries = client.retries
    return played


async def _post_events(
    client: Client, feed: Feed, number: int, sent: dict[int, int], until: int, played: Played
) -> None:
    while sent[number] < until:
        start, stop = sent[number], min(until, sent[number] + _MOST_EVENTS)
        body = b'{"events":[' + ",".join(feed.events[start:stop]).encode() + b"]}"
        response = await client.request(
            "POST",
            f"/v1/sources/{feed.source.name}/events",
            body,
            key=f"replay-{feed.source.name}-{start}-{stop}",
        )
        played.statuses[response.status] = played.statuses.get(response.status, 0) + 1
        if response.status != 200:
            raise ConnectionError(f"events of {feed.source.name} were refused: {response.body.decode()}")
        played.events += stop - start
        sent[number] = stop


def _note(played: Played, model: str, group: Sequence[int], response: Response) -> None:
    played.statuses[response.status] = played.statuses.get(response.status, 0) + 1
    played.seconds.append(response.seconds)
    if response.status == 200:
        for number, answer in zip(group, _decode(response.body)["predictions"], strict=True):
            played.answers[model].append((number, answer["value"], answer["tier"], answer["logged"]))


def _requests(moments: MomentTable, ranking: Ranking | None) -> tuple[NDArray[np.int64], list[bytes]]:
    """Give the time and the JSON of each request."""
    columns: Mapping[str, list[Any]] = {
        name: moments.fields[name].to_pylist() for name in moments.fields.column_names
    }
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if ranking is None:
        return moments.at, [_encode(row) for row in rows]
    numbers = requests_of(ranking, moments)
    requests: dict[int, dict[str, Any]] = {}
    for number, row in zip(numbers.tolist(), rows, strict=True):
        candidate = {name: row.pop(name) for name in ranking.of_candidate}
        requests.setdefault(number, {**row, ranking.candidates: []})[ranking.candidates].append(candidate)
    _, first = np.unique(numbers, return_index=True)
    return moments.at[first], [_encode(requests[number]) for number in range(len(requests))]


def _body(requests: Sequence[bytes], group: Sequence[int], t: int) -> bytes:
    at = str(np.datetime64(t, "us")).encode()
    if len(group) == 1:
        return b'{"request":' + requests[group[0]] + b',"at":"' + at + b'Z"}'
    return b'{"requests":[' + b",".join(requests[number] for number in group) + b'],"at":"' + at + b'Z"}'


async def wait_until_ready(client: Client, process: Any = None, *, seconds: float = 120.0) -> None:
    """Wait for /readyz to say yes.

    Raises:
        ConnectionError: it did not, in time, or the process ended.
    """
    async with asyncio.timeout(seconds):
        while True:
            if process is not None and process.poll() is not None:
                raise ConnectionError(f"the server ended with status {process.returncode}")
            with contextlib.suppress(OSError):
                if (await client.request("GET", "/readyz")).status == 200:
                    return
            await asyncio.sleep(0.1)
