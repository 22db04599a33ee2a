"""What a provider says about a failure, out of every form of error body known, in bounded work.

    {"error": "text"}                                   Venice; with "code", "details", "issues" beside it
    {"error": {"message", "type", "param", "code"}}     OpenAI, Azure (+ innererror), llama.cpp (int code)
    {"error": {"code": 429, "message", "metadata"}, "user_id"}      OpenRouter
    {"error": ["text", …]}                              Venice, 2024
    {"object": "error", "message": "text" | {"detail": […]}}        vLLM, Mistral
    {"detail": "text" | [{"loc", "msg", "type"}, …]}    FastAPI
    {"type": "error", "error": {"type", "message"}}     Anthropic
    {"message": "text"}, {"errors": […]}, [{"error": …}], plain text, HTML, nothing at all

Nothing is judged here: that is what a fault does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from dandolo.api.profiles.scrub import cut

BODY_BYTES_MAX = 64 * 1024
"""What is looked at of an error body; echoes of the request (FastAPI's `input`) may be megabytes."""
MESSAGE_CHARS_MAX = 2048
WORD_CHARS_MAX = 128
LIST_ITEMS_MAX = 5
DEPTH_MAX = 4


@dataclass(frozen=True, slots=True)
class Said:
    """The parts of an error body; all of them the provider's text, none of it scrubbed.

    `words` are its codes and types in lower case, the most telling first; `number` is a code that is an
    HTTP status; `wait_s` a wait named in the body; `structured` whether it was JSON.
    """

    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None
    words: tuple[str, ...] = ()
    number: int | None = None
    wait_s: float | None = None
    structured: bool = False


NOTHING = Said()

_MESSAGE = re.compile(rb'"(?:message|msg|error|detail)"\s{0,8}:\s{0,8}"((?:[^"\\\x00-\x1f]|\\.){1,4096})')
_CODES = re.compile(rb'"(?:error_type|code|type)"\s{0,8}:\s{0,8}"([A-Za-z0-9_.\-]{1,128})"')


def read(body: bytes) -> Said:
    """What `body`, an error's whole body or its beginning, says; looks at 64 KiB of it, never raises."""
    head = body[:BODY_BYTES_MAX].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head or head[:1] == b"<":  # HTML and XML are never understood, and never passed on
        return NOTHING
    if head[:1] in (b"{", b"[", b'"'):
        obj = _decoded(head) if len(body) <= BODY_BYTES_MAX else None
        if obj is not None:
            return read_object(obj)
        return _torn(head)
    text = head[: 8 * MESSAGE_CHARS_MAX].decode("utf-8", "replace")
    return Said(message=_text(text)) if _is_prose(text) else NOTHING


def read_object(obj: Any) -> Said:
    """What a decoded error body says; any JSON value will do."""
    if isinstance(obj, list):
        # Google's OpenAI layer wraps its error object in a list.
        dicts = [item for item in obj[:LIST_ITEMS_MAX] if isinstance(item, dict)]
        return read_object(dicts[0]) if dicts else Said(message=_text(obj), structured=True)
    if not isinstance(obj, dict):
        return Said(message=_text(obj), structured=True)
    error = obj.get("error")
    inner: dict[str, Any] = error if isinstance(error, dict) else obj
    metadata = inner.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    message = _text(error) if error else _text(obj)
    detail = _first_detail(inner, obj)
    if isinstance(error, str) and message and (why := _text(detail.get("message"))):
        # Venice: "Invalid request parameters" alone helps nobody; its first issue names the field.
        message = f"{message} ({_param(detail) or 'body'}: {why})"
    return Said(
        message=message,
        # "error" is the envelope's own type on Messages and Responses, not the failure's.
        type=None if inner.get("type") == "error" else _name(inner.get("type")),
        param=_name(inner.get("param")) or _param(detail),
        code=_code(inner.get("code")) or _code(obj.get("code")),
        words=tuple(dict.fromkeys(_words(obj, inner, metadata, detail))),
        number=_status(inner.get("code")) or _status(inner.get("status_code")) or _status(obj.get("code")),
        wait_s=_wait(obj, inner, metadata),
        structured=True,
    )


def _decoded(head: bytes) -> Any:
    for attempt in (head, None):
        try:
            if attempt is None:
                attempt = head.decode("utf-8", "replace").encode()
            return msgspec.json.decode(attempt)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return None


def _torn(head: bytes) -> Said:
    """JSON that is cut off or broken: its first message and codes, taken by pattern."""
    found = _MESSAGE.search(head)
    message = None
    if found is not None:
        quoted = b'"' + found[1] + b'"'
        try:
            message = msgspec.json.decode(quoted, type=str)
        except (msgspec.MsgspecError, ValueError):
            message = found[1].decode("utf-8", "replace")
        if head[found.end() : found.end() + 1] != b'"':  # ended by the bound, not by its quote
            message = cut(message, len(message) - 1)
    words = []
    for match in _CODES.finditer(head):
        words.append(match[1].decode("ascii").lower())
        if len(words) == LIST_ITEMS_MAX:
            break
    return Said(message=_text(message), words=tuple(words), structured=True)


def _text(value: Any, depth: int = 0) -> str | None:
    """The human text in `value`: strings as they are, lists joined, objects by their message."""
    if isinstance(value, str):
        return cut(value.strip(), MESSAGE_CHARS_MAX) or None
    if depth >= DEPTH_MAX:
        return None
    if isinstance(value, list):
        parts = [part for item in value[:LIST_ITEMS_MAX] if (part := _text(item, depth + 1))]
        return cut("; ".join(parts), MESSAGE_CHARS_MAX) or None
    if isinstance(value, dict):
        for key in ("message", "msg", "detail", "error", "errors", "title"):
            if text := _text(value.get(key), depth + 1):
                where = _location(value.get("loc"))
                return cut(f"{where}: {text}", MESSAGE_CHARS_MAX) if where else text
    return None


def _location(loc: Any) -> str:
    """Pydantic's `loc`, ["body", "messages", 0, "role"], as messages.0.role."""
    if not isinstance(loc, list):
        return ""
    parts = [str(part)[:WORD_CHARS_MAX] for part in loc[:8] if isinstance(part, str | int)]
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)


