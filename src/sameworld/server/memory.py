"""How much memory this process has allocated: read before and after a model is loaded, it says what the model takes."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


@functools.cache
def _mallinfo() -> Callable[[], _Mallinfo] | None:
    """Find the C library's own account of what is allocated, of all its arenas; not every library has one."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    found.restype = _Mallinfo
    return found


def allocated_bytes() -> int:
    """Give the bytes that are allocated now; what is resident, where the C library does not say."""
    mallinfo = _mallinfo()
    if mallinfo is not None:
        info = mallinfo()
        return info.uordblks + info.hblkhd
    return resident_bytes()


def resident_bytes() -> int:
    """Give the bytes of this process that are in memory; 0 where that cannot be known."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def process_bytes(pid: int) -> int:
    """Give what another process takes of the machine's memory, with its part of what it shares with others; 0 where that cannot be known.

    Takes some milliseconds: the kernel adds it up.
    """
    try:
        account = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has gone, or this system does not say
        return 0
    return next((int(line.split()[1]) << 10 for line in account.splitlines() if line.startswith("Pss:")), 0)


def give_back() -> None:
    """Give free memory back to the system; the C library keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
