"""How long an answer may be given again: its class, read from the request, and the seconds that follow from it.

The first class that matches wins. A class chooses a lifetime only; two requests of one key always have the
same bytes, so a class that is wrong cannot give a wrong answer, at worst an old one. Expiry is absolute and set once,
when the answer is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import msgspec

from dandolo.api.body import JsonBody
from dandolo.cache.words import heard


class TtlClass(IntEnum):
    """What kind of answer it is. Stored as its number."""

    NEGATIVE = 0
    """A refusal that would be given again."""
    IMAGE = 1
    EMBEDDING = 2
    SET = 3
    """Somebody said how long: the configuration, the key or the request."""
    ANALYSIS = 4
    """Tools, a JSON schema, attachments, more than two messages, or over 4,000 characters."""
    CODE = 5
    VOLATILE = 6
    """Depends on the day: kept only when forced."""
    QUESTION = 7
    """One turn of at most 400 characters on one line."""
    OTHER = 8


DAY_S = 86_400.0
TTL_S: dict[TtlClass, float] = {
    TtlClass.NEGATIVE: 15.0,
    TtlClass.IMAGE: 7 * DAY_S,
    TtlClass.EMBEDDING: 30 * DAY_S,
    TtlClass.ANALYSIS: 1_800.0,
    TtlClass.CODE: 3_600.0,
    TtlClass.VOLATILE: 300.0,
    TtlClass.QUESTION: DAY_S,
    TtlClass.OTHER: 1_800.0,
}
JITTER = 0.10
"""Lives are cut by up to so much, so that what was filled together does not expire together."""
STALE_SHARE = 0.10
"""The part of its life for which an expired answer is still given while a new one is fetched."""
STALE_IF_ERROR_S = DAY_S
_OUTLASTS_ERRORS = frozenset((TtlClass.QUESTION, TtlClass.IMAGE))

CHARS_MAX = 4_000
QUESTION_CHARS_MAX = 400
TURNS_MAX = 2
BODY_BYTES_MAX = 64 * 1024
"""Text in a larger body has more than CHARS_MAX characters in any spelling that is not mostly white space."""

IMAGE_ENDPOINTS = frozenset(("images.generations", "image.generate"))
_STRUCTURED = ("response_format", "output_format", "text", "output_config", "guided_json", "format")


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When an answer expires (absolute, in seconds of the caller's clock) and until when it may be given stale."""

    expires: float
    stale_until: float


def lifetime(kind: TtlClass, now: float, jitter: float, ttl_s: float | None = None) -> Lifetime:
    """The lifetime of an answer filled in at `now`.

    `ttl_s` overrules the class's own; `jitter` is a random number in 0 … 1.
    """
    assert 0.0 <= jitter <= 1.0
    seconds = (TTL_S[kind] if ttl_s is None else ttl_s) * (1.0 - JITTER * jitter)
    expires = now + seconds
    # A refusal is never worth giving longer than it is known to hold.
    stale_s = 0.0 if kind is TtlClass.NEGATIVE else STALE_SHARE * seconds
    return Lifetime(expires, expires + stale_s)


def usable_until(kind: TtlClass, expires: float, stale_until: float) -> float:
    """Until when an answer may stand in for an error: 24 h beyond expiry for questions and images."""
    return max(stale_until, expires + STALE_IF_ERROR_S) if kind in _OUTLASTS_ERRORS else stale_until


class _Part(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str | None = None
    type: str | None = None
    content: str | list[_Part] | None = None
    tool_calls: list[msgspec.Raw] | None = None


_messages = msgspec.json.Decoder(list[_Message])
_texts = msgspec.json.Decoder(str | list[_Part])
_prompt = msgspec.json.Decoder(str | list[str])
_format = msgspec.json.Decoder(dict[str, msgspec.Raw])
_PLAIN_PARTS = frozenset(("text", "input_text", "output_text"))
_TURNS = frozenset(("user", "system", "developer", "assistant"))


def ttl_class(endpoint: str, body: JsonBody, *, overruled: bool = False) -> TtlClass:
    """The class of a request to `endpoint` (its name); `overruled` when somebody said how long."""
    if endpoint in IMAGE_ENDPOINTS:
        return TtlClass.IMAGE
    if endpoint == "embeddings":
        return TtlClass.EMBEDDING
    if overruled:
        return TtlClass.SET
    if endpoint == "moderations":
        # What is judged may well speak of today; the judgement does not.
        return TtlClass.OTHER
    if len(body.raw) > BODY_BYTES_MAX or _uses_tools(body) or _wants_schema(body):
        return TtlClass.ANALYSIS
    try:
        turns = _turns(body)
    except (msgspec.DecodeError, RecursionError):
        turns = None
    if turns is None or len(turns) > TURNS_MAX or sum(len(text) for _, text in turns) > CHARS_MAX:
        return TtlClass.ANALYSIS
    asked = [text for role, text in turns if role == "user"]
    # Only what the user says: a system prompt that tells the date changes with it, and so does the key.
    said = [heard(text) for text in asked]
    if any(one.code for one in said):
        return TtlClass.CODE
    if any(one.volatile for one in said):
        return TtlClass.VOLATILE
    if len(asked) == 1 and len(asked[0]) <= QUESTION_CHARS_MAX and "\n" not in asked[0].strip("\n"):
        others = {role for role, _ in turns if role != "user"}
        if others <= {"system", "developer"}:
            return TtlClass.QUESTION
    return TtlClass.OTHER


def _uses_tools(body: JsonBody) -> bool:
    return any((body.get(name) or b"[]") != b"[]" for name in ("tools", "functions"))


def _wants_schema(body: JsonBody) -> bool:
    return any((raw := body.get(name)) is not None and raw.find(b'"json') >= 0 for name in _STRUCTURED)


def _turns(body: JsonBody) -> list[tuple[str, str]] | None:
    """Roles and texts of the conversation; None when there is more in it than text."""
    turns: list[tuple[str, str]] = []
    for name in ("system", "instructions"):
        raw = body.get(name)
        if raw is not None:
            text = _joined(_texts.decode(raw))
            if text is None:
                return None
            turns.append(("system", text))
    raw = body.get("prompt")
    if raw is not None:
        prompt = _prompt.decode(raw)
        turns += [("user", text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    raw = body.get("input")
    if raw is not None and raw[:1] == b'"':
        turns.append(("user", msgspec.json.decode(raw, type=str)))
        raw = None
    for listed in (body.get("messages"), raw):
        for message in _messages.decode(listed or b"[]"):
            if message.tool_calls or message.role not in _TURNS or message.type not in (None, "message"):
                return None
            text = _joined(message.content)
            if text is None:
                return None
            turns.append((message.role, text))
    return turns


def _joined(content: str | list[_Part] | None) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.type not in _PLAIN_PARTS for part in content):
        return None
    return "\n".join(part.text or "" for part in content)
