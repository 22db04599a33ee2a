"""One call to one account: a slot, a connection, a request out, its answer judged and passed on.

Whatever is taken is given back in the order it was taken, also when the client leaves or a deadline passes
in the middle of any wait. An attempt raises `GatewayError` with its verdict on whether somebody else may be
asked; it has told the breaker and the cool-downs by then. Once `exchange.commit` has been called, the
client has been sent something and the verdict no longer matters.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.api import faults, usage
from dandolo.api.call import Call
from dandolo.api.faults import Fault, Kind
from dandolo.errors import GatewayError, InternalError, UpstreamInvalid, UpstreamUnavailable
from dandolo.gateway.fleet import Runtime
from dandolo.gateway.streaming import relay_events
from dandolo.net.relay import BODY_BYTES_MAX, BytesRelay
from dandolo.net.strand import Waiter
from dandolo.net.upstream import Upstream
from dandolo.route.catalog import Target
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.shortly import Begun, Lane

ACCOUNT_PAUSE_S = 30.0
"""How long others are preferred to an account without credit or with a refused key."""
NO_OPTION_MODELS_MAX = 1024

FIRST_BYTE = "the first byte of the provider's answer"

_now = time.monotonic


class Attempt:
    """One attempt of an exchange. `run` is called once."""

    __slots__ = ("_call", "_exchange", "_hides_usage", "_lane", "_runtime", "_target")

    def __init__(self, exchange: Exchange, call: Call, lane: Lane, target: Target, runtime: Runtime) -> None:
        self._exchange = exchange
        self._call = call
        self._lane = lane
        self._target = target
        self._runtime = runtime
        self._hides_usage = False

    async def run(self, others: bool, begun: Begun | None = None) -> None:
        """Ask the account and pass its answer on. `others`: somebody else could still take over.

        With `begun` the request is on its way already.

        Raises GatewayError; it says whether the breaker counted it.
        """
        runtime = self._runtime
        breaker = runtime.breaker(self._target.model)
        epoch = breaker.epoch if breaker is not None else 0
        if begun is not None:
            epoch = begun.epoch
        try:
            if begun is None and not runtime.slots.enter():
                await self._queue()
            try:
                await self._converse(others, begun)
            finally:
                runtime.slots.leave(_now())
        except BaseException as error:
            if breaker is not None:
                if isinstance(error, GatewayError) and error.counts:
                    breaker.failed(_now(), epoch)
                else:
                    breaker.abandoned(epoch)
            raise
        if breaker is not None:
            breaker.succeeded(_now(), epoch)

    async def _queue(self) -> None:
        """Wait for a slot. Raises Refusal (503) when the queue is full."""
        slots, exchange = self._runtime.slots, self._exchange
        ticket: Waiter[bool] = Waiter()
        slots.queue(ticket)
        since = _now()
        exchange.await_until(exchange.total_at, "a free slot at the provider")
        try:
            await ticket
        except BaseException:
            if ticket.done:
                slots.leave(_now())
            else:
                slots.withdraw(ticket)
            raise
        finally:
            exchange.queue_s += _now() - since

    async def _converse(self, others: bool, begun: Begun | None) -> None:
        """Send the request, twice where that is no retry: on a stale connection, or without our own option."""
        exchange, runtime, model = self._exchange, self._runtime, self._target.model
        include_usage = self._target.account.provider.profile.include_usage
        if begun is not None:
            self._hides_usage = begun.hides_usage
        elif self._call.stream:
            self._hides_usage = self._call.injects_usage(runtime.takes_usage_option(model))
        timeouts = exchange.plane.config.timeouts
        first_byte_s = timeouts.first_byte_stream if self._call.stream else timeouts.first_byte
        stale_allowed = True
        option_dropped = False
        while True:
            if begun is not None:
                connection = begun.connection
            else:
                connection = (runtime.pool.take(_now()) if stale_allowed else None) or await self._dial()
            ended = False
            try:
                if begun is not None:
                    waiter = begun.waiter()
                    begun = None
                else:
                    head, body = self._outgoing()
                    exchange.sent_at = now = _now()
                    exchange.await_until(now + first_byte_s, FIRST_BYTE)
                    waiter = connection.send(head, body, head_only=exchange.request.method == b"HEAD")
                content = await waiter
                now = _now()
                exchange.provider_s += now - exchange.sent_at
                if exchange.first_byte_at is None:
                    exchange.first_byte_at = now
                response = connection.response
                assert response is not None
                if response.status in (400, 422) and self._hides_usage and include_usage == "try":
                    # Perhaps our own addition was what it did not like: asked again without it, and remembered.
                    self._hides_usage = False
                    option_dropped = True
                    if len(runtime.no_usage_option) < NO_OPTION_MODELS_MAX:
                        runtime.no_usage_option.add(model)
                    continue
                if content is not None and response.status == 200 and not self._call.stream:
                    self._answer(response, content)
                else:
                    await self._pass_on(connection, response, content, others=others)
                ended = True
                return
            except UpstreamUnavailable:
                if not stale_allowed or not connection.reused or connection.reader.received or exchange.client.lost:
                    raise
                # The provider closed a kept-alive connection as we wrote: nothing was answered, so the same
                # account is asked once more, on a fresh connection (RFC 9112 §9.3.1; promise 31).
                stale_allowed = False
            except GatewayError:
                if option_dropped and not exchange.committed:
                    runtime.no_usage_option.discard(model)
                raise
            finally:
                exchange.gateway.keep(runtime, connection, ended=ended)

    def _outgoing(self) -> tuple[bytes, bytes]:
        """The request for this provider: its head from an allowlist, the body with as little changed as must be."""
        exchange, call, target, lane = self._exchange, self._call, self._target, self._lane
        body = call.body_for(
            target.model, target.name, target.account.provider.defaults, inject_usage=self._hides_usage
        )
        prefix = lane.prefix
        if prefix is None or target is not lane.targets[0]:
            prefix = self._prefix()
            if body is None:
                return b"%bx-request-id: %b\r\n\r\n" % (prefix, exchange.encoded_id), b""
        assert body is not None
        return (
            b"%bcontent-length: %d\r\nx-request-id: %b\r\n\r\n" % (prefix, len(body), exchange.encoded_id),
            body,
        )

    def _prefix(self) -> bytes:
        """Everything in the head that does not vary between calls of one kind."""
        exchange, call, target, runtime = self._exchange, self._call, self._target, self._runtime
        request = exchange.request
        if call.stream:
            accept = b"text/event-stream"
        elif call.json is not None and call.endpoint.dialect != "plain":
            accept = b"application/json"
        else:
            accept = request.fields.get(b"accept", b"*/*")
        prefix = runtime.head(request.method, call.endpoint, exchange.admitted.suffix, target.model, accept)
        extra, constant = exchange.plane.forwarding.encode(request.fields, runtime)
        prefix += extra
        if call.content_type is not None:
            prefix += b"content-type: %b\r\n" % call.content_type
        if constant and call.json is not None and target is self._lane.targets[0]:
            self._lane.prefix = runtime.shared(prefix)
        return prefix

    async def _dial(self) -> Upstream:
        """A new connection, made by a task of its own: DNS and TLS need one."""
        exchange, runtime = self._exchange, self._runtime
        gateway = exchange.gateway
        connect_s = exchange.plane.config.timeouts.connect
        waiter: Waiter[Upstream] = Waiter()

        async def connect() -> None:
            try:
                connection = await gateway.dialer.dial(runtime.destination, connect_s)
            except GatewayError as error:
                waiter.fail(error)
            except Exception:
                waiter.fail(InternalError("connecting to the provider failed within the gateway"))
                raise
            else:
                if waiter.wanted:
                    waiter.set(connection)
                else:
                    connection.close()

        exchange.await_until(exchange.total_at, "a connection to the provider")
        since = _now()
        task = gateway.tasks.spawn(connect(), "dial")
        try:
            return await waiter
        except BaseException:
            task.cancel()
            raise
        finally:
            exchange.provider_s += _now() - since

    # -- the answer ------------------------------------------------------------------------------------

    async def _pass_on(self, connection: Upstream, response: Response, content: bytes | None, *, others: bool) -> None:
        """Judge an answer and relay it in the way its kind asks for."""
        call = self._call
        profile = self._target.provider.profile
        head = response.fields
        if response.status >= 300:
            raise self._fault(
                faults.classify(
                    profile, response.status, head, content or b"", time.time(), secrets=self._runtime.secrets
                )
            )
        _refuse_coding(head)
        plain = call.endpoint.dialect == "plain"
        kind = head.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content is None and kind == b"text/event-stream":
            if not call.stream and not plain and call.json is not None:
                raise UpstreamInvalid("the provider answered with a stream that nobody asked for")
            await self._relay_events(connection, response, others=others)
        elif call.stream and not plain:
            fault = faults.in_body_error(content or b"", profile, secrets=self._runtime.secrets)
            if fault is not None:
                raise self._fault(fault)
            raise UpstreamInvalid("the provider was asked for a stream and answered with something else")
        elif content is None:
            await self._relay_bytes(connection, response, kind)
        else:
            self._answer(response, content)

    def _answer(self, response: Response, content: bytes) -> None:
        """Judge a whole answer, read its usage, and send it."""
        exchange = self._exchange
        self._check(response, content)
        exchange.commit(response.status)
        exchange.bytes_out = len(content)
        exchange.client.answer(response.status, exchange.head(response, self._target), content)

    def _check(self, response: Response, content: bytes) -> None:
        exchange, endpoint = self._exchange, self._call.endpoint
        head = response.fields
        if b"content-encoding" in head:
            _refuse_coding(head)
        if endpoint.speech in ("audio", "venice_image") and not head.get(b"content-type", b"").startswith(
            b"application/json"
        ):
            return
        if not content and endpoint.body == "none":
            return
        found = usage.facts(content)
        if found is None:
            what = "something that is not a JSON object" if content.strip() else "an empty body"
            raise UpstreamInvalid(f"the provider answered 200 with {what}")
        fault = faults.in_body_error(content, self._target.provider.profile, secrets=self._runtime.secrets)
        if fault is not None:
            raise self._fault(fault)
        exchange.usage = usage.of(found)
        exchange.finish_reason = found.finish()

    async def _relay_events(self, connection: Upstream, response: Response, *, others: bool) -> None:
        exchange = self._exchange
        flow = relay_events(exchange, self._runtime, connection, response, hides_usage=self._hides_usage, hold=others)
        try:
            await flow.done
        finally:
            exchange.end_heartbeat()
        exchange.client.end_stream(flow.last)

    async def _relay_bytes(self, connection: Upstream, response: Response, kind: bytes) -> None:
        """Anything else: large JSON, audio, images. Its original length stays, so that truncation can be told."""
        exchange = self._exchange
        declared = response.length
        if declared is not None and declared > BODY_BYTES_MAX:
            raise UpstreamInvalid(f"the provider's answer has {declared} bytes; at most {BODY_BYTES_MAX} are accepted")
        flow = BytesRelay(exchange.client, connection, on_payload=exchange.note_payload)
        exchange.relay = flow
        exchange.commit(response.status)
        exchange.client.begin_stream(response.status, exchange.head(response, self._target), flow, declared)
        exchange.note_payload()
        connection.relay_to(flow)
        undelimited = connection.reader.delimited_by_eof
        await flow.done
        if undelimited and kind == b"application/json" and not flow.tail.rstrip().endswith(b"}"):
            # Only the end of the connection ended it, and JSON tells that it was not the end (promise 30).
            raise UpstreamInvalid("the provider closed the connection before its answer was complete")
        if kind == b"application/json":
            exchange.usage = usage.in_tail(flow.tail)
        exchange.client.end_stream()

    def _fault(self, fault: Fault) -> GatewayError:
        """A provider's judged failure as an error, with what it says about the account taken to heart."""
        runtime = self._runtime
        scope = "" if fault.scope == "account" else self._target.model
        if fault.kind in (Kind.RATE_LIMIT, Kind.ERROR_BUDGET) and fault.retry_after_s is not None:
            runtime.cool(scope, _now() + fault.retry_after_s)
        elif fault.kind in (Kind.QUOTA, Kind.AUTH) and fault.take_over:
            runtime.cool(scope, _now() + ACCOUNT_PAUSE_S)
        error = fault.error()
        error.counts = fault.counts_for_breaker
        return error


def _refuse_coding(head: dict[bytes, bytes]) -> None:
    coding = head.get(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise UpstreamInvalid("the provider sent a compressed answer although none was accepted")
