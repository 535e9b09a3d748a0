"""Everything in the documentation that can be run runs, page by page, in order, in an empty folder and a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_page import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [
    page
    for page in PAGES
    if any(block.language == "python" or block.before == "<!-- run -->" for block in blocks(page.read_text()))
]
TUTORIAL_LINES = 60


def run_page(page: Path, folder: Path) -> str:
    """Run a page in a folder; give what its blocks printed. Servers it leaves behind are ended."""
    tools = folder / "tools"
    tools.mkdir()
    # What an installed package puts on the path; the tests run from the sources too.
    command = tools / "sameworld"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sameworld.cli.main "$@"\n')
    command.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {
        **os.environ,
        "PYTHONPATH": paths,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
    }
    log = folder / "page.log"
    work = folder / "work"
    work.mkdir()
    with log.open("w") as out:
        reader = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_page.py")), str(page)],
            cwd=work,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = reader.wait(280)
        finally:
            # Its process group is its own, and so are the servers in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(reader.pid, signal.SIGKILL)
            reader.wait()
    printed = log.read_text()
    assert status == 0, f"{page.relative_to(ROOT)} does not run:\n{printed[-6000:]}"
    return printed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the pages ask the server with curl")
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    printed = run_page(page, tmp_path)

    if page.name == "tutorial.md":
        assert '"tier":"model"' in printed
        assert '{"accepted":1}' in printed
        assert ", 0 different;" in printed


def test_the_tutorial_is_short() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()
    python = [
        line for block in blocks(page) if block.language == "python" for line in block.text.splitlines()
    ]

    assert len(python) < TUTORIAL_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if path.is_file() else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        if not path.exists() or (anchor and anchor not in anchors):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_no_machine(page: Path) -> None:
    text = page.read_text()

    assert not [word for word in ("/tmp/", "/home/", "localhost", "0.0.0.0") if word in text]
