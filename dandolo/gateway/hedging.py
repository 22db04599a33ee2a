"""A second attempt beside a first that stays silent: whoever has content first is the answer (opt-in).

A `Hedge` is an exchange of its own with the client of another, of one attempt, held back until its first content.
Then it is adopted: the other's attempt is given up as outrun and its story waits for the end of this one. When the
first is the quicker after all, or the client leaves, this one is given up. Hedges and retries draw on one budget.

Both may cost: what a second call may take of its key's tokens and money is set aside too, and where there is no room
for that there is no hedge. The one that was outrun is charged for what it was sent.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from dandolo.errors import GatewayError
from dandolo.gateway.attempt import Attempt, Outrun
from dandolo.gateway.choice import Ask
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.spending import reserve, settle
from dandolo.gateway.waiting import give_up_trial, grace_s
from dandolo.net.strand import Strand, Waiter
from dandolo.net.sweep import NEVER
from dandolo.route.candidate import Candidate
from dandolo.route.hedge import may_hedge

if TYPE_CHECKING:
    from dandolo.gateway.ways import Lane

_now = time.monotonic


def begin_hedge(exchange: Exchange, silent: Candidate) -> Hedge | None:
    """Ask somebody else too, if anybody has a slot free and the budget allows. `silent` has been asked last."""
    lane, call, plane = exchange.lane, exchange.call, exchange.plane
    if lane is None or call is None or exchange.attempts >= plane.config.routing.attempts_max:
        return None
    now, route, tenant = _now(), lane.route, exchange.tenant.name
    ask = Ask(call, route, tenant)
    tried = exchange.tried or [silent]
    candidate = plane.balancer.choose(route.pool, now, ask.tokens_in, route.tokens_out, tried, None, ask.room)
    if candidate is None:
        return None
    if not candidate.limit.slots.enter(tenant):
        give_up_trial(candidate)
        return None
    if not may_hedge(silent.measured, now - exchange.sent_at, exchange.purse(), grace_s(call)):
        candidate.limit.slots.leave(now, tenant)
        give_up_trial(candidate)
        return None
    hedge = Hedge(exchange, lane, candidate)
    try:
        reserve(hedge, call, route, now)
    except GatewayError:
        candidate.limit.slots.leave(now, tenant)
        give_up_trial(candidate)
        return None
    exchange.attempts += 1
    exchange.tried = [*tried, candidate]
    exchange.hedge = hedge
    hedge.begin()
    return hedge


class Hedge(Exchange):
    """The second attempt. `done` tells its end to the exchange it stands beside."""

    def __init__(self, beside: Exchange, lane: Lane, candidate: Candidate) -> None:
        super().__init__(beside.gateway, beside.admitted, beside.client, beside.request, beside.encoded_id)
        self.done: Waiter[None] = Waiter()
        self.candidate = candidate
        self.call = beside.call
        self.lane = lane
        self.target = lane.route.targets[candidate]
        self.attempts = beside.attempts + 1
        self.total_at = beside.total_at
        self.hurried = beside.hurried
        self.explains, self.explanations = beside.explains, beside.explanations
        self.selection = beside.selection
        self.failures = (f"{beside.target.account.label} silent",) if beside.target is not None else ()
        # What was spent waiting for the other was spent waiting for a provider.
        self.provider_s = self.started - beside.sent_at
        self.started = beside.started
        self.queue_s = beside.queue_s
        self._beside = beside
        self._attempt: Attempt | None = None
        self._won = False

    @property
    def running(self) -> bool:
        """Whether it may still become the answer, or is it."""
        return not self.ended

    def begin(self) -> None:
        """Ask."""
        self.gateway.sweep.items.add(self)
        self.strand = Strand(self._tell(), self.over)
        self.strand.resume()

    async def _tell(self) -> None:
        assert self.call is not None
        assert self.lane is not None
        attempt = self._attempt = Attempt(self, self.call, self.lane, self.candidate, None)
        await attempt.run(True)

    def plan_hedge(self, silent: Candidate, now: float) -> None:
        """Never a third beside the second."""

    def write_down(self) -> None:
        """It is the other's answer."""
        self._beside.write_down()

    def give_up(self) -> None:
        """The other had content first."""
        if self.strand is not None:
            self.strand.throw(Outrun())

    def commit(self, status: int) -> None:
        """Its content came first: it is the answer of the exchange it stands beside."""
        super().commit(status)
        self._won = True
        self._beside.adopt(self)

    def over(self, error: BaseException | None) -> None:
        """Its attempt has ended; only if it was the answer does that concern anybody."""
        self.strand = None
        self.ended = True
        self.deadline = NEVER
        self.gateway.sweep.items.discard(self)
        if self.held is not None:
            settle(self, answered=False, left=self._attempt is not None and self._attempt.asked)
        if error is None:
            self.done.set(None)
        elif isinstance(error, (GatewayError, asyncio.CancelledError)) or self._won:
            if isinstance(error, GatewayError):
                self._beside.note_failure(error, self.candidate)
            self.done.fail(error)
        else:
            if not isinstance(error, Outrun):
                self.report(error)
            self.done.fail(Outrun())
        # The relay knows this, too.
        self.relay = self.tap = None
