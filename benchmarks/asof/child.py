"""One step of the benchmark in a process of its own; the runner starts it, reads lines of JSON from it, and may end it.

python -m benchmarks.asof.child generate FOLDER EVENTS SEED ENTITIES CORRECTED   ENTITIES 0: as many as belong to the events; CORRECTED 0: without corrected.parquet
                                describe CONTESTANT                     {"versions": ..., "missing": ...}
                                answer CONTESTANT FOLDER FILE           writes the answer as an Arrow file
                                measure CONTESTANT SMALL FOLDER         {"ready": true} after a run on SMALL; {"seconds": ..., "processor": ..., "peak": ...}
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from benchmarks.asof.contestants import CONTESTANTS, EASIER, Contestant
from benchmarks.asof.processes import peak, processor_seconds

# Libraries print; what they print goes where errors go.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def say(answer: dict[str, Any]) -> None:
    """Tell the runner."""
    print(json.dumps(answer), file=_ANSWERS, flush=True)


def _failed(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    said = str(error).strip().splitlines() or [""]
    say({"failed": f"{kind.__name__}: {said[0]}"[:200]})
    sys.__excepthook__(kind, error, where)


def _module(contestant: Contestant) -> ModuleType:
    return importlib.import_module(f"benchmarks.asof.contestants.{contestant.module}")


def _runs(contestant: Contestant, folder: str) -> Callable[[], Any]:
    """Give a run on a folder, after what must be there before the clock."""
    module, path = _module(contestant), Path(folder)
    if hasattr(module, "set_up"):
        module.set_up(contestant.function, path)
    return lambda: getattr(module, contestant.function)(path)


def generate(folder: str, events: str, seed: str, entities: str, corrected: str) -> None:
    """Write the data."""
    from benchmarks.asof.generate import generate as write  # noqa: PLC0415 # a contestant's environment may lack numpy

    write(
        Path(folder),
        int(events),
        int(seed),
        entities=int(entities) or None,
        corrected=corrected == "1",
    )
    say({"done": True})


def describe(name: str) -> None:
    """Say which versions there are, or what is missing."""
    contestant = CONTESTANTS[name]
    versions: dict[str, str] = {}
    for need in contestant.needs:
        try:
            versions[need] = metadata.version(need)
        except metadata.PackageNotFoundError:
            say({"versions": {}, "missing": "library"})
            return
    module = _module(contestant)
    missing = module.missing(contestant.function) if hasattr(module, "missing") else ""
    more = module.versions() if hasattr(module, "versions") and not missing else {}
    say({"versions": versions | more, "missing": missing})


def answer(name: str, folder: str, file: str) -> None:
    """Write an answer for the check."""
    import pyarrow as pa  # noqa: PLC0415 # see above

    contestant = {**CONTESTANTS, EASIER.name: EASIER}[name]
    rows = _module(contestant).table(_runs(contestant, folder)())
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    say({"done": True})


def measure(name: str, small: str, folder: str) -> None:
    """Run once on small data, so that everything is imported, compiled and started; then once against the clock."""
    contestant = CONTESTANTS[name]
    _runs(contestant, small)()
    run = _runs(contestant, folder)
    say({"ready": True})
    before, begin = processor_seconds(), time.perf_counter()
    made = run()
    seconds = time.perf_counter() - begin
    say({"seconds": seconds, "processor": processor_seconds() - before, "peak": peak()})
    del made


if __name__ == "__main__":
    sys.excepthook = _failed
    steps: dict[str, Callable[..., None]] = {
        "generate": generate,
        "describe": describe,
        "answer": answer,
        "measure": measure,
    }
    steps[sys.argv[1]](*sys.argv[2:])
