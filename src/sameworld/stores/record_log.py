"""The append-only log of opaque byte records that the event log and the prediction log are made of.

It keeps what was acknowledged and names what was damaged. It knows nothing of what the bytes mean, and takes
no lock: who lets several processes write holds one around `refresh` and `append`. Readers need none.

A log is a folder of segments, each named after its first record's number (20 digits and `.log`): an 8-byte
magic, then records of u32 length, u32 checksum, payload, little-endian. The checksum is the payload's crc32
seeded with the length and a constant, so neither a wrong length nor an area of zeros passes for a record.

A *torn tail* is what a killed writer or a power cut leaves at the end of the newest segment: a record not all
there, with nothing or only zeros after it. It was never acknowledged; the next writer cuts it. An invalid
record anywhere else is *damage*: nothing is cut, and a LogError names the file and the byte.
"""

import os
import re
import struct
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self, final, overload
from zlib import crc32

from sameworld.errors import LogError

Durability = Literal["process", "disk"]

_MAGIC = b"swlog\0\1\0"  # the last two bytes are the version
_HEADER = struct.Struct("<II")
_HEADER_BYTES = _HEADER.size
_SEED = 0x5357_4C47  # crc32 of nothing is its seed: without this, eight zeros would be a valid empty record
_INVALID = "bytes that do not match their length and checksum, and more bytes after them"
_CHUNK_BYTES = 1 << 20
_SEGMENT_NAME = re.compile(r"([0-9]{20})\.log")
_sync_data = os.fsync if sys.platform == "darwin" else os.fdatasync


