"""OpenAI's envelope: four keys, one line, and near names for a wrong one."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder
from openai.types.responses import ResponseErrorEvent

from dandolo.api.openai import (
    error_body,
    error_event,
    model_not_found,
    nearest,
    printable,
    responses_error_event,
)
from dandolo.errors import GatewayError, InternalError, Refusal, RequestError, UpstreamTimeout

ERRORS = [
    (
        "request",
        RequestError("no", param="messages"),
        {"message": "no", "type": "invalid_request_error", "param": "messages", "code": "bad_request"},
    ),
    ("refusal", Refusal("full"), {"message": "full", "type": "server_error", "param": None, "code": "overloaded"}),
    (
        "timeout",
        UpstreamTimeout("late"),
        {"message": "late", "type": "timeout_error", "param": None, "code": "upstream_timeout"},
    ),
    (
        "internal",
        InternalError('a\r\nb "c" \u2028\u2029\x85'),
        {"message": 'a\r\nb "c" \u2028\u2029\x85', "type": "server_error", "param": None, "code": "internal_error"},
    ),
]


@pytest.mark.parametrize(("error", "expected"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_body_has_all_four_keys(error: GatewayError, expected: dict[str, object]) -> None:
    assert json.loads(error_body(error)) == {"error": expected}


@pytest.mark.parametrize(("error", "expected"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_event_is_one_line_whichever_way_lines_are_split(error: GatewayError, expected: dict[str, object]) -> None:
    event = error_event(error)
    assert event.startswith(b"data: ")
    assert event.endswith(b"}\n\n")
    assert len(event.decode().splitlines()) == 2
    (seen,) = SSEDecoder().iter_bytes(iter([event]))
    assert seen.json() == {"error": expected}


def test_responses_event_is_what_the_sdk_knows() -> None:
    event = responses_error_event(RequestError("no", param="input"), 7)
    (seen,) = SSEDecoder().iter_bytes(iter([event]))
    assert seen.event == "error"
    parsed = ResponseErrorEvent.model_validate(seen.json())
    assert (parsed.type, parsed.code, parsed.message, parsed.param, parsed.sequence_number) == (
        "error",
        "bad_request",
        "no",
        "input",
        7,
    )


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_message_is_one_line_of_json(message: str) -> None:
    for event in (error_event(RequestError(message)), responses_error_event(RequestError(message), 0)):
        lines = event.decode().splitlines()
        assert lines[-1] == ""
        assert json.loads(lines[-2].removeprefix("data: "))


@given(st.text(alphabet=st.characters(categories=["Cs", "L", "Cc"]), max_size=20))
def test_a_lone_surrogate_does_not_break_the_answer(message: str) -> None:
    assert json.loads(error_body(RequestError(message)))["error"]["code"] == "bad_request"


KNOWN = [
    "gpt-4o",
    "gpt-4o-mini",
    "claude-sonnet-4",
    "claude-opus-4",
    "llama-3.3-70b",
    "venice/llama-3.3-70b",
    "meta-llama/llama-3.3-70b-instruct",
    "qwen3-coder",
    "fast",
]
NEAR = [
    ("typo", "gpt-40", "gpt-4o"),
    ("missing letter", "clade-sonnet-4", "claude-sonnet-4"),
    ("case", "GPT-4o", "gpt-4o"),
    ("vendor", "openai/gpt-4o-mini", "gpt-4o-mini"),
    ("short", "fsat", "fast"),
    ("exact but for the vendor", "x/llama-3.3-70b", "llama-3.3-70b"),
]


@pytest.mark.parametrize(("name", "first"), [c[1:] for c in NEAR], ids=[c[0] for c in NEAR])
def test_nearest_name_comes_first(name: str, first: str) -> None:
    found = nearest(name, KNOWN)
    assert found[0] == first
    assert len(found) <= 3


@pytest.mark.parametrize("name", ["", "zzzzzz", "\x00", "_" * 500])
def test_nothing_near_is_nothing_named(name: str) -> None:
    assert nearest(name, KNOWN) == []
    assert "did you mean" not in model_not_found(name, KNOWN).message


def test_model_not_found_says_what_and_what_else() -> None:
    error = model_not_found("gpt-40", KNOWN)
    assert (error.status, error.code, error.param, error.type) == (
        404,
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert "'gpt-40'" in error.message
    assert "did you mean 'gpt-4o'" in error.message


def test_a_clients_text_is_cut_and_escaped() -> None:
    assert printable("a\r\n\x1b[31m\u2028\u202e\x00") == "a\\r\\n\\x1b[31m\\u2028\\u202e\\x00"
    assert printable("é漢😀") == "é漢😀"
    assert printable("\ud800") == "\\ud800"
    assert printable("x" * 500) == "x" * 128 + "…"
    assert "x" * 129 not in model_not_found("x" * 100_000, KNOWN).message


NAMES = ["a" * 128, "llama-3.3-70b-instrct", "gpt", "a" * 1_000_000]


@pytest.mark.parametrize("name", NAMES, ids=["repeats", "typo", "short", "long"])
def test_ten_thousand_names_are_searched_in_bounded_time(name: str) -> None:
    known = [f"vendor-{i % 7}/{'a' * (i % 90)}-llama-{i}-instruct" for i in range(10_000)]
    began = time.thread_time()
    nearest(name, known)
    assert time.thread_time() - began < 0.5  # difflib alone: several seconds


def test_endless_names_are_not_waited_for() -> None:
    def forever():  # type: ignore[no-untyped-def]
        i = 0
        while True:
            yield f"model-{i}"
            i += 1

    assert nearest("model-17", forever())[0] == "model-17"


@given(st.text(max_size=200), st.lists(st.text(max_size=40), max_size=30))
def test_any_names_are_compared(name: str, known: list[str]) -> None:
    found = nearest(name, known)
    assert len(found) <= 3
    assert set(found) <= set(known)
    assert model_not_found(name, known).message.isprintable()
