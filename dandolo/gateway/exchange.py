"""The life of a request, told in one place.

    accept → parse → admit → route → upstream → relay → record

A connection hands over a complete request; `_tell` reads it as a call, finds who can take it, asks one
after another until somebody's first content is on its way to the client, and from then on only relays.
Every wait is a `Waiter` in a hand-driven coroutine (`net.strand`), so a client that leaves cancels the story
wherever it stands, and each `finally` gives back what was taken: slot, connection, counts. One deadline
moves along with the story; the sweep calls `expire` when it has passed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from dandolo.api import faults, usage
from dandolo.api.call import Call, read
from dandolo.api.endpoints import Endpoint
from dandolo.api.faults import Fault, Kind
from dandolo.api.openai import model_not_found
from dandolo.errors import (
    GatewayError,
    InternalError,
    Refusal,
    RequestError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from dandolo.gateway import answers
from dandolo.gateway.admission import Tenant
from dandolo.gateway.annotation import annotation
from dandolo.gateway.fleet import Runtime
from dandolo.gateway.tap import StreamTap
from dandolo.net.downstream import Downstream
from dandolo.net.relay import BytesRelay, EventRelay, Remainder
from dandolo.net.strand import Strand, Waiter
from dandolo.net.sweep import NEVER
from dandolo.net.upstream import Upstream
from dandolo.record import Record
from dandolo.route import retry
from dandolo.route.catalog import Target, allowed
from dandolo.wire.client import Response
from dandolo.wire.server import Request

if TYPE_CHECKING:
    from dandolo.gateway.gateway import Gateway

AFTER_DONE_S = 1.0
"""How long a provider may keep its connection open after `[DONE]` before it is dropped (http.md 27)."""
ACCOUNT_PAUSE_S = 30.0
"""How long others are preferred to an account without credit or with a refused key."""

_log = logging.getLogger("dandolo")
_now = time.perf_counter


class Exchange:
    """One request of one client. Created by the gateway, which is told once when it is over."""

    __slots__ = (
        "_accepted", "_answered_at", "_attempts", "_call", "_client", "_committed", "_endpoint", "_error", "_first_byte_at",
        "_first_token_at", "_gateway", "_heartbeat_at", "_hidden_usage", "_idle_s", "_origin", "_provider_s", "_queue_s",
        "_relay", "_request", "_sent_at", "_started", "_started_unix", "_status", "_strand", "_suffix", "_target",
        "_target_deadline", "_tap", "_tenant", "_total_at", "_usage", "_wait_for", "bytes_out", "deadline", "finish_reason",
        "id",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        client: Downstream,
        request: Request,
        endpoint: Endpoint,
        tenant: Tenant,
        request_id: str,
        *,
        suffix: str = "",
        origin: bytes | None = None,
    ) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self._endpoint = endpoint
        self._tenant = tenant
        self._suffix = suffix
        self._origin = origin
        self.id = request_id
        self._started = _now()
        self._started_unix = time.time()
        self._call: Call | None = None
        self._target: Target | None = None
        self._attempts = 0
        self._committed = False
        self._status = 0
        self._error: GatewayError | None = None
        self._sent_at = self._answered_at = self._started
        self._provider_s = 0.0
        self._queue_s = 0.0
        self._first_byte_at: float | None = None
        self._first_token_at: float | None = None
        self._usage: usage.Usage | None = None
        self._tap: StreamTap | None = None
        self._relay: EventRelay | BytesRelay | None = None
        self._idle_s = 0.0
        self._heartbeat_at = NEVER
        self._hidden_usage = False
        self._wait_for = ""
        self._total_at = NEVER
        self._target_deadline = NEVER
        self.finish_reason: str | None = None
        self.bytes_out = 0
        self.deadline = NEVER
        self._strand: Strand | None = None

    # -- from outside ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the story; `Gateway.ended` is called when it is over, possibly before this returns."""
        self._run(self._tell())

    def _run(self, story: Coroutine[Any, Any, None]) -> None:
        self._strand = Strand(story, self._over)
        self._strand.resume()

    def cancel(self) -> None:
        """The client has left."""
        if self._strand is not None:
            self._strand.cancel()

    # -- the story -------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        gateway, request = self._gateway, self._request
        call = self._call = read(self._endpoint, request.body, request.fields.get(b"content-type", b""))
        timeouts = gateway.config.timeouts
        self._idle_s = timeouts.stream_idle
        total_s = gateway.timeout_s(request) or (timeouts.stream_total if call.stream else timeouts.total)
        self._total_at = self._started + total_s
        targets = self._candidates(call)
        gateway.budget.earn()
        tried: list[Target] = []
        waited = False
        while True:
            target = self._choose(targets, tried)
            self._target = target
            self._attempts += 1
            others = self._another(targets, [*tried, target])
            try:
                await self._ask(target, others=others)
                return
            except GatewayError as error:
                self._error = error
                if self._committed:
                    self._fail_stream(error)
                    return
                if not retry.may_take_over(error) or self._attempts >= gateway.config.routing.attempts_max:
                    raise
                tried.append(target)
                if self._another(targets, tried):
                    if not gateway.budget.spend():
                        raise
                    continue
                wait_s = retry.local_wait_s(error, self._total_at - _now(), random.random())  # noqa: S311 - jitter
                if waited or wait_s is None or not gateway.budget.spend():
                    raise
                waited = True
                await self._sleep(wait_s)
                tried.remove(target)

    def _candidates(self, call: Call) -> tuple[Target, ...]:
        """Everybody who can take the call and whom the key may use, in order. Raises RequestError (404)."""
        catalog = self._gateway.catalog
        speech = call.endpoint.speech
        if len(call.models) < 2:
            found = catalog.candidates(call.model, speech)
        else:
            found = tuple(target for name in call.models for target in catalog.candidates(name, speech))
        tenant = self._tenant
        if not tenant.open_models and tenant.config is not None:
            patterns = tenant.config.models
            found = tuple(target for target in found if allowed(target, patterns))
        if not found:
            raise self._nobody(call)
        return found

    def _nobody(self, call: Call) -> RequestError:
        catalog = self._gateway.catalog
        if not call.models or any(catalog.knows(name) for name in call.models):
            visible = self._tenant.open_models or self._tenant.config is None
            if visible:
                return RequestError(
                    f"no configured provider of this model offers {call.endpoint.path}",
                    status=404,
                    code="endpoint_not_available",
                    param="model" if call.models else None,
                )
        patterns = self._tenant.config.models if self._tenant.config is not None else ("*",)
        names = [name for name in catalog.names() if self._tenant.open_models or _admitted(name, patterns)]
        return model_not_found(call.model, names)

    def _choose(self, targets: tuple[Target, ...], tried: list[Target]) -> Target:
        """The next to ask: in order, those that are well before those that are cooling down.

        This is the seam at which choosing by live measurement will stand. Raises Refusal when every breaker is open.
        """
        fleet = self._gateway.fleet
        now = self._gateway.now()
        cooling: list[tuple[float, Target]] = []
        soonest = NEVER
        for target in targets:
            if tried and self._spent(target, tried):
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

    def _another(self, targets: tuple[Target, ...], tried: list[Target]) -> bool:
        """Whether anybody is left to ask after `tried`."""
        if self._attempts >= self._gateway.config.routing.attempts_max or len(targets) == 1:
            return False
        now = self._gateway.now()
        fleet = self._gateway.fleet
        for target in targets:
            if self._spent(target, tried):
                continue
            breaker = fleet[target.account].breaker(target.model)
            if breaker is None or breaker.retry_after_s(now) <= 0:
                return True
        return False

    @staticmethod
    def _spent(target: Target, tried: list[Target]) -> bool:
        """Whether a target was asked already: each attempt goes to another account, or to another model on it."""
        return any(target.account is other.account and target.model == other.model for other in tried)

    # -- one attempt -----------------------------------------------------------------------------------

    async def _ask(self, target: Target, *, others: bool) -> None:
        """Ask one account and relay its answer whole. Raises GatewayError with its verdict on retrying."""
        gateway = self._gateway
        runtime = gateway.fleet[target.account]
        await self._enter(runtime)
        try:
            await self._converse(target, runtime, others=others)
        except UpstreamError as error:
            self._judge(target, runtime, error)
            raise
        except BaseException:
            if (breaker := runtime.breaker(target.model)) is not None:
                breaker.abandoned()
            raise
        else:
            if (breaker := runtime.breaker(target.model)) is not None:
                breaker.succeeded(gateway.now())
        finally:
            runtime.slots.leave(gateway.now())

    async def _enter(self, runtime: Runtime) -> None:
        if runtime.slots.enter():
            return
        ticket: Waiter[bool] = Waiter()
        runtime.slots.queue(ticket)
        since = _now()
        self._await_until(self._total_at, "a free slot at the provider")
        try:
            await ticket
        except BaseException:
            if ticket.done:
                runtime.slots.leave(self._gateway.now())
            else:
                runtime.slots.withdraw(ticket)
            raise
        finally:
            self._queue_s += _now() - since

    async def _converse(self, target: Target, runtime: Runtime, *, others: bool) -> None:
        gateway, call, request = self._gateway, self._call, self._request
        assert call is not None
        profile = target.provider.profile
        may_inject = profile.include_usage == "yes" or (
            profile.include_usage == "try" and target.model not in runtime.no_usage_option
        )
        self._hidden_usage = call.injects_usage(may_inject)
        connection = runtime.pool.take(gateway.now())
        fresh_tried = False
        while True:
            if connection is None:
                connection = await self._dial(runtime)
            assert isinstance(connection, Upstream)
            head, body = self._outgoing(call, target, runtime)
            try:
                content = await self._send(connection, head, body, stream=call.stream)
                response = connection.response
                assert response is not None
                self._provider_s += self._answered_at - self._sent_at
                if response.status >= 400 and self._hidden_usage and response.status in (400, 422):
                    # Perhaps our own addition was what it did not like: once more without it, remembered if that helps.
                    if profile.include_usage == "try" and target.model not in runtime.no_usage_option:
                        runtime.no_usage_option.add(target.model)
                        self._hidden_usage = False
                        gateway.keep(runtime, connection)
                        connection = runtime.pool.take(gateway.now())
                        continue
                await self._relay_answer(target, runtime, connection, response, content, others=others)
            except UpstreamUnavailable:
                stale = connection.reused and not connection.reader.received
                connection.detach()
                if not stale or fresh_tried or self._client.lost:
                    raise
                # A kept-alive connection that the provider closed as we wrote: nothing was answered, so the same
                # account is asked once more on a fresh connection (RFC 9112 §9.3.1; http.md 31).
                fresh_tried = True
                connection = None
                continue
            except BaseException:
                connection.detach()
                raise
            gateway.keep(runtime, connection)
            return
        del request

    def _outgoing(self, call: Call, target: Target, runtime: Runtime) -> tuple[bytes, bytes]:
        """The request for this provider: its head from an allowlist, the caller's body with as little changed as must be."""
        request = self._request
        body = call.body_for(
            target.model, target.name, target.provider.defaults, inject_usage=self._hidden_usage
        )
        if call.stream:
            accept = b"text/event-stream"
        elif call.json is not None and self._endpoint.dialect != "plain":
            accept = b"application/json"
        else:
            accept = request.fields.get(b"accept", b"*/*")
        prefix = runtime.head(request.method, self._endpoint, self._suffix, target.model, accept)
        extra = self._gateway.forwarding.encode(request.fields, runtime.forwarded)
        if not body and request.method in (b"GET", b"HEAD", b"DELETE"):
            return b"%bx-request-id: %b\r\n%b\r\n" % (prefix, self.id.encode(), extra), b""
        return (
            b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n"
            % (prefix, call.content_type, len(body), self.id.encode(), extra),
            body,
        )

    async def _send(self, connection: Upstream, head: bytes, body: bytes, *, stream: bool) -> bytes | None:
        timeouts = self._gateway.config.timeouts
        self._sent_at = now = _now()
        first_byte_s = timeouts.first_byte_stream if stream else timeouts.first_byte
        self._await_until(now + first_byte_s, "the first byte of the provider's answer")
        content = await connection.send(head, body, head_only=self._request.method == b"HEAD")
        self._answered_at = _now()
        if self._first_byte_at is None:
            self._first_byte_at = self._answered_at
        return content

    async def _dial(self, runtime: Runtime) -> Upstream:
        """A new connection, made by a task of its own (DNS and TLS need one). One that comes too late is kept for others."""
        gateway = self._gateway
        waiter: Waiter[Upstream] = Waiter()

        async def connect() -> None:
            try:
                connection = await gateway.dialer.dial(runtime.destination, gateway.config.timeouts.connect)
            except UpstreamError as error:
                waiter.fail(error)
            except Exception as error:
                waiter.fail(InternalError("connecting to the provider failed within the gateway"))
                raise error
            else:
                if waiter.wanted:
                    waiter.set(connection)
                else:
                    connection.close()

        self._await_until(self._total_at, "a connection to the provider")
        task = gateway.tasks.spawn(connect(), "dial")
        try:
            return await waiter
        except BaseException:
            task.cancel()
            raise

    # -- the answer ------------------------------------------------------------------------------------

    async def _relay_answer(
        self,
        target: Target,
        runtime: Runtime,
        connection: Upstream,
        response: Response,
        content: bytes | None,
        *,
        others: bool,
    ) -> None:
        call = self._call
        assert call is not None
        status = response.status
        kind = response.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if b"content-encoding" in response.fields and response.fields[b"content-encoding"].lower() != b"identity":
            raise UpstreamInvalid("the provider sent a compressed answer although none was accepted")
        if status >= 300:
            raise self._fault(
                faults.classify(
                    target.provider.profile,
                    status,
                    response.fields,
                    content or b"",
                    time.time(),
                    secrets=runtime.secrets,
                )
            )
        if content is None and kind == b"text/event-stream":
            if not call.stream and self._endpoint.dialect != "plain" and call.json is not None:
                raise UpstreamInvalid("the provider answered with a stream that nobody asked for")
            await self._relay_events(target, runtime, connection, response, others=others)
            return
        if call.stream and self._endpoint.dialect != "plain":
            fault = faults.in_body_error(content or b"", target.provider.profile, secrets=runtime.secrets)
            if fault is not None:
                raise self._fault(fault)
            raise UpstreamInvalid("the provider was asked for a stream and answered with something else")
        if content is None:
            await self._relay_bytes(target, connection, response, kind)
            return
        self._check_plain(target, runtime, kind, content)
        self._committed = True
        self._status = status
        self.bytes_out = len(content)
        self._client.answer(status, self._head(target, response), content)

    def _check_plain(self, target: Target, runtime: Runtime, kind: bytes, content: bytes) -> None:
        """Judge a whole answer before anything of it is sent, and read its usage."""
        if self._endpoint.speech in ("audio", "venice_image") and kind != b"application/json":
            return
        if not content and (self._request.method in (b"HEAD", b"DELETE") or self._endpoint.body == "none"):
            return
        found = usage.facts(content)
        if found is None:
            raise UpstreamInvalid(
                "the provider answered 200 with an empty body" if not content.strip() else
                "the provider answered 200 with something that is not a JSON object"
            )  # fmt: skip
        fault = faults.in_body_error(content, target.provider.profile, secrets=runtime.secrets)
        if fault is not None:
            raise self._fault(fault)
        counts = usage.Usage()
        if usage.add(counts, found):
            self._usage = counts
        self.finish_reason = found.finish()

    async def _relay_events(
        self, target: Target, runtime: Runtime, connection: Upstream, response: Response, *, others: bool
    ) -> None:
        gateway = self._gateway
        client = self._client
        annotate = self._endpoint.dialect in ("chat", "completions") and gateway.annotates(self._request)
        tap = self._tap = StreamTap(
            self._endpoint.dialect,
            target.provider.profile,
            secrets=runtime.secrets,
            hide_usage=self._hidden_usage,
            on_content=self._note_content,
            closing=self._annotation if annotate else None,
        )
        flow: EventRelay

        def commit() -> None:
            self._committed = True
            self._status = response.status
            client.begin_stream(response.status, self._head(target, response) + answers.STREAM, flow)

        flow = EventRelay(client, connection, tap, hold=others, commit=commit, on_payload=self._note_payload)
        self._relay = flow
        timeouts = gateway.config.timeouts
        heartbeat_s = gateway.config.server.heartbeat
        if heartbeat_s:
            self._heartbeat_at = _now() + heartbeat_s
        # Until the first content the deadline is still that of the first byte.
        self._await_until(self._sent_at + timeouts.first_byte_stream, "the first content of the provider's stream")
        connection.relay_to(flow)
        try:
            await flow.done
        finally:
            self._heartbeat_at = NEVER
            self.bytes_out = flow.payload_bytes
            self._usage = tap.usage if tap.counted else None
            self.finish_reason = tap.finish_reason
        client.end_stream()

    async def _relay_bytes(self, target: Target, connection: Upstream, response: Response, kind: bytes) -> None:
        """Anything else: large JSON, audio, images. Its original length stays, so truncation can be told."""
        declared = response.length
        if declared is not None and declared > 32 * 1024 * 1024:
            raise UpstreamInvalid(f"the provider's answer has {declared} bytes, more than the 33554432 accepted")
        flow = BytesRelay(self._client, connection, on_payload=self._note_payload)
        self._relay = flow
        self._committed = True
        self._status = response.status
        self._client.begin_stream(response.status, self._head(target, response), flow, declared)
        self._await_until(_now() + self._idle_s, "more of the provider's answer")
        connection.relay_to(flow)
        try:
            await flow.done
        finally:
            self.bytes_out = flow.payload_bytes
        if kind == b"application/json":
            self._usage = gateway_usage_in_tail(flow.tail)
        self._client.end_stream()

    def _head(self, target: Target, response: Response) -> bytes:
        """The client's header lines: allowed ones of the provider's, then ours."""
        gateway = self._gateway
        now = _now()
        overhead_ms = (now - self._started - self._provider_s - self._queue_s) * 1000
        request_id = self.id.encode()
        head = b"%b%bx-request-id: %b\r\nx-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\n" % (
            gateway.dates.line(now),
            answers.provider_fields(response.fields),
            request_id,
            target.provider.name.encode(),
            self._attempts,
        )
        head += (
            b"x-dandolo-overhead-ms: %.3f\r\nx-dandolo-queue-ms: %.3f\r\nserver-timing: provider;dur=%.3f, dandolo;dur=%.3f\r\n"
            % (overhead_ms, self._queue_s * 1000, self._provider_s * 1000, overhead_ms)
        )
        if self._endpoint.dialect == "messages":
            head += b"request-id: %b\r\n" % request_id
        if self._origin is not None:
            head += gateway.cors(self._origin)
        return head

    # -- time ------------------------------------------------------------------------------------------

    def _await_until(self, at: float, what: str) -> None:
        """Set the deadline of the wait that follows; never beyond the total."""
        self._wait_for = what
        self._target_deadline = min(at, self._total_at)
        self.deadline = min(self._target_deadline, self._heartbeat_at)

    def _note_payload(self) -> None:
        now = _now()
        if self._gateway.config.server.heartbeat:
            self._heartbeat_at = now + self._gateway.config.server.heartbeat
        self._wait_for = "more of the provider's answer"
        self._target_deadline = at = now + self._idle_s
        if at > self._total_at:
            self._target_deadline = at = self._total_at
        self.deadline = at if at < self._heartbeat_at else self._heartbeat_at

    def _note_content(self) -> None:
        if self._first_token_at is None:
            self._first_token_at = _now()

    async def _sleep(self, seconds: float) -> None:
        waiter: Waiter[None] = Waiter()
        self._await_until(self._total_at, "the provider's rate limit to pass")
        timer = asyncio.get_running_loop().call_later(seconds, waiter.set, None)
        try:
            await waiter
        finally:
            timer.cancel()

    def expire(self, now: float) -> None:
        """A deadline has passed (called by the sweep)."""
        now = _now()
        if now >= self._heartbeat_at and now < self._target_deadline:
            self._beat(now)
            return
        if now < self._target_deadline:
            self.deadline = min(self._target_deadline, self._heartbeat_at)
            return
        self.deadline = NEVER
        if self._strand is not None:
            spent = now - self._sent_at if self._sent_at else now - self._started
            error = UpstreamTimeout(f"waited {spent:.1f} s for {self._wait_for}; nothing came")
            if now >= self._total_at:
                error = UpstreamTimeout(
                    f"the request took longer than {self._total_at - self._started:.0f} s in all, waiting for {self._wait_for}"
                )
            self._strand.throw(error)

    def _beat(self, now: float) -> None:
        """A comment on a silent stream, which commits its head (configuration: heartbeat)."""
        self._heartbeat_at = now + self._gateway.config.server.heartbeat
        self.deadline = min(self._target_deadline, self._heartbeat_at)
        flow = self._relay
        if isinstance(flow, EventRelay):
            flow.beat()

    # -- endings ---------------------------------------------------------------------------------------

    def _fault(self, fault: Fault) -> GatewayError:
        """A provider's judged failure as an error, with what it says about the account taken to heart."""
        target = self._target
        assert target is not None
        runtime = self._gateway.fleet[target.account]
        now = self._gateway.now()
        scope = "" if fault.scope == "account" else target.model
        if fault.kind in (Kind.RATE_LIMIT, Kind.ERROR_BUDGET) and fault.retry_after_s is not None:
            runtime.cool(scope, now + fault.retry_after_s)
        elif fault.kind in (Kind.QUOTA, Kind.AUTH) and fault.take_over:
            runtime.cool(scope, now + ACCOUNT_PAUSE_S)
        error = fault.error()
        error.counts = fault.counts_for_breaker
        return error

    def _judge(self, target: Target, runtime: Runtime, error: UpstreamError) -> None:
        """Tell the breaker what a failure says about the provider (http.md 34)."""
        breaker = runtime.breaker(target.model)
        if breaker is None:
            return
        if error.counts:
            breaker.failed(self._gateway.now())
        else:
            breaker.abandoned()

    def _fail_stream(self, error: GatewayError) -> None:
        """The answer broke after it had begun: say so at an event boundary if there is one, and cut."""
        if not isinstance(error, UpstreamTimeout):
            error.code = "upstream_stream_error" if error.source == "upstream" else error.code
        else:
            error.code = "upstream_stream_error"
        flow = self._relay
        if isinstance(flow, EventRelay) and not flow.oversized and not self._client.lost:
            sent = self._tap.data_events if self._tap is not None else 0
            self._client.write(answers.error_event(error, self._endpoint.dialect, self.id, sent))
        self._client.cut()

    def _annotation(self) -> bytes:
        target = self._target
        assert target is not None
        return annotation(
            target,
            self.id,
            started_unix=self._started_unix,
            attempts=self._attempts,
            total_s=_now() - self._started,
            first_token_s=None if self._first_token_at is None else self._first_token_at - self._started,
            counts=self._tap.usage if self._tap is not None and self._tap.counted else None,
        )

    def _over(self, error: BaseException | None) -> None:
        """The story has ended, well or badly; tell the client if it has been told nothing, and the gateway."""
        self._strand = None
        self.deadline = NEVER
        client = self._client
        if isinstance(error, asyncio.CancelledError):
            self._status = 499
        elif error is not None:
            if not isinstance(error, GatewayError):
                _log.error("request %s failed within the gateway", self.id, exc_info=error)
                error = InternalError("an error within the gateway; it has been logged with this request's id")
                error.close = True
            self._error = error
            if self._committed:
                self._fail_stream(error)
            elif not client.lost:
                self._status = error.status
                head, body = answers.error_answer(error, self._endpoint.dialect, self.id)
                head += self._gateway.own_fields(self.id, self._endpoint.dialect, self._origin)
                self.bytes_out = len(body)
                if self._attempts and self._target is not None:
                    head += b"x-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\n" % (
                        self._target.provider.name.encode(),
                        self._attempts,
                    )
                client.answer(error.status, head, body, close=error.close)
        self._gateway.ended(self)

    def record(self) -> Record:
        """What this request was, for the log and the metrics."""
        now = _now()
        call, target = self._call, self._target
        started = self._started
        request = self._request
        streamed = isinstance(self._relay, EventRelay)
        provider_s = self._provider_s
        if self._relay is not None:
            provider_s = now - self._sent_at
        counts = self._counted(call, target)
        return Record(
            id=self.id,
            started=self._started_unix,
            endpoint=self._endpoint.name,
            method=request.method.decode("ascii"),
            status=self._status,
            key=self._tenant.name,
            client=self._gateway.admission.client_address(self._client.peer, request.fields),
            model=call.model if call is not None else "",
            provider=target.provider.name if target is not None else "",
            account=target.account.label if target is not None else "",
            upstream_model=target.model if target is not None else "",
            stream=streamed,
            attempts=self._attempts,
            finish=self.finish_reason or "",
            code=(self._error.code or "") if self._error is not None and self._failed else "",
            bytes_in=len(request.body),
            bytes_out=self.bytes_out,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            cached_tokens=counts.cached_tokens,
            reasoning_tokens=counts.reasoning_tokens,
            cost_usd=counts.cost_usd,
            estimated=counts.estimated,
            duration=now - started,
            queue=self._queue_s,
            first_byte=None if self._first_byte_at is None else self._first_byte_at - started,
            first_token=None if self._first_token_at is None else self._first_token_at - started,
            overhead=max(0.0, now - started - provider_s - self._queue_s),
        )

    @property
    def _failed(self) -> bool:
        return self._status >= 400 or (self._committed and self._error is not None)

    def _counted(self, call: Call | None, target: Target | None) -> usage.Usage:
        """The provider's own counts and cost; ours, marked, where an answer was interrupted before they came."""
        counts = self._usage
        if counts is None:
            counts = usage.Usage()
            tap = self._tap
            if tap is not None and self._committed and call is not None:
                counts.input_tokens = max(tap.usage.input_tokens, usage.estimate_tokens(len(call.raw)))
                counts.output_tokens = max(tap.usage.output_tokens, tap.data_events)
                counts.estimated = True
        if counts.cost_usd is None and target is not None:
            counts.cost_usd = target.cost_usd(counts.input_tokens, counts.output_tokens)
        return counts


def gateway_usage_in_tail(tail: bytes) -> usage.Usage | None:
    """Usage from the end of a JSON body too large to be gathered: the object after the last `"usage"`."""
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    found = usage.facts(b"{" + tail[at:])
    counts = usage.Usage()
    return counts if found is not None and usage.add(counts, found) else None


def _admitted(name: str, patterns: tuple[str, ...]) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, pattern) for pattern in patterns)


__all__ = ["AFTER_DONE_S", "Exchange", "Remainder"]
