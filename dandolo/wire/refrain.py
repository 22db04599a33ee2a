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

_KEYS = (b'content":"', b'"text":"', b'"delta":"', b'thinking":"', b'_json":"')
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*')


class Refrain:
    """What the chunks of one stream have in common.

    A chunk repeats when its length is in `shapes` (to the bytes it opens with and the size of its content),
    it begins with those bytes, ends with `closing`, and `text(chunk, len(opening), len(chunk) - closing_bytes)`
    matches. Reading these is left to the caller: it does so for every chunk, and a call would cost as much again.
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
        if start > OPENING_BYTES_MAX or chunk[end : end + 1] != b'"':
            return
        prefix, closing = chunk[len(chunk) - size - 2 : start], chunk[end:]
        shapes = self.shapes
        if prefix != self._prefix or closing != self.closing:
            self._prefix, self.closing, self.closing_bytes = prefix, closing, len(closing)
            shapes.clear()
        elif len(shapes) >= SHAPES_MAX:
            shapes.clear()
        shapes[len(chunk)] = (chunk[:start], size)
