"""Recorded streams put together: what providers really send, and everything that must not become an answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.endpoints import Dialect
from dandolo.cache.answer import flaw
from dandolo.cache.replay import assemble

Json = dict[str, Any]


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> Json:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [choice], **more}


def put_together(*events: Json | bytes, dialect: Dialect = "chat", done: bool = True) -> Json | None:
    datas = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    if done and dialect in ("chat", "completions"):
        datas.append(b"[DONE]")
    assembled = assemble(dialect, datas)
    return None if assembled is None else json.loads(assembled.body)


def message(*events: Json | bytes) -> Json:
    body = put_together(*events)
    assert body is not None
    assert flaw("chat", "chat", 200, json.dumps(body).encode()) == ""
    said: Json = body["choices"][0]["message"]
    return said


STOP = chunk(finish="stop")
CALLED = chunk(finish="tool_calls")


def call(index: int | None, id_: str | None, name: str | None, arguments: str | None, **more: Any) -> Json:
    inner = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    one = {"index": index, "id": id_, "type": "function" if id_ else None, "function": inner, **more}
    return chunk({"tool_calls": [{key: value for key, value in one.items() if value is not None}]})


def test_a_usual_stream() -> None:
    body = put_together(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hel"}, obfuscation="xyz"),
        chunk({"content": "lo"}),
        STOP,
        {**chunk(usage={"prompt_tokens": 1, "completion_tokens": 2}), "choices": []},
    )
    assert body == {
        "id": "c",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }


def test_offsets_are_where_the_pieces_ended() -> None:
    datas = [json.dumps(chunk({"content": piece})).encode() for piece in ("", "Größe", " und ", "mehr")]
    assembled = assemble("chat", [*datas, json.dumps(STOP).encode(), b" [DONE] "])
    assert assembled is not None
    assert assembled.offsets == (5, 10)


QUIRKS: list[tuple[str, list[Json], Json]] = [
    (
        "the role in every chunk",
        [chunk({"role": "assistant", "content": "a"}), chunk({"role": "assistant", "content": "b"}), STOP],
        {"role": "assistant", "content": "ab"},
    ),
    (
        "content that is null beside reasoning",
        [
            chunk({"content": None, "reasoning_content": "h"}),
            chunk({"reasoning_content": "m"}),
            chunk({"content": "a"}),
            STOP,
        ],
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ),
    (
        "a call whose name is repeated",
        [call(0, "t", "f", '{"a"'), call(0, "t", "f", ":1}"), CALLED],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "id": "t", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
    ),
    (
        "an empty name after the first",
        [call(0, "t", "f", ""), call(0, "", "", "{}"), CALLED],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "id": "t", "function": {"name": "f", "arguments": "{}"}}],
        },
    ),
    (
        "calls without an index, whole",
        [call(None, "t", "f", "{}"), call(None, "u", "g", "{}"), CALLED],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "id": "t", "function": {"name": "f", "arguments": "{}"}},
                {"type": "function", "id": "u", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
    ),
    (
        "calls interleaved, with something of the provider's own",
        [
            call(0, "t", "f", "", extra_content={"s": 1}),
            call(1, "u", "g", ""),
            call(0, None, None, "{"),
            call(1, None, None, "{}"),
            call(0, None, None, "}"),
            CALLED,
        ],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "type": "function",
                    "id": "t",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra_content": {"s": 1},
                },
                {"type": "function", "id": "u", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
    ),
    (
        "reasoning in parts",
        [
            chunk({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "h"}]}),
            chunk({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "m", "signature": "s"}]}),
            chunk({"content": "a"}),
            STOP,
        ],
        {
            "role": "assistant",
            "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "hm", "signature": "s"}],
            "content": "a",
        },
    ),
    (
        "annotations chunk by chunk",
        [chunk({"content": "a", "annotations": [1]}), chunk({"annotations": [2]}), STOP],
        {"role": "assistant", "content": "a", "annotations": [1, 2]},
    ),
    (
        "the older function_call",
        [
            chunk({"function_call": {"name": "f", "arguments": ""}}),
            chunk({"function_call": {"arguments": "{}"}}),
            chunk(finish="function_call"),
        ],
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ),
    (
        "content whole in parts",
        [chunk({"content": [{"type": "text", "text": "a"}]}), STOP],
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ),
    ("an end said twice", [chunk({"content": "a"}), STOP, STOP], {"role": "assistant", "content": "a"}),
]


@pytest.mark.parametrize(("events", "expected"), [pytest.param(a, b, id=name) for name, a, b in QUIRKS])
def test_what_providers_send_is_understood(events: list[Json], expected: Json) -> None:
    assert message(*events) == expected


USAGES: list[tuple[str, Json]] = [
    ("its own chunk", {**chunk(usage={"prompt_tokens": 1}), "choices": []}),
    ("with the end", chunk(finish="stop", usage={"prompt_tokens": 1})),
    ("in the choice", {**STOP, "choices": [{**STOP["choices"][0], "usage": {"prompt_tokens": 1}}]}),
    ("in Groq's corner", chunk(finish="stop", x_groq={"id": "r", "usage": {"prompt_tokens": 1}})),
]


@pytest.mark.parametrize("last", [pytest.param(event, id=name) for name, event in USAGES])
def test_usage_is_found_wherever_it_stands(last: Json) -> None:
    body = put_together(chunk({"content": "a"}, usage=None), STOP, last)
    assert body is not None
    assert body["usage"] == {"prompt_tokens": 1}


def test_things_beside_the_choices_are_kept() -> None:
    body = put_together(
        chunk({"content": "a"}, provider="p", citations=["x"]), STOP, {"choices": [], "cost": {"usd": 1}}
    )
    assert body is not None
    assert (body["provider"], body["citations"], body["cost"]) == ("p", ["x"], {"usd": 1})


def test_logprobs_join() -> None:
    def logged(text: str) -> Json:
        event = chunk({"content": text})
        event["choices"][0]["logprobs"] = {"content": [{"token": text}], "refusal": None}
        return event

    body = put_together(logged("a"), logged("b"), STOP)
    assert body is not None
    assert body["choices"][0]["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}


SAID = chunk({"content": "a"})
UNCLEAR: list[tuple[str, list[Json | bytes]]] = [
    ("nothing", []),
    ("no end", [SAID]),
    ("an end that is empty", [SAID, chunk(finish="")]),
    ("two ends", [SAID, STOP, chunk(finish="length")]),
    ("an error", [SAID, {"error": {"message": "x"}}, STOP]),
    ("an error with the end", [SAID, {**STOP, "error": {"message": "x"}}]),
    ("no JSON", [SAID, b"{", STOP]),
    ("no object", [SAID, b"[]", STOP]),
    (
        "a choice without the one before",
        [{"choices": [{"index": 1, "delta": {"content": "a"}, "finish_reason": "stop"}]}],
    ),
    ("an index that is none", [{"choices": [{"index": "0", "delta": {"content": "a"}, "finish_reason": "stop"}]}]),
    ("an index beyond reason", [{"choices": [{"index": 10**9, "delta": {}, "finish_reason": "stop"}]}]),
    ("one choice of two without an end", [SAID, STOP, {"choices": [{"index": 1, "delta": {"content": "b"}}]}]),
    ("a message where deltas are", [{"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}]),
    ("a name in pieces", [call(0, "t", "get_", ""), call(0, None, "sky", "{}"), CALLED]),
    ("two ids for a call", [call(0, "t", "f", ""), call(0, "u", None, "{}"), CALLED]),
    ("a call without a name", [call(0, "t", None, "{}"), CALLED]),
    ("a call without an id", [call(0, None, "f", "{}"), CALLED]),
    ("a call without the one before", [call(1, "t", "f", "{}"), CALLED]),
    ("more of a call nobody can place", [call(None, "t", "f", "{"), call(None, None, None, "}"), CALLED]),
    ("content in parts twice", [chunk({"content": [1]}), chunk({"content": [2]}), STOP]),
    ("parts after text", [SAID, chunk({"content": [1]}), STOP]),
    ("text after parts", [chunk({"content": [1]}), SAID, STOP]),
    ("audio", [chunk({"audio": {"data": "x"}}), STOP]),
    ("content of a strange type", [SAID, chunk({"content": 1}), STOP]),
]


@pytest.mark.parametrize("events", [pytest.param(events, id=name) for name, events in UNCLEAR])
def test_what_is_not_complete_and_clear_is_no_answer(events: list[Json | bytes]) -> None:
    assert put_together(*events) is None


def test_without_done_a_chat_is_not_complete() -> None:
    assert put_together(SAID, STOP, done=False) is None
    assert put_together(SAID, STOP) is not None


STREAM = [chunk({"content": text}) for text in "abcdef"] + [STOP]


@given(st.integers(0, len(STREAM) - 1))
def test_a_chat_cut_anywhere_is_no_answer(length: int) -> None:
    assert put_together(*STREAM[:length]) is None
    assert put_together(*STREAM[:length], done=False) is None


# -- messages --------------------------------------------------------------------------------------------------

STARTED: Json = {
    "type": "message_start",
    "message": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "usage": {"input_tokens": 3, "output_tokens": 1},
    },
}
ENDED: Json = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
    "usage": {"output_tokens": 9},
}
STOPPED: Json = {"type": "message_stop"}


def opened(index: int, **block: Any) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": block}


def grown(index: int, kind: str, **delta: Any) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}


def closed(index: int) -> Json:
    return {"type": "content_block_stop", "index": index}


TEXT = [opened(0, type="text", text=""), grown(0, "text_delta", text="Hi"), closed(0)]


def test_a_message_with_pings_and_an_empty_input() -> None:
    body = put_together(
        STARTED,
        {"type": "ping"},
        *TEXT,
        opened(1, type="tool_use", id="t", name="f", input={}),
        grown(1, "input_json_delta", partial_json=""),
        closed(1),
        ENDED,
        STOPPED,
        dialect="messages",
    )
    assert body is not None
    assert body["content"] == [
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    ]
    assert body["usage"] == {"input_tokens": 3, "output_tokens": 9}
    assert flaw("messages", "messages", 200, json.dumps(body).encode()) == ""


UNCLEAR_MESSAGES: list[tuple[str, list[Json]]] = [
    ("no stop", [STARTED, *TEXT, ENDED]),
    ("no reason", [STARTED, *TEXT, STOPPED]),
    ("no start", [*TEXT, ENDED, STOPPED]),
    ("two starts", [STARTED, STARTED, *TEXT, ENDED, STOPPED]),
    ("an error", [STARTED, *TEXT, {"type": "error", "error": {"type": "overloaded_error"}}, ENDED, STOPPED]),
    ("a block left open", [STARTED, *TEXT[:2], ENDED, STOPPED]),
    ("a block out of order", [STARTED, opened(1, type="text", text=""), closed(1), ENDED, STOPPED]),
    ("a delta of no block", [STARTED, *TEXT, grown(0, "text_delta", text="x"), ENDED, STOPPED]),
    (
        "a delta of another kind",
        [STARTED, TEXT[0], grown(0, "thinking_delta", thinking="x"), closed(0), ENDED, STOPPED],
    ),
    ("a delta nobody knows", [STARTED, TEXT[0], grown(0, "smell_delta", smell="x"), closed(0), ENDED, STOPPED]),
    ("an event nobody knows", [STARTED, {"type": "news"}, *TEXT, ENDED, STOPPED]),
    (
        "an input that is no JSON",
        [
            STARTED,
            opened(0, type="tool_use", input={}),
            grown(0, "input_json_delta", partial_json="{"),
            closed(0),
            ENDED,
            STOPPED,
        ],
    ),
]


@pytest.mark.parametrize("events", [pytest.param(events, id=name) for name, events in UNCLEAR_MESSAGES])
def test_a_message_that_is_not_complete_and_clear_is_no_answer(events: list[Json]) -> None:
    assert put_together(*events, dialect="messages") is None


# -- responses -------------------------------------------------------------------------------------------------

ITEM: Json = {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}


def completed(**changed: Any) -> Json:
    response = {"id": "r", "object": "response", "status": "completed", "output": [ITEM], "error": None, **changed}
    return {"type": "response.completed", "response": response}


ITEM_DONE: Json = {"type": "response.output_item.done", "item": ITEM}


def test_a_response_is_the_one_of_its_last_event() -> None:
    assert put_together(ITEM_DONE, completed(), dialect="responses") == completed()["response"]


UNCLEAR_RESPONSES: list[tuple[str, list[Json]]] = [
    ("no end", [ITEM_DONE]),
    ("incomplete", [{**completed(status="incomplete"), "type": "response.incomplete"}]),
    ("failed", [{"type": "response.failed", "response": {}}]),
    ("an error", [{"type": "error", "message": "x"}, completed()]),
    ("a status that differs", [completed(status="in_progress")]),
    ("an error in the response", [completed(error={"code": "x"})]),
    ("an output left out", [ITEM_DONE, completed(output=[])]),
    ("an output partly left out", [ITEM_DONE, ITEM_DONE, completed()]),
]


@pytest.mark.parametrize("events", [pytest.param(events, id=name) for name, events in UNCLEAR_RESPONSES])
def test_a_response_that_is_not_complete_is_no_answer(events: list[Json]) -> None:
    assert put_together(*events, dialect="responses") is None


def test_other_dialects_have_no_streams_to_keep() -> None:
    assert put_together(b"{}", dialect="plain") is None


@given(
    st.sampled_from(["chat", "completions", "messages", "responses"]),
    st.lists(
        st.sampled_from([*STREAM, STARTED, *TEXT, ENDED, STOPPED, ITEM_DONE, completed(), b"[DONE]", b"null"]),
        max_size=12,
    ),
)
def test_no_order_of_events_makes_it_fail(dialect: Dialect, events: list[Json | bytes]) -> None:
    put_together(*events, dialect=dialect)
