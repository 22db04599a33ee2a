"""One request to a provider on a connection of its own, read by h11.

Health must not be judged by the code that serves: a fault in our own reader would then pass for the provider's,
or hide it. Where a connection may go, and how, is the dialer's business as for every call. The answer's head
always comes back; its body only where it is wanted, within bounds. Nothing is followed, nothing is kept open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import h11

from dandolo.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from dandolo.net.dial import Destination, Dialer

HEAD_BYTES_MAX = 64 * 1024
INTERIM_MAX = 16
PIECES_MAX = 8192
"""Of a body. h11 takes 10 µs for each, and a read of 256 KiB may hold 43,000 chunks of one byte."""
_HTTP = b"HTTP/1."


@dataclass(frozen=True, slots=True)
class Request:
    """`head` is a request line and header lines, each ended by CRLF, without the empty line and without framing;
    `body` None is a request without one."""

    head: bytes
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """`fields` have lower-case names (of several the last). `connect_s` is until the request could be sent, TLS
    included, `latency_s` until the head was there. `body` is None where it was not wanted or did not come whole;
    then `problem` says why it did not."""

    status: int
    fields: dict[bytes, bytes]
    connect_s: float
    latency_s: float
    body: bytes | None = None
    problem: str = ""


Wants = Callable[[int, dict[bytes, bytes]], int]
"""By an answer's status and fields: how many bytes of its body are wanted at most; 0 for none of it."""


async def ask(dialer: Dialer, destination: Destination, request: Request, wants: Wants, timeout_s: float) -> Reply:
    """Ask, and close. `timeout_s` seconds bound everything from the first packet to the last byte.

    Raises UpstreamUnavailable (no connection, or none of an answer), UpstreamTimeout (no head in time) and
    UpstreamInvalid (not HTTP). A body that breaks off, grows too large or takes too long is no error: the head has
    come. Cancellation closes the connection.
    """
    loop = asyncio.get_running_loop()
    # uvloop's own clock ticks in milliseconds: fit for deadlines, not for measuring.
    deadline, begun = loop.time() + timeout_s, time.monotonic()
    connection = await dialer.dial(destination, timeout_s)
    transport = connection.transport
    reply: Reply | None = None
    try:
        if connection.closed or transport.is_closing():
            raise UpstreamUnavailable("the provider closed the connection before it was asked")
        connect_s = time.monotonic() - begun
        answer = _Answer(loop, wants)
        # The dialer's own reader has seen nothing, and will not.
        transport.set_protocol(answer)
        transport.write(answer.outgoing(request))
        async with asyncio.timeout_at(deadline):
            head = await answer.head
            reply = Reply(head.status_code, _fields(head), connect_s, time.monotonic() - begun)
            if not answer.body_bytes_max:
                return reply
            return replace(reply, body=await answer.body)
    except TimeoutError:
        if reply is None:
            raise UpstreamTimeout(f"no answer within {timeout_s:g} s") from None
        return replace(reply, problem=f"the answer was not whole within {timeout_s:g} s")
    except UpstreamError as error:
        if reply is None:
            raise
        return replace(reply, problem=error.message)
    finally:
        transport.abort()


def _fields(head: h11.Response) -> dict[bytes, bytes]:
    return dict(head.headers)


class _Answer(asyncio.Protocol):
    """Reads one answer. `head` and `body` are set once each; an error that comes before the head is set on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wants: Wants) -> None:
        self.head: asyncio.Future[h11.Response] = loop.create_future()
        self.body: asyncio.Future[bytes] = loop.create_future()
        self.body_bytes_max = 0
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._wants = wants
        self._first = b""
        self._interim = 0
        self._pieces: list[bytes] = []
        self._size = 0
        # Whoever asked may be gone before the outcome is looked at.
        self.head.add_done_callback(_seen)
        self.body.add_done_callback(_seen)

    def outgoing(self, request: Request) -> bytes:
        """The bytes of a request."""
        line, *lines = request.head.removesuffix(b"\r\n").split(b"\r\n")
        method, target, _ = line.split(b" ")
        headers = [(name, value.strip()) for name, _, value in (one.partition(b":") for one in lines)]
        body = request.body
        if body is not None:
            headers.append((b"content-length", b"%d" % len(body)))
        # Only this one answer is wanted.
        headers.append((b"connection", b"close"))
        out = self._h11.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            out += self._h11.send(h11.Data(data=body)) or b""
        return out + (self._h11.send(h11.EndOfMessage()) or b"")

    def data_received(self, data: bytes) -> None:
        if len(self._first) < len(_HTTP):
            # h11 waits for the end of a head that cannot become one.
            self._first += data[: len(_HTTP) - len(self._first)]
            if not _HTTP.startswith(self._first):
                self._fail(UpstreamInvalid("the answer does not begin like HTTP/1.1"))
        self._advance(data)

    def eof_received(self) -> bool:
        self._advance(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._advance(b"")
        self._fail(UpstreamUnavailable("the provider reset the connection before its answer was complete"))

    def _advance(self, data: bytes) -> None:
        if self.body.done() or self.head.cancelled():
            return
        try:
            self._h11.receive_data(data)
            while not self.body.done():
                event = self._h11.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    return
                self._take(cast(h11.Event, event))
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            # Its text shows what came, which is nobody's business here.
            if self._first and data:
                self._fail(UpstreamInvalid("the answer is not HTTP/1.1 as h11 reads it"))
            elif self._first:
                self._fail(UpstreamInvalid("the provider closed the connection before its answer was complete"))
            else:
                self._fail(UpstreamUnavailable("the provider closed the connection before it answered"))

    def _take(self, event: h11.Event) -> None:
        if isinstance(event, h11.InformationalResponse):
            self._interim += 1
            if event.status_code == 101 or self._interim > INTERIM_MAX:
                self._fail(UpstreamInvalid("the provider sent interim answers that no request asked for"))
        elif isinstance(event, h11.Response):
            self.body_bytes_max = self._wants(event.status_code, _fields(event))
            self.head.set_result(event)
            if not self.body_bytes_max:
                self.body.set_result(b"")
        elif isinstance(event, h11.Data):
            self._size += len(event.data)
            if self._size > self.body_bytes_max:
                self._fail(UpstreamInvalid(f"the answer has more than {self.body_bytes_max} bytes"))
            elif len(self._pieces) >= PIECES_MAX:
                self._fail(UpstreamInvalid(f"the answer came in more than {PIECES_MAX} pieces"))
            else:
                self._pieces.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self.body.set_result(b"".join(self._pieces))

    def _fail(self, error: UpstreamError) -> None:
        for outcome in (self.head, self.body):
            if not outcome.done():
                outcome.set_exception(error)


def _seen(outcome: asyncio.Future[h11.Response] | asyncio.Future[bytes]) -> None:
    if not outcome.cancelled():
        outcome.exception()
