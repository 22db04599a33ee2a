"""Chunks that repeat: recognising one that differs from an earlier one only in the text it carries.

A model's stream says the same JSON again and again around a few letters. A `Refrain` is what stands around
them: a later chunk with the same bytes before and after, and one JSON string between, means the same but for
its text. Whatever was concluded from an earlier one (no error, no end, no usage) holds for it, and nobody has
to search it. The text is checked to be the inside of one JSON string: no quote that is not escaped, no control
character, so neither a field nor an event can begin or end in it.
"""

from __future__ import annotations

import re

SHAPES_MAX = 64
"""Lengths of chunks that are remembered; beyond, all are forgotten and learned anew."""
OPENING_BYTES_MAX = 4096
CHUNK_BYTES_MAX = 16 * 1024
"""Longer chunks are nobody's usual ones, and whoever reads such must know of it."""

_KEYS = (b'content":"', b'"text":"', b'"delta":"', b'thinking":"', b'_json":"')
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*')


class Refrain:
    """What the chunks of one stream have in common.

    `shapes` tells for a chunk's length what one that repeats opens with, and the size of its content (what is not
    there yet is to be had from `shape`). It repeats when it begins with that, ends with `closing`, and
    `text(chunk, len(opening), len(chunk) - closing_bytes)` matches. Reading these is left to the caller: it does
    so for every chunk, and a call would cost as much again.
    """

    __slots__ = ("_prefix", "closing", "closing_bytes", "shapes")

    text = staticmethod(_TEXT.fullmatch)

    def __init__(self) -> None:
        self._prefix = b""
        self.closing = b""
        self.closing_bytes = 0
        self.shapes: dict[int, tuple[bytes, int]] = {}

    def learn(self, chunk: bytes, size: int) -> None:
        """Take note of a whole chunk that was found harmless; `size` is that of its content.

        It must be one line of size, the content, and a line end, as `ChunkedDecoder.whole` says.
        """
        for key in _KEYS:
            at = chunk.rfind(key)
            if at >= 0:
                break
        else:
            return
        start = at + len(key)
        inside = _TEXT.match(chunk, start)
        assert inside is not None
        end = inside.end()
        if start > OPENING_BYTES_MAX or len(chunk) > CHUNK_BYTES_MAX or chunk[end : end + 1] != b'"':
            return
        prefix, closing = chunk[len(chunk) - size - 2 : start], chunk[end:]
        shapes = self.shapes
        if prefix != self._prefix or closing != self.closing:
            self._prefix, self.closing, self.closing_bytes = prefix, closing, len(closing)
            shapes.clear()
        elif len(shapes) >= SHAPES_MAX:
            shapes.clear()
        # As this provider spells the size.
        shapes[len(chunk)] = (chunk[:start], size)

    def shape(self, chunk_bytes: int) -> tuple[bytes, int] | None:
        """The entry of `shapes` for a length that is not there: as it must be if sizes are spelled as usual."""
        prefix = self._prefix
        if not prefix or chunk_bytes > CHUNK_BYTES_MAX:
            return None
        size = chunk_bytes - 6
        if size > 0xFF:
            size -= 1 if size <= 0x1000 else 2
        line = b"%x\r\n" % size if size > 0xF else b""
        if len(line) + size + 2 != chunk_bytes or size < len(prefix) + self.closing_bytes - 2:
            return None
        if len(self.shapes) >= SHAPES_MAX:
            self.shapes.clear()
        shape = self.shapes[chunk_bytes] = (line + prefix, size)
        return shape
