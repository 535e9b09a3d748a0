"""Asks and tells a running server by its control routes."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any

import msgspec

from sameworld.errors import SameworldError

_SECONDS = 600.0
"""As long as filling what a model reads may take."""


class ControlError(SameworldError):
    """A server that does not do what it was told, or is not there."""


def ask(url: str, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
    """Give the JSON that a control route answers.

    Args:
        url: where the server listens, such as http://127.0.0.1:8000.
        token: the server's.

    Raises:
        ControlError: it refuses, with what it says; or there is none.
    """
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else msgspec.json.encode(body)
    try:
        request = urllib.request.Request(url.rstrip("/") + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read()
        try:
            facts = msgspec.json.decode(said, type=dict[str, str])
        except msgspec.MsgspecError:
            facts = {
                "what": f"The server answers {error.code}.",
                "found": said[:200].decode(errors="replace"),
            }
        parts = {name: facts.get(name, "") for name in ("where", "expected", "found", "do")}
        raise ControlError(facts.get("what", ""), **parts) from error
    except (OSError, ValueError, http.client.HTTPException, msgspec.MsgspecError) as error:
        raise ControlError(
            f"There is no server at {url}.",
            found=str(error),
            do="start it with sameworld serve, or say with --url where it listens.",
        ) from error
