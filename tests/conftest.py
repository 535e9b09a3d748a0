"""Worlds that several tests look at; a test that changes one takes a copy."""

import os

os.environ.pop(
    "COLUMNS", None
)  # consoles, made when sameworld is imported, would keep to it whatever a test says

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranking_world import POINTWISE, RANKING_WORLD, make_ranking
from redis_server import RedisServer
from small_world import DERIVED, WORLD, SmallWorld, make
from spread import longest_first, scheduler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return scheduler(config, log)


@pytest.fixture(scope="session")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A world with one model of library trees, trained, never served. Not to be changed."""
    return make(tmp_path_factory.mktemp("trained") / "world")


@pytest.fixture(scope="session")
def played_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A world with a model of library trees and a derived one, trained and replayed. Not to be changed."""
    world = make(tmp_path_factory.mktemp("played") / "world", WORLD + DERIVED)
    played = world.play()
    assert set(played.statuses) == {200}
    return world


@pytest.fixture(scope="session")
def ranking_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """A world with two models that rank, one of library trees and one with a user's Python; trained, never served. Not to be changed."""
    return make_ranking(tmp_path_factory.mktemp("ranking") / "world", RANKING_WORLD + POINTWISE)


@pytest.fixture
def trained(trained_world: SmallWorld, tmp_path: Path) -> SmallWorld:
    """A trained world that the test may change."""
    return trained_world.copy(tmp_path / "world")


@pytest.fixture
def played(played_world: SmallWorld, tmp_path: Path) -> SmallWorld:
    """A replayed world that the test may change."""
    return played_world.copy(tmp_path / "world")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis of the tests' own; each begins by emptying it."""
    server = RedisServer()
    yield server
    server.close()
