"""Purges that hosts share, told through the Redis that they share: a hash of what was purged, and when.

Whoever purges notes it there; the others are told by invalidation (`CLIENT TRACKING`), or where a server does not
tell look every second. Until the log has been read, and again after a gap in what is told, nothing of the shared
tier may be given: a purge might be among what is not known. Where the key holds something else, or the server refuses
to show it, that is logged once and asked again every second, until it is mended. Fields are `kind NUL name NUL soft`,
values Unix seconds; what is older than any answer is swept out by whoever reads it. Clocks of hosts that share a tier
must agree (NTP): an answer made by a clock that is ahead of the purger's outlives the purge by the difference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import isfinite
from typing import Final, Protocol, TypeAlias

from dandolo.cache.lifetime import DAY_S
from dandolo.cache.policy import TTL_S_MAX
from dandolo.cache.purges import PURGES_MAX
from dandolo.cache.redis.connection import Failure, Outcome
from dandolo.cache.redis.tier import PREFIX
from dandolo.wire.resp import ErrorReply

_log = logging.getLogger("dandolo")

KEY: Final = b"!purges"
"""No answer's key: those have 20 bytes."""
FORGOTTEN_S: Final = TTL_S_MAX * 1.1 + 2 * DAY_S
"""No answer is given for longer than its life, a tenth of it, and a day in place of an error."""
AHEAD_S: Final = DAY_S
"""No clock is so much ahead of ours: what claims to be from then is no purge, and would end all keeping until then."""
EVERYTHING: Final = b"all\x00\x000"
POLL_S: Final = 1.0
NAME_BYTES_MAX: Final = 512


Apply: TypeAlias = Callable[[str, str, float, bool], None]
"""Who is told of a purge by somebody else: its kind, name, time in Unix seconds, and whether it is soft."""


class Asks(Protocol):
    """What of the shared tier is needed here (`cache.redis.RedisTier`)."""

    @property
    def tracks(self) -> bool: ...

    async def call(self, key: bytes, command: bytes, *arguments: bytes) -> Outcome: ...


class PurgeLog:
    """The log as one process knows it. `known` False: what is in the shared tier cannot be judged yet."""

    def __init__(self, asks: Asks, apply: Apply) -> None:
        self._asks = asks
        self._apply = apply
        self._seen: dict[bytes, float] = {}
        self._read_at = float("-inf")
        self._wanted = True
        self._reading = False
        self._changes = 0
        self._refused = ""
        self.known = False

    def changed(self) -> None:
        """Somebody has purged: what is known is not all any more until it is read again."""
        self._wanted = True
        self.known = False
        self._changes += 1

    def due(self, now: float) -> bool:
        """Whether to `read` now (monotonic seconds)."""
        if self._reading:
            return False
        if self._wanted and not self._refused:
            return True
        return (self._wanted or not self._asks.tracks) and now - self._read_at >= POLL_S

    async def read(self, now: float, unix: float) -> bool:
        """Read the log and apply what it says; whether it could be read."""
        self._reading = True
        self._read_at = now
        before = self._changes
        try:
            reply = await self._asks.call(KEY, b"HGETALL")
        finally:
            self._reading = False
        fields = _fields(reply)
        if fields is None:
            # Not told, and not reached: nothing of it may be given until it is.
            self.known = False
            self._wanted = True
            self._note_refusal(reply)
            return False
        if self._refused:
            self._refused = ""
            _log.info("the list of purges in Redis can be read again")
        old = []
        told: dict[bytes, float] = {}
        for field, value in fields.items():
            at = _seconds(value)
            if at is None or not -AHEAD_S <= unix - at <= FORGOTTEN_S:
                old.append(field)
            else:
                told[field] = at
        if len(told) > PURGES_MAX:
            # More than anybody remembers: everything until now goes.
            old += [field for field in told if field != EVERYTHING]
            told = {EVERYTHING: unix}
            await self._asks.call(KEY, b"HSET", EVERYTHING, b"%f" % unix)
        for field, at in told.items():
            if self._seen.get(field) != at:
                kind, _, rest = field.partition(b"\0")
                name, _, soft = rest.rpartition(b"\0")
                self._apply(kind.decode("ascii", "replace"), name.decode("utf-8", "replace"), at, soft == b"1")
        await self._tell_again(told, unix)
        self._seen |= told
        for start in range(0, len(old), 256):
            await self._asks.call(KEY, b"HDEL", *old[start : start + 256])
        if self._changes == before:
            self._wanted = False
            self.known = True
        return True

    def _note_refusal(self, reply: Outcome) -> None:
        """Say once that the server is there and the list cannot be read, and what is to be done about it."""
        if isinstance(reply, Failure):
            # The connection's own trouble, which its breaker tells of; whatever was refused is asked anew after it.
            return
        code = reply.code.decode("ascii", "replace")[:32] if isinstance(reply, ErrorReply) else "no list"
        if code == self._refused:
            return
        self._refused = code
        name = (PREFIX + KEY).decode("ascii")
        if code == "WRONGTYPE":
            advice = "it is somebody else's key; `UNLINK` or rename it"
        elif code == "NOPERM":
            advice = "our Redis user needs the rights to +hgetall, +hset and +hdel it"
        else:
            advice = "it must be a hash that we may read"
        _log.error(
            "the key %s in Redis cannot be read as our list of purges (%s), and without it the shared cache is off: %s",
            name,
            code,
            advice,
        )

    async def _tell_again(self, told: dict[bytes, float], unix: float) -> None:
        """What we know and the log does not: a server that went back to what it had saved has forgotten purges, and
        has answers again that they meant."""
        everything = told.get(EVERYTHING, float("-inf"))
        self._seen = {field: at for field, at in self._seen.items() if at > everything and unix - at <= FORGOTTEN_S}
        lost = [(field, b"%f" % at) for field, at in self._seen.items() if at > told.get(field, float("-inf"))]
        for start in range(0, len(lost), 256):
            await self._asks.call(KEY, b"HSET", *(part for pair in lost[start : start + 256] for part in pair))

    async def note(self, kind: str, name: str, unix: float, *, soft: bool) -> bool:
        """Tell the others of a purge; whether they can know of it."""
        field = b"%b\0%b\0%d" % (kind.encode(), name.encode()[:NAME_BYTES_MAX], soft)
        if field in self._seen or len(self._seen) < PURGES_MAX:
            # Told again where the log does not have it, once it can be read.
            self._seen[field] = float(b"%f" % unix)
        reply = await self._asks.call(KEY, b"HSET", field, b"%f" % unix)
        if isinstance(reply, int):
            return True
        _log.error("a purge could not be told to the shared cache: other hosts may give what was purged")
        return False


def _fields(reply: Outcome) -> dict[bytes, bytes] | None:
    """The hash that a reply tells, in either version of the protocol; None when it is no such thing."""
    if isinstance(reply, Failure | ErrorReply):
        return None
    if isinstance(reply, list) and len(reply) % 2 == 0:
        pairs = dict(zip(reply[::2], reply[1::2], strict=True)) if all(isinstance(x, bytes) for x in reply) else None
    else:
        pairs = reply if isinstance(reply, dict) else None  # type: ignore[assignment]
    if pairs is None or not all(isinstance(name, bytes) and isinstance(at, bytes) for name, at in pairs.items()):
        return None
    return pairs  # type: ignore[return-value]


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if isfinite(seconds) else None
