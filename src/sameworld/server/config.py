"""How a server is configured: a file, environment variables and flags become one checked structure."""

from __future__ import annotations

import ipaddress
import os
from typing import Annotated, Literal

import msgspec

from sameworld.errors import RequestError

ENVIRONMENT = "SAMEWORLD_SERVER"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's configuration.

    Args:
        world: the world file; needed where models have functions of their own.
        registry: where bundles lie.
        state: where the event log, the index and the prediction log lie.
        models: route name -> bundle address.
        replay: whether moments and available times are given from outside.
        durability: what an acknowledged event survives.
        prediction_durability: what a prediction that is said to be logged survives.
        keep_prediction_bytes, keep_prediction_days: how much of the rotated prediction log to keep, and for how long; all and for ever by default.
        host, port: where to listen.
        workers: how many processes answer behind the port.
        drain_seconds: how long a server that was told to stop says so at /readyz and still takes new connections.
        guarded_memory_bytes: how much more a guarded process may take than it had when it was ready.
        token: what control and event routes ask for; needed when not on loopback.
        store: the address of the store of several hosts, which this one publishes and reads; without it the host serves alone.
        follow: whether another host takes events and publishes.
        cache: model -> bytes that its answers may take in one worker, to be given again for the same features; none are kept without it.
        memory: bytes that models may take in one worker, with the processes of guarded ones; those asked the longest ago are unloaded. Without it all are kept.
    """

    world: str | None = None
    registry: str
    state: str
    models: dict[str, str]
    replay: bool = False
    durability: Literal["process", "disk"] = "disk"
    prediction_durability: Literal["process", "disk"] = "process"
    keep_prediction_bytes: int | None = None
    keep_prediction_days: float | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    drain_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    guarded_memory_bytes: Annotated[int, msgspec.Meta(gt=0)] = 2 << 30
    token: str | None = None
    memory: int | None = None
    cache: dict[str, Annotated[int, msgspec.Meta(gt=0)]] = {}
    store: str | None = None
    follow: bool = False
    folder: str = "."

    def check(self) -> None:
        """Refuse to be reachable from outside without a token, and to follow nobody."""
        if self.follow and (self.store is None or self.replay):
            raise RequestError(
                "There is nobody to follow."
                if self.store is None
                else "A replay cannot follow another host.",
                where="--follow",
                expected="--store redis://HOST:PORT/DATABASE, and no --replay",
                do="say where the other host publishes, or leave --follow out.",
            )
        if not on_loopback(self.host) and not self.token:
            raise RequestError(
                f"The server would be reachable from outside at {self.host} without a token.",
                expected="SAMEWORLD_TOKEN, or a loopback address",
                do="set SAMEWORLD_TOKEN, or leave --host out.",
            )


def on_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def from_environment() -> ServerConfig:
    """Read the configuration that the command line left for the server's processes."""
    return msgspec.json.decode(os.environ[ENVIRONMENT], type=ServerConfig)
