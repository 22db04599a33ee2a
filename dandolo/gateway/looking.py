"""A miss of memory on the short way: looked for in other tiers and among siblings, then made for its own client.

What `leading` is where there is only memory. The call is its client's own until somebody joins, here or from another
process; nothing is copied, and no second exchange tells its story. Whatever is not the usual (somebody else makes the
call already, an answer past its time was found) takes the long way of `flying` from its beginning.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from dandolo.cache.entry import Entry, decode
from dandolo.cache.headers import Outcome
from dandolo.gateway.keeping import STEADY_OFFSET_S
from dandolo.gateway.shortly import MISSED, send_shortly

if TYPE_CHECKING:
    from dandolo.api.call import Call
    from dandolo.cache.flight import Flight
    from dandolo.cache.peers.frames import Value
    from dandolo.cache.peers.session import Outlet
    from dandolo.cache.tiers import Found
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.keeping import Plan
    from dandolo.gateway.leading import Begun
    from dandolo.gateway.sharing import Sharing
    from dandolo.gateway.ways import Lane

PARKED_MAX = 64
"""Processes that wait for us to hear whether we may make the call (as in `seeking`)."""

_now = time.monotonic


class Looking:
    """One such call, to be followed like a `seeking.Seeking`. `begin` is called once, and may end it all."""

    __slots__ = (
        "_asked", "_call", "_entry", "_lane", "_over", "_parked", "_plan", "_shares", "_value", "exchange", "holder",
        "key", "leads", "waits",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, call: Call, plan: Plan, lane: Lane) -> None:
        self.exchange = exchange
        self.key = plan.key
        self.holder = ""
        self.leads = False
        """Whether the call is made here, as far as other processes are concerned."""
        self.waits = True
        """Whether the call has not been made yet."""
        self._call = call
        self._plan = plan
        self._lane = lane
        self._asked = False
        self._entry: Entry | None = None
        self._over = False
        self._parked: list[Outlet] = []
        self._value: Value | None = None
        caching, sharing = exchange.plane.caching, exchange.gateway.sharing
        self._shares: Sharing | None = None
        if sharing is not None and caching is not None and caching.may_leave(plan.permission.scope):
            self._shares = sharing

    def begin(self) -> None:
        """Look; the exchange goes on, perhaps before this returns."""
        exchange = self.exchange
        exchange.looking = self
        exchange.leads = True
        exchange.gateway.flights.lead(self.key, exchange)
        exchange.cache = "miss"
        exchange.cache_lines = MISSED
        self._look(("l2",) if self._shares is not None else ())

    def cancel(self, error: BaseException | None = None) -> None:
        """End it while it waits: nobody is left, or with `error`."""
        self._close()
        if not self.exchange.ended:
            self.exchange.over(error or asyncio.CancelledError())

    @property
    def ours(self) -> bool:
        """Whether the answer is for memory here only, and for whoever asks this process for it."""
        if self.exchange.gateway.tiers is not None:
            return False
        return self._shares is None or self._shares.peers.owner(self.key) is None

    def landed(self, entry: Entry | None) -> None:
        """The call is over; `entry` is its answer as it is kept, which those who own the key are told."""
        self._entry = entry
        leads = self.leads
        self._close()
        self.exchange.looking = None
        if leads and self._shares is not None:
            self._shares.peers.release(self.key, self.value)

    # -- looking ---------------------------------------------------------------------------------------

    def _look(self, sources: tuple[str, ...]) -> None:
        tiers = self.exchange.gateway.tiers
        if tiers is None:
            self._looked(None)
        else:
            tiers.look_up(self.key, self._plan.permission.scope, self._looked, sources)

    def _looked(self, found: Found | None) -> None:
        if self._over:
            return
        try:
            if found is not None and self._give(found):
                return
            sharing = self._shares
            if sharing is None or self._asked:
                self._send()
                return
            self._asked = True
            sharing.register(self)
            sharing.peers.lease(self.key, self._answered)
        except Exception as error:
            self.cancel(error)

    def _answered(self, outcome: Value | str | None) -> None:
        """What the key's owner says."""
        assert self._shares is not None
        peers = self._shares.peers
        if self._over:
            if outcome == peers.name:
                peers.release(self.key, lambda: None)
            return
        try:
            if outcome is None or outcome == peers.name:
                self._lead(leave=outcome is not None)
            elif isinstance(outcome, str):
                self._take_the_long_way()
            else:
                from dandolo.cache.tiers import Found

                entry = decode(outcome.record, self.key)
                if entry is None or not self._give(Found(entry, "peer")):
                    self._lead(leave=False)
        except Exception as error:
            self.cancel(error)

    def _lead(self, *, leave: bool) -> None:
        """The call is to be made here, with the owner's leave or without."""
        assert self._shares is not None
        self.leads = True
        if not leave:
            self._shares.peers.hold(self.key)
        if self.exchange.gateway.tiers is None:
            self._send()
        else:
            self._look(("l3",))
        parked, self._parked = self._parked, []
        for outlet in parked:
            if not self.join(outlet):
                outlet.refuse()

    def _send(self) -> None:
        self.waits = False
        if not send_shortly(self.exchange, self._lane, self._call, _now()):
            self.exchange.tell_on()

    def _give(self, found: Found) -> bool:
        """Give what was found to all who wait; False when it may not be given."""
        exchange, plan = self.exchange, self._plan
        caching, flight, now = exchange.plane.caching, exchange.flight, _now()
        if caching is None or (flight is not None and flight.unwanted):
            return False
        kept = caching.promote(plan, found, now)
        if kept is None:
            return False
        if not kept.fresh(now + STEADY_OFFSET_S):
            # Whether it may be given while a new one is fetched is judged there.
            self._take_the_long_way()
            return True
        self._leave_flight(flight)
        self.landed(kept.entry)
        if not exchange.client.lost:
            caching.send(exchange, self._call, kept, Outcome.HIT, now, found.tier)
        exchange.over(None)
        if flight is not None:
            from dandolo.gateway.making import Tiered

            flight.entry = kept.entry
            flight.kept = Tiered(kept, Outcome.HIT, found.tier)
            flight.land()
        return True

    def _take_the_long_way(self) -> None:
        """Tell the story from its beginning, as one among those who wait for the answer."""
        exchange, flight = self.exchange, self.exchange.flight
        self.landed(None)
        self._leave_flight(None)
        exchange.cache, exchange.cache_lines = "", b""
        if flight is not None:
            from dandolo.gateway.making import Leader

            exchange.flight = None
            Leader(exchange, self._call, self._plan, flight).begin()
        exchange.tell_on()

    def _leave_flight(self, flight: Flight[Begun] | None) -> None:
        """Nobody finds the call here any more."""
        flights = self.exchange.gateway.flights
        self.exchange.leads = False
        if flight is None:
            flights.leave(self.key, self.exchange)
        else:
            flights.end(flight)
            self.exchange.flight = None

    def _close(self) -> None:
        self._over = True
        self.waits = False
        parked, self._parked = self._parked, []
        for outlet in parked:
            outlet.refuse()
        if self._shares is not None:
            self._shares.forget(self)

    # -- for other processes, as `seeking.Seeking` --------------------------------------------------------

    def join(self, outlet: Outlet) -> bool:
        """Another process wants to follow: it hears the call made here, once it is certain that it is."""
        from dandolo.gateway.relaying import Relaying

        if self._over:
            return False
        if not self.leads:
            if len(self._parked) >= PARKED_MAX:
                return False
            self._parked.append(outlet)
            return True
        flight = self.exchange.gateway.flights.find(self.key)
        if flight is None or flight is not self.exchange.flight:
            return False
        Relaying(self, outlet).begin()
        return True

    @property
    def leader(self) -> Looking:
        """What is followed."""
        return self

    @property
    def flight(self) -> Flight[Begun]:
        """That through which others have joined."""
        flight = self.exchange.flight
        assert flight is not None
        return flight

    def moved_on(self) -> None:
        """A follower has taken more: the answer comes whole, so that nobody is waited for."""

    def value(self) -> Value | None:
        """The answer as others may have it, once it is kept."""
        if self._entry is not None and self._value is None and self._shares is not None:
            self._value = self._shares.value_of(self._entry, self._plan.permission.scope)
        return self._value

    def provider(self) -> str:
        """The name of the provider that is asked here, "" before one was chosen."""
        target = self.exchange.target
        return target.provider.name if target is not None else ""
