"""Compile a kernel once for all processes, and anew whenever any of the code that may be inlined in it has changed.

Numba keeps compiled functions by the time and size of the file that defines them, and so would go on using what another file has changed since.
Here they are kept under a hash of this whole package: beside it, or in the user's cache folder when the installation cannot be written to.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config


def _folder() -> Path:
    here = Path(__file__).parent
    state = hashlib.blake2b(f"numba {numba.__version__}".encode(), digest_size=12)
    for path in sorted(here.glob("*.py")):
        state.update(path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for place in (here / "__pycache__", home / "sameworld", Path(tempfile.gettempdir()) / "sameworld"):
        folder = place / f"kernels-{state.hexdigest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="sameworld-"))


_FOLDER = str(_folder())


def compiled(*signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function to be compiled without Python's lock and kept on disk; with a signature it is compiled at once.

    Args:
        signature: as for `numba.njit`; nothing to compile for the types of the first call.
        options: as for `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        before = config.CACHE_DIR
        config.CACHE_DIR = _FOLDER
        try:
            return numba.njit(*signature, cache=True, nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate
