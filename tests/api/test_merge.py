"""Embedding calls as one, and the answer in parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.body import judge
from dandolo.api.merge import alike, merged, parts, shares, texts


def body(**fields: Any) -> Any:
    return judge(json.dumps({"model": "m", **fields}, ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("one", ["one"]),
        (["one", "zwei ✓", 'with "quotes"'], ["one", "zwei ✓", 'with "quotes"']),
        ([], None),
        ([1, 2, 3], None),
        ([[1, 2], [3]], None),
        (["a", 1], None),
        (["a"] * 9, None),
        ({"text": "a"}, None),
        (None, None),
    ],
)
def test_only_texts_are_merged(given: Any, expected: list[str] | None) -> None:
    found = texts(body(input=given), 8)
    assert (None if found is None else [json.loads(one) for one in found]) == expected


def test_everything_but_the_input_must_be_the_same() -> None:
    one = alike(body(input="a", dimensions=4, user="u"))
    assert one == alike(judge(b'{"user": "u", "dimensions": 4, "input": ["b"], "model": "m"}'))
    assert one != alike(body(input="a", dimensions=5, user="u"))
    assert one != alike(body(input="a", dimensions=4, user="v"))
    assert one != alike(body(input="a", dimensions=4))


def test_a_merged_body_keeps_every_other_byte() -> None:
    first = judge(b'{ "model" : "m", "input":"a" ,"dimensions":1e1 }')
    assert merged(first, [b'"a"', b'"b"']) == b'{ "model" : "m", "input":["a","b"] ,"dimensions":1e1 }'


def answer(count: int, tokens: int, **more: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": n, "embedding": [n, 0.5, -1e-9]} for n in range(count)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": "m", "data": data, "usage": usage, **more}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 500)), min_size=1, max_size=8), st.integers(0, 10**6))
def test_parts_add_up_to_the_whole(members: list[tuple[int, int]], tokens: int) -> None:
    counts, sizes = [count for count, _ in members], [size for _, size in members]
    whole = answer(sum(counts), tokens, cost=0.5)
    found = parts(json.dumps(whole).encode(), "data", counts, sizes)
    assert found is not None
    made = [json.loads(part) for part in found]
    vectors = [entry["embedding"] for part in made for entry in part["data"]]
    assert vectors == [one["embedding"] for one in whole["data"]]
    assert all([entry["index"] for entry in part["data"]] == list(range(len(part["data"]))) for part in made)
    assert sum(part["usage"]["prompt_tokens"] for part in made) == tokens
    assert all(part["model"] == "m" for part in made)


def test_entries_out_of_order_are_put_in_order() -> None:
    whole = answer(3, 6)
    whole["data"].reverse()
    found = parts(json.dumps(whole).encode(), "data", [1, 2], [1, 2])
    assert found is not None
    assert [entry["embedding"][0] for part in found for entry in json.loads(part)["data"]] == [0, 1, 2]


@pytest.mark.parametrize(
    "whole",
    [
        answer(2, 5),
        answer(4, 5),
        {**answer(3, 5), "data": [{"index": 0}, {"index": 0}, {"index": 1}]},
        {**answer(3, 5), "data": {"0": 1}},
        {"object": "list"},
        {**answer(3, 5), "usage": 7},
        {**answer(3, 5), "data": [{"index": "x"}] * 3},
    ],
)
def test_an_answer_that_is_not_one_for_each_is_no_answer(whole: dict[str, Any]) -> None:
    assert parts(json.dumps(whole).encode(), "data", [1, 2], [1, 2]) is None


def test_moderations_have_results_without_usage() -> None:
    whole = {"id": "modr-1", "model": "m", "results": [{"flagged": False}, {"flagged": True}]}
    found = parts(json.dumps(whole).encode(), "results", [1, 1], [3, 3])
    assert found is not None
    assert [json.loads(part)["results"] for part in found] == [[{"flagged": False}], [{"flagged": True}]]


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_shares_are_whole_and_fair(whole: int, sizes: list[int]) -> None:
    given = shares(whole, sizes)
    assert sum(given) == whole
    total = sum(sizes)
    if total:
        assert all(abs(share - whole * size / total) < 1 for share, size in zip(given, sizes, strict=True))
