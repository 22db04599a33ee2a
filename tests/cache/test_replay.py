"""Streams made of plain answers: the same answer, in a provider's own sequence, as the SDKs read it."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from dandolo.api.endpoints import Dialect
from dandolo.cache.replay import EVENTS_MAX, assemble, prepare
from dandolo.cache.replay.events import PIECE_CHARS_MIN, cut
from dandolo.wire import sse

Json = dict[str, Any]
Serve = Callable[[bytes], str]


def events(dialect: Dialect, body: Json, *, usage: bool = True, offsets: tuple[int, ...] = ()) -> list[bytes]:
    replay = prepare(dialect, json.dumps(body).encode(), offsets)
    assert replay is not None
    stream = replay.events("new-id", 1_700_000_000, usage=usage)
    found = sse.split(stream)
    assert b"".join(found) == stream
    if usage:
        assert len(found) == replay.count
    return found


def datas(found: list[bytes]) -> list[bytes]:
    return [data for _, data in map(sse.parse, found) if data is not None]


def objects(found: list[bytes]) -> list[Json]:
    return [json.loads(data) for data in datas(found) if data != b"[DONE]"]


def there_and_back(dialect: Dialect, body: Json) -> Json:
    assembled = assemble(dialect, datas(events(dialect, body)))
    assert assembled is not None
    back: Json = json.loads(assembled.body)
    return back


def renamed(body: Json, **names: Any) -> Json:
    return {**body, **names}


# -- what answers look like ------------------------------------------------------------------------------------

TEXT = st.text(max_size=300)
SAID = st.text(min_size=1, max_size=300)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=4)
USAGE = st.fixed_dictionaries(
    {
        "prompt_tokens": st.integers(0, 9999),
        "completion_tokens": st.integers(0, 9999),
        "completion_tokens_details": st.just({"reasoning_tokens": 3}),
    }
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "id": SAID,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": SAID, "arguments": OBJECTS.map(json.dumps)}),
        }
    )
    | st.fixed_dictionaries(
        {
            "id": SAID,
            "type": st.just("custom"),
            "custom": st.fixed_dictionaries({"name": SAID, "input": TEXT}),
        }
    ),
    min_size=1,
    max_size=3,
)
CALLS = CALLS | CALLS.map(lambda calls: calls * 40)
TOKENS = st.lists(st.fixed_dictionaries({"token": st.text(max_size=4), "logprob": st.just(-0.5)}), max_size=3)
CHOICES = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": st.none() | TEXT},
            optional={
                "refusal": st.none() | TEXT,
                "reasoning_content": TEXT,
                "reasoning": TEXT,
                "tool_calls": CALLS,
                "annotations": st.lists(OBJECTS, min_size=1, max_size=2),
                "reasoning_details": st.just([{"type": "reasoning.text", "text": "hm", "index": 0}]),
            },
        ),
        "finish_reason": st.sampled_from(["stop", "tool_calls"]),
    },
    optional={"logprobs": st.none() | st.fixed_dictionaries({"content": TOKENS}), "native_finish_reason": SAID},
)


@st.composite
def chats(draw: st.DrawFn) -> Json:
    choices = draw(st.lists(CHOICES, min_size=1, max_size=2)) * draw(st.sampled_from([1, 1, 1, 40]))
    body: Json = {
        "id": "chatcmpl-old",
        "object": "chat.completion",
        "created": 1,
        "model": draw(SAID),
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "usage": draw(USAGE),
        "system_fingerprint": draw(st.none() | SAID),
    }
    if draw(st.booleans()):
        body |= {"cost": {"usd": 0.25}, "citations": ["https://x"]}
    return body


def without_nothing(value: Any) -> Any:
    """Neither a key that says null nor empty logprobs mean anything to a reader."""
    if isinstance(value, dict):
        kept = {name: without_nothing(inner) for name, inner in value.items() if inner is not None}
        return {name: inner for name, inner in kept.items() if name != "logprobs" or any(inner.values())}
    return [without_nothing(one) for one in value] if isinstance(value, list) else value


@given(chats())
def test_a_chat_streamed_and_put_together_is_the_chat(body: Json) -> None:
    back = there_and_back("chat", body)
    assert without_nothing(back) == without_nothing(renamed(body, id="new-id", created=1_700_000_000))
    # Nothing said and an empty text differ.
    assert [one["message"]["content"] for one in back["choices"]] == [
        one["message"]["content"] for one in body["choices"]
    ]


@given(st.lists(TEXT, min_size=1, max_size=3) | st.lists(TEXT, min_size=40, max_size=50), USAGE)
def test_a_completion_streamed_and_put_together_is_the_completion(texts: list[str], usage: Json) -> None:
    body: Json = {
        "id": "cmpl-old",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
            for index, text in enumerate(texts)
        ],
        "usage": usage,
    }
    assert there_and_back("completions", body) == renamed(body, id="new-id", created=1_700_000_000)


BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("text"), "text": TEXT, "citations": st.none() | st.lists(OBJECTS, max_size=2)}
    )
    | st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXT, "signature": TEXT})
    | st.fixed_dictionaries({"type": st.just("redacted_thinking"), "data": TEXT})
    | st.fixed_dictionaries({"type": st.just("tool_use"), "id": SAID, "name": SAID, "input": OBJECTS}),
    max_size=30,
)


@given(BLOCKS, st.sampled_from(["end_turn", "tool_use"]), st.none() | SAID)
def test_a_message_streamed_and_put_together_is_the_message(blocks: list[Json], reason: str, stop: str | None) -> None:
    body: Json = {
        "id": "msg_old",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 1, "service_tier": None},
    }
    assert there_and_back("messages", body) == renamed(body, id="new-id")


PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("output_text"), "text": TEXT, "annotations": st.lists(OBJECTS, max_size=1)})
    | st.fixed_dictionaries({"type": st.just("refusal"), "refusal": TEXT}),
    max_size=2,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("message"),
            "id": SAID,
            "status": st.just("completed"),
            "role": st.just("assistant"),
            "content": PARTS,
        }
    )
    | st.fixed_dictionaries(
        {
            "type": st.just("function_call"),
            "id": SAID,
            "call_id": SAID,
            "name": SAID,
            "arguments": OBJECTS.map(json.dumps),
        }
    )
    | st.fixed_dictionaries(
        {"type": st.just("custom_tool_call"), "id": SAID, "call_id": SAID, "name": SAID, "input": TEXT}
    )
    | st.fixed_dictionaries(
        {
            "type": st.just("reasoning"),
            "id": SAID,
            "summary": st.lists(st.fixed_dictionaries({"type": st.just("summary_text"), "text": TEXT}), max_size=2),
        },
        optional={
            "content": st.lists(st.fixed_dictionaries({"type": st.just("reasoning_text"), "text": TEXT}), max_size=1)
        },
    )
    | st.fixed_dictionaries({"type": st.just("image_generation_call"), "id": SAID, "result": TEXT}),
    min_size=1,
    max_size=6,
)


def response(items: list[Json]) -> Json:
    return {
        "id": "resp_old",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "error": None,
        "model": "m",
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    }


@given(ITEMS)
def test_a_response_streamed_and_put_together_is_the_response(items: list[Json]) -> None:
    body = response(items)
    found = objects(events("responses", body))
    assert there_and_back("responses", body) == renamed(body, id="new-id", created_at=1_700_000_000)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    texts = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert texts == "".join(
        part["text"] for item in items if item["type"] == "message" for part in item["content"] if "text" in part
    )


# -- form ------------------------------------------------------------------------------------------------------

CHAT: Json = {
    "id": "chatcmpl-old",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Blue light scatters most. " * 9,
                "reasoning_content": "Think: Rayleigh.",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"up": true}'}},
                    {"id": "call_2", "type": "function", "function": {"name": "rest", "arguments": "{}"}},
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}


def test_a_chat_s_chunks_come_in_order() -> None:
    found = events("chat", CHAT)
    assert found[-1] == b"data: [DONE]\n\n"
    chunks = objects(found)
    assert all(
        (chunk["id"], chunk["object"], chunk["created"], chunk["model"])
        == ("new-id", "chat.completion.chunk", 1_700_000_000, "m")
        for chunk in chunks
    )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == CHAT["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning_content": ""}
    assert [next(iter(delta), None) for delta in deltas[1:]] == (
        ["reasoning_content"] + ["content"] * (len(deltas) - 7) + ["tool_calls"] * 4 + [None]
    )
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0] == {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    assert calls[1] == {"index": 0, "function": {"arguments": '{"up": true}'}}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_usage_comes_only_when_asked_for() -> None:
    for dialect, body in (
        ("chat", CHAT),
        ("completions", {**CHAT, "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}),
    ):
        silent = events(dialect, body, usage=False)  # type: ignore[arg-type]
        assert b"usage" not in b"".join(silent)
        assert silent[-1] == b"data: [DONE]\n\n"
        assert len(events(dialect, body)) == len(silent) + 1  # type: ignore[arg-type]


@given(chats())
def test_no_chat_has_more_events_than_there_may_be(body: Json) -> None:
    assert len(events("chat", body)) <= EVENTS_MAX


@pytest.mark.parametrize("length", [0, 1, 100, 10_000, 1_000_000])
def test_short_answers_have_few_events_and_long_ones_not_too_many(length: int) -> None:
    for dialect, body in (
        ("chat", {**CHAT, "choices": [{"index": 0, "message": {"content": "é" * length}, "finish_reason": "stop"}]}),
        ("completions", {"choices": [{"index": 0, "text": "é" * length, "finish_reason": "stop"}]}),
        (
            "messages",
            {"type": "message", "content": [{"type": "text", "text": "é" * length}], "stop_reason": "end_turn"},
        ),
        (
            "responses",
            response([{"type": "message", "id": "m", "content": [{"type": "output_text", "text": "é" * length}]}]),
        ),
    ):
        count = len(events(dialect, body))  # type: ignore[arg-type]
        assert count <= min(EVENTS_MAX, 12 + length // PIECE_CHARS_MIN)


@given(
    st.lists(st.text(max_size=2_000), max_size=6),
    st.integers(0, 60),
    st.lists(st.integers(1, 2_000), unique=True).map(sorted),
)
def test_pieces_are_the_text_and_no_more_than_there_is_room_for(
    texts: list[str], room: int, offsets: list[int]
) -> None:
    pieces = cut(texts, room + len(texts), offsets)
    assert ["".join(parts) for parts in pieces] == texts
    assert sum(map(len, pieces)) <= room + len(texts)


def test_pieces_end_where_those_of_the_recorded_stream_did() -> None:
    text = "The sky is blue because of Rayleigh scattering, which favours short waves. " * 40
    offsets = tuple(at for at, letter in enumerate(text) if letter == " ")
    parts = [chunk["choices"][0]["delta"].get("content") for chunk in objects(events("chat", {
        **CHAT, "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]
    }, offsets=offsets, usage=False))[1:-1]]  # fmt: skip
    assert "".join(parts) == text
    assert len(parts) > 20
    assert all(part.startswith(" ") for part in parts[1:])


def test_a_new_id_is_written_as_text_whatever_it_is() -> None:
    replay = prepare("chat", json.dumps(CHAT).encode())
    assert replay is not None
    for chunk in objects(sse.split(replay.events('a"b\n%d\u2028', 5, usage=True))):
        assert chunk["id"] == 'a"b\n%d\u2028'


NOT_ANSWERS: list[tuple[Dialect, bytes]] = [
    ("chat", b""),
    ("chat", b"[]"),
    ("chat", b"{}"),
    ("chat", b'{"choices":[]}'),
    ("chat", b'{"choices":[{"index":0}]}'),
    ("chat", b'{"choices":[{"index":0,"message":{"tool_calls":[{}]},"finish_reason":"stop"}]}'),
    ("completions", b'{"choices":[{"index":0,"text":1,"finish_reason":"stop"}]}'),
    ("messages", b'{"type":"error","content":[]}'),
    ("messages", b'{"type":"message","content":[{"type":"text"}]}'),
    ("responses", b'{"object":"response","status":"incomplete","output":[]}'),
    ("responses", b'{"object":"response","status":"completed","output":[{}]}'),
    ("plain", b'{"data":[]}'),
]


@pytest.mark.parametrize(("dialect", "body"), NOT_ANSWERS)
def test_what_is_no_answer_has_no_stream(dialect: Dialect, body: bytes) -> None:
    assert prepare(dialect, body) is None


@given(st.sampled_from(["chat", "completions", "messages", "responses"]), OBJECTS, st.data())
def test_no_body_makes_it_fail(dialect: Dialect, extra: Json, data: st.DataObject) -> None:
    known = {"chat": CHAT, "completions": CHAT, "messages": {"type": "message"}, "responses": response([])}[dialect]
    name = data.draw(st.sampled_from(["choices", "content", "output", "usage", "model"]))
    prepare(dialect, json.dumps({**known, **extra, name: data.draw(VALUES)}).encode())


# -- as the SDKs read them -------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that answers every POST with the stream it was given."""
    stream = b""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(stream)))
            self.end_headers()
            self.wfile.write(stream)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def give(events: bytes) -> str:
        nonlocal stream
        stream = events
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield give
    server.shutdown()
    thread.join()
    server.server_close()


