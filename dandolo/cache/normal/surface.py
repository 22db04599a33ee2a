"""From characters to tokens: literals set aside, white space and typography folded, nothing understood yet.

A text becomes a `Reading`: tokens as written, literals (anything in quotes or backticks) kept to the byte behind
placeholders, and the payload after a colon, kept to the byte too. What this module cannot take apart with
certainty (invisible characters, quotes without partners, layout that may be code) has no reading, and its
normal form is the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LITERALS_MAX = 32
"""More quoted pieces than this in a question, and it is no question we know how to read."""

PLACE = 0xE000
"""Literals stand in the tokens as private-use characters from here on; a text that has its own is not read."""

_LITERAL = re.compile(
    r"`[^`]+`|\"[^\"]*\"|“[^“”\"]*”|„[^„“”\"]*[“”]|«[^«»]*»|「[^「」]*」|『[^『』]*』"
    r"|(?<![\w'])'(?=[^\s'])[^']*'(?![\w'])|(?<![\w‘])‘[^‘’']*’(?![\w’])"
)
_QUOTES = {'"': '"', "“": '"', "„": '"', "«": '"', "「": '"', "『": '"', "'": "'", "‘": "'", "`": "`"}
_STRAY_QUOTE = re.compile(r"[\"`“”„«»「」『』‘]|(?<!\w)['’]|(?<![sS])['’](?!\w)")

_APOSTROPHE = re.compile(r"(?<=[^\W\d_])[’ʼ＇](?=[^\W\d_])|(?<=[sS])’(?!\w)")
_DASH = re.compile(r"(?<=\w)[‐‑–−](?=\w)")
_LIGATURE = re.compile(r"[ﬀ-ﬄ]")
_INVISIBLE = frozenset(("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"))

_WORD = re.compile(r"(\(*)([^\W\d_]+(?:['-][^\W\d_]+)*'?)([,;:.?!)]*)\Z")
_NUMBER = re.compile(r"(\(*)([$€£¥]?)(\d+(?:[.,]\d+)*)(%|°[CF]?|[A-Za-z]*)([,;:.?!)]*)\Z")
_MARKED = re.compile(r"(.*[\w)\]}+#%°\ue000-\uf8ff])([,;:.?])\Z|([\ue000-\uf8ff])(!)\Z", re.DOTALL)

ABBREVIATIONS = {"a.m.": "am", "p.m.": "pm", "A.M.": "am", "P.M.": "pm", "U.S.": "US", "U.K.": "UK"}
SYMBOL_MARK = "\x06"
"""Before punctuation that stands by itself: the thing asked about, for all we know."""


class Reading(NamedTuple):
    """A text taken apart."""

    head: str
    """The text up to and with a colon that announces something, typography folded, literals behind placeholders."""
    tokens: list[str]
    """The words, numbers, literals and marks of the head."""
    literals: list[str]
    """What the placeholders stand for, with its quotes."""
    payload: str
    """What follows the colon, as written but for placeholders."""


def visible(text: str) -> bool:
    """Whether every character is one that a reader sees or a plain space."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(char) in _INVISIBLE for char in text)


def read(text: str) -> Reading | None:
    """`text` (trimmed, `visible`) as tokens; None when it cannot be taken apart with certainty."""
    literals: list[str] = []
    plain = text.isascii()
    head = text
    if not plain or '"' in text or "'" in text or "`" in text:

        def aside(match: re.Match[str]) -> str:
            literals.append(match[0])
            return chr(PLACE + len(literals) - 1)

        head = _LITERAL.sub(aside, text)
        if len(literals) > LITERALS_MAX or _STRAY_QUOTE.search(head):
            return None
    payload = ""
    if ": " in head:
        head, _, payload = head.partition(": ")
        head, payload = f"{head}:", payload.strip()
    if not plain:
        head = _typography(head)
    tokens: list[str] = []
    odd = False
    for chunk in head.split():
        if chunk.isalpha():
            tokens.append(chunk)
        elif _take_apart(chunk, tokens):
            odd = True
    if odd and "  " in head:
        return None  # the white space may be part of code
    return Reading(head, tokens, literals, payload)


def literal(written: str, single_is_double: bool) -> str:
    """A literal with its quotes in one style: curly as straight, «» and „“ as double; single ones only on request."""
    mark = _QUOTES[written[0]]
    return ('"' if single_is_double and mark == "'" else mark) + written[1:-1]


def _typography(text: str) -> str:
    """The folding of NFKC that changes no meaning: composition, spaces, apostrophes and hyphens inside words.

    Not superscripts (x² is not x2), not full-width letters (somebody may ask about them), not fractions.
    """
    text = unicodedata.normalize("NFC", text)
    text = _APOSTROPHE.sub("'", text)
    text = _DASH.sub("-", text)
    return _LIGATURE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _take_apart(chunk: str, tokens: list[str]) -> bool:
    """Append the tokens of a chunk that is not all letters; true when one of them is kept as written."""
    match = _WORD.match(chunk)
    if match:
        lead, core, tail = match.groups()
        if core == "vs" and tail == ".":
            tail = ""
        tokens.extend(lead)
        tokens.append(core)
        tokens.extend(tail)
        return False
    match = _NUMBER.match(chunk)
    if match:
        lead, currency, number, unit, tail = match.groups()
        tokens.extend(lead)
        if unit and not currency and unit in GLUED_UNITS:
            tokens += (number, GLUED_UNITS[unit])
        else:
            tokens.append(currency + number + unit)
        tokens.extend(tail)
        return bool(unit)
    bare = chunk.rstrip(",;:?!")
    if bare in ABBREVIATIONS:
        tokens.append(ABBREVIATIONS[bare])
        tokens.extend(chunk[len(bare) :])
        return False
    match = _MARKED.match(chunk)
    if match:
        # An exclamation mark stays with what is no word: `:wq!` is not `:wq`.
        tokens.extend(part for part in match.groups() if part)
        return True
    if not any(char.isalnum() for char in chunk):
        only_literal = len(chunk) == 1 and PLACE <= ord(chunk) <= PLACE + LITERALS_MAX
        tokens.append(chunk if only_literal else SYMBOL_MARK + chunk)
        return not only_literal and len(chunk) > 1
    tokens.append(chunk)
    return True


GLUED_UNITS = {
    "%": "percent", "km": "km", "kg": "kg", "cm": "cm", "mm": "mm", "am": "am", "pm": "pm", "AM": "am", "PM": "pm",
    "GB": "GB", "MB": "MB", "TB": "TB", "KB": "KB", "°C": "°C", "°F": "°F", "ft": "ft", "mph": "mph", "lbs": "lbs",
    "mg": "mg", "ml": "ml", "kWh": "kWh", "MHz": "MHz", "GHz": "GHz", "km²": "km²",
}  # fmt: skip
"""Units that mean the same with and without a space before them, in the only case they are written in."""
