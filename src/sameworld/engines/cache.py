"""A cache in a folder, by content: an entry is a folder of files under the hash of everything they were made from. Shared by any number of processes.

An entry appears whole, by one rename, or not at all; it never changes afterwards. A reader may hold an entry's files open or mapped while another
process removes it: its files stay until they are let go of.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sameworld.errors import StoreError

_FORMAT = 1
_ENTRY = "entry.json"
_RACY_NANOSECONDS = 2_000_000_000


@dataclass(frozen=True)
class Entry:
    """One finished entry.

    Args:
        kind, key: what it is kept under.
        about: one line for people.
        parts: what the key is a hash of.
        bytes: of all its files.
        created, used: seconds since 1970.
        folder: where it is.
    """

    kind: str
    key: str
    about: str
    parts: dict[str, Any]
    bytes: int
    created: float
    used: float
    folder: Path


class Building:
    """An entry in the making.

    Attributes:
        folder: to write files to.
        path: where the entry is once it is finished.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path


class Cache:
    """A cache.

    Args:
        folder: made when something is kept for the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, kind: str, key: str) -> Path | None:
        """Give a finished entry's folder, and note that it was used. A damaged entry is no entry."""
        path = self._path(kind, key)
        if _read(path) is None:
            return None
        with contextlib.suppress(OSError):  # a cache that cannot be written to can still be read
            os.utime(path / _ENTRY)
        return path

    @contextlib.contextmanager
    def build(self, kind: str, key: str, about: str, parts: Mapping[str, Any]) -> Generator[Building]:
        """Make an entry: write to the given `folder`; it is finished when the block ends well, and nothing is left of it when not.

        If another process has finished the same entry meanwhile, that one is kept.
        """
        self._sweep()
        path = self._path(kind, key)
        with self._temporary() as folder:
            building = Building(folder, path)
            yield building
            files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
            entry = {
                "format": _FORMAT,
                "kind": kind,
                "key": key,
                "about": about,
                "parts": dict(parts),
                "files": files,
                "created": time.time(),
            }
            (folder / _ENTRY).write_text(json.dumps(entry))
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and _read(path) is None:
                self._remove(path)
            try:
                folder.rename(path)
            except OSError:
                if _read(path) is None:
                    raise

    @contextlib.contextmanager
    def lock(self, kind: str, key: str) -> Generator[None]:
        """Hold what only one process should make at a time; another waits here, and finds it made. A holder that dies lets go."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{kind}-{key[:40]}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def entries(self, kind: str = "*") -> list[Entry]:
        """Give all finished entries, or those of a kind, the least recently used first."""
        found = (
            _read(path.parent) for path in self.folder.glob(f"{kind}/*/*/{_ENTRY}") if path.parts[-4] != "tmp"
        )
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)

    def trim(
        self,
        limit_bytes: int | None = None,
        *,
        older_than_seconds: float | None = None,
        kinds: Collection[str] | None = None,
    ) -> list[Entry]:
        """Remove entries, the least recently used first, and give them.

        Args:
            limit_bytes: how much to keep.
            older_than_seconds: remove what was not used for so long.
            kinds: which kinds to remove; all by default.
        """
        self._sweep()
        entries = self.entries()
        size = sum(entry.bytes for entry in entries)
        gone: list[Entry] = []
        for entry in entries:
            old = older_than_seconds is not None and time.time() - entry.used > older_than_seconds
            large = limit_bytes is not None and size > limit_bytes
            if (kinds is None or entry.kind in kinds) and (old or large):
                self._remove(entry.folder)
                size -= entry.bytes
                gone.append(entry)
        for path in self.folder.glob("*/*/*"):
            if path.parts[-3] != "tmp" and path.is_dir() and _read(path) is None:
                self._remove(path)
        return gone

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / key

    @contextlib.contextmanager
    def _temporary(self) -> Generator[Path]:
        """Give a folder that goes when the block ends, if it is still there, and when this process is gone."""
        made = self.folder / "tmp"
        made.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=made, suffix=".lock") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            folder = Path(held.name).with_suffix("")
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Take an entry away at once, then delete its files."""
        with self._temporary() as folder, contextlib.suppress(FileNotFoundError):
            path.rename(folder / "gone")

    def _sweep(self) -> None:
        """Delete what processes that were killed had begun."""
        for lock in (self.folder / "tmp").glob("*.lock"):
            with contextlib.suppress(OSError), lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)


def cache_folder(folder: Path | None, cache: Path | bool) -> Path | None:
    """Give where to keep things: `.sameworld/cache` in a world's folder (True), a folder of one's own, or nowhere (False)."""
    if isinstance(cache, Path):
        return cache
    return (folder or Path()) / ".sameworld" / "cache" if cache else None


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _read(folder: Path) -> Entry | None:
    """Give an entry if it is whole."""
    try:
        path = folder / _ENTRY
        read = json.loads(path.read_text())
        sizes: dict[str, int] = read["files"]
        if read["format"] != _FORMAT or any(
            (folder / name).stat().st_size != size for name, size in sizes.items()
        ):
            return None
        return Entry(
            read["kind"],
            read["key"],
            read["about"],
            read["parts"],
            sum(sizes.values()),
            read["created"],
            path.stat().st_mtime,
            folder,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fingerprint_of_files(paths: Iterable[Path], cache: Cache | None = None) -> list[tuple[str, int, str]]:
    """Give (path, bytes, digest of the contents) of files.

    Args:
        paths: the files.
        cache: remembers digests of files whose size, times and inode have not changed. A file that was changed within the last two seconds is not
            remembered: it could change again within the clock's step.

    Raises:
        StoreError: a file cannot be read.
    """
    result: list[tuple[str, int, str]] = []
    for path in paths:
        try:
            status = path.stat()
            about = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
            key = hashlib.blake2b(json.dumps(about).encode(), digest_size=16).hexdigest()
            known = cache.folder / "digests" / key[:2] / key if cache is not None else None
            digest = _remembered(known)
            if digest is None:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
                if known is not None and time.time_ns() - status.st_mtime_ns > _RACY_NANOSECONDS:
                    _remember(known, digest)
        except OSError as error:
            raise StoreError(
                f"A file cannot be read: {error}.", where=str(path), do="check that it is there and readable."
            ) from error
        result.append((str(path), status.st_size, digest))
    return result


def _remembered(path: Path | None) -> str | None:
    try:
        digest = path.read_text() if path is not None else ""
    except OSError:
        return None
    return digest if len(digest) == 32 else None


def _remember(path: Path, digest: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(digest)
        Path(file.name).replace(path)
