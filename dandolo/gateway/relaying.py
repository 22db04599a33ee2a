"""Two sorts of followers of a flight that are nobody's client: a process elsewhere, and a flight that broke off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dandolo.cache.flight import PIECES_BYTES_MAX, Flight
from dandolo.cache.peers.session import Outlet
from dandolo.cache.replay.continuation import rest
from dandolo.errors import UpstreamUnavailable
from dandolo.wire import sse

if TYPE_CHECKING:
    from dandolo.gateway.leading import Begun
    from dandolo.gateway.looking import Looking
    from dandolo.gateway.making import Leader
    from dandolo.gateway.seeking import Seeking


class Relaying:
    """A process that follows a call made here. It is given the pieces as fast as it takes them, and then the answer as
    it is kept, instead of the pieces where it came whole."""

    __slots__ = ("_began", "_flight", "_outlet", "_seeking", "place")

    def __init__(self, seeking: Seeking | Looking, outlet: Outlet) -> None:
        self._seeking = seeking
        self._flight = seeking.leader.flight
        self._outlet = outlet
        self._began = False
        self.place = 0

    def begin(self) -> None:
        """Follow."""
        self._outlet.source = self
        self._flight.join(self)
        self.moved()

    def moved(self) -> None:
        """The flight has moved, or the other process takes more."""
        flight, outlet = self._flight, self._outlet
        begun = flight.head
        if outlet.source is None:
            return
        if begun is not None and begun.whole and flight.bytes > PIECES_BYTES_MAX:
            # Too long to be shared: whoever wants it asks for it himself.
            flight.leave(self)
            outlet.refuse()
            return
        if begun is not None and not (begun.whole and (flight.entry is not None or not flight.landed)):
            if not self._began:
                self._began = True
                outlet.begin(begun.status, begun.events, self._seeking.provider())
            while self.place < len(flight.pieces) and not outlet.paused:
                self.place += 1
                outlet.piece(flight.pieces[self.place - 1])
            if self.place < len(flight.pieces):
                return
        if flight.landed:
            flight.leave(self)
            if flight.error is not None:
                outlet.abort()
            else:
                outlet.done(flight.key, self._seeking.value())

    def resumed(self) -> None:
        """The other process takes more."""
        self.moved()
        self._seeking.leader.moved_on()

    def left(self) -> None:
        """Nobody listens there any more."""
        flight = self._flight
        nobody_left = flight.leave(self)
        if nobody_left and not flight.landed and flight.leader is not None:
            flight.leader.left()
        elif not nobody_left and not flight.landed:
            # It may have been the one that the others waited for.
            self._seeking.leader.moved_on()


class Resuming:
    """A flight whose first part came from a process that is gone, and whose rest is to come from another flight.

    Those who follow it have the first part. When the other answer begins with the same text they are given what it has
    beyond that, at once; otherwise they are told that the stream broke off, as of any that did.
    """

    __slots__ = ("_broken", "_seeking", "_whole", "place")

    def __init__(self, seeking: Seeking, whole: Flight[Begun]) -> None:
        self._seeking = seeking
        self._broken = seeking.leader.flight
        self._whole = whole
        self.place = 0

    def begin(self) -> None:
        """Follow."""
        self._whole.join(self)
        self.moved()

    def leave(self) -> None:
        """Nobody follows the broken one any more."""
        whole = self._whole
        if whole.leave(self) and not whole.landed and whole.leader is not None:
            whole.leader.left()

    def moved(self) -> None:
        """The other flight has moved."""
        whole, broken = self._whole, self._broken
        self.place = len(whole.pieces)
        if not whole.landed or broken.landed:
            return
        leader: Leader | None = whole.leader  # type: ignore[assignment]
        whole.leave(self)
        if whole.error is not None:
            broken.land(whole.error)
            return
        body = whole.entry.body if whole.entry is not None else whole.whole
        if body is None and whole.head is not None and whole.head.whole:
            body = whole.pieces[0]
        datas = [data for event in sse.split(b"".join(broken.pieces)) if (data := sse.parse(event)[1]) is not None]
        more = rest(self._seeking.leader.call.endpoint.dialect, datas, body) if body is not None else None
        if more is None:
            broken.land(UpstreamUnavailable("the process that made the call is gone, and another answer differs"))
            return
        self._count(leader)
        broken.whole = body
        if more:
            broken.add(more)
        broken.land()

    def _count(self, leader: Leader | None) -> None:
        """Its tokens; its cost, where that is on nobody's record yet."""
        whole = self._whole
        usage = leader.costs() if leader is not None else None
        if usage is not None:
            self._broken.paid = whole.paid
            whole.paid = True
            self._seeking.usage = usage
