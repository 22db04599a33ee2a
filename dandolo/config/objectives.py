"""The `[ledger]` section and the `[[slo]]` tables: what is written down of spending, what is promised of service."""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dandolo.config import fields, kinds
from dandolo.config.spec import absent, key, required

Workload = Literal["chat", "image", "embeddings", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    enabled: bool = key(kinds.flag(), "true", "write down tokens and cost of every request, in state_dir")
    retention: float = key(kinds.time_span("1d", "3650d"), '"400d"', "how long sums by the hour are kept")
    requests: int = key(
        kinds.whole(0, 10_000_000), "100_000", "single requests that can be looked up by their id; 0: none"
    )
    journal_bytes: int = key(
        kinds.byte_size("64KiB", "1GiB"),
        '"32MiB"',
        "of each worker, for what the ledger has not read yet (160 B a request); beyond: keys with a budget get 503",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """An objective; a target that is left out is not asked for."""

    name: str = required(kinds.name(), "how reports and metrics call it", example='"chat"')
    workload: Workload = key(
        kinds.choice("chat", "image", "embeddings", "any"), '"any"', "which requests count: by endpoint"
    )
    key: str | None = absent(kinds.name(), "of one client key; left out: all", example='"ci"')
    model: str | None = absent(fields.model_id(), "of one model, as asked for; left out: all", example='"fast"')
    p95: float | None = absent(kinds.time_span("1ms", "1h"), "95 % of requests take at most", example='"2s"')
    p99: float | None = absent(kinds.time_span("1ms", "1h"), "99 % of requests take at most", example='"5s"')
    first_token_p95: float | None = absent(
        kinds.time_span("1ms", "1h"), "95 % of streams have their first token within", example='"800ms"'
    )
    success: float | None = absent(
        kinds.number(0, 1, "share"), "requests that do not fail (5xx), at least", example="0.999"
    )
    cache_hit_rate: float | None = absent(
        kinds.number(0, 1, "share"), "of requests that the cache may answer, at least", example="0.7"
    )
