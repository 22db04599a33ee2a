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
from typing import TYPE_CHECKING, Any

from dandolo.api.call import Call, read
from dandolo.api.endpoints import MODELS
from dandolo.api.merge import LISTS
from dandolo.errors import GatewayError, InternalError
from dandolo.gateway import answers, steering
from dandolo.gateway.attempt import Attempt, Outrun
from dandolo.gateway.auto import is_auto, select
from dandolo.gateway.choice import Ask, route_of
from dandolo.gateway.explanation import about_choice
from dandolo.gateway.heads import answer_head, relayed_head
from dandolo.gateway.leading import Lone
from dandolo.gateway.progress import Progress
from dandolo.gateway.shortly import begin_shortly
from dandolo.gateway.spending import must_learn, reserve, settle
from dandolo.gateway.waiting import COOL_DOWN, give_up_trial, grace_s, next_candidate, others
from dandolo.gateway.ways import Lane
from dandolo.net.strand import Strand
from dandolo.net.sweep import NEVER
from dandolo.route import retry
from dandolo.route.candidate import Candidate
from dandolo.route.catalog import Target
from dandolo.route.hedge import hedge_after_s
from dandolo.wire.client import Response

if TYPE_CHECKING:
    from dandolo.cache.flight import Flight
    from dandolo.gateway.hedging import Hedge

_log = logging.getLogger("dandolo")
_now = time.monotonic


