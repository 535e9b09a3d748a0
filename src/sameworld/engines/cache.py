"""A cache in a folder, by content: an entry is a folder of files under the hash of everything they were made from. Shared by any number of processes.

An entry appears whole, by one rename, or not at all; it never changes afterwards. A damaged one counts as absent: files of other sizes, and small
files of other contents. (Large ones are not read to see whether a disk has kept them.) What is in a cache can be made
again, so it may be deleted at any time: files that a reader has open or mapped stay until it lets go of them, and one that meets a
FileNotFoundError after `get` makes the entry again (or holds it with `pinned` from the beginning).

A cache that cannot be written (no space, no permission, no locks) raises the OSError as it is, wherever it is met: the caller goes on without. Nothing
half-written is ever seen.

    <kind>/<first two of key>/<key>/    an entry: its files, and entry.json, which says what it is; the time that file was changed is the time of last use
    tmp/<name>/, tmp/<name>.lock        what is being made or deleted, and the lock that its process holds meanwhile
    locks/<kind>.<key>                  held by the one process that makes an entry
    digests.msgpack                     what `fingerprint_of_files` remembers
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from sameworld.errors import DataError

DEFAULT = Path(".sameworld/cache")
"""Where a world's cache lies, from the world's folder."""

_FORMAT = 2
_ENTRY = "entry.json"
_TMP, _LOCKS, _DIGESTS = "tmp", "locks", "digests.msgpack"
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RACY_SECONDS = 2.0
_SMALL = 1 << 16  # bytes; what says how the rest is to be read is no larger


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


class _Stored(msgspec.Struct, frozen=True):
    """What `entry.json` holds; `files` are the sizes of all other files, `digests` those of the contents of small ones."""

    format: int
    kind: str
    key: str
    about: str
    parts: dict[str, Any]
    files: dict[str, int]
    digests: dict[str, str]
    bytes: int
    created: float


_DECODER = msgspec.json.Decoder(_Stored)


class Building:
    """An entry in the making.

    Attributes:
        folder: to write files to, on the cache's file system.
        path: where the entry is once it is finished.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder, self.path = folder, path


def cache_folder(folder: Path | None, cache: Path | bool) -> Path | None:
    """Give where to keep things: `.sameworld/cache` in a world's folder (True), a folder of one's own, or nowhere (False)."""
    if not isinstance(cache, bool):
        return Path(cache)
    return Path(folder or "") / DEFAULT if cache else None


