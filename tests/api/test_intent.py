"""What a request for `model: "auto"` is taken for: by its form, and where the form says nothing by its words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.api.body import judge
from dandolo.api.intent import LONG_TOKENS, USE_CASES, Intent, read_intent

DATA = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def read(request: dict[str, Any], *, ascii: bool = False) -> Intent:
    return read_intent(judge(json.dumps(request, ensure_ascii=ascii).encode()).fields)


def said(*turns: str, system: str = "") -> dict[str, Any]:
    """A chat request of turns, the user's first and last."""
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"model": "auto", "messages": messages}


def f1(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """F1 of each label, of (expected, observed)."""
    counts = Counter(pairs)
    scores = {}
    for label in USE_CASES:
        hits = counts[label, label]
        missed = sum(n for (want, got), n in counts.items() if want == label != got)
        wrong = sum(n for (want, got), n in counts.items() if got == label != want)
        scores[label] = 2 * hits / (2 * hits + missed + wrong)
    return scores


@pytest.mark.parametrize(("half", "least"), [("dev", 0.95), ("heldout", 0.85)])
def test_the_corpus_is_told_apart(labelled: Callable[[str], list[dict[str, Any]]], half: str, least: float) -> None:
    """The held-out half was written to score on, and nobody looks at what it gets wrong."""
    scores = f1([(entry["intent"], read(entry["request"]).use) for entry in labelled(half)])
    macro = sum(scores.values()) / len(scores)
    print(f"{half}: macro-F1 {macro:.3f}", {label: round(score, 3) for label, score in scores.items()})
    assert macro >= least


# -- the form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "capability"),
    [
        ([{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": DATA}}], "vision"),
        ([{"type": "input_image", "image_url": DATA}], "vision"),
        ([{"type": "image", "source": {"type": "base64", "data": "aGk="}}], "vision"),
        ([{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}], "audio"),
        ([{"type": "file", "file": {"file_id": "f"}}], "files"),
        ([{"type": "document", "source": {"type": "base64", "data": "aGk="}}], "files"),
        ([{"type": "video_url", "video_url": {"url": "https://example.com/v.mp4"}}], "video"),
    ],
)
def test_a_part_that_is_not_text_is_multimodal_wherever_it_stands(content: list[Any], capability: str) -> None:
    asked = {"role": "user", "content": content}
    later = [{"role": "assistant", "content": "a bridge"}, {"role": "user", "content": "thanks"}]
    for messages in ([asked], [asked, *later]):
        for field in ("messages", "input"):
            found = read({"model": "auto", field: messages})
            assert found.use == "multimodal"
            assert found.features.capabilities == {capability}


def test_a_picture_in_the_result_of_a_tool_is_multimodal_and_still_needs_tools() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"data": "aGk="}}]}
    found = read({"model": "auto", "messages": [{"role": "user", "content": [result]}]})
    assert found.use == "multimodal"
    assert found.features.capabilities == {"vision", "tools"}


def test_text_that_speaks_of_pictures_or_tools_is_text() -> None:
    quoted = '{"type": "image_url", "tool_calls": [1]} ![cat](https://example.com/cat.png)'
    found = read({**said(f"What does this mean? {quoted}"), "tools": [], "response_format": {"type": "json_object"}})
    assert found.features.capabilities == frozenset()
    plain = {"type": "document", "source": {"type": "text", "data": "A note on herons."}}
    assert read({"messages": [{"role": "user", "content": [plain]}]}).features.files == 0


@pytest.mark.parametrize(
    ("extra", "use"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"functions": [TOOL["function"]]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools"),
        ({"tools": [TOOL], "tool_choice": "none"}, "question"),
        ({"tools": [TOOL], "tool_choice": {"type": "none"}}, "question"),
        ({"functions": [TOOL["function"]], "function_call": "none"}, "question"),
        ({"tools": []}, "question"),
        ({"tools": None}, "question"),
    ],
)
def test_tools_are_what_is_offered_and_not_refused(extra: dict[str, Any], use: str) -> None:
    found = read({**said("What's the weather in Oslo?"), **extra})
    assert found.use == use
    assert found.features.tools is (use == "tools")


