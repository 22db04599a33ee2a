"""Anthropic's own API (platform.claude.com/docs: *Errors*, *Rate limits*, *Versioning*).

Its OpenAI-compatible layer is left out on purpose: it drops response_format, seed and penalties without a
word. Configuration may still widen the dialects by "chat".
"""

from __future__ import annotations

from typing import Literal

from dandolo.api.profiles.profile import Kind, LimitHeaders, Profile, TextRule


def _limit(subject: str) -> LimitHeaders:
    stem = f"anthropic-ratelimit-{subject}-".encode()
    counts: Literal["requests", "tokens"] = "requests" if subject == "requests" else "tokens"
    return LimitHeaders(counts, stem + b"limit", stem + b"remaining", stem + b"reset")


ANTHROPIC = Profile(
    name="anthropic",
    base_url="https://api.anthropic.com/v1",
    env_key="ANTHROPIC_API_KEY",
    auth="x-api-key",
    headers={"anthropic-version": "2023-06-01"},
    dialects=frozenset({"messages", "count_tokens", "models"}),
    include_usage="no",
    limits=(_limit("requests"), _limit("tokens"), _limit("input-tokens"), _limit("output-tokens")),
    limit_scope="model",
    # A page has 20 by default, 1,000 at most.
    list_query="?limit=1000",
    codes={
        "billing_error": Kind.QUOTA,
        # Spend limits arrive as 429 rate_limit_error with error.details.error_code.
        "enforced_spend_limit_reached": Kind.QUOTA,
        "contract_spend_limit_reached": Kind.QUOTA,
        "linked_organization_spend_limit_reached": Kind.QUOTA,
    },
    texts=(
        # A 400 invalid_request_error that is not the caller's doing.
        TextRule(400, "credit balance is too low", Kind.QUOTA),
        TextRule(400, "usage limits", Kind.QUOTA),
        TextRule(400, "prompt is too long", Kind.CONTEXT_LENGTH),
    ),
)