class Cache:
    """A cache. Any number of objects, threads and processes may work on one folder.

    Args:
        folder: made when something is kept for the first time.
        clock: gives seconds since 1970.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.clock = folder, clock

    def get(self, kind: str, key: str) -> Path | None:
        """Give a finished entry's folder, and note that it was used; None when there is none, or a damaged one."""
        path = self._path(kind, key)
        if _read(path) is None:
            return None
        with suppress(OSError):  # a cache that cannot be written can still be read
            now = self.clock()
            os.utime(f"{path}/{_ENTRY}", (now, now))
        return path

    @contextmanager
    def pinned(self, kind: str, key: str) -> Generator[Path | None]:
        """As `get`; and no `trim` takes the entry away while the block runs."""
        entry = self._path(kind, key) / _ENTRY
        while True:
            try:
                file = entry.open("rb")
            except OSError:
                break
            with file:
                fcntl.flock(file, fcntl.LOCK_SH)
                if _is_at(file, entry):  # else it was trimmed while this waited
                    yield self.get(kind, key)
                    return
        yield None

    @contextmanager
    def build(self, kind: str, key: str, about: str, parts: Mapping[str, Any]) -> Generator[Building]:
        """Make an entry: write files to the given `folder`, and close them. The entry is there when the block has ended well; nothing of it is left when not.

        If another process has finished the same entry meanwhile, that one is kept.

        Args:
            kind, key: letters, digits, - and _; the key is a hash.
            about: one line for people.
            parts: what the key is a hash of, for people and for who looks for a similar entry; JSON.

        Raises:
            OSError: no space, or no permission.
        """
        path = self._path(kind, key)
        self._sweep()
        with _temporary(self.folder / _TMP) as folder:
            yield Building(folder, path)
            files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
            size = sum(files.values())
            digests = {name: _digest(folder / name) for name, length in files.items() if length <= _SMALL}
            stored = _Stored(_FORMAT, kind, key, about, dict(parts), files, digests, size, self.clock())
            (folder / _ENTRY).write_bytes(msgspec.json.format(msgspec.json.encode(stored), indent=1))
            os.utime(folder / _ENTRY, (stored.created, stored.created))
            # A power cut must not leave files of the right size and other contents. It may well lose the entry.
            for file in _files(folder):
                _sync(file)
            _sync(folder)
            self._publish(folder, path)

    @contextmanager
    def lock(self, kind: str, key: str) -> Generator[None]:
        """Hold what only one process should make at a time; another waits here, and then finds it made. A holder that dies lets go.

        Not for the same entry twice in one thread.
        """
        name = f"{kind}.{self._path(kind, key).name}"
        locks = self.folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with _held(locks / name):
            yield

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Give all finished entries, or those of a kind; the least recently used first."""
        found = (_read(path) for path in self._folders(kind))
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)

    def trim(
        self,
        limit_bytes: int | None = None,
        older_than_seconds: float | None = None,
        kinds: Collection[str] | None = None,
    ) -> list[Entry]:
        """Remove entries, the least recently used first, and what is damaged; give the entries removed. Pinned ones stay.

        Args:
            limit_bytes: how much to keep at most.
            older_than_seconds: remove what was not used for longer.
            kinds: look at these kinds only.

        Raises:
            OSError: no permission.
        """
        self._sweep()
        entries = [entry for entry in self.entries() if kinds is None or entry.kind in kinds]
        size = sum(entry.bytes for entry in entries)
        now = self.clock()
        gone: list[Entry] = []
        for entry in entries:
            old = older_than_seconds is not None and now - entry.used > older_than_seconds
            large = limit_bytes is not None and size > limit_bytes
            if (old or large) and self._remove(entry):
                size -= entry.bytes
                gone.append(entry)
        for path in self._folders():
            if _read(path) is None:
                with suppress(OSError):
                    self._take_away(path)
        return gone

    def _path(self, kind: str, key: str) -> Path:
        if kind in (_TMP, _LOCKS) or not _NAME.fullmatch(kind) or not _NAME.fullmatch(key):
            raise ValueError(f"no entry can be kept under {kind!r}, {key!r}")
        return self.folder.joinpath(kind, key[:2], key)

    def _folders(self, kind: str | None = None) -> Iterator[Path]:
        for one in [kind] if kind is not None else _listed(self.folder):
            for first in _listed(self.folder / one) if one not in (_TMP, _LOCKS) else []:
                for key in _listed(self.folder / one / first):
                    yield self.folder / one / first / key

    def _publish(self, folder: Path, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.rename(path)
                return
            except OSError:
                if not os.path.lexists(path):
                    raise
            if _read(path) is not None:
                return  # another process was first
            self._take_away(path)

    def _remove(self, entry: Entry) -> bool:
        """Take an entry away that nobody has pinned, or used since it was looked at."""
        try:
            with (entry.folder / _ENTRY).open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_mtime != entry.used or not _is_at(file, entry.folder / _ENTRY):
                    return False
                self._take_away(entry.folder)
                return True
        except (FileNotFoundError, BlockingIOError):
            return False

    def _take_away(self, path: Path) -> None:
        """Make an entry invisible at once, then delete its files."""
        with _temporary(self.folder / _TMP) as folder, suppress(FileNotFoundError):
            path.rename(folder / "gone")

    def _sweep(self) -> None:
        """Delete what killed processes have left. A folder's lock is there, and held, as long as its process uses it."""
        tmp, locks = self.folder / _TMP, self.folder / _LOCKS
        for name in {name.removesuffix(".lock") for name in _listed(tmp)}:
            with suppress(OSError), _held(tmp / f"{name}.lock", wait=False):
                shutil.rmtree(tmp / name, ignore_errors=True)
        for name in _listed(locks):
            with suppress(OSError), _held(locks / name, wait=False):
                pass