@pytest.mark.parametrize(
    "messages",
    [
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
            }
        ],
        [{"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "tool", "tool_call_id": "c", "content": "4 °C"}],
        [{"role": "function", "name": "f", "content": "4 °C"}],
        [{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}],
        [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}],
        [{"type": "function_call_output", "call_id": "c", "output": "4 °C"}],
    ],
)
def test_tools_that_were_used_are_tools_even_if_none_is_offered_now(messages: list[dict[str, Any]]) -> None:
    field = "input" if "type" in messages[0] else "messages"
    assert (
        read({field: [*messages, {"role": "user", "content": "and tomorrow?"}], "tool_choice": "none"}).use == "tools"
    )


def test_a_prompt_of_eight_thousand_tokens_is_a_long_context() -> None:
    word = "heron "
    below, above = word * (LONG_TOKENS * 4 // 6 - 50), word * (LONG_TOKENS * 4 // 6 + 50)
    assert read(said(below)).use == "question"
    assert read(said(above)).use == "long_context"
    assert read(said("Which birds are meant?", system=above)).use == "long_context"
    assert read(said("def f(): pass\n" * 4000)).use == "long_context"
    # What the caller allows for the answer does not count, and neither do definitions of tools.
    assert read({**said("hello"), "max_tokens": 50_000}).use == "question"
    assert read({**said("hello"), "tools": [TOOL] * 2000, "tool_choice": "none"}).use == "question"


def test_every_dialect_says_the_same() -> None:
    text = "Write a regex that matches a German postcode"
    parts = [{"type": "text", "text": text}]
    for request in (
        {"messages": [{"role": "user", "content": text}]},
        {"messages": [{"role": "user", "content": parts}], "system": "Be brief.", "max_tokens": 10},
        {"input": text},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]},
        {"prompt": text},
        {"prompt": [text]},
    ):
        assert read(request).use == "code", request


def test_what_the_choice_rests_on_is_told() -> None:
    request = said("Hello there", "Hello", "And you?", system="Be brief.")
    request["messages"][1]["content"] = [
        {"type": "image_url"},
        {"type": "input_audio"},
        {"type": "text", "text": "Hello"},
    ]
    request |= {"tools": [TOOL], "max_completion_tokens": 77}
    features = read(request).features
    assert (features.turns, features.images, features.audio, features.files) == (2, 1, 1, 0)
    assert features.capabilities == {"tools", "vision", "audio"}
    assert features.output_tokens_max == 77
    assert features.input_tokens > 2000


# -- the words ------------------------------------------------------------------------------------------

JS = "```js\nconst add = (x) => x + 1;\n```\nCall it with a number."


@pytest.mark.parametrize(
    "turn",
    [
        "How do I undo my last commit without losing the changes?",
        "Напиши функцию на питоне, которая проверяет, является ли строка палиндромом",
        "파이썬으로 CSV 파일을 읽어서 중복 행을 제거하는 코드 짜줘",
        "写一个脚本,把文件夹里的图片批量改名",
        "JavaScriptで配列の重複を取り除くには?",
        "Why is my docker container exiting immediately with code 0?",
        "Bonjour, je cherche une requête qui renvoie les doublons d'une table clients",
        "I need a macro in LibreOffice Calc that hides empty rows",
        "convert to rust:\n\nfor i in range(10):\n    print(i * i)",
        "Draw a cross-section of a beam in TikZ with a load arrow",
        'What is wrong with this JSON?\n{"a": 1, "b": [1,2,}, "c"}',
        "Make a Dockerfile for a Flask app",
        "Please translate this function to Kotlin:\nfunction add(a, b) { return a + b }",
        "اكتب دالة في بايثون لحساب المتوسط",
        "what's the command to see which process uses port 8080",
        "Write an email validation function with tests",
        "google sheets: highlight duplicates in column B",
        "kann man in Excel eine Zelle automatisch rot färben, wenn das Datum überschritten ist?",
    ],
)
def test_code_is_wanted(turn: str) -> None:
    found = read(said(turn))
    assert found.use == "code", found
    assert read(said(turn), ascii=True).use == "code"


