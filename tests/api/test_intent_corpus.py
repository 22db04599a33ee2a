"""The labelled requests for `model: "auto"` are what their README says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

Labelled = Callable[[str], list[dict[str, Any]]]
INTENTS = ("question", "code", "long_context", "multimodal", "tools")
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


def texts(request: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for message in request["messages"]:
        content = message.get("content") or ""
        found += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        found += [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
    return found


def by_form(request: dict[str, Any]) -> str:
    """The label as far as the form decides it; "" where only the meaning does."""
    messages = request["messages"]
    contents = [message.get("content") for message in messages]
    if any(isinstance(content, list) and any(part["type"] != "text" for part in content) for content in contents):
        return "multimodal"
    refused = "none" in (request.get("tool_choice"), request.get("function_call"))
    if (request.get("tools") or request.get("functions")) and not refused:
        return "tools"
    if any(m["role"] in ("tool", "function") or m.get("tool_calls") or m.get("function_call") for m in messages):
        return "tools"
    return "long_context" if sum(map(len, texts(request))) >= 32_000 else ""


@pytest.mark.parametrize("half", ["dev", "heldout"])
def test_every_line_has_the_form_and_a_label_that_its_form_allows(labelled: Labelled, half: str) -> None:
    entries = labelled(half)
    assert Counter(entry["intent"] for entry in entries) == dict.fromkeys(INTENTS, 36)
    for entry in entries:
        request = entry["request"]
        assert request["model"] == "auto", entry["id"]
        assert {message["role"] for message in request["messages"]} <= ROLES, entry["id"]
        expected = entry["intent"] if entry["intent"] in INTENTS[2:] else ""
        assert by_form(request) == expected, entry["id"]
        size = sum(map(len, texts(request)))
        assert size >= 34_000 if expected == "long_context" else size < 30_000, entry["id"]


def test_the_halves_share_neither_ids_nor_texts(labelled: Labelled) -> None:
    dev, heldout = labelled("dev"), labelled("heldout")
    assert len({entry["id"] for entry in dev + heldout}) == len(dev) + len(heldout)
    known = {text for entry in dev for text in texts(entry["request"]) if len(text) > 25}
    assert not known & {text for entry in heldout for text in texts(entry["request"])}
