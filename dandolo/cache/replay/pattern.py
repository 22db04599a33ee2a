"""What a stream's chunks have in common, so that most of them need not be decoded.

Nearly all chunks of a stream are the same bytes but for a few letters of text. Learnt from one chunk that was
decoded, a pattern takes the text out of those that follow it exactly (0.5 µs instead of 3); whatever differs
anywhere else, or has an escape in its text, is decoded as before. OpenAI's padding, random letters at the end of
each chunk, is allowed for.
"""

from __future__ import annotations

from typing import Any

_PADDING = b',"obfuscation":"'
_CLOSING = b'"}'
TEXT_KEYS = ("content", "reasoning_content", "reasoning")


class Pattern:
    """The bytes before and after a text, and where the text goes."""

    __slots__ = ("_padded", "_suffix", "parts", "prefix")

    def __init__(self, prefix: bytes, suffix: bytes, padded: bool, parts: list[str]) -> None:
        self.prefix = prefix
        self._suffix = suffix
        self._padded = padded
        self.parts = parts

    def text(self, data: bytes) -> str | None:
        """The text of a chunk that has this pattern; None for every other chunk."""
        if not data.startswith(self.prefix):
            return None
        at = len(self.prefix)
        end = data.find(b'"', at)
        suffix = self._suffix
        if self._padded:
            if not (data.startswith(suffix, end) and data.endswith(_CLOSING)):
                return None
            if not data[end + len(suffix) : -len(_CLOSING)].isalnum():
                return None
        elif len(data) - end != len(suffix) or not data.endswith(suffix):
            return None
        if data.find(b"\\", at, end) >= 0:
            return None
        text = data[at:end].decode()
        # A raw control character is no JSON; the decoder is to say so.
        return text if text.isprintable() else None

    def frames(self, data: bytes) -> bool:
        """Whether a chunk that had to be decoded still says what the pattern says, but for its text."""
        if not data.startswith(self.prefix):
            return False
        return data.rfind(self._suffix) >= len(self.prefix) if self._padded else data.endswith(self._suffix)


def learn(data: bytes, said: dict[str, Any], texts: dict[str, list[str]]) -> Pattern | None:
    """The pattern of a chunk whose only choice `said` was decoded from `data`; None when it has more than text.

    What the chunk says besides must be something that may be said again without effect.
    """
    delta = said.get("delta", said)
    if said.get("finish_reason") or said.get("logprobs") or not isinstance(delta, dict):
        return None
    if delta is said:
        names = ["text"]
    else:
        names = [name for name, value in delta.items() if value is not None and name != "role"]
    if len(names) != 1 or names[0] not in ("text", *TEXT_KEYS) or names[0] not in texts:
        return None
    name, value = names[0], delta[names[0]]
    key = b'"%b":' % name.encode()
    if not isinstance(value, str) or not value.isprintable() or data.count(key) != 1:
        return None
    start = data.index(key) + len(key)
    while data[start : start + 1] == b" ":
        start += 1
    text = value.encode()
    end = start + 1 + len(text)
    if b'"' in text or b"\\" in text or data[start:end] != b'"' + text or data[end : end + 1] != b'"':
        return None
    suffix = data[end:]
    padding = suffix.find(_PADDING)
    if padding >= 0:
        return Pattern(data[: start + 1], suffix[: padding + len(_PADDING)], True, texts[name])
    return Pattern(data[: start + 1], suffix, False, texts[name])
