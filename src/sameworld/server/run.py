"""Start a server: fill its store with progress to look at, then keep workers that answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.server.app import open_store
from sameworld.server.config import ServerConfig
from sameworld.server.roll_call import present
from sameworld.server.supervisor import Supervisor
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
    bundles = [
        registry.load(address, functions, without_estimator=True) for address in config.models.values()
    ]
    store = open_store(config, bundles)
    try:
        store.fill(DuckDBEngine(Path(config.folder)), cutover=cutover, say=say)
        if not present(Path(config.state)):  # nobody else reads here
            store.forget_others()
    finally:
        store.close()


def serve(config: ServerConfig) -> None:
    """Answer until told to stop (SIGINT or SIGTERM)."""
    config.check()
    Supervisor(config).run()
