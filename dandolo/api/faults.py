"""What a provider's failing answer means: whose fault it is, who may be asked next, what the client is told.

`classify` judges an HTTP answer, `in_body_error` an error inside a 200, `in_stream_error` one inside a
stream. All three read the body into what was *said*, decide a kind from the status, the provider's own
codes and, where a provider gives nothing else, its wording, and derive everything else from the kind.

Two rules outrank whatever a body says: an answer that refuses our credentials is never repeated to a client
(it may hold the key), and a failure the client caused is never tried elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from dandolo.api import hints
from dandolo.api.profiles import Kind, Profile, Scope
from dandolo.api.profiles.generic import GENERIC
from dandolo.api.profiles.meaning import BY_KIND, CODES, SIZES, STATUS_OF, TEXTS, Meaning, by_status, client_status
from dandolo.api.profiles.said import NOTHING, Said, read, read_object
from dandolo.api.profiles.scrub import cut, scrub
from dandolo.errors import GatewayError, Retry, UpstreamError, UpstreamInvalid, UpstreamTimeout

ERROR_BUDGET_S = 30.0
"""Venice blocks an account for 30 s; a call inside the window fails and counts again."""

CHECKED_BYTES_MAX = 256 * 1024
"""An answer up to this size is decoded when it may hold an error; a larger one is judged by its beginning."""

MESSAGE_CHARS_MAX = 2048

_NO_HEADERS: Mapping[bytes, bytes] = {}


@dataclass(frozen=True, slots=True)
class Fault:
    """A provider's failure, judged.

    `status`             what the provider answered; for an error inside a 200, what it would have been
    `scope`              what it says something about: this request, this model on this account, the account
    `take_over`          another account or provider may be asked
    `counts_for_breaker` it speaks against the provider's health
    `client_status`, `message`, `type`, `param`, `code`  what the client is told when nobody takes over;
                         free of secrets
    `retry_after_s`      leave `scope` alone for so long; None: the provider does not say
    """

    kind: Kind
    status: int
    scope: Scope
    take_over: bool
    counts_for_breaker: bool
    client_status: int
    message: str
    type: str
    param: str | None
    code: str
    retry_after_s: float | None = None

    def error(self) -> GatewayError:
        """This fault as the exception that reaches the client."""
        form: type[UpstreamError] = UpstreamError
        if self.kind is Kind.TIMEOUT:
            form = UpstreamTimeout
        elif self.kind in {Kind.REDIRECT, Kind.INVALID}:
            form = UpstreamInvalid
        return form(
            self.message,
            status=self.client_status,
            type=self.type,
            code=self.code,
            param=self.param,
            retry=Retry.OTHER if self.take_over else Retry.NEVER,
            retry_after_s=self.retry_after_s,
        )


def classify(
    profile: Profile,
    status: int,
    headers: Mapping[bytes, bytes],
    body: bytes,
    now_unix: float,
    *,
    secrets: Iterable[str] = (),
) -> Fault:
    """Judge an answer of `status` with the (beginning of the) `body`; at most 64 KiB are looked at.

    `headers` has lower-case names; `now_unix` is a Unix time; `secrets` (the account's key) never reach the
    message. A status below 300 or beyond 599 means that the caller found the answer unusable.
    """
    said = read(body) if status >= 400 else NOTHING
    return _judge(profile, status, said, headers, now_unix, secrets)


def may_hold_error(body: bytes) -> bool:
    """Whether `in_body_error` would have to look closer; False for the usual answer without any error."""
    return body.rfind(_NEEDLE) >= 0


def in_body_error(body: bytes, profile: Profile = GENERIC, *, secrets: Iterable[str] = ()) -> Fault | None:
    """The error inside an answer of status 200, or None.

    A top-level `error` that is not empty (OpenRouter, old llama.cpp), `object` or `type` "error", or
    `choices[0].error` and finish_reason "error" (OpenRouter). The usual answer without any costs one search:
    a quote inside JSON text is escaped, so `"error"` with both quotes is a key or a whole value. Backwards,
    since CPython's rfind tests the needle's first byte first and a quote is rarer in prose than an r
    (1 KiB: 0.22 µs against 0.43 µs for find and 0.55 µs for re; bounding the search would add 0.03 µs).
    """
    if body.rfind(b'"error"') < 0:
        return None
    return _inside(body, CHECKED_BYTES_MAX, profile, secrets)


def in_stream_error(data: bytes, profile: Profile = GENERIC, *, secrets: Iterable[str] = ()) -> Fault | None:
    """The error that one event's data carries, or None.

    `{"error": …}` (OpenAI, OpenRouter, vLLM), `choices[0].finish_reason` "error" (OpenRouter), `{"type":
    "error"}` (Anthropic, Responses), `response.failed` (Responses), `x_groq.error` (Groq). Data beyond
    256 KiB is judged by its beginning.
    """
    if data.rfind(b'"error"') < 0:
        return None
    return _inside(data, CHECKED_BYTES_MAX, profile, secrets)


def in_event_field_error(event: bytes, profile: Profile = GENERIC, *, secrets: Iterable[str] = ()) -> Fault | None:
    """The error in a raw event's `error:` *field*, or None.

    llama.cpp's servers of 2025 and before wrote `error: {json}` where a `data:` belongs (ggml-org/llama.cpp
    #16109); a conforming SSE parser ignores such a field, and the `[DONE]` after it looks like success.
    """
    if not event.startswith(b"error:") and b"\nerror:" not in event and b"\rerror:" not in event:
        return None
    found = _ERROR_FIELD.search(event)
    if found is None:
        return None
    said = read(found[1])
    return _judge(profile, _status_said(said, profile), said, _NO_HEADERS, 0.0, secrets)


_NEEDLE = b'"error"'
_NULL = re.compile(rb"\s{0,16}:\s{0,16}null\b")
_NULLS_MAX = 16
_ERROR_FIELD = re.compile(rb"(?:^|[\r\n])error:[ ]?([^\r\n]{0,65536})")
_BEGINS_WITH_ERROR = re.compile(rb'\s{0,16}\{\s{0,16}"error"\s{0,16}:\s{0,16}(?!null\b)')
_CLEAN = re.compile(r"[A-Za-z0-9_.\-\[\]:/$]{1,128}")


def _inside(data: bytes, bytes_max: int, profile: Profile, secrets: Iterable[str]) -> Fault | None:
    # Every object of Responses says `"error": null`; do not decode for that.
    place = min(len(data), bytes_max)
    for _ in range(_NULLS_MAX):
        place = data.rfind(_NEEDLE, 0, place)
        if place < 0:
            return None
        if _NULL.match(data, place + len(_NEEDLE)) is None:
            break
    if len(data) > bytes_max:
        if _BEGINS_WITH_ERROR.match(data) is None:
            return None
        said = read(data)
    else:
        try:
            obj = msgspec.json.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None  # whoever relays the body finds out by itself that it is no JSON
        error = _error_in(obj)
        if error is None:
            return None
        said = read_object(error)
    return _judge(profile, _status_said(said, profile), said, _NO_HEADERS, 0.0, secrets)


def _error_in(obj: Any) -> Any:
    """The object of an error inside a decoded answer or event, None when there is none.

    An empty `error` ("" or {}) is none: SDKs test it for truth, and some servers always send it.
    """
    if not isinstance(obj, dict):
        return None
    if obj.get("error") or obj.get("object") == "error" or obj.get("type") == "error":
        return obj
    for holder in (obj.get("response"), obj.get("x_groq")):
        if isinstance(holder, dict) and holder.get("error"):
            return holder
    choices = obj.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if isinstance(first, dict):
        if first.get("error"):
            return first
        if first.get("finish_reason") == "error":
            return {"error": {"message": None}}
    return None


def _status_said(said: Said, profile: Profile) -> int:
    """The status an error inside a 200 would have had; 500 when nothing tells."""
    if said.number is not None:
        return said.number
    for word in said.words:
        kind = profile.codes.get(word) or CODES.get(word)
        if kind is not None:
            return BY_KIND[kind].status
        if word in STATUS_OF:
            return STATUS_OF[word]
    return 500


def _judge(
    profile: Profile,
    status: int,
    said: Said,
    headers: Mapping[bytes, bytes],
    now_unix: float,
    secrets: Iterable[str],
) -> Fault:
    kind, scope = _kind(profile, status, said)
    meaning = BY_KIND[kind]
    if scope is None:
        scope = profile.limit_scope if kind is Kind.RATE_LIMIT else meaning.scope
    told = client_status(kind, status)
    wait = hints.wait_s(status, headers, profile, now_unix)
    if wait is None:
        wait = said.wait_s
    if wait is None and said.message and kind in _WAITING:
        wait = hints.wait_in_text_s(said.message)
    if wait is not None:
        wait = min(wait, hints.WAIT_S_MAX)
    if kind is Kind.ERROR_BUDGET:
        wait = max(wait or 0.0, ERROR_BUDGET_S)
    message, type_, param, code = _told(kind, meaning, status, told, said, secrets)
    return Fault(
        kind=kind,
        status=status,
        scope=scope,
        take_over=meaning.take_over,
        # A request too long for the model is the client's doing even when the server answers 500.
        counts_for_breaker=meaning.take_over
        and (not 400 <= status < 500 or kind is Kind.TIMEOUT)
        and kind is not Kind.QUOTA,
        client_status=told,
        message=message,
        type=type_,
        param=param,
        code=code,
        retry_after_s=wait,
    )


_WAITING = frozenset({Kind.RATE_LIMIT, Kind.ERROR_BUDGET, Kind.OVERLOADED, Kind.MODEL_OFFLINE})


def _kind(profile: Profile, status: int, said: Said) -> tuple[Kind, Scope | None]:
    """The kind, and its scope where that differs from the kind's usual one."""
    base, allowed = by_status(status)
    text = said.message.lower() if said.message else ""
    if text:
        for rule in profile.texts:
            if rule.status in (0, status) and rule.fragment in text and rule.kind in allowed:
                return rule.kind, rule.scope
        for rule in SIZES:
            if rule.status == status and rule.fragment in text:
                return rule.kind, rule.scope
    for word in said.words:
        kind = profile.codes.get(word) or CODES.get(word)
        if kind is not None and kind in allowed:
            return kind, None
    if text:
        for statuses, pattern, kind in TEXTS:
            if status in statuses and kind in allowed and pattern.search(text):
                return kind, None
    if status in (403, 451):
        # Nothing says what is forbidden: no reason to give up the account. Without a body of its own the
        # answer comes from something before the provider (a firewall), which moderates nothing.
        return profile.forbidden if said.structured else base, "request"
    return base, None


def _told(
    kind: Kind, meaning: Meaning, status: int, told: int, said: Said, secrets: Iterable[str]
) -> tuple[str, str, str | None, str]:
    """What the client is told: message, type, param, code."""
    if kind is Kind.AUTH and told == 502:
        return "the provider refused the gateway's credentials", "upstream_error", None, "upstream_auth"
    secrets = tuple(secrets)
    text = cut(scrub(said.message, secrets), MESSAGE_CHARS_MAX) if said.message else ""
    if told >= 500:
        message = meaning.message.format(status=status, reason=_reason(status))
        if text and said.structured and status >= 400:
            message += ": " + text
        return message, meaning.type, None, meaning.code
    message = text or meaning.message.format(status=status, reason=_reason(status))
    return (
        message,
        _clean(said.type, secrets) or meaning.type,
        _clean(said.param, secrets),
        _clean(said.code, secrets) or meaning.code,
    )


def _clean(name: str | None, secrets: tuple[str, ...]) -> str | None:
    """A provider's code, type or param if it is a plain name and no secret."""
    if name is None or _CLEAN.fullmatch(name) is None or scrub(name, secrets) != name:
        return None
    return name


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no standard meaning"


__all__ = [
    "Fault",
    "Kind",
    "classify",
    "in_body_error",
    "in_event_field_error",
    "in_stream_error",
    "scrub",
]
