"""Anthropic's envelope, as its own SDK reads it."""

from __future__ import annotations

import json

import pytest
from anthropic._streaming import SSEDecoder
from anthropic.types.shared.error_response import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.anthropic import error_body, error_event, error_type
from dandolo.errors import GatewayError, Refusal, RequestError, UpstreamError

TYPES = [
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (402, "billing_error"),
    (403, "permission_error"),
    (404, "not_found_error"),
    (405, "invalid_request_error"),
    (409, "invalid_request_error"),
    (413, "request_too_large"),
    (422, "invalid_request_error"),
    (429, "rate_limit_error"),
    (500, "api_error"),
    (502, "api_error"),
    (503, "overloaded_error"),
    (504, "timeout_error"),
    (529, "overloaded_error"),
]


@pytest.mark.parametrize(("status", "expected"), TYPES, ids=[str(c[0]) for c in TYPES])
def test_type_follows_from_status(status: int, expected: str) -> None:
    assert error_type(status) == expected
    assert json.loads(error_body(GatewayError("m", status=status)))["error"]["type"] == expected


def test_body() -> None:
    body = json.loads(error_body(RequestError("no", param="x"), "req_1"))
    assert body == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no"},
        "request_id": "req_1",
    }
    assert ErrorResponse.model_validate(body).error.message == "no"
    assert json.loads(error_body(Refusal("full")))["request_id"] is None


def test_event() -> None:
    (seen,) = SSEDecoder().iter_bytes(iter([error_event(UpstreamError("gone\r\n\u2028"))]))
    assert seen.event == "error"
    assert seen.json() == {"type": "error", "error": {"type": "api_error", "message": "gone\r\n\u2028"}}
    (seen,) = SSEDecoder().iter_bytes(iter([error_event(Refusal("full"), "req_2")]))
    assert seen.json()["request_id"] == "req_2"


@given(st.text(alphabet=st.characters(), max_size=200), st.integers(400, 599))
def test_any_message_is_one_line_of_json(message: str, status: int) -> None:
    event = error_event(GatewayError(message, status=status))
    lines = event.decode().splitlines()
    assert lines[0] == "event: error"
    assert len(lines) == 3
    assert json.loads(lines[1].removeprefix("data: "))["type"] == "error"
