"""`sameworld status` and `sameworld models` ask and tell a running server, and print what it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sameworld.cli import show
from sameworld.cli.main import main
from sameworld.cli.serving import status_cells

MODEL = {
    "model": "pays-late",
    "version": "0123456789abcdef",
    "since": 1_700_000_000_123_456,
    "tier": "fallback_1_rate",
    "reason": "deadline",
    "requests_per_second": 1234.5,
    "fallbacks": 0.75,
    "p50_ms": 0.512,
    "p99_ms": 12.0,
    "lane": "native",
    "loaded": True,
    "execution": "compiled",
    "bytes": 340_000,
    "sources": {"orders": 3.2, "returns": None},
}
FRESH = MODEL | {"model": "fresh", "since": None, "tier": "", "reason": "", "requests_per_second": 0.0, "fallbacks": None, "p50_ms": None, "p99_ms": None, "loaded": False, "bytes": 0}  # fmt: skip
STATUS = {
    "generation": 3,
    "workers": [
        {"pid": 1, "generation": 3, "trouble": ""},
        {"pid": 2, "generation": 2, "trouble": "no room"},
    ],
    "memory": {"models": 340_000, "budget": 2_000_000},
    "models": [FRESH, MODEL],
}


@dataclass
class Server:
    """Answers what it was told to, and keeps what it was asked."""

    answers: dict[tuple[str, str], tuple[int, Any]]
    asked: list[tuple[str, str, str | None, Any]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server({})

    class Handler(BaseHTTPRequestHandler):
        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            told.asked.append(
                (self.command, self.path, self.headers.get("authorization"), json.loads(body or b"null"))
            )
            status, answer = told.answers[self.command, self.path]
            said = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = do_DELETE = do_any

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        told.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield told
        listening.shutdown()


def run(server: Server, *arguments: str, status: int = 0) -> Result:
    ran = CliRunner().invoke(main, [*arguments, "--url", server.url], env={"SAMEWORLD_TOKEN": "secret"})
    assert ran.exit_code == status, ran.output
    return ran


def test_status_is_a_line_a_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["GET", "/control/status"] = 200, STATUS
    monkeypatch.setattr(show.out, "_width", 220)
    told = run(server, "status").stdout
    (line,) = [line for line in told.splitlines() if "pays-late" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == status_cells(MODEL)
    assert "2 models take 340.0 kB of 2.0 MB in the worker that answered; 2 workers" in told
    assert "worker 2: no room" in told
    assert server.asked == [("GET", "/control/status", "Bearer secret", None)]
    assert json.loads(run(server, "status", "--json").stdout) == STATUS


def test_the_cells_of_a_model_say_what_is_known_of_it() -> None:
    assert status_cells(MODEL) == [
        "pays-late", "01234567", "fallback_1_rate (deadline)", "1,234.5", "75.0%", "0.512, 12", "orders 3 s, returns never", "2023-11-14T22:13:20Z", "340.0 kB", "compiled",
    ]  # fmt: skip
    assert status_cells(FRESH)[2:7] == ["not asked yet", "0.0", "", "", "orders 3 s, returns never"]
    assert status_cells(FRESH)[7:] == ["the start", "not loaded", "compiled"]


@pytest.mark.parametrize(
    ("arguments", "asked", "answer", "said"),
    [
        (["add", "a"], ("POST", "/control/models/a", {"version": None}), {"version": "x1", "replaced": None}, "a=x1 is served (2 of 2 workers)\n"),
        (["add", "a=x2"], ("POST", "/control/models/a", {"version": "x2"}), {"version": "x2", "replaced": "x1"}, "a=x2 is served instead of x1 (2 of 2 workers)\n"),
        (["remove", "a"], ("DELETE", "/control/models/a", None), {"removed": "x2"}, "a=x2 is served no more (2 of 2 workers)\n"),
    ],
)  # fmt: skip
def test_models_are_added_and_removed(
    server: Server, arguments: list[str], asked: tuple[str, str, Any], answer: dict[str, Any], said: str
) -> None:
    method, path, body = asked
    server.answers[method, path] = 200, answer | {"workers": {"serving": 2, "of": 2}}
    assert run(server, "models", *arguments).stdout == said
    assert server.asked == [(method, path, "Bearer secret", body)]


def test_a_worker_that_does_not_follow_is_said(server: Server) -> None:
    answer = {"version": "x", "replaced": None, "workers": {"serving": 1, "of": 2}, "trouble": "no room"}
    server.answers["POST", "/control/models/a"] = 200, answer
    assert run(server, "models", "add", "a").stdout == "a=x is served (1 of 2 workers: no room)\n"


def test_models_are_listed_as_serve_takes_them(server: Server) -> None:
    models = [{"model": "a", "version": "x", "loaded": True}, {"model": "b", "version": "y", "loaded": False}]
    server.answers["GET", "/control/models"] = 200, {"generation": 1, "models": models}
    assert run(server, "models", "list").stdout == "a=x\nb=y\n"


def test_a_refusal_is_printed_as_the_server_said_it(server: Server) -> None:
    facts = {
        "error": "NotFoundError",
        "what": "There is no model 'a' here.",
        "expected": "nearest: b",
        "do": "correct it.",
    }
    server.answers["DELETE", "/control/models/a"] = 404, facts
    told = json.loads(run(server, "models", "remove", "a", "--json", status=1).stdout)
    assert told == facts | {"error": "ControlError"}


@pytest.mark.parametrize("answer", [b"<html>", b""])
def test_what_is_no_server_of_ours_is_an_error(server: Server, answer: bytes) -> None:
    server.answers["GET", "/control/status"] = 502, answer
    assert "The server answers 502." in run(server, "status", status=1).stderr
    server.answers["GET", "/control/status"] = 200, answer
    assert "There is no server at" in run(server, "status", status=1).stderr


def test_a_server_that_is_not_there_is_an_error() -> None:
    ran = CliRunner().invoke(main, ["status", "--url", "http://127.0.0.1:1"])
    assert ran.exit_code == 1
    assert "There is no server at http://127.0.0.1:1." in ran.stderr
