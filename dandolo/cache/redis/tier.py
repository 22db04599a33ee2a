"""The tier that hosts share: bytes under keys, in Redis or Valkey. Never an exception to the caller, never a wait
beyond its deadline.

Whatever goes wrong with a look-up is a miss: no server, none in time, an open breaker, too much in flight, an
error. Values are opaque; who reads them checks that they are whole and his (`belongs` tells one sort of wrong:
a value that is whole but another key's, which means that replies are out of step). Nothing here waits for
anything but its own replies, and everything runs on one event loop.

`look_up` calls back in the very call that reads the reply; the `async` forms are for tasks.

A Redis user of its own needs `~PREFIX*` and +hello +select +ping +get +set +unlink +scan +hset +hgetall +hdel
+client|setname +client|tracking, and in a cluster +cluster|slots +asking.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import random as chance
from typing import Final, Protocol

from dandolo.cache.redis.commands import REDIRECTS_MAX, Batch, Context, Counts, Get, To, Write
from dandolo.cache.redis.connection import Call, Failure, Outcome
from dandolo.cache.redis.link import Endpoint, Link, Login
from dandolo.cache.redis.servers import Cluster, Concerned, Servers, SingleServer
from dandolo.config.redisurl import RedisUrl
from dandolo.wire.resp import ErrorReply, Reply, encode

_log = logging.getLogger("dandolo")

LOOK_UP_S: Final = 0.017
"""A server that hangs may cost a request 20 ms until its breaker opens, the lateness of our own timer included."""
WRITE_S: Final = 0.250
"""Nobody waits for a write but the queue behind it."""
VALUE_BYTES_MAX: Final = 4 * 1024 * 1024
PREFIX: Final = b"dandolo:"

HEADS: Final = 65
"""Keys up to 64 bytes, a digest in hexadecimal, are encoded with what is prepared."""
PURGE_S: Final = 60.0
PURGE_STEP_S: Final = 1.0
PURGE_COUNT: Final = 256
SUSPECTS_MAX: Final = 64

_GLOB = re.compile(rb"([*?\[\]\\])")


class Tracker(Protocol):
    """Who keeps copies of what is in this tier. Told a turn of the loop later, so that a look-up that was answered
    before a change has been handed on before the change is told."""

    def invalidated(self, keys: list[bytes]) -> None:
        """Others have written or removed these, or they expired."""

    def lost_track(self, concerned: Concerned) -> None:
        """Changes may have gone untold: drop every copy for whose key `concerned` is true."""


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """One server: `tracking` False while it is up means that changes are not told."""

    address: str
    up: bool
    breaker: str
    tracking: bool
    in_flight: int
    connects: int
    trips: int
    reason: str


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge removed; not `complete`: a server was not reached, or there was no end in PURGE_S."""

    keys: int
    complete: bool


