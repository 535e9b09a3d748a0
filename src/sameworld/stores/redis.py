"""The rows of an index for several hosts, in Redis: at any instant what the index of one host had at one sequence, in the same bytes.

That host publishes every commit in one script, so whoever reads sees all of it or nothing. Redis keeps nothing that cannot be published again: where it has
lost something, or has been away for longer than changes are remembered, everything is copied beside what is there, and the head then names the copy.

In Redis: a hash, the head, and for every entity one sorted set of scores 0 whose members are the 8 bytes of a chunk's first event time (as in the keys of the
index) and the chunk; where it has tallies, another such set (t) with the heads of their records, and a hash (r) with the rest of each by those 8 bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import redis

from sameworld.errors import StoreError
from sameworld.stores.keeping import NOTHING, Kept, kept_from, token_of
from sameworld.stores.lmdb import SIZES, Index, chunk_key, entity_prefix, start_of
from sameworld.stores.named import without_password
from sameworld.stores.reach import Reach
from sameworld.stores.tallies import Missing, Record, head_bytes
from sameworld.stores.view import Fetched, SharedView, Wanted

_BASE = b"sameworld:"
_PUBLISHING_SECONDS = 2.0
_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.05, 1.0
_BATCH_BYTES = 1 << 20
_EARLIEST = -(2**63)
_MOST_TRIES = 64

_READ = """
local function less(a, b)  -- by bytes, where Lua compares as the locale has it
  local a1, a2 = struct.unpack('>I4I4', a)
  local b1, b2 = struct.unpack('>I4I4', b)
  return a1 < b1 or (a1 == b1 and a2 < b2)
