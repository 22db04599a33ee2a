"""What of a call's body steers the choice of a provider, besides the model: its size, its needs, its opening.

Pure readings of a judged body, made only where there is a choice. Nothing here refuses anything: what is odd
is the provider's to judge, and then says nothing about the choice.
"""

from __future__ import annotations

import msgspec
import xxhash

from dandolo.api.body import JsonBody
from dandolo.api.call import Call
from dandolo.api.usage import estimate_tokens

OPENING_BYTES_MIN = 4096
"""Shorter openings are kept in no provider's prompt cache: OpenAI's and Anthropic's begin at 1,024 tokens."""
OPENING_BYTES_MAX = 64 * 1024
NEEDS = ("tools", "json_schema", "vision", "audio")
"""Capabilities whose need a body shows."""
_KEY_BYTES_MAX = 512
_INLINE = b";base64,"
_INLINE_MAX = 256

_array = msgspec.json.Decoder(list[msgspec.Raw])


def tokens_in(call: Call) -> float:
    """Tokens of the request, estimated from its bytes; data sent inline (images, audio) is not text and not counted."""
    raw = call.raw
    size = len(raw)
    at = raw.find(_INLINE)
    for _ in range(_INLINE_MAX):
        if at < 0:
            break
        end = raw.find(b'"', at)
        if end < 0:
            break
        size -= end - at
        at = raw.find(_INLINE, end)
    return float(estimate_tokens(size))


_last_length: list[tuple[msgspec.Raw, float]] = [(msgspec.Raw(b"0"), 0.0)]
"""What was said last: most callers say the same again and again, and reading it costs four times as much."""


def tokens_out_max(call: Call) -> float:
    """The longest answer the caller allows, 0 when the body does not say."""
    body = call.json
    if body is None:
        return 0.0
    fields = body.fields
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name in fields:
            said = fields[name]
            last, tokens = _last_length[0]
            if said == last:
                return tokens
            raw = body.get(name)
            if raw is not None and len(raw) <= 12 and raw.isdigit():
                tokens = float(raw)
                _last_length[0] = (msgspec.Raw(raw), tokens)
                return tokens
    return 0.0


def needs(call: Call) -> frozenset[str]:
    """Capabilities the call cannot do without: "tools", "json_schema", "vision", "audio"."""
    body = call.json
    if body is None:
        return frozenset()
    wanted: list[str] = []
    tools = body.get("tools")
    if tools is not None and tools[:1] == b"[" and tools[1:].lstrip()[:1] != b"]":
        wanted.append("tools")
    schema = body.get("response_format")
    if schema is not None and schema.find(b'"json_schema"') >= 0:
        wanted.append("json_schema")
    raw = call.raw
    # A quote within JSON text is escaped, so these are keys or whole values.
    if raw.find(b'"image_url"') >= 0 or raw.find(b'"input_image"') >= 0:
        wanted.append("vision")
    if raw.find(b'"input_audio"') >= 0:
        wanted.append("audio")
    return frozenset(wanted)


def opening(call: Call, tenant: str) -> bytes | None:
    """A hash of what a provider may have cached of this conversation, None where nothing is worth staying for.

    The caller's own `prompt_cache_key` or `session_id` (its tenant's: others may use the same words), else
    the tools, the instructions and the first message of the user, which later turns repeat. Of one model: no other
    has it cached.
    """
    body = call.json
    if body is None:
        return None
    for name in ("prompt_cache_key", "session_id"):
        raw = body.get(name)
        if raw is not None and 2 < len(raw) <= _KEY_BYTES_MAX and raw[0] == 0x22:
            return xxhash.xxh3_64_digest(b"%b\0%b\0%b" % (call.model.encode(), tenant.encode(), raw))
    if len(call.raw) < OPENING_BYTES_MIN:
        return None
    hashed = xxhash.xxh3_64(call.model.encode())
    size = 0
    for piece in _opening_pieces(body):
        size += len(piece)
        hashed.update(piece[:OPENING_BYTES_MAX])
    return hashed.digest() if size >= OPENING_BYTES_MIN else None


def _opening_pieces(body: JsonBody) -> list[bytes]:
    pieces = [raw for name in ("tools", "system", "instructions") if (raw := body.get(name)) is not None]
    messages = body.get("messages") or body.get("input")
    if messages is None:
        return pieces
    if messages[0] != 0x5B or len(messages) > OPENING_BYTES_MAX:
        # As far as it goes: a conversation this long has an opening longer than any first turn.
        pieces.append(messages[:OPENING_BYTES_MIN])
        return pieces
    turns = _array.decode(messages)
    for turn in turns[:2]:
        text = bytes(turn)
        pieces.append(text)
        if text.find(b'"user"', 0, 4096) >= 0:
            break
    return pieces
