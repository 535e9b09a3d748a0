"""Where values are made: versions of libraries, and the processor."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

_PACKAGES = ("sameworld", "numpy", "pyarrow", "duckdb", "numba", "lightgbm", "scikit-learn")


def environment() -> dict[str, str]:
    """Give the versions and the processor that bits may depend on."""
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        flags = next(
            (line.split(":", 1)[1] for line in info.read_text().splitlines() if line.startswith("flags")), ""
        )
    features = " ".join(flag for flag in ("avx", "avx2", "fma", "avx512f") if f" {flag} " in f"{flags} ")
    versions = {name: _version(name) for name in _PACKAGES}
    return {**versions, "python": platform.python_version(), "machine": platform.machine(), "cpu": features}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
