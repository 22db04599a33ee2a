"""TLS between a socket's transport and whoever speaks HTTP through it.

A thin shell around `wire.tls`: a protocol to the loop's transport, a transport to the protocol within. It differs
from the loop's own TLS where a gateway needs it to. Large reads become sips (uvloop's engine takes 256 KB of
ciphertext at a time, and allocates as much for every read, however small). A large write is encrypted as it goes
out, not all before. An end without close_notify is a failure, not an end (RFC 8446 §6.1). A half-close can be said,
and closing does not wait for the peer. What fails before the handshake is over is told in a call and logged nowhere.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any, cast

from dandolo.wire.tls import RECORD_BYTES, Session

LARGE_READ_BYTES = 16 * 1024
"""A read that brings more makes its connection read in sips from then on, as in `upstream`."""
SIP_BYTES_MAX = 32 * 1024
"""Half of what plain connections take: OpenSSL holds up to two records of its own beside it (promise 37)."""
JOINED_RECORDS = 16
"""Records of a large write that go out in one call of the kernel."""
UNSENT_BYTES_MAX = 512 * 1024
"""Waiting for a peer that makes us answer (handshakes that are refused) and does not read the answers."""

_HANDSHAKE_RECORD = 0x16


def _ignore(_: object) -> None:
    """For callbacks that have had their time."""


def _never() -> asyncio.Protocol:
    raise AssertionError("a connection opens once")


class TlsTransport(asyncio.Protocol, asyncio.Transport):
    """The TLS of a connected socket: given to the loop as its protocol.

    Once the handshake is over, `opened` makes the protocol within, whose transport this is; otherwise `failed` is
    called once with the reason, and the socket is closed. The server (`host` is None) waits `handshake_s` seconds;
    a client's time is kept by whoever dialled. To end before the handshake is over, abort the loop's transport.
    """

    __slots__ = (
        "_backlog", "_backlog_bytes", "_closing", "_context", "_drain", "_encrypt", "_end_said", "_failed",
        "_failure", "_fresh", "_half_closed", "_handshake_s", "_inner", "_open", "_opened", "_paused", "_raw",
        "_receive", "_send", "_session", "_sips", "_stopped", "_take", "_timer", "_told",
    )  # fmt: skip

    def __init__(
        self,
        context: ssl.SSLContext,
        host: str | None,
        opened: Callable[[], asyncio.Protocol],
        failed: Callable[[Exception], None],
        *,
        handshake_s: float | None = None,
    ) -> None:
        self._context = context
        # A server's is made when something has come that looks like TLS.
        self._fresh = host is None
        self._session = cast(Session, None) if host is None else Session(context, host)
        self._opened = opened
        self._failed = failed
        self._handshake_s = handshake_s
        self._timer: asyncio.TimerHandle | None = None
        self._raw = cast(asyncio.Transport, None)
        self._inner: asyncio.Protocol | None = None
        self._receive: Callable[[bytes | memoryview], bytes] | None = None
        self._take: Callable[[bytes], None] = _ignore
        self._backlog: list[memoryview] = []
        self._backlog_bytes = 0
        self._failure: Exception | None = None
        self._open = False
        """Whether what is written may be encrypted and sent at once."""
        self._stopped = False
        """Whether the loop's transport holds enough."""
        self._told = False
        """Whether the protocol within knows: while the backlog goes out it need not hear of every pause."""
        self._paused = False
        self._closing = False
        self._half_closed = False
        self._end_said = False
        # What clients send is gathered whole anyway: theirs are read like plain connections.
        self._sips = host is None

    # -- the protocol of the loop's transport ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._raw = cast(asyncio.Transport, transport)
        if self._handshake_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._handshake_s, self._late)
        if not self._fresh:
            self._shake(b"")

    def data_received(self, data: bytes | memoryview) -> None:
        """Ciphertext has come: pass its content on in this very call."""
        receive = self._receive
        if receive is None:
            self._shake(data)
            return
        content = receive(data)
        if content:
            self._take(content)
        if not self._session.calm:
            self._stir(len(data))

    def eof_received(self) -> bool:
        """The socket ends; that is the connection's end only for a peer that has said so before."""
        if self._inner is None:
            self._failure = self._failure or ConnectionResetError("the connection ended within the TLS handshake")
        elif not (self._session.ended or self._closing or self._half_closed):
            self._failure = ConnectionResetError("the connection ended without TLS's close_notify")
            self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        if self._timer is not None:
            self._timer.cancel()
        self._open = False
        self._closing = True
        self._backlog.clear()
        self._backlog_bytes = 0
        inner, failed = self._inner, self._failed
        # Nothing may keep what is over alive until the next collection of circles.
        self._inner = None
        self._opened, self._take, self._failed = _never, _ignore, _ignore
        if inner is not None:
            inner.connection_lost(self._failure or exc)
        elif self._receive is None:
            failed(self._failure or exc or ConnectionResetError("the connection was closed"))

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._stopped = True
        self._open = False
        if self._inner is not None and not self._told:
            self._told = True
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The socket has taken most of it: send the backlog, and ask for more if that was all."""
        self._stopped = False
        if self._closing or self._half_closed:
            # Not from within: asyncio's transport does not expect to be closed by whom it tells to go on.
            asyncio.get_running_loop().call_soon(self._send_backlog)
            return
        self._send_backlog()
        if self._stopped or self._inner is None:
            return
        self._open = True
        if self._told:
            self._told = False
            self._inner.resume_writing()

    # -- the transport of the protocol within ----------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. What the socket does not take at once waits, unencrypted if there is much of it."""
        if self._open and 0 < len(data) <= RECORD_BYTES:
            try:
                self._encrypt(data)
            except ssl.SSLError as error:
                self._break(error)
            else:
                self._send(self._drain())
        else:
            self.writelines((data,))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Encrypt and send several, in as few calls of the kernel as their size allows."""
        if self._half_closed:
            raise RuntimeError("nothing can be written after write_eof()")
        if self._closing:
            return
        for data in list_of_data:
            if data:
                self._backlog.append(memoryview(data))
                self._backlog_bytes += len(data)
        self._send_backlog()

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._raw.get_write_buffer_size() + self._backlog_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol within is told to stop and to go on (bytes of ciphertext)."""
        self._raw.set_write_buffer_limits(high=high, low=low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low mark and the high one."""
        return self._raw.get_write_buffer_limits()

    def pause_reading(self) -> None:
        """Receive no more: what the kernel then holds stays there."""
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._paused = False
        self._raw.resume_reading()
        if self._session.behind:
            asyncio.get_running_loop().call_soon(self._catch_up)

    def is_reading(self) -> bool:
        """Whether content is received."""
        return not self._paused and self._raw.is_reading()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be. (A socket that fails is known to be within this turn.)"""
        return self._closing

    def close(self) -> None:
        """Send what was written and close_notify, then close. Nothing more is received."""
        if self._closing:
            return
        self._closing = True
        self._open = False
        self._raw.pause_reading()
        if not self._backlog:
            self._finish()

    def abort(self) -> None:
        """Close at once. Without close_notify nobody takes for complete what has come."""
        self._closing = True
        self._open = False
        self._raw.abort()

    def withhold_end(self) -> None:
        """Let `close` say no close_notify: then the peer must not take what came for complete."""
        self._end_said = True

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """Send what was written, close_notify and the end of our half; go on receiving."""
        if self._closing or self._half_closed:
            return
        self._half_closed = True
        self._open = False
        if not self._backlog:
            self._finish()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol of whatever comes from here on. It must take its bytes by `data_received`."""
        inner = cast(asyncio.Protocol, protocol)
        self._inner = inner
        self._take = inner.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whoever is told of what comes."""
        assert self._inner is not None
        return self._inner

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the loop's transport knows."""
        return self._raw.get_extra_info(name, default)

    # -- within ----------------------------------------------------------------------------------------

    def _shake(self, ciphertext: bytes | memoryview) -> None:
        try:
            if self._fresh:
                if ciphertext[0] != _HANDSHAKE_RECORD:
                    raise ConnectionAbortedError("the peer speaks no TLS")
                self._session = Session(self._context, None)
                self._fresh = False
            done = self._session.handshake(ciphertext)
        except OSError as error:
            self._break(error)
            return
        self._say()
        if done and not self._raw.is_closing():
            self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session = self._session
        self._receive, self._encrypt = session.receive, session.encrypt
        self._drain = session.drain
        self._send = self._raw.write
        self._open = not self._stopped
        inner = self._inner = self._opened()
        self._opened, self._failed = _never, _ignore
        self._take = inner.data_received
        inner.connection_made(self)
        if session.behind:
            self._catch_up()

    def _catch_up(self) -> None:
        """Deliver what came together with the end of the handshake."""
        if self._paused or self._closing:
            return
        content = self._session.rest()
        if content:
            self._take(content)
        self._stir(0)

    def _stir(self, size: int) -> None:
        """That was no single record: perhaps a large read, something to answer, or the end."""
        if self._closing:
            return
        session = self._session
        session.calm = True
        if size > LARGE_READ_BYTES and not (self._sips or self._raw.is_closing()):
            self._sips = True
            self._raw.set_protocol(_Sips(self))
        if session.outgoing.pending:
            self._say()
            if self._raw.get_write_buffer_size() > UNSENT_BYTES_MAX:
                self._failure = ConnectionAbortedError("the peer reads no answers")
                self.abort()
                return
        if session.failure is not None:
            self._break(session.failure)
        elif session.ended and self._inner is not None:
            self._inner.eof_received()
            self.close()

    def _break(self, error: OSError) -> None:
        """TLS has failed: say so to the peer if it listens, and close."""
        if self._closing:
            return
        self._failure = error
        self._closing = True
        self._open = False
        raw = self._raw
        if not self._fresh:
            self._say()
        if raw.get_write_buffer_size():
            raw.abort()
        else:
            raw.close()

    def _say(self) -> None:
        """Send what TLS itself has to say."""
        said = self._session.drain()
        if said and not self._half_closed and not self._raw.is_closing():
            self._raw.write(said)

    def _late(self) -> None:
        self._timer = None
        self._failure = TimeoutError("the TLS handshake took too long")
        self._raw.abort()

    def _send_backlog(self) -> None:
        backlog, session, raw = self._backlog, self._session, self._raw
        try:
            while backlog and not self._stopped and not raw.is_closing():
                records: list[bytes] = []
                while backlog and len(records) < JOINED_RECORDS:
                    content = backlog[0]
                    if len(content) > RECORD_BYTES:
                        backlog[0] = content[RECORD_BYTES:]
                        content = content[:RECORD_BYTES]
                    else:
                        del backlog[0]
                    session.encrypt(content)
                    self._backlog_bytes -= len(content)
                    records.append(session.drain())
                raw.writelines(records)
        except ssl.SSLError as error:
            self._closing = False
            self._break(error)
            return
        if not backlog and (self._closing or self._half_closed):
            self._finish()

    def _finish(self) -> None:
        """Everything written is encrypted: end what is to be ended."""
        raw = self._raw
        if raw.is_closing():
            return
        if not self._end_said:
            self._end_said = True
            raw.write(self._session.end())
        if self._closing:
            raw.close()
            return
        try:
            raw.write_eof()
        except OSError:
            # The peer is gone already, which asyncio's own loop says here and uvloop as the loss of the connection.
            raw.abort()


class _Sips(asyncio.BufferedProtocol):
    """Reads for a `TlsTransport` into a room of bounded size, and passes everything else on."""

    _room = memoryview(bytearray(SIP_BYTES_MAX))
    """One for the process's one loop: it asks for it, fills it and reports in one go."""

    def __init__(self, layer: TlsTransport) -> None:
        self._layer = layer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._layer.data_received(self._room[:nbytes])

    def eof_received(self) -> bool:
        return self._layer.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._layer.connection_lost(exc)

    def pause_writing(self) -> None:
        self._layer.pause_writing()

    def resume_writing(self) -> None:
        self._layer.resume_writing()
