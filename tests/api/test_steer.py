"""What of a body steers the choice among providers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dandolo.api import steer
from dandolo.api.call import Call, read
from dandolo.api.endpoints import ENDPOINTS


def call(path: str = "/v1/chat/completions", **fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}
    return read(ENDPOINTS[path.encode()], json.dumps(body).encode(), b"application/json")


def test_data_sent_inline_is_not_counted_as_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    sent = call(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it? " * 40}, image, image]}])
    assert 100 < steer.tokens_in(sent) < 300
    assert steer.tokens_in(call()) == len(call().raw) // 4 + (len(call().raw) % 4 > 0)


def test_inline_data_without_an_end_is_counted_as_it_is() -> None:
    sent = call()
    sent.raw = b'{"x":1} ;base64,AAAA'
    assert steer.tokens_in(sent) == 5


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_the_longest_answer_allowed(name: str) -> None:
    assert steer.tokens_out_max(call(**{name: 4096})) == 4096
    assert steer.tokens_out_max(call(**{name: None})) == 0
    assert steer.tokens_out_max(call(**{name: -5})) == 0
    assert steer.tokens_out_max(call(**{name: 1.5})) == 0
    assert steer.tokens_out_max(call(**{name: 10**30})) == 0


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"tools": []}, set()),
        ({"tools": None}, set()),
        ({"tools": [{"type": "function"}]}, {"tools"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, {"json_schema"}),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, {"vision"}),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, {"audio"}),
        ({"messages": [{"role": "user", "content": 'say "image_url" and "input_audio"'}]}, set()),
    ],
)
def test_needs_show_in_the_body(fields: dict[str, Any], needs: set[str]) -> None:
    assert steer.needs(call(**fields)) == needs


def turns(count: int, system: str = "be brief. " * 600, first: str = "hello") -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}, {"role": "user", "content": first}]
    for number in range(count):
        said += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"turn {number}"}]
    return said


def test_later_turns_have_the_opening_of_the_first() -> None:
    opening = steer.opening(call(messages=turns(0)), "t")
    assert opening is not None
    assert {steer.opening(call(messages=turns(count)), "t") for count in range(6)} == {opening}
    assert steer.opening(call(messages=turns(1, system="be long. " * 700)), "t") != opening
    assert steer.opening(call(messages=turns(1, first="else")), "t") != opening


def test_short_openings_are_not_worth_staying_for() -> None:
    assert steer.opening(call(), "t") is None
    assert steer.opening(call(messages=turns(300, system="short")), "t") is None


def test_a_conversation_beyond_the_bound_has_the_opening_of_its_beginning() -> None:
    long = [steer.opening(call(messages=turns(count, system="x" * 70_000)), "t") for count in (0, 1, 40)]
    assert len(set(long)) == 1
    assert long[0] is not None


def test_a_callers_own_key_is_its_tenants() -> None:
    one = steer.opening(call(prompt_cache_key="a"), "t")
    assert one is not None
    assert one == steer.opening(call(prompt_cache_key="a"), "t")
    assert one == steer.opening(call(session_id="a"), "t")
    assert one != steer.opening(call(prompt_cache_key="b"), "t")
    assert one != steer.opening(call(prompt_cache_key="a"), "other")
    assert steer.opening(call(prompt_cache_key=""), "t") is None
    assert steer.opening(call(prompt_cache_key=["a"]), "t") is None
    assert steer.opening(call(prompt_cache_key="a" * 1000), "t") is None
