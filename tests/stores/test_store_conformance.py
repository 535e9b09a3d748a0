"""The suite for stores that others can run, on both of ours; and stores that are wrong, which it must notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer

from sameworld.stores.redis import Shared
from sameworld.stores.view import Fetched
from sameworld.testing import stores


@pytest.fixture
def shared(redis: RedisServer) -> stores.Open:
    redis.empty()
    return lambda folder: Shared(folder, redis.address, reading_seconds=5.0, few=1)


def test_lmdb_reads_what_the_oracle_says(tmp_path: Path) -> None:
    stores.reads_what_the_oracle_says(tmp_path / "state")


def test_redis_reads_what_the_oracle_says(shared: stores.Open, tmp_path: Path) -> None:
    stores.reads_what_the_oracle_says(tmp_path / "state", shared)


def test_redis_heals_what_was_lost(shared: stores.Open, redis: RedisServer, tmp_path: Path) -> None:
    stores.heals_what_was_lost(tmp_path / "state", shared, redis.empty)


def test_followers_of_redis_read_the_same(shared: stores.Open, tmp_path: Path) -> None:
    stores.others_read_the_same(tmp_path, shared)


class Forgetful(Shared):
    """Loses the last chunk of every entity."""

    def view(self, wanted: Any, t: int) -> Any:
        found = super().view(wanted, t)
        entities: Mapping[bytes, Fetched] = found.entities
        found.entities = {
            entity: replace(one, chunks=dict(list(one.chunks.items())[:-1]))
            for entity, one in entities.items()
        }
        return found


def test_a_store_that_loses_rows_is_noticed(redis: RedisServer, tmp_path: Path) -> None:
    redis.empty()
    with pytest.raises(AssertionError, match="the oracle says"):
        stores.reads_what_the_oracle_says(
            tmp_path / "state", lambda folder: Forgetful(folder, redis.address, reading_seconds=5.0)
        )


def test_a_store_that_hides_its_loss_is_noticed(shared: stores.Open, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nobody was told"):
        stores.heals_what_was_lost(tmp_path / "state", shared, lambda: None)
