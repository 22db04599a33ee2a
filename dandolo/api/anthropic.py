"""Anthropic's error envelope, plain and in Messages streams (platform.claude.com/docs: *Errors*).

`{"type": "error", "error": {"type", "message"}, "request_id"}`. Its type follows from our HTTP status; the
status 529 itself is never sent, since load balancers and OpenAI's clients do not know it: 503 stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dandolo.api.openai import one_line
from dandolo.errors import GatewayError

_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """Anthropic's error type for an HTTP status; "also … for other 4XX" is invalid_request_error."""
    found = _TYPES.get(status)
    if found is not None:
        return found
    return "invalid_request_error" if 400 <= status < 500 else "api_error"


def error_body(error: GatewayError, request_id: str | None = None) -> bytes:
    """`error` as a whole JSON body; `request_id` is the value of the answer's request-id header."""
    return one_line({**_envelope(error), "request_id": request_id})


def error_event(error: GatewayError, request_id: str | None = None) -> bytes:
    """`error` as the last event of a Messages stream."""
    data = _envelope(error)
    if request_id is not None:
        data["request_id"] = request_id
    return b"event: error\ndata: " + one_line(data) + b"\n\n"


def _envelope(error: GatewayError) -> dict[str, Any]:
    return {"type": "error", "error": {"type": error_type(error.status), "message": error.message}}
