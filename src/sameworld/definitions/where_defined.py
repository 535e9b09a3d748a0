"""Where a definition was written, for its errors: the first frame outside this package."""

from __future__ import annotations

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def caller() -> str:
    """Give `file:line` of the nearest caller outside sameworld, or an empty string."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] # inspect.stack() reads every source file; this does not
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE) and not name.startswith("<"):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
