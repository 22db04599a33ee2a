"""The gateway of one worker: what connections call, what exchanges share, what is counted at the end.

What comes from one configuration is a `Plane`, swapped by one assignment; an exchange keeps the one it began
with. `Gateway` is the rest: time, tasks, the sweep, the dialer, the retry budget. It judges heads (`admit`),
begins exchanges (`start`), words refusals (`refusal`) and takes records (`ended`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dandolo.api.endpoints import ENDPOINTS, Dialect, Endpoint
from dandolo.board import Board
from dandolo.cache.flight import Flights
from dandolo.clock import timestamp
from dandolo.config.schema import Config
from dandolo.errors import GatewayError, ProtocolError, RequestError, UpstreamTimeout
from dandolo.gateway import answers, site
from dandolo.gateway.admission import Admission, Tenant
from dandolo.gateway.batch import Batches
from dandolo.gateway.books import SETTLED, Books
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.fleet import Runtime
from dandolo.gateway.flying import fly
from dandolo.gateway.hedging import begin_hedge
from dandolo.gateway.leading import Begun, landed
from dandolo.gateway.pins import Pins
from dandolo.gateway.plane import Plane, limits_of
from dandolo.gateway.repeats import Repeats
from dandolo.gateway.spending import settle
from dandolo.gateway.steering import STEERING
from dandolo.gateway.summary import record
from dandolo.gateway.tiers import Store, tiers_of
from dandolo.gateway.ways import Lane
from dandolo.net.dial import Dialer
from dandolo.net.downstream import Downstream
from dandolo.net.relay import Remainder
from dandolo.net.sweep import PERIOD_S, Sweep
from dandolo.net.tasks import Tasks
from dandolo.net.upstream import Upstream
from dandolo.policy import NO_POLICY, Policy
from dandolo.record import Record
from dandolo.route.hedge import Watch
from dandolo.route.retry import LOCAL_WAIT_MAX_S, Budget
from dandolo.wire.server import DRAIN_BYTES_MAX, Request

if TYPE_CHECKING:
    from dandolo.gateway.sharing import Sharing

AFTER_DONE_S = 1.0
"""How long a provider may keep its connection open after the end of its stream (promise 27)."""
FINISHED_MAX = 256
"""Exchanges whose records wait for the next beat; beyond, they do not wait."""
UNCOUNTED_BYTES_MAX = 16 * 1024
"""A body that comes in one piece is counted against the process's bound only when it is larger."""


class Admitted:
    """What was decided about a request when its head was complete."""

    __slots__ = (
        "body_bytes_max", "client", "endpoint", "lane", "local", "origin", "plane", "steered", "suffix", "tenant",
    )  # fmt: skip

    def __init__(self, plane: Plane, endpoint: Endpoint, tenant: Tenant, origin: bytes | None, suffix: str) -> None:
        self.body_bytes_max = DRAIN_BYTES_MAX
        self.client = ""
        self.lane: Lane | None = None
        self.steered = False
        """Whether headers of ours say how the request is to be handled: it then takes no short way."""
        self.plane = plane
        self.endpoint = endpoint
        self.tenant = tenant
        self.origin = origin
        self.suffix = suffix
        self.local: site.Local | None = None


