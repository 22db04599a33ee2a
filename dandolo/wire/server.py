"""The client-facing half of HTTP/1.1, without I/O: bytes in, requests out, one at a time.

A reader takes whatever pieces the socket gives. It hands out a request as soon as its head is complete
(so that key, limits and Content-Length are judged before a body is read), then the body once the caller
has agreed to take it. What follows a request stays in the reader, unread, until the caller comes back
for it: pipelined requests are answered in order and nothing is parsed ahead.

Strictness is by construction: a head is accepted only when each of its lines matches RFC 9112's grammar
whole, and everything that would make two parsers disagree (two lengths, a length beside a coding, folded
or bare line ends, versions other than 1.0 and 1.1) is refused with `ProtocolError`, after which the
reader interprets no further byte. Nothing of a client's framing ever reaches a provider.
"""

from __future__ import annotations

import re

from dandolo.errors import ProtocolError
from dandolo.wire import fields
from dandolo.wire import request as heads
from dandolo.wire.chunked import ChunkedDecoder, ChunkError, TrailersTooLarge
from dandolo.wire.repeat import Repetition, Repetitions
from dandolo.wire.request import HeadLimits, Request

EMPTY_LINES_MAX = 2
DRAIN_BYTES_MAX = 2 * 1024 * 1024
PIECE_BYTES_MIN = 4 * 1024
"""Smaller pieces of a body are joined as they come: a list of tiny ones would take many times their bytes."""

_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\r\r")

LEARNINGS_MAX = 16
"""Heads of one connection from which repetitions are learned; one that never repeats costs no more."""
# What is concluded from these (framing here, keys and origins by the reader's owner) holds only for the same bytes.
_repetitions = Repetitions(
    frozenset(
        (b"host", b"connection", b"transfer-encoding", b"upgrade", b"expect", b"authorization", b"x-api-key",
         b"origin", b"content-encoding", b"x-forwarded-for")
    )
)  # fmt: skip

_HEAD, _BODY, _CHUNKED, _DEAD = range(4)


