"""What every store must show, yours too: whatever is committed is read as the oracle says it, and what is lost is published again."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from sameworld.asof.plan import aggregates_of, groupings_of
from sameworld.definitions.availability import at_event_time
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.source import Source
from sameworld.engines.duckdb import DuckDBEngine
from sameworld.errors import StoreError
from sameworld.stores.lmdb import Sizes
from sameworld.stores.online import OnlineStore, Taken
from sameworld.stores.view import SharedStore
from sameworld.testing import oracle

Open = Callable[[Path], SharedStore]
"""Opens the shared store for a host whose part of it is in a folder."""

_INSTANT = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema(
    [("id", pa.string()), ("revision", pa.int64()), ("gone", pa.bool_()), ("user", pa.string()), ("amount", pa.float64()), ("at", _INSTANT)]
)  # fmt: skip
_USERS = ["a", "b", "ü", "nobody", None]
_SECOND = 1_000_000


class _Clock:
    def __init__(self) -> None:
        self.time = 1_700_000_000 * _SECOND

    def now(self) -> int:
        return self.time


class _World:
    """One store and everything that was told to it."""

    def __init__(
        self, folder: Path, shared: Open | None, seed: int, clock: _Clock, *, follow: bool = False
    ) -> None:
        source = Source(
            "payments", _SCHEMA.empty_table(), event_time="at", available_at=at_event_time(), id="id", version="revision", deleted="gone"
        )  # fmt: skip
        user = source.by("user")
        self.aggregates: list[Aggregate] = aggregates_of(
            [
                *(getattr(user, name)("amount", over=["20s", "3s"]) for name in ("sum", "std", "min", "max", "nunique", "first")),
                user.last("amount"),
                user.last_n("amount", n=3),
                user.count(over="20s"),
            ]
        )  # fmt: skip
        self.clock = clock
        self.chance = random.Random(seed)
        self.told: list[oracle.Version] = []
        self._deliveries = 0
        self._event_times: set[int] = set()
        engine = DuckDBEngine(threads=1)
        schemas = {source.content: engine.describe(_SCHEMA.empty_table(), "payments")}
        self.store = OnlineStore(
            folder, groupings_of(self.aggregates), schemas, durability="process", clock=clock, sizes=Sizes(3, 1, 2),
            shared=shared(folder) if shared else None, follow=follow,
        )  # fmt: skip
        self.store.fill(engine)
        engine.close()

    def tell(self) -> None:
        """Commit a delivery of some events, of which some correct or withdraw earlier ones."""
        self.clock.time += self.chance.randrange(_SECOND)
        rows: list[dict[str, Any]] = []
        for _ in range(self.chance.randrange(1, 6)):
            event = self.clock.time - self.chance.randrange(10 * _SECOND)
            while event in self._event_times:  # so that no order hangs on a hash of the row
                event += 1
            self._event_times.add(event)
            rows.append(
                {
                    "id": f"payment {self.chance.randrange(40)}",
                    "revision": len(self.told) + len(rows),
                    "gone": self.chance.random() < 0.1,
                    "user": self.chance.choice(_USERS),
                    "amount": self.chance.choice([None, 0.1, -0.0, 1e16, 5e-324, self.chance.lognormvariate(3, 2)]),
                    "at": event,
                }
            )  # fmt: skip
        self._deliveries += 1
        body = msgspec.json.encode([row | {"at": _instant(row["at"])} for row in rows])
        (answer,) = self.store.commit([self.store.prepare("payments", f"delivery {self._deliveries}", body)])
        assert isinstance(answer, Taken), answer
        with self.store.index.read() as txn:
            stamp = self.store.index.get(txn, "stamp")
        self.told += [
            oracle.Version((row["user"],), row["at"], stamp, row["amount"], fact=row["id"], version=row["revision"], deleted=row["gone"])
            for row in rows
        ]  # fmt: skip

    def check(self, store: OnlineStore | None = None) -> None:
        """Compare every value of every user with the oracle."""
        store = store or self.store
        fields = {"user": _USERS}
        with store.snapshot(lambda: [(store.groupings, fields)]) as snapshot:
            t = snapshot.moment()
            found = snapshot.aggregates(store.groupings, fields, t)
        for aggregate in self.aggregates:
            for column, window in zip(aggregate.columns, aggregate.windows, strict=True):
                start, end = window.bounds
                said = [
                    oracle.value_at(self.told, aggregate.operation, (user,), t, start=start, end=end, n=3)
                    for user in _USERS
                ]
                read = found[column].to_pylist()
                # As text every float64 has its own.
                assert repr(read) == repr(said), f"{column} at {t}: read {read}, the oracle says {said}"


@contextmanager
def _world(folder: Path, shared: Open | None, seed: int) -> Generator[_World]:
    made = _World(folder, shared, seed, _Clock())
    try:
        yield made
    finally:
        made.store.close()


def reads_what_the_oracle_says(folder: Path, shared: Open | None = None, *, seed: int = 0) -> None:
    """Commit events, late, corrected and withdrawn ones among them, and compare all that can be read after each with the oracle.

    Args:
        folder: an empty one for this host's store.
        shared: opens the store to be judged, an empty one; the index of this host is judged by default.
        seed: of the events.

    Raises:
        AssertionError: a value is not the oracle's; names the column, the moment and both.
    """
    with _world(folder, shared, seed) as here:
        for _ in range(25):
            here.tell()
            here.check()


def heals_what_was_lost(folder: Path, shared: Open, lose: Callable[[], None], *, seed: int = 0) -> None:
    """Lose everything that was published in the middle, and expect an error from readers, then all of it again.

    Args:
        folder, shared, seed: as in `reads_what_the_oracle_says`.
        lose: empties the shared store behind its back.
    """
    with _world(folder, shared, seed) as here:
        here.tell()
        lose()
        try:
            here.check()
        except StoreError:
            pass
        else:
            raise AssertionError("an empty store was read from, and nobody was told")
        here.tell()
        here.store.heal()
        here.check()
        here.tell()
        here.check()


def others_read_the_same(folder: Path, shared: Open, *, seed: int = 0) -> None:
    """Let another host follow, and a third one publish, which has to be refused; arguments as in `reads_what_the_oracle_says`."""
    with _world(folder / "first", shared, seed) as here:
        here.tell()
        follower = _World(folder / "follower", shared, seed, here.clock, follow=True)
        for _ in range(5):
            here.tell()
            here.check(follower.store)
        follower.store.close()
        third = shared(folder / "third")
        (folder / "third").mkdir(exist_ok=True)
        try:
            third.publish(here.store.index)
        except StoreError:
            pass
        else:
            raise AssertionError("two hosts publish to one store")
        finally:
            third.close()


def _instant(microseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(microseconds=microseconds)