class Gateway:
    """One worker's gateway. `take` receives the record of every request."""

    def __init__(
        self,
        config: Config,
        take: Callable[[Record], None],
        slot: int = 0,
        board: Board | None = None,
        policy: Policy = NO_POLICY,
    ) -> None:
        """`slot` tells workers of one host apart: each has a file of its own on disk. Raises OSError."""
        self.plane = Plane(config, board, policy)
        self.limits = limits_of(config)
        self.sweep = Sweep(time.monotonic())
        self.tasks = Tasks()
        self.dialer = Dialer()
        self.budget = Budget()
        self.dates = answers.Dates()
        self.draining = False
        self.replaced = False
        """Draining, while somebody else takes new connections in its stead."""
        self.connections: set[Downstream] = set()
        self._take = take
        self.books: Books | None = None
        """Where money is written down, None where it is not."""
        self._finished: list[Exchange] = []
        self.watch = Watch()
        self.pins = Pins()
        self.batches = Batches()
        self.flights: Flights[Begun] = Flights()
        self.repeats = Repeats(self)
        self.sharing: Sharing | None = None
        """Other processes with the same cache, where there are any."""
        self.store = Store(self)
        self.tiers = tiers_of(config, self.store, slot)
        self._due = 0.0
        self.request_prefix = b"req_" + secrets.token_hex(6).encode()
        self._unix_offset = time.time() - time.monotonic()
        self.requests = 0
        """Requests that were given an id."""

    now = staticmethod(time.monotonic)
    begin_hedge = staticmethod(begin_hedge)
    fly = staticmethod(fly)
    landed = staticmethod(landed)

    @property
    def admission(self) -> Admission:
        """The doorkeeper of the current plane."""
        return self.plane.admission

    # -- what connections call -------------------------------------------------------------------------

    def admit(self, connection: Downstream, request: Request) -> int:
        """Judge a head; the body's limit in bytes. Raises GatewayError for whatever is refused before a body."""
        plane = self.plane
        known = request.context
        if isinstance(known, Admitted) and known.plane is plane and known.local is None and not known.tenant.gone:
            # The head repeats one that was judged on this connection: what decides is the same bytes.
            plane.admission.check(known.tenant, self.now())
            return known.body_bytes_max
        if request.method in (b"CONNECT", b"TRACE"):
            raise RequestError(
                f"{site.printable(request.method)} is not allowed here",
                status=405,
                code="method_not_allowed",
                allow="GET, HEAD, POST, DELETE, OPTIONS",
                close=True,
            )
        endpoint = ENDPOINTS.get(request.path)
        suffix = ""
        if endpoint is None:
            found = site.find(request.path)
            if found is None:
                raise site.not_found(request.path)
            endpoint, suffix = found
        admission = plane.admission
        head = request.fields
        local_socket = not connection.peer
        if request.method not in endpoint.methods:
            if request.method == b"OPTIONS":
                origin = admission.check_browser(head, request.authority, local_socket=local_socket)
                admitted = Admitted(plane, endpoint, Tenant(None, 1), origin, suffix)
                admitted.local = site.preflight(endpoint, origin, head)
                request.context = admitted
                return DRAIN_BYTES_MAX
            raise RequestError(
                f"{site.printable(request.method)} is not allowed here; use {endpoint.allow}",
                status=405,
                code="method_not_allowed",
                allow=endpoint.allow,
            )
        origin = admission.check_browser(head, request.authority, local_socket=local_socket)
        if endpoint is site.PAGE:
            admitted = Admitted(plane, endpoint, Tenant(None, 1), origin, suffix)
            admitted.local = site.page(request.path, self.ready)
            request.context = admitted
            return DRAIN_BYTES_MAX
        tenant = admission.authenticate(head)
        coding = head.get(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise RequestError(
                "compressed request bodies are not accepted; send the body as it is",
                status=415,
                code="unsupported_content_encoding",
            )
        admitted = Admitted(plane, endpoint, tenant, origin, suffix)
        admitted.client = admission.client_address(connection.peer, head)
        admitted.steered = not STEERING.isdisjoint(head)
        request.context = admitted
        if endpoint.body != "none" or request.method == b"POST":
            limits = plane.config.limits
            admitted.body_bytes_max = limits.upload_bytes_max if endpoint.upload else limits.body_bytes_max
        # Last: whoever is refused for its limits is known by then, and told what is left of them.
        admission.check(tenant, self.now())
        return admitted.body_bytes_max

    def enter_again(self, connection: Downstream, request: Request) -> bool:
        """Count in a complete request whose head repeats one admitted on this connection, if it may start.

        Path, key, host and origin are the same bytes, so they were judged; what can have changed is the
        plane, how much is under way, and the body's length.
        """
        admitted = request.context
        if not isinstance(admitted, Admitted) or admitted.plane is not self.plane or admitted.local is not None:
            return False
        admission, tenant, size = admitted.plane.admission, admitted.tenant, len(request.body)
        if (
            size > UNCOUNTED_BYTES_MAX
            or size > admitted.body_bytes_max
            or admission.in_flight >= admission.in_flight_max
            or tenant.in_flight >= tenant.in_flight_max
            or (tenant.entry is not None and not tenant.entry.enter(self.now()))
        ):
            # What of it is to be told, the usual way finds out.
            return False
        admission.in_flight += 1
        tenant.in_flight += 1
        return True

    def begin(self, connection: Downstream, request: Request) -> None:
        """Handle a request that has been counted in."""
        admitted = request.context
        assert isinstance(admitted, Admitted)
        exchange = connection.exchange = Exchange(self, admitted, connection, request, self.next_id())
        exchange.number = self.requests
        self.sweep.items.add(exchange)
        exchange.begin()

    def body_grew(self, connection: Downstream, size: int) -> None:
        """Count bytes of an unfinished body. Raises Refusal (503) when the process holds too many."""
        self.plane.admission.hold(size)
        connection.held_bytes += size

    def start(self, connection: Downstream, request: Request) -> None:
        """Handle a complete request."""
        admitted = request.context
        assert isinstance(admitted, Admitted)
        if admitted.local is not None:
            status, head, body = admitted.local
            head += self.own_fields(self.next_id(), "plain", admitted.origin)
            connection.answer(status, head, body)
            self._let_go(connection)
            connection.finish()
            return
        try:
            size = len(request.body)
            if size > UNCOUNTED_BYTES_MAX and size > connection.held_bytes:
                self.body_grew(connection, size - connection.held_bytes)
            admitted.plane.admission.enter(admitted.tenant, self.now())
        except GatewayError as error:
            status, head, body = self.refusal(connection, request, error)
            connection.answer(status, head, body, close=error.close)
            connection.finish()
            return
        self.begin(connection, request)

    def refusal(self, connection: Downstream, request: Request | None, error: GatewayError) -> tuple[int, bytes, bytes]:
        """Word an answer for a request that no exchange handles, and record it."""
        self._let_go(connection)
        dialect: Dialect = "plain"
        name = "unknown"
        tenant = ""
        rated = None
        if request is not None:
            admitted = request.context
            if isinstance(admitted, Admitted):
                dialect, name, tenant = admitted.endpoint.dialect, admitted.endpoint.name, admitted.tenant.name
                rated = admitted.tenant.rated
            elif (endpoint := ENDPOINTS.get(request.path)) is not None:
                dialect, name = endpoint.dialect, endpoint.name
        encoded_id = self.next_id()
        request_id = encoded_id.decode("ascii")
        head, body = answers.error_answer(error, dialect, request_id)
        origin = self.admission.listed_origin(request.fields) if request is not None else None
        head += self.own_fields(encoded_id, dialect, origin)
        if rated is not None:
            head += rated.lines(self.now())
        made = Record(
            timestamp(time.time()),
            request_id,
            error.status,
            site.printable(request.method) if request is not None else "",
            name,
            tenant,
            self.admission.client_address(connection.peer, request.fields if request is not None else {}),
            code=error.code or "",
            bytes_out=len(body),
            duration_ms=0.0,
            overhead_ms=0.0,
        )
        if request is not None and self.plane.tracing is not None:
            made.trace, made.parent, _ = self.plane.tracing.place(request.fields)
        self._take(made)
        return error.status, head, body

    def gone(self, connection: Downstream) -> None:
        """The client has disconnected."""
        self._let_go(connection)
        exchange = connection.exchange
        if isinstance(exchange, Exchange):
            exchange.cancel()

    # -- what exchanges call ---------------------------------------------------------------------------

    def ended(self, exchange: Exchange) -> None:
        """An exchange is over: count it out, let its connection go on, record it at the next beat."""
        client = exchange.client
        self.sweep.items.discard(exchange)
        exchange.plane.admission.leave(exchange.admitted.tenant)
        if client.held_bytes:
            self._let_go(client)
        finished = self._finished
        finished.append(exchange)
        exchange.let_go()
        # Before what is charged takes the price list's word for the provider's.
        if self.books is not None and exchange.booked is not SETTLED:
            self.books.ended(exchange)
        if exchange.held is not None:
            settle(exchange, answered=exchange.status < 400, left=exchange.status == 499)
        if len(finished) >= FINISHED_MAX:
            self.settle()
        client.finish()

    def settle(self) -> None:
        """Record the exchanges that have ended: every beat, and before anybody looks at the records.

        Together, since that costs a third of what it does between requests, in caches full of other things.
        """
        caching = self.plane.caching
        if caching is not None and caching.drafts:
            caching.settle()
        finished, self._finished = self._finished, []
        for exchange in finished:
            self._take(record(exchange))
        if self.repeats.pending:
            self.repeats.settle(self._take, self._unix_offset)

    def keep(self, runtime: Runtime, connection: Upstream, *, ended: bool) -> None:
        """Put a provider's connection back, or let it go.

        `ended`: the client's answer is complete. What the provider still has to say is then read for at
        most AFTER_DONE_S, so that the connection can be used again if it ends properly.
        """
        if connection.release():
            runtime.pool.put(connection, self.now())
            return
        if ended and not connection.reader.complete and not connection.closed:

            def over(remainder: Remainder) -> None:
                self.sweep.items.discard(remainder)
                connection.detach()
                runtime.pool.give(connection, self.now())

            remainder = Remainder(connection, self.now() + AFTER_DONE_S, over)
            self.sweep.items.add(remainder)
            connection.relay_to(remainder)
            return
        connection.detach()
        connection.close()

    def own_fields(self, encoded: bytes, dialect: Dialect, origin: bytes | None) -> bytes:
        """The header lines every answer of ours carries; `encoded` is the request's id."""
        lines = b"%bx-request-id: %b\r\n" % (self.dates.line(self.now()), encoded)
        if dialect == "messages":
            lines += b"request-id: %b\r\n" % encoded
        return lines if origin is None else lines + site.cors(origin)

    # -- state -----------------------------------------------------------------------------------------

    def ready(self) -> tuple[bool, str]:
        """Whether new requests are welcome, and why not (promise 55). Never touches a provider."""
        if self.draining and not self.replaced:
            return False, "draining"
        now = self.now()
        for runtime in self.plane.fleet:
            known = runtime.candidates.values()
            if not known or any(c.breaker is None or c.breaker.retry_after_s(now) <= 0 for c in known):
                return True, ""
        return False, "every provider's breaker is open"

    def busy_answer(self) -> bytes:
        """The whole answer for a connection beyond the process's limit."""
        error = ProtocolError("this gateway has as many connections as it takes; try again later", status=503)
        error.code, error.type, error.retry_after_s = "overloaded", "server_error", 1.0
        head, body = answers.error_answer(error, "plain", "")
        head += self.own_fields(self.next_id(), "plain", None)
        return b"HTTP/1.1 503 Service Unavailable\r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
            head,
            len(body),
            body,
        )

    def unix(self, monotonic_s: float) -> float:
        """A monotonic time as Unix time, by the offset of the last tick."""
        return monotonic_s + self._unix_offset

    def blames(self, error: GatewayError, now: float) -> bool:
        """Whether a failure speaks against the provider: a deadline does not while our own loop runs late."""
        return not (isinstance(error, UpstreamTimeout) and self.watch.excused(now))

    def tick(self) -> None:
        """Expire what has passed its deadline (every `net.sweep.PERIOD_S`)."""
        now = self.now()
        if self._due:
            self.watch.ticked(now, self._due)
        self._due = now + PERIOD_S
        self.plane.refresh()
        if self.tiers is not None:
            self.tiers.tick(now)
        for runtime in self.plane.fleet:
            if runtime.slots.waiting:
                runtime.slots.expire(now)
                if runtime.limit.wait_s(now) > LOCAL_WAIT_MAX_S:
                    runtime.slots.dismiss()
        self._unix_offset = time.time() - now
        self.sweep.tick(now)
        if self._finished or self.repeats.pending:
            self.settle()

    def tend(self) -> None:
        """Close provider connections that have been idle or alive for too long (every few seconds)."""
        now = self.now()
        self.repeats.tend()
        for runtime in self.plane.fleet:
            runtime.pool.expire(now)

    def _let_go(self, connection: Downstream) -> None:
        if connection.held_bytes:
            self.plane.admission.release(connection.held_bytes)
            connection.held_bytes = 0

    def next_id(self) -> bytes:
        """The id of another request."""
        self.requests += 1
        return b"%b%010x" % (self.request_prefix, self.requests)
