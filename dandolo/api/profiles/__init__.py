"""Each provider's quirks as data, one small module a provider."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dandolo.api.profiles.anthropic import ANTHROPIC
from dandolo.api.profiles.azure import AZURE
from dandolo.api.profiles.generic import GENERIC
from dandolo.api.profiles.openai import OPENAI
from dandolo.api.profiles.openrouter import OPENROUTER
from dandolo.api.profiles.profile import (
    ENDPOINTS,
    Endpoint,
    Kind,
    LimitHeaders,
    Profile,
    Scope,
    TextRule,
    path,
)
from dandolo.api.profiles.venice import VENICE

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (VENICE, OPENROUTER, OPENAI, ANTHROPIC, AZURE, GENERIC)}
)


def profile(name: str) -> Profile:
    """The profile called `name`; ValueError names the ones there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"unknown profile {name[:64]!r}: expected one of {', '.join(PROFILES)}") from None


__all__ = [
    "ENDPOINTS",
    "PROFILES",
    "Endpoint",
    "Kind",
    "LimitHeaders",
    "Profile",
    "Scope",
    "TextRule",
    "path",
    "profile",
]
