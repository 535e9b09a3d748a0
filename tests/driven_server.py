"""A server in this process, driven from plain tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from small_world import InProcess, SmallWorld, serving

from sameworld.server.config import ServerConfig


@dataclass(frozen=True)
class Driven:
    """A server, the loop it runs on, and ways to speak to it.

    Args:
        client: speaks to it on that loop.
        run: runs something on that loop to its end.
    """

    client: InProcess
    run: Callable[[Awaitable[Any]], Any]

    def send(
        self,
        method: str,
        path: str,
        body: Any = b"",
        *,
        key: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Give (status, decoded JSON); text where it is none."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        response = self.run(self.client.request(method, path, content, key=key, headers=headers))
        decoded = msgspec.json.decode(response.body) if response.body[:1] in b"{[" else response.body.decode()
        return response.status, decoded

    def predict(self, body: Any, model: str = "plain") -> tuple[int, Any]:
        return self.send("POST", f"/v1/models/{model}/predict", body)

    def events(self, body: Any, *, key: str = "", source: str = "orders") -> tuple[int, Any]:
        return self.send("POST", f"/v1/sources/{source}/events", body, key=key)


@contextmanager
def driven(config: ServerConfig, *, cutover: int | None = None) -> Iterator[Driven]:
    """Give a filled server in this process, ready to answer."""
    with asyncio.Runner() as runner:
        context = serving(config, cutover=cutover)

        async def entered() -> InProcess:
            return await context.__aenter__()

        async def left() -> None:
            await context.__aexit__(None, None, None)

        async def awaited(what: Awaitable[Any]) -> Any:
            return await what

        client = runner.run(entered())
        try:
            yield Driven(client, lambda what: runner.run(awaited(what)))
        finally:
            runner.run(left())


__all__ = ["Driven", "SmallWorld", "driven"]
