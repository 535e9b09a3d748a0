"""Models are added, replaced and removed while the server answers, in every worker: what is recorded in the state folder is what each of them serves.

Whoever takes a control request prepares the change (bundle checked, model loaded, groupings filled) beside those of others, records it, serves it, and waits for the other workers,
which look at the record several times a second. A change that cannot be prepared changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sameworld.asof.plan import Grouping
from sameworld.errors import SameworldError
from sameworld.server import beside
from sameworld.server.config import ServerConfig
from sameworld.server.incidents import Incidents
from sameworld.server.lanes import GuardedLane, NativeLane
from sameworld.server.metrics import Metrics
from sameworld.server.portfolio import Portfolio, Started, wanted_of
from sameworld.server.recent import together
from sameworld.server.recorded import Recorded, changing, mark, record, recorded
from sameworld.server.roll_call import RollCall, Said
from sameworld.server.routes import NotFoundError, UnavailableError
from sameworld.server.served import Served
from sameworld.serving.tiers import NONE
from sameworld.stores.online import OnlineStore
from sameworld.training.bundle import Bundle, Registry

_LOOK_SECONDS = 0.2
_AGAIN_SECONDS = 2.0
_SAY_SECONDS = 1.0
_OTHERS_SECONDS = 15.0

_Result = TypeVar("_Result")


class Control:
    """What may be asked of one worker about the models of all.

    Args:
        portfolio: this worker's models.
        store: the online world.
    """

    def __init__(
        self,
        config: ServerConfig,
        portfolio: Portfolio,
        store: OnlineStore,
        metrics: Metrics,
        incidents: Incidents,
        serving: Recorded,
    ) -> None:
        self._config = config
        self._state = Path(config.state)
        self._portfolio = portfolio
        self._store = store
        self._metrics = metrics
        self._incidents = incidents
        self._serving = serving
        self._trouble = ""
        self._roll_call = RollCall(self._state)
        self._turn = asyncio.Lock()
        self._one_change = asyncio.Lock()
        self._filling = asyncio.Lock()
        self._starting: dict[tuple[str, str], asyncio.Task[Started]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._lanes: dict[str, tuple[Served, str]] = {}

    def start(self) -> None:
        """Begin to follow the record, and to tell the other workers; needs a running loop."""
        self._say()
        self._begin(self._follow())
        self._begin(self._keep_healing())
        self._begin(self._keep_saying())

    async def stop(self) -> None:
        """Follow it no more."""
        tasks = [*self._tasks, *self._starting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._roll_call.leave()

    def _begin(self, what: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _let_go(self, what: Any) -> None:
        task = self._begin(what)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    # changes

    async def add(self, name: str, version: str | None) -> dict[str, Any]:
        """Serve a model, or another version of it, in every worker.

        Args:
            version: a bundle's address; the newest in the registry by default.

        Raises:
            SameworldError: it cannot be served; nothing has changed.
        """
        address = version or Registry(Path(self._config.registry)).newest(name)
        if address is None:
            raise NotFoundError(
                f"No bundle of {name} is in the registry.",
                where=self._config.registry,
                do="train it first: sameworld train; or give its version.",
            )
        started: Started | None = None
        try:
            if self._is_new(name, address):
                bundle = await _in_thread(lambda: self._portfolio.read(address))
                self._portfolio.check(name, bundle, [name])
                started = await self._portfolio.started(name, bundle)
                await self._fill({name: bundle})
            async with self._changing():
                before = self._serving.models.get(name)
                if self._is_new(name, address):
                    if started is None:  # it was served a moment ago
                        raise UnavailableError(
                            f"Model {name!r} was changed by somebody else at the same time.",
                            do="send the request again.",
                        )
                    await self._apply({name: started}, [], {**self._serving.models, name: address})
                    started = None
                generation = self._serving.generation
        finally:
            if started is not None:
                self._begin(started.stop())
        return await self._everywhere({"model": name, "version": address, "replaced": before}, generation)

    def _is_new(self, name: str, address: str) -> bool:
        return self._serving.models.get(name) != address or name in self._portfolio.missed()

    async def remove(self, name: str) -> dict[str, Any]:
        """Serve a model no more, in any worker.

        Raises:
            NotFoundError: it is not served.
        """
        async with self._changing():
            before = self._serving.models.get(name)
            if before is None:
                raise self._portfolio.absent(name)
            left = {known: a for known, a in self._serving.models.items() if known != name}
            await self._apply({}, [name], left)
            generation = self._serving.generation
        return await self._everywhere({"model": name, "removed": before}, generation)

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncGenerator[None]:
        """One change at a time, among all workers, beginning with what is recorded. Nothing slow is waited for while others are kept from theirs."""
        while True:
            await self._start_recorded()
            async with self._alone(), self._one_change:
                if self._unstarted():  # somebody else was faster
                    continue
                await self._catch_up()
                if self._trouble:  # a change from here would undo what this worker could not follow
                    raise UnavailableError(
                        "This worker does not serve what was changed last, so it changes nothing.",
                        found=self._trouble,
                        do="send the request again; another worker may take it, and this one tries again by itself.",
                    )
                yield
                return

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """Keep all workers from changing what is served."""
        async with self._turn:  # one thread of this process waits for the others, not all there are
            lock = changing(self._state)
            await _in_thread(lock.__enter__)
            try:
                yield
            finally:
                lock.__exit__(None, None, None)

    async def _record(self, models: dict[str, str]) -> None:
        """Record what is served from now on; where that cannot be written, nothing has changed."""
        now = self._store.clock.now()
        since = {n: self._serving.since.get(n, now) if self._serving.models.get(n) == a else now for n, a in models.items()}  # fmt: skip
        following = Recorded(generation=self._serving.generation + 1, models=models, since=since)
        await _in_thread(lambda: record(self._state, following))  # a disk takes its time
        self._serving = following

    async def _fill(self, added: dict[str, Bundle]) -> None:
        """Fill what models read that are to be served; whatever is served goes on meanwhile, and so may other changes."""
        if await self._lacking(added) is None:
            return
        async with self._filling:  # one thread of this process waits for it, however many are to be added
            bundles = await self._lacking(added)
            if bundles is not None:
                await _in_thread(lambda: fill_beside(self._config, bundles))

    async def _lacking(self, added: dict[str, Bundle]) -> dict[str, Bundle] | None:
        """Give the models whose reads are to be filled, with those that are to be added; None where nothing is missing."""
        bundles = {name: served.bundle for name, served in self._portfolio.models.items()} | added
        wanted = await _in_thread(lambda: wanted_of(bundles.values()))
        lacks = await _in_thread(lambda: self._store.lacks(wanted.groupings, wanted.schemas))
        return bundles if lacks else None

    async def _apply(
        self, changed: dict[str, Started], removed: list[str], models: dict[str, str] | None = None
    ) -> None:
        """Let this worker serve other bundles; on an error it serves what it did.

        Args:
            models: what is to be recorded, once nothing can go wrong any more.
        """
        portfolio, store = self._portfolio, self._store
        leaving = {*removed, *changed}
        for name, started in changed.items():
            portfolio.check(name, started.bundle, leaving)
        staying = {n: s.bundle for n, s in portfolio.models.items() if n not in leaving}
        bundles = staying | {n: started.bundle for n, started in changed.items()}
        groupings = store.groupings
        wanted = await _in_thread(lambda: wanted_of(bundles.values()))
        with store.wanting(wanted.groupings, wanted.schemas, wanted.sources):
            if changed and store.missing():  # forgotten since, by somebody who did not want it
                await _in_thread(lambda: fill_beside(self._config, bundles))
                store.want(wanted.groupings, wanted.schemas, wanted.sources)
            made = [await portfolio.prepared(started, store) for started in changed.values()]
            if models is not None:
                await self._record(models)
        if _contents(groupings) != _contents(store.groupings):
            regrouped = await portfolio.regroup(store.groupings)
            self._let_go(portfolio.answered(regrouped))
        gone = [portfolio.swap(prepared) for prepared in made] + [portfolio.remove(name) for name in removed]
        for served in gone:
            if served is not None:
                self._let_go(portfolio.retire(served))
        for name in removed:
            self._metrics.forget(name)
        for name in (*changed, *removed):
            version = changed[name].bundle.address if name in changed else None
            self._incidents.tell("swap", name, version=version)

    async def _everywhere(self, facts: dict[str, Any], generation: int) -> dict[str, Any]:
        """Wait until all workers serve a change; say how many do."""
        self._say()
        until = time.monotonic() + _OTHERS_SECONDS
        while True:
            others = await _in_thread(self._roll_call.others)
            serving = [said for said in others if said.generation >= generation]
            if len(serving) == len(others):
                break
            if any(said.trouble for said in others if said not in serving) or time.monotonic() > until:
                break
            await asyncio.sleep(0.02)
        if len(serving) == len(others) and not self._portfolio.missed():
            await asyncio.gather(*self._retiring)  # their last requests read what they always did
            async with self._alone():
                now = recorded(self._state)
                if now is None or now.generation == generation:  # else whoever comes after does it
                    await _in_thread(self._store.forget_others)
        troubles = [said.trouble for said in others if said not in serving and said.trouble]
        return {
            **facts,
            "generation": generation,
            "workers": {"serving": 1 + len(serving), "of": 1 + len(others)},
            **({"trouble": troubles[0]} if troubles else {}),
        }

    # following

    async def _follow(self) -> None:
        """Serve what others record."""
        seen = None
        while True:
            now, pause = mark(self._state), _LOOK_SECONDS
            if now != seen:
                await self._start_recorded()
                async with self._one_change:
                    await self._catch_up()
                # What cannot be served now may be once the disk or the store is well again.
                seen = None if self._trouble else now
                pause = _AGAIN_SECONDS if self._trouble else _LOOK_SECONDS
            self._watch_lanes()
            await asyncio.sleep(pause)

    def _recorded(self) -> tuple[Recorded, dict[str, str]] | None:
        """Give what is recorded, and what of it this worker does not serve; None where it serves all."""
        found = recorded(self._state)
        if found is None or found.generation <= self._serving.generation:
            return None
        return found, {n: a for n, a in found.models.items() if self._serving.models.get(n) != a}

    def _unstarted(self) -> list[tuple[str, str]]:
        """Give the models that others have recorded and whose start has not ended here."""
        news, ended = self._recorded(), {each for each, task in self._starting.items() if task.done()}
        return [] if news is None else [each for each in news[1].items() if each not in ended]

    async def _start_recorded(self) -> None:
        """Start what others have recorded, as far as that can be done beside other changes; how it went is in `_starting`."""
        wanted = self._unstarted()
        for each in wanted:
            if each not in self._starting:
                self._starting[each] = asyncio.ensure_future(self._started(*each))
        await asyncio.gather(*(self._starting[each] for each in wanted), return_exceptions=True)

    async def _started(self, name: str, address: str) -> Started:
        bundle = await _in_thread(lambda: self._portfolio.read(address))
        return await self._portfolio.started(name, bundle)

    async def _catch_up(self) -> None:
        """Serve what is recorded and has been started; what cannot be served stays as it was, and the others are told."""
        if self._unstarted():  # recorded just now: the next look is for it
            return
        news = self._recorded()
        starting, self._starting = self._starting, {}
        if news is None:
            self._begin(_stopped(starting))
            return
        found, changed = news
        try:
            started = {name: await starting[name, address] for name, address in changed.items()}
            removed = [n for n in {**self._serving.models, **self._portfolio.models} if n not in found.models]
            await self._apply(started, removed)
        except Exception as error:  # noqa: BLE001 # the edge: whatever it is, this worker goes on with what it has
            self._trouble = (
                error.what if isinstance(error, SameworldError) else f"{type(error).__name__}: {error}"
            )
            self._incidents.tell("swap failed", "models", reason=self._trouble)
        else:
            self._serving, self._trouble = found, ""
            for each in changed.items():
                del starting[each]
        self._begin(_stopped(starting))
        self._say()

    async def _keep_healing(self) -> None:
        """Serve the models whose bundle could not be read, once it can."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for name, address in self._portfolio.to_try_again().items():
                await self._heal(name, address)

    async def _heal(self, name: str, address: str) -> None:
        started: Started | None = None
        try:
            started = await self._started(name, address)
            await self._fill({name: started.bundle})
            async with self._one_change:
                if self._portfolio.to_try_again().get(name) == address:
                    await self._apply({name: started}, [])
                    started = None
                    self._incidents.tell("model recovered", name, version=address)
        except Exception as error:  # noqa: BLE001 # see `_catch_up`
            if self._portfolio.to_try_again().get(name) == address:
                self._portfolio.miss(name, address, error)
        finally:
            if started is not None:
                self._begin(started.stop())

    def _watch_lanes(self) -> None:
        """Tell of models whose process broke, and of those that came back."""
        for name, served in self._portfolio.models.items():
            lane = served.lane
            if not isinstance(lane, GuardedLane) or not lane.settled:
                continue
            state = "" if lane.ready and lane.breaker.allows(time.monotonic()) else lane.breaker.reason
            before = self._lanes.get(name)
            self._lanes[name] = served, state
            known = before[1] if before is not None and before[0] is served else ""
            if state and not known:
                self._incidents.tell("model broken", name, version=served.bundle.address, reason=state)
            elif known and not state:
                self._incidents.tell("model recovered", name, version=served.bundle.address)
        for name in [name for name in self._lanes if name not in self._portfolio.models]:
            del self._lanes[name]

    # telling

    async def _keep_saying(self) -> None:
        while True:
            await asyncio.sleep(_SAY_SECONDS)
            self._say()

    def _say(self) -> None:
        with contextlib.suppress(OSError):  # where nothing can be written, the others see what was said last
            self._roll_call.say(self._own())

    def _own(self) -> Said:
        models = {name: self._metrics.recent(name).summary() for name in self._portfolio.models}
        return Said(
            pid=os.getpid(),
            at=self._store.clock.now(),
            generation=self._serving.generation,
            trouble=self._trouble,
            models=models,
        )

    def listing(self) -> dict[str, Any]:
        """Give the models that are served."""
        return {
            "generation": self._serving.generation,
            "models": [
                {
                    "model": name,
                    "version": address,
                    "loaded": name in self._portfolio.models and self._portfolio.is_loaded(name),
                    "execution": self._portfolio.models[name].bundle.execution
                    if name in self._portfolio.models
                    else None,
                }
                for name, address in sorted(self._serving.models.items())
            ],
        }

    async def status(self) -> dict[str, Any]:
        """Give how every model is doing, all workers together; see `together`."""
        workers = [self._own(), *await _in_thread(self._roll_call.others)]
        now = self._store.clock.now()
        with self._store.snapshot() as snapshot:
            latest = snapshot.latest()
        models: list[dict[str, Any]] = []
        for name, served in self._portfolio.models.items():
            own = served.bundle.model.sources
            models.append(
                {
                    "model": name,
                    "version": served.bundle.address,
                    "since": self._serving.since.get(name),
                    **together(said.models[name] for said in workers if name in said.models),
                    "lane": "native" if isinstance(served.lane, NativeLane) else "guarded",
                    "execution": served.bundle.execution,
                    "loaded": self._portfolio.is_loaded(name),
                    "bytes": self._portfolio.bytes_of(name),
                    "sources": {s.name: _age(latest.get(s.content), now) for s in own},
                }
            )
        for name, reason in self._portfolio.missed().items():
            models.append(
                {
                    "model": name,
                    "version": self._serving.models[name],
                    "since": self._serving.since.get(name),
                    **together(()),
                    "tier": NONE,
                    "reason": reason,
                    "lane": None,
                    "execution": None,
                    "loaded": False,
                    "bytes": 0,
                    "sources": {},
                }
            )
        return {
            "generation": self._serving.generation,
            "workers": [{"pid": s.pid, "generation": s.generation, "trouble": s.trouble} for s in workers],
            "memory": {"models": self._portfolio.bytes, "budget": self._config.memory},
            "models": sorted(models, key=lambda model: model["model"]),
        }


