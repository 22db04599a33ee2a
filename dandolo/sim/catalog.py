"""What a provider says of itself: its list of models with prices, and the headers it puts on answers."""

from __future__ import annotations

from dandolo.sim.answer import (
    EPOCH,
    INPUT_USD_PER_MTOK,
    OUTPUT_USD_PER_MTOK,
    Answer,
    Asked,
    Json,
    Refused,
    encode,
)


def models(asked: Asked, wanted: str) -> Answer:
    if asked.method not in ("GET", "HEAD"):
        raise Refused(405, f"Not allowed to {asked.method} on {asked.path}", headers=(("allow", "GET"),))
    if wanted:
        if wanted not in asked.models:
            raise Refused(404, f"The model '{wanted}' does not exist", "model_not_found")
        return Answer(body=encode(_model(asked, wanted)))
    data = [_model(asked, name) for name in asked.models]
    listing: Json = {"object": "list", "data": data}
    if asked.dialect == "anthropic":
        listing = {"data": data, "has_more": False, "first_id": asked.models[0], "last_id": asked.models[-1]}
    return Answer(body=encode(listing))


def _model(asked: Asked, name: str) -> Json:
    if asked.dialect == "anthropic":
        return {"type": "model", "id": name, "display_name": name, "created_at": "2025-06-15T00:00:00Z"}
    item: Json = {"id": name, "object": "model", "created": EPOCH, "owned_by": asked.provider}
    if asked.dialect == "venice":
        # Venice lists numbers, USD per million tokens; OpenRouter strings, USD per token.
        price_in, price_out = INPUT_USD_PER_MTOK, OUTPUT_USD_PER_MTOK
        item |= {"owned_by": "venice.ai", "type": "text", "context_length": 131_072}
        item["model_spec"] = {
            "availableContextTokens": 131_072,
            "maxCompletionTokens": 8_192,
            "name": name,
            "privacy": "private",
            "offline": False,
            "traits": [],
            "capabilities": {
                "supportsFunctionCalling": True,
                "supportsResponseSchema": True,
                "supportsVision": False,
                "supportsReasoning": False,
            },
            "pricing": {
                "input": {"usd": price_in, "diem": price_in},
                "output": {"usd": price_out, "diem": price_out},
                "cache_input": {"usd": price_in / 10, "diem": price_in / 10},
            },
        }
    elif asked.dialect == "openrouter":
        item |= {"name": name, "canonical_slug": name, "context_length": 131_072}
        item["pricing"] = {
            "prompt": f"{INPUT_USD_PER_MTOK / 1e6:.9f}",
            "completion": f"{OUTPUT_USD_PER_MTOK / 1e6:.9f}",
            "request": "0",
            "input_cache_read": f"{INPUT_USD_PER_MTOK / 1e7:.9f}",
        }
        item["top_provider"] = {"context_length": 131_072, "max_completion_tokens": 8_192, "is_moderated": False}
        item["supported_parameters"] = ["max_tokens", "temperature", "tools", "structured_outputs"]
        item["architecture"] = {
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "modality": "text->text",
        }
    return item


def provider_headers(asked: Asked, model: str) -> tuple[tuple[str, str], ...]:
    """Headers that this provider puts on a generated answer."""
    if asked.dialect == "venice":
        return (
            ("x-venice-model-id", model),
            ("x-venice-model-name", model),
            ("x-venice-balance-usd", "100.000000"),
            ("x-venice-balance-diem", "10.000000"),
            ("x-venice-version", "sim"),
            ("x-ratelimit-type", "user"),
            ("cf-ray", f"{asked.sequence:016x}-SIM"),
        )
    if asked.dialect == "openrouter":
        return (("x-generation-id", asked.id("gen")),)
    return (
        ("openai-processing-ms", "1"),
        ("openai-version", "2020-10-01"),
        ("openai-organization", "org-sim"),
    )
