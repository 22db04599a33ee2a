"""OpenRouter's `provider` object and model suffixes, read into typed wishes or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dandolo.route.preference import NO_PREFERENCE, Preference, read_preference, split_suffix


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama:fast", ("llama", "throughput")),
        ("llama:nitro", ("llama", "throughput")),
        ("a/b:cheap", ("a/b", "price")),
        ("a/b:floor", ("a/b", "price")),
        ("a/b:free", ("a/b:free", None)),
        ("llama", ("llama", None)),
        (":fast", (":fast", None)),
        ("a:fast:free", ("a:fast:free", None)),
    ],
)
def test_suffixes(model: str, expected: tuple[str, str | None]) -> None:
    assert split_suffix(model) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, NO_PREFERENCE),
        ({"data_collection": "deny", "order": None}, NO_PREFERENCE),
        ({"sort": "price"}, Preference(sort="price")),
        ({"sort": {"by": "latency", "partition": "none"}}, Preference(sort="latency")),
        (
            {"order": ["Venice", "B"], "allow_fallbacks": False},
            Preference(order=("venice", "b"), allow_fallbacks=False),
        ),
        ({"only": ["a"], "ignore": ["B"]}, Preference(only=frozenset({"a"}), ignore=frozenset({"b"}))),
        ({"max_price": {"prompt": "0.5", "completion": 2}}, Preference(max_price_in=0.5, max_price_out=2.0)),
        (
            {"preferred_max_latency": {"p50": 1, "p99": 3.5}, "require_parameters": True},
            Preference(first_max_s=1.0, requires=True),
        ),
        ({"preferred_min_throughput": 50, "preferred_max_latency": {"p90": None}}, Preference(tokens_per_s_min=50.0)),
    ],
)
def test_wishes_are_read(value: Any, expected: Preference) -> None:
    assert read_preference(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "provider is an array; expected an object"),
        ({"sort": "best"}, 'provider.sort is "best"; expected price, throughput or latency'),
        ({"sort": {"by": 1}}, "provider.sort.by is 1; expected price"),
        ({"order": "venice"}, 'provider.order is "venice"; expected an array'),
        ({"only": ["a", 3]}, "provider.only[1] is 3; expected a provider's name"),
        ({"ignore": ["a"] * 65}, "provider.ignore has 65 names; expected at most 64"),
        ({"allow_fallbacks": "no"}, 'provider.allow_fallbacks is "no"; expected true or false'),
        ({"max_price": 3}, "provider.max_price is 3; expected an object"),
        ({"max_price": {"prompt": -1}}, "provider.max_price.prompt is -1; expected a number"),
        ({"max_price": {"completion": "nan"}}, 'provider.max_price.completion is "nan"; expected a number'),
        ({"max_price": {"completion": True}}, "provider.max_price.completion is true; expected a number"),
        ({"max_price": {"prompt": 10**400}}, "provider.max_price.prompt is 1000"),
        ({"max_price": {"prompt": -(10**400)}}, "provider.max_price.prompt is -1000"),
        ({"preferred_max_latency": 10**400}, "provider.preferred_max_latency is 1000"),
        ({"preferred_max_latency": 0}, "provider.preferred_max_latency is 0; expected a number above 0"),
        ({"preferred_min_throughput": {"p50": "x"}}, 'provider.preferred_min_throughput is "x"; expected a number'),
        ({"require_parameters": 1}, "provider.require_parameters is 1; expected true or false"),
        ({"sort": "x" * 99}, "provider.sort is a long string; expected"),
    ],
)
def test_what_is_wrong_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_preference(value)
    assert str(caught.value).startswith(words)
