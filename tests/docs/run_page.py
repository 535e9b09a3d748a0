"""Run one page of the documentation from top to bottom, as its reader would: `python run_page.py PAGE`, in an empty folder.

Python blocks share one namespace; one that begins with `# name.py` is a file of that name. A shell block runs when
the line before it is `<!-- run -->`. A text block after `<!-- prints -->` is what the block before it must have printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the line before it."""

    line: int
    language: str
    text: str
    before: str


def blocks(page: str) -> Iterator[Block]:
    """Give a page's fenced blocks in order."""
    for match in _BLOCK.finditer(page):
        above = page[: match.start()]
        lines = above.splitlines()
        yield Block(above.count("\n") + 2, match[2], match[3], lines[-1].strip() if lines else "")


def run(path: Path) -> None:
    """Run a page's blocks in this folder.

    Raises:
        AssertionError: a block printed something else than the page says.
    """
    sys.path.insert(0, str(Path.cwd()))
    names: dict[str, object] = {"__name__": "page"}
    printed = ""
    for block in blocks(path.read_text()):
        place = f"{path.name}:{block.line}"
        named = _FILE.match(block.text)
        if block.language == "python" and named:
            Path(named[1]).write_text(block.text)
        elif block.language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.text, place, "exec"), names)
            printed = out.getvalue()
        elif block.language == "shell" and block.before == "<!-- run -->":
            # A server started with & goes on: only files may be its output, or this would wait for it.
            with Path("shell.out").open("w+") as shell:
                text = block.text.replace(":8000", f":{os.environ['PORT']}").replace(
                    "sameworld serve", f"sameworld serve --port {os.environ['PORT']}"
                )
                done = subprocess.run(["bash", "-eo", "pipefail", "-c", text], stdout=shell, check=False)
                shell.seek(0)
                printed = shell.read()
            assert done.returncode == 0, f"{place} ended with {done.returncode}\n{printed}"
        elif block.before == "<!-- prints -->":
            assert printed == block.text, f"{place} says\n{block.text}\nbut it printed\n{printed}"
            continue
        else:
            continue
        print(f"ran {place}\n{printed}", flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
