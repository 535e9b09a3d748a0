"""A worker is there as long as its process is, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sameworld.server.roll_call import RollCall, Said, present

SCRIPT = """
import sys
from pathlib import Path
from sameworld.server.roll_call import RollCall, Said
call = RollCall(Path(sys.argv[1]))
call.say(Said(pid=7, at=1, generation=3))
print("there", flush=True)
sys.stdin.read()
"""


def test_a_killed_worker_is_not_there_and_leaves_nothing(tmp_path: Path) -> None:
    own = RollCall(tmp_path)
    assert own.others() == []
    other = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"there\n"
    assert own.others() == [Said(pid=7, at=1, generation=3)]
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert own.others() == []
    own.say(Said(pid=os.getpid(), at=2, generation=4))
    assert [said.generation for said in present(tmp_path).values()] == [4]
    own.leave()
    assert present(tmp_path) == {}
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_worker_that_has_said_nothing_yet_is_not_counted(tmp_path: Path) -> None:
    call = RollCall(tmp_path)
    assert present(tmp_path) == {}
    call.leave()
