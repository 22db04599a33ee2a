"""OpenAI (platform.openai.com/docs: *Error codes*, *Rate limits*). Limits are per organisation and model."""

from __future__ import annotations

from dandolo.api.profiles.profile import Kind, Profile, TextRule

OPENAI = Profile(
    name="openai",
    base_url="https://api.openai.com/v1",
    env_key="OPENAI_API_KEY",
    dialects=frozenset({"chat", "completions", "embeddings", "moderations", "responses", "images", "audio", "models"}),
    include_usage="yes",
    limit_scope="model",
    # Its reasoning models refuse max_tokens.
    answer_bound="max_completion_tokens",
    codes={
        "billing_hard_limit_reached": Kind.QUOTA,
        "billing_not_active": Kind.QUOTA,
        "account_deactivated": Kind.AUTH,
        "unsupported_country_region_territory": Kind.AUTH,
        "moderation_blocked": Kind.MODERATION,
        "previous_response_not_found": Kind.BAD_REQUEST,
    },
    texts=(
        TextRule(404, "previous response", Kind.BAD_REQUEST),
        TextRule(404, "response with id", Kind.BAD_REQUEST),
    ),
)