end
local head = redis.call('HMGET', KEYS[1], 'epoch', 'layout', 'sequence', 'stamp', 'latest')
local found = {head}
if not head[1] or ARGV[1] ~= head[2] then return found end
for i = 3, #ARGV, 6 do
  local key, since, depth, low = KEYS[1] .. head[1] .. ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local ranges, single = ARGV[i + 4], ARGV[i + 5]
  local count = redis.call('ZLEXCOUNT', key, '[' .. since, '+') + depth
  if depth < 0 then count = redis.call('ZCARD', key) end
  local chunks = {}
  if count <= tonumber(ARGV[2]) or redis.call('EXISTS', key .. 't') == 0 then
    local before = redis.call('ZREVRANGEBYLEX', key, '(' .. since, '-', 'LIMIT', 0, depth)
    for j = #before, 1, -1 do chunks[#chunks + 1] = before[j] end
    for _, chunk in ipairs(redis.call('ZRANGEBYLEX', key, '[' .. since, '+')) do chunks[#chunks + 1] = chunk end
    found[#found + 1] = {#before, chunks}
  else
    local last = redis.call('ZREVRANGEBYLEX', key, '+', '-', 'LIMIT', 0, 1)
    local heads = redis.call('ZREVRANGEBYLEX', key .. 't', '(' .. low, '-', 'LIMIT', 0, 1)
    for _, one in ipairs(redis.call('ZRANGEBYLEX', key .. 't', '[' .. low, '+')) do heads[#heads + 1] = one end
    local asked = {}
    for k = 1, #single, 8 do
      local edge = string.sub(single, k, k + 7)
      asked[edge] = true
      for _, chunk in ipairs(redis.call('ZRANGEBYLEX', key, '[' .. edge, '[' .. edge .. string.rep(string.char(255), 9))) do chunks[#chunks + 1] = chunk end
    end
    local records = {}
    for j, one in ipairs(heads) do
      local begin, stop = string.sub(one, 1, 8), string.sub(heads[j + 1] or last[1], 1, 8)
      local rest = asked[begin] and redis.call('HGET', key .. 'r', begin) or ''
      for k = 1, #ranges, 16 do
        if less(begin, string.sub(ranges, k + 8, k + 15)) and less(string.sub(ranges, k, k + 7), stop) then
          rest = redis.call('HGET', key .. 'r', begin)
          break
        end
      end
      records[j] = {one, rest}
    end
    for k = 1, #ranges, 16 do
      local from, to = string.sub(ranges, k, k + 7), string.sub(ranges, k + 8, k + 15)
      for _, chunk in ipairs(redis.call('ZREVRANGEBYLEX', key, '(' .. from, '-', 'LIMIT', 0, 1)) do chunks[#chunks + 1] = chunk end
      if less(from, to) then
        for _, chunk in ipairs(redis.call('ZRANGEBYLEX', key, '[' .. from, '(' .. to)) do chunks[#chunks + 1] = chunk end
      end
    end
    chunks[#chunks + 1] = last[1]
    found[#found + 1] = {-1, chunks, records}
  end
end
return found
"""
"""The head and, where it has the layout that the caller knows, of every entity its chunks from a time on and some before it; or, where these would be too
many, its tallies and the chunks (and whole records) in some ranges, and those that begin at some times."""

_PUBLISH = """
local head = redis.call('HMGET', KEYS[1], 'epoch', 'sequence')
if head[1] ~= ARGV[1] or head[2] ~= ARGV[2] then return 0 end
for i = 6, #ARGV, 4 do
  local key, edge = KEYS[1] .. ARGV[1] .. ARGV[i], ARGV[i + 1]
  local own = ARGV[i + 3] == 'chunk' and key or key .. 't'
  redis.call('ZREMRANGEBYLEX', own, '[' .. edge, '[' .. edge .. string.rep(string.char(255), 9))
  if ARGV[i + 2] ~= '' then redis.call('ZADD', own, 0, edge .. ARGV[i + 2]) end
  if ARGV[i + 3] == '' then redis.call('HDEL', key .. 'r', edge) elseif ARGV[i + 3] ~= 'chunk' then redis.call('HSET', key .. 'r', edge, ARGV[i + 3]) end
end
redis.call('HSET', KEYS[1], 'sequence', ARGV[3], 'stamp', ARGV[4], 'latest', ARGV[5])
return 1
"""
"""Replaces chunks and records of tallies (an empty one is removed), if the head is the one that the caller knows."""


class Shared:
    """A store's rows in Redis: published by one host, read by any. While Redis does not answer it is asked now and then only, so that nobody waits for it.

    Args:
        folder: the store's; where a host takes no events itself, it has no name in it.
        address: redis:// or unix://; see `redis.Redis.from_url`.
        reading_seconds: how long a read may take: whoever waits for it must still have time for a fallback.
        few: up to so many chunks of an entity are fetched as they are, without its tallies.
    """

    def __init__(
        self, folder: Path, address: str, *, reading_seconds: float = 0.02, few: int = SIZES.few
    ) -> None:
        self._folder = folder
        self._few = few
        self._where = without_password(address)
        self._reading = _client(address, reading_seconds)
        self._publishing = _client(address, _PUBLISHING_SECONDS)
        self._read = self._reading.register_script(_READ)
        self._publish = self._publishing.register_script(_PUBLISH)
        self._kept = NOTHING
        self._tried = {"reading": _Tried(), "publishing": _Tried()}
        self.published = 0

    def close(self) -> None:
        self._reading.close()
        self._publishing.close()

    # reading

    def kept(self) -> Kept:
        """Give what the publishing host keeps.

        Raises:
            StoreError: Redis does not answer, or has no store.
        """
        found = self._ask("reading", lambda: self._reading.hget(_BASE, "kept"))
        if found is None:
            raise self._empty()
        self._kept = kept_from(found)
        return self._kept

    def view(self, wanted: Wanted, t: int) -> SharedView:
        """Fetch rows as of one sequence: in one round trip, unless the latest rows of all history lie far back or something else is kept now.

        Args:
            wanted: groupings, how far they reach, and which entities; those that are not kept are left out.
            t: a moment that is not after the one they will be read at.

        Raises:
            StoreError: Redis does not answer, or has no store.
        """
        depth, at = 1, t
        more: dict[bytes, set[int]] = {}
        for _ in range(_MOST_TRIES):
            kept = self._kept
            asked = [
                (entity_prefix(kept.groupings[reach.content].prefix, key), reach)
                for reach, keys in wanted
                if reach.content in kept.groupings
                for key in dict.fromkeys(keys)
            ]
            wishes: dict[bytes, _Wish] = {}
            for entity, reach in asked:
                wishes.setdefault(entity, _Wish(t, depth, more.get(entity, set()))).add(reach, t, at)
            flat: list[Any] = [kept.token, self._few]
            for entity, wish in wishes.items():
                flat += (entity, *wish.arguments())
            head, *found = self._ask("reading", lambda flat=flat: self._read([_BASE], flat))
            if head[0] is None:
                raise self._empty()
            if head[1] != kept.token:
                self.kept()
                continue
            entities = {entity: _fetched(one, depth) for entity, one in zip(wishes, found, strict=True)}
            stamp = int(head[3])
            at = max(at, stamp + 1)
            lacks = False
            for entity, reach in asked:
                try:
                    if entities[entity].records is not None:
                        entities[entity].found(reach, at)
                except Missing as missing:
                    lacks = True
                    more.setdefault(entity, set()).update(missing.starts)
            if lacks:
                continue
            view = SharedView(int(head[2]), stamp, kept, msgspec.msgpack.decode(head[4]), at, entities)
            if all(entities[entity].has_latest(reach, t) for entity, reach in asked):
                return view
            depth *= 16
        raise StoreError("What is published changes faster than it can be read.", where=self._where, do="send the request again.")  # fmt: skip

    # publishing

    @property
    def away(self) -> bool:
        """Whether it did not answer when something was last published: a commit does not wait for it then, what heals does."""
        return bool(self._tried["publishing"].pause)

    def publish(self, index: Index) -> bool:
        """Bring Redis up to what the index has; give whether that could be done by what has changed.

        Raises:
            StoreError: Redis does not answer, or has the store of another host.
        """
        return self._ask("publishing", lambda: self._published(index))

    def heal(self, index: Index) -> None:
        """Bring Redis up to what the index has, whatever it has lost.

        Raises:
            StoreError: as in `publish`.
        """
        if not self.publish(index):
            self._ask("publishing", lambda: self._copy(index))
            self.publish(index)

    def _published(self, index: Index) -> bool:
        with _locked(self._folder / "publishing.lock"), index.read() as txn:
            owner, epoch, layout, before = self._publishing.hmget(_BASE, "owner", "epoch", "layout", "sequence")  # fmt: skip
            self._check(owner)
            if epoch is None or layout != token_of(index, txn):
                return False
            sequence, stamp, latest = _facts(index, txn)
            if int(before) != sequence:
                changed = index.changed(txn, int(before), sequence)
                if changed is None:
                    return False
                arguments: list[Any] = [epoch, before, sequence, stamp, latest]
                chunks, records = changed
                for key in chunks:
                    arguments += (key[:-8], key[-8:], index.chunk(txn, key), b"chunk")
                for key in records:
                    record = index.tally(txn, key)
                    head = head_bytes(record) if record else 0
                    arguments += (key[:-8], key[-8:], record[:head], record[head:])
                if not self._publish([_BASE], arguments):
                    return False
            self.published = sequence
            return True

    def _copy(self, index: Index) -> None:
        """Copy everything beside what is there, and then name it in the head. Commits and readers go on meanwhile."""
        name = _name(self._folder)
        with _locked(self._folder / "copying.lock"), index.read() as txn:
            self._publishing.hsetnx(_BASE, "owner", name)
            self._check(self._publishing.hget(_BASE, "owner"))
            self._check_memory()
            epoch = secrets.token_hex(8).encode() + b":"
            pipeline, size = self._publishing.pipeline(transaction=False), 0
            for place in kept_from(index.raw(txn, "kept")).groupings.values():
                for key, chunk in index.all_chunks(txn, place.prefix):
                    pipeline.zadd(_BASE + epoch + key[:-8], {key[-8:] + chunk: 0})
                    size += len(chunk)
                    if size > _BATCH_BYTES:
                        pipeline.execute()
                        size = 0
                for key, record in index.all_tallies(txn, place.prefix):
                    head = head_bytes(record)
                    pipeline.zadd(_BASE + epoch + key[:-8] + b"t", {key[-8:] + record[:head]: 0})
                    pipeline.hset(_BASE + epoch + key[:-8] + b"r", key[-8:], record[head:])
                    size += len(record)
                    if size > _BATCH_BYTES:
                        pipeline.execute()
                        size = 0
            pipeline.execute()
            sequence, stamp, latest = _facts(index, txn)
            said: dict[Any, Any] = {
                "owner": name, "epoch": epoch, "layout": token_of(index, txn), "kept": index.raw(txn, "kept"),
                "sequence": sequence, "stamp": stamp, "latest": latest,
            }  # fmt: skip
            with _locked(self._folder / "publishing.lock"):
                self._publishing.hset(_BASE, mapping=said)
            self._sweep(epoch)

    def _sweep(self, epoch: bytes) -> None:
        """Remove what earlier copies have left."""
        pipeline = self._publishing.pipeline(transaction=False)
        for number, key in enumerate(self._publishing.scan_iter(match=_BASE + b"*", count=1000), 1):
            if key != _BASE and not key.startswith(_BASE + epoch):
                pipeline.unlink(key)
            if number % 1000 == 0:
                pipeline.execute()
        pipeline.execute()

    def _check(self, owner: bytes | None) -> None:
        if owner not in (None, _name(self._folder)):
            raise StoreError(
                "This Redis has the store of another host.",
                where=self._where,
                expected="one host that takes events and publishes them",
                do="let this server follow that one with --follow, or give it another database of Redis.",
            )

    def _check_memory(self) -> None:
        """Refuse a Redis that drops keys when it is full: readers would take what is gone for what never was."""
        try:
            said = self._publishing.info("memory")
        except redis.ResponseError:  # whoever may not ask has to see to it
            return
        policy = str(said.get("maxmemory_policy", ""))
        if said.get("maxmemory") and policy.startswith("allkeys"):
            raise StoreError(
                "This Redis drops rows when its memory is full.",
                where=self._where,
                expected="maxmemory-policy noeviction, or no maxmemory",
                found=f"maxmemory-policy {policy}",
                do="redis-cli config set maxmemory-policy noeviction, and set it in redis.conf, too.",
            )

    # what both need

    def _ask(self, what: str, ask: Callable[[], Any]) -> Any:
        tried = self._tried[what]
        do = "start Redis again; it is tried by itself."
        if time.monotonic() < tried.again:
            raise StoreError(tried.trouble, where=self._where, do=do)
        try:
            found = ask()
        except redis.RedisError as error:
            tried.failed(f"Redis does not answer: {type(error).__name__}: {error}")
            raise StoreError(tried.trouble, where=self._where, do=do) from error
        tried.pause = 0.0
        return found

    def _empty(self) -> StoreError:
        return StoreError(
            "Redis has no store.",
            where=self._where,
            do="start the server that takes events: it publishes its store, and again when Redis has lost it.",
        )


class _Wish:
    """What is to be fetched of an entity: of the models that read it, whoever wants most says how much.

    Args:
        t: the moment, or one before it.
        depth: how many chunks before all windows.
        more: where chunks and records begin that were found missing.
    """

    def __init__(self, t: int, depth: int, more: set[int]) -> None:
        self._since, self._depth, self._low = t, depth, t
        self._more = more
        self._ranges: set[tuple[int, int]] = set()

    def add(self, reach: Reach, t: int, at: int) -> None:
        edges = reach.windows.at(at)
        self._since = min(self._since, t - reach.past)
        self._depth = -1 if reach.everything or self._depth < 0 else self._depth
        self._low = min(self._low, edges.low)
        self._ranges.update(edges.looked_at)

    def arguments(self) -> tuple[bytes, int, bytes, bytes, bytes]:
        ranges = b"".join(_edge(place) for both in sorted(self._ranges) for place in both)
        single = b"".join(map(_edge, sorted(self._more)))
        return _edge(max(self._since, _EARLIEST) + 1), self._depth, _edge(self._low), ranges, single


def _edge(time: int) -> bytes:
    return chunk_key(b"", time)


def _fetched(found: list[Any], depth: int) -> Fetched:
    """Read the script's answer about an entity."""
    before, members, *records = found
    chunks = {start_of(member[:8]): member[8:] for member in members}
    if not records:
        return Fetched(chunks, before == depth)
    return Fetched(chunks, records=[Record(start_of(head[:8]), head[8:] + rest) for head, rest in records[0]])


@dataclass
class _Tried:
    """When to ask again, and why not now."""

    pause: float = 0.0
    again: float = 0.0
    trouble: str = ""

    def failed(self, trouble: str) -> None:
        self.pause = min(max(2 * self.pause, _LEAST_PAUSE_SECONDS), _MOST_PAUSE_SECONDS)
        self.again = time.monotonic() + self.pause
        self.trouble = trouble


def _facts(index: Index, txn: Any) -> tuple[int, int, bytes]:
    """Give the sequence, the stamp and when sources had their latest rows."""
    latest = index.raw(txn, "latest") or msgspec.msgpack.encode({})
    return index.get(txn, "sequence", 0), index.get(txn, "stamp", 0), latest


def _client(
    address: str, seconds: float
) -> Any:  # its types say of every answer that it may have to be awaited
    parts = urlsplit(address)
    try:
        if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
            raise ValueError(f"{parts.path[1:]!r} is no number of a database")  # which would be 0
        client = redis.Redis.from_url(
            address, socket_timeout=seconds, socket_connect_timeout=seconds, retry=None
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # which knows its options, and connects to nothing
        return client
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"The address of the store cannot be read: {error}",
            expected="redis://HOST:PORT/DATABASE or unix://PATH?db=DATABASE",
            do="correct --store.",
        ) from error


def _name(folder: Path) -> bytes:
    """Give the name of this host's store, which it keeps."""
    path = folder / "name"
    if not path.exists():
        fresh = path.with_name(f".name.{os.getpid()}")
        fresh.write_text(secrets.token_hex(16))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes()


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let one process of this host in; the kernel frees the lock of one that is killed."""
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
