"""One peer that dialled us: what it asks, what it is told, and what it hears of the calls made here.

Answers from memory come in the very call that reads the question. What the other side does not read piles up to the
connection's bound: answers are then left out (the asker's deadline serves it), pieces wait in their flight.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from dandolo.cache.peers.connection import Connection
from dandolo.cache.peers.frames import (
    PIECE_BYTES_MAX,
    Abort,
    Begin,
    Done,
    Flow,
    Follow,
    Frame,
    Get,
    Grant,
    Inv,
    Lease,
    Leave,
    Nothing,
    Piece,
    Ping,
    Pong,
    Put,
    Renew,
    Sync,
    Val,
    Value,
    Wait,
)
from dandolo.cache.peers.greeting import Refused
from dandolo.cache.peers.leases import LEASE_S

_log = logging.getLogger("dandolo")

OUTLETS_MAX: Final = 1024
"""Calls that one peer may follow at one time."""


class Source(Protocol):
    """Who is behind an outlet: told when it may go on, and when nobody listens any more."""

    def resumed(self) -> None:
        """It is not paused any more."""

    def left(self) -> None:
        """Nobody listens."""


class Outlet:
    """Where the pieces of one call go, to one peer. Ended by `done`, `abort` or `refuse`, which let `source` go."""

    __slots__ = ("_held", "_id", "_session", "source")

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._id = number
        self._held = False
        self.source: Source | None = None

    @property
    def paused(self) -> bool:
        """Whether to send nothing for now."""
        return self._held or self._session.paused

    def begin(self, status: int, events: bool, provider: str) -> None:
        """The answer has begun."""
        self._session.send(Begin(self._id, status, events, provider))

    def piece(self, content: bytes) -> None:
        """The next piece."""
        for start in range(0, len(content), PIECE_BYTES_MAX):
            if not self._session.send(Piece(self._id, content[start : start + PIECE_BYTES_MAX])):
                # A stream with a gap is worse than none.
                self._session.overflowed()
                return

    def done(self, key: bytes, value: Value | None) -> None:
        """It is complete, and kept where there is a `value`."""
        self._close(Done(self._id, key, value))

    def abort(self) -> None:
        """It failed."""
        self._close(Abort(self._id))

    def refuse(self) -> None:
        """There is no such call here after all."""
        self._close(Nothing(self._id))

    def flow(self, go: bool) -> None:
        """From the session."""
        self._held = not go
        if self.source is not None and not self.paused:
            self.source.resumed()

    def _close(self, frame: Frame) -> None:
        self.source = None
        if self._session.outlets.pop(self._id, None) is not None and not self._session.send(frame):
            self._session.overflowed()


class Host(Protocol):
    """What a session needs of the process it reached."""

    @property
    def name(self) -> str:
        """Ours."""

    def departed(self, session: Session, reason: str, *, closed: bool) -> None:
        """It is gone, or was never let in (it has no name then)."""

    def value_for(self, key: bytes, asker: str) -> Value | None:
        """The answer under a key, for a peer."""

    def leased(self, frame: Lease, asker: str) -> str | None:
        """Whom to wait for: `asker` for a lease, None for nobody."""

    def join(self, key: bytes, outlet: Outlet) -> bool:
        """Let the outlet hear the call made here; False when there is none."""

    def released(self, frame: Done, holder: str) -> None:
        """A holder's call is over."""

    def renewed(self, keys: tuple[bytes, ...], holder: str) -> None:
        """A holder still makes these calls."""

    def put(self, frame: Put) -> None:
        """An answer that many ask for."""

    def synced(self, session: Session, frame: Sync) -> None:
        """Purges follow."""

    def purged(self, session: Session, frame: Inv) -> None:
        """A purge."""


