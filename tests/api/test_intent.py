"""What a request for `model: "auto"` is taken for: by its form, and where the form says nothing by its words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from dandolo.api.body import judge
from dandolo.api.intent import USE_CASES, Intent, read_intent

CORPUS = Path(__file__).parent.parent / "corpus" / "intent"
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


def expand(value: Any) -> Any:
    """`$repeat` and `$concat` of the corpus as the strings they stand for."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$repeat"}:
        return expand(value["$repeat"]["text"]) * value["$repeat"]["times"]
    if set(value) == {"$concat"}:
        return "".join(map(expand, value["$concat"]))
    return {key: expand(item) for key, item in value.items()}


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
def test_the_corpus_is_told_apart(half: str, least: float) -> None:
    """The held-out half was written to score on, and nobody looks at what it gets wrong."""
    entries = [expand(json.loads(line)) for line in (CORPUS / f"{half}.jsonl").read_text("utf-8").splitlines()]
    scores = f1([(entry["intent"], read(entry["request"]).use) for entry in entries])
    macro = sum(scores.values()) / len(scores)
    print(f"{half}: macro-F1 {macro:.3f}", {label: round(score, 3) for label, score in scores.items()})
    assert macro >= least
