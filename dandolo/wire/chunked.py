"""The chunked transfer coding, strictly (RFC 9112 §7.1), for requests and answers alike.

Takes bytes in any pieces and gives back the decoded content. Extensions are parsed, bounded and dropped;
trailers are validated, bounded and dropped. Bare CR or LF anywhere is an error. What a decoder refuses to
know is who sent the bytes: it raises ChunkError, and its owner decides what that means.
"""

from __future__ import annotations

import re

from dandolo.wire import fields

LINE_BYTES_MAX = 256
OVERHEAD_FREE_BYTES = 64 * 1024
TRAILER_BYTES_MAX = 32 * 1024
TRAILERS_MAX = 100

_TOKEN = rb"[" + fields.TCHAR + rb"]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# chunk-size is 1*HEXDIG: zeros in front are legal, more than 15 digits that count are not a length.
_LINE = re.compile(
    rb"0*([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)
# The usual spellings: lower case, without and with one leading zero, upper case.
_sizes: dict[bytes, int] = {
    text: size for size in range(1, 2048) for text in (b"%x" % size, b"0%x" % size, b"%X" % size, b"%04x" % size)
}

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE, _BROKEN = range(6)


class ChunkError(ValueError):
    """The bytes are not the chunked coding. Everything decoded before stays valid."""


class TrailersTooLarge(ChunkError):
    """The trailer section has more lines or bytes than its owner takes."""


class ChunkedDecoder:
    """An incremental decoder.

    `feed` returns the content that became available; `complete` tells that the terminating chunk and its
    trailers have passed, after which `rest` holds the bytes that follow the coding. `trailer_bytes_max` and
    `trailers_max` bound the trailer section. A decoder that raised decodes nothing more.
    """

    __slots__ = (
        "_left",
        "_spare",
        "_state",
        "_tail",
        "_trailer_bytes",
        "_trailer_bytes_max",
        "_trailers",
        "_trailers_max",
        "complete",
        "content_bytes",
        "rest",
    )

    def __init__(self, *, trailer_bytes_max: int = TRAILER_BYTES_MAX, trailers_max: int = TRAILERS_MAX) -> None:
        self._state = _SIZE
        self._left = 0
        self._tail = b""
        self._spare = OVERHEAD_FREE_BYTES
        self._trailers = 0
        self._trailers_max = trailers_max
        self._trailer_bytes = 0
        self._trailer_bytes_max = trailer_bytes_max
        self.content_bytes = 0
        self.complete = False
        self.rest = b""

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a chunk."""
        return self._state == _SIZE and not self._tail

    def whole(self, data: bytes) -> int:
        """The size of the content when `data` is exactly one chunk, as nearly every read of a stream is; else 0.

        The content is then `data[-2 - size : -2]`, and the decoder stays where it is. Neither its framing nor its
        content is counted: the second always outweighs the first.
        """
        if self._state != _SIZE or self._tail:
            return 0
        end = data.find(b"\r\n", 0, 8)
        size = _sizes.get(data[:end], 0)
        return size if size > 15 and len(data) == end + size + 4 and data[-2:] == b"\r\n" else 0

    def feed(self, data: bytes) -> bytes:
        """Decode `data` and return the content in it. Raises ChunkError; the decoder is then of no more use."""
        if self._state == _SIZE and not self._tail:
            # Nearly every read of a stream is whole chunks: for each one look-up and one slice.
            size = self.whole(data)
            if size:
                self.content_bytes += size
                self._spare += 3 * size - len(data)
                return data[-2 - size : -2]
            find, size = data.find, len(data)
            pieces: list[bytes] = []
            at = gained = 0
            while at < size:
                end = find(b"\r\n", at, at + 8)
                if end < 0:
                    break
                length = _sizes.get(data[at:end], 0)
                start = end + 2
                stop = start + length
                # A chunk of one or two bytes costs more framing than it allows: those are judged slowly.
                if length < 3 or not data.startswith(b"\r\n", stop):
                    break
                pieces.append(data[start:stop])
                gained += 2 * length - start + at - 2
                at = stop + 2
            if at:
                self._spare += gained
                content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                self.content_bytes += len(content)
                if at == size:
                    return content
                if data.startswith(LAST_CHUNK, at) and at + 5 == size:
                    self._state = _DONE
                    self.complete = True
                    return content
                return content + self._feed_guarded(data[at:])
        return self._feed_guarded(data)

    def _feed_guarded(self, data: bytes) -> bytes:
        try:
            return self._feed_slowly(data)
        except ChunkError:
            self._state = _BROKEN
            raise

    def _feed_slowly(self, data: bytes) -> bytes:
        if self._state == _BROKEN:
            raise ChunkError("the chunked coding was broken before")
        if self._tail:
            data = self._tail + data
            self._tail = b""
        pieces: list[bytes] = []
        at = 0
        size = len(data)
        while True:
            if self._state == _DATA:
                take = min(self._left, size - at)
                if take:
                    pieces.append(data[at : at + take])
                    at += take
                    self._left -= take
                    self.content_bytes += take
                if self._left:
                    break
                self._state = _DATA_END
            if self._state == _DATA_END:
                end = data[at : at + 2]
                if end != b"\r\n":
                    if end in (b"", b"\r"):
                        break
                    raise ChunkError("chunk data is not followed by CRLF")
                at += 2
                self._state = _SIZE
            if self._state == _DONE:
                self.rest += data[at:]
                at = size
                break
            line = self._line(data, at)
            if line is None:
                break
            at += len(line) + 2
            if self._state == _SIZE:
                self._size_line(line)
            else:
                self._trailer_line(line)
        self._tail = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, data: bytes, at: int) -> bytes | None:
        in_trailers = self._state == _TRAILER
        bytes_max = self._trailer_bytes_max if in_trailers else LINE_BYTES_MAX
        end = data.find(b"\n", at, at + bytes_max + 2)
        if end < 0:
            if len(data) - at > bytes_max + 1:
                kind = TrailersTooLarge if in_trailers else ChunkError
                raise kind(f"a line of the chunked coding is longer than {bytes_max} bytes")
            head = data[at:]
            if b"\r" in head[:-1]:
                raise ChunkError("a bare CR in a line of the chunked coding")
            return None
        line = data[at : end - 1] if end > at else b""
        if end == at or data[end - 1] != 0x0D or b"\r" in line:
            raise ChunkError("a line of the chunked coding does not end in CRLF")
        return line

    def _size_line(self, line: bytes) -> None:
        size = _sizes.get(line)
        if size is None:
            match = _LINE.fullmatch(line)
            if match is None:
                raise ChunkError("a chunk-size line is malformed")
            size = int(match[1], 16)
        self._spare += 2 * size - len(line) - 4
        if self._spare < 0:
            raise ChunkError("the chunked coding carries more framing than content")
        self._left = size
        self._state = _DATA if size else _TRAILER

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self._state = _DONE
            self.complete = True
            return
        self._trailers += 1
        self._trailer_bytes += len(line) + 2
        if self._trailers > self._trailers_max or self._trailer_bytes > self._trailer_bytes_max:
            raise TrailersTooLarge("the trailer section is too large")
        try:
            fields.parse_line(line)
        except fields.FieldError as error:
            raise ChunkError(f"in the trailers: {error}") from None


def encode_chunk(content: bytes) -> bytes:
    """One chunk around `content`, which must not be empty (an empty chunk would end the body)."""
    return b"%x\r\n%b\r\n" % (len(content), content)


LAST_CHUNK = b"0\r\n\r\n"
