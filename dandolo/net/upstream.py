"""A connection to a provider: one request out, one answer in, then again.

Three ways to receive. A plain answer of up to `PLAIN_BYTES_MAX` is gathered whole, so that it can be
checked before anything reaches the client. A larger one, an event stream or any other content resolves as
soon as its head is there, with reading paused until `relay_to` names a sink; from then on content goes to
the sink in the very call that received it. Bytes that nobody asked for end the connection and are never read.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol, cast

from dandolo.errors import UpstreamError, UpstreamInvalid, UpstreamUnavailable
from dandolo.net.outbox import Outbox, running_outbox
from dandolo.net.strand import Waiter
from dandolo.wire.client import Response, ResponseReader

PLAIN_BYTES_MAX = 256 * 1024
WRITE_JOIN_BYTES_MAX = 16 * 1024
"""A larger body is not copied to stand behind its head: the kernel takes both from where they are."""
LARGE_READ_BYTES = 16 * 1024
"""A read that brings more makes its connection read in sips from then on."""
SIP_BYTES_MAX = 64 * 1024


class Sink(Protocol):
    """Where the content of a streamed answer goes."""

    def data(self, content: bytes) -> None:
        """Content, in order."""

    def end(self) -> None:
        """The answer is complete in its framing."""

    def broken(self, error: UpstreamError) -> None:
        """The answer was cut short or broke its framing."""


class Receiver(Protocol):
    """Whoever waits for an answer (a `Waiter` is one)."""

    def set(self, value: bytes | None) -> None:
        """The answer has come: its whole body, or None when it must be relayed."""

    def fail(self, error: BaseException) -> None:
        """It has not, and never will."""


class Upstream(asyncio.Protocol):
    """One connection to a provider, used by at most one exchange at a time."""

    __slots__ = (
        "_gathered", "_large", "_outbox", "_paused", "_pieces", "_poll", "_receiver", "_sink", "_sips", "born",
        "closed", "idle_since", "on_closed", "reader", "response", "reused", "secure", "shortcut", "transport",
    )  # fmt: skip

    def __init__(self, now: float, *, secure: bool) -> None:
        self.reader = ResponseReader()
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.secure = secure
        self.born = now
        self.idle_since = now
        self.reused = False
        self.closed = False
        self.response: Response | None = None
        self.on_closed: Waiter[None] | None = None
        self.shortcut: Callable[[bytes], bool] | None = None
        """Offered what was read before anybody interprets it; True when that settled it. Ends with its answer."""
        self._receiver: Receiver | None = None
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._paused = False
        # TLS reads in sips by itself.
        self._sips = secure
        self._large = False
        self._poll = select.poll()
        self._outbox: Outbox = cast(Outbox, None)

    # -- one exchange ----------------------------------------------------------------------------------

    def send(self, head: bytes, body: bytes, *, head_only: bool = False) -> Waiter[bytes | None]:
        """Send a request; the waiter gets what `ask` tells its receiver."""
        waiter: Waiter[bytes | None] = Waiter()
        self.ask(head, body, waiter, head_only)
        return waiter

    def ask(self, head: bytes, body: bytes, receiver: Receiver, head_only: bool = False) -> None:
        """Send a request. `receiver` is told once: the whole body, or None when it must be relayed.

        `response` is then set. It fails with UpstreamUnavailable (no answer) or UpstreamInvalid (not HTTP).
        """
        self.reader.begin(head_only=head_only)
        self.response = None
        if self._gathered:
            self._gathered = 0
            self._pieces = []
        if self.closed or self.transport.is_closing():
            receiver.fail(UpstreamUnavailable("the provider had closed this connection"))
            return
        self._receiver = receiver
        if len(body) <= WRITE_JOIN_BYTES_MAX:
            self._large = False
            self._outbox.write(self.transport, head + body)
        else:
            self._large = True
            self.transport.writelines((head, body))

    def relay_to(self, sink: Sink) -> None:
        """Pass the content of the current answer to `sink`: what has come already, then the rest."""
        self._sink = sink
        self.shortcut = None
        pieces, self._pieces = self._pieces, []
        self._gathered = 0
        for piece in pieces:
            sink.data(piece)
            if self._sink is not sink:
                return
        if self.reader.complete:
            self._sink = None
            sink.end()
        elif self.closed:
            self._sink = None
            try:
                self.reader.eof()
            except UpstreamError as error:
                sink.broken(error)
            else:
                sink.end()
        else:
            self.resume()

    def detach(self) -> None:
        """The exchange is no longer interested; the connection is closed unless its answer is complete."""
        self._sink = None
        self._receiver = None
        self.shortcut = None
        self._pieces = []
        if not self.reader.reusable or self._paused:
            self.close()

    def release(self) -> bool:
        """Forget the exchange; True when the connection can carry another request."""
        if self.usable:
            self._sink = None
            self._receiver = None
            self.shortcut = None
            return True
        return False

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request as far as its last answer tells."""
        if self.closed or self._paused or not self.reader.reusable:
            return False
        # An answer that came before our request was out leaves the rest of it on the wire.
        return not self._large or not self.transport.get_write_buffer_size()

    def readable(self) -> bool:
        """Whether bytes (or the end) wait in the kernel: on an idle plain connection that means dead."""
        return bool(self._poll.poll(0))

    def pause(self) -> None:
        """Stop reading: the client is slower than the provider."""
        if not self._paused and not self.closed:
            self._paused = True
            self.transport.pause_reading()

    def _sip(self) -> None:
        """Read no more than SIP_BYTES_MAX at a time from here on.

        The loop's own reads bring up to 250 KB once the kernel has learned to hold so much: too much for a stream
        that its client does not take (promise 37). It learns that from large reads, so connections that have none
        are spared the two calls a sip costs on top.
        """
        self._sips = True
        if not self.transport.is_closing():
            self.transport.set_protocol(_Sips(self))

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """End the connection at once; a provider that is still producing is told by it to stop."""
        if not self.closed:
            self.closed = True
            self.transport.abort()

    # -- the socket speaks -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport and its descriptor (the pre-use check polls it)."""
        self.transport = cast(asyncio.Transport, transport)
        self._outbox = running_outbox()
        socket = transport.get_extra_info("socket")
        if socket is not None:
            self._poll.register(socket.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Interpret bytes by the state of the answer."""
        shortcut = self.shortcut
        if shortcut is not None and shortcut(data):
            return
        if len(data) > LARGE_READ_BYTES and not self._sips:
            self._sip()
        if self._receiver is None and self._sink is None and not self._paused:
            # Nobody asked for anything: never read, never given to anybody (promise 24).
            self.close()
            return
        try:
            if self.response is None:
                receiver = self._receiver
                if receiver is not None:
                    body = self.reader.whole(data)
                    if body is not None:
                        self.response = self.reader.response
                        self._receiver = None
                        receiver.set(body)
                        return
                response = self.reader.head(data)
                if response is None:
                    return
                self.response = response
                content = self.reader.body(b"")
            else:
                content = self.reader.body(data)
        except UpstreamError as error:
            self._fail(error)
            return
        sink = self._sink
        if sink is None:
            self._gather(content)
            return
        if content:
            sink.data(content)
        if self.reader.complete and self._sink is sink:
            self._sink = None
            sink.end()

    def eof_received(self) -> bool:
        """The provider closes: for some answers that is their end."""
        self._ended(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._ended(exc)
        self.closed = True
        if self.on_closed is not None:
            self.on_closed.set(None)

    def _ended(self, exc: Exception | None) -> None:
        if self._receiver is None and self._sink is None:
            self.closed = True
            return
        self.closed = True
        try:
            if exc is not None and not self.reader.complete:
                if self.reader.received:
                    raise UpstreamInvalid("the connection to the provider was reset within its answer")
                raise UpstreamUnavailable("the provider reset the connection before it answered")
            self.reader.eof()
        except UpstreamError as error:
            self._fail(error)
            return
        sink, self._sink = self._sink, None
        receiver, self._receiver = self._receiver, None
        if sink is not None:
            sink.end()
        elif receiver is not None:
            receiver.set(b"".join(self._pieces))

    def _fail(self, error: UpstreamError) -> None:
        self.close()
        sink, self._sink = self._sink, None
        receiver, self._receiver = self._receiver, None
        if sink is not None:
            sink.broken(error)
        elif receiver is not None:
            receiver.fail(error)

    def _gather(self, content: bytes) -> None:
        receiver = self._receiver
        response = self.response
        if receiver is None or response is None:
            # No exchange listens: what comes now was not asked for, or is asked for no more.
            if not self.reader.complete or content:
                self.close()
            return
        if self.reader.complete and _is_plain(response):
            self._receiver = None
            if self._pieces:
                self._pieces.append(content)
                content = b"".join(self._pieces)
                self._pieces = []
            receiver.set(content)
            return
        if content:
            self._pieces.append(content)
            self._gathered += len(content)
        declared = response.length or 0
        if _is_plain(response) and self._gathered <= PLAIN_BYTES_MAX and declared <= PLAIN_BYTES_MAX:
            return
        # To be relayed: nothing more is read until a sink is named, so this cannot grow.
        self._receiver = None
        receiver.set(None)
        if self._sink is None and self._receiver is None and not self.reader.complete:
            self.pause()


class _Sips(asyncio.BufferedProtocol):
    """Reads for an `Upstream` into a room of bounded size."""

    _room = memoryview(bytearray(SIP_BYTES_MAX))
    """One for the process's one loop: it asks for it, fills it and reports in one go."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._upstream.data_received(bytes(self._room[:nbytes]))

    def eof_received(self) -> bool:
        return self._upstream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.connection_lost(exc)


def _is_plain(response: Response) -> bool:
    """Whether an answer is gathered: JSON, and whatever explains a failure."""
    if response.status >= 300:
        return True
    kind = response.fields.get(b"content-type", b"")
    return kind.startswith((b"application/json", b"text/html", b"text/plain")) or not kind
