"""Answers that may be given again, and every kind that may not."""

import json
from typing import Any

import pytest

from dandolo.api.endpoints import ENDPOINTS, Dialect
from dandolo.cache.answer import flaw

DIALECTS: dict[str, Dialect] = {endpoint.name: endpoint.dialect for endpoint in ENDPOINTS.values()}


def chat(finish: Any = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi", **message}, "finish_reason": finish}
    return {"id": "c", "choices": [choice]}


def responses(status: str) -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": status, "output": [{"type": "message"}], "error": None}


def messages(reason: Any, *blocks: Any) -> dict[str, Any]:
    return {"type": "message", "content": list(blocks or [{"type": "text", "text": "Hi"}]), "stop_reason": reason}


GOOD: list[tuple[str, Any]] = [
    ("chat", chat()),
    ("chat", chat("tool_calls", content=None, tool_calls=[{"id": "t"}])),
    ("completions", {"choices": [{"text": "Hi", "finish_reason": "stop"}]}),
    ("messages", messages("end_turn")),
    ("messages", messages("tool_use", {"type": "tool_use"})),
    ("responses", responses("completed")),
    ("embeddings", {"data": [{"embedding": [0.1, 1]}, {"embedding": "AAAA"}]}),
    ("moderations", {"results": [{"flagged": False}]}),
    ("images.generations", {"data": [{"b64_json": "AAAA"}]}),
    ("image.generate", {"images": ["AAAA"]}),
]


@pytest.mark.parametrize(("endpoint", "body"), GOOD)
def test_complete_answers_are_fit(endpoint: str, body: Any) -> None:
    assert flaw(endpoint, DIALECTS[endpoint], 200, json.dumps(body).encode()) == ""


BAD: list[tuple[str, str, Any]] = [
    ("cut by length", "chat", chat("length")),
    ("filtered", "chat", chat("content_filter")),
    ("no end", "chat", chat(None)),
    ("an empty end", "chat", chat("")),
    ("an unknown end", "chat", chat("error")),
    ("one of two cut", "chat", {"choices": [*chat()["choices"], *chat("length")["choices"]]}),
    ("nothing said", "chat", chat(content="")),
    ("no choice", "chat", {"choices": []}),
    ("an error beside an answer", "chat", {**chat(), "error": {"message": "x"}}),
    ("an error alone", "chat", {"error": {"message": "x"}}),
    ("no object", "chat", []),
    ("another shape", "chat", {"choices": "x"}),
    ("cut by length in Completions", "completions", {"choices": [{"text": "Hi", "finish_reason": "length"}]}),
    ("cut by length in Messages", "messages", messages("max_tokens")),
    ("a pause", "messages", messages("pause_turn")),
    ("a refusal of the guard's", "messages", messages("refusal")),
    ("an error in Messages", "messages", {"type": "error", "error": {}}),
    ("incomplete", "responses", responses("incomplete")),
    ("failed", "responses", responses("failed")),
    ("an embedding missing", "embeddings", {"data": [{"embedding": [0.1]}, {}]}),
    ("no embeddings", "embeddings", {"data": []}),
    ("no judgement", "moderations", {"results": []}),
    ("links", "images.generations", {"data": [{"url": "https://x"}]}),
    ("links at Venice", "image.generate", {"images": ["https://x"]}),
]


@pytest.mark.parametrize(("endpoint", "body"), [pytest.param(a, b, id=name) for name, a, b in BAD])
def test_others_are_not(endpoint: str, body: Any) -> None:
    assert flaw(endpoint, DIALECTS[endpoint], 200, json.dumps(body).encode()) != ""


def test_every_byte_must_have_come_and_be_json() -> None:
    whole = json.dumps(chat(content="größe"), ensure_ascii=False).encode()
    assert flaw("chat", "chat", 200, whole) == ""
    assert flaw("chat", "chat", 200, whole, complete=False)
    assert flaw("chat", "chat", 200, whole[:-1])
    assert flaw("chat", "chat", 200, whole + b"}")
    assert flaw("chat", "chat", 200, whole.replace("ö".encode(), b"\xc3"))
    assert flaw("chat", "chat", 200, b"[" * 100_000)
    assert flaw("chat", "chat", 200, b"")


@pytest.mark.parametrize("status", [201, 206, 301, 401, 402, 403, 408, 409, 413, 422, 429, 500, 502, 503, 504])
def test_other_statuses_are_never_kept(status: int) -> None:
    assert flaw("chat", "chat", status, json.dumps(chat()).encode())
