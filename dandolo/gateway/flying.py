"""A call that the cache has no answer for: made once for all who ask the same meanwhile, and kept when it is fit.

The call is a `Detached` one, so that the first who asked may leave without harm to the others; whoever is left last
cancels it. Every follower is served at its own pace from the pieces of the flight: in the form in which they come,
or, where it asked for the other form, when the whole answer is there. Those that have all the pieces there are get the
next together (`gateway.rows`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.cache import headers
from dandolo.cache.flight import PIECES_BYTES_MAX, Flight
from dandolo.cache.headers import Outcome, forwarded
from dandolo.cache.replay import prepare
from dandolo.errors import GatewayError, UpstreamInvalid
from dandolo.gateway.answers import STREAM
from dandolo.gateway.keeping import STEADY_OFFSET_S
from dandolo.gateway.leading import Begun, Lone
from dandolo.gateway.making import Leader, Tiered
from dandolo.gateway.rows import Row, row_of
from dandolo.net.strand import Waiter
from dandolo.wire import sse
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.keeping import Plan
    from dandolo.gateway.ways import Lane

REPLAY_BYTES = 64 * 1024
"""Pieces that came before a follower did are sent together, so much at a time."""

_now = time.monotonic


async def fly(exchange: Exchange, call: Call, lane: Lane, plan: Plan) -> None:
    """Answer a call that may be shared or kept. Raises GatewayError."""
    caching, gateway = exchange.plane.caching, exchange.gateway
    assert caching is not None
    now, permission = _now(), plan.permission
    kept = caching.find(plan, now)
    if kept is not None and caching.send(exchange, call, kept, Outcome.HIT, now):
        return
    refusal = caching.refused(plan, call, now)
    if refusal is not None:
        exchange.cache = "hit"
        exchange.cache_lines = headers.kept(Outcome.HIT, "l1", now - refusal.created, refusal.expires - now)
        raise refusal.error
    kept = caching.alike(plan, call, now)
    if kept is not None and caching.send(exchange, call, kept, Outcome.SEMANTIC, now):
        return
    if permission.only_if_cached:
        # Nobody else is to wait for somebody who asks no provider.
        alone: Flight[Begun] = Flight(plan.key)
        Leader(exchange, call, plan, alone).begin()
        await Following(exchange, call, lane, plan, alone).follow()
        return
    flight = gateway.flights.find(plan.key) if permission.coalesces() else None
    exchange.cache = "collapsed"
    exchange.cache_lines = forwarded(Outcome.COLLAPSED)
    if flight is None:
        old = caching.stale(plan, now, for_error=False)
        flight = gateway.flights.start(plan.key) if permission.coalesces() else Flight(plan.key)
        if flight is None:
            await exchange.ask(call, lane)
            return
        leader = Leader(exchange, call, plan, flight)
        exchange.cache = "miss"
        exchange.cache_lines = forwarded(Outcome.MISS, asked=not permission.lookup, stored=permission.store)
        if old is not None and caching.send(exchange, call, old, Outcome.STALE, now):
            # It is given while a new one is fetched, which nobody waits for.
            leader.alone = True
            leader.begin()
            return
        leader.begin()
    await Following(exchange, call, lane, plan, flight).follow()


class Following:
    """One client of a flight: what it has been sent, and whether it can take more."""

    streams = True

    def __init__(self, exchange: Exchange, call: Call, lane: Lane, plan: Plan, flight: Flight[Begun]) -> None:
        self._exchange = exchange
        self._call = call
        self._lane = lane
        self._plan = plan
        self._flight = flight
        self._sending = False
        self._paused = False
        self._row: Row | None = None
        """With whom it is sent the next pieces, once it has all before."""
        self._place = 0
        self._payload_bytes = 0
        self._began_at = 0.0
        self.done: Waiter[bool] = Waiter()
        """True: it has its answer; False: it must ask alone."""

    @property
    def place(self) -> int:
        """How many pieces of the flight it has been sent."""
        return self._place if self._row is None else self._row.place

    @property
    def payload_bytes(self) -> int:
        """Bytes of content that it has been sent."""
        return self._payload_bytes if self._row is None else self._payload_bytes + self._row.sent_bytes

    @property
    def oversized(self) -> bool:
        """Whether what has come ends within an event (one so large that it passes in pieces)."""
        pieces = self._flight.pieces
        return bool(pieces) and not sse.ends_event(pieces[-1])

    async def follow(self) -> None:
        """Be served by the flight. Raises GatewayError."""
        exchange, flight = self._exchange, self._flight
        exchange.await_until(exchange.total_at, "an answer that is under way")
        flight.join(self)
        self.moved()
        try:
            served = await self.done
        except GatewayError:
            caching, now = exchange.plane.caching, _now()
            if not exchange.committed and caching is not None:
                old = caching.stale(self._plan, now, for_error=True)
                if old is not None and caching.send(exchange, self._call, old, Outcome.STALE, now):
                    return
            raise
        finally:
            self._leave_row()
            nobody_left, leader = flight.leave(self), flight.leader
            if not flight.landed and leader is not None:
                if nobody_left:
                    leader.left()
                elif isinstance(leader, Leader):
                    # It may have been the one that the others waited for.
                    leader.moved_on()
        tiered, caching = flight.kept, exchange.plane.caching
        if isinstance(tiered, Tiered) and not self._sending and caching is not None:
            kept, now = tiered.kept, _now()
            # Whoever began the flight may have been content with an older one.
            if self._plan.permission.admits(kept.entry.kind, kept.created, now + STEADY_OFFSET_S):
                served = caching.send(exchange, self._call, kept, tiered.outcome, now, tiered.tier)
        if not served:
            exchange.relay = None
            await exchange.ask(self._call, self._lane)

    # -- from the flight -------------------------------------------------------------------------------

    def moved(self) -> None:
        """There is a head, another piece, or the end."""
        try:
            self._go_on()
        except GatewayError as error:
            self.done.fail(error)

    def _go_on(self) -> None:
        flight = self._flight
        begun = flight.head
        if self.done.done:
            return
        if flight.kept is not None and not self._sending:
            self.done.set(False)
            return
        live = begun is not None and not begun.whole and begun.events == self._call.stream
        if begun is not None and live:
            if self._row is None:
                self._send_on(begun)
            if flight.landed and self.place == len(flight.pieces) and not self._paused:
                self._end()
        elif begun is not None and not begun.whole and flight.bytes > PIECES_BYTES_MAX:
            # Too long to be made whole for who asked for the other form, and not to be held up by who takes nothing.
            self.done.set(False)
        elif flight.landed:
            if flight.error is not None:
                self.done.fail(flight.error)
            else:
                self._whole(begun)

    def _begin(self, begun: Begun, first: bytes) -> None:
        exchange = self._exchange
        self._sending = True
        self._began_at = _now()
        self._leader().lend(exchange)
        exchange.relay = self
        exchange.commit(begun.status)
        head = exchange.lent_head()
        if begun.events:
            head += STREAM
        exchange.client.begin_stream(begun.status, head, self, begun.length, first)

    def _send_on(self, begun: Begun) -> None:
        """Send what there is beyond its place, the head before it if that has not gone out."""
        flight, exchange = self._flight, self._exchange
        pieces, client = flight.pieces, exchange.client
        hides = begun.events and not self._call.usage_wanted
        row: Row | None = None
        while (self._place < len(pieces) or not self._sending) and not self._paused and not client.lost:
            batch: list[bytes] = []
            size = 0
            while self._place < len(pieces) and size < REPLAY_BYTES:
                piece = pieces[self._place]
                if hides and piece.find(b'"usage"') >= 0:
                    row = row or row_of(flight, client, hides=True)
                    piece = row.shown(self._place)
                batch.append(piece)
                size += len(piece)
                self._place += 1
            content = batch[0] if len(batch) == 1 else b"".join(batch)
            self._payload_bytes += size
            if not self._sending:
                self._begin(begun, content)
            elif content:
                client.write(content)
        if exchange.first_token_at is None and (first := self._leader().first_token_at) is not None:
            # Of the call, or of what this client was sent of it, if it came later.
            exchange.first_token_at = max(first, self._began_at)
        if (
            exchange.first_token_at is not None
            and self._place == len(pieces)
            and not (self._paused or flight.landed or client.lost or client.watched)
        ):
            row = self._row = row_of(flight, client, hides=hides)
            self._payload_bytes -= row.sent_bytes
            row.enter(self, client.transport)

    def _leave_row(self) -> None:
        row = self._row
        if row is not None:
            self._place, self._payload_bytes = self.place, self.payload_bytes
            self._row = None
            row.leave(self)

    def _end(self) -> None:
        exchange, flight = self._exchange, self._flight
        if flight.error is not None:
            self.done.fail(flight.error)
            return
        self._count()
        exchange.client.end_stream()
        self.done.set(True)

    def _whole(self, begun: Begun | None) -> None:
        """The answer is there, whole, in whichever form it came."""
        exchange, flight, call = self._exchange, self._flight, self._call
        body = flight.pieces[0] if begun is not None and begun.whole else flight.whole
        if body is None or begun is None:
            self.done.set(False)
            return
        self._leader().lend(exchange)
        if not begun.whole and exchange.lent is not None:
            exchange.lent = _of_kind(exchange.lent, b"application/json")
        self._count()
        if not call.stream:
            exchange.send_whole(body)
            self.done.set(True)
            return
        replay = prepare(call.endpoint.dialect, body)
        if replay is None:
            raise UpstreamInvalid("the provider was asked for a stream and answered with something else")
        events = replay.events(exchange.id, int(exchange.gateway.unix(_now())), usage=call.usage_wanted)
        exchange.commit(begun.status)
        exchange.relay = self
        if exchange.lent is not None:
            exchange.lent = _of_kind(exchange.lent, b"text/event-stream")
        self._payload_bytes = len(events)
        exchange.client.begin_stream(begun.status, exchange.lent_head() + STREAM, self, first=events)
        exchange.client.end_stream()
        self.done.set(True)

    def _count(self) -> None:
        """Tokens as told; the cost is on the record of one of those who followed."""
        leader, exchange = self._leader(), self._exchange
        usage = leader.costs()
        exchange.finish_reason = leader.detached.finish_reason
        if usage is None:
            return
        if self._flight.paid:
            exchange.saved_usd = usage.cost_usd
            usage = Usage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens, 0.0)
        self._flight.paid = True
        exchange.usage = usage

    def _leader(self) -> Leader | Lone:
        leader = self._flight.leader
        assert isinstance(leader, Leader | Lone)
        return leader

    # -- from the client -------------------------------------------------------------------------------

    def pause(self) -> None:
        """The client is slow."""
        self._paused = True
        self._leave_row()

    def resume(self) -> None:
        """The client has caught up."""
        self._paused = False
        self.moved()
        leader = self._flight.leader
        if isinstance(leader, Leader):
            leader.moved_on()


def _of_kind(response: Response, kind: bytes) -> Response:
    """A provider's head for an answer that is sent in another form than it came in."""
    return Response(response.status, response.minor, {**response.fields, b"content-type": kind})
