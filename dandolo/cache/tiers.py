"""The tiers behind memory: Redis, the peer that owns a key, the disk. Never an error, never a long wait.

A look-up goes through the sources in order, each behind a deadline and a breaker of its own, and calls back once: with
an entry that is whole, belongs to the key and was not purged, or with None. What is kept is written behind the
answer, through a queue of QUEUE_ENTRIES or QUEUE_BYTES that drops its oldest (counted). An answer found further down is
put into Redis again when it still lives PROMOTE_S. Entries are packed and unpacked in a thread where that takes
milliseconds.

Times are seconds of steady Unix time, as in the entries; the loop's clock for deadlines.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from dandolo.cache.breaker import Breaker
from dandolo.cache.entry import Entry, decode, encode, is_record, unpacked_bytes
from dandolo.cache.generations import Kind, Marks
from dandolo.cache.purge_log import KEY as PURGES_KEY
from dandolo.cache.purge_log import PurgeLog
from dandolo.cache.purges import Latest
from dandolo.cache.redis.servers import Concerned
from dandolo.cache.redis.tier import RedisTier, Tracker
from dandolo.cache.sqlite import Found as FoundOnDisk
from dandolo.cache.sqlite import Put, Sqlite

_log = logging.getLogger("dandolo")

DISK_S: Final = 0.050
PROMOTE_S: Final = 60.0
QUEUE_ENTRIES: Final = 2_000
QUEUE_BYTES: Final = 32 * 1024 * 1024
BATCH: Final = 64
THREAD_BYTES: Final = 32 * 1024
"""Deflating so much takes half a millisecond: beyond, a thread does it."""
CLOSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and where it was: "l2", "peer" or "l3"; `stale`: a soft purge came after it."""

    entry: Entry
    tier: str
    stale: bool = False


Heard = Callable[[Found | None], None]
Record = Callable[[bytes | None, bool], None]
"""Told a source's record, None for a miss of any cause, and whether it was purged softly."""


class Source(Protocol):
    """One place to look in."""

    @property
    def tier(self) -> str:
        """What answers from it say: "l2", "peer", "l3"."""

    def look_up(self, key: bytes, record: Record) -> None:
        """Look; `record` is called once, perhaps before this returns, within the source's own deadline."""

    def discard(self, key: bytes) -> None:
        """What it gave was no entry of ours: remove it."""


class Host(Protocol):
    """What the tiers need of the memory in front of them."""

    def purged(self, entry: Entry, scope: str) -> Latest:
        """When an entry was last purged."""

    def dropped(self, keys: list[bytes]) -> None:
        """Others have changed these keys: copies go."""

    def lost_track(self, concerned: Concerned) -> None:
        """Changes may have gone untold for these keys: copies go."""

    def purged_elsewhere(self, kind: str, name: str, at: float, soft: bool) -> None:
        """Somebody else has purged."""


@dataclass(slots=True)
class Counts:
    """What happened, since the start."""

    hits: Counter[str] = field(default_factory=Counter)
    """By tier, and so the two below."""
    misses: Counter[str] = field(default_factory=Counter)
    corrupt: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    """Entries that were not written, because too many waited."""
    promoted: int = 0


class State(NamedTuple):
    """Whether a tier can be used, and whether its breaker is closed."""

    up: bool
    closed: bool


class InRedis:
    """The shared tier as a source. A value there begins with its key, so that replies out of step are told at once."""

    tier = "l2"

    def __init__(self, redis: RedisTier, log: PurgeLog) -> None:
        self._redis = redis
        self._log = log

    def look_up(self, key: bytes, record: Record) -> None:
        """Ask the server, once it is known what was purged."""
        if not self._log.known:
            record(None, False)
            return

        def heard(values: list[bytes | None]) -> None:
            value = values[0]
            record(None if value is None else value[len(key) :] if value.startswith(key) else b"", False)

        self._redis.look_up((key,), heard)

    def discard(self, key: bytes) -> None:
        """Remove a value, without waiting."""
        self._redis.remove(key)


class OnDisk:
    """The file as a source: a thread answers, within DISK_S or not at all."""

    tier = "l3"

    def __init__(self, sqlite: Sqlite, spawn: Callable[[asyncio.Task[None]], None]) -> None:
        self.breaker = Breaker()
        self._sqlite = sqlite
        self._spawn = spawn

    def look_up(self, key: bytes, record: Record) -> None:
        """Ask the reading thread."""
        loop = asyncio.get_running_loop()
        if not self._sqlite.likely(key) or not self.breaker.admits(loop.time()):
            record(None, False)
            return
        self._spawn(loop.create_task(self._look_up(key, record), name="cache on disk"))

    async def _look_up(self, key: bytes, record: Record) -> None:
        found: FoundOnDisk | None = None
        try:
            async with asyncio.timeout(DISK_S):
                found = (await self._sqlite.get_many((key,))).get(key)
            self.breaker.succeeded()
        except TimeoutError:
            self.breaker.failed(asyncio.get_running_loop().time())
        finally:
            # Told also when the task is cancelled: somebody waits.
            record(None if found is None else found.value, found is not None and found.stale)

    def discard(self, key: bytes) -> None:
        """Remove a row, without waiting."""
        self._sqlite.forget(key)


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: Entry
    scope: str
    disk: bool


