"""Fills what a running server's store misses for models that are to be added. Run by the server, which hands it its configuration on stdin."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import SameworldError
from sameworld.server.app import open_store
from sameworld.server.config import ServerConfig
from sameworld.server.readable import readable


def main() -> int:
    """Fill; give the exit status."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerConfig)
    try:
        store = open_store(config, readable(config.registry, config.models).bundles.values())
        try:
            store.fill(DuckDBEngine(Path(config.folder)))
        finally:
            store.close()
    except SameworldError as error:
        sys.stdout.write(error.text())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
