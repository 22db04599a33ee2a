"""The record of an exchange: what comes from outside is cut when the record is made."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dandolo.api.usage import Usage
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.summary import record


def exchange(**changes: Any) -> Exchange:
    """As much of an exchange as its record is made from."""
    values: dict[str, Any] = {
        "started": time.monotonic() - 1.0,
        "ended_at": time.monotonic(),
        "model": "fast",
        "method": b"POST",
        "body_bytes": 5,
        "target": SimpleNamespace(
            model="llama", account=SimpleNamespace(label="venice/a", provider=SimpleNamespace(name="venice"))
        ),
        "admitted": SimpleNamespace(tenant=SimpleNamespace(name="ci"), client="10.0.0.7"),
        "code": "",
        "usage": Usage(input_tokens=3, output_tokens=4, cost_usd=0.5),
        "first_byte_at": None,
        "first_token_at": None,
        "finish_reason": "stop",
        "queue_s": 0.0,
        "provider_s": 0.9,
        "relayed": False,
        "streamed": False,
        "gateway": SimpleNamespace(unix=lambda at: 0.0),
        "id": "req_1",
        "status": 200,
        "endpoint": SimpleNamespace(name="chat"),
        "attempts": 1,
        "bytes_out": 7,
        "cache": "",
        "trace": "",
        "trace_parent": "",
    }
    return cast(Exchange, SimpleNamespace(**{**values, **changes}))


def test_facts_are_passed_on() -> None:
    made = record(exchange())
    assert (made.model, made.upstream_model, made.provider, made.account) == ("fast", "llama", "venice", "venice/a")
    assert (made.finish, made.code, made.bytes_in, made.bytes_out) == ("stop", "", 5, 7)
    assert (made.input_tokens, made.output_tokens, made.cost_usd) == (3, 4, 0.5)
    assert made.duration_ms is not None
    assert made.duration_ms >= 1000.0
    assert made.queue_ms is made.first_byte_ms is made.first_token_ms is None


@pytest.mark.parametrize("text", ["x" * 100_000, "模" * 300, "🙂" * 65, "\ud800" * 300])
def test_what_comes_from_outside_is_cut(text: str) -> None:
    long = SimpleNamespace(
        model=text, account=SimpleNamespace(label="venice/a", provider=SimpleNamespace(name="venice"))
    )
    made = record(exchange(model=text, target=long, finish_reason=text, code=text))
    for value in (made.model, made.upstream_model, made.finish, made.code):
        assert len(value.encode()) <= 256
        assert value.endswith("…")
