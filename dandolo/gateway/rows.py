"""Followers of a stream that have all there is of it: the next piece is worked out once and sent to each.

A flight has a `Row` for each form in which clients take its pieces: chunked or not, with usage or without. Whoever
stops reading leaves its row, is served at its own pace (`gateway.flying`) and comes back when it has caught up; the
others do not wait for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from dandolo.api.usage import facts
from dandolo.cache.flight import PIECES_BYTES_MAX, Flight
from dandolo.net.outbox import Outbox
from dandolo.wire import sse

if TYPE_CHECKING:
    from dandolo.gateway.flying import Following

_USAGE = b'"usage"'


class Row:
    """The followers of one flight that take the same bytes (a `cache.flight.Row`)."""

    __slots__ = ("_flight", "_outbox", "_shown", "_transports", "chunked", "hides", "place", "sent_bytes")

    def __init__(self, flight: Flight[Any], outbox: Outbox, *, chunked: bool, hides: bool) -> None:
        self._flight = flight
        self._outbox = outbox
        self._shown: dict[int, bytes] = {}
        self._transports: dict[Following, asyncio.WriteTransport] = {}
        self.chunked = chunked
        self.hides = hides
        """Whether they are not to see what was used."""
        self.place = len(flight.pieces)
        """How many pieces of the flight whoever is in the row has been sent."""
        self.sent_bytes = 0
        """Of payload, to each, since the row was made."""

    def shown(self, index: int) -> bytes:
        """A piece as they are to see it, which may be nothing."""
        piece = self._flight.pieces[index]
        if not self.hides or piece.find(_USAGE) < 0:
            return piece
        shown = self._shown.get(index)
        if shown is None:
            shown = _without_usage(piece)
            if self._flight.bytes > PIECES_BYTES_MAX:
                # Nobody joins any more, and what everybody has is let go of: nothing is to hold it here.
                self._shown.clear()
            else:
                # Many providers name usage in every piece, most without a figure; all of the row ask for the same.
                self._shown[index] = shown
        return shown

    def enter(self, follower: Following, transport: asyncio.WriteTransport) -> None:
        """Somebody has all there is."""
        if not self._transports:
            self.place = len(self._flight.pieces)
        self._transports[follower] = transport
        self._flight.join_row(follower)

    def leave(self, follower: Following) -> None:
        """Somebody goes at its own pace again, or away."""
        if self._transports.pop(follower, None) is not None:
            self._flight.leave_row(follower)

    def moved(self) -> None:
        """There is another piece."""
        if not self._transports:
            return
        flight = self._flight
        # What was to be sent before may show that somebody does not read, who then is not in the row.
        self._outbox.flush()
        pieces = [self.shown(index) for index in range(self.place, len(flight.pieces))]
        self.place = len(flight.pieces)
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if content:
            self.sent_bytes += len(content)
            if self.chunked:
                content = b"%x\r\n%b\r\n" % (len(content), content)
            self._outbox.spread(tuple(self._transports.values()), content)


class Rows(Protocol):
    """What `row_of` needs of a follower's connection."""

    chunked: bool
    outbox: Outbox


def row_of(flight: Flight[Any], client: Rows, *, hides: bool) -> Row:
    """The row of those who take a flight's pieces as this client does."""
    for row in flight.rows:
        assert isinstance(row, Row)
        if row.chunked is client.chunked and row.hides is hides:
            return row
    row = Row(flight, client.outbox, chunked=client.chunked, hides=hides)
    flight.rows.append(row)
    return row


def _without_usage(piece: bytes) -> bytes:
    """Events without those that hold nothing but usage: the same object where there is none."""
    kept: list[bytes] = []
    events = sse.split(piece)
    for event in events:
        data = sse.parse(event)[1]
        if data is not None and data.find(_USAGE) >= 0:
            found = facts(data)
            if found is not None and found.choices == [] and found.usage is not None:
                continue
        kept.append(event)
    return piece if len(kept) == len(events) else b"".join(kept)
