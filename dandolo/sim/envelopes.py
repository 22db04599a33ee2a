"""Errors as each dialect says them: envelopes, proxies' pages, mid-stream events."""

from __future__ import annotations

from typing import Any

from dandolo.sim.answer import Answer, Asked, Event, Refused, encode
from dandolo.sim.script import Dialect, ErrorForm

_OPENAI_TYPES = {
    400: "invalid_request_error", 401: "invalid_request_error", 402: "insufficient_quota",
    403: "permission_error", 404: "invalid_request_error", 413: "invalid_request_error",
    422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip
HTML = b"<!doctype html><html><head><title>Bad gateway</title></head><body><h1>502</h1><hr>cloud</body></html>"


def form_of(form: ErrorForm, dialect: Dialect, path: str) -> ErrorForm:
    """Resolve "own": the provider's dialect, and Anthropic's on the Messages endpoints of any provider."""
    if form != "own":
        return form
    return "anthropic" if "/messages" in path else dialect


def error_object(form: ErrorForm, status: int, message: str, code: str = "") -> Any:
    """The decoded body of an error; `form` is a resolved one and neither "html" nor "empty"."""
    if form == "venice":
        return {"error": message}
    if form == "openrouter":
        return {"error": {"code": status, "message": message, "metadata": {"error_type": code or "provider"}}}
    if form == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sim"}
    if form == "llamacpp":
        return {"error": {"code": status, "message": message, "type": "server_error"}}
    kind = _OPENAI_TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}


def error_answer(
    asked: Asked,
    status: int,
    message: str,
    code: str = "",
    *,
    form: ErrorForm = "own",
    body: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """A whole error answer; `body` replaces what `form` would say."""
    form = form_of(form, asked.dialect, asked.path)
    if body is not None:
        kind = "application/json" if body[:1] in ("{", "[", '"') else "text/plain"
        return Answer(status, body.encode(), content_type=kind, headers=headers)
    if form == "html":
        return Answer(status, HTML, content_type="text/html; charset=utf-8", headers=headers)
    if form == "empty":
        return Answer(status, b"", headers=headers)
    return Answer(status, encode(error_object(form, status, message, code)), headers=headers)


def refused_answer(asked: Asked, refused: Refused) -> Answer:
    return error_answer(asked, refused.status, refused.message, refused.code, headers=refused.headers)


def error_event(form: ErrorForm, dialect: Dialect, path: str, last: bytes) -> Event:
    """An error in the middle of a stream. `last` is the payload sent before it."""
    form = form_of(form, dialect, path)
    message = "simulated failure in the middle of a stream"
    if form == "anthropic":
        payload = {"type": "error", "error": {"type": "overloaded_error", "message": message}}
        return Event(encode(payload), name="error")
    if form == "llamacpp":
        # Builds until September 2025 wrote the error as a field of its own instead of data.
        return Event(encode(error_object(form, 500, message)["error"]), field="error")
    if form == "openrouter":
        # A usual chunk with a top-level error and finish_reason "error".
        return Event(
            encode(
                {
                    "id": "gen-sim",
                    "object": "chat.completion.chunk",
                    "created": 0,
                    "model": "sim",
                    "provider": "Sim",
                    "error": {"code": "server_error", "message": message},
                    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                }
            )
        )
    if b'"response.' in last[:40]:
        return Event(encode({"type": "error", "code": "server_error", "message": message}), name="error")
    return Event(encode(error_object(form, 500, message, "server_error")))
