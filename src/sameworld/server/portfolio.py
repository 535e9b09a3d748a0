"""The models of one server: read from their bundles when they are asked for, within a budget of memory, and exchanged by a pointer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sameworld.asof.plan import Grouping, aggregates_of, groupings_of
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.source import Source
from sameworld.errors import BundleError, SameworldError, nearest
from sameworld.server.answering import LOADING
from sameworld.server.config import ServerConfig
from sameworld.server.guarded_child import Origin
from sameworld.server.incidents import Incidents
from sameworld.server.lanes import STARTING, GuardedLane, Lane, NativeLane, choose
from sameworld.server.memory import allocated_bytes, give_back, process_bytes
from sameworld.server.readable import by_name, check, read, unread
from sameworld.server.requests import RequestReader
from sameworld.server.routes import NotFoundError
from sameworld.server.served import Served
from sameworld.serving.breaker import Breaker, failed
from sameworld.serving.kept_answers import KeptAnswers
from sameworld.stores.online import OnlineStore
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.encoding import matrix_of

_START_SECONDS = 60.0
_IDLE_SECONDS = 1.0
"""A model that was asked so lately makes no room for another: models that take turns would only be loaded, again and again."""
_MEASURE_SECONDS = 5.0
CROWDED = "memory: other models are being asked"

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Wanted:
    """What a store has to have for some models: the fewest groupings, schemas by source, and the sources of the models and their outcomes."""

    groupings: tuple[Grouping, ...]
    schemas: dict[str, dict[str, str]]
    sources: list[Source]


def wanted_of(bundles: Iterable[Bundle]) -> Wanted:
    """Give what models need of a store, read once for all of them."""
    schemas: dict[str, dict[str, str]] = {}
    aggregates: dict[str, Aggregate] = {}
    outcomes: dict[str, Source] = {}
    for bundle in bundles:
        schemas.update(bundle.description.schemas)
        for aggregate in aggregates_of(bundle.model.features.values()):
            aggregates.setdefault("\n".join(aggregate.columns), aggregate)
        outcome = bundle.model.label.aggregate.source
        outcomes.setdefault(outcome.content, outcome)
    return Wanted(groupings_of(aggregates.values()), schemas, list(outcomes.values()))


@dataclass(frozen=True)
class Started:
    """A model whose estimators are loaded and whose processes run; what it reads may not be there yet.

    Args:
        bundle, full: without and with its estimators.
        taken: what the latter take, in bytes.
    """

    name: str
    bundle: Bundle
    full: Bundle
    lanes: Sequence[Lane | None]
    taken: int

    async def stop(self) -> None:
        """End its processes."""
        await asyncio.gather(*(lane.stop() for lane in self.lanes if isinstance(lane, GuardedLane)))


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be served: with and without its estimator, and what the former takes in bytes."""

    light: Served
    full: Bundle
    taken: int


@dataclass
class _Unread:
    """A model that is to be served, and why it cannot be: its bundle cannot be read, and is tried again once its breaker allows."""

    address: str
    error: BundleError
    breaker: Breaker


class _Entry:
    """One model of the portfolio: as it is served when its estimator is loaded, and when it is not."""

    def __init__(self, light: Served) -> None:
        self.light = light
        self.full: Served | None = None
        self.bytes = self.process_bytes = self.expected = 0
        self.loading = False
        self.breaker = Breaker()

    @property
    def served(self) -> Served:
        return self.full or self.light

    @property
    def running(self) -> list[GuardedLane]:
        """Those of its processes that are kept alive."""
        return [lane for lane in self.light.guarded if lane.kept]

    @property
    def is_loaded(self) -> bool:
        return self.full is not None or bool(self.running)

    @property
    def takes(self) -> int:
        return self.bytes + self.process_bytes

    @property
    def asked_at(self) -> float:
        return max(self.served.asked_at, *(lane.asked_at for lane in self.light.guarded), 0.0)