class Exchange(Progress):
    """One request of one client. Created by the gateway, which is told once (`ended`) when it is over."""

    def begin(self) -> None:
        """Start the story; `Gateway.ended` is called when it is over, possibly before this returns."""
        admitted = self.admitted
        if self.plane.tracing is not None:
            self.plane.tracing.mark(self)
        lane = admitted.lane
        if lane is None or not lane.ways or admitted.steered or not begin_shortly(self, lane):
            self.tell_on()

    def cancel(self) -> None:
        """The client has left."""
        if self.flight is not None and self.flight.followers and self.client.lost:
            # Others wait for the same answer: it goes on for them.
            if isinstance(self.flight.leader, Lone):
                self.flight.leader.abandoned = True
            return
        if self.looking is not None and self.looking.waits:
            self.looking.cancel()
            return
        strand = self.tell_on()
        if self.hedge is not None and self.hedge.running:
            self.hedge.cancel()
        if strand is not None:
            strand.cancel()

    def interrupt(self, error: GatewayError) -> None:
        """End the story with `error` where it waits (a drain whose time is up)."""
        if self.looking is not None and self.looking.waits:
            self.looking.cancel(error)
            return
        strand = self.tell_on()
        if strand is not None:
            strand.throw(error)

    def tell_on(self) -> Strand | None:
        """Make sure that the story is being told by its coroutine, also when it was begun the short way."""
        if self.strand is None and not self.ended:
            self.strand = Strand(self._tell(), self.over)
            self.strand.resume()
        return self.strand

    # -- the story -------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        plane, request = self.plane, self.request
        call = self.call
        if call is None:
            call = self.call = read(self.endpoint, request.body, request.fields.get(b"content-type", b""))
        timeouts = plane.config.timeouts
        total_s = timeouts.stream_total if call.stream else timeouts.total
        if self.admitted.steered:
            own_s = steering.timeout_s(request.fields) or total_s
            self.hurried = own_s < total_s
            total_s = min(total_s, own_s)
            self.region = steering.region(request.fields)
            self.priority = steering.priority(request.fields, self.tenant.priority)
            self.explains = steering.explains(request.fields)
        else:
            self.priority = self.tenant.priority
        self.total_at = self.started + total_s
        if self.endpoint is MODELS:
            await self._list_models()
            return
        if call.json is not None and is_auto(plane, call.model):
            select(self, call)
        lane = self.lane = self._lane(call)
        fresh = self.begun is None and not self.leads
        if fresh and plane.caching is not None and not (call.stream and self.annotates):
            plan = self.plan = self.plan or plane.caching.plan(self, call, lane)
            if plan is not None:
                await self.gateway.fly(self, call, lane, plan)
                return
        if fresh and call.endpoint.name in LISTS and plane.config.routing.batch_window:
            await self.gateway.batches.ask(self, call, lane)
        else:
            await self.ask(call, lane)

    async def ask(self, call: Call, lane: Lane) -> None:
        """Ask one after another until somebody answers. Raises the last one's GatewayError when nobody does."""
        plane = self.plane
        if self.tenant.spending is not None:
            if must_learn(self, lane.route):
                # Once after a start, and only for keys with a budget: nothing is sent to anybody before it is needed.
                await plane.models.learn(self)
                lane = self.lane = self._lane(call)
            reserve(self, call, lane.route, _now())
        route = lane.route
        ask = Ask(call, route, self.tenant.name)
        budget, routing = self.purse(), plane.config.routing
        tried = self.tried = self.tried or []
        if self.begun is None:
            budget.earn()
        while True:
            begun, self.begun = self.begun, None
            if begun is None:
                candidate = await next_candidate(self, route, ask, tried)
                self.target = route.targets[candidate]
                self.attempts += 1
            else:
                candidate = begun.candidate
            if candidate not in tried:
                tried.append(candidate)
            attempt = Attempt(self, call, lane, candidate, begun)
            self.attempting = True
            try:
                await attempt.run(others(self, route, tried, _now()), begun)
                self.error = None
                return
            except Outrun:
                self.attempting = False
                assert self.hedge is not None
                await self.hedge.done
                return
            except GatewayError as failure:
                self.attempting = False
                # This frame holds it: with its own traceback it would hold this frame.
                failed = failure.with_traceback(None)
            error = await self._last_of(failed, candidate)
            if error is None:
                return
            tried = self.tried = self.tried or tried
            self.error = error
            if self.committed or not retry.may_take_over(error):
                raise error
            if self.attempts >= routing.attempts_max or _now() >= self.total_at:
                raise error
            if others(self, route, tried, _now()):
                if not budget.spend():
                    raise error
                continue
            wait_s = retry.local_wait_s(error, self.total_at - _now(), random.random())  # noqa: S311 - jitter
            if self.waits_locally or wait_s is None or not budget.spend():
                raise error
            # Nobody else is there: its own short wait is sat out, once.
            self.waits_locally = True
            await self.sleep(wait_s, COOL_DOWN)
            tried.remove(candidate)

    async def _last_of(self, error: GatewayError, candidate: Candidate) -> GatewayError | None:
        """What an attempt's failure comes to: itself, that of a hedge beside it, None when the hedge is the answer."""
        self.note_failure(error, candidate)
        if self.hedge is not None and self.hedge.running:
            # The deadline of the attempt that failed is over; the other keeps its own.
            self.wait_no_more()
            try:
                # The other attempt that is under way is the next one.
                await self.hedge.done
            except GatewayError as other:
                return other
            except Outrun:
                return error
            return None
        return error

    def note_failure(self, error: GatewayError, candidate: Candidate) -> None:
        """An attempt has failed with nothing sent: the answer will tell, should there be another."""
        if not self.committed and retry.may_take_over(error):
            self.failures = (*self.failures, f"{candidate.account} {error.code or error.status}")

    def _lane(self, call: Call) -> Lane:
        """What was worked out for such calls on this connection, or anew."""
        admitted, generation = self.admitted, self.plane.generation
        lane = admitted.lane
        if lane is None or admitted.steered or not lane.fits(call, generation):
            lane = Lane(call, route_of(self, call), generation)
            if not (call.wishes or call.auto):
                admitted.lane = lane
        return lane

    async def _list_models(self) -> None:
        body = await self.plane.models.answer(self)
        self.commit(200)
        self.bytes_out = len(body)
        head = answers.JSON + self.gateway.own_fields(self.encoded_id, "plain", self.admitted.origin)
        self.client.answer(200, head, body)

    def send_whole(self, body: bytes) -> None:
        """Send a plain answer under the head of the provider whose call was taken from."""
        self.commit(200)
        self.bytes_out = len(body)
        self.client.answer(200, self.lent_head(), body)

    def lent_head(self) -> bytes:
        """The client's header lines under the head of the provider whose call was taken from."""
        assert self.lent is not None
        if self.lent_by is not None:
            return relayed_head(self, self.lent, self.lent_by)
        assert self.target is not None
        return self.head(self.lent, self.target)

    # -- what an attempt reports -----------------------------------------------------------------------

    def commit(self, status: int) -> None:
        """The client is being sent an answer: nobody can take over any more."""
        self.committed = True
        self.status = status
        if self.hedge is not None:
            self.hedge.give_up()

    def write_down(self) -> None:
        """The answer is complete, its end not yet sent: what it cost is written down before anybody has it."""
        books = self.gateway.books
        if books is not None:
            books.answered(self)

    def plan_hedge(self, silent: Candidate, now: float) -> None:
        """Let somebody else be asked too if `silent`, asked `now` for a stream, stays so (where configured)."""
        if self.plane.config.routing.hedge and self.hedge is None and self.call is not None:
            after_s = hedge_after_s(silent.measured, grace_s(self.call))
            if after_s is not None:
                self.silent = silent
                self.hedge_at(now + after_s)

    def hedge_now(self) -> None:
        """The provider asked last has been silent for longer than is usual."""
        silent = self.silent
        if silent is not None and not self.committed and (self.tried is None or self.tried[-1] is silent):
            self.gateway.begin_hedge(self, silent)

    def adopt(self, hedge: Hedge) -> None:
        """The other attempt had content first: it is the answer, and what was asked before is given up."""
        books = self.gateway.books
        if books is not None:
            # What was asked first has the request, too.
            books.failed(self, asked=True)
            self.booked, hedge.booked = hedge.booked, None
        if self.held is not None:
            # And its key is charged for both.
            settle(self, answered=False, left=self.attempting or self.begun is not None)
            self.held, hedge.held = hedge.held, None
        self.committed = True
        self.status = hedge.status
        self.target = hedge.target
        self.relay, self.tap = hedge.relay, hedge.tap
        self.sent_at, self.provider_s = hedge.sent_at, hedge.provider_s
        self.first_byte_at, self.first_token_at = hedge.first_byte_at, hedge.first_token_at
        self.wait_no_more()
        if self.attempting or self.begun is not None:
            strand = self.tell_on()
            if strand is not None:
                strand.throw(Outrun())

    @property
    def annotates(self) -> bool:
        """Whether a stream is to be closed with an annotation."""
        wish = self.request.fields.get(b"x-dandolo-annotate")
        return self.plane.config.server.annotate if wish is None else wish.lower() == b"true"

    def head(self, response: Response, target: Target) -> bytes:
        """The client's header lines for a provider's answer."""
        return answer_head(self, response, target)

    # -- endings ---------------------------------------------------------------------------------------

    def joined(self, flight: Flight[Any]) -> None:
        """Somebody asks the same (`cache.flight.Lone`)."""
        self.flight = flight
        flight.leader = Lone(self)

    def over(self, error: BaseException | None) -> None:
        """The story has ended, well or badly: the client is told if it was told nothing, then the gateway."""
        self.strand = None
        if self.leads:
            self.gateway.landed(self, error)
        self.ended = True
        self.deadline = NEVER
        self.let_go_of_choice()
        relay = self.relay
        if relay is not None:
            self.bytes_out = relay.payload_bytes
            tap = self.tap
            if tap is not None:
                self.usage = tap.usage if tap.counted else None
                self.finish_reason = tap.finish_reason
        if error is not None and self.cancelled(error):
            self.status = 499
        elif error is None and self.client.lost:
            # Told to others only.
            self.status = 499
        elif error is not None:
            if not isinstance(error, GatewayError):
                self.report(error)
                error = InternalError("an error within the gateway; it was logged with this request's id", close=True)
            self.error = error
            if self.committed:
                self._break_off(error)
            else:
                self._refuse(error)
        self.gateway.ended(self)

    def let_go_of_choice(self) -> None:
        """Whoever was chosen or asked beside is not needed any more."""
        if self.hedge is not None and self.hedge.running:
            self.hedge.cancel()
        if self.chosen is not None:
            give_up_trial(self.chosen)
            self.chosen = None

    @staticmethod
    def cancelled(error: BaseException) -> bool:
        """Whether a story ended because nobody wants its end."""
        return isinstance(error, asyncio.CancelledError)

    def report(self, error: BaseException) -> None:
        """Log a mistake of our own."""
        _log.error("request %s failed within the gateway", self.id, exc_info=error)

    def _refuse(self, error: GatewayError) -> None:
        self.status = error.status
        head, body = answers.error_answer(error, self.endpoint.dialect, self.id)
        head += self.gateway.own_fields(self.encoded_id, self.endpoint.dialect, self.admitted.origin)
        if self.attempts and self.target is not None:
            head += b"x-dandolo-provider: %b\r\nx-dandolo-attempts: %d\r\n" % (
                self.target.provider.encoded_name,
                self.attempts,
            )
        if self.cache == "hit":
            head += self.cache_lines
        if self.failures or self.explains:
            head += about_choice(self, _now())
        rated = self.tenant.rated
        if rated is not None:
            head += rated.lines(_now())
        self.bytes_out = len(body)
        self.client.answer(error.status, head, body, close=error.close)

    def _break_off(self, error: GatewayError) -> None:
        """The answer broke after it had begun: say so at an event boundary if there is one, and cut (promise 26)."""
        if error.source == "upstream":
            error.code = "upstream_stream_error"
        flow = self.relay
        if flow is not None and flow.streams and not flow.oversized and not self.client.lost:
            sent = self.tap.data_events if self.tap is not None else 0
            self.client.write(answers.error_event(error, self.endpoint.dialect, self.id, sent))
        self.client.cut()
