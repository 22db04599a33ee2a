"""The record of a finished request: facts, never text. One a request; its fields are the line of the access log."""

from __future__ import annotations

from typing import Final

import msgspec

NOT_CACHED: Final = "not_cached"
"""The code of a 504 that its caller asked for (`only-if-cached`): no failure of ours."""


class Record(msgspec.Struct, omit_defaults=True, gc=False):
    """What one request was and what became of it, in the order and the units of the log.

    `time` is when it began (ISO 8601, UTC). Durations are milliseconds: `duration_ms` from the complete request to
    the last byte handed to the socket, `queue_ms` waiting for a slot (None: not at all), `first_byte_ms` and
    `first_token_ms` from the complete request (None: there was none), `overhead_ms` what the gateway itself took.
    `status` is what the client was told, 499 when it left. `attempts` counts calls to providers, `code` is the
    error code or "". `cache` is what the cache did: hit, miss, stale, collapsed ("": nothing). `estimated` marks
    token counts that are ours; `cost_usd` is None where it is unknown. Texts from outside are cut by whoever makes
    the record (`dandolo.values`). `trace` is the traceparent
    that went to the provider (with our own span's id), `parent` the caller's span; both "" while tracing is off.
    """

    time: str
    id: str
    status: int
    method: str
    endpoint: str
    key: str = ""
    client: str = ""
    model: str = ""
    provider: str = ""
    account: str = ""
    upstream_model: str = ""
    stream: bool = False
    attempts: int = 0
    finish: str = ""
    code: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_usd: float | None = None
    duration_ms: float | None = None
    queue_ms: float | None = None
    first_byte_ms: float | None = None
    first_token_ms: float | None = None
    overhead_ms: float | None = None
    cache: str = ""
    trace: str = ""
    parent: str = ""
