"""One client's connection to a simulated provider: h11 takes requests apart, a task plays each answer.

Reading never stops, so that a client's FIN or RST is noticed at once: in the middle of a stream, and while
the provider is still silent. A half-close counts as leaving, since no HTTP client half-closes on purpose.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final, Protocol

import h11

from dandolo.sim.answer import Asked, Charge
from dandolo.sim.limits import RateLimit
from dandolo.sim.play import Pace, before_answer, client_leaves, decide, perform
from dandolo.sim.script import Dialect, Fault, FaultQueue, Script, Then

BODY_BYTES_MAX: Final = 256 << 20
"""A larger request body ends the connection."""

HEAD_BYTES_MAX: Final = 1 << 20
PIPELINED_BYTES_MAX: Final = 8 << 20
"""Bytes taken in while an answer is under way; more ends the connection."""


@dataclass(slots=True)
class Received:
    """One request as it was received. Times are seconds of the monotonic clock, None: has not happened.

    `headers` are pairs with their spelling on the wire, `connection` counts connections from 1, `sequence`
    requests from 1. `aborted_at` is set when the client left before the whole answer was handed to the
    kernel, `answered_at` when it was. `status` is what was decided (0: nothing was answered), `fault` the
    kind that was played. `complete` is False if the client left in the middle of its own body.
    """

    sequence: int
    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    received_at: float
    complete: bool = True
    status: int = 0
    fault: str | None = None
    sent_bytes: int = 0
    first_byte_at: float | None = None
    answered_at: float | None = None
    aborted_at: float | None = None

    def header(self, name: str) -> str | None:
        """The first value of a header, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class House(Protocol):
    """What a connection needs of its provider."""

    name: str
    dialect: Dialect
    models: tuple[str, ...]
    keys: tuple[str, ...]
    limit: RateLimit
    stored: dict[str, bytes]

    @property
    def play(self) -> tuple[Script, FaultQueue]: ...
    def opened(self, connection: Connection) -> int | None: ...
    def closed(self, connection: Connection) -> None: ...
    def next_sequence(self) -> int: ...
    def record(self, received: Received) -> None: ...
    def charge(self, charge: Charge) -> None: ...
    def begun(self) -> int: ...
    def ended(self) -> None: ...
    def note_protocol_error(self, message: str) -> None: ...
    def spawn(self, connection: Connection, received: Received) -> asyncio.Task[None]: ...


