"""The provider-facing half of HTTP/1.1, without I/O: an answer's bytes in, head and content out.

A reader belongs to one connection and reads one answer at a time. It decides how the body is framed
(RFC 9112 §6.3), refuses what two parsers could read differently, skips a bounded number of interim
answers, tells a truncated body from a complete one, and says afterwards whether the connection may be
used again. It never stores a body: content goes to the caller as it arrives.
"""

from __future__ import annotations

import re

from dandolo.errors import UpstreamInvalid, UpstreamUnavailable
from dandolo.wire import fields
from dandolo.wire.chunked import ChunkedDecoder, ChunkError
from dandolo.wire.repeat import Repetition, Repetitions

HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 256
INTERIM_MAX = 16

# status-line = HTTP-version SP status-code SP [ reason-phrase ]; some servers leave out the last space.
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_REMEMBERED_MAX = 256
_status_lines: dict[bytes, tuple[int, int]] = {}
LEARNINGS_MAX = 16
"""Answers of one connection from which repetitions are learned."""
_repetitions = Repetitions(frozenset((b"transfer-encoding", b"connection", b"content-type", b"content-encoding")))

_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\r\r")
_IDLE, _HEAD, _LENGTH, _CHUNKED, _UNTIL_EOF, _DONE, _BROKEN = range(7)

_ONCE = frozenset((b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"retry-after"))


class Response:
    """The head of an answer: `status`, lower-case `fields`, and the declared body `length` (None: unknown)."""

    __slots__ = ("fields", "length", "minor", "repeat", "status")

    def __init__(self, status: int, minor: int, head: dict[bytes, bytes]) -> None:
        self.status = status
        self.minor = minor
        self.fields = head
        self.length: int | None = None
        self.repeat: Repetition | None = None


