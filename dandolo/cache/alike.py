"""Which part of a call is the question whose wording may vary, and the rest that may not.

Only a single turn of plain text, with or without a system prompt before it. Everything else of the body, the
system prompt among it, must be equal to the byte as in the exact key.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec

from dandolo.api.body import JsonBody
from dandolo.cache.key import KEY_BYTES, canonical
from dandolo.cache.semantic import Asking, form_digest, normal_form

_any = msgspec.json.Decoder()
_raws = msgspec.json.Decoder(list[msgspec.Raw])
_json = msgspec.json.Encoder()
_SYSTEM = ("system", "developer")
QUESTION_BYTES_MAX = 4096
"""A message of more has no normal form (`semantic.TEXT_CHARS_MAX`), whatever its characters."""


def asking(secret: bytes, context: bytes, scope: str, model: str, body: JsonBody) -> Asking | None:
    """What calls that ask the same have in common; None when the call is not such a question."""
    raw = body.fields.get("messages")
    if raw is None:
        return None
    try:
        messages = _raws.decode(raw)
        if not messages or len(messages) > 2 or len(messages[-1]) > QUESTION_BYTES_MAX:
            return None
        question = _plain(messages[-1])
        if question is None or question["role"] != "user":
            return None
        if len(messages) == 2:
            before = _plain(messages[0])
            if before is None or before["role"] not in _SYSTEM:
                return None
        form = normal_form(question["content"])
        if form is None:
            return None
        rest = {name: value for name, value in body.fields.items() if name != "messages"}
        rest["messages"] = msgspec.Raw(_json.encode(messages[:-1]))
        others = canonical(JsonBody(_json.encode(rest), rest))
    except (ValueError, RecursionError):
        return None
    params = hmac.digest(secret, b"rest\0%d\0%b%b" % (len(context), context, others), "sha256")[:KEY_BYTES]
    return Asking(scope, model, b"", params, form_digest(secret, form))


def _plain(raw: msgspec.Raw) -> dict[str, Any] | None:
    """A message of role and text and nothing else, read as every parser reads it."""
    message = _any.decode(raw)
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return None
    if not all(isinstance(value, str) for value in message.values()):
        return None
    # A name that stands twice would be read differently by others: two members have two colons outside of texts.
    return message if _colons(bytes(raw)) == 2 else None


def _colons(raw: bytes) -> int:
    """Colons outside of strings."""
    count, inside, escaped = 0, False, False
    for letter in raw:
        if escaped:
            escaped = False
        elif inside:
            if letter == 0x5C:
                escaped = True
            elif letter == 0x22:
                inside = False
        elif letter == 0x22:
            inside = True
        elif letter == 0x3A:
            count += 1
    return count
