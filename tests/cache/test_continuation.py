"""The rest of a stream from another answer: only where both say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dandolo.cache.replay import assemble
from dandolo.cache.replay.continuation import rest


def chunk(**delta: Any) -> bytes:
    finish = delta.pop("finish", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return json.dumps(
        {"id": "first", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}
    ).encode()


def answer(content: str | None = "all of it, and more", **message: Any) -> bytes:
    whole = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "second", "object": "chat.completion", "created": 9, "model": "m", "choices": [whole], "usage": USAGE}
    ).encode()


USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
SAID = [chunk(role="assistant", content=""), chunk(content="all of"), chunk(content=" it")]


def datas(events: bytes | None) -> list[bytes]:
    assert events is not None
    return [event.removeprefix(b"data: ") for event in events.split(b"\n\n") if event]


def test_both_parts_together_are_the_second_answer() -> None:
    more = datas(rest("chat", SAID, answer()))
    assert more[-1] == b"[DONE]"
    made = assemble("chat", [*SAID, *more])
    assert made is not None
    whole = json.loads(made.body)
    assert whole["choices"][0]["message"]["content"] == "all of it, and more"
    assert (whole["id"], whole["created"], whole["usage"]) == ("first", 7, USAGE)
    # What follows is called by the name of what came before.
    assert {json.loads(data)["id"] for data in more[:-1]} == {"first"}


def test_any_place_will_do() -> None:
    text = "all of it, and more"
    for at in range(len(text) + 1):
        said = [chunk(role="assistant", content=""), *[chunk(content=letter) for letter in text[:at]]]
        made = assemble("chat", [*said, *datas(rest("chat", said, answer(text)))])
        assert made is not None
        assert json.loads(made.body)["choices"][0]["message"]["content"] == text


def test_an_answer_that_had_ended_needs_only_its_end() -> None:
    ended = [*SAID, chunk(finish="stop")]
    assert rest("chat", ended, answer("something else")) == b"data: [DONE]\n\n"
    assert rest("chat", [*ended, b"[DONE]"], answer("something else")) == b""


def test_thoughts_go_on_and_are_over_once_the_text_has_begun() -> None:
    thinking = [chunk(role="assistant", reasoning_content="let me")]
    more = datas(rest("chat", thinking, answer("yes", reasoning_content="let me see")))
    made = assemble("chat", [*thinking, *more])
    assert made is not None
    message = json.loads(made.body)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("let me see", "yes")
    spoken = [*thinking, chunk(content="y")]
    more = datas(rest("chat", spoken, answer("yes", reasoning_content="hm")))
    assert not any(b"hm" in data for data in more)
    assert rest("chat", thinking, answer("yes", reasoning_content="well")) is None


def test_completions_go_on_too() -> None:
    def text(piece: str) -> bytes:
        return json.dumps({"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "text": piece}]}).encode()

    whole = json.dumps(
        {"id": "d", "created": 2, "model": "m", "choices": [{"index": 0, "text": "one two", "finish_reason": "stop"}]}
    ).encode()
    more = datas(rest("completions", [text("one")], whole))
    assert "".join(json.loads(data)["choices"][0]["text"] for data in more[:-1]) == " two"


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (SAID, answer("all of that")),
        (SAID, answer("all")),
        (SAID, answer(None)),
        (SAID, b"{}"),
        (SAID, b"no JSON"),
        (SAID, b'{"choices": [{}, {}]}'),
        ([*SAID, b"no JSON"], answer()),
        ([chunk(tool_calls=[{"index": 0, "id": "x"}])], answer()),
        ([json.dumps({"choices": [{"index": 1, "delta": {"content": "a"}}]}).encode()], answer()),
        ([json.dumps({"error": {"message": "x"}, "choices": 3}).encode()], answer()),
    ],
    ids=lambda value: "",
)
def test_what_differs_or_is_not_text_has_no_rest(said: list[bytes], body: bytes) -> None:
    assert rest("chat", said, body) is None


@pytest.mark.parametrize("dialect", ["messages", "responses", "plain"])
def test_other_dialects_have_none(dialect: Any) -> None:
    assert rest(dialect, SAID, answer()) is None
