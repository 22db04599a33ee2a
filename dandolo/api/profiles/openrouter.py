"""OpenRouter (openrouter.ai/docs: *Errors and Debugging*, *Limits*, *Streaming*; 2026-08).

`error.code` is the HTTP status as a number; the stable word is `error.metadata.error_type`. Usage always
arrives in the last message (`stream_options.include_usage` is a no-op there), and a 403 is mostly a
guardrail's or a moderator's refusal.
"""

from __future__ import annotations

from dandolo.api.profiles.profile import OPENAI_LIMITS, PLAIN_LIMITS, Kind, Profile, TextRule

OPENROUTER = Profile(
    name="openrouter",
    base_url="https://openrouter.ai/api/v1",
    env_key="OPENROUTER_API_KEY",
    dialects=frozenset({"chat", "completions", "embeddings", "responses", "models"}),
    include_usage="no",
    limits=(PLAIN_LIMITS, *OPENAI_LIMITS),
    # Most of its 429s come from the provider behind a model; its own free-tier limits are the exception.
    limit_scope="model",
    routes=True,
    # ":nitro", ":online"; those with prices of their own (":free") are listed as they are.
    suffixes=True,
    codes={
        "max_tokens_exceeded": Kind.BAD_REQUEST,
        "token_limit_exceeded": Kind.QUOTA,
        "string_too_long": Kind.CONTEXT_LENGTH,
        "authentication": Kind.AUTH,
        "permission_denied": Kind.MODERATION,
        "payment_required": Kind.QUOTA,
        "provider_overloaded": Kind.OVERLOADED,
        "provider_unavailable": Kind.SERVER,
        "unprocessable": Kind.BAD_REQUEST,
        "payload_too_large": Kind.TOO_LARGE,
        "refusal": Kind.MODERATION,
        "image_not_found": Kind.BAD_REQUEST,
        "timeout": Kind.TIMEOUT,
        "server": Kind.SERVER,
        "unmapped": Kind.SERVER,
    },
    texts=(
        TextRule(400, "not a valid model id", Kind.NOT_FOUND_MODEL),
        TextRule(403, "key limit exceeded", Kind.QUOTA),
        TextRule(403, "spend limit", Kind.QUOTA),
        TextRule(429, "free-models-per-", Kind.RATE_LIMIT, "account"),
        TextRule(503, "no available model provider", Kind.MODEL_OFFLINE),
    ),
    forbidden=Kind.MODERATION,
)