@pytest.mark.parametrize(
    "turn",
    [
        "Write a haiku about a programmer who can't find a bug",
        "Explain what an API is to my grandmother",
        "Should I learn JavaScript or Python first to get a job?",
        "Translate to French: The server will restart at midnight, please save your files.",
        "My python escaped from its terrarium, where do snakes hide?",
        "Draft a tweet announcing our new API, two emojis",
        "请把这封邮件翻译成英文:您好,服务器将于明天维护。",
        "プログラマーに転職したいのですが、35歳からでも遅くないですか?",
        "Class 9B is going on a school trip, write the parents a letter with packing list and bus times",
        "Compose a rap about Kubernetes for our team party",
        "Proofread: The function of the committee are to oversee the budget.",
        "Solve f(x) = x^2 - 4x + 3 = 0 and explain each step",
        "What is Docker and why does everyone use it?",
        "How do I get rust off my bicycle chain?",
        "Summarize: The new release fixes a memory leak in the parser and adds a dark mode.",
        "Cuéntame un cuento sobre un robot que aprende a programar",
    ],
)
def test_prose_is_wanted_even_if_it_speaks_of_computers(turn: str) -> None:
    found = read(said(turn))
    assert found.use == "question", found


@pytest.mark.parametrize(
    ("turn", "use"),
    [
        ("now with typescript types", "code"),
        ("why the arrow?", "code"),
        ("funktioniert nicht, kommt NaN", "code"),
        ("et pour une liste ?", "code"),
        ("shorter", "code"),
        ("继续", "code"),
        ("what about negative numbers", "code"),
        ("thank you so much!", "question"),
        ("thanks! by the way, any good ramen places in Osaka?", "question"),
        ("Danke! Noch was ganz anderes: wie lange kocht man Kartoffeln?", "question"),
        ("who invented the telephone?", "question"),
        ("translate your explanation to French", "question"),
    ],
)
def test_a_short_turn_carries_on_with_code_unless_it_turns_away(turn: str, use: str) -> None:
    assert read(said("write js that adds one", JS, turn)).use == use


def test_a_system_prompt_that_demands_code_makes_code_of_a_plain_question() -> None:
    asked = "list users who never logged in"
    assert read(said(asked)).use == "question"
    assert read(said(asked, system="Convert the request to PostgreSQL. Output only SQL.")).use == "code"
    assert read(said(asked, system="Answer with one query.\nCREATE TABLE users(id int, seen date);")).use == "code"
    expert = "You are an expert programmer. You write tested code in Python and Go. Wrap code in fenced blocks."
    assert read(said("What are the side effects of ibuprofen?", system=expert)).use == "question"


def test_a_system_prompt_that_makes_prose_of_code_is_a_question() -> None:
    commits = "feat(billing): prorate seats\nfix(auth): race in `rotate()` when refresh_token is old\nperf(list): rows"
    assert read(said(f"what does this change?\n{commits}")).use == "code"
    assert read(said(commits, system="You write release notes for non-technical customers.")).use == "question"


def test_a_reason_repeats_nothing_of_the_request() -> None:
    for turn in ("zanzibar regex in zanzibar.py: zanzibar()", "zanzibar", "zanzibar " * 8000):
        assert "zanzibar" not in read(said(turn)).reason


# -- the bounds -----------------------------------------------------------------------------------------


def test_code_in_the_tail_of_a_long_text_is_seen() -> None:
    letter = "The heron stood in the shallow water and waited for the evening. " * 300
    assert read(said(letter)).use == "question"
    assert read(said(letter + "\nTurn this into a python list of sentences with a regex")).use == "code"


def test_of_very_many_messages_the_middle_counts_too() -> None:
    plain = [{"role": ("user", "assistant")[at % 2], "content": "so it is"} for at in range(9001)]
    found = read({"messages": plain})
    assert found.use == "long_context"
    assert found.features.input_tokens == pytest.approx(9001 * 2, rel=0.5)
    plain[4501] = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA}}]}
    assert read({"messages": plain}).use == "multimodal"
    plain[4501] = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert read({"messages": plain}).use == "tools"


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.sampled_from(["user", "text", "tool"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "output", "source", "data"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=25,
)


@given(
    fields=st.dictionaries(
        st.sampled_from(["messages", "input", "prompt", "system", "tools", "tool_choice", "max_tokens"]), _json
    )
)
@settings(deadline=None)
def test_whatever_json_comes_is_some_intent(fields: dict[str, Any]) -> None:
    found = read({"model": "auto", **fields})
    assert found.use in USE_CASES
    assert found.features.input_tokens >= 0
