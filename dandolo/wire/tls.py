"""One side of a TLS connection without any I/O: ciphertext in, content out, and back.

It runs on OpenSSL's memory buffers and owns what TLS allows but no honest peer needs: how long a handshake may become,
how much may come without content. Reads give all the content there is and never raise; the end and what was done
against TLS are told by `ended` and `failure`, after the content that came before them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

RECORD_BYTES = 16 * 1024
"""Of content, the most that one record holds (RFC 8446 §5.1)."""
PIECE_BYTES = 16 * 1024
"""Of ciphertext, given to OpenSSL at a time: its buffers keep for good what they have once grown to."""
HANDSHAKE_BYTES_MAX = 256 * 1024
"""OpenSSL takes 100 KB of certificates and little else."""
SILENT_BYTES_MAX = 128 * 1024
"""Received in a row without a byte of content: tickets, key updates, empty records."""

_WANT_READ = ssl.SSLWantReadError
_NEVER = -1


def harden(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context without renegotiation and without anything older than TLS 1.2 (RFC 9325 §3.1.1, §3.5)."""
    context.options |= ssl.OP_NO_RENEGOTIATION
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Session:
    """One side of a TLS connection, in memory: the client's, which verifies the name `host`, or the server's (None).

    Raises ValueError or UnicodeError when `host` can be nobody's name.
    """

    __slots__ = (
        "_feed", "_incoming", "_overhead", "_piece_bytes", "_read", "_silent_bytes", "_tls", "_whole", "calm", "drain",
        "encrypt", "ended", "failure", "outgoing",
    )  # fmt: skip

    def __init__(self, context: ssl.SSLContext, host: str | None) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        """Ciphertext that waits to be sent."""
        self._tls = context.wrap_bio(self._incoming, self.outgoing, server_side=host is None, server_hostname=host)
        # The object's own methods do nothing but call these: two calls of Python in every exchange.
        engine = getattr(self._tls, "_sslobj", self._tls)
        self._feed = self._incoming.write
        self._read: Callable[[int], bytes] = engine.read
        self.encrypt: Callable[[bytes | bytearray | memoryview], int] = engine.write
        """Turns content of 1 to RECORD_BYTES bytes into a record. Raises ssl.SSLError."""
        self.drain: Callable[[], bytes] = self.outgoing.read
        """Takes what waits to be sent."""
        # A client's large bodies are gathered whole: beside them the larger buffer is nothing, and quicker.
        self._piece_bytes = 2 * PIECE_BYTES if host is None else PIECE_BYTES
        self._silent_bytes = 0
        self._overhead = _NEVER
        self._whole = _NEVER
        """By how much a read is shorter than what was fed when that was one record and nothing else."""
        self.calm = True
        """False when more may be to do than to take content: see `ended` and `outgoing`. Whoever has, sets it again."""
        self.ended = False
        """Nothing will follow: the peer has said close_notify, or there is a `failure`."""
        self.failure: OSError | None = None
        """What the peer did against TLS. An alert waits to be sent to it."""

    @property
    def behind(self) -> bool:
        """Whether ciphertext has come that was not yet looked at."""
        return self._incoming.pending > 0

    def handshake(self, ciphertext: bytes | memoryview = b"") -> bool:
        """Go on with the handshake; True when it is over: then `rest` is what came after it.

        Raises ssl.SSLError, of which ssl.SSLCertVerificationError is one, or ConnectionAbortedError.
        """
        self._silent_bytes += len(ciphertext)
        if self._silent_bytes > HANDSHAKE_BYTES_MAX:
            raise ConnectionAbortedError("the TLS handshake does not end")
        self._feed(ciphertext)
        try:
            self._tls.do_handshake()
        except _WANT_READ:
            return False
        self._silent_bytes = 0
        self._overhead = _overhead(self._tls)
        return True

    def receive(self, ciphertext: bytes | memoryview) -> bytes:
        """The content that `ciphertext` completes; b"" within a record, or when nothing will follow (`ended`)."""
        size = len(ciphertext)
        if size > RECORD_BYTES:
            return self._receive_much(ciphertext)
        self._feed(ciphertext)
        try:
            # Content is shorter than its ciphertext: so much room is enough, unless its record began before.
            content = self._read(size)
        except ssl.SSLError as error:
            return self._without(error, size)
        if size - len(content) == self._whole:
            return content
        self.calm = False
        self._silent_bytes = 0
        if not content:
            self.ended = True
            return content
        return content + self.rest()

    def rest(self) -> bytes:
        """Content that can be read without receiving more."""
        pieces: list[bytes] = []
        self._read_on(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> bytes:
        """Say close_notify and take what waits to be sent. Nothing can be written from here on, but received."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the peer has not said it yet, or has said something else: no matter
        return self.drain()

    def _receive_much(self, ciphertext: bytes | memoryview) -> bytes:
        pieces: list[bytes] = []
        view = memoryview(ciphertext)
        for start in range(0, len(ciphertext), self._piece_bytes):
            self._feed(view[start : start + self._piece_bytes])
            self._read_on(pieces)
            if self.ended:
                break
        self.calm = False
        if pieces:
            self._silent_bytes = 0
        elif not self.ended:
            self._without(_WANT_READ(), len(ciphertext))
        return b"".join(pieces)

    def _read_on(self, pieces: list[bytes]) -> None:
        try:
            while self._incoming.pending or self._tls.pending():
                content = self._read(RECORD_BYTES)
                if not content:
                    self.ended = True
                    break
                pieces.append(content)
            # Every record that has begun is complete: the next read begins with one.
            self._whole = self._overhead
        except ssl.SSLError as error:
            self._without(error, 0)

    def _without(self, error: OSError, size: int) -> bytes:
        """A read gave no content: `size` bytes were within a record or of another kind, or it is all over."""
        self.calm = False
        self._whole = _NEVER
        if isinstance(error, _WANT_READ):
            self._silent_bytes += size
            if self._silent_bytes <= SILENT_BYTES_MAX:
                return b""
            error = ConnectionAbortedError("TLS records without content do not end")
        self.ended = True
        if not isinstance(error, ssl.SSLZeroReturnError):
            self.failure = error
        return b""


def _overhead(tls: ssl.SSLObject) -> int:
    """How much longer than its content a record is; _NEVER if that varies.

    A head of 5 bytes and a tag of 16; and the type (RFC 8446 §5.2), or a nonce of 8 (RFC 5288 §3), or nothing
    (RFC 7905 §2).
    """
    name = (tls.cipher() or ("",))[0]
    if "GCM" not in name and "CHACHA20" not in name:
        return _NEVER
    if tls.version() == "TLSv1.3":
        return 22
    return 29 if "GCM" in name else 21
