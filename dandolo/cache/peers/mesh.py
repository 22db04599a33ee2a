"""A process among its peers: whom to ask about a key, what to answer them, and who makes which call.

The owner of a key, by rendezvous over all that answer in time and ourselves, knows its answer or who is making it;
the pieces of a call go from its holder to those who follow it directly, so that an owner that dies harms nobody who
follows. Every question ends within its deadline, in an answer or in "do without". Nothing here raises to who asks, and
everything runs on one event loop, by callbacks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from random import random as chance
from typing import Final

from dandolo.cache.generations import Purge
from dandolo.cache.peers.connection import Connection, End
from dandolo.cache.peers.door import Door
from dandolo.cache.peers.frames import (
    INSTANCE_BYTES,
    KEYS_MAX,
    NONCE_BYTES,
    Done,
    Frame,
    Get,
    Grant,
    Inv,
    Lease,
    Put,
    Renew,
    Sync,
    Val,
    Value,
    Wait,
)
from dandolo.cache.peers.greeting import Greeting, Refused, key_of
from dandolo.cache.peers.heat import Heat
from dandolo.cache.peers.home import Counts, Home, PeerHealth
from dandolo.cache.peers.leases import RENEW_S, Leases
from dandolo.cache.peers.link import Feed, Following, Link
from dandolo.cache.peers.ownership import owner_of, seed_of
from dandolo.cache.peers.place import Membership, accepting, dialling, opened
from dandolo.cache.peers.purges import KINDS, Heard, Journal
from dandolo.cache.peers.session import Outlet, Session

_log = logging.getLogger("dandolo")

SESSIONS_MAX: Final = 256
"""Connections dialled to us; beyond, they are closed at once."""
LOG_S: Final = 10.0
TAKEN_S: Final = 1.0
"""Between two tries to listen where another process does."""
SESSION_SILENT_S: Final = 4.0
"""A peer that dialled us says something twice a second; after this much silence it is gone."""
TRIES_MAX: Final = 2
"""Owners asked about one key: when the first does not answer, the one that would own it without him."""

Answered = Callable[["Value | str | None"], None]
"""A `Value`; the name of who makes the call, our own for a lease; None to do without."""


class Peers:
    """`secret` is the cache's, the same for all peers. `random` gives numbers in [0, 1)."""

    def __init__(
        self, membership: Membership, secret: bytes, home: Home, *, random: Callable[[], float] = chance
    ) -> None:
        """Opens the listening sockets; where somebody else listens, later. Raises OSError (ssl.SSLError) for papers or
        addresses that cannot be used."""
        self.name = membership.name
        self.counts = Counts()
        self._home = home
        self._key = key_of(secret)
        self._instance = os.urandom(INSTANCE_BYTES)
        papers = membership.papers
        dials = dialling(papers) if papers is not None else None
        places = (*membership.listen, *membership.peers)
        if dials is None and any(place.kind == "tcp" for place in places):
            raise OSError("cache peers on TCP need certificates")
        self._links = [
            Link(place, dials if place.kind == "tcp" else None, self, random)
            for place in membership.peers
            if place not in membership.listen
        ]
        self._seeds = [(self.name, seed_of(self.name))]
        self._live: dict[str, Link] = {}
        self._sessions: dict[Session, None] = {}
        self._leases = Leases()
        self._held: dict[bytes, Link | None] = {}
        """Calls made here, and whose leave they have; None is our own."""
        self._journal, self._heard, self._heat = Journal(), Heard(), Heat()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._log_at = 0.0
        self._accepts = accepting(papers) if papers is not None else None
        self._doors: list[Door] = []
        self._taken = list(membership.listen)
        """Where somebody else listens still: a worker that this one replaces, most likely."""
        try:
            self._open()
        except OSError:
            for door in self._doors:
                door.discard()
            raise
        if self._taken:
            _log.warning("cache peers: another process listens on %s still", ", ".join(map(str, self._taken)))

    def start(self) -> None:
        """Listen and connect, on the running loop. Until that is done everybody does without."""
        self._loop = asyncio.get_running_loop()
        for door in self._doors:
            door.start()
        if self._taken:
            self._again = self._loop.call_later(TAKEN_S, self._open_again)
        for link in self._links:
            link.start()
        self._renewal = self._loop.call_later(RENEW_S, self._renew)

    async def close(self) -> None:
        """End all connections; whoever waits is told to do without."""
        for timer in (self._renewal, self._again):
            if timer is not None:
                timer.cancel()
        for door in self._doors:
            await door.close()
        for link in self._links:
            link.stop()
        for session in list(self._sessions):
            session.close("we stop")
        for link in self._links:
            await link.stopped()

    # -- asking ----------------------------------------------------------------------------------------

    def owner(self, key: bytes, without: Link | None = None) -> Link | None:
        """Whom to ask about a key; None is ourselves."""
        seeds = self._seeds
        if without is not None:
            seeds = [one for one in seeds if one[0] != without.name]
        return self._live.get(owner_of(key, seeds))

    def get(self, key: bytes, answered: Answered) -> None:
        """Ask the owner for an answer; `answered` is called once, perhaps before this returns, never with a name."""
        self.counts.asked += 1
        link = self.owner(key)
        if link is None or not link.ask(lambda number: Get(number, key), partial(self._got, key, answered)):
            self._got(key, answered, None)

    def lease(self, key: bytes, answered: Answered, *, without: str = "") -> None:
        """Ask the owner for an answer or for leave to make the call; `answered` is called once, perhaps before this
        returns. With our own name given, `release` must follow. `without`: see `frames.Lease`."""
        self.counts.asked += 1
        self._lease(key, answered, without, None, TRIES_MAX)

    def follow(self, holder: str, key: bytes, feed: Feed) -> Following | None:
        """Follow the call that another makes. None: it cannot be reached."""
        link = self._live.get(holder)
        return None if link is None else link.follow(key, feed)

    def hold(self, key: bytes) -> None:
        """The call is made here though nobody gave leave: whoever is its owner now is told."""
        self._claim(key)

    def release(self, key: bytes, value: Callable[[], Value | None]) -> None:
        """The call made here is over. `value` is called, if anybody is to have it: its owner keeps it, too, then."""
        link = self._held.pop(key, None)
        self._leases.release(key, self.name)
        if link is None or not link.live:
            link = self.owner(key)
        if link is not None:
            link.tell(Done(0, key, value()))

    def purge(self, purge: Purge) -> None:
        """Tell everybody of a purge that has been made here."""
        self.counts.purges += 1
        inv = self._journal.add(purge)
        for link in self._links:
            if link.connection is not None and not link.tell(inv):
                # It must not miss one: the next connection begins with all of them.
                link.connection.close("it does not read what it is told")

    def health(self) -> tuple[PeerHealth, ...]:
        """Every peer of the configuration as it stands."""
        now = 0.0 if self._loop is None else self._loop.time()
        return tuple(
            PeerHealth(
                address=str(link.place),
                name=link.name,
                up=link.connection is not None,
                breaker=link.breaker.state(now),
                connects=link.connects,
                timeouts=link.timeouts,
                reason=link.reason,
            )
            for link in self._links
            if not link.ourselves
        )

    def _lease(self, key: bytes, answered: Answered, without: str, silent: Link | None, tries: int) -> None:
        link = self.owner(key, silent)
        if link is None:
            holder = self._leases.ask(key, self.name, without, self._now())
            if holder == self.name:
                self._held[key] = None
            answered(holder)
            return

        def told(frame: Frame | None) -> None:
            if frame is None and tries > 1:
                self._lease(key, answered, without, link, tries - 1)
                return
            if isinstance(frame, Grant):
                self._held[key] = link
                self.counts.grants += 1
                answered(self.name)
            elif isinstance(frame, Wait):
                self.counts.waits += 1
                answered(frame.holder)
            else:
                self._got(key, answered, frame)

        if not link.ask(lambda number: Lease(number, key, without, False), told):
            told(None)

    def _got(self, key: bytes, answered: Answered, frame: Frame | None) -> None:
        if isinstance(frame, Val):
            self.counts.hits += 1
            answered(frame.value)
            return
        if frame is None:
            self.counts.without += 1
        answered(None)

    def _claim(self, key: bytes) -> None:
        link = self.owner(key)
        self._held[key] = link
        if link is None:
            self._leases.ask(key, self.name, "", self._now())
        else:
            link.ask(lambda number: Lease(number, key, "", True), lambda _: None)

    def _renew(self) -> None:
        self._renewal = self._loop_().call_later(RENEW_S, self._renew)
        now = self._now()
        for session in list(self._sessions):
            if now - session.heard_at > SESSION_SILENT_S:
                session.close("no sign of it")
        owned: dict[Link | None, list[bytes]] = {}
        for key, link in self._held.items():
            owned.setdefault(link, []).append(key)
        for link, keys in owned.items():
            if link is None:
                self._leases.renew(keys, self.name, now)
                continue
            for start in range(0, len(keys), KEYS_MAX):
                link.tell(Renew(0, tuple(keys[start : start + KEYS_MAX])))

    # -- from the links --------------------------------------------------------------------------------

    def greeting_for(self, link: Link) -> Callable[[], Connection]:
        """A connection that we dial."""
        return lambda: Connection(self._loop_(), self._greeting(dials=True), lambda _: link)

    def welcome(self, link: Link) -> None:
        """The peer has said who it is."""
        if any(other is not link and other.connection and other.name == link.name for other in self._links):
            raise Refused(f"another peer has the name {link.name}, too")

    def connected(self, link: Link) -> None:
        """A peer can be asked, and hears of all purges from here on."""
        for frame in self._journal.story():
            link.tell(frame)
        self.changed()

    def changed(self) -> None:
        """Somebody came, went, or is too slow to be asked."""
        self._live = {link.name: link for link in self._links if link.live}
        names = sorted((self.name, *self._live))
        self._seeds = [(name, seed_of(name)) for name in names]
        # Whoever owns a call that is made here should know of it.
        for key, owner in list(self._held.items()):
            if self.owner(key) is not owner:
                self._claim(key)

    def late(self, link: Link, frame: Frame) -> None:
        """Nobody waits for it. A lease that was granted too late ends by itself, or with the next who asks for it."""

    # -- from the sessions -----------------------------------------------------------------------------

    def departed(self, session: Session, reason: str, *, closed: bool) -> None:
        """It is gone."""
        self._sessions.pop(session, None)
        if not session.name:
            self._not_let_in(reason)
            return
        if not closed:
            self._heard.silent(session.name)
        if not any(other.name == session.name for other in self._sessions):
            self._leases.drop(session.name)

    def value_for(self, key: bytes, asker: str) -> Value | None:
        """The answer under a key."""
        value = self._home.value(key)
        if value is not None:
            self.counts.served += 1
            if self._heat.asked(key, self._now()):
                for name, link in self._live.items():
                    if name != asker and link.tell(Put(0, key, value)):
                        self.counts.pushed += 1
        return value

    def leased(self, frame: Lease, asker: str) -> str | None:
        """Whom to wait for."""
        key = frame.key
        if not frame.claim:
            if self._home.leading(key):
                return self.name
            following = self._home.following(key)
            if following not in ("", asker, frame.without):
                return following
        return self._leases.ask(key, asker, frame.without, self._now())

    def join(self, key: bytes, outlet: Outlet) -> bool:
        """Let the outlet hear the call made here."""
        return self._home.join(key, outlet)

    def released(self, frame: Done, holder: str) -> None:
        """A holder's call is over."""
        self._leases.release(frame.key, holder)
        if frame.value is not None:
            self._home.take(frame.key, frame.value)

    def renewed(self, keys: tuple[bytes, ...], holder: str) -> None:
        """A holder still makes these calls."""
        self._leases.renew(keys, holder, self._now())

    def put(self, frame: Put) -> None:
        """An answer that many ask for."""
        self._home.take(frame.key, frame.value)

    def synced(self, session: Session, frame: Sync) -> None:
        """Purges follow."""
        if self._heard.sync(session.name, session.instance, frame.first, frame.last):
            self._flush()

    def purged(self, session: Session, frame: Inv) -> None:
        """A purge."""
        if frame.what not in KINDS:
            raise Refused("it purged something of an unknown kind")
        new, missed = self._heard.heard(session.instance, frame.sequence)
        if missed:
            self._flush()
        elif new:
            self._home.purge_from((frame.what, frame.name, frame.soft))

    def _flush(self) -> None:
        self.counts.flushes += 1
        self._home.flush()

    # -- within ----------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[object]:
        """Where it listens, as the kernel says it."""
        return [door.address for door in self._doors]

    def _open(self) -> None:
        """Listen wherever nobody else does. Raises OSError for another reason."""
        for place in list(self._taken):
            try:
                sockets = opened(place)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            self._taken.remove(place)
            tls = self._accepts if place.kind == "tcp" else None
            self._doors += [Door(sock, tls, self._accept) for sock in sockets]

    def _open_again(self) -> None:
        before = len(self._doors)
        try:
            self._open()
        except OSError as error:
            _log.error("cache peers: %s", error)
        for door in self._doors[before:]:
            door.start()
        self._again = self._loop_().call_later(TAKEN_S, self._open_again) if self._taken else None

    def _accept(self) -> Connection:
        def made(connection: Connection) -> End | None:
            if len(self._sessions) >= SESSIONS_MAX:
                return None
            session = Session(connection, self)
            self._sessions[session] = None
            return session

        return Connection(self._loop_(), self._greeting(dials=False), made)

    def _not_let_in(self, reason: str) -> None:
        """Count, and say why once in LOG_S: a stranger must not fill the log."""
        self.counts.refused += 1
        if reason and not (self._loop is None or self._now() < self._log_at):
            self._log_at = self._now() + LOG_S
            _log.warning("a cache peer that dialled us was not let in: %s", reason)

    def _greeting(self, *, dials: bool) -> Greeting:
        return Greeting(self._key, self.name, self._instance, os.urandom(NONCE_BYTES), dials=dials)

    def _loop_(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "peers are used after start"
        return self._loop

    def _now(self) -> float:
        return self._loop_().time()
