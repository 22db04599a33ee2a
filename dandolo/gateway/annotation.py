"""The opt-in closing event of a stream: who answered, how long it took, what it cost."""

from __future__ import annotations

import msgspec

from dandolo.api.usage import Usage
from dandolo.route.catalog import Target
from dandolo.wire import sse

_encoder = msgspec.json.Encoder()


def annotation(
    target: Target,
    request_id: str,
    *,
    started_unix: float,
    attempts: int,
    total_s: float,
    first_token_s: float | None,
    counts: Usage | None,
) -> bytes:
    """One event in the shape of a chunk without choices, so that every SDK skips it. Times in the event are ms."""
    cost = None
    if counts is not None:
        cost = counts.cost_usd
        if cost is None:
            cost = target.cost_usd(counts.input_tokens, counts.output_tokens)
    return sse.encode(
        _encoder.encode(
            {
                "id": request_id,
                "object": "chat.completion.chunk",
                "created": int(started_unix),
                "model": target.name or target.model,
                "choices": [],
                "timestamp": int((started_unix + total_s) * 1000),
                "dandolo_metadata": {
                    "provider": target.provider.name,
                    "model": target.model,
                    "attempts": attempts,
                    "total_ms": round(total_s * 1000, 3),
                    "first_token_ms": None if first_token_s is None else round(first_token_s * 1000, 3),
                    "input_tokens": None if counts is None else counts.input_tokens,
                    "output_tokens": None if counts is None else counts.output_tokens,
                    "cost_usd": cost,
                },
            }
        )
    )
