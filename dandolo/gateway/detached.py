"""A call to providers that is nobody's own: its answer goes to whoever was named, not to a connection.

`Detached` tells the story of an exchange, with its choice of provider, its retries and deadlines, for several clients
at once (a batch, a flight), so that none of them leaving harms the others. It writes no record: what it learned is
for those who wait (`facts`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from dandolo.api.call import Call
from dandolo.api.merge import LISTS
from dandolo.errors import GatewayError, InternalError
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.spending import settle
from dandolo.gateway.summary import estimated
from dandolo.net.downstream import Downstream
from dandolo.net.strand import Strand
from dandolo.net.sweep import NEVER
from dandolo.route.catalog import Target
from dandolo.wire.client import Response
from dandolo.wire.server import Request

if TYPE_CHECKING:
    from dandolo.net.service import Flow


class Taker(Protocol):
    """Whoever is given the answer of a detached call."""

    def answered(self, status: int, body: bytes) -> None:
        """A plain answer, whole."""

    def begun(self, status: int, length: int | None) -> None:
        """An answer that comes in pieces has begun; `length` is its size in bytes where that is declared."""

    def piece(self, content: bytes) -> None:
        """The next piece."""

    def over(self, error: GatewayError | None) -> None:
        """It has ended; with `error` badly. Called once, last."""


class _Nobody:
    """The taker of what is over."""

    def answered(self, status: int, body: bytes) -> None: ...

    def begun(self, status: int, length: int | None) -> None: ...

    def piece(self, content: bytes) -> None: ...

    def over(self, error: GatewayError | None) -> None: ...


NOBODY = _Nobody()


class Audience:
    """Stands where a client's connection stands, and passes what it is sent to a taker."""

    __slots__ = ("_flow", "_taker", "chunked", "exchange", "held_bytes", "lost", "stalled")

    def __init__(self, taker: Taker) -> None:
        self._taker: Taker = taker
        self._flow: Flow | None = None
        self.chunked = False
        self.exchange: object | None = None
        self.held_bytes = 0
        self.lost = False
        self.stalled = False

    def answer(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """A whole answer."""
        self._taker.answered(status, body)

    def begin_stream(self, status: int, head: bytes, flow: Flow, length: int | None = None, first: bytes = b"") -> None:
        """An answer in pieces."""
        self._flow = flow
        self._taker.begun(status, length)
        if first:
            self._taker.piece(first)

    def write(self, content: bytes) -> None:
        """A piece."""
        self._taker.piece(content)

    def end_stream(self, last: bytes = b"") -> None:
        """The end, with the last piece."""
        self._flow = None
        if last:
            self._taker.piece(last)

    def cut(self) -> None:
        """The answer broke off: `Taker.over` says why."""
        self._flow = None

    def finish(self) -> None:
        """Nothing follows on this connection, which is none."""

    def pause(self) -> None:
        """Whoever is to be given the pieces cannot keep up."""
        self.stalled = True
        if self._flow is not None:
            self._flow.pause()

    def resume(self) -> None:
        """They have caught up."""
        self.stalled = False
        if self._flow is not None:
            self._flow.resume()


class Detached(Exchange):
    """A call made for others. `origin` is the exchange that it is first made for; its request is copied."""

    def __init__(self, origin: Exchange, call: Call, taker: Taker, *, shares: bool = False) -> None:
        self.audience = Audience(taker)
        super().__init__(
            origin.gateway,
            origin.admitted,
            cast(Downstream, self.audience),
            _copy(origin.request, call),
            origin.encoded_id,
        )
        self.call = call
        self.trace_lines = origin.trace_lines
        self._taker: Taker = taker
        self.shares = shares

    async def _tell(self) -> None:
        call = self.call
        assert call is not None
        timeouts = self.plane.config.timeouts
        self.total_at = self.started + (timeouts.stream_total if call.stream else timeouts.total)
        self.priority = self.tenant.priority
        lane = self.lane = self._lane(call)
        if self.shares and call.endpoint.name in LISTS and self.plane.config.routing.batch_window:
            # What answers several clients may still travel with what answers others.
            await self.gateway.batches.ask(self, call, lane)
        else:
            await self.ask(call, lane)

    def begin(self) -> None:
        """Start; the taker is told, possibly before this returns."""
        self.gateway.sweep.items.add(self)
        self.strand = Strand(self._tell(), self.over)
        self.strand.resume()

    @property
    def annotates(self) -> bool:
        """Never: an annotation is about one client's request."""
        return False

    def write_down(self) -> None:
        """When it is over, before those who wait are told."""

    def begin_heartbeat(self) -> None:
        """Never: comments are for a client's own connection."""

    def head(self, response: Response, target: Target) -> bytes:
        """Each client's head is its own; what the provider said is kept for them."""
        self.response = response
        return b""

    def over(self, error: BaseException | None) -> None:
        """The call has ended, well or badly."""
        self.strand = None
        self.ended = True
        self.deadline = NEVER
        self.gateway.sweep.items.discard(self)
        self.let_go_of_choice()
        tap = self.tap
        if tap is not None:
            self.usage = tap.usage if tap.counted else None
            self.finish_reason = tap.finish_reason
        if self.gateway.books is not None:
            self.gateway.books.detached(self)
        told: GatewayError | None = None
        if isinstance(error, GatewayError):
            told = error
        elif error is not None:
            if not self.cancelled(error):
                self.report(error)
            told = InternalError("an error within the gateway; it was logged with this request's id")
        if self.held is not None:
            if tap is not None and self.usage is None and self.committed:
                self.usage = estimated(tap.usage, len(self.request.body), tap.data_events)
            settle(self, answered=error is None, left=error is not None and self.cancelled(error))
        self._taker.over(told)
        # The taker and the relay know this, too.
        self._taker = self.audience._taker = NOBODY
        self.relay = self.tap = None


def _copy(request: Request, call: Call) -> Request:
    """A request of its own: the reader of a connection hands the same object out again."""
    copy = Request()
    copy.method, copy.path, copy.query, copy.minor = request.method, request.path, request.query, request.minor
    copy.fields = request.fields
    copy.body = call.raw
    return copy
