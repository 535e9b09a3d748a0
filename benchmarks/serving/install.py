"""Make one environment a peer, from benchmarks/serving/peers/*.txt, under a folder: `python -m benchmarks.serving.install .venv-serving`.

Runs on the standard library alone. What could not be installed is left out of the benchmark, which says why.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REASON = "not-installed.txt"
_REQUIREMENTS = Path(__file__).parent / "peers"


def main() -> int:
    """Install every peer whose requirements have changed since."""
    folder = Path(sys.argv[1])
    for requirements in sorted(_REQUIREMENTS.glob("*.txt")):
        wanted, made = requirements.read_text(), folder / requirements.stem
        done = made / requirements.name
        if done.exists() and done.read_text() == wanted:
            continue
        print(f"installing {requirements.stem}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(made)], check=True)
        pip = [str(made / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(requirements)]
        tried = subprocess.run(pip, capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            done.write_text(wanted)
        else:
            reason = (tried.stderr.strip() or "pip failed").splitlines()[-1]
            (made / REASON).write_text(reason)
            print(f"{requirements.stem} could not be installed: {reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
