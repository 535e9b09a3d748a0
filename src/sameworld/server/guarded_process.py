"""The other end of the guarded lane: a process of its own in which a user's Python runs. It may hang, spin, leak or crash: it is killed, and that is all.

Forked of `guarded_origin`, or run as `python -m sameworld.server.guarded_process REGISTRY ADDRESS PART MEMORY [WORLD]`; PART is 0 for the model, 1 for its first fallback. Frames on stdin
and stdout: u32 length, then an Arrow stream; a reply's first byte is 0 for an answer, 1 for the text of what went wrong, and 2 for the same when the process ends after it. The first reply says that the bundle is loaded.

MEMORY is how many bytes more than then it may take: an allocation beyond them fails. What was leaked is freed by beginning anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from sameworld.asof.request import evaluate
from sameworld.training.bundle import Bundle, Registry
from sameworld.training.fitted import Part, said_by
from sameworld.training.world_file import functions_of

_LENGTH = struct.Struct("<I")


def main(arguments: Sequence[str]) -> None:
    """Answer frames until stdin ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the user's code prints must not end up between frames
    die_with_parent()
    registry, address, number, memory, *world = arguments
    try:
        bundle = Registry(Path(registry)).load(address, functions_of(Path(world[0])) if world else ())
        part = bundle.parts[int(number) - 1] if int(number) else None
    except Exception as error:  # noqa: BLE001 # the edge of the process: the parent is told
        _send(replies, b"\1" + f"{type(error).__name__}: {error}".encode())
        return
    _limit_memory(int(memory))
    _send(replies, b"\0")
    while True:
        head = requests.read(4)
        if len(head) < 4:
            return
        frame = requests.read(_LENGTH.unpack(head)[0])
        try:
            reply = b"\0" + _answer(bundle, part, frame)
        except MemoryError:
            _send(replies, b"\2" + f"it took more than {int(memory) >> 20} MiB and was ended".encode())
            return
        except (Exception, SystemExit) as error:  # noqa: BLE001 # the edge of the process: a user's code may raise anything
            reply = b"\1" + f"{type(error).__name__}: {error}".encode()[:2000]
        _send(replies, reply)


def _answer(bundle: Bundle, part: Part | None, frame: bytes) -> bytes:
    batch = read_batch(frame)
    aggregates = {name[1:]: batch.column(name) for name in batch.schema.names if name[0] == "a"}
    fields = {name[1:]: batch.column(name) for name in batch.schema.names if name[0] == "f"}
    features, scorer = (part.features, part.scorer) if part else (bundle.model.features, bundle.scorer)
    columns = evaluate(features, aggregates, fields, bundle.types)
    said = pa.array(said_by(bundle.model, scorer, columns))
    return write_batch({**{"c" + name: column for name, column in columns.items()}, "s": said})


def write_batch(columns: dict[str, pa.Array]) -> bytes:
    """Give columns as an Arrow stream."""
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def read_batch(frame: bytes) -> pa.RecordBatch:
    """Read what `write_batch` gave."""
    with pyarrow.ipc.open_stream(frame) as reader:
        return reader.read_next_batch()


def _send(replies: io.BufferedWriter, reply: bytes) -> None:
    replies.write(_LENGTH.pack(len(reply)) + reply)
    replies.flush()


def _limit_memory(more: int) -> None:
    """Let allocations fail beyond what this process has now and so much more, and have it be the first to go when the machine is short of memory."""
    if sys.platform != "linux":
        return
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmData"].split()[0]) * 1024 + more
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most < 0 else min(limit, most), most))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the server dies, even while it spins."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