@contextmanager
def _temporary(tmp: Path) -> Generator[Path]:
    """Give a folder that goes when the block ends, if it is still there; if this process is killed, the next `_sweep` deletes it."""
    tmp.mkdir(parents=True, exist_ok=True)
    folder = tmp / secrets.token_hex(8)
    with _held(tmp / f"{folder.name}.lock"):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold the lock that is a file of this name, which is gone afterwards.

    Raises:
        BlockingIOError: another holds it, and this does not wait.
    """
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):  # else the last holder has deleted what this waited for
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _read(folder: Path) -> Entry | None:
    """Give an entry if it is whole."""
    # By names and no buffers: of a training set with hundreds of columns each is looked at whenever it is asked for.
    place = f"{folder}/"
    try:
        with open(place + _ENTRY, "rb", buffering=0) as file:  # see above
            used = os.fstat(file.fileno()).st_mtime
            stored = _DECODER.decode(file.read())
        if stored.format != _FORMAT or any(
            os.stat(place + name).st_size != size for name, size in stored.files.items()
        ):
            return None
        if any(_digest(folder / name) != digest for name, digest in stored.digests.items()):
            return None
    except (OSError, ValueError):
        return None
    about = (stored.kind, stored.key, stored.about, stored.parts, stored.bytes, stored.created)
    return Entry(*about, used, folder)


def _digest(path: Path) -> str:
    return _blake2b(path.read_bytes()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_Digests = dict[bytes, tuple[str, str]]  # absolute path -> (marks, digest)


def fingerprint_of_files(
    paths: Iterable[Path], memo: Cache | None = None, threads: int = 1
) -> list[tuple[str, int, str]]:
    """Give (path as given, bytes, BLAKE2b-128 digest of the contents) of files.

    Args:
        paths: the files.
        memo: remembers the digests of files whose size, times and inode have not changed. A file changed less than two seconds before it was
            read is not remembered: it could change once more within one step of its file system's clock.
        threads: how many files are read at a time.

    Raises:
        DataError: a file cannot be read.
    """
    known = _remembered(memo)
    fresh: _Digests = {}

    def fingerprint(path: Path) -> tuple[str, int, str]:
        name = os.fsencode(os.path.abspath(path))
        try:
            started = memo.clock() if memo is not None else 0.0
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                marks, digest = known.get(name, ("", ""))
                if marks != _marks(status):
                    digest = hashlib.file_digest(file, _blake2b).hexdigest()
                    settled = started - max(status.st_mtime, status.st_ctime) >= _RACY_SECONDS
                    if settled and _marks(os.fstat(file.fileno())) == _marks(status):
                        fresh[name] = _marks(status), digest
        except OSError as error:
            raise DataError(
                f"A file cannot be read: {error.strerror}.",
                where=str(path),
                do="check that it is there and readable.",
            ) from error
        return str(path), status.st_size, digest

    with ThreadPoolExecutor(threads) as pool:
        result = list(pool.map(fingerprint, paths))
    if memo is not None and fresh:
        with suppress(OSError):
            _remember(memo, fresh)
    return result


def _blake2b(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def _marks(status: os.stat_result) -> str:
    """What changes when a file does. The time of its status is among them: a copy may bring its old time of change along."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _remembered(memo: Cache | None) -> _Digests:
    try:
        return msgspec.msgpack.decode((memo.folder / _DIGESTS).read_bytes(), type=_Digests) if memo else {}
    except (OSError, ValueError):
        return {}


def _remember(memo: Cache, fresh: _Digests) -> None:
    locks = memo.folder / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with _held(locks / _DIGESTS), _temporary(memo.folder / _TMP) as folder:
        (folder / _DIGESTS).write_bytes(msgspec.msgpack.encode({**_remembered(memo), **fresh}))
        _sync(folder / _DIGESTS)
        (folder / _DIGESTS).replace(memo.folder / _DIGESTS)
