"""Forked processes: they do what they are told, hold nothing else open, and say how they ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sameworld.server.forked import SETTINGS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
STORY = """
import os, signal, subprocess, sys, time
import sameworld.server.supervisor
from sameworld.server.forked import can_fork, forked
import numpy as np

assert can_fork(), os.listdir("/proc/self/task")
ours, theirs = os.pipe()
other, _ = os.pipe()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
before = np.random.random()

def told():
    kept = [number for number in range(100) if os.path.exists(f"/proc/self/fd/{number}")]
    assert kept == [0, 1, 2, theirs], kept
    os.write(theirs, str(np.random.random()).encode())

child = forked(told, [theirs])
assert child.wait() == 0 and child.poll() == 0
first = os.read(ours, 100)
again = forked(told, [theirs])
assert again.wait(10) == 0
assert first != os.read(ours, 100)

asleep = forked(lambda: time.sleep(60), [])
try:
    asleep.wait(0.05)
except subprocess.TimeoutExpired:
    pass
else:
    raise AssertionError("it sleeps")
asleep.send_signal(signal.SIGTERM)
assert asleep.wait(10) == -signal.SIGTERM
asleep.kill()  # of what has ended nothing is left to be hit

assert forked(lambda: sys.exit(3), []).wait() == 3
assert forked(lambda: 1 / 0, []).wait() == 1
print("told")
"""


def test_a_forked_process_has_what_it_is_given_and_says_how_it_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STORY],
        env={**os.environ, **SETTINGS},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "ZeroDivisionError" in done.stderr
