"""The tap: what ends a stream, what breaks it, what is hidden, and that everything else passes untouched."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dandolo.api.endpoints import Dialect
from dandolo.api.profiles import PROFILES
from dandolo.errors import UpstreamError, UpstreamInvalid
from dandolo.gateway.tap import StreamTap
from dandolo.net.relay import Opening

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


def typed(type: str, **more: Any) -> bytes:
    return event({"type": type, **more}, type)


class Reading:
    """A tap, and what a relay would forward through it, one read at a time."""

    def __init__(self, dialect: Dialect = "chat", *, hide: bool = False, closing: bytes | None = None) -> None:
        self.contents = 0
        self.tap = StreamTap(
            dialect,
            PROFILES["generic"],
            secrets=("sk-secret-0123456789",),
            hide_usage=hide,
            on_content=self._content,
            closing=None if closing is None else lambda: closing,
        )

    def _content(self) -> None:
        self.contents += 1

    def feed(self, *reads: bytes) -> bytes:
        out = b""
        for read in reads:
            if self.tap.terminated or self.tap.error is not None:
                break
            if self.tap.concerns(read):
                out += self.tap.rewrite(read)
            else:
                out += read
                self.tap.observe(read)
        return out

    def whole(self, *reads: bytes) -> bytes:
        return self.feed(*reads) + self.tap.finish()


# -- endings -------------------------------------------------------------------------------------------

MESSAGES = [
    typed("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 1}}),
    typed("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    typed("ping"),
    typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "hi"}),
    typed("content_block_stop", index=0),
    typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
    typed("message_stop"),
]
RESPONSES = [
    typed("response.created", response={"status": "in_progress", "usage": None}),
    typed("response.output_text.delta", delta="hi"),
    typed("response.completed", response={"status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}}),
]
CHAT = [ROLE, chunk("hi"), chunk(finish="stop"), USAGE, DONE]
COMPLETIONS = [
    event({"choices": [{"index": 0, "text": "hi", "finish_reason": None}]}),
    event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
    USAGE,
    DONE,
]
WHOLE: list[tuple[Dialect, list[bytes], str, tuple[int, int]]] = [
    ("chat", CHAT, "stop", (5, 2)),
    ("completions", COMPLETIONS, "length", (5, 2)),
    ("messages", MESSAGES, "end_turn", (3, 4)),
    ("responses", RESPONSES, "completed", (3, 4)),
]


@pytest.mark.parametrize(("dialect", "events", "finish", "tokens"), WHOLE, ids=[case[0] for case in WHOLE])
@pytest.mark.parametrize("grouping", ["one-by-one", "all-at-once"])
def test_a_whole_stream_passes_untouched_and_is_understood(
    dialect: Dialect, events: list[bytes], finish: str, tokens: tuple[int, int], grouping: str
) -> None:
    reading = Reading(dialect)
    reads = events if grouping == "one-by-one" else [b"".join(events)]
    assert reading.whole(*reads) == b"".join(events)
    tap = reading.tap
    assert tap.terminated
    assert tap.counted
    assert tap.finish_reason == finish
    assert (tap.usage.input_tokens, tap.usage.output_tokens) == tokens


@pytest.mark.parametrize(("dialect", "events"), [case[:2] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_nothing_after_the_end_is_passed_on(dialect: Dialect, events: list[bytes]) -> None:
    late = chunk("late")
    assert Reading(dialect).whole(*events, late) == b"".join(events)
    assert Reading(dialect).whole(b"".join(events) + late) == b"".join(events)


@pytest.mark.parametrize(("dialect", "events"), [case[:2] for case in WHOLE], ids=[case[0] for case in WHOLE])
def test_a_stream_that_just_stops_is_cut_short(dialect: Dialect, events: list[bytes]) -> None:
    for reads in ([], events[:1], events[:2]):
        if dialect == "completions" and len(reads) == 2:
            continue
        reading = Reading(dialect)
        reading.feed(*reads)
        with pytest.raises(UpstreamInvalid):
            reading.tap.finish()


@pytest.mark.parametrize(
    "last",
    [
        [chunk(finish="stop")],
        [chunk(finish="stop"), USAGE],
        [chunk("hi", finish="length")],
        [event(b'{"choices" : [ {"delta":{}, "finish_reason"  :  "stop"} ]}')],
        [event(b'{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}'), b": keep-alive\n\n"],
        [b'data:{"choices":[{"delta":{},"finish_reason":"stop"}]}\r\n\r\n'],
    ],
)
def test_an_end_without_done_gets_the_missing_done(last: list[bytes]) -> None:
    assert Reading().whole(ROLE, chunk("hi"), *last) == b"".join([ROLE, chunk("hi"), *last, DONE])


def test_done_without_a_finish_reason_is_an_end() -> None:
    assert Reading().whole(chunk("hi"), DONE) == chunk("hi") + DONE


@pytest.mark.parametrize("done", [b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b": x\ndata: [DONE]\n\n"])
def test_every_spelling_of_done_is_an_end(done: bytes) -> None:
    assert Reading().whole(chunk("hi"), done, chunk("late")) == chunk("hi") + done


@pytest.mark.parametrize(("dialect", "events"), [WHOLE[2][:2], WHOLE[3][:2]])
def test_done_is_no_end_in_dialects_that_have_their_own(dialect: Dialect, events: list[bytes]) -> None:
    reading = Reading(dialect)
    reading.feed(*events[:-1], DONE)
    assert not reading.tap.terminated
    with pytest.raises(UpstreamInvalid):
        reading.tap.finish()


def test_a_plain_stream_ends_when_its_bytes_do() -> None:
    assert Reading("plain").whole(event({"a": 1}), event({"b": 2})) == event({"a": 1}) + event({"b": 2})
    assert Reading("plain").whole(event({"a": 1}), DONE, event({"b": 2})) == event({"a": 1}) + DONE


# -- our own closing event -----------------------------------------------------------------------------

OWN = event({"dandolo_metadata": {"provider": "p"}})


def test_our_event_stands_before_the_end_whoever_says_it() -> None:
    assert Reading(closing=OWN).whole(chunk("hi"), chunk(finish="stop"), DONE).endswith(OWN + DONE)
    assert Reading(closing=OWN).whole(chunk("hi"), chunk(finish="stop")).endswith(OWN + DONE)
    assert Reading("plain", closing=OWN).whole(event({"a": 1})) == event({"a": 1}) + OWN
    assert Reading(closing=OWN).whole(chunk("hi") + DONE).count(b"dandolo_metadata") == 1


# -- usage that we asked for ---------------------------------------------------------------------------


def test_only_the_extra_chunk_is_hidden() -> None:
    for reads in (CHAT, [b"".join(CHAT)]):
        reading = Reading(hide=True)
        assert reading.whole(*reads) == b"".join(CHAT).replace(USAGE, b"")
        assert reading.tap.usage.input_tokens == 5
        assert reading.tap.counted


@pytest.mark.parametrize(
    "kept",
    [
        chunk("hi", usage={"prompt_tokens": 5, "completion_tokens": 1}),
        chunk("hi", usage=None),
        event({"choices": [], "usage": None, "prompt_filter_results": []}),
        event({"choices": [], "usage": {}}),
        event({"choices": [], "prompt_filter_results": [{}]}),
        event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 5}}]}),
        chunk(finish="stop", x_groq={"usage": {"prompt_tokens": 5}}),
        chunk('say "usage" and {"choices":[],"usage":{"prompt_tokens":9}}'),
        b": usage\n\n",
    ],
)
def test_usage_that_rides_on_something_else_stays(kept: bytes) -> None:
    assert Reading(hide=True).whole(kept, chunk(finish="stop"), DONE) == kept + chunk(finish="stop") + DONE


@pytest.mark.parametrize(
    ("reads", "tokens"),
    [
        ([chunk(finish="stop", usage={"prompt_tokens": 5, "completion_tokens": 2}), DONE], (5, 2)),
        ([chunk(finish="stop", x_groq={"usage": {"prompt_tokens": 5, "completion_tokens": 2}}), DONE], (5, 2)),
        ([event({"choices": [{"finish_reason": "stop", "usage": {"prompt_tokens": 5}}]}), DONE], (5, 0)),
        ([chunk(str(n), usage={"prompt_tokens": 5, "completion_tokens": n}) for n in range(4)] + [DONE], (5, 3)),
        ([chunk(finish="stop"), event({"choices": [], "usage": {"prompt_tokens": "5"}}), DONE], (5, 0)),
        ([chunk("hi"), DONE], (0, 0)),
    ],
)
@pytest.mark.parametrize("hide", [False, True])
def test_usage_is_found_wherever_it_stands(reads: list[bytes], tokens: tuple[int, int], hide: bool) -> None:
    reading = Reading(hide=hide)
    reading.whole(*reads)
    assert (reading.tap.usage.input_tokens, reading.tap.usage.output_tokens) == tokens
    assert reading.tap.counted is (tokens != (0, 0))


# -- errors --------------------------------------------------------------------------------------------

ERRORS: list[tuple[str, Dialect, bytes]] = [
    ("openai", "chat", event({"error": {"message": "boom", "type": "server_error", "code": None}})),
    ("string", "chat", event({"error": "boom"})),
    ("openrouter", "chat", chunk("", finish="error", error={"code": 502, "message": "boom"})),
    ("finish-error", "chat", chunk("", finish="error")),
    ("spaced", "chat", event(b'{ "error" : { "message" : "boom" } }')),
    ("groq", "chat", chunk(x_groq={"error": "boom"})),
    ("llama.cpp-field", "chat", b'error: {"code":500,"message":"boom","type":"server_error"}\n\n'),
    ("llama.cpp-after-comment", "chat", b': x\nerror: {"code":500,"message":"boom"}\n\n'),
    ("completions", "completions", event({"error": {"message": "boom"}})),
    ("anthropic", "messages", typed("error", error={"type": "overloaded_error", "message": "boom"})),
    ("responses-error", "responses", typed("error", code="server_error", message="boom")),
    ("responses-failed", "responses", typed("response.failed", response={"error": {"code": "x", "message": "boom"}})),
    ("plain", "plain", event({"error": {"message": "boom"}})),
]


@pytest.mark.parametrize(("dialect", "bad"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_an_error_in_any_form_ends_the_stream_before_it(dialect: Dialect, bad: bytes) -> None:
    good = event({"n": 1})
    for reads in ([good, bad, DONE], [good + bad + DONE]):
        reading = Reading(dialect)
        assert reading.feed(*reads) == good
        assert isinstance(reading.tap.error, UpstreamError)
        assert not reading.tap.terminated


@pytest.mark.parametrize(("dialect", "bad"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_an_error_before_any_content_is_raised(dialect: Dialect, bad: bytes) -> None:
    with pytest.raises(UpstreamError):
        Reading(dialect).tap.opening(b": hello\n\n" + (ROLE if dialect == "chat" else b"") + bad)


def test_a_secret_in_an_error_is_not_repeated() -> None:
    reading = Reading()
    reading.feed(event({"error": {"message": "bad key sk-secret-0123456789"}}))
    assert reading.tap.error is not None
    assert "sk-secret" not in reading.tap.error.message


@pytest.mark.parametrize(
    "text",
    [
        "[DONE]",
        "data: [DONE]",
        "data: [DONE]\n\n",
        '"error"',
        '{"error":{"message":"x"}}',
        "\nerror: {}",
        '"usage":{"prompt_tokens":9}',
        '"finish_reason":"stop"',
        "message_stop response.completed response.failed",
        'event: error\ndata: {"type":"error"}',
        "\u2028[DONE]\u2029",
    ],
)
@pytest.mark.parametrize("hide", [False, True])
def test_what_a_model_says_is_never_taken_for_the_stream(text: str, hide: bool) -> None:
    for dialect, said, end in (
        ("chat", chunk(text), [chunk(finish="stop"), DONE]),
        ("messages", typed("content_block_delta", delta={"type": "text_delta", "text": text}), MESSAGES[-2:]),
        ("responses", typed("response.output_text.delta", delta=text), RESPONSES[-1:]),
    ):
        reading = Reading(dialect, hide=hide)  # type: ignore[arg-type]
        assert reading.feed(said) == said
        assert not reading.tap.terminated
        assert reading.tap.error is None
        assert reading.tap.finish_reason is None
        assert reading.tap.usage.input_tokens == 0
        assert reading.whole(*end) == b"".join(end)


def test_a_null_error_is_none() -> None:
    quiet = chunk("hi", error=None)
    assert Reading().whole(quiet, chunk(finish="stop"), DONE) == quiet + chunk(finish="stop") + DONE


# -- the first content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "events",
    [b": keep-alive\n\n", ROLE, b": x\n\n" + ROLE, event({"choices": [], "prompt_filter_results": []}),
     event({"choices": [{"delta": {"role": None, "content": None}, "finish_reason": None}]}), *MESSAGES[:3],
     RESPONSES[0], b"retry: 5\n\n"],
)  # fmt: skip
def test_nothing_a_client_would_miss_is_no_content(events: bytes) -> None:
    reading = Reading()
    assert reading.tap.opening(events) is Opening.EMPTY
    assert reading.contents == 0


@pytest.mark.parametrize(
    "events",
    [
        chunk("h"),
        chunk('"'),
        chunk(" "),
        ROLE + chunk("h"),
        chunk(finish="stop"),
        event({"choices": [{"delta": {"reasoning_content": "hm"}}]}),
        event({"choices": [{"delta": {"reasoning": "hm"}}]}),
        event({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}}]}),
        event({"choices": [{"delta": {"refusal": "no"}}]}),
        event({"choices": [{"text": "h"}]}),
        MESSAGES[3],
        MESSAGES[5],
        typed("content_block_delta", delta={"type": "thinking_delta", "thinking": "hm"}),
        typed("content_block_delta", delta={"type": "input_json_delta", "partial_json": "{"}),
        RESPONSES[1],
    ],
)
def test_the_first_thing_a_client_would_miss_is_content(events: bytes) -> None:
    reading = Reading()
    assert reading.tap.opening(events) is Opening.CONTENT
    assert reading.contents == 1


@pytest.mark.parametrize("events", [DONE, ROLE + DONE, b": x\n\ndata:[DONE]\n\n"])
def test_a_bare_end_opens_the_stream_but_is_no_content(events: bytes) -> None:
    reading = Reading()
    assert reading.tap.opening(events) is Opening.CONTENT
    assert reading.contents == 0


def test_content_is_told_once_when_it_comes_after_the_head() -> None:
    reading = Reading()
    reading.feed(ROLE, chunk("a"), chunk("b"), chunk(finish="stop"), DONE)
    assert reading.contents == 1


def test_content_beside_cumulative_usage_is_told() -> None:
    reading = Reading(hide=True)
    assert reading.tap.opening(ROLE) is Opening.EMPTY
    reading.feed(ROLE, *(chunk("a", usage={"prompt_tokens": 5, "completion_tokens": n}) for n in range(3)))
    assert reading.contents == 1


def test_a_terminal_event_without_content_opens_the_stream() -> None:
    last = typed("response.incomplete", response={"status": "incomplete", "incomplete_details": {"reason": "x"}})
    assert Reading("responses").tap.opening(RESPONSES[0] + last) is Opening.CONTENT


@pytest.mark.parametrize(("reads", "count"), [([RESPONSES[1] * 6], 6), ([chunk(finish="stop")], 1)])
def test_events_with_data_are_counted_whatever_the_reads(reads: list[bytes], count: int) -> None:
    reading = Reading("responses")
    reading.feed(*reads)
    assert reading.tap.data_events == count
