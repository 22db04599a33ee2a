"""Venice.ai (docs.venice.ai: API spec, *Error Codes*, *Rate Limits*; 2026-08).

Most errors are `{"error": "text"}` without their code, so the texts of its error table are told apart by
wording. Its limits are per model and key.
"""

from __future__ import annotations

from dandolo.api.profiles.profile import Kind, Profile, TextRule

VENICE = Profile(
    name="venice",
    base_url="https://api.venice.ai/api/v1",
    env_key="VENICE_API_KEY",
    dialects=frozenset({"chat", "responses", "embeddings", "models", "images", "audio", "venice_image"}),
    include_usage="yes",
    limit_scope="model",
    # Left out, it lists text models only.
    list_query="?type=all",
    # "llama-3.3-70b:enable_web_search=on"
    suffixes=True,
    codes={
        "insufficient_balance": Kind.QUOTA,
        "api_key_diem_spend_limit_exceeded": Kind.QUOTA,
        "api_key_usd_spend_limit_exceeded": Kind.QUOTA,
        "unauthorized": Kind.AUTH,
        "api_access_disabled": Kind.AUTH,
        "x402_wallet_mismatch": Kind.AUTH,
        "invalid_model": Kind.NOT_FOUND_MODEL,
        "too_many_tokens": Kind.CONTEXT_LENGTH,
        "character_not_found": Kind.BAD_REQUEST,
        "media_not_found": Kind.BAD_REQUEST,
        "request_id_not_found": Kind.BAD_REQUEST,
        "payload_too_large": Kind.TOO_LARGE,
        "model_overloaded": Kind.OVERLOADED,
        "model_at_capacity": Kind.OVERLOADED,
        "model_offline": Kind.MODEL_OFFLINE,
        "request_timeout": Kind.TIMEOUT,
    },
    texts=(
        # "Too many failed attempts (> 20) resulting in a non-success status code. Please wait 30s and try
        # again." Retrying inside the window fails and counts again, so the whole account must pause.
        TextRule(429, "too many failed", Kind.ERROR_BUDGET),
        TextRule(429, "overloaded", Kind.OVERLOADED),
        TextRule(401, "only available to pro", Kind.AUTH, "model"),
        TextRule(400, "invalid model", Kind.NOT_FOUND_MODEL),
        TextRule(403, "access has been disabled", Kind.AUTH, "account"),
        TextRule(403, "unauthorized access", Kind.AUTH, "account"),
        TextRule(404, "character", Kind.BAD_REQUEST),
        TextRule(404, "media could not", Kind.BAD_REQUEST),
        TextRule(422, "content polic", Kind.MODERATION),
        TextRule(400, "content polic", Kind.MODERATION),
        TextRule(503, "temporarily offline", Kind.MODEL_OFFLINE),
    ),
)