class Tiers:
    """The tiers of one worker. `clock` gives steady Unix seconds."""

    def __init__(self, host: Host, clock: Callable[[], float]) -> None:
        self.redis: RedisTier | None = None
        self.sqlite: Sqlite | None = None
        self.counts = Counts()
        self.sources: list[Source] = []
        """In the order in which they are asked."""
        self.log: PurgeLog | None = None
        self.disk: OnDisk | None = None
        self._host = host
        self._clock = clock
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._forgotten: set[bytes] = set()
        """Keys forgotten while a batch was in hand, which is not in the queue any more."""
        self._writing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add_redis(self, make: Callable[[Tracker, Callable[[bytes, bytes], bool]], RedisTier]) -> None:
        """Look in Redis first; `make` is given whom to tell of changes, and what judges a value."""
        self.redis = redis = make(self, _belongs)
        self.log = PurgeLog(redis, self._host.purged_elsewhere)
        self.sources.insert(0, InRedis(redis, self.log))

    def add_disk(self, sqlite: Sqlite) -> None:
        """Look on disk last."""
        self.sqlite = sqlite
        self.disk = OnDisk(sqlite, self._keep)
        self.sources.append(self.disk)

    async def start(self) -> None:
        """Begin to connect and to open the file; nothing is waited for but the threads' start."""
        if self.redis is not None:
            self.redis.start()
        if self.sqlite is not None:
            await self.sqlite.start()

    async def close(self) -> None:
        """Write what is queued, for CLOSE_S at most, and end."""
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=CLOSE_S)
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.redis is not None:
            await self.redis.close()
        if self.sqlite is not None:
            await self.sqlite.close()

    def tick(self, now: float) -> None:
        """To be called a few times a second (monotonic): reads the purges of others when that is due."""
        log = self.log
        if log is not None and log.due(now):
            self._keep(asyncio.get_running_loop().create_task(self._read_log(log, now), name="purges"))

    @property
    def waiting(self) -> int:
        """Entries in the queue."""
        return len(self._queue)

    def state(self, tier: str) -> State | None:
        """How a tier is, None where it is not configured."""
        if tier == "l2" and self.redis is not None:
            nodes = self.redis.health()
            up = bool(nodes) and any(node.up for node in nodes) and self.log is not None and self.log.known
            return State(up, all(node.breaker == "closed" for node in nodes))
        if tier == "l3" and self.sqlite is not None and self.disk is not None:
            return State(self.sqlite.health().state == "open", self.disk.breaker.closed)
        return None

    # -- looking ---------------------------------------------------------------------------------------

    def look_up(self, key: bytes, scope: str, heard: Heard, sources: tuple[str, ...] = ()) -> None:
        """Look in every source in turn; `heard` is called once, perhaps before this returns.

        `sources` names the tiers to look in, () for all. `heard` must not raise.
        """
        chosen = [source for source in self.sources if not sources or source.tier in sources]
        _LookUp(self, key, scope, heard, chosen).next()

    def judged(self, source: Source, key: bytes, scope: str, entry: Entry | None, purged: bool) -> Found | None:
        """What a source's record comes to."""
        if entry is None:
            self.counts.corrupt[source.tier] += 1
            source.discard(key)
            return None
        hard, soft = self._host.purged(entry, scope)
        if hard >= entry.created or self._clock() >= entry.usable_until:
            return None
        self.counts.hits[source.tier] += 1
        found = Found(entry, source.tier, purged or soft >= entry.created)
        if source.tier == "l3" and not found.stale and entry.expires - self._clock() >= PROMOTE_S:
            self._put(_Waiting(entry, scope, disk=False))
            self.counts.promoted += 1
        return found

    # -- keeping ---------------------------------------------------------------------------------------

    def keep(self, entry: Entry, scope: str) -> None:
        """Write an answer, later: nobody waits for it."""
        self._put(_Waiting(entry, scope, disk=True))

    def _put(self, waiting: _Waiting) -> None:
        if self.redis is None and (self.sqlite is None or not waiting.disk):
            return
        queue = self._queue
        queue.append(waiting)
        self._queued_bytes += len(waiting.entry.body)
        while len(queue) > QUEUE_ENTRIES or (self._queued_bytes > QUEUE_BYTES and len(queue) > 1):
            self._queued_bytes -= len(queue.popleft().entry.body)
            self.counts.dropped += 1
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="cache write-behind")

    async def _write(self) -> None:
        queue, loop = self._queue, asyncio.get_running_loop()
        while queue:
            self._forgotten.clear()
            puts: list[Put] = []
            sets: list[tuple[bytes, bytes, int]] = []
            for _ in range(min(BATCH, len(queue))):
                if not queue:
                    break
                waiting = queue.popleft()
                entry = waiting.entry
                self._queued_bytes -= len(entry.body)
                try:
                    if len(entry.body) > THREAD_BYTES:
                        record = await loop.run_in_executor(None, encode, entry)
                    else:
                        record = encode(entry)
                except ValueError as error:
                    _log.error("an answer cannot be written to the cache's tiers: %s", error)
                    continue
                if self._host.purged(entry, waiting.scope).hard >= entry.created:
                    continue
                marks = Marks(waiting.scope, entry.model, entry.kind.name, entry.tags)
                if self.sqlite is not None and waiting.disk:
                    puts.append(Put(entry.key, record, entry.usable_until, marks))
                sets.append((entry.key, entry.key + record, int((entry.usable_until - self._clock()) * 1000)))
            if self._forgotten:
                puts = [put for put in puts if put.key not in self._forgotten]
                sets = [one for one in sets if one[0] not in self._forgotten]
            if self.sqlite is not None and puts:
                await self.sqlite.put_many(puts)
            if self.redis is not None and sets:
                await self.redis.put_many(sets)

    # -- forgetting ------------------------------------------------------------------------------------

    def forget(self, key: bytes) -> None:
        """Remove one answer everywhere, without waiting."""
        self._unqueue(lambda waiting: waiting.entry.key == key)
        if self._writing is not None and not self._writing.done():
            self._forgotten.add(key)
        for source in self.sources:
            source.discard(key)

    async def purge(self, kind: Kind, name: str, at: float, *, soft: bool) -> list[str]:
        """Forget everything of a tag, model, scope or class, or all, that was made until `at`; what could not be done.

        Memory has been purged before, so that nothing comes back through it.
        """
        failed: list[str] = []
        if not await self.purge_disk(kind, name, soft=soft):
            failed.append("the file on disk does not know of it yet: it holds while this process lives")
        if self.redis is not None and self.log is not None:
            if not await self.log.note(kind, name, at, soft=soft):
                failed.append("Redis could not be told: other hosts may still give what was purged")
            elif kind == "all" and not soft:
                purged = await self.redis.purge()
                await self.log.note(kind, name, at, soft=soft)
                if not purged.complete:
                    failed.append("Redis still holds some of it, which nobody gives any more")
        return failed

    async def purge_disk(self, kind: Kind, name: str, *, soft: bool) -> bool:
        """The part of `purge` that is this process's own; whether the file knows of it."""
        if not soft:
            self._unqueue(lambda waiting: self._host.purged(waiting.entry, waiting.scope).hard >= waiting.entry.created)
        if self.sqlite is None:
            return True
        try:
            async with asyncio.timeout(2.0):
                return await self.sqlite.purge(kind, name, soft=soft)
        except TimeoutError:
            return False

    def _unqueue(self, goes: Callable[[_Waiting], bool]) -> None:
        kept = [waiting for waiting in self._queue if not goes(waiting)]
        self._queue.clear()
        self._queue.extend(kept)
        self._queued_bytes = sum(len(waiting.entry.body) for waiting in kept)

    # -- what Redis tells (cache.redis.tier.Tracker) -----------------------------------------------------

    def invalidated(self, keys: list[bytes]) -> None:
        """Others have written or removed these."""
        if PURGES_KEY in keys and self.log is not None:
            self.log.changed()
            self.tick(asyncio.get_running_loop().time())
        self._host.dropped(keys)

    def lost_track(self, concerned: Concerned) -> None:
        """Changes may have gone untold."""
        if self.log is not None:
            self.log.changed()
            self.tick(asyncio.get_running_loop().time())
        self._host.lost_track(concerned)

    # -- within ----------------------------------------------------------------------------------------

    async def _read_log(self, log: PurgeLog, now: float) -> None:
        await log.read(now, self._clock())

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s failed: %s", task.get_name(), type(error).__name__)