@final
class RecordLog:
    """The writing end of a log; get one from `RecordLog.open`. Not for several threads at once."""

    def __init__(self, folder: Path, durability: Durability, segment_bytes: int) -> None:
        self._folder = folder
        self._on_disk = durability == "disk"
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._first = 0  # number of the newest segment's first record
        self._next = 0
        self._end = 0  # size of the newest segment's valid part
        self._settled = True  # False while bytes after `_end` may be left of an append that failed
        self._full = False  # True from when a new segment is needed until there is one

    @classmethod
    def open(cls, folder: Path, *, durability: Durability, segment_bytes: int = 64 << 20) -> Self:
        """The log in `folder`, created if missing, ready to append; reads the newest segment only.

        Args:
            folder: one log's own folder; files with other names in it are ignored.
            durability: what a returned `append` survives: "process" any `kill -9`, "disk" a power cut too.
            segment_bytes: size a segment is not to exceed; a larger group gets a segment to itself.

        Raises:
            LogError: the newest segment is damaged, or the folder cannot be read or written.
        """
        log = cls(folder, durability, segment_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if log._on_disk:
                _sync_folder(folder.parent)
            log.refresh()
        except OSError as error:
            raise _os_error(folder, error) from error
        except LogError:
            log.close()
            raise
        return log

    @property
    def first_number(self) -> int:
        """The number of the newest segment's first record."""
        return self._first

    @property
    def next_number(self) -> int:
        """The number the next record will get: how many records the log has had."""
        return self._next

    def append(self, payloads: Sequence[bytes], *, sync: bool = True) -> range:
        """Append a group of records in one write; returns their numbers when they are as durable as promised.

        A reader may see records of a group before this returns; should it then fail, they are gone again.

        Args:
            payloads: the records.
            sync: False leaves a sync that was promised to the caller: see `descriptor`.

        Raises:
            LogError: the group cannot be written (no space, a bad disk), or another writer appended since the
                last refresh. Nothing of it is kept, and the log works again when the cause has gone.
        """
        parts: list[bytes] = []
        for payload in payloads:
            length = len(payload)
            parts.append(_HEADER.pack(length, crc32(payload, _SEED ^ length)))
            parts.append(payload)
        group = b"".join(parts)
        numbers = range(self._next, self._next + len(payloads))
        if not group:
            return numbers
        try:
            if not self._settled:
                self._cut_back()
            self._refuse_changes()
            if self._next > self._first and self._end + len(group) > self._segment_bytes:
                self._full = True
            if self._full:
                self._use_segment(self._next)
                self._refuse_changes()
            self._settled = False
            _write(self._fd, group)
            if self._on_disk and sync:
                _sync_data(self._fd)
        except OSError as error:
            if not self._settled:
                with suppress(OSError):  # the next append tries again before it writes
                    self._cut_back()
            raise _os_error(self._folder, error) from error
        self._settled = True
        self._end += len(group)
        self._next = numbers.stop
        return numbers

    def descriptor(self) -> int:
        """Give a descriptor of the newest segment for `synced`, in any thread. What is in older segments is on the disk already, if that was promised."""
        return os.dup(self._fd)

    def begin_segment(self) -> None:
        """Begin a new segment, if the newest has records; what was appended so far is then complete.

        Raises:
            LogError: it cannot be begun; the next append tries again.
        """
        if self._next > self._first:
            self._full = True
            try:
                if not self._settled:
                    self._cut_back()
                self._use_segment(self._next)
            except OSError as error:
                raise _os_error(self._folder, error) from error

    def refresh(self) -> None:
        """Catch up with what another writer appended, and cut the torn tail it may have left.

        Raises:
            LogError: the newest segment is damaged, or records this writer knew of are gone.
        """
        try:
            newest = max(_segments(self._folder), default=-1)
            if self._fd < 0 or newest > self._first:
                self._use_segment(max(newest, 0))
            elif newest < self._first:
                found = "no segment" if newest < 0 else f"segment {newest} as the newest"
                raise _damage(self._path, 0, "the segment this writer appended to", found)
            self._settled = True
            size = _size(self._fd)
            if size < self._end:
                expected = f"the {self._end} bytes that were acknowledged"
                raise _damage(self._path, size, expected, f"{size} bytes")
            if size > self._end:
                self._recount()
        except OSError as error:
            raise _os_error(self._folder, error) from error

    def close(self) -> None:
        """Give the file back; a log may be closed twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _path(self) -> Path:
        return _segment_path(self._folder, self._first)

    def _use_segment(self, first: int) -> None:
        path = _segment_path(self._folder, first)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if not _is_begun(fd, path):
                os.ftruncate(fd, 0)
                _write(fd, _MAGIC)
                if self._on_disk:
                    os.fsync(fd)
                    _sync_folder(self._folder)
        except BaseException:
            os.close(fd)
            raise
        if self._on_disk and self._fd >= 0:
            _sync_data(self._fd)
        self.close()
        self._fd, self._first, self._next, self._end, self._full = fd, first, first, len(_MAGIC), False

    def _recount(self) -> None:
        for end, _ in _valid_records(self._fd, self._end):
            self._end = end
            self._next += 1
        if tail := _rest(self._fd, self._end):
            if _resume(tail) is not None:
                raise _damage(self._path, self._end, f"record {self._next}", _INVALID)
            self._cut_back()
        if self._on_disk:  # a killed writer may have written a record and not synced it
            os.fsync(self._fd)

    def _cut_back(self) -> None:
        os.ftruncate(self._fd, self._end)
        self._settled = True

    def _refuse_changes(self) -> None:
        if (size := _size(self._fd)) != self._end:
            what = f"Another writer changed log '{self._folder.name}' since this one looked last."
            expected, found = f"{self._end} bytes", f"{size} bytes"
            do = "hold the writers' lock, call refresh(), then append."
            raise LogError(what, where=str(self._path), expected=expected, found=found, do=do)


def synced(descriptor: int) -> bool:
    """Wait until a segment's records are on the disk, and close the descriptor; tell whether they are."""
    try:
        _sync_data(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@overload
def read(
    folder: Path, start: int = 0, *, damaged: Literal["raise"] = "raise"
) -> Iterator[tuple[int, bytes]]: ...
@overload
def read(folder: Path, start: int = 0, *, damaged: Literal["skip"]) -> Iterator[tuple[int, bytes | None]]: ...
def read(
    folder: Path, start: int = 0, *, damaged: Literal["raise", "skip"] = "raise"
) -> Iterator[tuple[int, bytes | None]]:
    """The records of a log with their numbers, in order, up to its end or torn tail; changes nothing.

    Others may append, begin segments and cut torn tails meanwhile. A missing or empty folder has no records.

    Args:
        folder: the log's folder.
        start: first record wanted. If older segments were removed, reading begins at the oldest one kept.
        damaged: "skip" gives `(number, None)` for each damaged or missing record and goes on after it. Where
            a length itself is damaged, what lies before the next valid record counts as one.

    Raises:
        LogError: a record is damaged, or a segment missing or unreadable; names the file and the byte.
    """
    try:
        firsts = sorted(_segments(folder))
        first = max((number for number in firsts if number <= start), default=firsts[0] if firsts else None)
        while first is not None:
            first = yield from _read_segment(folder, first, start, damaged == "skip")
    except OSError as error:
        raise _os_error(folder, error) from error


def segments(folder: Path) -> list[int]:
    """Give the first record numbers of a log's segments, in order; none without the folder."""
    return sorted(_segments(folder))


def read_segment(folder: Path, first: int) -> Iterator[tuple[int, bytes | None]]:
    """The records of one segment with their numbers; None for one that is damaged or missing.

    Raises:
        FileNotFoundError: there is no such segment.
        LogError: it cannot be read.
    """
    try:
        yield from _read_segment(folder, first, first, True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _os_error(folder, error) from error


def remove_segment(folder: Path, first: int) -> None:
    """Remove a segment whose records are kept elsewhere; only ever the oldest, so that what is left has no gap."""
    _segment_path(folder, first).unlink(missing_ok=True)


def _read_segment(
    folder: Path, first: int, start: int, skip: bool
) -> Generator[tuple[int, bytes | None], None, int | None]:
    """Yields the records of one segment; returns the first number of the segment after it."""
    path = _segment_path(folder, first)
    number, position = first, len(_MAGIC)
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        while True:
            following = _following(folder, first)  # before reading: what has a successor is complete
            _is_begun(fd, path)  # raises if it is something else than a segment
            for end, payload in _valid_records(fd, position):
                position = end
                if number >= start:
                    yield number, payload
                number += 1
            tail = _rest(fd, position)
            if _is_valid(tail, 0):
                continue  # appended since
            resume = _resume(tail)
            if resume is not None:
                if not _rest(fd, position).startswith(tail):
                    continue  # a writer cut and appended under our reading
                if not skip:
                    raise _damage(path, position, f"record {number}", _INVALID)
                if number >= start:
                    yield number, None
                number += 1
                position += resume
            elif following is not None:
                if number > following or not (skip or (number == following and not tail)):
                    found = f"the end of the segment, and {len(tail)} bytes of no record"
                    expected = f"record {number}; the next segment begins with record {following}"
                    raise _damage(path, position, expected, found)
                yield from ((missing, None) for missing in range(max(number, start), following))
                return following
            elif _following(folder, first) is None:
                return None


def _valid_records(fd: int, position: int) -> Iterator[tuple[int, bytes]]:
    """The end and the payload of each record from byte `position` on, until one is not valid."""
    wanted = _CHUNK_BYTES
    while len(chunk := os.pread(fd, wanted, position)) >= _HEADER_BYTES:
        size, at, length = len(chunk), 0, 0
        while (begin := at + _HEADER_BYTES) <= size:
            length, checksum = _HEADER.unpack_from(chunk, at)
            end = begin + length
            if end > size:
                break
            payload = chunk[begin:end]
            if crc32(payload, _SEED ^ length) != checksum:
                return
            yield position + end, payload
            at = end
        position += at
        wanted = _CHUNK_BYTES
        if at == 0:  # one record larger than the chunk, or torn
            wanted = _HEADER_BYTES + length
            if position + wanted > _size(fd):
                return


def _is_valid(data: bytes, at: int) -> bool:
    if at + _HEADER_BYTES > len(data):
        return False
    length, checksum = _HEADER.unpack_from(data, at)
    payload = data[at + _HEADER_BYTES : at + _HEADER_BYTES + length]
    return len(payload) == length and crc32(payload, _SEED ^ length) == checksum


def _resume(tail: bytes) -> int | None:
    """Where records go on after the invalid one that a segment's rest `tail` begins with; None if it is torn.

    The length may be what is damaged: a record that seems to run past the end is torn only if no later valid
    record follows from which the lengths lead exactly to the end.
    """
    size = len(tail)
    if size < _HEADER_BYTES:
        return None
    after = _HEADER_BYTES + _HEADER.unpack_from(tail)[0]
    damaged = after < size and tail.count(0, after) < size - after
    if damaged and _is_valid(tail, after):
        inside = range(_HEADER_BYTES, after)
        return next((at for at in inside if _is_valid(tail, at) and _would_fit(tail, at)), after)
    lands = bytearray(size + 1)  # 1 where the lengths from here on lead exactly to the end
    lands[size] = 1
    for at in range(size - _HEADER_BYTES, 0, -1):
        end = at + _HEADER_BYTES + _HEADER.unpack_from(tail, at)[0]
        if end <= size and lands[end]:
            lands[at] = 1
    at = 0
    while (at := lands.find(1, at + 1, size)) > 0:
        if _is_valid(tail, at):
            return after if damaged and lands[after] and not _would_fit(tail, at) else at
    return after if damaged else None


def _would_fit(tail: bytes, end: int) -> bool:
    """Whether the invalid record `tail` begins with ends at byte `end` and is whole but for its length."""
    payload = tail[_HEADER_BYTES:end]
    return crc32(payload, _SEED ^ len(payload)) == _HEADER.unpack_from(tail)[1]


def _size(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)  # a fifth of the cost of fstat; nothing here depends on the position


def _rest(fd: int, position: int) -> bytes:
    return os.pread(fd, max(0, _size(fd) - position), position)


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)  # Python itself goes on after EINTR
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def _segment_path(folder: Path, first: int) -> Path:
    return folder / f"{first:020d}.log"


def _segments(folder: Path) -> list[int]:
    """First record numbers of the segments in `folder`, in no order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [int(match[1]) for match in map(_SEGMENT_NAME.fullmatch, names) if match]


def _following(folder: Path, first: int) -> int | None:
    return min((number for number in _segments(folder) if number > first), default=None)


def _is_begun(fd: int, path: Path) -> bool:
    """Whether a segment has its magic; False if its writer died, or still is, before that."""
    head = os.pread(fd, len(_MAGIC), 0)
    if head == _MAGIC:
        return True
    if (len(head) == len(_MAGIC) or not _MAGIC.startswith(head)) and any(_rest(fd, 0)):
        raise _damage(path, 0, f"a log segment of this version, beginning with {_MAGIC!r}", repr(head))
    return False


def _damage(path: Path, position: int, expected: str, found: str) -> LogError:
    what = f"Log segment '{path.name}' is damaged at byte {position}."
    do = "restore the segment from a copy; damaged='skip' reads the records that are whole."
    return LogError(what, where=str(path), expected=expected, found=found, do=do)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _os_error(folder: Path, error: OSError) -> LogError:
    what = f"Log '{folder.name}' cannot be read or written: {error.strerror or error}."
    do = "free space or repair what the error names, then try again; what was acknowledged is kept."
    return LogError(what, where=str(error.filename or folder), do=do)
