"""Fills what a running server's store misses for models that are to be added. Run by the server, which hands it its configuration on stdin."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import msgspec

from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import SameworldError
from sameworld.server.app import open_store
from sameworld.server.config import ServerConfig
from sameworld.training.bundle import Registry

_NICER = 10  # those who are being answered come first


def main() -> int:
    """Fill; give the exit status."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(_NICER)
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerConfig)
    registry = Registry(Path(config.registry))
    try:
        bundles = [
            registry.load(a, without_code=True, without_estimator=True) for a in config.models.values()
        ]
        store = open_store(config, bundles)
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
