"""OpenAI's error envelope, plain and in streams, and the answer for a model nobody has.

The envelope is `{"error": {"message", "type", "param", "code"}}` with all four keys always. Events are one
line of JSON: CR and LF are escaped by JSON itself, and U+2028, U+2029 and U+0085 here, because clients that
split with str.splitlines break lines there (WHATWG, *Server-sent events*, §9.2.5 does not).
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from dandolo.errors import GatewayError, RequestError

NAME_CHARS_MAX = 128
"""A client's text in a message of ours is cut here."""
KNOWN_MAX = 10_000
"""More names than this are not compared."""
CLOSE_MAX = 24
"""Names that are compared in full, after cheap counting has ranked all of them."""
NEAREST_MAX = 3
LIKENESS_MIN = 0.5
GRAMS_MAX = 10

_encoder = msgspec.json.Encoder()


def error_body(error: GatewayError) -> bytes:
    """`error` as a whole JSON body."""
    return one_line({"error": _fields(error)})


def error_event(error: GatewayError) -> bytes:
    """`error` as an event of a chat or text completion stream; nothing, no `[DONE]` either, may follow it."""
    return b"data: " + error_body(error) + b"\n\n"


def responses_error_event(error: GatewayError, sequence_number: int) -> bytes:
    """`error` as an event of a Responses stream (openai-python: ResponseErrorEvent).

    `sequence_number` is one more than that of the stream's last event, 0 when there was none.
    """
    fields = _fields(error)
    data = {
        "type": "error",
        "code": fields["code"],
        "message": fields["message"],
        "param": fields["param"],
        "sequence_number": sequence_number,
    }
    return b"event: error\ndata: " + one_line(data) + b"\n\n"


def model_not_found(name: str, known: Iterable[str]) -> RequestError:
    """The 404 for a model that no provider has, naming up to three near ones.

    `known` are the names this caller may see: they are repeated to them.
    """
    near = nearest(name, known)
    message = f"the model '{printable(name)}' does not exist or is not available to this key"
    if near:
        message += "; did you mean " + " or ".join(f"'{printable(other)}'" for other in near) + "?"
    return RequestError(message, status=404, code="model_not_found", param="model")


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of `known` that are like `name`, the likest first.

    difflib over 10,000 names takes seconds, so words and letter groups in common choose the 24 names that
    are compared in full (10,000 names: about 10 ms, and only for a 404).
    """
    wanted = name[:NAME_CHARS_MAX].casefold()
    if not wanted:
        return []
    words = sorted({w for w in _WORDS.findall(wanted) if len(w) > 1}, key=len, reverse=True)[:6]
    grams = sorted({wanted[i : i + 3] for i in range(len(wanted) - 2)})
    grams = grams[:: max(1, -(-len(grams) // GRAMS_MAX))]
    parts = [*words, *grams]
    folded = ((other[:NAME_CHARS_MAX].casefold(), other) for other in itertools.islice(known, KNOWN_MAX))
    ranked = heapq.nlargest(
        CLOSE_MAX,
        ((sum([part in low for part in parts]), -len(low), low, other) for low, other in folded),
    )
    tail = wanted.rpartition("/")[2]
    matcher = difflib.SequenceMatcher(autojunk=False)
    scored: list[tuple[float, str]] = []
    for _, _, low, other in ranked:
        best = 0.0
        for one, two in {(wanted, low), (tail, low.rpartition("/")[2])}:
            matcher.set_seqs(one, two)
            # A name that differs in its vendor's prefix only is as near as can be, but not the same.
            best = max(best, matcher.ratio() if one == wanted else 0.99 * matcher.ratio())
        if best >= LIKENESS_MIN:
            scored.append((-best, other))
    return [other for _, other in sorted(scored)[:NEAREST_MAX]]


def printable(text: str) -> str:
    """A client's `text` for a message: cut at 128 characters, what is not printable escaped."""
    shown = text[:NAME_CHARS_MAX]
    if not shown.isprintable():
        # isprintable is false for C0, C1, lone surrogates, line separators and direction marks.
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return shown if len(text) <= NAME_CHARS_MAX else shown + "…"


def one_line(data: dict[str, Any]) -> bytes:
    """`data` as JSON without any byte sequence that some client takes for the end of a line."""
    try:
        encoded = _encoder.encode(data)
    except UnicodeEncodeError:  # a lone surrogate in a client's text
        encoded = _encoder.encode(_mended(data))
    for character, escape in _LINE_ENDS:
        if character in encoded:
            encoded = encoded.replace(character, escape)
    return encoded


_WORDS = re.compile(r"[^\W_]+")
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def _fields(error: GatewayError) -> dict[str, str | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _mended(item) for key, item in value.items()}
    return value