class RedisTier:
    """The tier. `prefix` stands before every key; `tracker` is told of changes; `random` gives numbers in [0, 1).

    `belongs(key, value)` is asked of every value that was found and must be quick; False drops the connection and
    removes the key once there is a new one.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        ca: Path | None = None,
        prefix: bytes = PREFIX,
        tracker: Tracker | None = None,
        belongs: Callable[[bytes, bytes], bool] | None = None,
        random: Callable[[], float] = chance,
    ) -> None:
        """Raises OSError or ssl.SSLError when the CA bundle cannot be read."""
        tls = ssl.create_default_context(cafile=ca) if url.tls else None
        login = Login(url.username, url.password, url.database, tls, prefix if tracker is not None else None)
        endpoint = Endpoint(path=url.path) if url.path else Endpoint(url.host, url.port)
        kind = Cluster if url.cluster else SingleServer
        self._servers: Servers = kind(endpoint, login, prefix, self, random)
        self._counts = Counts()
        self._context = Context(self._servers, self._counts, belongs, self._distrust, self.remove)
        self._prefix = prefix
        self._tracker = tracker
        self._heads = tuple(map(self._head, range(HEADS)))
        self._suspects: set[bytes] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to connect, on the running loop. Until that is done every look-up is a miss."""
        self._loop = asyncio.get_running_loop()
        self._servers.start()

    async def close(self) -> None:
        """End all connections; what is in flight ends as a miss."""
        await self._servers.stop()

    def look_up(self, keys: Sequence[bytes], heard: Callable[[list[bytes | None]], None]) -> None:
        """Ask for the values of one or more `keys`; `heard` is called once with them in order, within LOOK_UP_S.

        It may be called before this returns, and must not raise.
        """
        assert keys, "somebody must be asked for"
        self._look_up(keys, heard)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys` in order, None for every miss, within LOOK_UP_S. Cancelling harms nothing."""
        if not keys:
            return []
        assert self._loop is not None, "the tier is used after start"
        future: asyncio.Future[list[bytes | None]] = self._loop.create_future()
        self._look_up(keys, future)
        return await future

    def _look_up(self, keys: Sequence[bytes], to: To[bytes | None]) -> None:
        assert self._loop is not None, "the tier is used after start"
        counts, heads = self._counts, self._heads
        deadline = self._loop.time() + LOOK_UP_S
        counts.gets += len(keys)
        batch: Batch[bytes | None] | None = None if len(keys) == 1 else Batch([None] * len(keys), to)
        for index, key in enumerate(keys):
            size = len(key)
            head = heads[size] if size < HEADS else self._head(size)
            get = Get(b"%b%b\r\n" % (head, key), deadline, self._context, key, to, batch, index)
            failure = self._servers.send(get, key)
            if failure is not None:
                counts.failed(failure)
                get.ended(None)

    def _head(self, size: int) -> bytes:
        """The encoding of a GET up to its key of `size` bytes."""
        return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b" % (len(self._prefix) + size, self._prefix)

    async def put_many(self, entries: Sequence[tuple[bytes, bytes, int]]) -> int:
        """Store (key, value, milliseconds to live); how many were. Those without time left are left out."""
        writes: list[tuple[bytes, bytes]] = []
        for key, value, ttl_ms in entries:
            if len(value) > VALUE_BYTES_MAX:
                self._counts.oversize += 1
            elif ttl_ms > 0:
                writes.append((key, encode(b"SET", self._prefix + key, value, b"PX", b"%d" % ttl_ms)))
        stored = await self._write(writes, removes=False)
        self._counts.puts += stored
        self._counts.puts_failed += len(writes) - stored
        return stored

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Remove keys; how many were there."""
        removed = await self._write([(key, encode(b"UNLINK", self._prefix + key)) for key in keys], removes=True)
        self._counts.deletes += removed
        return removed

    def remove(self, key: bytes) -> None:
        """Remove a key without waiting for it."""
        self._begin_writes([(key, encode(b"UNLINK", self._prefix + key))], removes=True, to=lambda _: None)

    async def purge(self, under: bytes = b"") -> Purged:
        """Remove every key that begins with `under`, on every server, within PURGE_S. One at a time, please."""
        return await self._purge(self._prefix + under)

    async def call(self, key: bytes, command: bytes, *arguments: bytes) -> Outcome:
        """One command about one key, for which nobody is in a hurry: its reply within WRITE_S, or why there is none."""
        loop = self._loop
        assert loop is not None, "the tier is used after start"
        waiting: list[asyncio.Future[Outcome]] = [loop.create_future()]

        def heard(outcome: Outcome) -> None:
            if not waiting[-1].done():
                waiting[-1].set_result(outcome)

        sent = Call(encode(command, self._prefix + key, *arguments), loop.time() + WRITE_S, heard)
        failure = self._servers.send(sent, key)
        for _ in range(REDIRECTS_MAX):
            if failure is not None:
                break
            outcome = await waiting[-1]
            if not isinstance(outcome, ErrorReply) or outcome.code not in (b"MOVED", b"ASK"):
                return outcome
            waiting.append(loop.create_future())
            failure = self._servers.redirected(sent, outcome)
        return failure or Failure.DOWN

    @property
    def tracks(self) -> bool:
        """Whether every server tells changes: copies elsewhere are dropped when it does."""
        links = self._servers.links()
        return bool(links) and all(link.tracking for link in links)

    def stats(self) -> Counts:
        """A copy of the counts."""
        return self._counts.copied()

    def health(self) -> tuple[NodeHealth, ...]:
        """Every server as it stands; empty while a cluster's map is not known."""
        now = 0.0 if self._loop is None else self._loop.time()
        return tuple(
            NodeHealth(
                address=str(link.endpoint),
                up=link.connection is not None,
                breaker=link.breaker.state(now),
                tracking=link.tracking,
                in_flight=0 if link.connection is None else link.connection.in_flight,
                connects=link.connects,
                trips=link.breaker.trips,
                reason=link.reason,
            )
            for link in self._servers.links()
        )

    def came_up(self) -> None:
        """From the servers: what was to be removed can be now, as far as this server has it."""
        suspects, self._suspects = self._suspects, set()
        for key in suspects:
            self.remove(key)

    def invalidated(self, keys: list[bytes]) -> None:
        """From the servers."""
        if self._loop is None or self._tracker is None:
            # Told without having been asked to.
            return
        start = len(self._prefix)
        ours = [key[start:] for key in keys if key.startswith(self._prefix)]
        self._counts.invalidations += len(ours)
        if ours:
            self._loop.call_soon(self._tracker.invalidated, ours)

    def lost_track(self, concerned: Concerned) -> None:
        """From the servers."""
        if self._loop is not None and self._tracker is not None:
            self._counts.gaps += 1
            prefix = self._prefix
            self._loop.call_soon(self._tracker.lost_track, lambda key: concerned(prefix + key))

    def _distrust(self, key: bytes) -> None:
        """Remember to remove a key whose value is not what its name says."""
        if len(self._suspects) < SUSPECTS_MAX:
            self._suspects.add(key)

    def _begin_writes(
        self,
        writes: list[tuple[bytes, bytes]],
        removes: bool,
        to: To[int],
    ) -> None:
        assert self._loop is not None, "the tier is used after start"
        deadline = self._loop.time() + WRITE_S
        batch = Batch([0] * len(writes), to)
        for index, (key, data) in enumerate(writes):
            command = Write(data, deadline, self._context, batch, index, key, removes)
            failure = self._servers.send(command, key)
            if failure is not None:
                self._counts.failed(failure)
                batch.ended(index, 0)

    async def _write(self, writes: list[tuple[bytes, bytes]], removes: bool) -> int:
        if not writes:
            return 0
        assert self._loop is not None, "the tier is used after start"
        future: asyncio.Future[list[int]] = self._loop.create_future()
        self._begin_writes(writes, removes, future)
        return sum(await future)

    async def _purge(self, under: bytes) -> Purged:
        """SCAN and UNLINK. UNLINK of one key each: a cluster takes keys of several slots together nowhere."""
        pattern = _GLOB.sub(rb"\\\1", under) + b"*"
        removed = 0
        assert self._loop is not None, "the tier is used after start"
        until = self._loop.time() + PURGE_S
        links = list(self._servers.links())
        complete = bool(links)
        for link in links:
            cursor = b"0"
            while True:
                if self._loop.time() > until:
                    return Purged(removed, False)
                found = _scanned(
                    await self._ask(link, b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % PURGE_COUNT)
                )
                if found is None:
                    complete = False
                    break
                cursor, names = found
                for start in range(0, len(names), PURGE_COUNT):
                    keys = [name[len(self._prefix) :] for name in names[start : start + PURGE_COUNT]]
                    before = self._failures()
                    removed += await self.delete(keys)
                    complete = complete and self._failures() == before
                if cursor == b"0":
                    break
        return Purged(removed, complete)

    def _failures(self) -> int:
        counts = self._counts
        return (
            counts.down + counts.bypassed + counts.overflows + counts.timeouts + counts.lost + counts.errors
            + counts.nonsense
        )  # fmt: skip

    async def _ask(self, link: Link, *parts: bytes) -> Outcome:
        assert self._loop is not None
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def heard(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        failure = link.send(Call(encode(*parts), self._loop.time() + PURGE_STEP_S, heard))
        return failure if failure is not None else await future


def _scanned(outcome: Outcome) -> tuple[bytes, list[bytes]] | None:
    """Cursor and names of a reply to SCAN; None when it is not one."""
    if isinstance(outcome, Failure) or not isinstance(outcome, list) or len(outcome) != 2:
        return None
    cursor: Reply = outcome[0]
    names: Reply = outcome[1]
    if not isinstance(cursor, bytes) or not isinstance(names, list):
        return None
    return cursor, [name for name in names if isinstance(name, bytes)]
