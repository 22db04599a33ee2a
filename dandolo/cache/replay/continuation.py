"""The rest of a stream that broke off, taken from another answer to the same request.

Only where the other answer begins, character for character, with what was said: whoever was sent the first part then
has what he would have had from the second alone. Chat completions and completions of one choice, as far as nothing but
text was said; for everything else there is no such rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dandolo.api.endpoints import Dialect
from dandolo.cache.replay import chat
from dandolo.cache.replay.events import DONE

_any = msgspec.json.Decoder()
_line = msgspec.json.Encoder().encode
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")


class _Unlike(Exception):
    """Raised within: there is no rest."""


def rest(dialect: Dialect, said: Iterable[bytes], body: bytes) -> bytes | None:
    """Events that follow those whose data was `said`, through [DONE], so that all together are the answer `body`.

    None where they cannot be: another text, another dialect, or something that is not as its dialect says.
    """
    if dialect not in ("chat", "completions"):
        return None
    try:
        return _rest(dialect == "chat", said, body)
    except (_Unlike, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _rest(is_chat: bool, said: Iterable[bytes], body: bytes) -> bytes:
    texts: dict[str, str] = {}
    opening: dict[str, Any] = {}
    finished = False
    for data in said:
        if data.strip() == b"[DONE]":
            return b""
        chunk = _any.decode(data)
        opening = opening or chunk
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                raise _Unlike
            finished = finished or bool(choice.get("finish_reason"))
            for name, value in (choice.get("delta") or {}).items() if is_chat else [("text", choice.get("text"))]:
                if not value or name == "role":
                    continue
                if not isinstance(value, str) or name not in (*chat.TEXTS, "text"):
                    raise _Unlike
                texts[name] = texts.get(name, "") + value
    if finished:
        return DONE
    answer = _any.decode(body)
    (choice,) = answer["choices"]
    holder = choice["message"] if is_chat else choice
    if texts.get("content"):
        # Its thoughts are over: how the other answer came to the same words is nobody's business.
        for name in _THOUGHTS:
            texts.pop(name, None)
            holder.pop(name, None)
    for name, text in texts.items():
        if not holder[name].startswith(text):
            raise _Unlike
        holder[name] = holder[name][len(text) :]
    made = chat.chat(answer, ()) if is_chat else chat.completions(answer, ())
    if made is None:
        raise _Unlike
    return made.events(str(opening.get("id", "")), int(opening.get("created") or 0), usage=True)
