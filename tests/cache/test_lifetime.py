"""Classes in their order, and the seconds that follow from them."""

from typing import Any

import pytest
from cached_calls import asking, call
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache.lifetime import DAY_S, TTL_S, TtlClass, lifetime, ttl_class, usable_until

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CLASSES: list[tuple[str, Any, TtlClass]] = [
    ("an image", call("/v1/images/generations", prompt="the latest car"), TtlClass.IMAGE),
    ("an embedding", call("/v1/embeddings", input="today"), TtlClass.EMBEDDING),
    ("a judgement", call("/v1/moderations", input="today"), TtlClass.OTHER),
    ("tools", asking("What is today's price?", tools=[TOOL]), TtlClass.ANALYSIS),
    ("no tools", asking("Why is the sky blue?", tools=[]), TtlClass.QUESTION),
    ("a schema", asking("Why?", response_format={"type": "json_schema", "json_schema": {}}), TtlClass.ANALYSIS),
    ("plain text as format", asking("Why?", response_format={"type": "text"}), TtlClass.QUESTION),
    (
        "a schema for Responses",
        call("/v1/responses", input="Why?", text={"format": {"type": "json_object"}}),
        TtlClass.ANALYSIS,
    ),
    (
        "an attachment",
        call(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        TtlClass.ANALYSIS,
    ),
    (
        "a tool's result",
        call(messages=[{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]),
        TtlClass.ANALYSIS,
    ),
    ("three messages", asking("a", "b", "c"), TtlClass.ANALYSIS),
    ("over 4,000 characters", asking("word " * 801), TtlClass.ANALYSIS),
    ("over 4,000 in two", asking("word " * 401, "word " * 401), TtlClass.ANALYSIS),
    ("4,000 characters", asking("wörd " * 800), TtlClass.OTHER),
    ("code before the day", asking("Write a Python script that prints today's price"), TtlClass.CODE),
    ("the day", asking("What is the weather?"), TtlClass.VOLATILE),
    (
        "the day in a system prompt",
        call(messages=[{"role": "system", "content": "Today is 1 May."}, {"role": "user", "content": "Why?"}]),
        TtlClass.QUESTION,
    ),
    (
        "the day in a part",
        call(messages=[{"role": "user", "content": [{"type": "text", "text": "the weather?"}]}]),
        TtlClass.VOLATILE,
    ),
    ("400 characters", asking("a" * 400), TtlClass.QUESTION),
    ("401 characters", asking("a" * 401), TtlClass.OTHER),
    ("two lines", asking("a\nb"), TtlClass.OTHER),
    ("two turns", asking("a", "b"), TtlClass.OTHER),
    (
        "an answer begun",
        call(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        TtlClass.OTHER,
    ),
    ("a completion", call("/v1/completions", prompt="The sky is"), TtlClass.QUESTION),
    ("token arrays", call("/v1/completions", prompt=[1, 2]), TtlClass.ANALYSIS),
    ("Responses, a text", call("/v1/responses", input="Why?", instructions="Be brief."), TtlClass.QUESTION),
    ("Responses, items", call("/v1/responses", input=[{"role": "user", "content": "weather"}]), TtlClass.VOLATILE),
    (
        "Responses, a tool's result",
        call("/v1/responses", input=[{"type": "function_call_output", "call_id": "c", "output": "x"}]),
        TtlClass.ANALYSIS,
    ),
    ("Messages", call("/v1/messages", system="Be brief.", max_tokens=9), TtlClass.QUESTION),
    ("types nobody knows", call(messages=[{"role": 1, "content": {}}]), TtlClass.ANALYSIS),
]


@pytest.mark.parametrize(("asked", "expected"), [pytest.param(a, b, id=name) for name, a, b in CLASSES])
def test_the_first_class_that_matches_wins(asked: Any, expected: TtlClass) -> None:
    assert ttl_class(asked.endpoint.name, asked.json) is expected


def test_a_set_lifetime_comes_after_images_and_embeddings_and_before_the_rest() -> None:
    for asked, expected in (
        (call("/v1/images/generations", prompt="x"), TtlClass.IMAGE),
        (call("/v1/embeddings", input="x"), TtlClass.EMBEDDING),
        (asking("What is the weather?"), TtlClass.SET),
        (asking("a", "b", "c"), TtlClass.SET),
    ):
        assert asked.json is not None
        assert ttl_class(asked.endpoint.name, asked.json, overruled=True) is expected


def test_lifetimes_are_the_design_s() -> None:
    assert {kind: TTL_S[kind] for kind in TTL_S} == {
        TtlClass.NEGATIVE: 15,
        TtlClass.IMAGE: 7 * 86_400,
        TtlClass.EMBEDDING: 30 * 86_400,
        TtlClass.ANALYSIS: 1_800,
        TtlClass.CODE: 3_600,
        TtlClass.VOLATILE: 300,
        TtlClass.QUESTION: 86_400,
        TtlClass.OTHER: 1_800,
    }


@given(st.sampled_from(sorted(TTL_S)), st.floats(0, 1e10), st.floats(0, 1))
def test_jitter_shortens_a_life_by_a_tenth_at_most(kind: TtlClass, now: float, jitter: float) -> None:
    life = lifetime(kind, now, jitter)
    seconds = life.expires - now
    assert 0.9 * TTL_S[kind] - 1e-3 <= seconds <= TTL_S[kind] + 1e-3
    share = 0.0 if kind is TtlClass.NEGATIVE else 0.1
    assert life.stale_until - life.expires == pytest.approx(share * seconds, abs=1e-3)


def test_a_set_lifetime_is_what_it_says() -> None:
    assert lifetime(TtlClass.SET, 100.0, 0.0, 60.0).expires == 160.0


def test_questions_and_images_outlast_errors_by_a_day_and_nothing_else_does() -> None:
    for kind in TtlClass:
        until = usable_until(kind, 100.0, 110.0)
        assert until == (100.0 + DAY_S if kind in (TtlClass.QUESTION, TtlClass.IMAGE) else 110.0)