class ResponseReader:
    """Reads answers from one connection. Call `begin` before each request is sent."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_head_only",
        "_interim",
        "_keep_alive",
        "_learnings",
        "_left",
        "_repeat",
        "_scanned",
        "_state",
        "_stream_repeat",
        "received",
        "response",
    )  # fmt: skip

    def __init__(self) -> None:
        self._state = _IDLE
        self._buffer = b""
        self._scanned = 0
        self._interim = 0
        self._left = 0
        self._keep_alive = True
        self._head_only = False
        self._decoder: ChunkedDecoder | None = None
        self.received = False
        self.response: Response | None = None
        self._repeat: Repetition | None = None
        self._stream_repeat: Repetition | None = None
        self._learnings = 0

    def begin(self, *, head_only: bool = False) -> None:
        """Expect one answer; `head_only` when the request was a HEAD."""
        assert self._state in (_IDLE, _DONE)
        assert not self._buffer
        self._state = _HEAD
        self._scanned = 0
        self._interim = 0
        self._head_only = head_only
        self.received = False

    @property
    def complete(self) -> bool:
        """Whether the whole answer has been read."""
        return self._state == _DONE

    @property
    def reusable(self) -> bool:
        """Whether another request may go out on this connection: complete, persistent, nothing left over."""
        return self._state == _DONE and self._keep_alive and not self._buffer

    def head(self, data: bytes) -> Response | None:
        """Take bytes before the body; the final answer's head once it is complete.

        Body bytes that came along are fetched with `body(b"")`. Raises UpstreamInvalid, after which the
        reader interprets nothing more.
        """
        if self._state != _HEAD:
            self._break()
            raise UpstreamInvalid("the provider sent bytes that no request asked for")
        self.received = True
        try:
            return self._head(data)
        except UpstreamInvalid:
            self._break()
            raise

    def whole(self, data: bytes) -> bytes | None:
        """The body of an answer that comes whole in `data` and whose head repeats an earlier one; sets `response`.

        None when it is anything else; `data` is then to be given to `head`.
        """
        repeat = self._repeat
        if repeat is None or self._buffer or self._state != _HEAD or self._head_only:
            return None
        end = data.find(b"\r\n\r\n")
        head = repeat.match(data[:end].split(b"\r\n")) if 0 < end <= HEAD_BYTES_MAX else None
        if head is None:
            return None
        length = fields.parse_length(head[b"content-length"])
        end += 4
        if length is None or len(data) - end != length:
            return None
        self.received = True
        self._keep_alive = True
        self._state = _DONE
        response = Response(200, 1, head)
        response.length = length
        response.repeat = repeat
        self.response = response
        return data[end:]

    def _head(self, data: bytes) -> Response | None:
        buffer = self._buffer + data if self._buffer else data
        while True:
            end = buffer.find(b"\r\n\r\n", self._scanned)
            if end < 0:
                if len(buffer) > HEAD_BYTES_MAX + 3:
                    raise UpstreamInvalid(f"the provider's answer has more than {HEAD_BYTES_MAX} bytes of headers")
                # What cannot become a head is refused now, not when the provider's deadline passes.
                if not buffer.startswith(b"HTTP/1.") and not b"HTTP/1.".startswith(buffer):
                    raise UpstreamInvalid("the provider's answer does not begin with an HTTP/1.1 status line")
                if _BARE_LINE_END.search(buffer, max(0, self._scanned - 1)) is not None:
                    raise UpstreamInvalid("a bare CR or LF in the head of the provider's answer")
                self._scanned = max(0, len(buffer) - 3)
                self._buffer = buffer
                return None
            if end > HEAD_BYTES_MAX:
                raise UpstreamInvalid(f"the provider's answer has more than {HEAD_BYTES_MAX} bytes of headers")
            self._scanned = 0
            response = None if self._stream_repeat is None else self._repeated(buffer[:end])
            if response is None:
                response = self._judge(buffer[:end].split(b"\r\n"))
            buffer = buffer[end + 4 :]
            if response is not None:
                self._buffer = buffer
                return response

    def _repeated(self, head: bytes) -> Response | None:
        """The head of a chunked stream that repeats an earlier one; None when it is anything else."""
        repeat = self._stream_repeat
        assert repeat is not None
        fields = None if self._head_only else repeat.match(head.split(b"\r\n"))
        if fields is None:
            return None
        self._keep_alive = True
        self._state = _CHUNKED
        self._decoder = ChunkedDecoder()
        response = Response(200, 1, fields)
        response.repeat = repeat
        return response

    def body(self, data: bytes) -> bytes:
        """Take bytes of the body and return the content in them. Raises UpstreamInvalid for broken framing."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        state = self._state
        if state == _CHUNKED:
            decoder = self._decoder
            assert decoder is not None
            try:
                content = decoder.feed(data)
            except ChunkError as error:
                self._break()
                raise UpstreamInvalid(f"the provider's chunked body is broken: {error}") from None
            if decoder.complete:
                self._buffer = decoder.rest
                self._decoder = None
                self._state = _DONE
            return content
        if state == _LENGTH:
            have = len(data)
            if have < self._left:
                self._left -= have
                return data
            self._state = _DONE
            if have == self._left:
                return data
            self._buffer = data[self._left :]
            return data[: self._left]
        if state == _UNTIL_EOF:
            return data
        if state == _BROKEN:
            return b""
        # Bytes beyond the answer: kept only so that `reusable` says no; never read.
        self._buffer = data[:1]
        return b""

    @property
    def at_chunk(self) -> ChunkedDecoder | None:
        """The decoder of a chunked body when nothing else stands between its bytes and whoever reads them."""
        return self._decoder if self._state == _CHUNKED and not self._buffer else None

    def eof(self) -> None:
        """The provider closed. Returns when that ended the answer; raises when it cut it short."""
        if self._state == _UNTIL_EOF:
            self._state = _DONE
            self._keep_alive = False
            return
        self._keep_alive = False
        if self._state == _HEAD:
            if self.received:
                raise UpstreamUnavailable("the provider closed the connection within the headers of its answer")
            raise UpstreamUnavailable("the provider closed the connection before it answered")
        if self._state in (_LENGTH, _CHUNKED):
            raise UpstreamInvalid("the provider closed the connection before its answer was complete")
        if self._state == _BROKEN:
            raise UpstreamInvalid("the provider closed the connection after an answer that is not HTTP")

    def _break(self) -> None:
        """Interpret no later byte of this connection."""
        self._state = _BROKEN
        self._keep_alive = False
        self._buffer = b""
        self._decoder = None

    @property
    def delimited_by_eof(self) -> bool:
        """Whether only the end of the connection can end this body (truncation cannot be told)."""
        return self._state == _UNTIL_EOF

    def _judge(self, lines: list[bytes]) -> Response | None:
        line = lines[0]
        known = _status_lines.get(line)
        if known is None:
            match = _STATUS_LINE.fullmatch(line)
            if match is None:
                raise UpstreamInvalid("the provider's status line is not HTTP/1.1 with a status of 100 to 599")
            known = (int(match[2]), int(match[1]))
            if len(_status_lines) >= _REMEMBERED_MAX:
                _status_lines.clear()
            if len(line) <= fields.REMEMBERED_LINE_BYTES_MAX:
                _status_lines[line] = known
        status, minor = known
        if len(lines) - 1 > HEADERS_MAX:
            raise UpstreamInvalid(f"the provider's answer has more than {HEADERS_MAX} headers")
        try:
            pairs = fields.parse_lines(lines[1:])
        except fields.FieldError as error:
            raise UpstreamInvalid(f"the head of the provider's answer holds {error}") from None
        if status < 200:
            # RFC 9110 §15.2: interim answers are skipped; a protocol we did not ask for is not.
            if status == 101:
                raise UpstreamInvalid("the provider answered 101 to a request that asked for no upgrade")
            if any(name == b"transfer-encoding" for name, _ in pairs):
                # RFC 9112 §6.1: "A server MUST NOT send a Transfer-Encoding header field in any response with a
                # status code of 1xx": whoever believed it would read what follows otherwise than we do.
                raise UpstreamInvalid("the provider sent an interim answer with a Transfer-Encoding")
            self._interim += 1
            if self._interim > INTERIM_MAX:
                raise UpstreamInvalid(f"the provider sent more than {INTERIM_MAX} interim answers")
            return None
        head = dict(pairs)
        if len(head) != len(pairs):
            head = _joined(pairs)
        response = Response(status, minor, head)
        self._frame(response, head)
        if self._learnings < LEARNINGS_MAX:
            self._learn(response, lines, pairs)
        return response

    def _learn(self, response: Response, lines: list[bytes], pairs: list[fields.Field]) -> None:
        """Let the head of a usual answer be recognised next time."""
        self._learnings += 1
        if response.status != 200 or response.minor != 1 or not self._keep_alive or self._head_only:
            return
        kind = response.fields.get(b"content-type", b"")
        if self._state == _CHUNKED:
            if kind.startswith(b"text/event-stream"):
                self._stream_repeat = _repetitions.learn(lines, pairs)
        elif self._state != _UNTIL_EOF and kind.startswith(b"application/json"):
            self._repeat = _repetitions.learn(lines, pairs)

    def _frame(self, response: Response, head: dict[bytes, bytes]) -> None:
        length = head.get(b"content-length")
        coding = head.get(b"transfer-encoding")
        connection = head.get(b"connection")
        self._keep_alive = response.minor == 1
        if connection is not None and connection != b"keep-alive":
            options = fields.list_members(connection)
            self._keep_alive = b"close" not in options and (response.minor == 1 or b"keep-alive" in options)
        elif connection is not None:
            self._keep_alive = True
        if coding is not None and length is not None:
            raise UpstreamInvalid("the provider's answer has both Content-Length and Transfer-Encoding")
        size: int | None = None
        if length is not None:
            size = fields.parse_length(length)
            if size is None:
                raise UpstreamInvalid("the Content-Length of the provider's answer is not a number of 1 to 15 digits")
        if coding is not None and (coding.lower() != b"chunked" or response.minor == 0):
            raise UpstreamInvalid("the Transfer-Encoding of the provider's answer is not a single 'chunked'")
        if self._head_only or response.status in (204, 304):
            # RFC 9112 §6.3 rule 1: no body, whatever the fields say.
            response.length = 0
            self._state = _DONE
            # A 204 that announces a body (RFC 9110 §8.6: it MUST NOT) may yet send it: to nobody.
            if response.status == 204 and (size or coding is not None):
                self._keep_alive = False
        elif coding is not None:
            self._state = _CHUNKED
            self._decoder = ChunkedDecoder()
        elif size is not None:
            response.length = size
            self._left = size
            self._state = _LENGTH if size else _DONE
        else:
            self._keep_alive = False
            self._state = _UNTIL_EOF


def _joined(pairs: list[fields.Field]) -> dict[bytes, bytes]:
    head: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name not in head:
            head[name] = value
        elif name in _ONCE:
            raise UpstreamInvalid(f"the provider's answer has the header {name.decode('ascii')} twice")
        else:
            head[name] += b", " + value
    return head
