"""The end of a story in figures: the record of an exchange, with its tokens and cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.api import usage as usages
from dandolo.clock import timestamp
from dandolo.net.relay import EventRelay
from dandolo.record import Record
from dandolo.values import CHARS_SURE, cut

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_now = time.monotonic
_methods = {b"POST": "POST", b"GET": "GET", b"HEAD": "HEAD", b"DELETE": "DELETE"}


def record(exchange: Exchange) -> Record:
    """What this request was, for the log and the metrics."""
    now, started = _now(), exchange.started
    call, target, admitted, error = exchange.call, exchange.target, exchange.admitted, exchange.error
    counts = _counts(exchange)
    first_byte, first_token = exchange.first_byte_at, exchange.first_token_at
    if target is None:
        provider = account = upstream_model = ""
    else:
        upstream_model = target.model
        provider, account = target.account.provider.name, target.account.label
    model = call.model if call is not None else ""
    if len(model) > CHARS_SURE:
        model, upstream_model = cut(model), cut(upstream_model)
    finish, cost, queue_s = exchange.finish_reason or "", counts.cost_usd, exchange.queue_s
    if len(finish) > CHARS_SURE:
        finish = cut(finish)
    duration = now - started
    provider_s = exchange.provider_s if exchange.relay is None else now - exchange.sent_at
    # By position, in the order of the fields: twice as fast as by name. Whole numbers divided give the
    # nearest double to three decimals, for a third of what round() costs.
    return Record(
        timestamp(exchange.gateway.unix(started)),
        exchange.id,
        exchange.status,
        _methods.get(exchange.request.method) or exchange.request.method.decode("ascii"),
        exchange.endpoint.name,
        admitted.tenant.name,
        admitted.client,
        model,
        provider,
        account,
        upstream_model,
        exchange.relay is not None and isinstance(exchange.relay, EventRelay),
        exchange.attempts,
        finish,
        "" if error is None else cut(error.code or ""),
        len(exchange.request.body),
        exchange.bytes_out,
        counts.input_tokens,
        counts.output_tokens,
        counts.cached_tokens,
        counts.reasoning_tokens,
        counts.estimated,
        None if cost is None else int(cost * 1e9 + 0.5) / 1e9,
        int(duration * 1e6) / 1e3,
        int(queue_s * 1e6) / 1e3 if queue_s else None,
        None if first_byte is None else int((first_byte - started) * 1e6) / 1e3,
        None if first_token is None else int((first_token - started) * 1e6) / 1e3,
        max(0, int((duration - provider_s - queue_s) * 1e6)) / 1e3,
    )


def _counts(exchange: Exchange) -> usages.Usage:
    """The provider's own counts and cost; ours, marked, where an answer was interrupted before they came."""
    counts = exchange.usage
    if counts is None:
        counts = usages.Usage()
        if exchange.tap is not None and exchange.committed and exchange.call is not None:
            counts.input_tokens = max(exchange.tap.usage.input_tokens, usages.estimate_tokens(len(exchange.call.raw)))
            counts.output_tokens = max(exchange.tap.usage.output_tokens, exchange.tap.data_events)
            counts.estimated = True
    if counts.cost_usd is None and exchange.target is not None and (counts.input_tokens or counts.output_tokens):
        counts.cost_usd = exchange.target.cost_usd(counts.input_tokens, counts.output_tokens)
    return counts
