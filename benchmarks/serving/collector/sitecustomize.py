"""Python imports this as it starts, in every process of a contestant whose garbage collector is watched, or set otherwise; see `with_collector`."""

import gc
import os
import time


def _nothing(*_: object) -> None:
    """What the contestant itself says of the collector is not heard."""


def _watch(file: int) -> None:
    """Write what each collection took of this thread's processor time, in microseconds."""
    begun = 0.0

    def told(phase: str, _: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.thread_time()
        else:
            os.write(file, b"%d\n" % round((time.thread_time() - begun) * 1e6))

    gc.callbacks.append(told)


if "COLLECTIONS" in os.environ:
    _watch(os.open(os.environ["COLLECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND))
if os.environ.get("COLLECTOR") == "off":
    gc.disable()
if os.environ.get("COLLECTOR", "own") != "own":
    gc.enable = gc.disable = gc.freeze = gc.set_threshold = _nothing