def test_openai_reads_a_chat(serve: Serve) -> None:
    with openai.OpenAI(api_key="k", base_url=serve(b"".join(events("chat", CHAT))), max_retries=0) as client:
        state = ChatCompletionStreamState()
        with client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "a"}], stream=True, stream_options={"include_usage": True}
        ) as stream:
            for chunk in stream:
                state.handle_chunk(chunk)
    final = state.get_final_completion()
    asked = CHAT["choices"][0]["message"]
    said = final.choices[0].message
    assert said.content == asked["content"]
    assert said.model_extra is not None
    assert said.model_extra["reasoning_content"] == asked["reasoning_content"]
    assert said.tool_calls is not None
    assert [(call.id, call.function.name, call.function.arguments) for call in said.tool_calls] == [
        (call["id"], call["function"]["name"], call["function"]["arguments"]) for call in asked["tool_calls"]
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.usage is not None
    assert final.usage.total_tokens == 8
    assert final.id == "new-id"


def test_openai_reads_many_calls_in_few_chunks(serve: Serve) -> None:
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for number in range(50)
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    body = {**CHAT, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    with openai.OpenAI(api_key="k", base_url=serve(b"".join(events("chat", body))), max_retries=0) as client:
        state = ChatCompletionStreamState()
        with client.chat.completions.create(model="m", messages=[], stream=True) as stream:
            for chunk in stream:
                state.handle_chunk(chunk)
    said = state.get_final_completion().choices[0].message.tool_calls
    assert said is not None
    assert [call.id for call in said] == [call["id"] for call in calls]
    assert all(call.function.arguments == "{}" for call in said)


def test_openai_reads_a_response(serve: Serve) -> None:
    items: list[Json] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Rayleigh."}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Blue scatters. " * 20, "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "look", "arguments": '{"up": true}'},
    ]
    stream = b"".join(events("responses", response(items)))
    with (
        openai.OpenAI(api_key="k", base_url=serve(stream), max_retries=0) as client,
        client.responses.stream(model="m", input="a") as reading,
    ):
        seen = [event.type for event in reading]
        final = reading.get_final_response()
    assert final.output_text == items[1]["content"][0]["text"]
    assert final.id == "new-id"
    assert final.output[2].to_dict()["arguments"] == '{"up": true}'
    assert seen[:2] == ["response.created", "response.in_progress"]
    assert seen[-1] == "response.completed"
    assert {"response.output_text.delta", "response.function_call_arguments.done"} <= set(seen)


def test_anthropic_reads_a_message(serve: Serve) -> None:
    body: Json = {
        "id": "msg_old",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "Rayleigh. " * 10, "signature": "c2ln"},
            {"type": "text", "text": "Blue scatters. " * 20},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"up": True, "far": [1, 2.5]}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 7},
    }
    stream = b"".join(events("messages", body))
    with (
        anthropic.Anthropic(api_key="k", base_url=serve(stream), max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "a"}]) as reading,
    ):
        final = reading.get_final_message()
    assert final.id == "new-id"
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("tool_use", 5, 7)
    thinking, text, tool = (block.to_dict() for block in final.content)
    assert (thinking["thinking"], thinking["signature"]) == ("Rayleigh. " * 10, "c2ln")
    assert text["text"] == "Blue scatters. " * 20
    assert (tool["id"], tool["name"], tool["input"]) == ("toolu_1", "look", {"up": True, "far": [1, 2.5]})
