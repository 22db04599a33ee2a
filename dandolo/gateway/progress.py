"""What is known of a request as its story goes on: what it asked, who was asked, what came of it, what is left to say.

The story itself is `gateway.exchange`; this holds its state, and what follows from that alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dandolo.api import usage as usages
from dandolo.api.call import Call
from dandolo.errors import GatewayError
from dandolo.gateway.admission import Tenant
from dandolo.gateway.summary import estimated
from dandolo.gateway.tap import StreamTap
from dandolo.gateway.timing import Timed
from dandolo.net.downstream import Downstream
from dandolo.net.relay import BytesRelay, EventRelay
from dandolo.net.strand import Strand
from dandolo.route import retry
from dandolo.route.candidate import Candidate
from dandolo.route.catalog import Target
from dandolo.route.explain import Explanation
from dandolo.route.models import Selection
from dandolo.route.queue import NORMAL
from dandolo.wire.client import Response
from dandolo.wire.server import Request

if TYPE_CHECKING:
    from dandolo.cache.flight import Flight
    from dandolo.gateway.books import Booked
    from dandolo.gateway.flying import Following
    from dandolo.gateway.gateway import Admitted, Gateway
    from dandolo.gateway.hedging import Hedge
    from dandolo.gateway.keeping import Plan
    from dandolo.gateway.looking import Looking
    from dandolo.gateway.shortly import Begun
    from dandolo.gateway.spending import Held
    from dandolo.gateway.ways import Lane

_now = time.monotonic


class Progress(Timed):
    """The state of an exchange."""

    # What is the same for every new exchange stands on the class: an exchange is made for each request. But what is
    # read or set for most has a slot: beyond 30 other attributes an instance gets a table of its own.
    __slots__ = (
        "admitted", "attempts", "begun", "booked", "cache", "call", "client", "committed", "encoded_id", "endpoint",
        "first_byte_at", "first_token_at", "gateway", "held", "lane", "number", "plan", "plane", "request", "response",
        "sent_at", "started", "status", "tap", "target", "usage",
    )  # fmt: skip

    suffix = ""
    committed: bool
    provider_s = 0.0
    """Seconds spent waiting for providers."""
    queue_s = 0.0
    """Seconds spent waiting for slots."""
    bytes_out = 0
    usage: usages.Usage | None
    tap: StreamTap | None
    relay: EventRelay | BytesRelay | Following | None = None
    finish_reason: str | None = None
    shares = False
    """Whether its stream goes to several clients, of whom some want to see its usage."""
    leads = False
    """Whether it makes its call under a plan, as one that others may join."""
    looking: Looking | None = None
    """Where it looks for an answer beyond memory, and who may follow it there."""
    flight: Flight[Any] | None = None
    """Through which others have joined."""
    whole: bytes | None = None
    """Its plain answer, when it leads."""
    response: Response | None
    """The head of the provider's answer, for those who are given the same."""
    plan: Plan | None
    """What the cache may do for it."""
    cache: str
    """What the cache did for it: hit, miss, collapsed, stale; "" for nothing."""
    cache_lines = b""
    """Header lines that say so."""
    lent: Response | None = None
    """The head of the answer to a call that was made for several."""
    lent_by: bytes | None = None
    """The provider's name, where another process made that call."""
    response_id: str | None = None
    """The id of the provider's plain answer."""
    held: Held | None
    """What is set aside of its key's tokens and budget."""
    call: Call | None
    target: Target | None
    attempts: int
    error: GatewayError | None = None
    status: int
    first_byte_at: float | None
    first_token_at: float | None
    streamed = False
    relayed = False
    model = ""
    code = ""
    ended_at = 0.0
    body_bytes = 0
    method = b""
    strand: Strand | None = None
    begun: Begun | None
    ended = False
    lane: Lane | None
    tried: list[Candidate] | None = None
    """Who was asked, in order."""
    attempting = False
    """Whether an attempt of this story's own is under way."""
    hedge: Hedge | None = None
    silent: Candidate | None = None
    failures: tuple[str, ...] = ()
    """Who failed before, and how: account and code."""
    chosen: Candidate | None = None
    """Chosen already, by the short way that then could not go on."""
    region = ""
    """Where it must be served, "" for anywhere."""
    priority = NORMAL
    explains = False
    """Whether the answer tells how its provider was chosen."""
    selection: Selection | None = None
    """How a model was chosen, where the caller left that to us."""
    explanations: tuple[Explanation, ...] = ()
    number: int
    """Of the request, 0 where the one that made its id has not said it."""
    booked: Booked | None
    """The call that is under way, as the journal has it."""
    saved_usd: float | None = None
    """What the answer cost that the cache gave again, where that is known."""
    trace = ""
    """Its traceparent as the provider is told, "" while tracing is off."""
    trace_parent = ""
    """The caller's span, "" where the trace begins here."""
    trace_lines = b""
    """Header lines for the provider that say so."""
    waits_locally = False
    """The last failure was a short 429 that nobody can take over, which is waited out."""

    def __init__(
        self, gateway: Gateway, admitted: Admitted, client: Downstream, request: Request, request_id: bytes
    ) -> None:
        self.gateway = gateway
        self.plane = admitted.plane
        self.admitted = admitted
        self.client = client
        self.request = request
        self.encoded_id = request_id
        self.endpoint = admitted.endpoint
        self.usage = self.tap = self.plan = self.held = self.call = self.target = self.lane = self.booked = None
        self.first_byte_at = self.first_token_at = self.begun = self.response = None
        self.committed = False
        self.cache = ""
        self.attempts = self.status = self.number = 0
        self.started = self.sent_at = _now()

    @property
    def id(self) -> str:
        """The request's id, as the client was told."""
        return self.encoded_id.decode("ascii")

    @property
    def tenant(self) -> Tenant:
        """Whose request it is."""
        return self.admitted.tenant

    def purse(self) -> retry.Purse:
        """What retries and hedges of this request are paid from."""
        return retry.Purse(self.gateway.budget, self.tenant.budget)

    def tokens_out(self) -> int:
        """Tokens of the answer that has ended: as told, else as many as there were events; 0: unknown."""
        tap = self.tap
        if tap is not None:
            tokens = tap.usage.output_tokens if tap.counted else tap.data_events
        else:
            tokens = self.usage.output_tokens if self.usage is not None else 0
        lane = self.lane
        if tokens and lane is not None and lane.route.pool.single is None:
            lane.route.answered(tokens)
        return tokens

    def costs(self) -> usages.Usage | None:
        """Tokens and cost of the answer as far as they are known."""
        usage = self.usage
        if usage is None and self.tap is not None and self.tap.counted:
            usage = self.tap.usage
        if usage is not None and usage.cost_usd is None and self.target is not None:
            usage.cost_usd = self.target.cost_usd(usage.input_tokens, usage.output_tokens)
        return usage

    def take_from(self, detached: Progress) -> None:
        """A call made for several has answered: what it took is what this one took."""
        self.target, self.attempts, self.failures = detached.target, detached.attempts, detached.failures
        self.sent_at, self.provider_s = detached.sent_at, _now() - detached.started
        self.first_byte_at = detached.first_byte_at
        self.lent = detached.response

    def let_go(self) -> None:
        """Keep what the record will say, and nothing that belongs to the connections or holds a body."""
        self.ended_at = _now()
        request, call = self.request, self.call
        self.method = request.method
        self.body_bytes = len(request.body)
        if call is not None:
            self.model = call.model
            self.call = None
        if self.relay is not None:
            self.relayed = True
            self.streamed = self.relay.streams
            if self.tap is not None and self.usage is None and self.committed:
                self.usage = estimated(self.tap.usage, self.body_bytes, self.tap.data_events)
            self.relay = self.tap = None
        self.explanations = ()
        self.selection = None
        self.plan = None
        self.response = None
        self.hedge = self.lane = self.tried = self.silent = None
        if self.error is not None:
            self.code = self.error.code or ""
            # Its traceback knows everything that was to be let go of.
            self.error = None
        del self.request, self.client