class Portfolio:
    """Route name -> model, as they are served now.

    Args:
        config: where bundles lie, how much memory there is.
        incidents: told of what happens to models.
        origin: starts guarded processes; one of its own by default.
    """

    def __init__(self, config: ServerConfig, incidents: Incidents, origin: Origin | None = None) -> None:
        self._config = config
        self._incidents = incidents
        self._registry = Registry(Path(config.registry))
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load models")
        self._entries: dict[str, _Entry] = {}
        self._unread: dict[str, _Unread] = {}
        self._origin = origin or Origin()
        self._tasks: set[asyncio.Task[None]] = set()
        self._budget = None if config.replay else config.memory
        self.models: dict[str, Served] = {}

    # bundles

    def read(self, address: str) -> Bundle:
        """Read a bundle as far as it is small.

        Raises:
            BundleError: it is missing, damaged, or not written by this registry.
        """
        return read(self._config.registry, address, whole=True)

    def check(self, name: str, bundle: Bundle, leaving: Collection[str]) -> None:
        """See whether a model can be served beside those that stay.

        Raises:
            ConflictError: they know another source of a name, or of another schema.
        """
        check(name, bundle, by_name(s.bundle for known, s in self.models.items() if known not in leaving))

    def miss(self, name: str, address: str, error: Exception) -> None:
        """Note that a model that is to be served cannot be read, and tell."""
        before = self._unread.get(name)
        breaker = before.breaker if before is not None and before.address == address else Breaker()
        told = unread(address, error)
        closed = failed(breaker, time.monotonic(), told.what, fatal=True)
        self._unread[name] = _Unread(address, told, closed)
        self._incidents.tell("model broken", name, version=address, reason=told.what)

    def missed(self) -> dict[str, str]:
        """Give the models that are to be served and cannot be read, with the reason."""
        return {name: missed.error.what for name, missed in self._unread.items()}

    def to_try_again(self) -> dict[str, str]:
        """Give those of them whose bundle is to be read again now, with its address."""
        now = time.monotonic()
        return {n: missed.address for n, missed in self._unread.items() if missed.breaker.allows(now)}

    def absent(self, name: str) -> SameworldError:
        """Give what callers of a model that is not served are told."""
        missed = self._unread.get(name)
        if missed is not None:
            return missed.error
        return NotFoundError(
            f"There is no model {name!r} here.",
            expected=f"nearest: {nearest(name, [*self.models, *self._unread])}",
            do="correct the model's name.",
        )

    # serving

    def served(self, name: str, bundle: Bundle, groupings: Sequence[Grouping]) -> Served:
        """Make a model as it is served, with nothing loaded."""
        return self._served(name, bundle, self._lanes(bundle), groupings)

    def _served(
        self, name: str, bundle: Bundle, lanes: Sequence[Lane | None], groupings: Sequence[Grouping]
    ) -> Served:
        before = self.models.get(name)
        fields = list(bundle.description.request.items())
        ranking = bundle.model.ranking
        asks = (before.bundle.description.request.items(), before.bundle.model.ranking) if before else None
        same = asks is not None and (list(asks[0]), asks[1]) == (fields, ranking)
        reader = before.reader if before is not None and same else RequestReader(name, dict(fields), ranking)
        most = self._config.cache.get(name)
        # Of this version alone: what another one has said is not looked at.
        again = before is not None and before.bundle.address == bundle.address
        kept = before.kept if before is not None and again else KeptAnswers(most) if most else None
        return Served(name, bundle, lanes, groupings, reader, kept)

    def _lanes(self, bundle: Bundle) -> list[Lane | None]:
        """Give where each part runs as far as it is known before anything is measured."""
        native = [bundle.description.native, *(part and part.how.native for part in bundle.parts)]
        return [
            None if is_native is None else NativeLane(0.0) if is_native else self._choose(bundle, number)
            for number, is_native in enumerate(native)
        ]

    def _choose(self, bundle: Bundle, part: int) -> Lane:
        config = self._config
        return choose(bundle, self._origin, config.registry, config.world, config.guarded_memory_bytes, part)

    def put(self, light: Served) -> None:
        """Serve a model, to be loaded when it is asked."""
        entry = self._entries[light.name] = _Entry(light)
        for lane in light.guarded:
            lane.wake = lambda: self._wake(entry)
        self._unread.pop(light.name, None)
        self.models[light.name] = light

    async def started(self, name: str, bundle: Bundle) -> Started:
        """Load a model's estimators and start its processes; whatever is served goes on meanwhile, and so may other changes.

        Raises:
            SameworldError: it does not start; nothing else has changed.
        """
        started = await self._in_loader(lambda: self._load(name, bundle, self._lanes(bundle)))
        lanes = [lane for lane in started.lanes if isinstance(lane, GuardedLane)]
        try:
            await self._settled(lanes)
            for lane in lanes:
                if not lane.ready:
                    raise BundleError(
                        f"Model {name!r} does not start.",
                        where=f"bundle {bundle.address}",
                        found=lane.breaker.reason or "its process is still starting",
                        do="correct what it says; what was served before is served on.",
                    )
        except BaseException:
            await started.stop()
            raise
        return started

    async def _settled(self, lanes: Iterable[GuardedLane]) -> None:
        """Start processes and wait until they are ready, or cannot be."""
        for lane in lanes:
            lane.start()
        until = time.monotonic() + _START_SECONDS
        while not all(lane.settled for lane in lanes) and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def prepared(self, started: Started, store: OnlineStore) -> Prepared:
        """Give a started model that can answer at once: what it reads is there, and was read once."""

        def prepared() -> Prepared:
            light = self._served(started.name, started.bundle, started.lanes, store.groupings)
            _use_once(light, started.full, store)
            return Prepared(light, started.full, started.taken)

        return await self._in_loader(prepared)

    async def _in_loader(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._loader, call)

    def swap(self, made: Prepared) -> Served | None:
        """Serve a prepared model from the next request on; give the one before."""
        before = self.models.get(made.light.name)
        self.put(made.light)
        self._take(made)
        return before

    def remove(self, name: str) -> Served | None:
        """Serve a model no more; give it."""
        self._unread.pop(name, None)
        self._entries.pop(name, None)
        return self.models.pop(name, None)

    async def retire(self, served: Served) -> None:
        """End a model that gets no requests any more, once the last ones are answered."""
        await self.answered([served])
        await asyncio.gather(*(lane.stop() for lane in served.guarded))

    async def answered(self, replaced: Sequence[Served]) -> None:
        """Wait until the last requests are answered of models that get no more."""
        until = time.monotonic() + max((served.deadline for served in replaced), default=0.0)
        while any(map(_is_busy, replaced)) and time.monotonic() < until:
            await asyncio.sleep(0.005)

    async def regroup(self, groupings: Sequence[Grouping]) -> list[Served]:
        """Let every model read the groupings as the store has them now; give the models as they were."""

        def made() -> list[tuple[_Entry, Served, Served]]:
            return [(e, e.light, _again(e.light, groupings)) for e in list(self._entries.values())]

        replaced: list[Served] = []
        for entry, before, light in await self._in_loader(made):
            if self._entries.get(light.name) is entry and entry.light is before:
                replaced.append(entry.served)
                entry.light = light
                entry.full = _again(entry.full, light.groupings) if entry.full is not None else None
                self.models[light.name] = entry.served
        return replaced

    # memory

    def need(self, served: Served, store: OnlineStore) -> str:
        """See that a model that is asked and not loaded will be; give the reason why it does not answer now."""
        entry = self._entries.get(served.name)
        if entry is None or entry.light is not served:
            return LOADING  # another version is served by now
        if self._is_crowded(entry):
            return CROWDED
        if not entry.loading and entry.breaker.allows(time.monotonic()):
            entry.loading = True
            self._begin(self._loaded(entry, store))
        return f"model: {entry.breaker.reason}" if entry.breaker.reason else LOADING

    def _wake(self, entry: _Entry) -> str:
        """See that the processes of a model that is asked are started; give the reason why they do not answer now."""
        if self._entries.get(entry.light.name) is not entry:
            return "it is served no more"
        if self._is_crowded(entry):
            return CROWDED
        self._begin_processes(entry)
        return STARTING

    def _begin_processes(self, entry: _Entry) -> None:
        """Start a model's processes at once, and not when a task has its turn: whoever asks what is to be waited for must see them."""
        for lane in entry.light.guarded:
            lane.start()
        self._begin(self._awake(entry))

    async def _awake(self, entry: _Entry) -> None:
        """Start a model's processes and, once they have what they need, let others make room for them."""
        await self._settled(entry.light.guarded)
        await self._measure(entry)
        entry.expected = entry.takes
        self._make_room()

    def _begin(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _loaded_entries(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.is_loaded]

    def _is_crowded(self, entry: _Entry) -> bool:
        """Whether there is no room for a model, and none that could make it."""
        others = [other for other in self._loaded_entries() if other is not entry]
        if self._budget is None or not others:
            return False
        idle = time.perf_counter() - min(other.asked_at for other in others)
        return self.bytes + self._expected(entry) > self._budget and idle < _IDLE_SECONDS

    def _expected(self, entry: _Entry) -> float:
        """Give what a model will take: what it took, or else what those do that have processes, or have none, as it."""
        alike = [
            e.takes for e in self._loaded_entries() if bool(e.light.guarded) == bool(entry.light.guarded)
        ]
        return entry.expected or sum(alike) / max(len(alike), 1)

    async def _loaded(self, entry: _Entry, store: OnlineStore) -> None:
        """Load a model, or note why it cannot be."""
        entry.loading = True
        light = entry.light

        def loaded() -> Prepared:
            started = self._load(light.name, light.bundle, light.lanes)
            # What one row takes may have moved it to another lane.
            same = light if started.lanes == light.lanes else Served(light.name, light.bundle, started.lanes, light.groupings, light.reader, light.kept)  # fmt: skip
            _use_once(same, started.full, store)
            return Prepared(same, started.full, started.taken)

        try:
            made = await self._in_loader(loaded)
        except Exception as error:  # noqa: BLE001 # the edge: its fallbacks answer, and it is told
            reason = error.what if isinstance(error, SameworldError) else f"{type(error).__name__}: {error}"
            entry.breaker = failed(entry.breaker, time.monotonic(), reason, fatal=True)
            self._incidents.tell("model broken", light.name, version=light.bundle.address, reason=reason)
        else:
            if entry.breaker.failures:
                self._incidents.tell("model recovered", light.name, version=light.bundle.address)
            self._become(entry, light, made)
        finally:
            entry.loading = False

    def _become(self, entry: _Entry, light: Served, loaded: Prepared) -> None:
        """On the loop: serve what was loaded, where its model is still the one that is served."""
        if self._entries.get(light.name) is not entry or entry.light.bundle is not light.bundle:
            return
        if loaded.light is not light:  # what one row takes is known now
            entry.light = _again(loaded.light, entry.light.groupings)
            for lane in entry.light.guarded:
                lane.wake = lambda: self._wake(entry)
            self.models[light.name] = entry.light
        self._take(loaded)

    def _load(self, name: str, bundle: Bundle, lanes: Sequence[Lane | None]) -> Started:
        """In the loader's thread, one at a time: read, check and measure the estimators."""
        before = allocated_bytes()
        full = self._registry.load(bundle.address, without_code=True, unpickle=False)
        # What the allocator had kept by and gives again does not show: so much as the files of the trees it is at least.
        files = (self._registry.folder / "bundles" / bundle.address).iterdir()
        trees = sum(file.stat().st_size for file in files if file.suffix in (".txt", ".trees"))
        taken = max(allocated_bytes() - before, trees)
        measured = [self._choose(full, n) if isinstance(lane, NativeLane) else lane for n, lane in enumerate(lanes)]  # fmt: skip
        return Started(name, bundle, full, measured, taken)

    def _take(self, made: Prepared) -> None:
        """On the loop: let a native model answer, and others make room for it."""
        entry = self._entries[made.light.name]
        entry.breaker = Breaker()
        if any(isinstance(lane, NativeLane) for lane in entry.light.lanes):  # processes have their estimators
            entry.full = _again(entry.light, entry.light.groupings, made.full)
            entry.full.asked_at = time.perf_counter()
            entry.bytes = made.taken
            self.models[made.light.name] = entry.full
        if entry.light.guarded:
            self._begin_processes(entry)
        entry.expected = entry.takes
        self._make_room()

    def _make_room(self) -> None:
        """Unload the models that were asked the longest ago, until the rest fits; never the last one."""
        if self._budget is None:
            return
        loaded = sorted(self._loaded_entries(), key=lambda entry: entry.asked_at)
        total, unloaded = self.bytes, False
        while total > self._budget and len(loaded) > 1:
            gone = loaded.pop(0)
            total -= gone.takes
            for lane in gone.running:
                self._begin(lane.stop())
            unloaded = unloaded or gone.full is not None
            gone.full, gone.bytes, gone.process_bytes = None, 0, 0
            self.models[gone.light.name] = gone.light
        if unloaded:
            asyncio.get_running_loop().run_in_executor(self._loader, give_back)

    async def keep_measuring(self) -> None:
        """Look again and again at what processes take, and let those that were asked the longest ago make room."""
        while True:
            await asyncio.sleep(_MEASURE_SECONDS)
            for entry in self._loaded_entries():
                await self._measure(entry)
            self._make_room()

    async def _measure(self, entry: _Entry) -> None:
        """Note what a model's processes take now."""
        pids = [lane.pid for lane in entry.running if lane.ready]
        if pids:
            taken = await asyncio.to_thread(lambda: sum(map(process_bytes, pids)))
            entry.process_bytes = taken if entry.running else 0

    @property
    def bytes(self) -> int:
        """What the loaded models take, with their processes."""
        return sum(entry.takes for entry in self._entries.values())

    def bytes_of(self, name: str) -> int:
        """What one model takes now."""
        return self._entries[name].takes

    def is_loaded(self, name: str) -> bool:
        """Whether a model is in memory: its estimators, or its processes."""
        return self._entries[name].is_loaded

    def start(self, store: OnlineStore) -> asyncio.Task[None]:
        """Begin to load what fits the budget, in the order of the configuration; the others wait until they are asked. Give what ends when that is done."""
        if self._budget is None:
            for served in self.models.values():
                for lane in served.guarded:
                    lane.start()
        self._begin(self.keep_measuring())
        return asyncio.get_running_loop().create_task(self._load_all(store))

    async def _load_all(self, store: OnlineStore) -> None:
        for name in list(self._entries):
            entry = self._entries.get(name)
            if entry is None or entry.full is not None or entry.loading:
                continue
            if self._budget is not None and self.bytes + self._expected(entry) >= self._budget:
                return
            await self._loaded(entry, store)
            if self._budget is not None:  # what its processes take decides about the next one
                await self._awake(entry)

    def waiting(self) -> list[str]:
        """Give the models that have neither started nor failed to."""
        return [n for n, entry in self._entries.items() if not all(lane.settled for lane in entry.running)]

    async def close(self) -> None:
        """End every model."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.shutdown(cancel_futures=True)
        lanes = [lane for served in self.models.values() for lane in served.guarded]
        await asyncio.gather(*(lane.stop() for lane in lanes))
        self._origin.close()


def _use_once(light: Served, full: Bundle, store: OnlineStore) -> None:
    """Read and score one request: kernels and the libraries' own lazy parts come before the first caller has to wait for them."""
    nothing = {name: [None] for name in light.fields}
    with store.snapshot() as snapshot:
        values = snapshot.columns(light.groupings, nothing, snapshot.moment())
    fields = light.layout.columns([[None] * len(light.fields)])
    scorers = dict(full.scorers)
    for tier in light.tiers:
        if isinstance(tier.lane, NativeLane):
            scorer = scorers[tier.number]
            scorer.scores_of(matrix_of(scorer.encodings, tier.evaluate(values, fields)))


def _is_busy(served: Served) -> bool:
    lines = [line for line in (served.line, served.second) if line is not None]
    return any(line.waiting or line.flying for line in lines)


def _again(served: Served, groupings: Sequence[Grouping], bundle: Bundle | None = None) -> Served:
    """Give the same model over other groupings, or with its estimator."""
    made = Served(served.name, bundle or served.bundle, served.lanes, groupings, served.reader, served.kept)
    made.last = served.last
    return made