class Session:
    """The owner of a connection that was dialled to us."""

    __slots__ = ("_connection", "_handlers", "_host", "instance", "name", "outlets")

    def __init__(self, connection: Connection, host: Host) -> None:
        self._connection = connection
        self._host = host
        self.name = ""
        self.instance = b""
        self.outlets: dict[int, Outlet] = {}
        self._handlers: dict[int, Callable[..., None]] = {
            Ping.kind: self._ping,
            Get.kind: self._get,
            Lease.kind: self._lease,
            Follow.kind: self._follow,
            Leave.kind: self._leave,
            Flow.kind: self._flow,
            Done.kind: lambda frame: host.released(frame, self.name),
            Renew.kind: lambda frame: host.renewed(frame.keys, self.name),
            Put.kind: host.put,
            Sync.kind: lambda frame: host.synced(self, frame),
            Inv.kind: lambda frame: host.purged(self, frame),
        }

    @property
    def heard_at(self) -> float:
        """When it last said anything, on the loop's clock."""
        return self._connection.heard_at

    @property
    def paused(self) -> bool:
        """Whether the peer reads nothing for now."""
        return self._connection.paused

    def send(self, frame: Frame) -> bool:
        """Say something; whether it is on its way."""
        return self._connection.send(frame)

    def close(self, reason: str) -> None:
        """End it."""
        self._connection.close(reason)

    def overflowed(self) -> None:
        """Something that had to be said could not be: the peer reads nothing."""
        self._connection.close("it does not read what it is told")

    def greeted(self, connection: Connection) -> None:
        """From the connection."""
        self.name, self.instance = connection.greeting.name, connection.greeting.instance

    def heard(self, frame: Frame) -> None:
        """From the connection."""
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise Refused("it answered something that was not asked")
        handler(frame)

    def writable(self) -> None:
        """From the connection: it reads again."""
        for outlet in list(self.outlets.values()):
            if outlet.source is not None and not outlet.paused:
                outlet.source.resumed()

    def ended(self, reason: str, *, closed: bool) -> None:
        """From the connection."""
        outlets, self.outlets = self.outlets, {}
        for outlet in outlets.values():
            source, outlet.source = outlet.source, None
            if source is not None:
                source.left()
        self._host.departed(self, reason, closed=closed)

    def _ping(self, frame: Ping) -> None:
        self.send(Pong(frame.id))

    def _get(self, frame: Get) -> None:
        self._give(frame.id, self._host.value_for(frame.key, self.name))

    def _give(self, number: int, value: Value | None) -> None:
        if value is None or not self.send(Val(number, value)):
            self.send(Nothing(number))

    def _lease(self, frame: Lease) -> None:
        value = None if frame.claim else self._host.value_for(frame.key, self.name)
        if value is not None:
            self._give(frame.id, value)
            return
        holder = self._host.leased(frame, self.name)
        if holder is None:
            self.send(Nothing(frame.id))
        elif holder == self.name:
            self.send(Grant(frame.id, int(LEASE_S * 1000)))
        else:
            self.send(Wait(frame.id, holder))

    def _follow(self, frame: Follow) -> None:
        number, key = frame.id, frame.key
        if number in self.outlets:
            raise Refused("it used a number twice")
        value = self._host.value_for(key, self.name)
        if value is not None:
            # It was over before this came.
            self.send(Done(number, key, value))
            return
        if len(self.outlets) >= OUTLETS_MAX:
            self.send(Nothing(number))
            return
        outlet = self.outlets[number] = Outlet(self, number)
        # What the call says at once must come behind this.
        self.send(Wait(number, self._host.name))
        if not self._host.join(key, outlet):
            outlet.refuse()

    def _leave(self, frame: Leave) -> None:
        outlet = self.outlets.pop(frame.id, None)
        if outlet is not None and outlet.source is not None:
            source, outlet.source = outlet.source, None
            source.left()

    def _flow(self, frame: Flow) -> None:
        outlet = self.outlets.get(frame.id)
        if outlet is not None:
            outlet.flow(frame.go)
