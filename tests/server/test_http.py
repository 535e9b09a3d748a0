"""Whatever arrives on a connection, however it is cut: requests are answered in their order, what is none is told so, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameworld.server import http
from sameworld.server.client import Client
from sameworld.server.http import MOST_BODY_BYTES, Http, Reply, Request


class Echo:
    """Answers with what it was asked, sooner or later."""

    def __init__(self) -> None:
        self.draining = False
        self.taken = 0
        self.held: list[Callable[[], None]] = []

    def take(self, request: Request, reply: Reply) -> None:
        self.taken += 1
        body = msgspec.json.encode(
            [request.method, request.path, request.header("x-name"), request.body.decode("latin-1")]
        )

        def answer() -> None:
            reply(200, b"application/json", body)

        match request.path:
            case "/later":
                asyncio.get_running_loop().call_later(0.01, answer)
            case "/held":
                self.held.append(answer)
            case "/much":
                reply(200, b"text/plain", b"x" * (8 << 20))
            case _:
                answer()

    def refuse(self, status: int, what: str) -> bytes:
        return msgspec.json.encode([status, what])


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Echo, Http, int]]:
    """Give an application, its connections and their port."""
    echo = Echo()
    served = Http(echo)
    listener = socket.create_server(("127.0.0.1", 0))
    await served.listen(listener)
    try:
        yield echo, served, listener.getsockname()[1]
    finally:
        served.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:-2])}
    body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
    return int(head[0].split(" ")[1]), headers, body


async def ended(reader: asyncio.StreamReader) -> bool:
    return await asyncio.wait_for(reader.read(), 10) == b""


def sent(*pieces: bytes, finish: bool = False) -> list[tuple[int, dict[str, str], bytes]]:
    """Send pieces on one connection; give all answers until the server ends it, or it has nothing more to say."""

    async def talk() -> list[tuple[int, dict[str, str], bytes]]:
        async with listening() as (_, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            if finish:
                writer.write_eof()
            answers: list[tuple[int, dict[str, str], bytes]] = []
            while True:
                try:
                    answers.append(await asyncio.wait_for(answer(reader), 0.3 if answers else 10))
                except (TimeoutError, asyncio.IncompleteReadError):
                    break
            writer.close()
            return answers

    return asyncio.run(talk())


def post(path: str, body: bytes, name: str = "n") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: h\r\nX-Name: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        name.encode(),
        len(body),
        body,
    )


def test_a_request_is_answered_with_its_length_and_its_date() -> None:
    ((status, headers, body),) = sent(post("/a%20b?x=1", b"hello"))
    assert status == 200
    assert msgspec.json.decode(body) == ["POST", "/a b", "n", "hello"]
    assert headers["content-type"] == "application/json"
    assert headers["date"].endswith("GMT")
    assert "connection" not in headers


@given(st.lists(st.integers(1, 400), max_size=12), st.lists(st.booleans(), min_size=1, max_size=4))
def test_answers_come_in_the_order_of_requests_however_these_are_cut(
    cuts: list[int], later: list[bool]
) -> None:
    requests = [post("/later" if late else "/now", b"%d" % n, str(n)) for n, late in enumerate(later)]
    requests.append(b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n")
    whole = b"".join(requests)
    places = [0, *sorted({min(cut, len(whole)) for cut in cuts}), len(whole)]
    answers = sent(*(whole[a:b] for a, b in pairwise(places)))
    said = [msgspec.json.decode(body) for _, _, body in answers]
    assert [one[2:] for one in said[:-1]] == [[str(n), str(n)] for n in range(len(later))]
    assert said[-1][1] == "/last"
    assert answers[-1][1]["connection"] == "close"


def test_a_body_in_chunks_is_one_body() -> None:
    ((_, _, body),) = sent(
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n"
    )
    assert msgspec.json.decode(body)[3] == "hello world"


def test_a_client_of_the_old_protocol_is_answered_and_let_go() -> None:
    ((status, headers, _),) = sent(b"GET / HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"]) == (200, "close")


def test_a_client_that_waits_to_be_told_so_is_told_to_go_on() -> None:
    async def talk() -> None:
        async with listening() as (_, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert (
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
            )
            writer.write(b"ab")
            assert msgspec.json.decode((await answer(reader))[2])[3] == "ab"
            writer.close()

    asyncio.run(talk())


def test_a_client_that_has_said_all_gets_its_answer() -> None:
    ((status, _, _),) = sent(post("/later", b"x"), finish=True)
    assert status == 200


def test_an_upgrade_is_answered_as_what_it_is_too() -> None:
    upgrade = b"GET /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    ((status, headers, _),) = sent(upgrade)
    assert (status, headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    ("bytes_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 400_000, 431),
        (b"GET /" + b"x" * 400_000, 431),
        (post("/a", b"x" * (MOST_BODY_BYTES + 1)), 413),
    ],
    ids=["tls", "version", "lengths", "smuggling", "chunks", "header", "target", "body"],
)
def test_what_is_no_request_is_refused_with_a_reason_and_the_connection_ended(
    bytes_: bytes, status: int
) -> None:
    answers = sent(post("/a", b"before"), bytes_)
    assert [one[0] for one in answers] == [200, status]
    assert answers[1][1]["connection"] == "close"
    assert msgspec.json.decode(answers[1][2])[0] == status


def test_a_request_that_does_not_arrive_is_ended_and_others_do_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(http, "_SWEEP_SECONDS", 0.05)

    async def talk() -> None:
        async with listening() as (_, _, port):
            slow, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /a HTTP/1.1\r\nContent-Le")
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            other, other_writer = await asyncio.open_connection("127.0.0.1", port)
            other_writer.write(post("/a", b"x"))
            assert (await answer(other))[0] == 200
            assert (await answer(slow))[0] == 408
            assert await ended(slow)
            idle_writer.write(post("/a", b"x"))  # who has begun nothing may wait for as long as it likes
            assert (await answer(idle))[0] == 200
            for each in (writer, idle_writer, other_writer):
                each.close()

    asyncio.run(talk())


def test_a_client_that_takes_no_answers_is_given_up_and_asks_nothing_more_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_LONGEST_SECONDS", 0.2)
    monkeypatch.setattr(http, "_SWEEP_SECONDS", 0.05)

    async def talk() -> None:
        async with listening() as (echo, served, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(b"GET /much HTTP/1.1\r\n\r\n" * 50)
            other, other_writer = await asyncio.open_connection("127.0.0.1", port)
            other_writer.write(post("/a", b"x"))
            assert (await answer(other))[0] == 200
            assert echo.taken < 10
            async with asyncio.timeout(10):
                while len(served.connections) > 1:
                    await asyncio.sleep(0.02)
            for each in (writer, other_writer):
                each.close()

    asyncio.run(talk())


def test_a_client_that_breaks_off_takes_nothing_with_it() -> None:
    async def talk() -> None:
        async with listening() as (echo, served, port):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(post("/held", b"x") * 3)
            async with asyncio.timeout(10):
                while not echo.held:
                    await asyncio.sleep(0.01)
                assert served.in_flight == 1
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()  # by a reset
                while served.connections:
                    await asyncio.sleep(0.01)
            echo.held[0]()
            assert (served.in_flight, echo.taken) == (0, 1)

    asyncio.run(talk())


def test_while_draining_each_connection_ends_with_its_next_answer() -> None:
    async def talk() -> None:
        async with listening() as (echo, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post("/a", b"x"))
            assert "connection" not in (await answer(reader))[1]
            echo.draining = True
            writer.write(post("/a", b"x") * 2)
            assert (await answer(reader))[1]["connection"] == "close"
            assert await ended(reader)
            writer.close()

    asyncio.run(talk())


def test_once_closed_no_request_is_taken_and_no_answer_given() -> None:
    async def talk() -> None:
        async with listening() as (echo, served, port):
            held_reader, held = await asyncio.open_connection("127.0.0.1", port)
            held.write(post("/held", b"x"))
            async with asyncio.timeout(10):
                while not echo.held:
                    await asyncio.sleep(0.01)
            # one has sent its request, another only knocked, and neither has been looked at
            late = socket.create_connection(("127.0.0.1", port))
            late.sendall(post("/a", b"x"))
            served.close()
            echo.held[0]()
            assert await ended(held_reader)
            while served.connections:
                await asyncio.sleep(0.01)
            assert (served.in_flight, echo.taken) == (0, 1)
            held.close()
            late.close()

    asyncio.run(talk())


def test_a_request_that_its_caller_gives_up_leaves_no_connection() -> None:
    async def talk() -> None:
        async with listening() as (echo, served, port):
            client = Client("127.0.0.1", port)
            asked = asyncio.ensure_future(client.request("POST", "/held", b"x"))
            async with asyncio.timeout(10):
                while not echo.held:
                    await asyncio.sleep(0.01)
                asked.cancel()
                await asyncio.sleep(0.01)
                echo.held[0]()
                while served.connections:
                    await asyncio.sleep(0.01)
            assert (await client.request("POST", "/a", b"y")).status == 200
            await client.close()

    asyncio.run(talk())


# asyncio itself drops a connection that it was just taking
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_comes_while_the_port_is_given_up_is_only_ended(turns: int) -> None:
    async def talk() -> None:
        async with listening() as (echo, served, port):
            late = socket.create_connection(("127.0.0.1", port))
            late.sendall(post("/a", b"x"))
            for _ in range(turns):
                await asyncio.sleep(0)
            served.close()
            taken = echo.taken
            async with asyncio.timeout(10):
                await asyncio.sleep(0.05)
                while served.connections:
                    await asyncio.sleep(0.01)
            assert echo.taken == taken
            late.close()

    asyncio.run(talk())
    gc.collect()  # what it says of that is said here, where it is expected