class Connection(asyncio.Protocol):
    """A connection; also the `Stage` on which `play` performs."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._h11 = self._fresh()
        self._transport: asyncio.Transport
        self._number = 0
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._received: Received | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._by_hand = False
        self._gone = False
        self._on_reuse: Fault | None = None
        self._later: asyncio.TimerHandle | None = None

    @staticmethod
    def _fresh() -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are duck-typed
        # No buffer of our own: an answer is done when the kernel has it, not when we have queued it.
        # One byte instead of none: asyncio's TLS pauses at the mark itself, and would never go on from zero.
        self._transport.set_write_buffer_limits(high=1, low=0)
        number = self._house.opened(self)
        if number is None:
            self._transport.abort()
            return
        self._number = number
        fault = self._house.play[1].on_connect()
        if fault and fault.kind == "speak_first":
            self._transport.write(fault.data or b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            self._end(fault.ending)
        elif fault:
            self._end(fault.ending)

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        self._h11.receive_data(data)
        if self._task is None:
            self._advance()
        elif len(self._h11.trailing_data[0]) > PIPELINED_BYTES_MAX:
            self._house.note_protocol_error("too many bytes while an answer is under way")
            self.abort()

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self._later:
            self._later.cancel()
        self._house.closed(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._drained and not self._drained.done():
            self._drained.set_result(None)

    def _leave(self) -> None:
        """The client is gone (or we closed): whatever is under way stops."""
        if self._gone:
            return
        self._gone = True
        now = time.monotonic()
        if self._head is not None:  # in the middle of its own body
            received = self._describe(self._head)
            received.complete = False
            received.aborted_at = now
            self._house.record(received)
        elif self._received and self._received.answered_at is None:
            self._received.aborted_at = now
        if self._task:
            self._task.cancel()

    def abort(self) -> None:
        """End at once, by the provider's own doing: the request under way is not the client's abort."""
        self._gone = True
        if self._task:
            self._task.cancel()
        self._transport.abort()

    # Requests.

    def _advance(self) -> None:
        while self._task is None and not self._gone:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._house.note_protocol_error(str(error))
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self._end("close")
                return
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    head = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                    self._transport.write(self.frame(head))
                return
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            if isinstance(event, h11.Request):
                self._head = event
                self._body.clear()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > BODY_BYTES_MAX:
                    self._house.note_protocol_error("body too large")
                    self.abort()
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                received = self._describe(self._head)
                self._head = None
                self._received = received
                self._by_hand = False
                self._house.record(received)
                if self._on_reuse:
                    received.fault = "close_on_reuse"
                    received.answered_at = time.monotonic()
                    self._end(self._on_reuse.ending)
                    return
                self._task = self._house.spawn(self, received)

    def _describe(self, head: h11.Request) -> Received:
        return Received(
            sequence=self._house.next_sequence(),
            connection=self._number,
            method=head.method.decode("latin-1"),
            target=head.target.decode("latin-1"),
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()],
            body=bytes(self._body),
            received_at=time.monotonic(),
        )

    async def answer(self, received: Received) -> None:
        """Answer one request and dispose of the connection; ends by cancellation when the client leaves."""
        house = self._house
        in_flight = house.begun()
        try:
            script, faults = house.play
            fault = faults.on_request(received.target)
            received.fault = fault.kind if fault else None
            then = await before_answer(self, fault) if fault else None
            if then is None:
                asked = Asked(
                    provider=house.name,
                    dialect=house.dialect,
                    script=script,
                    models=house.models,
                    sequence=received.sequence,
                    method="GET" if received.method == "HEAD" else received.method,
                    target=received.target,
                    headers={name.lower(): value for name, value in received.headers},
                    body=received.body,
                    body_sha256=hashlib.sha256(received.body).hexdigest()[:16],
                    stored=house.stored,
                )
                pace = Pace(script, received.sequence)
                answer = decide(
                    asked,
                    fault,
                    pace,
                    keys=house.keys,
                    limit=house.limit,
                    in_flight=in_flight,
                    now=time.monotonic(),
                    wall=time.time(),
                )
                received.status = answer.status
                if answer.charge is not None:
                    # As real ones do: for the work, whoever is still there to take the answer.
                    house.charge(answer.charge)
                then = await perform(self, asked, answer, fault, pace)
            if then == "hang":
                await client_leaves()
        finally:
            house.ended()
        received.answered_at = time.monotonic()
        self._task = None
        if not self._gone:
            self._after(then, fault)

    def _after(self, then: Then, fault: Fault | None) -> None:
        if then != "keep":
            self._end(then)
            return
        if self._by_hand:
            # h11 knows nothing of this answer: a new one goes on with what the client has sent since.
            rest, _ = self._h11.trailing_data
            self._h11 = self._fresh()
            if rest:
                self._h11.receive_data(rest)
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        else:
            self._end("close")
            return
        if fault and fault.kind == "close_on_reuse":
            self._on_reuse = fault
        elif fault and fault.kind in ("unsolicited", "close_after_answer"):
            if fault.delay_s:
                loop = asyncio.get_running_loop()
                self._later = loop.call_later(fault.delay_s, self._on_idle, fault)
            else:
                self._on_idle(fault)
        self._advance()

    def _on_idle(self, fault: Fault) -> None:
        if self._gone or self._task is not None:
            return  # no longer idle
        if fault.kind == "unsolicited":
            self._transport.write(fault.data or b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        self._end(fault.ending)

    def _end(self, then: Then) -> None:
        if then == "close":
            self._transport.close()
            self._gone = True
        elif then == "reset":
            # SO_LINGER with a wait of zero makes close() send RST instead of FIN.
            handle = self._transport.get_extra_info("socket")
            if handle is not None:
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._gone = True
            self._transport.abort()

    # The stage.

    @property
    def head_only(self) -> bool:
        return self._received is not None and self._received.method == "HEAD"

    def frame(self, event: h11.Event) -> bytes:
        return self._h11.send(event) or b""

    def by_hand(self) -> None:
        self._by_hand = True

    async def write(self, data: bytes) -> None:
        received = self._received
        if not data or received is None:
            return
        if self._transport.is_closing():
            await client_leaves()  # connection_lost is on its way and cancels us
        self._transport.write(data)
        if received.first_byte_at is None:
            received.first_byte_at = time.monotonic()
        received.sent_bytes += len(data)
        if self._paused:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
