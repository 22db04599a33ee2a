"""The way to one peer: connecting, proving ourselves, asking within deadlines, coming back after a loss.

What we ask goes over the connection that we dialled, what we are asked comes over one that was dialled to us
(`session`). There is at most one connection and one attempt to make one. While there is none, or the breaker is open,
whoever would ask is told at once that he must do without. Silence for SILENT_S although we ask whether it is there
ends the connection: a process that was stopped or cut off holds nobody up for longer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from dandolo.cache.breaker import Backoff, Breaker
from dandolo.cache.peers.connection import Connection
from dandolo.cache.peers.frames import Abort, Begin, Done, Flow, Follow, Frame, Leave, Nothing, Piece, Ping, Pong, Wait
from dandolo.cache.peers.greeting import Refused
from dandolo.config.address import Listen

_log = logging.getLogger("dandolo")

DIAL_S: Final = 3.0
QUIET_S: Final = 2.0
"""How long a peer may be out of reach before that is told."""
NEAR_S: Final = 0.015
FAR_S: Final = 0.050
"""How long anybody waits for a peer on this host, and on another."""
FOLLOW_S: Final = 0.250
"""The same for whoever follows a call that takes seconds anyway: another call costs more than this."""
BEAT_S: Final = 0.5
SILENT_S: Final = 2.0
ASKED_MAX: Final = 1024
FOLLOWED_MAX: Final = 1024
LATE_S: Final = 0.020
"""A timer this late means that our own loop stood still: that does not speak against the peer."""

Ask = Callable[[int], Frame]
Told = Callable[["Frame | None"], None]


class Feed(Protocol):
    """Who follows a call that another process makes. Ended once, by `done` or `lost`."""

    def begun(self, frame: Begin) -> None:
        """The answer has begun."""

    def piece(self, content: bytes) -> None:
        """The next piece."""

    def done(self, frame: Done, *, before: bool) -> None:
        """It is complete. `before`: it was when we asked."""

    def lost(self, *, failed: bool) -> None:
        """It will not be. `failed`: the call itself; otherwise the peer is gone or knows of no such call."""


class Mesh(Protocol):
    """Whom a link tells."""

    def greeting_for(self, link: Link) -> Callable[[], Connection]:
        """Makes the connection's protocol."""

    def welcome(self, link: Link) -> None:
        """The peer has said who it is. May raise Refused."""

    def connected(self, link: Link) -> None:
        """It can be asked."""

    def changed(self) -> None:
        """Whether this peer can be asked may be another now."""

    def late(self, link: Link, frame: Frame) -> None:
        """A reply has come when nobody waited for it any more."""


@dataclass(slots=True)
class _Asked:
    told: Told
    deadline: float


