"""The life of a request, told in one place.

    accept → parse → admit → route → upstream → relay → record

A connection hands over a complete request; `_tell` reads it as a call, finds who can take it and asks one
after another (`gateway.attempt`) until somebody's first content is on its way to the client; from then on
it only relays. Every wait is a `Waiter` in a hand-driven coroutine (`net.strand`), so a client that leaves
cancels the story wherever it stands, and each `finally` gives back what was taken. One deadline moves along
with the story; the sweep calls `expire` when it has passed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from dandolo.api import usage as usages
from dandolo.api.call import Call, read
from dandolo.api.endpoints import MODELS
from dandolo.api.openai import model_not_found
from dandolo.clock import timestamp
from dandolo.errors import GatewayError, InternalError, Refusal, RequestError, UpstreamTimeout
from dandolo.gateway import answers, site
from dandolo.gateway.admission import Tenant
from dandolo.gateway.annotation import annotation
from dandolo.gateway.attempt import FIRST_BYTE, Attempt, Begun, check_shortly
from dandolo.gateway.tap import StreamTap
from dandolo.net.downstream import Downstream
from dandolo.net.relay import BytesRelay, EventRelay
from dandolo.net.strand import Strand, Waiter
from dandolo.net.sweep import NEVER
from dandolo.record import Record
from dandolo.route import retry
from dandolo.route.catalog import Target, admits, allowed
from dandolo.values import CHARS_SURE, cut
from dandolo.wire.client import Response
from dandolo.wire.server import Request

if TYPE_CHECKING:
    from dandolo.gateway.gateway import Admitted, Gateway

_log = logging.getLogger("dandolo")
_now = time.monotonic
_methods = {b"POST": "POST", b"GET": "GET", b"HEAD": "HEAD", b"DELETE": "DELETE"}


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
        self.answer = (
            b"x-dandolo-provider: %b\r\nx-dandolo-attempts: 1\r\nx-dandolo-queue-ms: 0.000\r\n"
            % targets[0].account.provider.encoded_name
        )


class Exchange:
    """One request of one client. Created by the gateway, which is told once (`ended`) when it is over."""

    # What is the same for every new exchange stands on the class: an exchange is made for each request.
    suffix = ""
    committed = False
    provider_s = 0.0
    """Seconds spent waiting for providers."""
    queue_s = 0.0
    """Seconds spent waiting for slots."""
    bytes_out = 0
    deadline = NEVER
    total_at = NEVER
    usage: usages.Usage | None = None
    tap: StreamTap | None = None
    relay: EventRelay | BytesRelay | None = None
    finish_reason: str | None = None
    _call: Call | None = None
    _target: Target | None = None
    _attempts = 0
    _error: GatewayError | None = None
    _status = 0
    first_byte_at: float | None = None
    _first_token_at: float | None = None
    _heartbeat_at = NEVER
    _wait_for = ""
    _wait_until = NEVER
    _strand: Strand | None = None
    _begun: Begun | None = None
    _ended = False

    def __init__(
        self, gateway: Gateway, admitted: Admitted, client: Downstream, request: Request, request_id: bytes
    ) -> None:
        self.gateway = gateway
        self.plane = admitted.plane
        self.admitted = admitted
        self.client = client
        self.request = request
        self.encoded_id = request_id
        self._endpoint = admitted.endpoint
        self._started = self.sent_at = _now()

    @property
    def id(self) -> str:
        """The request's id, as the client was told."""
        return self.encoded_id.decode("ascii")

    @property
    def _hurried(self) -> bool:
        """Whether the caller limits the time of this request itself."""
        return b"x-dandolo-timeout" in self.request.fields

    @property
    def tenant(self) -> Tenant:
        """Whose request it is."""
        return self.admitted.tenant

    def begin(self) -> None:
        """Start the story; `Gateway.ended` is called when it is over, possibly before this returns."""
        lane = self.admitted.lane
        if lane is None or lane.prefix is None or lane.stream or not self._begin_shortly(lane):
            self._tell_on()

    def cancel(self) -> None:
        """The client has left."""
        strand = self._tell_on()
        if strand is not None:
            strand.cancel()

    def interrupt(self, error: GatewayError) -> None:
        """End the story with `error` where it waits (a drain whose time is up)."""
        strand = self._tell_on()
        if strand is not None:
            strand.throw(error)

    def _tell_on(self) -> Strand | None:
        """Make sure that the story is being told by its coroutine, also when it was begun the short way."""
        if self._strand is None and not self._ended:
            self._strand = Strand(self._tell(), self._over)
            self._strand.resume()
        return self._strand

    # -- the short way ---------------------------------------------------------------------------------
    #
    # A plain call that is like the one before it on this connection, to an account that is well and has a
    # connection at hand, is sent without starting the coroutine, and answered without it when all is well.
    # Whatever else happens, the coroutine takes over in the middle of its first attempt (`_begun`), as if
    # it had told the story from the start. Measured: 5 of 30 µs (`bench/micro/path.py`).

    def _begin_shortly(self, lane: Lane) -> bool:
        """Send the first attempt at once; False when the story has to be told from its beginning."""
        try:
            call = self._call = read(self._endpoint, self.request.body, b"")
        except GatewayError as error:
            self._over(error)
            return True
        target = lane.targets[0]
        model = target.model
        runtime = self.plane.fleet[target.account]
        if call.models is not lane.models or call.stream or not runtime.well(model) or self._hurried:
            return False
        now = self._started
        if not runtime.slots.enter():
            return False
        connection = runtime.pool.take(now)
        if connection is None:
            runtime.slots.leave(now)
            return False
        prefix = lane.prefix
        body = call.body_for(model, target.name, target.account.provider.defaults, inject_usage=False)
        assert prefix is not None
        assert body is not None
        breaker = runtime.breaker(model)
        self.gateway.budget.earn()
        self._target = target
        self._attempts = 1
        timeouts = self.plane.config.timeouts
        self.total_at = now + timeouts.total
        self.sent_at = now = _now()
        self.await_until(now + timeouts.first_byte, FIRST_BYTE)
        waiter = connection.send(
            b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n" % (prefix, len(body), self.encoded_id), body
        )
        self._begun = Begun(runtime, connection, waiter, breaker, breaker.epoch if breaker is not None else 0)
        waiter.then(self._answer_shortly, self._answer_at_length)
        return True

    def _answer_shortly(self, content: bytes | None) -> None:
        """The plain answer is here: pass it on if nothing is the matter with it."""
        begun = self._begun
        if self._strand is not None or begun is None:
            return
        try:
            response, target = begun.connection.response, self._target
            assert response is not None
            assert target is not None
            if content is None or response.status != 200 or not check_shortly(self, response, content):
                self._tell_on()
                return
            self.first_byte_at = now = _now()
            self.provider_s = now - self.sent_at
            self.committed = True
            self._status = 200
            self.bytes_out = len(content)
            self.client.answer(200, self.head(response, target), content)
            self._begun = None
        except Exception as error:
            self._begun = None
            begun.give_back(self.gateway, now=_now(), well=False)
            self._over(error)
            return
        begun.give_back(self.gateway, now=now, well=True)
        self._over(None)

    def _answer_at_length(self, _: BaseException) -> None:
        self._tell_on()

    # -- the story -------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        plane, request = self.plane, self.request
        call = self._call
        if call is None:
            call = self._call = read(self._endpoint, request.body, request.fields.get(b"content-type", b""))
        timeouts = plane.config.timeouts
        total_s = timeouts.stream_total if call.stream else timeouts.total
        if b"x-dandolo-timeout" in request.fields:
            total_s = min(total_s, self.gateway.timeout_s(request) or total_s)
        self.total_at = self._started + total_s
        if self._endpoint is MODELS:
            await self._list_models()
            return
        lane = self.admitted.lane
        if lane is None or lane.models is not call.models or lane.stream is not call.stream:
            lane = self.admitted.lane = Lane(call, self._candidates(call))
        targets = lane.targets
        budget = self.gateway.budget
        tried: list[Target] = []
        waited = False
        if self._begun is None:
            budget.earn()
        while True:
            begun, self._begun = self._begun, None
            if begun is None:
                self._target = self._choose(targets, tried)
                self._attempts += 1
            target = self._target
            assert target is not None
            tried.append(target)
            others = len(targets) > 1 and self._more(targets, tried)
            try:
                await Attempt(self, call, lane, target, plane.fleet[target.account]).run(others, begun)
                self._error = None
                return
            except GatewayError as error:
                self._error = error
                if self.committed or not retry.may_take_over(error):
                    raise
                if self._attempts >= plane.config.routing.attempts_max or _now() >= self.total_at:
                    raise
                if not self._more(targets, tried):
                    wait_s = retry.local_wait_s(error, self.total_at - _now(), random.random())  # noqa: S311 - jitter
                    if waited or wait_s is None or not budget.spend():
                        raise
                    waited = True
                    await self._sleep(wait_s)
                    tried.remove(target)
                elif not budget.spend():
                    raise

    def _candidates(self, call: Call) -> tuple[Target, ...]:
        """Everybody who can take the call and whom the key may use, in order. Raises RequestError (404)."""
        catalog, tenant = self.plane.catalog, self.tenant
        speech = call.endpoint.speech
        if len(call.models) < 2:
            found = catalog.candidates(call.model, speech)
        else:
            found = tuple(target for name in call.models for target in catalog.candidates(name, speech))
        patterns = tenant.patterns
        if patterns is not None:
            found = tuple(target for target in found if allowed(target, patterns))
        if found:
            return found
        if patterns is None and (not call.models or any(catalog.knows(name) for name in call.models)):
            raise RequestError(
                f"no configured provider of this model offers {call.endpoint.path}",
                status=404,
                code="endpoint_not_available",
                param="model" if call.models else None,
            )
        names = [name for name in catalog.names() if patterns is None or admits(patterns, name)]
        raise model_not_found(call.model, names)

    def _choose(self, targets: tuple[Target, ...], tried: list[Target]) -> Target:
        """The next to ask: in order, those that are well before those that are cooling down.

        This is the seam at which choosing by live measurement will stand. Raises Refusal when every breaker
        is open.
        """
        now = _now()
        fleet = self.plane.fleet
        first = targets[0]
        if not tried and fleet[first.account].well(first.model):
            return first
        cooling: list[tuple[float, Target]] = []
        soonest = NEVER
        for target in targets:
            if tried and _asked(target, tried):
                continue
            runtime = fleet[target.account]
            wait_s = runtime.cooling_s(target.model, now)
            if wait_s:
                cooling.append((wait_s, target))
                continue
            breaker = runtime.breaker(target.model)
            if breaker is None or breaker.admits(now):
                return target
            soonest = min(soonest, breaker.retry_after_s(now))
        if cooling:
            return min(cooling, key=lambda pair: pair[0])[1]
        if self._error is not None:
            raise self._error
        raise Refusal(
            "every provider of this model is failing and being left alone for a moment; try again later",
            code="no_provider_available",
            retry_after_s=max(1.0, soonest if soonest < NEVER else 1.0),
        )

    def _more(self, targets: tuple[Target, ...], tried: list[Target]) -> bool:
        """Whether anybody could take over after `tried`."""
        if len(targets) == 1 or self._attempts >= self.plane.config.routing.attempts_max:
            return False
        now = _now()
        for target in targets:
            if not _asked(target, tried):
                breaker = self.plane.fleet[target.account].breaker(target.model)
                if breaker is None or breaker.retry_after_s(now) <= 0:
                    return True
        return False

    async def _list_models(self) -> None:
        body = await self.plane.models.answer(self)
        self.commit(200)
        self.bytes_out = len(body)
        head = answers.JSON + self.gateway.own_fields(self.encoded_id, "plain", self.admitted.origin)
        self.client.answer(200, head, body)

    # -- what an attempt reports -----------------------------------------------------------------------

    def commit(self, status: int) -> None:
        """The client is being sent an answer: nobody can take over any more."""
        self.committed = True
        self._status = status

    @property
    def annotates(self) -> bool:
        """Whether a stream is to be closed with an annotation."""
        wish = self.request.fields.get(b"x-dandolo-annotate")
        return self.plane.config.server.annotate if wish is None else wish.lower() == b"true"

    def head(self, response: Response, target: Target) -> bytes:
        """The client's header lines: allowed ones of the provider's, then ours. Times in ms."""
        now = _now()
        provider_us = int(self.provider_s * 1e6)
        overhead_us = max(0, int((now - self._started - self.queue_s) * 1e6) - provider_us)
        overhead = b"%d.%03d" % divmod(overhead_us, 1000)
        lane = self.admitted.lane
        if lane is not None and target is lane.targets[0] and self._attempts == 1 and not self.queue_s:
            about = lane.answer
        else:
            about = b"x-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\nx-dandolo-queue-ms: %d.%03d\r\n" % (
                target.account.provider.encoded_name,
                self._attempts,
                *divmod(int(self.queue_s * 1e6), 1000),
            )
        head = (
            b"%b%bx-request-id: %b\r\n%bx-dandolo-overhead-ms: %b\r\n"
            b"server-timing: provider;dur=%d.%03d, dandolo;dur=%b\r\n"
        ) % (
            self.gateway.dates.line(now),
            answers.provider_fields(response),
            self.encoded_id,
            about,
            overhead,
            provider_us // 1000,
            provider_us % 1000,
            overhead,
        )
        if self._endpoint.dialect == "messages":
            head += b"request-id: %b\r\n" % self.encoded_id
        origin = self.admitted.origin
        return head if origin is None else head + site.cors(origin)

    def annotation(self) -> bytes:
        """The closing event, when it is wanted."""
        assert self._target is not None
        return annotation(
            self._target,
            self.id,
            started_unix=self.gateway.unix(self._started),
            attempts=self._attempts,
            total_s=_now() - self._started,
            first_token_s=None if self._first_token_at is None else self._first_token_at - self._started,
            counts=self.tap.usage if self.tap is not None and self.tap.counted else None,
        )

    # -- time ------------------------------------------------------------------------------------------

    def await_until(self, at: float, what: str) -> None:
        """Set the deadline (monotonic seconds) of the wait that follows; never beyond the total."""
        self._wait_for = what
        self._wait_until = at if at < self.total_at else self.total_at
        self.deadline = self._wait_until if self._wait_until < self._heartbeat_at else self._heartbeat_at

    def note_payload(self) -> None:
        """Something but a keep-alive has come: the idle time begins anew."""
        now = _now()
        if self._heartbeat_at != NEVER:
            self._heartbeat_at = now + self.plane.config.server.heartbeat
        self.await_until(now + self.plane.config.timeouts.stream_idle, "more of the provider's answer")

    def note_content(self) -> None:
        """The first content has come."""
        if self._first_token_at is None:
            self._first_token_at = _now()

    def begin_heartbeat(self) -> None:
        """A stream has begun: comments are due when it stays silent, if they are configured."""
        seconds = self.plane.config.server.heartbeat
        if seconds:
            self._heartbeat_at = _now() + seconds

    def end_heartbeat(self) -> None:
        """No more comments."""
        self._heartbeat_at = NEVER

    async def _sleep(self, seconds: float) -> None:
        waiter: Waiter[None] = Waiter()
        self.await_until(self.total_at, "the provider's rate limit to pass")
        timer = asyncio.get_running_loop().call_later(seconds, waiter.set, None)
        try:
            await waiter
        finally:
            timer.cancel()

    def expire(self, now: float) -> None:
        """The deadline has passed (called by the sweep)."""
        if now < self._wait_until:
            self._heartbeat_at = now + self.plane.config.server.heartbeat
            self.deadline = min(self._wait_until, self._heartbeat_at)
            if isinstance(self.relay, EventRelay):
                self.relay.beat()
            return
        if self.client.stalled and now < self.total_at:
            # The provider is silent because we stopped reading; the client's own deadline is running.
            self.note_payload()
            return
        self.deadline = NEVER
        if now >= self.total_at:
            took = f"the request took its {self.total_at - self._started:g} s"
        else:
            took = f"nothing came for {now - max(self.sent_at, self.first_byte_at or 0.0):.1f} s"
        self.interrupt(UpstreamTimeout(f"{took}, waiting for {self._wait_for}"))

    # -- endings ---------------------------------------------------------------------------------------

    def _over(self, error: BaseException | None) -> None:
        """The story has ended, well or badly: the client is told if it was told nothing, then the gateway."""
        self._strand = None
        self._ended = True
        self.deadline = NEVER
        if isinstance(error, asyncio.CancelledError):
            self._status = 499
        elif error is not None:
            if not isinstance(error, GatewayError):
                _log.error("request %s failed within the gateway", self.id, exc_info=error)
                error = InternalError("an error within the gateway; it was logged with this request's id", close=True)
            self._error = error
            if self.committed:
                self._break_off(error)
            else:
                self._refuse(error)
        self.gateway.ended(self)

    def _refuse(self, error: GatewayError) -> None:
        self._status = error.status
        head, body = answers.error_answer(error, self._endpoint.dialect, self.id)
        head += self.gateway.own_fields(self.encoded_id, self._endpoint.dialect, self.admitted.origin)
        if self._attempts and self._target is not None:
            head += b"x-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\n" % (
                self._target.provider.encoded_name,
                self._attempts,
            )
        self.bytes_out = len(body)
        self.client.answer(error.status, head, body, close=error.close)

    def _break_off(self, error: GatewayError) -> None:
        """The answer broke after it had begun: say so at an event boundary if there is one, and cut (http.md 26)."""
        if error.source == "upstream":
            error.code = "upstream_stream_error"
        flow = self.relay
        if isinstance(flow, EventRelay) and not flow.oversized and not self.client.lost:
            sent = self.tap.data_events if self.tap is not None else 0
            self.client.write(answers.error_event(error, self._endpoint.dialect, self.id, sent))
        self.client.cut()

    def record(self) -> Record:
        """What this request was, for the log and the metrics."""
        now, started = _now(), self._started
        call, target, admitted, error = self._call, self._target, self.admitted, self._error
        counts = self._counts()
        first_byte, first_token = self.first_byte_at, self._first_token_at
        if target is None:
            provider = account = upstream_model = ""
        else:
            upstream_model = target.model
            provider, account = target.account.provider.name, target.account.label
        model = call.model if call is not None else ""
        if len(model) > CHARS_SURE:
            model, upstream_model = cut(model), cut(upstream_model)
        finish, cost, queue_s = self.finish_reason or "", counts.cost_usd, self.queue_s
        if len(finish) > CHARS_SURE:
            finish = cut(finish)
        duration = now - started
        provider_s = self.provider_s if self.relay is None else now - self.sent_at
        # By position, in the order of the fields: twice as fast as by name. Whole numbers divided give the
        # nearest double to three decimals, for a third of what round() costs.
        return Record(
            timestamp(self.gateway.unix(started)),
            self.id,
            self._status,
            _methods.get(self.request.method) or self.request.method.decode("ascii"),
            self._endpoint.name,
            admitted.tenant.name,
            admitted.client,
            model,
            provider,
            account,
            upstream_model,
            self.relay is not None and isinstance(self.relay, EventRelay),
            self._attempts,
            finish,
            "" if error is None else cut(error.code or ""),
            len(self.request.body),
            self.bytes_out,
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

    def _counts(self) -> usages.Usage:
        """The provider's own counts and cost; ours, marked, where an answer was interrupted before they came."""
        counts = self.usage
        if counts is None:
            counts = usages.Usage()
            if self.tap is not None and self.committed and self._call is not None:
                counts.input_tokens = max(self.tap.usage.input_tokens, usages.estimate_tokens(len(self._call.raw)))
                counts.output_tokens = max(self.tap.usage.output_tokens, self.tap.data_events)
                counts.estimated = True
        if counts.cost_usd is None and self._target is not None and (counts.input_tokens or counts.output_tokens):
            counts.cost_usd = self._target.cost_usd(counts.input_tokens, counts.output_tokens)
        return counts


def _asked(target: Target, tried: list[Target]) -> bool:
    """Whether a target was tried already: each attempt goes to another account, or to another model on it."""
    return any(target.account is other.account and target.model == other.model for other in tried)
