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
from dandolo.gateway.attempt import FIRST_BYTE
from dandolo.gateway.choice import more
from dandolo.gateway.streaming import relay_events
from dandolo.net.relay import EventRelay
from dandolo.net.strand import Waiter
from dandolo.route.catalog import Target
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.fleet import Runtime
    from dandolo.net.upstream import Upstream
    from dandolo.route.breaker import Breaker

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
    begun = exchange.begun = Begun(exchange, runtime, connection, breaker, hides_usage)
    connection.ask(
        b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n" % (prefix, len(body), exchange.encoded_id), body, begun
    )
    return True


class Begun:
    """An attempt that has been sent: its slot is taken, its answer to come.

    The connection tells it the outcome. If that is nothing usual, or the exchange has other news (the client has
    left, a deadline has passed), the exchange's coroutine takes over and waits on `waiter` as if it had sent the
    request itself; from then on this only passes the outcome on.
    """

    __slots__ = ("_breaker", "_exchange", "_waiter", "connection", "epoch", "hides_usage", "runtime")

    def __init__(
        self, exchange: Exchange, runtime: Runtime, connection: Upstream, breaker: Breaker | None, hides_usage: bool
    ) -> None:
        self._exchange = exchange
        self._breaker = breaker
        self._waiter: Waiter[bytes | None] | None = None
        self.runtime = runtime
        self.connection = connection
        self.epoch = 0 if breaker is None else breaker.epoch
        self.hides_usage = hides_usage

    def waiter(self) -> Waiter[bytes | None]:
        """For the coroutine: the outcome of the attempt, which may be there."""
        waiter = self._waiter
        if waiter is None:
            waiter = self._waiter = Waiter()
        return waiter

    def set(self, content: bytes | None) -> None:
        """The answer is here, plain or to be relayed: pass it on if nothing is the matter with it."""
        if self._waiter is not None:
            self._waiter.set(content)
            return
        exchange = self._exchange
        try:
            response, target, call = self.connection.response, exchange.target, exchange.call
            assert response is not None
            assert target is not None
            assert call is not None
            if response.status != 200 or b"content-encoding" in response.fields:
                self._hand_over(content)
                return
            if call.stream:
                if content is None and _is_stream(exchange, response):
                    self._relay(response)
                else:
                    self._hand_over(content)
                return
            if content is None or not _check(exchange, content):
                self._hand_over(content)
                return
            exchange.first_byte_at = now = _now()
            exchange.provider_s = now - exchange.sent_at
            exchange.committed = True
            exchange.status = 200
            exchange.bytes_out = len(content)
            exchange.client.answer(200, exchange.head(response, target), content)
        except Exception as error:
            self._end(error)
            return
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """There is no answer, or the stream did not end well: the coroutine finds its first attempt failed."""
        self.waiter().fail(error)
        self._exchange.tell_on()

    def _hand_over(self, content: bytes | None) -> None:
        self.waiter().set(content)
        self._exchange.tell_on()

    def _relay(self, response: Response) -> None:
        """The stream is here; a coroutine is needed only if it does not end well."""
        exchange = self._exchange
        exchange.first_byte_at = now = _now()
        exchange.provider_s = now - exchange.sent_at
        lane, target = exchange.admitted.lane, exchange.target
        assert lane is not None
        assert target is not None
        hold = len(lane.targets) > 1 and more(exchange, lane.targets, [target])
        flow = relay_events(exchange, self.runtime, self.connection, response, hides_usage=self.hides_usage, hold=hold)
        flow.done.then(self._relayed, self._broken)

    def _relayed(self, _: None) -> None:
        exchange = self._exchange
        if self._waiter is None and exchange.begun is self:
            flow = exchange.relay
            assert isinstance(flow, EventRelay)
            try:
                exchange.client.end_stream(flow.last)
            except Exception as error:
                self._end(error)
            else:
                self._end(None)

    def _broken(self, error: BaseException) -> None:
        if self._waiter is None and self._exchange.begun is self:
            self._exchange.end_heartbeat()
            self.fail(error)

    def _end(self, error: BaseException | None) -> None:
        """Give back what was taken; the exchange is over."""
        exchange, breaker = self._exchange, self._breaker
        exchange.begun = None
        now = _now()
        runtime, connection = self.runtime, self.connection
        if connection.release():
            runtime.pool.put(connection, now)
        else:
            exchange.gateway.keep(runtime, connection, ended=error is None)
        runtime.slots.leave(now)
        if breaker is not None:
            if error is None:
                breaker.succeeded(now, self.epoch)
            else:
                breaker.abandoned(self.epoch)
        exchange.over(error)


def _check(exchange: Exchange, content: bytes) -> bool:
    """Whether a plain answer is one that needs no judgement: complete JSON, no error in it. Reads its usage."""
    found = usage.facts(content)
    if found is None or faults.may_hold_error(content):
        return False
    exchange.usage = usage.of(found)
    exchange.finish_reason = found.finish()
    return True


def _is_stream(exchange: Exchange, response: Response) -> bool:
    """Whether an answer to a call for a stream is one, without anything to be said about it."""
    return (
        response.fields.get(b"content-type", b"").startswith(b"text/event-stream")
        and exchange.endpoint.dialect != "plain"
    )
