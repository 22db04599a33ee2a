"""Events made ready: bytes between which an id and a time are put, and how texts are cut into pieces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import msgspec

EVENTS_MAX = 64
PIECE_CHARS_MIN = 24

line = msgspec.json.Encoder().encode
"""A value as one line of JSON."""

DONE = b"data: [DONE]\n\n"


class Replay:
    """Events made ready. `count` is how many there are with usage asked for."""

    __slots__ = ("_end", "_opening", "_pieces", "_timed", "_usage", "count")

    def __init__(self, opening: bytes, pieces: list[bytes], end: bytes, count: int, usage: bytes | None = None) -> None:
        """`opening` has `%b` for the id and, where a stream tells its time, `%d`. It goes between the pieces."""
        self._opening = opening
        self._timed = b"%d" in opening
        self._pieces = pieces
        self._usage = usage
        self._end = end
        self.count = count

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(map(len, self._pieces)) + len(self._usage or b"")

    def events(self, id_: str, created: int, *, usage: bool) -> bytes:
        """The whole stream, through its end, for one caller. `usage`: whether it asked for the usage chunk."""
        opening = self._opening % ((line(id_), created) if self._timed else (line(id_),))
        pieces = self._pieces
        if usage and self._usage is not None:
            pieces = [*pieces[:-1], pieces[-1] + b"data: ", self._usage]
        return opening.join(pieces) + self._end


def joined(chunks: list[bytes]) -> list[bytes]:
    """Chunks without their openings, as pieces between which openings go: each is one event of a data line."""
    return [b"data: ", *[chunk + b"\n\ndata: " for chunk in chunks[:-1]], chunks[-1] + b"\n\n"]


def cut(texts: Sequence[str], room: int, offsets: Sequence[int] = ()) -> list[list[str]]:
    """Every text in pieces, at most `room` altogether (but one for each text); `offsets` are the longest text's."""
    total = sum(map(len, texts))
    size = max(PIECE_CHARS_MIN, -(-total // max(1, room - len(texts))))
    longest = max(texts, key=len, default="")
    return [_pieces(text, size, offsets if text is longest else ()) for text in texts]


def _pieces(text: str, size: int, offsets: Sequence[int]) -> list[str]:
    ends = range(size, len(text), size)
    if offsets:
        # The recorded ends nearest to the equal ones: no more of them, and rising.
        near = [offsets[min(bisect_left(offsets, end), len(offsets) - 1)] for end in ends]
        ends = sorted({end for end in near if 0 < end < len(text)})  # type: ignore[assignment]
    starts = [0, *ends]
    return [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]


def plain(value: Any) -> bool:
    """Whether a value is short enough to be repeated in every chunk: no object, no array."""
    return not isinstance(value, (dict, list))
