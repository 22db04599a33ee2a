"""The header lines of a provider's answer as its client gets it: what goes on of the provider's, then ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.gateway import answers, site
from dandolo.gateway.explanation import about_choice
from dandolo.route.catalog import Target
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_now = time.monotonic


def answer_head(exchange: Exchange, response: Response, target: Target) -> bytes:
    """The lines, each ended by CRLF. Times in ms."""
    now = _now()
    provider_us = int(exchange.provider_s * 1e6)
    overhead_us = max(0, int((now - exchange.started - exchange.queue_s) * 1e6) - provider_us)
    overhead = b"%d.%03d" % divmod(overhead_us, 1000)
    if exchange.attempts == 1 and not exchange.queue_s:
        about = target.account.provider.answer_lines
    else:
        about = b"x-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\nx-dandolo-queue-ms: %d.%03d\r\n" % (
            target.account.provider.encoded_name,
            exchange.attempts,
            *divmod(int(exchange.queue_s * 1e6), 1000),
        )
    rated = exchange.admitted.tenant.rated
    head = (
        b"%b%bx-request-id: %b\r\n%bx-dandolo-overhead-ms: %b\r\n"
        b"server-timing: provider;dur=%d.%03d, dandolo;dur=%b\r\n"
    ) % (
        exchange.gateway.dates.line(now),
        answers.provider_fields(response) if rated is None else answers.limited_fields(response) + rated.lines(now),
        exchange.encoded_id,
        about,
        overhead,
        provider_us // 1000,
        provider_us % 1000,
        overhead,
    )
    if exchange.endpoint.dialect == "messages":
        head += b"request-id: %b\r\n" % exchange.encoded_id
    if exchange.attempts > 1 or exchange.explains or exchange.selection is not None:
        head += about_choice(exchange, now)
        if exchange.plan is not None and exchange.explains:
            head += b"x-dandolo-cache-key: %b\r\n" % exchange.plan.key.hex().encode()
    if exchange.cache_lines:
        head += exchange.cache_lines
    origin = exchange.admitted.origin
    return head if origin is None else head + site.cors(origin)


def relayed_head(exchange: Exchange, response: Response, provider: bytes) -> bytes:
    """The lines for the answer to a call that another process made: of its provider only the name is known."""
    head = b"%b%bx-request-id: %b\r\nx-dandolo-provider: %b\r\n%b" % (
        exchange.gateway.dates.line(_now()),
        answers.provider_fields(response),
        exchange.encoded_id,
        provider,
        exchange.cache_lines,
    )
    if exchange.endpoint.dialect == "messages":
        head += b"request-id: %b\r\n" % exchange.encoded_id
    origin = exchange.admitted.origin
    return head if origin is None else head + site.cors(origin)
