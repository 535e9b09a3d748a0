"""Start a server: fill its store with progress to look at, then keep workers that answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.server.app import open_store
from sameworld.server.config import ServerConfig
from sameworld.server.readable import readable
from sameworld.server.roll_call import present
from sameworld.server.supervisor import instead


def fill(
    config: ServerConfig, *, cutover: int | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Fill what a server's store is missing.

    Args:
        config: the server's.
        cutover: microseconds; see `OnlineStore.fill`.
        say: told what is being done, and which models cannot be served.

    Raises:
        BundleError: none of them can.
    """
    found = readable(config.registry, config.models)
    for name, error in found.unread.items():
        say(f"model {name} cannot be served: {error.what}")
    store = open_store(config, found.bundles.values())
    try:
        store.fill(DuckDBEngine(Path(config.folder)), cutover=cutover, say=say)
        # Nobody else reads here, and nothing is kept for a model that may come back.
        if not present(Path(config.state)) and not found.unread:
            store.forget_others()
    finally:
        store.close()


def serve(config: ServerConfig, *, as_json: bool = False) -> NoReturn:
    """Answer until told to stop (SIGINT or SIGTERM). Nothing that comes after this is done; see `instead`."""
    config.check()
    instead(config, as_json=as_json)
