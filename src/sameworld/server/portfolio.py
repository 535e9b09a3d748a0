"""The models of one server: read from their bundles when they are asked for, within a budget of memory, and exchanged by a pointer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sameworld.asof.plan import Grouping, aggregates_of, groupings_of
from sameworld.definitions.feature import Aggregate
from sameworld.definitions.source import Source
from sameworld.errors import BundleError, SameworldError
from sameworld.server.answering import LOADING
from sameworld.server.config import ServerConfig
from sameworld.server.incidents import Incidents
from sameworld.server.lanes import Lane, NativeLane, choose
from sameworld.server.memory import allocated_bytes, give_back
from sameworld.server.requests import RequestReader
from sameworld.server.routes import ConflictError
from sameworld.server.served import Served
from sameworld.serving.breaker import Breaker, failed
from sameworld.stores.online import OnlineStore
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.encoding import matrix_of

_START_SECONDS = 60.0
_IDLE_SECONDS = 1.0
"""A model that was asked so lately makes no room for another: models that take turns would only be loaded, again and again."""
CROWDED = "memory: other models are being asked"


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


class _Entry:
    """One model of the portfolio: as it is served when its estimator is loaded, and when it is not."""

    def __init__(self, light: Served) -> None:
        self.light = light
        self.full: Served | None = None
        self.bytes = self.expected = 0
        self.loading = False
        self.breaker = Breaker()

    @property
    def served(self) -> Served:
        return self.full or self.light


class Portfolio:
    """Route name -> model, as they are served now.

    Args:
        config: where bundles lie, how much memory there is.
        incidents: told of what happens to models.
    """

    def __init__(self, config: ServerConfig, incidents: Incidents) -> None:
        self._config = config
        self._incidents = incidents
        self._registry = Registry(Path(config.registry))
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load models")
        self._entries: dict[str, _Entry] = {}
        self._budget = None if config.replay else config.memory
        self.models: dict[str, Served] = {}

    # bundles

    def read(self, address: str) -> Bundle:
        """Read a bundle as far as it is small.

        Raises:
            BundleError: it is missing, damaged, or not written by this registry.
        """
        # Code of its own runs in the guarded process only, which looks for it.
        return self._registry.load(address, without_code=True, without_estimator=True)

    def check(self, name: str, bundle: Bundle, leaving: Collection[str]) -> None:
        """See whether a model can be served beside those that stay.

        Raises:
            ConflictError: they know another source of a name, or of another schema.
        """
        others = [s.bundle for known, s in self.models.items() if known not in leaving]
        sources = {s.name: (s, other) for other in others for s in sources_of(other)}
        for source in sources_of(bundle):
            known, other = sources.get(source.name, (source, bundle))
            what = ""
            if known.content != source.content:
                what = f"Model {name!r} knows another source {source.name!r} than model {other.model.name!r}."
            elif other.description.schemas[source.content] != bundle.description.schemas[source.content]:
                what = f"Model {name!r} knows another schema of source {source.name!r} than model {other.model.name!r}."
            if what:
                raise ConflictError(
                    what,
                    where=f"bundle {bundle.address}",
                    expected="one definition and one schema of a source in a server",
                    do="train the models that read it again and start a server with them; or serve them from two servers.",
                )

    # serving

    def served(self, name: str, bundle: Bundle, groupings: Sequence[Grouping]) -> Served:
        """Make a model as it is served."""
        before = self.models.get(name)
        fields = list(bundle.description.request.items())
        same = before is not None and list(before.bundle.description.request.items()) == fields
        reader = before.reader if before is not None and same else RequestReader(name, dict(fields))
        native = [bundle.description.native, *(part and part.how.native for part in bundle.parts)]
        lanes = [
            None if is_native is None else NativeLane(0.0) if is_native else self._choose(bundle, number)
            for number, is_native in enumerate(native)
        ]
        return Served(name, bundle, lanes, groupings, reader)

    def _choose(self, bundle: Bundle, part: int) -> Lane:
        config = self._config
        return choose(bundle, config.registry, config.world, config.guarded_memory_bytes, part)

    def put(self, light: Served) -> None:
        """Serve a model, to be loaded when it is asked."""
        self._entries[light.name] = _Entry(light)
        self.models[light.name] = light

    async def prepared(self, name: str, bundle: Bundle, store: OnlineStore) -> Prepared:
        """Give a model that can answer at once: its estimator loaded and checked, its process started.

        Raises:
            SameworldError: it cannot; nothing else has changed.
        """
        loop = asyncio.get_running_loop()
        light = await loop.run_in_executor(self._loader, self.served, name, bundle, store.groupings)
        loaded = await loop.run_in_executor(self._loader, self._load, light, store)
        light = loaded.light
        for lane in light.guarded:
            lane.start()
        until = time.monotonic() + _START_SECONDS
        while not all(lane.settled for lane in light.guarded) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for lane in light.guarded:
            if not lane.ready:
                found = lane.breaker.reason or "its process is still starting"
                await asyncio.gather(*(started.stop() for started in light.guarded))
                raise BundleError(
                    f"Model {name!r} does not start.",
                    where=f"bundle {bundle.address}",
                    found=found,
                    do="correct what it says; what was served before is served on.",
                )
        return loaded

    def swap(self, made: Prepared) -> Served | None:
        """Serve a prepared model from the next request on; give the one before."""
        before = self.models.get(made.light.name)
        self.put(made.light)
        self._take(made)
        return before

    def remove(self, name: str) -> Served | None:
        """Serve a model no more; give it."""
        self._entries.pop(name, None)
        return self.models.pop(name, None)

    async def retire(self, served: Served) -> None:
        """End a model that gets no requests any more, once the last ones are answered."""
        if served.guarded:
            await asyncio.sleep(served.deadline)
            await asyncio.gather(*(lane.stop() for lane in served.guarded))

    async def regroup(self, groupings: Sequence[Grouping]) -> None:
        """Let every model read the groupings as the store has them now."""

        def made() -> list[tuple[_Entry, Served, Served]]:
            return [(e, e.light, _again(e.light, groupings)) for e in list(self._entries.values())]

        for entry, before, light in await asyncio.get_running_loop().run_in_executor(self._loader, made):
            if self._entries.get(light.name) is entry and entry.light is before:
                entry.light = light
                entry.full = _again(entry.full, light.groupings) if entry.full is not None else None
                self.models[light.name] = entry.served

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
            asyncio.ensure_future(self._loaded(entry, store))  # noqa: RUF006 # the entry says that it is under way
        return f"model: {entry.breaker.reason}" if entry.breaker.reason else LOADING

    def _loaded_entries(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.full is not None]

    def _is_crowded(self, entry: _Entry) -> bool:
        """Whether there is no room for a model, and none that could make it."""
        loaded = self._loaded_entries()
        if self._budget is None or not loaded:
            return False
        expected = entry.expected or self.bytes / len(loaded)
        idle = time.perf_counter() - min(e.served.asked_at for e in loaded)
        return self.bytes + expected > self._budget and idle < _IDLE_SECONDS

    async def _loaded(self, entry: _Entry, store: OnlineStore) -> None:
        entry.loading = True
        light = entry.light
        try:
            loaded = await asyncio.get_running_loop().run_in_executor(self._loader, self._load, light, store)
        except Exception as error:  # noqa: BLE001 # the edge: its fallbacks answer, and it is told
            reason = error.what if isinstance(error, SameworldError) else f"{type(error).__name__}: {error}"
            entry.breaker = failed(entry.breaker, time.monotonic(), reason, fatal=True)
            self._incidents.tell("model broken", light.name, version=light.bundle.address, reason=reason)
        else:
            self._become(entry, light, loaded)
        finally:
            entry.loading = False

    def _become(self, entry: _Entry, light: Served, loaded: Prepared) -> None:
        """On the loop: serve what was loaded, where its model is still the one that is served."""
        if self._entries.get(light.name) is not entry or entry.light.bundle is not light.bundle:
            return
        if loaded.light is not light:  # what one row takes is known now
            entry.light = _again(loaded.light, entry.light.groupings)
            self.models[light.name] = entry.light
            for lane in loaded.light.guarded:
                if lane not in light.guarded:
                    lane.start()
        self._take(loaded)

    def _load(self, light: Served, store: OnlineStore) -> Prepared:
        """In the loader's thread, one at a time: read and check the estimator, measure it and use it once."""
        before = allocated_bytes()
        bundle = self._registry.load(light.bundle.address, without_code=True, unpickle=False)
        # What the allocator had kept by and gives again does not show: so much as the trees' text it is at least.
        texts = (self._registry.folder / "bundles" / bundle.address).glob("*.txt")
        taken = max(allocated_bytes() - before, sum(text.stat().st_size for text in texts))
        nothing = {name: [None] for name in light.fields}
        # Kernels and the libraries' own lazy parts come before the first caller has to wait for them.
        with store.snapshot() as snapshot:
            values = snapshot.columns(light.groupings, nothing, snapshot.moment())
        if any(isinstance(lane, NativeLane) for lane in light.lanes):
            fields = light.layout.columns([[None] * len(light.fields)])
            scorers = dict(bundle.scorers)
            for tier in light.tiers:
                if isinstance(tier.lane, NativeLane):
                    scorer = scorers[tier.number]
                    scorer.scores_of(matrix_of(scorer.encodings, tier.evaluate(values, fields)))
            lanes = [
                self._choose(bundle, number) if isinstance(lane, NativeLane) else lane
                for number, lane in enumerate(light.lanes)
            ]
            light = Served(light.name, light.bundle, lanes, light.groupings, light.reader)
        return Prepared(light, bundle, taken)

    def _take(self, made: Prepared) -> None:
        """On the loop: let a native model answer, and others make room for it."""
        entry, taken = self._entries[made.light.name], made.taken
        if not any(isinstance(lane, NativeLane) for lane in entry.light.lanes):
            return  # processes have their estimators
        entry.full = _again(entry.light, entry.light.groupings, made.full)
        entry.full.asked_at = time.perf_counter()
        entry.bytes = entry.expected = taken
        entry.breaker = Breaker()
        self.models[made.light.name] = entry.full
        self._make_room()

    def _make_room(self) -> None:
        """Unload the models that were asked the longest ago, until the rest fits; never the last one."""
        if self._budget is None:
            return
        loaded = sorted(self._loaded_entries(), key=lambda entry: entry.served.asked_at)
        total, unloaded = self.bytes, False
        while total > self._budget and len(loaded) > 1:
            gone = loaded.pop(0)
            total -= gone.bytes
            gone.full, gone.bytes, unloaded = None, 0, True
            self.models[gone.light.name] = gone.light
        if unloaded:
            asyncio.get_running_loop().run_in_executor(self._loader, give_back)

    @property
    def bytes(self) -> int:
        """What the loaded models take."""
        return sum(entry.bytes for entry in self._entries.values())

    def bytes_of(self, name: str) -> int:
        """What one model takes now."""
        return self._entries[name].bytes

    def start(self) -> None:
        """Start the processes of guarded models."""
        for served in self.models.values():
            for lane in served.guarded:
                lane.start()

    async def load_all(self, store: OnlineStore) -> None:
        """Load what fits the budget, in the order of the configuration; the others wait until they are asked."""
        for name in list(self._entries):
            if self._budget is not None and self.bytes >= self._budget:
                return
            entry = self._entries.get(name)
            if entry is not None and entry.full is None and not entry.loading:
                await self._loaded(entry, store)

    def waiting(self) -> list[str]:
        """Give the models that have neither started nor failed to."""
        return [
            name for name, served in self.models.items() if not all(lane.settled for lane in served.guarded)
        ]

    async def close(self) -> None:
        """End every model."""
        self._loader.shutdown(cancel_futures=True)
        lanes = [lane for served in self.models.values() for lane in served.guarded]
        await asyncio.gather(*(lane.stop() for lane in lanes))


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be served: with and without its estimator, and what the former takes in bytes."""

    light: Served
    full: Bundle
    taken: int


def _again(served: Served, groupings: Sequence[Grouping], bundle: Bundle | None = None) -> Served:
    """Give the same model over other groupings, or with its estimator."""
    made = Served(served.name, bundle or served.bundle, served.lanes, groupings, served.reader)
    made.last = served.last
    return made


def sources_of(bundle: Bundle) -> list[Source]:
    """Give the sources of a model and of its outcomes, each once."""
    outcome = bundle.model.label.aggregate.source
    return list({s.content: s for s in (*bundle.model.sources, outcome)}.values())
