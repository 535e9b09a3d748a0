"""Start a server: fill its store with progress to look at, then let Granian run one process that answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.server.app import open_store
from sameworld.server.config import ENVIRONMENT, ServerConfig
from sameworld.training.bundle import Registry
from sameworld.training.world_file import functions_of


def fill(
    config: ServerConfig, *, cutover: int | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Fill what a server's store is missing.

    Args:
        config: the server's.
        cutover: microseconds; see `OnlineStore.fill`.
        say: told what is being done.
    """
    registry = Registry(Path(config.registry))
    functions = functions_of(Path(config.world)) if config.world else []
    bundles = [registry.load(address, functions, unpickle=False) for address in config.models.values()]
    store = open_store(config, bundles)
    try:
        store.fill(DuckDBEngine(Path(config.folder)), cutover=cutover, say=say)
    finally:
        store.close()


def serve(config: ServerConfig) -> None:
    """Answer until told to stop (SIGINT or SIGTERM)."""
    config.check()
    os.environ[ENVIRONMENT] = msgspec.json.encode(config).decode()
    server = Granian(
        "sameworld.server.app:app",
        address=config.host,
        port=config.port,
        interface=Interfaces.RSGI,
        workers=1,
        websockets=False,
        log_access=False,
        log_level=LogLevels.warning,
    )
    server.serve()
