"""The record of a finished request: facts, never text. One a request, frozen once written."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, gc=False):
    """What one request was and what became of it.

    Times are seconds; `started` is Unix time, the others are durations: `duration` from the complete
    request to the last byte handed to the socket, `queue` waiting for a slot, `first_byte` and
    `first_token` from the complete request (None when there was none), `overhead` what the gateway itself
    took. `status` is what the client was told, 499 when it left. `attempts` counts calls to providers,
    `code` is the error code or None. `estimated` marks token counts that are ours.
    """

    id: str
    started: float
    endpoint: str
    method: str
    status: int = 0
    key: str = ""
    client: str = ""
    model: str = ""
    provider: str = ""
    account: str = ""
    upstream_model: str = ""
    upstream_id: str = ""
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
    cost_usd: float | None = None
    estimated: bool = False
    duration: float = 0.0
    queue: float = 0.0
    first_byte: float | None = None
    first_token: float | None = None
    overhead: float = 0.0
