"""A stream on its way: from the provider's head to the last event, whoever waits for its end.

Both ways of an exchange come here, the coroutine's (`gateway.attempt`) and the short one (`gateway.shortly`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from dandolo.gateway import answers
from dandolo.gateway.annotation import annotation
from dandolo.gateway.tap import StreamTap
from dandolo.net.relay import EventRelay
from dandolo.net.upstream import Upstream
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.fleet import Runtime

FIRST_CONTENT = "the first content of the provider's stream"


def relay_events(
    exchange: Exchange,
    runtime: Runtime,
    connection: Upstream,
    response: Response,
    *,
    hides_usage: bool,
    hold: bool,
    on_content: Callable[[], None],
) -> EventRelay:
    """Begin to pass on the events of an answer; its `done` tells the end, which may have come by now.

    `hold`: somebody else could still take over, so nothing goes out before the first content (`on_content`).
    """
    target = exchange.target
    assert target is not None
    dialect = exchange.endpoint.dialect
    annotate = dialect in ("chat", "completions") and exchange.annotates
    exchange.tap = tap = StreamTap(
        dialect,
        target.account.provider.profile,
        secrets=runtime.secrets,
        hide_usage=hides_usage,
        on_content=on_content,
        closing=partial(annotation, exchange) if annotate else None,
    )

    def commit(flow: EventRelay, first: bytes) -> None:
        exchange.commit(response.status)
        head = exchange.head(response, target) + answers.STREAM
        exchange.client.begin_stream(response.status, head, flow, first=first)

    flow = exchange.relay = EventRelay(
        exchange.client,
        connection,
        tap,
        hold=hold,
        commit=commit,
        on_payload=exchange.note_payload,
        pace=exchange.gateway.sweep,
    )
    # Until the first content the deadline is still that of the first byte: comments and role-only chunks, which
    # are held back, do not move it.
    exchange.begin_heartbeat()
    exchange.await_still(FIRST_CONTENT)
    connection.relay_to(flow)
    return flow