def _first_detail(inner: dict[str, Any], outer: dict[str, Any]) -> dict[str, Any]:
    """The first item of a validation report, wherever it hangs."""
    message = inner.get("message")
    places = (
        message.get("detail") if isinstance(message, dict) else None,
        inner.get("detail"),
        outer.get("detail"),
        outer.get("issues"),
    )
    for place in places:
        if isinstance(place, list) and place and isinstance(place[0], dict):
            first: dict[str, Any] = place[0]
            return first
    return {}


def _param(detail: dict[str, Any]) -> str | None:
    return _location(detail.get("loc") or detail.get("path"))[:WORD_CHARS_MAX] or None


def _words(
    obj: dict[str, Any], inner: dict[str, Any], metadata: dict[str, Any], detail: dict[str, Any]
) -> Iterator[str]:
    details = inner.get("details")
    nested = inner.get("innererror")
    candidates = [
        metadata.get("error_type"),
        inner.get("error_type"),
        obj.get("error_type"),
        details.get("error_code") if isinstance(details, dict) else None,
        nested.get("code") if isinstance(nested, dict) else None,
        inner.get("code"),
        obj.get("code"),
        inner.get("type"),
        inner.get("status"),
        detail.get("type"),
        metadata.get("provider_code"),
    ]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate:
            yield candidate[:WORD_CHARS_MAX].lower()
    # OpenRouter's moderation and guardrail refusals are told by their metadata alone.
    if "flagged_input" in metadata or "reasons" in metadata or "patterns" in metadata:
        yield "content_policy_violation"


def _wait(obj: dict[str, Any], inner: dict[str, Any], metadata: dict[str, Any]) -> float | None:
    """Seconds to wait: OpenRouter's `retry_after`, Hugging Face's `estimated_time` of a loading model."""
    availability = metadata.get("availability")
    for place in (inner, metadata, availability if isinstance(availability, dict) else {}, obj):
        for key in ("retry_after", "estimated_time"):
            value = place.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 86_400:
                return float(value)
    return None


def _name(value: Any) -> str | None:
    return value[:WORD_CHARS_MAX] or None if isinstance(value, str) else None


def _code(value: Any) -> str | None:
    # A number, even in quotes (Mistral's "1300"), is not a code that a client could switch on.
    return _name(value) if isinstance(value, str) and not value.isdigit() else None


def _status(value: Any) -> int | None:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
        return value
    return None


def _is_prose(text: str) -> bool:
    """Whether plain text is fit to be shown: mostly printable."""
    strange = sum(not (c.isprintable() or c in "\r\n\t") or c == "\ufffd" for c in text)
    return strange * 20 <= len(text)