def _belongs(key: bytes, value: bytes) -> bool:
    """False for a whole record of another key; what is no record at all is for `decode` to judge."""
    return value.startswith(key) or not is_record(value[len(key) :])


class _LookUp:
    """One look-up on its way through the sources."""

    __slots__ = ("_heard", "_key", "_scope", "_sources", "_tiers")

    def __init__(self, tiers: Tiers, key: bytes, scope: str, heard: Heard, sources: list[Source]) -> None:
        self._tiers = tiers
        self._key = key
        self._scope = scope
        self._heard = heard
        self._sources = sources

    def next(self) -> None:
        """Ask the next source, or say that there is nothing."""
        if not self._sources:
            self._heard(None)
            return
        source = self._sources.pop(0)
        source.look_up(self._key, lambda record, purged: self._took(source, record, purged))

    def _took(self, source: Source, record: bytes | None, purged: bool) -> None:
        if record is None:
            self._tiers.counts.misses[source.tier] += 1
            self.next()
        elif unpacked_bytes(record) <= THREAD_BYTES:
            self._judge(source, decode(record, self._key), purged)
        else:
            work = asyncio.get_running_loop().run_in_executor(None, decode, record, self._key)
            work.add_done_callback(
                lambda done: self._judge(source, None if done.cancelled() else done.result(), purged)
            )

    def _judge(self, source: Source, entry: Entry | None, purged: bool) -> None:
        found = self._tiers.judged(source, self._key, self._scope, entry, purged)
        if found is None:
            self.next()
        else:
            self._heard(found)
