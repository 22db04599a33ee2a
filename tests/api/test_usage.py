"""Usage: every provider's form, in any order, and nothing believed that cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.usage import COUNT_MAX, Usage, add, estimate_tokens, facts


def learned(*events: Any) -> Usage:
    usage = Usage()
    for event in events:
        found = facts(event if isinstance(event, bytes) else json.dumps(event).encode())
        if found is not None:
            add(usage, found)
    return usage


def finish(event: Any) -> str | None:
    found = facts(json.dumps(event).encode())
    assert found is not None
    return found.finish()


PLAIN = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}

FORMS = [
    ("openai", [{"usage": PLAIN}], Usage(10, 4)),
    (
        "openai-details",
        [
            {
                "usage": {
                    **PLAIN,
                    "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 3, "accepted_prediction_tokens": 0},
                }
            }
        ],
        Usage(10, 4, 6, 3),
    ),
    ("openai-chunk", [{"choices": [], "usage": None}, {"choices": [], "usage": PLAIN}], Usage(10, 4)),
    ("embeddings", [{"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}], Usage(8, 0)),
    ("venice", [{"usage": PLAIN, "cost": {"usd": 0.25, "diem": 0.25}}], Usage(10, 4, cost_usd=0.25)),
    ("venice-cost-alone", [{"choices": [], "cost": {"usd": 0.25}}], Usage(cost_usd=0.25)),
    ("venice-cost-first", [{"cost": {"usd": 0.25}}, {"usage": PLAIN}], Usage(10, 4, cost_usd=0.25)),
    ("openrouter", [{"usage": {**PLAIN, "cost": 0.5, "is_byok": False}}], Usage(10, 4, cost_usd=0.5)),
    (
        "openrouter-details",
        [{"usage": {**PLAIN, "cost": 0, "cost_details": {"upstream_inference_cost": None}}}],
        Usage(10, 4, cost_usd=0.0),
    ),
    ("groq", [{"choices": [], "x_groq": {"id": "x", "usage": {**PLAIN, "queue_time": 0.1}}}], Usage(10, 4)),
    ("groq-first-chunk", [{"x_groq": {"id": "x"}}, {"x_groq": {"usage": PLAIN}}], Usage(10, 4)),
    ("groq-usage-null", [{"usage": None, "x_groq": {"usage": PLAIN}}], Usage(10, 4)),
    ("moonshot", [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": PLAIN}]}], Usage(10, 4)),
    ("moonshot-second", [{"choices": [{"delta": {}}, {"usage": PLAIN}]}], Usage(10, 4)),
    ("deepseek", [{"usage": {**PLAIN, "prompt_cache_hit_tokens": 4}}], Usage(10, 4)),
    (
        "anthropic-plain",
        [{"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 5}}],
        Usage(8, 4, 5),
    ),
    (
        "anthropic-stream",
        [
            {
                "type": "message_start",
                "message": {
                    "usage": {
                        "input_tokens": 3,
                        "cache_creation_input_tokens": 7,
                        "cache_read_input_tokens": 5,
                        "output_tokens": 1,
                    }
                },
            },
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
            {"type": "message_stop"},
        ],
        Usage(15, 4, 5),
    ),
    (
        "responses",
        [
            {
                "type": "response.completed",
                "response": {
                    "status": "completed",
                    "usage": {
                        "input_tokens": 10,
                        "input_tokens_details": {"cached_tokens": 6},
                        "output_tokens": 4,
                        "output_tokens_details": {"reasoning_tokens": 2},
                    },
                },
            }
        ],
        Usage(10, 4, 6, 2),
    ),
    ("responses-plain", [{"object": "response", "usage": {"input_tokens": 10, "output_tokens": 4}}], Usage(10, 4)),
    ("responses-created", [{"type": "response.created", "response": {"usage": None}}], Usage()),
    (
        "cumulative",
        [{"usage": {"prompt_tokens": 10, "completion_tokens": n}} for n in (0, 1, 2, 3, 4)],
        Usage(10, 4),
    ),
    ("repeated", [{"usage": PLAIN}] * 3, Usage(10, 4)),
    ("out-of-order", [{"usage": PLAIN}, {"usage": {"prompt_tokens": 10, "completion_tokens": 2}}], Usage(10, 4)),
    ("partial-input", [{"usage": {"prompt_tokens": 10}}], Usage(10, 0)),
    ("partial-output", [{"usage": {"completion_tokens": 4}}], Usage(0, 4)),
    ("zero", [{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}], Usage()),
    ("details-null", [{"usage": {**PLAIN, "prompt_tokens_details": None}}], Usage(10, 4)),
    ("nothing", [{"choices": [{"delta": {"content": "hi"}}]}], Usage()),
]


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in FORMS], ids=[case[0] for case in FORMS])
def test_every_providers_form_is_understood(events: list[Any], expected: Usage) -> None:
    assert learned(*events) == expected


WRONG = [
    ("strings", {"prompt_tokens": "10", "completion_tokens": "4"}, Usage(10, 4)),
    ("floats", {"prompt_tokens": 10.0, "completion_tokens": 4.5}, Usage(10, 4)),
    ("one-of-them-wrong", {"prompt_tokens": 10, "completion_tokens": "many"}, Usage(10, 0)),
    ("nulls", {"prompt_tokens": None, "completion_tokens": None}, Usage()),
    ("booleans", {"prompt_tokens": True, "completion_tokens": False}, Usage()),
    ("negative", {"prompt_tokens": -10, "completion_tokens": 4}, Usage(0, 4)),
    ("negative-strings", {"prompt_tokens": "-10", "completion_tokens": "4"}, Usage(0, 4)),
    ("negative-cached", {"input_tokens": 5, "cache_read_input_tokens": -9, "output_tokens": 1}, Usage(5, 1)),
    ("huge", {"prompt_tokens": COUNT_MAX, "completion_tokens": 10**30}, Usage()),
    ("huge-float", {"prompt_tokens": 1e30, "completion_tokens": 4}, Usage(0, 4)),
    ("huge-string", {"prompt_tokens": "1" * 5000, "completion_tokens": 4}, Usage(0, 4)),
    ("nan-string", {"prompt_tokens": "nan", "completion_tokens": "inf"}, Usage()),
    ("lists", {"prompt_tokens": [10], "completion_tokens": {"n": 4}}, Usage()),
    ("details-number", {**PLAIN, "prompt_tokens_details": 6}, Usage(10, 4)),
    ("details-strings", {**PLAIN, "prompt_tokens_details": {"cached_tokens": "6"}}, Usage(10, 4, 6)),
    ("details-negative", {**PLAIN, "completion_tokens_details": {"reasoning_tokens": -1}}, Usage(10, 4)),
    ("cost-string", {**PLAIN, "cost": "0.5"}, Usage(10, 4, cost_usd=0.5)),
    ("cost-negative", {**PLAIN, "cost": -0.5}, Usage(10, 4)),
    ("cost-huge", {**PLAIN, "cost": 1e300}, Usage(10, 4)),
    ("cost-object", {**PLAIN, "cost": {"usd": 1}}, Usage(10, 4)),
]


@pytest.mark.parametrize(("counts", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_figures_of_the_wrong_kind_are_read_where_they_can_be_and_unknown_otherwise(
    counts: dict[str, Any], expected: Usage
) -> None:
    assert learned({"usage": counts}) == expected
    assert learned({"choices": [{"usage": counts}]}) == expected
    assert learned({"x_groq": {"usage": counts}}) == expected


@pytest.mark.parametrize("usd", [-1, "x", None, [], 1e300, True])
def test_a_cost_that_cannot_be_is_unknown(usd: Any) -> None:
    assert learned({"cost": {"usd": usd}}).cost_usd is None
    assert learned({"cost": {"usd": 0.5}}, {"cost": {"usd": usd}}).cost_usd == 0.5


@pytest.mark.parametrize(
    "event",
    [
        {"usage": None},
        {"usage": {}},
        {"usage": {"total_tokens": None}},
        {"usage": []},
        {"usage": 5},
        {"usage": "many"},
        {"usage": {"prompt_tokens": None}},
        {"x_groq": {}},
        {"choices": []},
        {"choices": [{"usage": None}]},
        {},
    ],
)
def test_an_event_without_figures_counts_as_none(event: Any) -> None:
    found = facts(json.dumps(event).encode())
    assert found is not None
    usage = Usage()
    assert add(usage, found) is False
    assert usage == Usage()


@pytest.mark.parametrize(
    "event",
    [
        {"usage": PLAIN, "model": 5, "id": None},
        {"usage": PLAIN, "choices": "none"},
        {"usage": PLAIN, "choices": [None, 5, {"finish_reason": 7}]},
        {"usage": PLAIN, "message": "text", "response": [], "delta": 4, "status": 200, "cost": 3, "x_groq": "x"},
        {"usage": PLAIN, "type": {"a": 1}, "stop_reason": ["x"]},
    ],
)
def test_surprising_neighbours_do_not_hide_the_figures(event: Any) -> None:
    assert learned(event) == Usage(10, 4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[DONE]",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b"{",
        b'{"usage":',
        b"\xff",
        b"[" * 100_000,
        b"{}junk",
        b'{"a":NaN}',
    ],
)
def test_what_is_no_json_object_says_nothing(data: bytes) -> None:
    assert facts(data) is None


FINISHES = [
    ({"choices": [{"finish_reason": "stop"}]}, "stop"),
    ({"choices": [{"finish_reason": None}]}, None),
    ({"choices": [{"finish_reason": ""}]}, None),
    ({"choices": [{"finish_reason": None}, {"finish_reason": "length"}]}, "length"),
    ({"choices": [{"finish_reason": 7}]}, None),
    ({"choices": [{}]}, None),
    ({"type": "message", "stop_reason": "end_turn"}, "end_turn"),
    ({"type": "message_start", "message": {"stop_reason": None}}, None),
    ({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, "tool_use"),
    ({"type": "message_delta", "delta": {"stop_reason": None}}, None),
    ({"type": "response.completed", "response": {}}, "completed"),
    ({"type": "response.incomplete"}, "incomplete"),
    ({"type": "response.failed"}, "failed"),
    ({"type": "response.output_text.delta", "delta": "stop"}, None),
    ({"type": "response.in_progress", "response": {"status": "in_progress"}}, None),
    ({"object": "response", "status": "completed"}, "completed"),
    ({"object": "response", "status": "queued"}, None),
]


@pytest.mark.parametrize(("event", "expected"), FINISHES)
def test_the_end_is_known_by_the_dialects_own_word(event: Any, expected: str | None) -> None:
    assert finish(event) == expected


def test_estimates_round_up() -> None:
    assert [estimate_tokens(n) for n in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


_any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_names = st.sampled_from(
    ["usage", "choices", "cost", "x_groq", "delta", "message", "response", "usd", "prompt_tokens", "completion_tokens",
     "input_tokens", "cached_tokens", "finish_reason", "stop_reason", "type", "status", "prompt_tokens_details"]
)  # fmt: skip
_shaped = st.recursive(_any, lambda inner: st.dictionaries(_names, inner, max_size=4) | st.lists(inner, max_size=2))


@given(st.lists(st.dictionaries(_names, _shaped, max_size=5), max_size=4))
def test_any_events_give_counts_that_can_be(events: list[Any]) -> None:
    usage = learned(*events)
    for count in (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens):
        assert type(count) is int
        assert 0 <= count < 4 * COUNT_MAX
    assert usage.cost_usd is None or 0 <= usage.cost_usd < 1e6
