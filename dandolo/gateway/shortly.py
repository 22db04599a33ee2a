"""The short way of a usual call: sent and answered without a coroutine when all is well.

A call that is like the one before it on its connection (`Lane`), to a candidate that can be asked now and has a
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
from dandolo.cache.headers import Outcome, forwarded
from dandolo.gateway.attempt import FIRST_BYTE
from dandolo.gateway.choice import Ask
from dandolo.gateway.leading import may_lead
from dandolo.gateway.pins import remember
from dandolo.gateway.spending import must_learn, reserve
from dandolo.gateway.streaming import relay_events
from dandolo.gateway.waiting import grace_s, others
from dandolo.gateway.ways import Lane
from dandolo.net.relay import EventRelay
from dandolo.net.strand import Waiter
from dandolo.route.candidate import Candidate
from dandolo.route.hedge import first_token_deadline_s
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.fleet import Runtime
    from dandolo.net.upstream import Upstream

_now = time.monotonic
MISSED = forwarded(Outcome.MISS, stored=True)


def begin_shortly(exchange: Exchange, lane: Lane) -> bool:
    """Send the first attempt at once; False when the story has to be told from its beginning."""
    plane = exchange.plane
    try:
        # Whatever may be refused is judged before anything is taken that would have to be given back.
        call = exchange.call = read(exchange.endpoint, exchange.request.body, b"")
        if not lane.fits(call, plane.generation):
            return False
        now = exchange.started
        exchange.lane = lane
        caching = plane.caching
        if caching is not None and not (call.stream and exchange.annotates):
            plan = exchange.plan = caching.plan(exchange, call, lane)
            if plan is not None:
                kept = caching.find(plan, now)
                if kept is not None and caching.send(exchange, call, kept, Outcome.HIT, now):
                    exchange.over(None)
                    return True
                if not may_lead(exchange, call, plan):
                    return False
                if exchange.gateway.tiers is not None or exchange.gateway.sharing is not None:
                    # Loaded only where there is more than memory; it goes on with `send_shortly`.
                    from dandolo.gateway.looking import Looking

                    Looking(exchange, call, plan, lane).begin()
                    return True
    except Exception as error:
        exchange.over(error)
        return True
    return send_shortly(exchange, lane, call, now)


def send_shortly(exchange: Exchange, lane: Lane, call: Call, now: float) -> bool:
    """Send the first attempt of a call that nothing is kept for; False when its story has to be told."""
    plane, admitted = exchange.plane, exchange.admitted
    candidate: Candidate | None = None
    try:
        route = lane.route
        pool = route.pool
        only = pool.single
        if only is not None:
            candidate = only if only.plain(now) else plane.balancer.choose(pool, now)
        else:
            ask = Ask(call, route, admitted.tenant.name)
            candidate = plane.balancer.choose(pool, now, ask.tokens_in, route.tokens_out, (), ask.prefix, ask.room)
        if candidate is None:
            return False
        way = lane.ways.get(candidate)
        if way is None:
            exchange.chosen = candidate
            return False
        runtime, target = way.runtime, way.target
        if admitted.tenant.spending is not None:
            if must_learn(exchange, route):
                exchange.chosen = candidate
                return False
            reserve(exchange, call, route, now)
        stream = call.stream
        hides_usage = stream and call.injects_usage(runtime.takes_usage_option(target.model))
        body = call.body_for(target.model, target.name, target.account.provider.defaults, inject_usage=hides_usage)
    except Exception as error:
        exchange.chosen = candidate
        exchange.over(error)
        return True
    if body is None or not candidate.limit.slots.enter(admitted.tenant.name):
        exchange.chosen = candidate
        return False
    connection = runtime.pool.take(now)
    if connection is None:
        candidate.limit.slots.leave(now, admitted.tenant.name)
        exchange.chosen = candidate
        return False
    books = exchange.gateway.books
    if books is not None and not books.intend(exchange, target):
        # Told by the coroutine, which is refused the same.
        runtime.pool.put(connection, now)
        candidate.limit.slots.leave(now, admitted.tenant.name)
        exchange.chosen = candidate
        return False
    plan = exchange.plan
    if plan is not None and not exchange.leads:
        exchange.leads = True
        exchange.gateway.flights.lead(plan.key, exchange)
        exchange.cache = "miss"
        exchange.cache_lines = MISSED
    exchange.gateway.budget.earn()
    admitted.tenant.budget.earn()
    exchange.target = target
    exchange.attempts = 1
    timeouts = plane.config.timeouts
    exchange.total_at = now + (timeouts.stream_total if stream else timeouts.total)
    exchange.sent_at = now = _now()
    if stream:
        wait_s = timeouts.first_byte_stream
        more = pool.single is None and others(exchange, route, (candidate,), now)
        if more:
            wait_s = first_token_deadline_s(candidate.measured, wait_s, grace_s(call), pool.everybody)
    else:
        more = False
        wait_s = timeouts.first_byte
    exchange.await_until(now + wait_s, FIRST_BYTE)
    if more:
        exchange.plan_hedge(candidate, now)
    begun = exchange.begun = Begun(exchange, runtime, candidate, connection, hides_usage, now)
    connection.ask(
        b"%bcontent-length: %d\r\n%bx-request-id: %b\r\n\r\n"
        % (way.prefix, len(body), exchange.trace_lines, exchange.encoded_id),
        body,
        begun,
    )
    return True


class Begun:
    """An attempt that has been sent: its slot is taken, its answer to come.

    The connection tells it the outcome. If that is nothing usual, or the exchange has other news (the client has
    left, a deadline has passed), the exchange's coroutine takes over and waits on `waiter` as if it had sent the
    request itself; from then on this only passes the outcome on.
    """

    __slots__ = ("_exchange", "_waiter", "candidate", "connection", "epoch", "hides_usage", "number", "runtime")

    def __init__(
        self,
        exchange: Exchange,
        runtime: Runtime,
        candidate: Candidate,
        connection: Upstream,
        hides_usage: bool,
        now: float,
    ) -> None:
        self._exchange = exchange
        self._waiter: Waiter[bytes | None] | None = None
        self.runtime = runtime
        self.candidate = candidate
        self.connection = connection
        self.hides_usage = hides_usage
        call = exchange.call
        assert call is not None
        self.number, self.epoch = candidate.begin(now, call.stream)

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
            if exchange.leads:
                exchange.whole = content
                exchange.response = response
            books = exchange.gateway.books
            if books is not None:
                books.answered(exchange)
            exchange.client.answer(200, exchange.head(response, target), content)
        except Exception as error:
            self._end(error)
            return
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """There is no answer, or the stream did not end well: the coroutine finds its first attempt failed."""
        self.waiter().fail(error)
        self._exchange.tell_on()

    def content(self) -> None:
        """The first content of the stream has come."""
        now = _now()
        self._exchange.first_token_at = now
        self.candidate.first_content(self.number, self.epoch, now)

    def _hand_over(self, content: bytes | None) -> None:
        self.waiter().set(content)
        self._exchange.tell_on()

    def _relay(self, response: Response) -> None:
        """The stream is here; a coroutine is needed only if it does not end well."""
        exchange = self._exchange
        exchange.first_byte_at = now = _now()
        exchange.provider_s = now - exchange.sent_at
        lane = exchange.lane
        assert lane is not None
        flow = relay_events(
            exchange,
            self.runtime,
            self.connection,
            response,
            hides_usage=self.hides_usage,
            hold=others(exchange, lane.route, (self.candidate,), now),
            on_content=self.content,
        )
        flow.done.then(self._relayed, self._broken)

    def _relayed(self, _: None) -> None:
        exchange = self._exchange
        if self._waiter is None and exchange.begun is self:
            flow = exchange.relay
            assert isinstance(flow, EventRelay)
            try:
                exchange.write_down()
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
        exchange, candidate = self._exchange, self.candidate
        exchange.begun = None
        now = _now()
        runtime, connection = self.runtime, self.connection
        response = connection.response
        if connection.release():
            runtime.pool.put(connection, now)
        else:
            exchange.gateway.keep(runtime, connection, ended=error is None)
        if error is None:
            tokens = exchange.tokens_out()
            if exchange.endpoint.dialect == "responses":
                remember(exchange)
            candidate.succeeded(self.number, self.epoch, now, tokens)
            if now >= runtime.hints_due and response is not None:
                runtime.read_hints(response.fields, now)
        else:
            candidate.abandoned(self.number, self.epoch)
        runtime.slots.leave(now, exchange.admitted.tenant.name)
        exchange.over(error)


def _check(exchange: Exchange, content: bytes) -> bool:
    """Whether a plain answer is one that needs no judgement: complete JSON, no error in it. Reads its usage."""
    found = usage.facts(content)
    if found is None or faults.may_hold_error(content):
        return False
    exchange.usage = usage.of(found)
    exchange.finish_reason = found.finish()
    exchange.response_id = found.id
    return True


def _is_stream(exchange: Exchange, response: Response) -> bool:
    """Whether an answer to a call for a stream is one, without anything to be said about it."""
    return (
        response.fields.get(b"content-type", b"").startswith(b"text/event-stream")
        and exchange.endpoint.dialect != "plain"
    )
