"""Providers that Dandolo knows by name: their addresses, and the variables that hold their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class KnownProvider:
    profile: str
    base_url: str


def key_variable(name: str) -> str:
    return f"{name.upper()}_API_KEY"


def url_variable(name: str) -> str:
    return f"{name.upper()}_BASE_URL"


KNOWN: Final[Mapping[str, KnownProvider]] = MappingProxyType(
    {
        "venice": KnownProvider("venice", "https://api.venice.ai/api/v1"),
        "openrouter": KnownProvider("openrouter", "https://openrouter.ai/api/v1"),
        "openai": KnownProvider("openai", "https://api.openai.com/v1"),
        "anthropic": KnownProvider("anthropic", "https://api.anthropic.com/v1"),
        "groq": KnownProvider("generic", "https://api.groq.com/openai/v1"),
        "mistral": KnownProvider("generic", "https://api.mistral.ai/v1"),
        "deepseek": KnownProvider("generic", "https://api.deepseek.com/v1"),
        "together": KnownProvider("generic", "https://api.together.xyz/v1"),
        "fireworks": KnownProvider("generic", "https://api.fireworks.ai/inference/v1"),
        "xai": KnownProvider("generic", "https://api.x.ai/v1"),
    }
)

BASE_URLS: Final[Mapping[str, str]] = MappingProxyType(
    {name: known.base_url for name, known in KNOWN.items() if known.profile == name}
)
"""The address of each profile that has one: what `base_url` is when the file leaves it out."""
