"""The short way of a usual call: sent and answered without a coroutine when all is well.

A call that is like the one before it on its connection (`Lane`), to an account that is well and has a
connection at hand, is sent at once. When a plain, complete answer without any error comes, it is passed on,
and so is a stream that ends as it should. Whatever else happens, the exchange's coroutine takes over in the
middle of its first attempt (`begun`), as if it had told the story from the start; so there is one story, and
this only tells its commonest beginning and end in fewer steps. Measured: 5 of 30 µs (`bench/micro/path.py`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.api import faults, usage
from dandolo.api.call import Call, read
from dandolo.gateway.attempt import FIRST_BYTE, Begun
from dandolo.gateway.choice import more
from dandolo.gateway.streaming import relay_events
from dandolo.net.strand import Waiter
from dandolo.route.catalog import Target
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_now = time.monotonic


class Lane:
    """What was worked out for the calls of one connection that ask for the same models in the same way.

    It lives as long as the head it belongs to repeats, byte for byte but for lines that decide nothing, and
    holds for the first of its `targets`.
    """

    __slots__ = ("answer", "models", "prefix", "stream", "targets")

    def __init__(self, call: Call, targets: tuple[Target, ...]) -> None:
        self.models = call.models
        self.stream = call.stream
        self.targets = targets
        self.prefix: bytes | None = None
        """The request's head up to what varies; None until it is known that no header is to be forwarded."""
        self.answer = targets[0].account.provider.answer_lines


def begin_shortly(exchange: Exchange, lane: Lane) -> bool:
    """Send the first attempt at once; False when the story has to be told from its beginning."""
    target = lane.targets[0]
    model = target.model
    try:
        # Whatever may be refused is judged before anything is taken that would have to be given back.
        call = exchange.call = read(exchange.endpoint, exchange.request.body, b"")
        runtime = exchange.plane.fleet[target.account]
        stream = call.stream
        hides_usage = stream and call.injects_usage(runtime.takes_usage_option(model))
        body = call.body_for(model, target.name, target.account.provider.defaults, inject_usage=hides_usage)
    except Exception as error:
        exchange.over(error)
        return True
    if call.models is not lane.models or stream is not lane.stream or not runtime.well(model):
        return False
    prefix = lane.prefix
    if body is None or prefix is None or b"x-dandolo-timeout" in exchange.request.fields:
        return False
    now = exchange.started
    if not runtime.slots.enter():
        return False
    connection = runtime.pool.take(now)
    if connection is None:
        runtime.slots.leave(now)
        return False
    breaker = runtime.breaker(model)
    exchange.gateway.budget.earn()
    exchange.target = target
    exchange.attempts = 1
    timeouts = exchange.plane.config.timeouts
    exchange.total_at = now + (timeouts.stream_total if stream else timeouts.total)
    exchange.sent_at = now = _now()
    exchange.await_until(now + (timeouts.first_byte_stream if stream else timeouts.first_byte), FIRST_BYTE)
    waiter = connection.send(
        b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n" % (prefix, len(body), exchange.encoded_id), body
    )
    exchange.begun = Begun(
        runtime, connection, waiter, breaker, breaker.epoch if breaker is not None else 0, hides_usage
    )
    waiter.then(lambda content: _answer(exchange, content), lambda _: exchange.tell_shortly_begun())
    return True


def _answer(exchange: Exchange, content: bytes | None) -> None:
    """The plain answer is here: pass it on if nothing is the matter with it."""
    begun = exchange.begun
    if exchange.strand is not None or begun is None:
        return
    try:
        response, target, call = begun.connection.response, exchange.target, exchange.call
        assert response is not None
        assert target is not None
        assert call is not None
        if content is None or call.stream:
            if content is None and call.stream and _is_stream(exchange, response):
                _relay(exchange, begun, response)
            else:
                exchange.tell_on()
            return
        if response.status != 200 or not _check(exchange, response, content):
            exchange.tell_on()
            return
        exchange.first_byte_at = now = _now()
        exchange.provider_s = now - exchange.sent_at
        exchange.committed = True
        exchange.status = 200
        exchange.bytes_out = len(content)
        exchange.client.answer(200, exchange.head(response, target), content)
        exchange.begun = None
    except Exception as error:
        exchange.begun = None
        begun.give_back(exchange.gateway, now=_now(), well=False)
        exchange.over(error)
        return
    begun.give_back(exchange.gateway, now=now, well=True)
    exchange.over(None)


def _check(exchange: Exchange, response: Response, content: bytes) -> bool:
    """Whether a plain answer is one that needs no judgement: complete JSON, no error in it. Reads its usage."""
    found = usage.facts(content)
    if found is None or b"content-encoding" in response.fields or faults.may_hold_error(content):
        return False
    exchange.usage = usage.of(found)
    exchange.finish_reason = found.finish()
    return True


def _is_stream(exchange: Exchange, response: Response) -> bool:
    """Whether an answer to a call for a stream is one, without anything to be said about it."""
    return (
        response.status == 200
        and response.fields.get(b"content-type", b"").startswith(b"text/event-stream")
        and b"content-encoding" not in response.fields
        and exchange.endpoint.dialect != "plain"
    )


def _relay(exchange: Exchange, begun: Begun, response: Response) -> None:
    """The stream is here: pass it on; a coroutine is needed only if it does not end well."""
    exchange.first_byte_at = now = _now()
    exchange.provider_s = now - exchange.sent_at
    # A coroutine that takes over (the client has left, a deadline has passed) waits where this one would.
    lane = exchange.admitted.lane
    assert lane is not None
    assert exchange.target is not None
    exchange.begun = begun._replace(waiter=Waiter())
    hold = len(lane.targets) > 1 and more(exchange, lane.targets, [exchange.target])
    flow = relay_events(exchange, begun.runtime, begun.connection, response, hides_usage=begun.hides_usage, hold=hold)
    flow.done.then(lambda _: _relayed(exchange, begun), lambda error: _broken(exchange, error))


def _relayed(exchange: Exchange, begun: Begun) -> None:
    """The stream has ended as it should."""
    if exchange.strand is not None or exchange.begun is None:
        return
    exchange.begun = None
    problem: Exception | None = None
    try:
        exchange.client.end_stream()
    except Exception as error:
        problem = error
    begun.give_back(exchange.gateway, now=_now(), well=problem is None)
    exchange.over(problem)


def _broken(exchange: Exchange, error: BaseException) -> None:
    """The stream has not: the coroutine finds its first attempt failed, and goes on from there."""
    begun = exchange.begun
    if exchange.strand is not None or begun is None:
        return
    exchange.end_heartbeat()
    begun.waiter.fail(error)
    exchange.tell_on()
