"""Where guarded processes come from: they start, are heard of when they end, and end with what they are forked of."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from served_world import gone
from small_world import SmallWorld

from sameworld.server.guarded_child import CAN_FORK, GuardedChild, Origin

forking = pytest.mark.skipif(not CAN_FORK, reason="this system cannot tell of the end of another's child")


async def said(child: GuardedChild) -> bytes:
    async with asyncio.timeout(60):
        return await child.read(int.from_bytes(await child.read(4), "little"))


def run(story: Callable[[Origin], Awaitable[None]], **options: bool) -> None:
    async def told() -> None:
        origin = Origin(**options)
        try:
            await story(origin)
        finally:
            origin.close()

    asyncio.run(told())


def arguments(world: SmallWorld) -> list[str]:
    return [str(world.folder / "registry"), world.registry.newest("plain") or "", "0", "1000000000"]


@pytest.mark.parametrize("forks", [pytest.param(True, marks=forking), False])
def test_a_process_answers_and_is_heard_of_when_it_ends(trained_world: SmallWorld, forks: bool) -> None:
    async def story(origin: Origin) -> None:
        ready = await origin.child(arguments(trained_world))
        assert await said(ready) == b"\0"
        unready = await origin.child([*arguments(trained_world)[:1], "nothing", "0", "1000000000"])
        assert (await said(unready)).startswith(b"\1BundleError: There is no bundle nothing.")
        async with asyncio.timeout(60):
            await unready.ended()
            await asyncio.gather(unready.kill(), ready.kill())
        assert gone(ready.pid)

    run(story, forks=forks)


@forking
def test_processes_end_with_what_they_are_forked_of_and_the_next_is_forked_of_another(
    trained_world: SmallWorld,
) -> None:
    async def story(origin: Origin) -> None:
        first = await origin.child(arguments(trained_world))
        assert await said(first) == b"\0"
        parent = int(Path(f"/proc/{first.pid}/stat").read_text().rpartition(") ")[2].split()[1])
        assert parent != os.getpid()
        os.kill(parent, signal.SIGKILL)
        async with asyncio.timeout(60):
            await first.ended()
            while True:
                try:
                    second = await origin.child(arguments(trained_world))
                    break
                except OSError:  # it has not been noticed yet
                    await asyncio.sleep(0.05)
        assert await said(second) == b"\0"
        await asyncio.gather(first.kill(), second.kill())

    run(story)


@forking
def test_a_process_that_nobody_waits_for_any_more_is_ended_and_taken_for_no_other(
    trained_world: SmallWorld,
) -> None:
    async def story(origin: Origin) -> None:
        given_up = asyncio.create_task(origin.child(arguments(trained_world)))
        await asyncio.sleep(0.01)
        given_up.cancel()
        child = await origin.child(arguments(trained_world))
        assert await said(child) == b"\0"
        parent = Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()[1]
        children = Path(f"/proc/{parent}/task/{parent}/children")
        async with asyncio.timeout(30):
            while children.read_text().split() != [str(child.pid)]:
                await asyncio.sleep(0.05)
        await child.kill()

    run(story)