class Link:
    """One peer. `tls` is for TCP. Needs the running loop only from `start` on; nothing here raises."""

    def __init__(self, place: Listen, tls: ssl.SSLContext | None, mesh: Mesh, random: Callable[[], float]) -> None:
        self.place = place
        self.deadline_s = NEAR_S if place.is_local() else FAR_S
        self.breaker = Breaker()
        self.backoff = Backoff(random)
        self.connection: Connection | None = None
        """Proved, or None."""
        self.name = ""
        """The peer's, as it last said."""
        self.reason = "not connected yet"
        self._failing_since: float | None = None
        self._told = ""
        self.connects = 0
        self.timeouts = 0
        self.ourselves = False
        """The address leads back to this process: it is not dialled again."""
        self._tls = tls
        self._mesh = mesh
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._sweep_at = inf
        self._asked: dict[int, _Asked] = {}
        self._feeds: dict[int, Feed] = {}
        self._last_id = 0
        self._pinged_at = 0.0
        self._probing = False
        self._since = 0.0
        self._stopped = False

    @property
    def live(self) -> bool:
        """Whether it may own keys: there is a connection, and it answers in time."""
        return self.connection is not None and self.breaker.closed

    def start(self) -> None:
        """Begin to connect."""
        self._loop = asyncio.get_running_loop()
        self._dial_now()

    def stop(self) -> None:
        """Close or give up; whoever waits is told before this returns."""
        self._stopped = True
        if self._again is not None:
            self._again.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self.connection is not None:
            self.connection.close("we stop")

    async def stopped(self) -> None:
        """Wait, after `stop`, until an attempt to connect has cleaned up after itself."""
        if self._dialling is not None:
            await asyncio.wait((self._dialling,))

    # -- asking ----------------------------------------------------------------------------------------

    def ask(self, make: Ask, told: Told, within_s: float | None = None) -> bool:
        """Ask; `told` is called once within the deadline (`deadline_s`, or another), with None for no answer.

        False: it was not asked."""
        connection, breaker = self.connection, self.breaker
        if connection is None or not breaker.closed or len(self._asked) >= ASKED_MAX:
            return False
        number = self._next_id()
        if not connection.send(make(number)):
            return False
        deadline = self._now() + (self.deadline_s if within_s is None else within_s)
        self._asked[number] = _Asked(told, deadline)
        if deadline < self._sweep_at:
            self._sweep_by(deadline)
        return True

    def follow(self, key: bytes, feed: Feed) -> Following | None:
        """Follow the call of `key`; `feed` is told from within later calls. None: it cannot be."""
        if len(self._feeds) >= FOLLOWED_MAX:
            return None
        following = Following(self, feed)

        def make(number: int) -> Frame:
            following.id = number
            self._feeds[number] = feed
            return Follow(number, key)

        if self.ask(make, following.told, FOLLOW_S):
            return following
        self._feeds.pop(following.id, None)
        return None

    def tell(self, frame: Frame) -> bool:
        """Say something that needs no answer; whether it is on its way."""
        return self.connection is not None and self.connection.send(frame)

    def unfollow(self, number: int) -> None:
        """From `Following`."""
        if self._feeds.pop(number, None) is not None:
            self._asked.pop(number, None)
            self.tell(Leave(number))

    # -- from the connection ---------------------------------------------------------------------------

    def greeted(self, connection: Connection) -> None:
        """Both believe each other."""
        self.name = connection.greeting.name
        self._mesh.welcome(self)
        self.connection = connection
        self.connects += 1
        self.reason = self._told = ""
        self._failing_since = None
        self._since = self._now()
        self.breaker.renewed()
        if not self.breaker.closed:
            # A new connection is the probe: it has just answered.
            self.breaker.admits(self._since)
            self.breaker.succeeded()
        self._pinged_at = 0.0
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)
        self._beat = self._loop_().call_later(BEAT_S, self._on_beat)
        _log.info("cache peer %s (%s): connected", self.name, self.place)
        self._mesh.connected(self)

    def heard(self, frame: Frame) -> None:
        """A frame has come."""
        number = frame.id
        if isinstance(frame, Pong):
            if self._pinged_at and self._probing:
                if self._now() - self._pinged_at <= self.deadline_s:
                    self.breaker.succeeded()
                    self._mesh.changed()
                else:
                    self.breaker.failed(self._now())
            self._pinged_at = 0.0
            self._probing = False
            return
        asked = self._asked.pop(number, None)
        if asked is not None:
            asked.told(frame)
            return
        feed = self._feeds.get(number)
        if feed is None:
            self._mesh.late(self, frame)
        elif isinstance(frame, Piece):
            feed.piece(frame.content)
        elif isinstance(frame, Begin):
            feed.begun(frame)
        elif isinstance(frame, Done):
            del self._feeds[number]
            feed.done(frame, before=False)
        elif isinstance(frame, (Abort, Nothing)):
            del self._feeds[number]
            feed.lost(failed=isinstance(frame, Abort))
        else:
            raise Refused("it answered something that was not asked")

    def writable(self) -> None:
        """Questions are short: none waits for this."""

    def ended(self, reason: str, *, closed: bool) -> None:
        """The connection is gone."""
        if self.connection is None:
            # Still on its way: the attempt hears it.
            greeted = self._greeted
            if greeted is not None and not greeted.done():
                greeted.set_exception(Refused(f"no greeting: {reason}"))
            return
        self.connection = None
        self.backoff.lived(self._now() - self._since)
        for timer in (self._beat, self._timer):
            if timer is not None:
                timer.cancel()
        self._timer = None
        self._sweep_at = inf
        if not self._stopped:
            _log.warning("cache peer %s (%s): %s", self.name, self.place, reason)
        self._dial_later(reason)
        self._mesh.changed()
        asked, self._asked = self._asked, {}
        feeds, self._feeds = self._feeds, {}
        for number, one in asked.items():
            if number not in feeds:
                self._guarded(one.told, None)
        for feed in feeds.values():
            self._guarded(lambda _, feed=feed: feed.lost(failed=False), None)  # type: ignore[misc]

    # -- within ----------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id = (self._last_id + 1) & 0xFFFFFFFF
        return self._last_id

    def _loop_(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "a link is used after start"
        return self._loop

    def _now(self) -> float:
        return self._loop_().time()

    def _guarded(self, told: Told, frame: Frame | None) -> None:
        try:
            told(frame)
        except Exception:
            _log.exception("the outcome of asking a cache peer could not be handled")

    def _sweep_by(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = deadline
        self._timer = self._loop_().call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Tell all whose time is up."""
        now = self._now()
        self._timer = None
        late = now - self._sweep_at > LATE_S
        self._sweep_at = inf
        expired = [(number, one) for number, one in self._asked.items() if one.deadline <= now]
        for number, _ in expired:
            del self._asked[number]
        earliest = min((one.deadline for one in self._asked.values()), default=inf)
        if earliest < inf:
            self._sweep_by(earliest)
        if expired and not late:
            was = self.breaker.closed
            for _ in expired:
                self.timeouts += 1
                self.breaker.failed(now)
            if was and not self.breaker.closed:
                _log.warning("cache peer %s (%s): too slow, left alone for a while", self.name, self.place)
                self._mesh.changed()
        for _, one in expired:
            self._guarded(one.told, None)

    def _on_beat(self) -> None:
        now = self._now()
        connection = self.connection
        if connection is None:
            return
        self._beat = self._loop_().call_later(BEAT_S, self._on_beat)
        if self._pinged_at and now - max(self._pinged_at, connection.heard_at) > SILENT_S:
            connection.close(f"no sign of it for {SILENT_S:g} s")
            return
        if not self._pinged_at:
            self._pinged_at = now
            self._probing = not self.breaker.closed and self.breaker.admits(now)
            connection.send(Ping(0))

    def _dial_later(self, reason: str) -> None:
        self.reason = reason
        if self._loop is not None and not self._stopped and not self.ourselves:
            self._again = self._loop.call_later(self.backoff.wait_s(), self._dial_now)

    def _dial_now(self) -> None:
        # Kept here until it ends; it lets nothing out but its cancellation.
        self._dialling = self._loop_().create_task(self._dial(), name=f"cache peer {self.place}")

    async def _dial(self) -> None:
        connection: Connection | None = None
        greeted = self._greeted = self._loop_().create_future()
        try:
            async with asyncio.timeout(DIAL_S):
                connection = await self._connect()
                await greeted
        except TimeoutError:
            failed = f"no connection and greeting within {DIAL_S:g} s"
        except ssl.SSLCertVerificationError as error:
            failed = f"its certificate was not accepted: {error.verify_message}"
        except OSError as error:
            failed = f"no connection: {error.strerror or type(error).__name__}"
        except Refused as error:
            failed = str(error)
        except Exception as error:
            _log.exception("cache peer %s: connecting failed in a way that is not expected", self.place)
            failed = type(error).__name__
        else:
            return
        finally:
            greeted.cancel()
            if connection is not None and self.connection is not connection:
                connection.close("the greeting did not end")
        self.ourselves = connection is not None and connection.greeting.ourselves
        now = self._now()
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= QUIET_S and failed != self._told and not self.ourselves:
            # Once for a row of the same, and not at first: workers that begin together wait for one another.
            self._told = failed
            _log.warning("cache peer %s: %s", self.place, failed)
        self._dial_later(failed)

    async def _connect(self) -> Connection:
        loop, place = self._loop_(), self.place
        made = self._mesh.greeting_for(self)
        if place.kind == "unix":
            _, connection = await loop.create_unix_connection(made, place.path)
            return connection
        _, connection = await loop.create_connection(
            made, place.host, place.port, ssl=self._tls, server_hostname=place.host if self._tls is not None else None
        )
        return connection


class Following:
    """A call of another process that we follow: `hold` and `leave` are for who does."""

    __slots__ = ("_feed", "_link", "id")

    def __init__(self, link: Link, feed: Feed) -> None:
        self._link = link
        self._feed = feed
        self.id = 0

    def told(self, frame: Frame | None) -> None:
        """From the link: the first answer, or none in time."""
        link = self._link
        if isinstance(frame, Wait):
            return
        if link._feeds.pop(self.id, None) is None:
            return
        if isinstance(frame, Done):
            self._feed.done(frame, before=True)
            return
        if frame is None:
            link.tell(Leave(self.id))
        self._feed.lost(failed=isinstance(frame, Abort))

    def hold(self, go: bool) -> None:
        """Let no more come for now, or go on."""
        self._link.tell(Flow(self.id, go))

    def leave(self) -> None:
        """Nobody here waits any more; the feed is told nothing."""
        self._link.unfollow(self.id)
