"""A flight whose answer may come from another process: asking for it, following its call there, or making it here.

A `Seeking` stands between a flight's leader and the peers. It asks the key's owner, and then either has the answer, or
may make the call (the leader does), or follows whoever makes it and feeds the flight with the pieces as they come.
Whatever goes wrong before the first piece ends in another try and at last in a call of our own: none of it is told to a
client. A stream of which pieces were given away already goes on with the text of another call, where that is the same
(`relaying.Resuming`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from dandolo.api.usage import Usage
from dandolo.cache.entry import Entry, decode
from dandolo.cache.flight import PIECES_BYTES_MAX
from dandolo.cache.headers import Outcome, forwarded
from dandolo.cache.peers.frames import Begin, Done, Value
from dandolo.cache.peers.link import Following
from dandolo.cache.peers.session import Outlet
from dandolo.cache.tiers import Found
from dandolo.errors import UpstreamUnavailable
from dandolo.gateway.keeping import provider_of
from dandolo.gateway.leading import Begun
from dandolo.gateway.making import LAG_BYTES_MAX, Leader, assembled
from dandolo.gateway.relaying import Relaying, Resuming
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.sharing import Sharing

ASKS_MAX: Final = 3
"""Times that an owner is asked before the call is made without leave."""
PARKED_MAX: Final = 64
"""Processes that wait for us to hear whether we may make the call."""
_TYPES: Final = {True: b"text/event-stream", False: b"application/json"}

_now = time.monotonic


class Seeking:
    """What becomes of one flight among the peers. `begin` is called once."""

    __slots__ = (
        "_asks", "_begun", "_body", "_following", "_held", "_leases", "_over", "_parked", "_resuming", "_sharing",
        "_value", "holder", "key", "leader", "leads", "usage",
    )  # fmt: skip

    def __init__(self, leader: Leader, sharing: Sharing) -> None:
        self.leader = leader
        self.key = leader.plan.key
        self.holder = ""
        """Whom we follow."""
        self.leads = False
        """Whether the call is made here."""
        self.usage: Usage | None = None
        """Of an answer that another process made: what it cost is on a record there."""
        self._sharing = sharing
        self._asks = 0
        self._begun: Begin | None = None
        self._body: list[bytes] = []
        self._following: Following | None = None
        self._held = False
        self._leases = False
        """Whether it asks for leave to make the call, not only for an answer."""
        self._over = False
        self._parked: list[Outlet] = []
        self._resuming: Resuming | None = None
        self._value: Value | None = None

    def begin(self, without: str = "") -> None:
        """Ask the owner; the leader may be told before this returns. `without`: a holder who is of no use."""
        permission = self.leader.plan.permission
        if permission.coalesces() and not permission.only_if_cached:
            self._leases = True
            self._ask(without)
        else:
            self._sharing.peers.get(self.key, self._answered)

    # -- from other processes --------------------------------------------------------------------------

    def join(self, outlet: Outlet) -> bool:
        """Another process wants to follow: it hears the call made here, once it is certain that it is."""
        if self.leads:
            if not self.leader.flight.open:
                return False
            Relaying(self, outlet).begin()
            return True
        if self.holder or self._over or len(self._parked) >= PARKED_MAX:
            return False
        self._parked.append(outlet)
        return True

    def value(self) -> Value | None:
        """The answer as others may have it, once the flight has landed and it is kept."""
        entry = self.leader.flight.entry
        if entry is not None and self._value is None:
            self._value = self._sharing.value_of(entry, self.leader.plan.permission.scope)
        return self._value

    def provider(self) -> str:
        """The name of the provider that is asked here, "" before one was chosen."""
        target = self.leader.detached.target
        return target.provider.name if target is not None else ""

    # -- from the leader -------------------------------------------------------------------------------

    def left(self) -> bool:
        """Nobody follows any more. False: the call is made here, and is the leader's to cancel."""
        if self.leads:
            return False
        self._end()
        if self._following is not None:
            self._following.leave()
        if self._resuming is not None:
            self._resuming.leave()
        self.leader.detached.gateway.flights.end(self.leader.flight)
        return True

    def moved_on(self) -> None:
        """A follower has taken more."""
        if self._held and self._following is not None and self.leader.flight.trim() <= LAG_BYTES_MAX // 2:
            self._held = False
            self._following.hold(True)

    def over(self) -> None:
        """The call made here has ended; the flight is about to land."""
        self._end()
        if self.leads and self._leases:
            self._sharing.peers.release(self.key, self.value)

    @property
    def elsewhere(self) -> bool:
        """Whether the answer comes from a call that another process made."""
        return self._begun is not None

    def lend(self, exchange: Exchange) -> bool:
        """Tell a follower's exchange of the call that another process made; False when it was made here."""
        begun = self._begun
        if begun is None:
            return False
        detached = self.leader.detached
        exchange.lent = Response(begun.status, 1, {b"content-type": _TYPES[begun.events]})
        exchange.lent_by = begun.provider.encode()
        exchange.sent_at, exchange.provider_s = detached.started, _now() - detached.started
        return True

    # -- asking ----------------------------------------------------------------------------------------

    def _ask(self, without: str) -> None:
        self.holder = ""
        self._asks += 1
        if self._asks > ASKS_MAX:
            self._lead()
        else:
            self._sharing.peers.lease(self.key, self._answered, without=without)

    def _answered(self, outcome: Value | str | None) -> None:
        peers = self._sharing.peers
        if self._over:
            if outcome == peers.name:
                peers.release(self.key, lambda: None)
            return
        if isinstance(outcome, Value):
            entry = decode(outcome.record, self.key)
            if entry is None or not self.leader.give(Found(entry, "peer")):
                self._lead()
        elif outcome is None:
            self._lead()
        elif outcome == peers.name:
            self._lead(leave=True)
        else:
            self._follow(outcome)

    def _lead(self, *, leave: bool = False) -> None:
        """Make the call here, with the owner's leave or without."""
        self.holder = ""
        self.leads = True
        self._following = None
        self._say(Outcome.MISS)
        if self._leases and not leave:
            self._sharing.peers.hold(self.key)
        parked, self._parked = self._parked, []
        self.leader.make()
        for outlet in parked:
            if not self.join(outlet):
                outlet.refuse()

    def _say(self, outcome: Outcome) -> None:
        """Tell whoever began this what came of it, unless he has been told already."""
        origin = self.leader.origin
        if not (origin.committed or origin.ended or self.leader.alone):
            origin.cache = outcome.value.lower()
            stored = outcome is Outcome.MISS and self.leader.plan.permission.store
            origin.cache_lines = forwarded(outcome, stored=stored)

    # -- following a call of another process (a Feed) --------------------------------------------------

    def _follow(self, holder: str) -> None:
        self.holder = holder
        self._refuse_parked()
        self._say(Outcome.COLLAPSED)
        self._following = self._sharing.peers.follow(holder, self.key, self)
        if self._following is None:
            self._ask(holder)

    def begun(self, frame: Begin) -> None:
        """Its answer has begun."""
        if self._begun is None and not self._over:
            self._begun = frame
            if frame.events:
                self.leader.flight.begin(Begun(frame.status, events=True))

    def piece(self, content: bytes) -> None:
        """The next piece of it."""
        flight, begun = self.leader.flight, self._begun
        if begun is None or self._over:
            return
        if begun.events:
            flight.add(content)
            if flight.bytes > PIECES_BYTES_MAX and not self._held and flight.trim() > LAG_BYTES_MAX:
                self._held = True
                assert self._following is not None
                self._following.hold(False)
            return
        self._body.append(content)
        if sum(map(len, self._body)) > PIECES_BYTES_MAX:
            # Too long to be shared: nobody was told anything yet.
            assert self._following is not None
            self._following.leave()
            self._alone()

    def done(self, frame: Done, *, before: bool) -> None:
        """It is complete. `before`: it was when we asked, and is an answer like any that is kept."""
        if self._over:
            return
        if before and frame.value is not None:
            self._answered(frame.value)
            return
        flight, begun = self.leader.flight, self._begun
        entry = self._kept(frame.value)
        if begun is None or not begun.events:
            if entry is not None:
                status, body = entry.status, entry.body
            elif begun is not None:
                status, body = begun.status, b"".join(self._body)
            else:
                self._ask(self.holder)
                return
            self._begun = begun or Begin(0, status, False, provider_of(entry) if entry is not None else "")

            self._end()
            flight.whole = body
            flight.begin(Begun(status, events=False, whole=True))
            flight.add(body)
        else:
            self._end()
            if entry is not None:
                flight.whole = entry.body
            elif flight.bytes <= PIECES_BYTES_MAX:
                flight.whole = assembled(self.leader.call, flight)[0]
        self.leader.detached.gateway.flights.end(flight)
        flight.land()

    def lost(self, *, failed: bool) -> None:
        """It will not be: whoever made it is gone, or his call failed."""
        if self._over:
            return
        if self.leader.flight.head is None:
            self._begun = None
            self._body.clear()
            self._ask(self.holder)
            return
        if failed:
            # The provider's stream broke, which is told to all who follow it, here as there.
            self._break_off("the provider's stream broke off")
        else:
            self._resume()

    def _resume(self) -> None:
        """Pieces of a stream were given away, and nobody can say what follows: ask for the whole of it anew."""
        leader, flights = self.leader, self.leader.detached.gateway.flights
        flight, holder = leader.flight, self.holder
        self._end()
        self._following = None
        flights.end(flight)
        # Whoever asks meanwhile has begun it already, or joins what begins here.
        whole = flights.find(self.key)
        again: Leader | None = None
        if whole is None and flight.bytes <= PIECES_BYTES_MAX:
            whole = flights.start(self.key)
            if whole is not None:
                again = Leader(leader.detached, leader.call, leader.plan, whole)
        if whole is None:
            self._break_off("the process that made the call is gone")
            return
        self._resuming = Resuming(self, whole)
        if again is not None:
            again.begin(without=holder)
        self._resuming.begin()

    def _break_off(self, reason: str) -> None:
        self._end()
        self.leader.detached.gateway.flights.end(self.leader.flight)
        self.leader.flight.land(UpstreamUnavailable(reason))

    def _kept(self, value: Value | None) -> Entry | None:
        """The answer as the other process keeps it, kept here, too."""
        entry = decode(value.record, self.key) if value is not None else None
        if value is None or entry is None:
            return None
        caching = self.leader.detached.plane.caching
        if caching is not None and self.leader.plan.permission.store and not self.leader.flight.unwanted:
            caching.take(entry, self.leader.plan.permission.scope, _now())
        tokens = entry.usage
        if tokens is not None:
            self.usage = Usage(tokens.input, tokens.output, tokens.cached, tokens.reasoning, 0.0)
        return entry

    def _alone(self) -> None:
        self._begun = None
        self._body.clear()
        self._lead()

    # -- endings ---------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._over = True
        self._refuse_parked()
        self._sharing.forget(self)

    def _refuse_parked(self) -> None:
        parked, self._parked = self._parked, []
        for outlet in parked:
            outlet.refuse()
