"""The end of a story in figures: the record of an exchange, with its tokens and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dandolo.api import usage as usages
from dandolo.clock import timestamp
from dandolo.record import Record
from dandolo.values import CHARS_SURE, cut

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_methods = {b"POST": "POST", b"GET": "GET", b"HEAD": "HEAD", b"DELETE": "DELETE"}


def record(exchange: Exchange) -> Record:
    """What a request was that has ended (`Exchange.let_go`), for the log and the metrics."""
    now, started = exchange.ended_at, exchange.started
    target, admitted = exchange.target, exchange.admitted
    counts = exchange.usage or usages.Usage()
    if counts.cost_usd is None and target is not None and (counts.input_tokens or counts.output_tokens):
        counts.cost_usd = target.cost_usd(counts.input_tokens, counts.output_tokens)
    first_byte, first_token = exchange.first_byte_at, exchange.first_token_at
    if target is None:
        provider = account = upstream_model = ""
    else:
        upstream_model = target.model
        provider, account = target.account.provider.name, target.account.label
    model = exchange.model
    if len(model) > CHARS_SURE:
        model, upstream_model = cut(model), cut(upstream_model)
    finish, cost, queue_s = exchange.finish_reason or "", counts.cost_usd, exchange.queue_s
    if len(finish) > CHARS_SURE:
        finish = cut(finish)
    duration = now - started
    provider_s = exchange.provider_s if not exchange.relayed else now - exchange.sent_at
    # By position, in the order of the fields: twice as fast as by name. Whole numbers divided give the
    # nearest double to three decimals, for a third of what round() costs.
    made = Record(
        timestamp(exchange.gateway.unix(started)),
        exchange.id,
        exchange.status,
        _methods.get(exchange.method) or exchange.method.decode("ascii"),
        exchange.endpoint.name,
        admitted.tenant.name,
        admitted.client,
        model,
        provider,
        account,
        upstream_model,
        exchange.streamed,
        exchange.attempts,
        finish,
        cut(exchange.code),
        exchange.body_bytes,
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
        exchange.cache,
    )
    if exchange.trace:
        made.trace, made.parent = exchange.trace, exchange.trace_parent
    return made


def estimated(known: usages.Usage, body_bytes: int, events: int) -> usages.Usage:
    """Our own counts, marked as such, for a stream that was interrupted before the provider's came."""
    known.input_tokens = max(known.input_tokens, usages.estimate_tokens(body_bytes))
    known.output_tokens = max(known.output_tokens, events)
    known.estimated = True
    return known
