"""A client's connection: bytes to requests on the way in, answers and streams on the way out.

Owns everything that concerns one client socket: the deadlines of heads, bodies and idleness, pipelining
(strictly in order, one request handled at a time, reading paused when the client runs ahead), framing of
answers, backpressure, draining of unread bodies and the lingering close that lets a client read its
answer. What a request means is the business of the `Service` it was made with; the connection calls
`admit` when a head is complete, `start` when the body is, and the service calls back `answer`, or
`begin_stream`, `write`, `end_stream` and `cut`.
"""

from __future__ import annotations

import asyncio
import random
from typing import cast

from dandolo.errors import GatewayError, ProtocolError
from dandolo.net.answering import Answering
from dandolo.net.outbox import Outbox, running_outbox
from dandolo.net.service import DownstreamLimits, Flow, Service
from dandolo.net.sockets import hung_up, unsent_bytes
from dandolo.net.sweep import NEVER
from dandolo.wire.server import DRAIN_BYTES_MAX, Request, RequestReader

PIPELINED_BYTES_MAX = 64 * 1024
WRITE_HIGH_BYTES = 64 * 1024
WRITE_LOW_BYTES = 16 * 1024
LINGER_S = 5.0
HANGUP_CHECK_S = 0.5
MIN_BODY_RATE = 16 * 1024
"""Bytes a second that a large body must keep up to outlive `body_total` (the limits)."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Downstream(Answering):
    """One client connection."""

    __slots__ = (
        "_advancing", "_body_at", "_body_bytes", "_body_from", "_busy", "_discarded", "_draining", "_last_buffered",
        "_last_progress", "_read_paused", "deadline", "exchange", "held_bytes", "peer", "secure",
    )  # fmt: skip

    def __init__(self, service: Service, peer: str, *, secure: bool = False) -> None:
        self._service = service
        self._reader = RequestReader(service.limits.head)
        self._request: Request | None = None
        self._busy = False
        self._advancing = False
        self._draining = False
        self._closing = False
        self._read_paused = False
        self._framed = False
        self.chunked = False
        self._stalled = False
        self._flow: Flow | None = None
        self._requests = 0
        self._discarded = 0
        self._body_bytes = 0
        self._body_at = self._body_from = 0.0
        self._last_buffered = 0
        self._last_progress = 0.0
        self._ends_at = 0.0
        self._requests_max = 0
        self.deadline = NEVER
        self.exchange: object | None = None
        self.held_bytes = 0
        self.peer = peer
        self.secure = secure
        self.lost = False
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.outbox: Outbox = cast(Outbox, None)

    # -- the socket speaks -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock for the first request."""
        self.transport = cast(asyncio.Transport, transport)
        self.outbox = running_outbox()
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        now = self._service.now()
        limits = self._service.limits
        # Spread by a tenth, so that connections opened together do not end together.
        share = 1.0 - 0.1 * random.random()  # noqa: S311
        self._requests_max = int(limits.requests_max * share)
        self._ends_at = now + limits.age_max_s * share
        self.deadline = now + self._service.limits.first_request_s
        self._service.sweep.items.add(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes; parse them unless a request is being handled."""
        if self._closing:
            self._discarded += len(data)
            if self._discarded > DRAIN_BYTES_MAX:
                self.transport.abort()
            return
        reader = self._reader
        if not self._busy and self._request is None and not self._advancing and not self._stalled:
            service = self._service
            repeats = service.repeats
            if repeats.slots and reader.at_start and self._goes_on():
                answer = repeats.give(self, data)
                if answer is not None:
                    self._requests += 1
                    self.deadline = service.sweep.now + service.limits.keep_alive_idle_s
                    self.outbox.write(self.transport, answer)
                    return
            request = reader.whole(data)
            if request is not None:
                repeats.candidate = None
                if service.enter_again(self, request):
                    self._request = request
                    self._busy = True
                    self._requests += 1
                    self.deadline = NEVER
                    service.begin(self, request)
                    if repeats.candidate is not None:
                        repeats.learn(self, data)
                    return
        reader.receive(data)
        if self._busy or (self._stalled and self._request is None):
            if reader.buffered_bytes > PIPELINED_BYTES_MAX and not self._read_paused:
                # Nothing is read from here on, not even that the client has left: the sweep asks for that.
                self._read_paused = True
                self.transport.pause_reading()
                if self._busy:
                    self.deadline = min(self.deadline, self._service.now() + HANGUP_CHECK_S)
            return
        self._advance(len(data))

    def _goes_on(self) -> bool:
        """Whether an answer now would be one like any other on this connection: read, and not the last."""
        service = self._service
        return self._requests + 1 < self._requests_max and service.sweep.now <= self._ends_at and not service.draining

    def eof_received(self) -> bool:
        """A half-close counts as a disconnect: no client we know sends one and still waits (documented)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; whatever ran for this client is cancelled."""
        self.lost = True
        self._closing = True
        self.deadline = NEVER
        self._reader.kill()
        self._flow = None
        self._service.sweep.items.discard(self)
        self._service.gone(self)

    def pause_writing(self) -> None:
        """The client reads too slowly: stop its stream's source."""
        self._stalled = True
        self._note_progress(self._service.now())
        self.deadline = self._last_progress + self._service.limits.write_stall_s
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stalled = False
        if not self._closing:
            self.deadline = NEVER if self._busy else self._service.now() + self._service.limits.keep_alive_idle_s
        if self._flow is not None:
            self._flow.resume()
        if not self._busy and not self._closing:
            self._read_on()

    # -- requests --------------------------------------------------------------------------------------

    def _advance(self, arrived: int) -> None:
        """Handle what the reader holds until it needs more bytes or a request is under way."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self._busy and not self._closing:
                try:
                    if not self._next(arrived):
                        return
                except GatewayError as error:
                    self._refuse(error)
                arrived = 0
        finally:
            self._advancing = False

    def _next(self, arrived: int) -> bool:
        """One step: a head, a body, or the knowledge that more bytes are needed (False)."""
        reader = self._reader
        service = self._service
        request = self._request
        if request is None:
            if self._stalled:
                # Who does not take its answers is given no more of them: they would all be held here.
                return False
            request = reader.next_head()
            if request is None:
                if reader.in_head and self._body_from == 0.0:
                    self._body_from = service.now()
                    self.deadline = self._body_from + service.limits.header_read_s
                return False
            self._request = request
            self._body_from = 0.0
            body_bytes_max = service.admit(self, request)
            reader.begin_body(body_bytes_max)
            if request.expect and reader.body_missing:
                self.outbox.write(self.transport, _CONTINUE)
            arrived = reader.buffered_bytes
        body = reader.next_body()
        if body is None:
            if not self._draining:
                self._await_body(arrived)
            return False
        self._body_from = 0.0
        if self._draining:
            self._draining = False
            self._request = None
            self.deadline = service.now() + service.limits.keep_alive_idle_s
            return True
        request.body = body
        self._busy = True
        self._requests += 1
        self.deadline = NEVER
        service.start(self, request)
        return True

    def _await_body(self, arrived: int) -> None:
        service = self._service
        now = service.now()
        if self._body_from == 0.0:
            self._body_from = now
            self._body_bytes = 0
        self._body_at = now
        self._body_bytes += arrived
        service.body_grew(self, arrived)
        limits = service.limits
        self.deadline = min(now + limits.body_idle_s, max(self._body_from + limits.body_total_s, now))

    def _refuse(self, error: GatewayError) -> None:
        """Answer without handling: for a broken request, or one that admission declined."""
        request = self._request
        close = error.close or self._reader.dead or self._closing
        if not close and request is not None:
            # RFC 9110 §10.1.1: after a final answer to Expect we cannot know whether the body will come.
            close = request.expect or not request.keep_alive or not self._reader.drain()
            self._draining = not close
        status, head, body = self._service.refusal(self, request, error)
        self._requests += 1
        self._put(status, head, body, request, close)
        if close:
            self._linger()
        else:
            self.deadline = self._service.now() + LINGER_S

    def finish(self) -> None:
        """The request is over; go on with what was pipelined, or close."""
        service = self._service
        self._busy = False
        if self._request is not None:
            # The reader hands the same object out again; what it held must not outlive its request.
            self._request.forget()
            self._request = None
        self._flow = None
        self.exchange = None
        if self.lost:
            return
        if self._closing:
            self._linger()
            return
        self.deadline = service.now() + (
            service.limits.write_stall_s if self._stalled else service.limits.keep_alive_idle_s
        )
        if not self._stalled:
            self._read_on()

    def _read_on(self) -> None:
        """Go on with what the client has sent meanwhile."""
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        if self._reader.buffered_bytes:
            self._advance(0)

    # -- endings ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on this connection."""
        return not self._busy and self._request is None and not self._reader.buffered_bytes

    def close_when_idle(self) -> None:
        """End the connection now if nothing is under way (a drain)."""
        if self.idle and not self._closing:
            self._linger()

    def abort(self) -> None:
        """End the connection without ceremony."""
        if not self.lost:
            self.transport.abort()

    def _linger(self) -> None:
        # RFC 9112 §9.6: half-close, then read and discard until the client closes or the time is up, so
        # that no reset overtakes the answer.
        self._closing = True
        self._reader.kill()
        if self.lost:
            return
        self.outbox.flush()
        now = self._service.now()
        self._note_progress(now)
        self.deadline = now + LINGER_S
        if self._read_paused:
            self._read_paused = False
            self.transport.resume_reading()
        if self.transport.is_closing():
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The client is gone already, which asyncio's own loop says here and uvloop as the loss of the connection.
            self.transport.abort()

    @property
    def stalled(self) -> bool:
        """Whether the client is not taking what it was sent."""
        return self._stalled

    def _note_progress(self, now: float) -> bool:
        buffered = self.transport.get_write_buffer_size() + unsent_bytes(self.transport)
        moved = buffered != self._last_buffered
        self._last_buffered = buffered
        if moved or not buffered:
            self._last_progress = now
        return moved

    def _late(self, what: str) -> None:
        self._reader.kill()
        self._refuse(ProtocolError(what, status=408, code="request_timeout"))

    def expire(self, now: float) -> None:
        """A deadline of this connection has passed (called by the sweep)."""
        limits = self._service.limits
        if self.transport.get_write_buffer_size():
            moved = self._note_progress(now)
            if moved or now - self._last_progress < limits.write_stall_s:
                self.deadline = self._last_progress + limits.write_stall_s
            else:
                self.transport.abort()
            return
        if self._closing or self._draining:
            self.deadline = NEVER
            self.transport.abort()
            return
        if self._busy:
            self.deadline = NEVER
            if self._read_paused:
                if hung_up(self.transport):
                    self.transport.abort()
                else:
                    self.deadline = now + HANGUP_CHECK_S
            return
        if self._request is not None:
            received = self._body_bytes
            elapsed = now - self._body_from
            if now - self._body_at < limits.body_idle_s and received >= MIN_BODY_RATE * elapsed:
                self.deadline = now + 1.0
                return
            self._late(f"the request body did not arrive in time: {received} bytes in {elapsed:.0f} s")
            return
        if self._reader.in_head:
            self._late(f"the request headers were not complete within {limits.header_read_s:g} s")
            return
        self.deadline = NEVER
        self.transport.close()


__all__ = ["Downstream", "DownstreamLimits", "Flow", "Service"]