class RequestReader:
    """Turns one connection's bytes into requests. `receive` stores, `next_head` and `next_body` decide."""

    __slots__ = (
        "_body_max", "_buffer", "_decoder", "_learnings", "_left", "_limits", "_own", "_pieces", "_repeat", "_request",
        "_scanned", "_state",
    )  # fmt: skip

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._buffer = b""
        self._scanned = 0
        self._state = _HEAD
        self._left = 0
        self._body_max = 0
        self._pieces: list[bytes] | None = None
        self._decoder: ChunkedDecoder | None = None
        self._request: Request | None = None
        self._repeat: Repetition | None = None
        self._own: Request | None = None
        self._learnings = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and not yet interpreted."""
        return len(self._buffer)

    @property
    def in_head(self) -> bool:
        """Whether a head has begun and is not complete (a deadline runs from its first byte)."""
        return self._state == _HEAD and bool(self._buffer)

    @property
    def at_start(self) -> bool:
        """Whether the next byte begins a head."""
        return not self._buffer and self._state == _HEAD and self._request is None

    def receive(self, data: bytes) -> None:
        """Take bytes from the socket. The caller bounds them by pausing reads while a request is handled."""
        if self._state != _DEAD:
            self._buffer = self._buffer + data if self._buffer else data

    def next_head(self) -> Request | None:
        """The next request's head, or None when more bytes are needed.

        Raises ProtocolError, after which the reader is dead. The body must then be asked for with
        `begin_body` (or given up with `drain`), also when its length is zero.
        """
        buffer = self._buffer
        if not buffer:
            return None
        # Bytes of a body are never looked at as a head.
        assert self._request is None
        if buffer[0] in b"\r\n":
            buffer = self._skip_empty_lines(buffer)
        limits = self._limits
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            self._judge_partial(buffer)
            return None
        self._scanned = 0
        try:
            if end > limits.header_bytes_max:
                if buffer.find(b"\r\n", 0, limits.request_line_bytes_max + 2) < 0:
                    raise heads.line_too_long(limits.request_line_bytes_max)
                raise ProtocolError(
                    f"the request's headers take {end} bytes; at most {limits.header_bytes_max} are accepted",
                    status=431,
                    code="headers_too_large",
                )
            lines = buffer[:end].split(b"\r\n")
            repeat = self._repeat if end <= limits.header_line_bytes_max else None
            request = self._repeated(repeat, lines) if repeat is not None else None
            if request is None:
                if repeat is not None:
                    lines = buffer[:end].split(b"\r\n")
                request = self._judge(lines)
            request.head_bytes = end + 4
        except ProtocolError:
            self.kill()
            raise
        self._buffer = buffer[end + 4 :]
        self._request = request
        return request

    def whole(self, data: bytes) -> Request | None:
        """The request, with its body, when `data` is one whole request that repeats an earlier head.

        The common case of a kept-alive connection in one step. None when it is anything else; `data` is then
        to be given to `receive`. The caller has yet to judge the body's length.
        """
        repeat = self._repeat
        if repeat is None or self._buffer or self._request is not None or self._state != _HEAD:
            return None
        end = data.find(b"\r\n\r\n")
        # No line of such a head can be longer than one line may be.
        fits = 0 < end <= self._limits.header_line_bytes_max
        head = repeat.match(data[:end].split(b"\r\n")) if fits else None
        if head is None:
            return None
        request = self._own
        assert request is not None
        if repeat.varies_length:
            size = fields.parse_length(head[b"content-length"])
            if size is None:
                return None
            request.length = size
        end += 4
        if len(data) - end != request.length:
            return None
        request.fields = head
        request.body = data[end:]
        return request

    def _repeated(self, repeat: Repetition, lines: list[bytes]) -> Request | None:
        """The request when its head repeats an earlier one of this connection, None when it does not."""
        head = repeat.match(lines)
        if head is None:
            return None
        request = self._own
        assert request is not None
        if repeat.varies_length:
            size = fields.parse_length(head[b"content-length"])
            if size is None:
                raise heads.bad_length()
            request.length = size
        request.fields = head
        return request

    def _learn(self, request: Request, lines: list[bytes], pairs: list[fields.Field]) -> None:
        """Let this head be recognised next time: the same `Request` is then handed out again, with new values."""
        self._learnings += 1
        if request.minor == 1 and request.keep_alive and not request.chunked and not request.expect:
            self._repeat = _repetitions.learn(lines, pairs)
            self._own = request if self._repeat is not None else None

    def begin_body(self, body_bytes_max: int) -> None:
        """Agree to read the body of the request last handed out, at most `body_bytes_max` decoded bytes.

        Raises ProtocolError (413) at once when the declared length is larger.
        """
        if self._state == _DEAD:
            return
        request = self._request
        assert request is not None
        if request.chunked:
            limits = self._limits
            self._state = _CHUNKED
            # The trailers may take what the head has left of its allowance.
            self._decoder = ChunkedDecoder(
                trailer_bytes_max=max(0, limits.header_bytes_max - request.head_bytes),
                trailers_max=max(0, limits.headers_max - len(request.fields)),
            )
            self._body_max = body_bytes_max
            self._pieces = []
            return
        length = request.length or 0
        if length > body_bytes_max:
            self.kill()
            raise _too_large(length, body_bytes_max)
        self._state = _BODY
        self._left = length

    def next_body(self) -> bytes | None:
        """The whole body, or None when more bytes are needed. Raises ProtocolError for broken chunking."""
        if self._state != _BODY:
            return self._next_chunked() if self._state == _CHUNKED else None
        buffer = self._buffer
        left = self._left
        have = len(buffer)
        if have < left:
            if have >= PIECE_BYTES_MIN:
                if self._pieces is None:
                    self._pieces = []
                self._pieces.append(buffer)
                self._buffer = b""
                self._left = left - have
            return None
        if have == left:
            body = buffer
            self._buffer = b""
        else:
            body = buffer[:left]
            self._buffer = buffer[left:]
        if self._pieces:
            self._pieces.append(body)
            body = b"".join(self._pieces)
        self._finish()
        return body

    @property
    def body_missing(self) -> int:
        """Bytes of the current body still to come; for a chunked one 1 until it is complete."""
        if self._state == _CHUNKED:
            return 1
        return max(0, self._left - len(self._buffer)) if self._state == _BODY else 0

    def drain(self) -> bool:
        """Give up the current body: True when it is small enough to be read past, False when it must not be.

        After True the caller goes on with `next_body`, throwing away what it returns (RFC 9112 §9.3: a
        server reads the whole request body or closes the connection).
        """
        if self._state == _DEAD:
            return False
        request = self._request
        assert request is not None
        if self._state == _HEAD:
            if request.chunked or (request.length or 0) > DRAIN_BYTES_MAX:
                self.kill()
                return False
            self.begin_body(DRAIN_BYTES_MAX)
        elif self._state == _CHUNKED or self._left > DRAIN_BYTES_MAX:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """Interpret no later byte of this connection."""
        self._state = _DEAD
        self._buffer = b""
        self._left = 0
        self._pieces = None
        self._decoder = None

    @property
    def dead(self) -> bool:
        """Whether bytes are only thrown away from here on."""
        return self._state == _DEAD

    def _finish(self) -> None:
        self._state = _HEAD
        self._left = 0
        self._pieces = None
        self._decoder = None
        self._request = None

    def _next_chunked(self) -> bytes | None:
        decoder, pieces = self._decoder, self._pieces
        assert decoder is not None
        assert pieces is not None
        data, self._buffer = self._buffer, b""
        try:
            if data:
                piece = decoder.feed(data)
                if piece:
                    if pieces and len(pieces[-1]) < PIECE_BYTES_MIN:
                        pieces[-1] += piece
                    else:
                        pieces.append(piece)
        except TrailersTooLarge as error:
            self.kill()
            raise ProtocolError(f"after the chunked body: {error}", status=431, code="headers_too_large") from None
        except ChunkError as error:
            self.kill()
            raise ProtocolError(f"the chunked body is broken: {error}") from None
        if decoder.content_bytes > self._body_max:
            bytes_max = self._body_max
            self.kill()
            raise _too_large(decoder.content_bytes, bytes_max)
        if not decoder.complete:
            return None
        body = b"".join(pieces)
        self._buffer = decoder.rest
        self._finish()
        return body

    def _skip_empty_lines(self, buffer: bytes) -> bytes:
        # RFC 9112 §2.2: "a server ... SHOULD ignore at least one empty line (CRLF) received prior to the
        # request-line"; we ignore two, and no bare LF.
        empty = 0
        while buffer.startswith(b"\r\n"):
            empty += 1
            if empty > EMPTY_LINES_MAX:
                self.kill()
                raise ProtocolError(f"more than {EMPTY_LINES_MAX} empty lines before a request line")
            buffer = buffer[2:]
        if buffer and buffer[0] in b"\r\n" and buffer != b"\r":
            self.kill()
            raise ProtocolError("a bare CR or LF before a request line")
        # Empty lines stay counted until a request line follows, so that they cannot be sent for ever.
        if buffer and buffer != b"\r":
            self._buffer = buffer
        return buffer

    def _judge_partial(self, buffer: bytes) -> None:
        limits = self._limits
        scanned = max(0, self._scanned - 1)
        broken = _BARE_LINE_END.search(buffer, scanned)
        if broken is not None:
            self.kill()
            raise ProtocolError("a bare CR or LF in a request head; lines end in CRLF")
        line_end = buffer.find(b"\r\n", 0, limits.request_line_bytes_max + 2)
        if line_end < 0 and len(buffer) > limits.request_line_bytes_max + 1:
            self.kill()
            raise heads.line_too_long(limits.request_line_bytes_max)
        # A client that does not speak HTTP may never send an empty line: tell it as soon as that is plain.
        # A request line that was whole before the last bytes came has been judged already.
        if line_end >= self._scanned or (line_end < 0 and heads.NO_METHOD.match(buffer)):
            try:
                heads.judge_line(buffer[:line_end] if line_end >= 0 else buffer)
            except ProtocolError:
                self.kill()
                raise
        if len(buffer) > limits.header_bytes_max + 3:
            self.kill()
            raise ProtocolError(
                f"the request's headers take more than {limits.header_bytes_max} bytes",
                status=431,
                code="headers_too_large",
            )
        self._scanned = max(0, len(buffer) - 3)

    def _judge(self, lines: list[bytes]) -> Request:
        limits = self._limits
        line = lines[0]
        if len(line) > limits.request_line_bytes_max:
            raise heads.line_too_long(limits.request_line_bytes_max)
        if len(lines) - 1 > limits.headers_max:
            raise ProtocolError(
                f"the request has {len(lines) - 1} headers; at most {limits.headers_max} are accepted",
                status=431,
                code="headers_too_large",
            )
        request = Request()
        request.method, request.path, request.query, request.minor, authority = heads.request_lines.get(
            line
        ) or heads.judge_line(line)
        try:
            pairs = fields.parse_lines(lines[1:])
        except fields.FieldError as error:
            raise ProtocolError(f"the request head holds {error}") from None
        head = dict(pairs)
        if len(head) != len(pairs):
            head = heads.joined(pairs)
        if max(map(len, lines[1:]), default=0) > limits.header_line_bytes_max:
            raise ProtocolError(
                f"one header takes more than {limits.header_line_bytes_max} bytes",
                status=431,
                code="headers_too_large",
            )
        request.fields = head
        heads.judge_host(request, head, authority)
        heads.judge_framing(request, head)
        if self._learnings < LEARNINGS_MAX:
            self._learn(request, lines, pairs)
        return request


def _too_large(observed: int, bytes_max: int) -> ProtocolError:
    return ProtocolError(
        f"the request body takes {observed} bytes or more; at most {bytes_max} are accepted",
        status=413,
        code="request_too_large",
    )


__all__ = ["HeadLimits", "Request", "RequestReader"]
