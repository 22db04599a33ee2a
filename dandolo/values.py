"""Values from outside made fit to be shown: cut to a length, without anything a terminal or a parser would obey.

What is not printable (C0 and C1 controls, DEL, line and paragraph separators, direction marks, unassigned
code points) becomes the escape that JSON has for it, so that all forms of the log show the same thing.
"""

from __future__ import annotations

VALUE_BYTES_MAX = 256
"""Bytes of UTF-8 of one value, before escaping. Four bytes a character at most."""
CHARS_SURE = VALUE_BYTES_MAX // 4
"""A text of at most so many characters fits whatever they are."""
_MORE = "…"
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def cut(text: str, bytes_max: int = VALUE_BYTES_MAX) -> str:
    """`text` in at most `bytes_max` bytes of UTF-8 (at least 4), marked with `…` where something is missing.

    Never ends within a character. Lone surrogates, which UTF-8 does not have, become U+FFFD.
    """
    if len(text) <= bytes_max // 4 and text.isprintable():
        return text
    # Cut first: what follows then costs no more for a megabyte than for a line.
    head = text[: bytes_max + 1]
    try:
        encoded = head.encode()
    except UnicodeEncodeError:
        head = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in head)
        encoded = head.encode()
    if len(encoded) <= bytes_max:
        return head
    return encoded[: bytes_max - len(_MORE.encode())].decode("utf-8", "ignore") + _MORE


def escaped(text: str) -> str:
    """`text` with everything that is not printable as a JSON escape (`\\n`, `\\u001b`). Quotes stay as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def fit(text: str, bytes_max: int = VALUE_BYTES_MAX) -> str:
    """`text` cut, then escaped."""
    return escaped(cut(text, bytes_max))


def _escape(character: str) -> str:
    short = _SHORT.get(character)
    if short is not None:
        return short
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
