"""The labelled requests for `model: "auto"`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parent.parent / "corpus" / "intent"


def _expand(value: Any) -> Any:
    """`$repeat` and `$concat` as the strings they stand for."""
    if isinstance(value, list):
        return [_expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$repeat"}:
        return _expand(value["$repeat"]["text"]) * value["$repeat"]["times"]
    if set(value) == {"$concat"}:
        return "".join(map(_expand, value["$concat"]))
    return {key: _expand(item) for key, item in value.items()}


def _labelled(half: str) -> list[dict[str, Any]]:
    lines = (CORPUS / f"{half}.jsonl").read_text("utf-8").splitlines()
    return [_expand(json.loads(line)) for line in lines]


@pytest.fixture
def labelled() -> Callable[[str], list[dict[str, Any]]]:
    """Reads one half, "dev" or "heldout": entries of `id`, `intent` and `request`."""
    return _labelled
