"""The normal form of a question, and the aliases that lead from it to an exact key.

`normal_form` writes single-turn questions that surely ask the same in the same way, and never two that may ask
different things: it is served without anybody judging, so in doubt it keeps what it sees. It folds white space,
typography, capitals, courtesies, contractions, a few spellings and question frames; it keeps numbers, units,
negation, quantifiers, modality, tense, order, quoted and code literals to the byte. Other languages than English
keep everything but white space and the mark at the end. The rules live in `dandolo.cache.normal`.

`Aliases` remembers which exact key answered a form, per scope, model, system prompt and parameters. It holds
digests only. Whether a call may use either (its class, the caller's consent, privacy mode) is the caller's business.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from typing import NamedTuple

from dandolo.cache.normal import courtesy, folding, frames
from dandolo.cache.normal import words as w
from dandolo.cache.normal.surface import PLACE, SYMBOL_MARK, literal, read, visible

TEXT_CHARS_MAX = 400
"""Longer texts have no normal form: they are not questions, and two of them are never the same but by copying."""

NORMAL_VERSION = 1
"""Goes into every digest of a form; to be raised whenever a rule changes, so that no old alias meets a new form."""

ALIASES_MAX = 10_000

_ENGLISH, _FOREIGN, _AS_WRITTEN = "\x01", "\x02", "\x03"
"""First character of a form: by which rules it was made. Forms of different rules are never equal."""
_LITERAL, _LITERAL_END, _PAYLOAD = "\x04", "\x05", "\x07"
"""What no eligible text contains, so that no text can write another's form."""

_ANNOUNCED = re.compile(
    r"(?:i have |i've got )?(?:just |a |one )*(?:quick |simple |small |short )?question(?: for you)?\s*[:.,\-–—]\s+",
    re.I,
)
_FOREIGN_QUESTION = re.compile(r"(?<=\w)\s*[?？]\Z")
_NUMBERS_STOPPED = re.compile(r"[\d\s,;.-]*\d[.?]\Z")
_PLAIN_LITERAL = re.compile(r".[A-Za-z]+(?: [A-Za-z]+)*.\Z", re.DOTALL)


def normal_form(text: str) -> str | None:
    """A string that is equal for two texts only if they make the same request.

    None for what is not eligible: an empty text, one over `TEXT_CHARS_MAX` characters or of several lines, or one
    with control or invisible characters. The time taken is bounded by the length.
    """
    if len(text) > TEXT_CHARS_MAX:
        return None
    text = text.strip()
    if not text or not visible(text):
        return None
    announced = _ANNOUNCED.match(text)
    if announced and text[announced.end() :].split(" ", 1)[0].lower() in w.OPENER:
        text = text[announced.end() :]
    reading = read(text)
    if reading is None or not reading.tokens:
        return _AS_WRITTEN + text
    lows = [token.lower() for token in reading.tokens]
    payload, literals = reading.payload, reading.literals
    if _NUMBERS_STOPPED.match(payload):
        payload = payload[:-1]
    about_words = False
    if folding.is_english(lows):
        tokens, about_words = folding.fold(reading.tokens, lows)
        form = _ENGLISH + _english(tokens, about_words)
    else:
        form = _FOREIGN + _foreign(reading.head)
    if payload:
        form += _PAYLOAD + payload
    if literals:
        head, mark, payload = form.partition(_PAYLOAD)
        single = about_words and w.PROGRAMMING.isdisjoint(lows)
        for at, written in enumerate(literals):
            place = chr(PLACE + at)
            kept = literal(written, single and _PLAIN_LITERAL.match(written) is not None)
            head = head.replace(place, f"{_LITERAL}{kept}{_LITERAL_END}")
            payload = payload.replace(place, written)
        form = head + mark + payload
    return form


def _english(tokens: list[str], about_words: bool) -> str:
    asked = courtesy.strip(tokens, about_words)
    left = asked.tokens
    if asked.embedded:
        left = frames.straighten(left)
    question_mark = asked.question_mark
    if left[-1] == SYMBOL_MARK + "?" and courtesy.mark_stands_apart(left):
        left, question_mark = left[:-1], True
    # "You like it?" asks, "You like it." tells; where the words ask, the mark says nothing new.
    question_mark = question_mark and not frames.asks_without_mark(left)
    if "," in left and not about_words:
        left = frames.without_pause(left)
    if not about_words:
        left = frames.rewrite(left)
    form = " ".join(left)
    return f"{form} ?" if question_mark and left[0] not in w.QUESTION else form


def _foreign(head: str) -> str:
    """White space and, after a question word of its language, the capital and the mark; all else as written."""
    chunks = head.split()
    if chunks[0][0] == "¿" and chunks[-1][-1] == "?" and len(chunks[0]) > 1:
        chunks[0] = chunks[0][1:]
    if chunks[0].lower() in w.FOREIGN_OPENER:
        chunks[0] = chunks[0].lower()
        return _FOREIGN_QUESTION.sub("", " ".join(chunks))
    return " ".join(chunks)


def form_digest(secret: bytes, form: str) -> bytes:
    """The keyed digest by which a form is remembered: 20 bytes, of no use to whoever lacks `secret`."""
    return hmac.digest(secret, b"%d\0%b" % (NORMAL_VERSION, form.encode()), "sha256")[:20]


class Asking(NamedTuple):
    """What two calls must share besides the form: a hit never crosses any of these."""

    scope: str
    model: str
    system: bytes
    """Digest of the system prompt, b"" without one."""
    params: bytes
    """Digest of every other parameter that counts in the exact key."""
    form: bytes
    """`form_digest` of the question."""


class Aliases:
    """Which exact key answered an asking: at most `size` of them, least recently used first to go.

    An alias lives as long as the entry it leads to was given, never longer, and finding it does not extend it.
    Whoever finds one looks the key up in the cache as usual, and discards the alias when nothing is there.
    """

    __slots__ = ("_kept", "_size")

    def __init__(self, size: int = ALIASES_MAX) -> None:
        assert size > 0
        self._size = size
        self._kept: OrderedDict[Asking, tuple[bytes, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, asking: Asking, now: float) -> bytes | None:
        """The exact key, or None; `now` in seconds on the clock of `put`'s `expires`."""
        found = self._kept.get(asking)
        if found is None:
            return None
        key, expires = found
        if now >= expires:
            del self._kept[asking]
            return None
        self._kept.move_to_end(asking)
        return key

    def put(self, asking: Asking, key: bytes, expires: float, now: float) -> None:
        """Let `asking` lead to `key` until `expires`, instead of whatever it led to; nothing if that is past."""
        if now >= expires:
            return
        self._kept[asking] = (key, expires)
        self._kept.move_to_end(asking)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def discard(self, asking: Asking, key: bytes) -> None:
        """Forget that `asking` leads to `key`; a newer alias to another key stays."""
        found = self._kept.get(asking)
        if found is not None and found[0] == key:
            del self._kept[asking]

    def clear(self) -> None:
        self._kept.clear()
