"""The way out of a client's connection: answers and streams, framed (RFC 9112 §6).

What `net.downstream` is built on. It knows which request is being answered and whether the connection goes on after
it, and nothing of how requests come in.
"""

from __future__ import annotations

import asyncio

from dandolo.net.outbox import Outbox
from dandolo.net.service import Flow, Service
from dandolo.net.sockets import reset_on_close
from dandolo.wire.chunked import LAST_CHUNK
from dandolo.wire.fields import status_line
from dandolo.wire.server import Request, RequestReader

_OK = b"HTTP/1.1 200 OK\r\n"


class Answering(asyncio.Protocol):
    """A connection as far as it answers. `finish` must follow a whole answer, an ended stream and a cut."""

    __slots__ = (
        "_closing", "_ends_at", "_flow", "_framed", "_reader", "_request", "_requests", "_requests_max", "_service",
        "_stalled", "chunked", "lost", "outbox", "transport",
    )  # fmt: skip

    _closing: bool
    _ends_at: float
    _flow: Flow | None
    _framed: bool
    _reader: RequestReader
    _request: Request | None
    _requests: int
    _requests_max: int
    _service: Service
    _stalled: bool
    watched = False
    """Whether all that it sends must pass through its own methods: nothing is written to its transport beside them."""
    chunked: bool
    """Whether the stream now being sent is in the chunked coding."""
    lost: bool
    outbox: Outbox
    transport: asyncio.Transport

    def will_close(self, request: Request) -> bool:
        """Whether the answer to `request` is the last on this connection."""
        if not request.keep_alive or self._service.draining or self._reader.dead:
            return True
        return self._requests >= self._requests_max or self._service.sweep.now > self._ends_at

    def answer(self, status: int, head: bytes, body: bytes, *, close: bool = False) -> None:
        """Send a whole answer. `head` are encoded field lines without framing; `finish` must follow."""
        request = self._request
        assert request is not None
        service = self._service
        if (
            status == 200
            and request.keep_alive
            and request.method == b"POST"
            and not (close or self.lost or service.draining or self._reader.dead)
            and self._requests < self._requests_max
            and service.sweep.now <= self._ends_at
        ):
            self.outbox.write(self.transport, b"%b%bContent-Length: %d\r\n\r\n%b" % (_OK, head, len(body), body))
            return
        close = close or self.will_close(request)
        self._closing = self._closing or close
        self._put(status, head, body, request, close)

    def _put(self, status: int, head: bytes, body: bytes, request: Request | None, close: bool) -> None:
        if self.lost:
            return
        ending = b"Connection: close\r\n" if close else b""
        framing = b""
        if status == 204 or status == 304:
            body = b""
        else:
            framing = b"Content-Length: %d\r\n" % len(body)
            if request is not None and request.method == b"HEAD":
                body = b""
        self.outbox.write(self.transport, b"%b%b%b%b\r\n%b" % (status_line(status), head, framing, ending, body))

    def begin_stream(self, status: int, head: bytes, flow: Flow, length: int | None = None, first: bytes = b"") -> None:
        """Send a head, with the `first` of a body that follows piece by piece; `length` keeps a Content-Length.

        HTTP/1.0 clients get the body until the connection closes, others the chunked coding.
        """
        request = self._request
        assert request is not None
        close = self.will_close(request)
        self._closing = close
        self.chunked = request.minor == 1 and length is None
        self._framed = self.chunked or length is not None
        if length is not None:
            framing = b"Content-Length: %d\r\n" % length
        else:
            framing = b"Transfer-Encoding: chunked\r\n" if self.chunked else b""
        ending = b"Connection: close\r\n" if close else b""
        self._flow = flow
        if not self.lost:
            if first and self.chunked:
                first = b"%x\r\n%b\r\n" % (len(first), first)
            self.outbox.write(self.transport, b"%b%b%b%b\r\n%b" % (status_line(status), head, framing, ending, first))
        if self._stalled:
            flow.pause()

    def write(self, content: bytes) -> None:
        """Send content of a stream (never empty)."""
        if self.chunked:
            self.outbox.write(self.transport, b"%x\r\n%b\r\n" % (len(content), content))
        else:
            self.outbox.write(self.transport, content)

    def end_stream(self, last: bytes = b"") -> None:
        """The stream is complete with its `last` bytes; `finish` must follow."""
        self._flow = None
        if self.chunked and not self.lost:
            end = b"%x\r\n%b\r\n%b" % (len(last), last, LAST_CHUNK) if last else LAST_CHUNK
            self.outbox.write(self.transport, end)
        elif last:
            self.write(last)

    def cut(self) -> None:
        """End a stream so that nobody can take it for complete: flush, no final chunk, close (promise 26).

        A body that only the end of the connection delimits (HTTP/1.0) can be told from a complete one by
        nothing but a reset. `finish` must follow.
        """
        self._flow = None
        self._closing = True
        self._reader.kill()
        if self.lost:
            return
        if not self._framed:
            reset_on_close(self.transport)
        self.outbox.flush()
        self.transport.close()
