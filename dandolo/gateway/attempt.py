"""One call to one account: a slot, a connection, a request out, its answer judged and passed on.

Whatever is taken is given back in the order it was taken, also when the client leaves or a deadline passes
in the middle of any wait. An attempt raises `GatewayError` with its verdict on whether somebody else may be
asked; it has told the breaker and the cool-downs by then. Once `exchange.commit` has been called, the
client has been sent something and the verdict no longer matters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dandolo.api import faults, usage
from dandolo.api.call import Call
from dandolo.api.faults import Fault, Kind
from dandolo.api.merge import LISTS
from dandolo.errors import GatewayError, InternalError, UpstreamInvalid, UpstreamUnavailable
from dandolo.gateway.pins import remember
from dandolo.gateway.streaming import relay_events
from dandolo.gateway.waiting import MISSING, grace_s
from dandolo.gateway.ways import Lane
from dandolo.net.relay import BODY_BYTES_MAX, BytesRelay
from dandolo.net.strand import Waiter
from dandolo.net.upstream import Upstream
from dandolo.route.candidate import Candidate
from dandolo.route.hedge import first_token_deadline_s, plain_deadline_s
from dandolo.route.limit import RATE_LIMITED
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.fleet import Runtime
    from dandolo.gateway.shortly import Begun

ACCOUNT_PAUSE_S = 30.0
"""How long others are preferred to an account without credit or with a refused key."""
MODEL_PAUSE_S = 1.0
"""The same for a model whose limit or overload names no time."""
MODEL_MISSING_S = 60.0
"""The same for a model that the account does not have."""
NO_OPTION_MODELS_MAX = 1024

FIRST_BYTE = "the first byte of the provider's answer"
_PAUSES: Mapping[Kind, tuple[float, str]] = {
    Kind.ERROR_BUDGET: (faults.ERROR_BUDGET_S, "error budget used up"),
    Kind.QUOTA: (ACCOUNT_PAUSE_S, "no credit"),
    Kind.AUTH: (ACCOUNT_PAUSE_S, "key refused"),
}
"""How long whatever a fault is about, the account or a model on it, is left alone at least."""

_now = time.monotonic


class Outrun(Exception):
    """Another attempt of the same request had content first: this one is given up."""


class Attempt:
    """One attempt of an exchange at a candidate of whose account a slot is held. `run` is called once."""

    __slots__ = (
        "_asked", "_call", "_candidate", "_cooled", "_epoch", "_exchange", "_hides_usage", "_lane", "_number",
        "_runtime", "_target",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, call: Call, lane: Lane, candidate: Candidate, begun: Begun | None) -> None:
        self._exchange = exchange
        self._call = call
        self._lane = lane
        self._candidate = candidate
        self._target = target = lane.route.targets[candidate]
        self._runtime: Runtime = exchange.plane.fleet[target.account]
        self._hides_usage = False
        self._asked = begun is not None
        """The provider has the request, and has not refused it."""
        self._cooled: float | None = None
        """The wait that a refusal for a limit asked for, -1 where it named none; None: it was no such refusal."""
        if begun is not None:
            self._number, self._epoch = begun.number, begun.epoch
        else:
            self._number, self._epoch = candidate.begin(_now(), call.stream)

    @property
    def asked(self) -> bool:
        """Whether the provider has the request, and has not refused it."""
        return self._asked

    async def run(self, others: bool, begun: Begun | None = None) -> None:
        """Ask the account and pass its answer on. `others`: somebody else could still take over.

        With `begun` the request is on its way already. The candidate is told the outcome, then the slot is left.
        Raises GatewayError.
        """
        candidate, number, epoch = self._candidate, self._number, self._epoch
        try:
            await self._converse(others, begun)
        except BaseException as error:
            now = _now()
            if isinstance(error, GatewayError) and error.counts and self._exchange.gateway.blames(error, now):
                candidate.failed(number, epoch, now)
            elif isinstance(error, Outrun):
                candidate.outrun(number, epoch, now, grace_s(self._call))
            elif self._cooled is not None:
                candidate.limited(number, epoch, now, self._cooled if self._cooled >= 0 else None)
            else:
                candidate.abandoned(number, epoch)
            books = self._exchange.gateway.books
            if books is not None and not self._exchange.committed:
                books.failed(self._exchange, self._asked)
            raise
        else:
            candidate.succeeded(number, epoch, _now(), self._exchange.tokens_out())
            if self._call.endpoint.dialect == "responses":
                remember(self._exchange)
        finally:
            candidate.limit.slots.leave(_now(), self._exchange.tenant.name)

    def content(self) -> None:
        """The first content of the stream has come."""
        now = _now()
        self._exchange.first_token_at = now
        self._candidate.first_content(self._number, self._epoch, now)

    async def _converse(self, others: bool, begun: Begun | None) -> None:
        """Send the request, twice where that is no retry: on a stale connection, or without our own option."""
        exchange, runtime, model = self._exchange, self._runtime, self._target.model
        include_usage = self._target.account.provider.profile.include_usage
        if begun is not None:
            self._hides_usage = begun.hides_usage
        elif self._call.stream:
            self._hides_usage = self._call.injects_usage(runtime.takes_usage_option(model))
        books = exchange.gateway.books
        if books is not None and begun is None and not books.intend(exchange, self._target):
            raise books.no_room()
        first_byte_s = self._first_byte_s(others)
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
                    if others and self._call.stream:
                        exchange.plan_hedge(self._candidate, now)
                    self._asked = True
                    waiter = connection.send(head, body, head_only=exchange.request.method == b"HEAD")
                content = await waiter
                now = _now()
                exchange.provider_s += now - exchange.sent_at
                if exchange.first_byte_at is None:
                    exchange.first_byte_at = now
                response = connection.response
                assert response is not None
                self._asked = response.status < 300
                runtime.read_hints(response.fields, now)
                if response.status in (400, 422) and self._hides_usage and include_usage == "try":
                    # Perhaps our own addition was what it did not like: asked again without it.
                    self._hides_usage = False
                    option_dropped = True
                    continue
                if option_dropped and response.status == 200 and len(runtime.no_usage_option) < NO_OPTION_MODELS_MAX:
                    # It was; any other outcome, the caller's leaving too, says nothing of it.
                    runtime.no_usage_option.add(model)
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
            finally:
                exchange.gateway.keep(runtime, connection, ended=ended)

    def _outgoing(self) -> tuple[bytes, bytes]:
        """The request for this provider: its head from an allowlist, the body with as little changed as must be."""
        exchange, call, target, lane = self._exchange, self._call, self._target, self._lane
        wish = exchange.plane.wish_for(target, call)
        body = call.body_for(
            target.model, target.name, target.account.provider.defaults, inject_usage=self._hides_usage, wish=wish
        )
        way = lane.ways.get(self._candidate)
        prefix = way.prefix if way is not None else self._prefix()
        if body is None:
            return b"%b%bx-request-id: %b\r\n\r\n" % (prefix, exchange.trace_lines, exchange.encoded_id), b""
        return (
            b"%bcontent-length: %d\r\n%bx-request-id: %b\r\n\r\n"
            % (prefix, len(body), exchange.trace_lines, exchange.encoded_id),
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
        # What may travel with others takes no short way.
        alone = call.endpoint.name not in LISTS or not exchange.plane.config.routing.batch_window
        if constant and alone and call.json is not None and not exchange.admitted.steered:
            self._lane.learn(self._candidate, runtime.way(self._candidate, target, prefix))
        return prefix

    def _first_byte_s(self, others: bool) -> float:
        """How long to wait for the answer; where somebody else could take over no longer than is usual here."""
        timeouts = self._exchange.plane.config.timeouts
        if not self._call.stream:
            configured_s = timeouts.first_byte
            return plain_deadline_s(self._candidate.measured, configured_s) if others else configured_s
        configured_s = timeouts.first_byte_stream
        if not others:
            return configured_s
        peers = self._lane.route.pool.everybody
        return first_token_deadline_s(self._candidate.measured, configured_s, grace_s(self._call), peers)

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
        if exchange.leads and response.status == 200:
            # Any other good status is its client's own: nothing of it is kept or shared.
            exchange.whole = content
            exchange.response = response
        exchange.write_down()
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
        exchange.response_id = found.id

    async def _relay_events(self, connection: Upstream, response: Response, *, others: bool) -> None:
        exchange = self._exchange
        flow = relay_events(
            exchange,
            self._runtime,
            connection,
            response,
            hides_usage=self._hides_usage and not exchange.shares,
            hold=others,
            on_content=self.content,
        )
        try:
            await flow.done
        finally:
            exchange.end_heartbeat()
        exchange.write_down()
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
        exchange.write_down()
        exchange.client.end_stream()

    def _fault(self, fault: Fault) -> GatewayError:
        """A provider's judged failure as an error, with what it says about the account taken to heart."""
        error = fault.error()
        error.counts = fault.counts_for_breaker
        if not self._runtime.breaking or not fault.take_over:
            return error
        now, candidate, wait_s = _now(), self._candidate, fault.retry_after_s
        if fault.scope == "request":
            # Whatever it is about, the next call may fare better: a caller's must not send everybody's away.
            return error
        if fault.kind is Kind.RATE_LIMIT:
            if fault.scope == "account":
                self._cooled = -1.0 if wait_s is None else wait_s
            else:
                candidate.cool(now + (MODEL_PAUSE_S if wait_s is None else wait_s), RATE_LIMITED)
        elif fault.kind in _PAUSES:
            least_s, reason = _PAUSES[fault.kind]
            whom = candidate.limit if fault.scope == "account" else candidate
            whom.cool(now + max(wait_s or 0.0, least_s), reason)
        elif fault.kind is Kind.NOT_FOUND_MODEL:
            # Where it has just answered it is there: it was this call that asked for something else of it.
            if now - candidate.measured.answered_at > MODEL_MISSING_S:
                candidate.cool(now + MODEL_MISSING_S, MISSING)
        elif fault.kind in (Kind.OVERLOADED, Kind.MODEL_OFFLINE) and (wait_s is not None or not error.counts):
            candidate.cool(now + (MODEL_PAUSE_S if wait_s is None else wait_s), "overloaded")
        return error


def _refuse_coding(head: dict[bytes, bytes]) -> None:
    coding = head.get(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise UpstreamInvalid("the provider sent a compressed answer although none was accepted")
