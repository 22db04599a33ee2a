"""Lists of models: each documented form read for what it says, and nothing more; odd rows cost only themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.profiles import PROFILES
from dandolo.api.profiles.listing import (
    ALIASES_MAX,
    ID_CHARS_MAX,
    LIST_BYTES_MAX,
    MODELS_MAX,
    ModelFacts,
    read,
)

CORPUS = Path(__file__).parent.parent / "corpus" / "listings"
GENERIC = PROFILES["generic"]


def facts(id: str, prices: tuple[float | None, ...] = (None, None, None), **more: Any) -> ModelFacts:
    if "capabilities" in more:
        more["capabilities"] = frozenset(more["capabilities"].split())
    return ModelFacts(id, *prices, **more)


FORMS: list[tuple[str, str, bool, list[ModelFacts]]] = [
    (
        "openai",
        "openai",
        True,
        [facts("gpt-4o-mini"), facts("text-embedding-3-small"), facts("ft:gpt-4o-mini:acme::9x")],
    ),
    ("anthropic", "anthropic", False, [facts("claude-opus-4-1"), facts("claude-haiku-4-5")]),
    ("vllm", "generic", True, [facts("/srv/models/Qwen2.5-7B-Instruct", context_tokens=32768)]),
    (
        "mistral",
        "generic",
        True,
        [
            facts("mistral-small-2603", context_tokens=131072),
            facts("open-mistral-nemo", context_tokens=131072, retires="2026-12-31T12:00:00Z"),
            facts("mistral-small-latest", context_tokens=131072),
            facts("open-mistral-nemo-2407", context_tokens=131072, retires="2026-12-31T12:00:00Z"),
        ],
    ),
    (
        "groq",
        "generic",
        True,
        [
            facts("llama-3.3-70b-versatile", context_tokens=131072, output_tokens_max=32768),
            facts("gone-1b", context_tokens=8192, output_tokens_max=8192, offline=True),
        ],
    ),
    (
        # The unit of its prices is not documented where we could read it: unknown, not guessed.
        "together",
        "generic",
        True,
        [
            facts("meta-llama/Llama-3.3-70B-Instruct-Turbo", context_tokens=131072, kind="text"),
            facts("BAAI/bge-large-en-v1.5", context_tokens=512, kind="embedding"),
        ],
    ),
    (
        "venice",
        "venice",
        True,
        [
            facts(
                "llama-3.3-70b",
                (0.7, 2.8, 0.07),
                context_tokens=65536,
                output_tokens_max=8192,
                capabilities="tools json_schema web_search logprobs",
                kind="text",
            ),
            facts(
                "old-vision",
                (0.0, None, None),
                context_tokens=32768,
                capabilities="vision reasoning",
                kind="text",
                offline=True,
                retires="2026-10-01T00:00:00Z",
            ),
            facts("text-embedding-bge-m3", (0.15, 0.6, None), capabilities="embeddings", kind="embedding"),
            facts("venice-sd35", kind="image"),
            facts("tts-kokoro", kind="speech"),
        ],
    ),
    (
        "openrouter",
        "openrouter",
        True,
        [
            facts(
                "meta-llama/llama-3.3-70b-instruct",
                (0.13, 0.4, 0.065),
                context_tokens=131072,
                output_tokens_max=16384,
                capabilities="tools json_schema logprobs",
                kind="text",
            ),
            facts(
                "google/gemini-2.5-pro",
                (1.25, 10.0, 0.31),
                context_tokens=1048576,
                output_tokens_max=65536,
                capabilities="vision audio video files tools reasoning json_schema",
                kind="text",
                retires="2026-12-31",
            ),
            facts("openrouter/auto", context_tokens=2000000, capabilities="", kind="text"),
            # Its modalities are not told, so what it cannot do is not either.
            facts("some/free-model:free", (0.0, 0.0, None), context_tokens=32768),
        ],
    ),
]


@pytest.mark.parametrize(("name", "profile", "complete", "expected"), FORMS, ids=[form[0] for form in FORMS])
def test_each_documented_form_is_read(name: str, profile: str, complete: bool, expected: list[ModelFacts]) -> None:
    listing = read(PROFILES[profile], (CORPUS / f"{name}.json").read_bytes())
    assert listing.complete is complete
    assert list(listing.models.values()) == expected
    assert all(key == model.id for key, model in listing.models.items())


def test_every_form_of_the_corpus_is_in_the_table() -> None:
    assert {path.stem for path in CORPUS.glob("*.json")} == {form[0] for form in FORMS}


def body(*rows: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"object": "list", "data": list(rows), **more})


def only(row: dict[str, Any]) -> ModelFacts:
    (model,) = read(GENERIC, body({"id": "m", **row})).models.values()
    return model


@pytest.mark.parametrize(
    "row",
    [
        None,
        7,
        "m",
        [],
        {},
        {"id": None},
        {"id": 7},
        {"id": ""},
        {"id": "x" * (ID_CHARS_MAX + 1)},
        {"id": "a\nb"},
        {"id": "a\u202eb"},
        {"id": ["m"]},
        {"object": "model"},
    ],
)
def test_an_odd_row_costs_that_row_alone(row: Any) -> None:
    listing = read(GENERIC, body({"id": "before"}, row, {"id": "after"}))
    assert list(listing.models) == ["before", "after"]
    assert listing.complete


def test_a_number_beyond_numbers_costs_its_row_alone() -> None:
    raw = b'{"data":[{"id":"a","pricing":{"prompt":1e999}},{"id":"b","context_length":' + b"9" * 400 + b'},{"id":"c"}]}'
    assert "c" in read(GENERIC, raw).models


@pytest.mark.parametrize("said", ["-1", "-0.000001", "nan", "inf", "-inf", "1e9", "", "free", "1" * 65, 0.000001, 3])
def test_a_price_that_is_none_is_unknown(said: Any) -> None:
    model = only({"pricing": {"prompt": said, "completion": "0.000002"}})
    assert model.input_usd_per_mtok is None
    assert model.output_usd_per_mtok == 2.0


@pytest.mark.parametrize("said", [-1, "0.7", None, True, [1], 1e7, {"usd": 1}])
def test_a_price_of_venice_is_a_number_within_reason(said: Any) -> None:
    model = only({"type": "text", "model_spec": {"pricing": {"input": {"usd": said}, "output": {"usd": 2}}}})
    assert model.input_usd_per_mtok is None
    assert model.output_usd_per_mtok == 2.0


@pytest.mark.parametrize("said", [0, -5, True, "65536", None, [], 10**10, 0.5])
def test_a_window_that_is_none_is_unknown(said: Any) -> None:
    assert only({"context_length": said}).context_tokens is None
    assert only({"context_length": said, "max_model_len": 4096}).context_tokens == 4096


@pytest.mark.parametrize(
    "row",
    [
        {"model_spec": {"pricing": [], "capabilities": 7, "deprecation": "soon", "offline": "yes"}},
        {"model_spec": {}, "type": []},
        {"architecture": {"input_modalities": {}, "output_modalities": 3}, "top_provider": []},
        {"architecture": {}, "pricing": "cheap", "supported_parameters": {"tools": True}},
        {"architecture": {"input_modalities": ["image"]}},
        {"architecture": None, "supported_parameters": ["tools"]},
        {"capabilities": ["tools"], "aliases": "m2", "deprecation": {}},
        {"expiration_date": "x" * 41, "active": "false"},
    ],
)
def test_a_field_of_another_shape_is_unknown(row: dict[str, Any]) -> None:
    assert only(row) == ModelFacts("m")


def test_a_row_of_its_own_says_more_than_an_alias() -> None:
    listing = read(GENERIC, body({"id": "a", "aliases": ["b", "c", 7, "d\n"]}, {"id": "b", "max_model_len": 5}))
    assert listing.models == {"a": ModelFacts("a"), "b": ModelFacts("b", context_tokens=5), "c": ModelFacts("c")}
    many = read(GENERIC, body({"id": "a", "aliases": [f"a{i}" for i in range(1000)]}))
    assert len(many.models) == 1 + ALIASES_MAX


def test_the_first_of_two_rows_with_one_id_counts() -> None:
    assert only({"context_length": 5}) == read(GENERIC, body({"id": "m", "context_length": 5}, {"id": "m"})).models["m"]


@pytest.mark.parametrize(
    ("more", "complete"),
    [
        ({}, True),
        ({"has_more": False}, True),
        ({"has_more": True}, False),
        ({"has_more": "true"}, True),
        ({"links": {"next": None}}, True),
        ({"links": {"next": "/models?page=2"}}, False),
        ({"links": []}, True),
    ],
)
def test_a_page_of_a_list_is_told_from_a_whole_one(more: dict[str, Any], complete: bool) -> None:
    assert read(GENERIC, body({"id": "m"}, **more)).complete is complete


def test_rows_beyond_the_bound_are_left_out_and_said_to_be() -> None:
    rows = [{"id": f"m{i}"} for i in range(MODELS_MAX + 1)]
    listing = read(GENERIC, body(*rows))
    assert len(listing.models) == MODELS_MAX
    assert not listing.complete
    assert read(GENERIC, body(*rows[:-1])).complete


@pytest.mark.parametrize("raw", [b'\xef\xbb\xbf{"data":[{"id":"m"}]}', b' \r\n{"data":[{"id":"m"}]}', b' [{"id":"m"}]'])
def test_what_stands_before_the_list_is_passed_over(raw: bytes) -> None:
    assert list(read(GENERIC, raw).models) == ["m"]


def test_no_models_at_all_is_a_list_too() -> None:
    assert read(GENERIC, b'{"data":[]}').models == {}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>sign in</html>",
        b'{"data":[{"id":"m"}',
        b'{"error":{"message":"no"}}',
        b'{"data":{"id":"m"}}',
        b'{"data":null}',
        b'"m"',
        b"null",
        b"[" * 100_000,
        b'{"data":[{"id":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
        b'{"data":[1,2]}',
        b'{"data":[{"name":"m"}]}',
        b'{"data":[{"id":"\xff"}]}',
        b" " * (LIST_BYTES_MAX + 1),
    ],
)
def test_what_is_no_list_is_an_error_that_says_what_was_expected(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"observed .*(expected|none of them)") as caught:
        read(GENERIC, raw)
    assert len(str(caught.value)) < 500


def test_an_error_repeats_nothing_of_the_body() -> None:
    with pytest.raises(ValueError) as caught:
        read(PROFILES["venice"], b'{"data":"sk-Canary0123456789","id":"sk-Canary0123456789"}')
    assert "Canary" not in str(caught.value)
    assert "venice" in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "type",
    "model_spec",
    "pricing",
    "architecture",
    "supported_parameters",
    "top_provider",
    "context_length",
    "max_completion_tokens",
    "aliases",
    "active",
    "deprecation",
    "expiration_date",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_a_row_holds_its_facts_are_sound(row: dict[str, Any]) -> None:
    model = read(GENERIC, body({**row, "id": "m"})).models["m"]
    for price in (model.input_usd_per_mtok, model.output_usd_per_mtok, model.cached_usd_per_mtok):
        assert price is None or 0 <= price <= 1e6
    for tokens in (model.context_tokens, model.output_tokens_max):
        assert tokens is None or (type(tokens) is int and tokens > 0)


@given(st.binary() | JSON.map(msgspec.json.encode))
def test_whatever_comes_is_a_list_or_a_value_error(raw: bytes) -> None:
    try:
        listing = read(GENERIC, raw)
    except ValueError:
        return
    assert len(listing.models) <= MODELS_MAX
