"""The opt-in closing event of a stream: who answered, how long it took, what it cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from dandolo.wire import sse

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_encoder = msgspec.json.Encoder()


def annotation(exchange: Exchange) -> bytes:
    """One event in the shape of a chunk without choices, so that every SDK skips it. Times in the event are ms."""
    target, now = exchange.target, time.monotonic()
    assert target is not None
    tap, first_token_at = exchange.tap, exchange.first_token_at
    counts = tap.usage if tap is not None and tap.counted else None
    cost = None
    if counts is not None:
        cost = counts.cost_usd
        if cost is None:
            cost = target.cost_usd(counts.input_tokens, counts.output_tokens)
    first_s = None if first_token_at is None else first_token_at - exchange.started
    return sse.encode(
        _encoder.encode(
            {
                "id": exchange.id,
                "object": "chat.completion.chunk",
                "created": int(exchange.gateway.unix(exchange.started)),
                "model": target.name or target.model,
                "choices": [],
                "timestamp": int(exchange.gateway.unix(now) * 1000),
                "dandolo_metadata": {
                    "provider": target.provider.name,
                    "model": target.model,
                    "attempts": exchange.attempts,
                    "total_ms": round((now - exchange.started) * 1000, 3),
                    "first_token_ms": None if first_s is None else round(first_s * 1000, 3),
                    "input_tokens": None if counts is None else counts.input_tokens,
                    "output_tokens": None if counts is None else counts.output_tokens,
                    "cost_usd": cost,
                },
            }
        )
    )
