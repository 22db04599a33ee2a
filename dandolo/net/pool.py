"""Keep-alive connections of one account, last in first out. It decides; its owner dials and closes.

How many connections there may be is not decided here: whoever holds a slot of `route.capacity` takes an
idle connection or dials one, so there are never more connections than slots. LIFO keeps the busy ones warm
and lets the others age out (promise 32).
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class Pooled(Protocol):
    """What the pool needs to know of a connection."""

    born: float
    idle_since: float
    closed: bool
    reused: bool
    secure: bool

    @property
    def usable(self) -> bool:
        """Open, and its last answer read completely."""

    def readable(self) -> bool:
        """Bytes or an end wait to be read."""

    def close(self) -> None:
        """End it."""


C = TypeVar("C", bound=Pooled)


class Pool(Generic[C]):
    """Idle connections of one account.

    `idle_s` is how long an idle connection is kept (4 s less than the provider's own limit), `age_max_s`
    how old one may become (so that DNS changes are followed), `idle_max` how many are kept.
    """

    __slots__ = ("_age_max_s", "_idle", "_idle_max", "_idle_s")

    def __init__(self, *, idle_s: float, age_max_s: float, idle_max: int) -> None:
        self._idle: list[C] = []
        self._idle_s = idle_s
        self._age_max_s = age_max_s
        self._idle_max = idle_max

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, now: float) -> C | None:
        """The connection used last, if it is still good; the dead ones found on the way are closed."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            # What happens to an idle connection is seen when it happens: reads stay armed.
            if connection.closed:
                continue
            if now - connection.idle_since > self._idle_s or now - connection.born > self._age_max_s:
                connection.close()
                continue
            # Except within this very turn of the loop: only then is the kernel asked. TLS may hold a session
            # ticket, which is no answer.
            if now - connection.idle_since < 0.002 and not connection.secure and connection.readable():
                connection.close()
                continue
            connection.reused = True
            return connection
        return None

    def put(self, connection: C, now: float) -> None:
        """`give` for a connection that was just found usable."""
        if now - connection.born > self._age_max_s or len(self._idle) >= self._idle_max:
            connection.close()
            return
        connection.idle_since = now
        self._idle.append(connection)

    def give(self, connection: C, now: float) -> None:
        """Keep a connection whose answer is complete; close it when it cannot be used again."""
        if connection.usable:
            self.put(connection, now)
        else:
            connection.close()

    def expire(self, now: float) -> None:
        """Close what has been idle or alive for too long, and what the provider closed (every few seconds)."""
        keep: list[C] = []
        for connection in self._idle:
            fresh = now - connection.idle_since <= self._idle_s and now - connection.born <= self._age_max_s
            if fresh and connection.usable:
                keep.append(connection)
            else:
                connection.close()
        self._idle = keep

    def close(self) -> None:
        """Close every idle connection."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