def _age(at: int | None, now: int) -> float | None:
    return None if at is None else (now - at) / 1e6


def _contents(groupings: Sequence[Grouping]) -> list[str]:
    return [grouping.content for grouping in groupings]


async def _stopped(starting: dict[tuple[str, str], asyncio.Task[Started]]) -> None:
    """End what was started and is not served after all."""
    for started in await asyncio.gather(*starting.values(), return_exceptions=True):
        if isinstance(started, Started):
            await started.stop()


async def _in_thread(call: Callable[[], _Result]) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(None, call)


def fill_beside(config: ServerConfig, bundles: Mapping[str, Bundle]) -> None:
    """Fill what a store misses for some models, in a process of its own: its sorting must not be felt by those who are answered.

    Raises:
        SameworldError: it could not; what it said.
    """
    models = {name: bundle.address for name, bundle in bundles.items()}
    given = msgspec.json.encode(msgspec.structs.replace(config, models=models))
    command = [sys.executable, "-m", "sameworld.server.filling_process"]
    with beside.started(command, piped=True) as filling:
        said, _ = filling.communicate(given)
    if filling.returncode:
        raise SameworldError(
            "What the model reads could not be filled.",
            where=config.state,
            found=said.decode(errors="replace").strip()
            or f"the process ended with {filling.returncode}; see what it said",
            do="correct what it says and send the request again; what was served before is served on.",
        )
