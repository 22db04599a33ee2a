"""Texts that stay raw JSON: a look at head and tail, and an estimate of their tokens, both at a bounded price."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw

CHARS_PER_TOKEN = 4.0
"""OpenAI's rule of thumb for English; alphabets of other languages come near it with today's vocabularies."""
TOKENS_PER_WIDE_CHAR = 0.7
"""Chinese, Japanese, Korean and emoji: between a half and one token a character."""
SAMPLE_BYTES = 2048
CUT_BYTES_MAX = 13
"""The longest piece of an escape or a character that a cut may leave: a surrogate pair is twelve bytes."""
PARTS_MAX = 8

_string = msgspec.json.Decoder(str)
_WIDE = re.compile("[\u2e80-\U0010ffff]+")


def glimpse(raw: Raw, head: int = SAMPLE_BYTES, tail: int = SAMPLE_BYTES) -> str:
    """The text of a raw JSON string, or its first and last bytes as text where it is longer; "" for what is none."""
    size = len(raw)
    view = memoryview(raw)
    if size < 2 or view[0] != 0x22:
        return ""
    if size <= head + tail + CUT_BYTES_MAX:
        return _decoded(bytes(view[1:-1]), 0, 0)
    beginning = _decoded(bytes(view[1 : 1 + head]), 0, CUT_BYTES_MAX)
    return f"{beginning}\n{_decoded(bytes(view[size - 1 - tail : size - 1]), CUT_BYTES_MAX, 0)}" if tail else beginning


def glimpse_all(raws: Sequence[Raw], head: int = SAMPLE_BYTES, tail: int = SAMPLE_BYTES) -> str:
    """Several texts as one, a line each; where they are many or long, the first and last ones in part."""
    if len(raws) == 1:
        return glimpse(raws[0], head, tail)
    if len(raws) > PARTS_MAX:
        raws = [*raws[: PARTS_MAX // 2], *raws[-PARTS_MAX // 2 :]]
    if sum(map(len, raws)) > head + tail:
        head, tail = head // len(raws), tail // len(raws)
    return "\n".join([glimpse(raw, head, tail) for raw in raws])


def tokens(raw: Raw) -> int:
    """About how many tokens a raw JSON string, or any other raw JSON, has.

    Four characters a token where the text is ASCII, its escapes counted as what they stand for. Else as many
    tokens a byte as the head and the tail have. Usually within a quarter for prose; low by up to a third for
    code and digits.
    """
    size = len(raw)
    data = bytes(raw)
    escapes = data.count(b"\\") if size > 2 else 0
    if data.isascii() and (not escapes or b"\\u" not in data):
        if escapes:
            escapes -= data.count(b"\\\\")
        return int((max(size - 2, 0) - escapes) / CHARS_PER_TOKEN + 0.75)
    text = glimpse(raw)
    if not text:  # not a string: definitions of tools, say
        return int(size / CHARS_PER_TOKEN)
    wide = len(text) - len(_WIDE.sub("", text))
    counted = wide * TOKENS_PER_WIDE_CHAR + (len(text) - wide) / CHARS_PER_TOKEN
    share = max(1.0, (size - 2) / (2 * SAMPLE_BYTES)) if size > 2 * SAMPLE_BYTES + CUT_BYTES_MAX else 1.0
    return int(counted * share + 0.75)


def _decoded(data: bytes, front: int, back: int) -> str:
    """A piece of the inside of a JSON string, less up to `front` and `back` bytes that a cut has spoilt."""
    end = len(data)
    for at in range(front + 1):
        for stop in range(end, end - back - 1, -1):
            try:
                return _string.decode(b'"%b"' % data[at:stop])
            except ValueError:
                continue
    return ""
