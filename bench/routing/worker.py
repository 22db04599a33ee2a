"""A worker of the gateway in virtual time: it uses `dandolo.route` as the exchange does, and no socket.

"selection alone": one attempt, nothing but the policy (and what the policy learns). "full": breaker with
background probes, cool-downs, slots with their queue, up to three attempts, hedging, one budget for both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bench.routing.policies import TOKENS_IN, TOKENS_OUT, Log, Policy, Recommended
from bench.routing.world import RETRY_AFTER_S, Answer, Clock, Provider
from dandolo.errors import Refusal
from dandolo.route.breaker import Breaker
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.hedge import first_token_deadline_s, hedge_after_s
from dandolo.route.joint import Joint
from dandolo.route.limit import Limit
from dandolo.route.pool import Pool
from dandolo.route.retry import Budget

ATTEMPTS_MAX = 3
TIMEOUT_S = 10.0
BOUND = 256
PATIENCE_S = 30.0


class Request:
    """A client's request and what became of it."""

    __slots__ = (
        "arrived", "attempts", "cost", "done", "first_at", "limited", "live", "ok", "priority", "tokens", "tokens_in",
        "total_s", "tried", "waited_s",
    )  # fmt: skip

    def __init__(self, arrived: float, tokens: int, tokens_in: int, priority: int = 1) -> None:
        self.arrived = arrived
        self.tokens = tokens
        self.tokens_in = tokens_in
        self.priority = priority
        self.attempts = 0
        self.done = False
        self.ok = False
        self.first_at: float | None = None
        self.total_s = 0.0
        self.waited_s = 0.0
        self.cost = 0.0
        self.tried: list[Candidate] = []
        self.limited: list[Candidate] = []
        self.live: list[Attempt] = []


class Attempt:
    """A call under way."""

    __slots__ = ("began", "call", "candidate", "epoch", "over", "request")

    def __init__(self, request: Request, candidate: Candidate, now: float) -> None:
        self.request = request
        self.candidate = candidate
        self.began = now
        self.call, self.epoch = candidate.begin(now)
        self.over = False


class Ticket:
    """A place in the queue of a candidate's slots."""

    __slots__ = ("done", "granted", "refused")

    def __init__(self, granted: Callable[[], None], refused: Callable[[], None]) -> None:
        self.done = False
        self.granted, self.refused = granted, refused

    def set(self, value: bool) -> None:
        self.done = True
        self.granted()

    def fail(self, error: BaseException) -> None:
        self.done = True
        self.refused()


class Worker:
    """One worker. `ended` is told of every request that is over."""

    def __init__(
        self,
        clock: Clock,
        providers: list[Provider],
        policy: Policy,
        draw: random.Random,
        ended: Callable[[Request], None],
        *,
        full: bool,
        hedging: bool = True,
        breaking: bool = True,
        naive: bool = False,
        fifo: bool = False,
        bounds: Sequence[int] = (),
        limits: type[Limit] = Limit,
    ) -> None:
        self.clock = clock
        self.policy = policy
        self.draw = draw
        self.full = full
        self.hedging = hedging
        self.naive = naive
        self.fifo = fifo
        self.budget = Budget()
        self.ended = ended
        self.candidates = []
        for index, provider in enumerate(providers):
            bound = bounds[index] if bounds else BOUND
            slots = Slots(bound)
            breaker = Breaker(draw.random) if full and breaking and not naive else None
            self.candidates.append(
                Candidate(
                    provider.name,
                    limits(slots, bound),
                    breaker,
                    price_in=provider.price / 4,
                    price_out=provider.price,
                    tag=Log(provider),
                )
            )
        self.pool = Pool(self.candidates)
        self.exposed: dict[str, int] = {}
        """Attempts at a provider while its fault lasted and its breaker had not opened for the first time."""
        self._out: set[str] = set()
        self.reasons: dict[str, int] = {}
        """Why requests were given up."""
        if full:
            clock.at(draw.random() * 0.1, self._tick)

    # -- choosing --------------------------------------------------------------------------------------

    def take(self, request: Request) -> None:
        """A request has come."""
        self.budget.earn()
        self._next(request)

    def _next(self, request: Request, hedge: bool = False) -> None:
        now = self.clock.now
        if not self.full:
            self._send(request, self.policy.choose(self.candidates, now, request.tokens))
            return
        candidate = self._choose(request, now)
        if candidate is not None and candidate.limit.slots.enter():
            self._send(request, candidate, entered=True)
        elif not hedge:
            self._wait(request, now)

    def _choose(self, request: Request, now: float) -> Candidate | None:
        if isinstance(self.policy, Recommended):
            return self.policy.balancer.choose(self.pool, now, TOKENS_IN, TOKENS_OUT, request.tried)
        able = [c for c in self.candidates if c not in request.tried and (self.naive or c.blocked(now) is None)]
        if not able:
            return None
        chosen = self.policy.choose(able, now, request.tokens)
        if chosen.breaker is not None:
            chosen.breaker.admits(now)
        return chosen

    def _wait(self, request: Request, now: float) -> None:
        """Nobody can be asked now: wait for a slot or the end of a cool-down, or give up."""
        balancer = self.policy.balancer if isinstance(self.policy, Recommended) else _balancer
        blocked = balancer.blocked(self.pool, now, tried=request.tried, priority=request.priority)
        if blocked.why in ("tried", "open") and request.limited:
            # Those tried may be asked again where they only were at their limit (Retry-After up to 5 s): they
            # are well, and somebody whose breaker is open is not.
            request.tried = [c for c in request.tried if c not in request.limited]
            request.limited.clear()
            blocked = balancer.blocked(self.pool, now, tried=request.tried, priority=request.priority)
        candidate = blocked.candidate
        if candidate is None or now - request.arrived > PATIENCE_S:
            self._give_up(request, blocked.why)
        elif blocked.why == "cooling":
            self.clock.at(now + blocked.wait_s * (1 + 0.1 * self.draw.random()), self._again, request)
        elif blocked.why == "full":
            ticket = Ticket(lambda: None, lambda: self._give_up(request, "queue"))
            try:
                if self.fifo:
                    ticket.granted = lambda: self._granted(request, candidate, now)
                    candidate.limit.slots.queue(ticket)
                    self.clock.at(now + PATIENCE_S, self._given_up, request, candidate, ticket)
                else:
                    joint, full = Joint(ticket), {id(c.limit.slots): c for c in blocked.full}
                    ticket.granted = lambda: self._granted(request, full[id(joint.slots)], now)
                    joint.queue((c.limit.slots for c in blocked.full), now, request.priority)
            except Refusal:
                self._give_up(request, "queue full")
        elif self.budget.spend() and candidate.limit.slots.enter():
            self._send(request, candidate, entered=True)
        else:
            self._give_up(request, "open")

    def _again(self, request: Request) -> None:
        if not request.done:
            self._next(request)

    def _given_up(self, request: Request, candidate: Candidate, ticket: Ticket) -> None:
        if not ticket.done:
            candidate.limit.slots.withdraw(ticket)
            self._give_up(request, "queue")

    def _granted(self, request: Request, candidate: Candidate, since: float) -> None:
        request.waited_s += self.clock.now - since
        if request.done or candidate.blocked(self.clock.now) in ("breaker", "cool-down"):
            candidate.limit.slots.leave(self.clock.now)
            if not request.done:
                self._next(request)
            return
        self._send(request, candidate, entered=True)

    # -- an attempt ------------------------------------------------------------------------------------

    def _send(self, request: Request, candidate: Candidate, *, entered: bool = False) -> None:
        now = self.clock.now
        if not entered:
            candidate.limit.slots.in_use += 1  # selection alone: nobody is held back
        provider = self._provider(candidate)
        request.attempts += 1
        request.tried.append(candidate)
        if provider.fault_from <= now < provider.fault_until and provider.name not in self._out:
            self.exposed[provider.name] = self.exposed.get(provider.name, 0) + 1
        attempt = Attempt(request, candidate, now)
        request.live.append(attempt)
        answer = provider.ask(now, request.tokens, self.draw)
        deadline = now + TIMEOUT_S
        if self.full and not self.naive:
            deadline = now + first_token_deadline_s(candidate.measured, TIMEOUT_S)
            after = hedge_after_s(candidate.measured)
            if self.hedging and after is not None and len(request.live) == 1:
                self.clock.at(now + after, self._hedge, attempt)
        if answer.kind == "silence" or (answer.kind == "ok" and answer.first_at > deadline):
            self.clock.at(deadline, self._failed, attempt)
        elif answer.kind == "ok":
            self.clock.at(answer.first_at, self._first, attempt, answer)
        elif answer.kind == "429":
            self.clock.at(answer.end_at, self._limited, attempt)
        else:
            self.clock.at(answer.end_at, self._failed, attempt)

    def _hedge(self, attempt: Attempt) -> None:
        request = attempt.request
        if attempt.over or request.done or request.first_at is not None or len(request.live) != 1:
            return
        if request.attempts < ATTEMPTS_MAX and self.budget.spend():
            self._next(request, hedge=True)

    def _first(self, attempt: Attempt, answer: Answer) -> None:
        now, request = self.clock.now, attempt.request
        if attempt.over:
            return
        request.first_at = now
        attempt.candidate.first_content(attempt.call, attempt.epoch, now)
        for other in request.live:
            if other is not attempt and not other.over:
                other.over = True
                other.candidate.outrun(other.call, other.epoch, now)
                self._left(other)
        self.clock.at(answer.end_at, self._succeeded, attempt)

    def _succeeded(self, attempt: Attempt) -> None:
        now, request = self.clock.now, attempt.request
        attempt.over = True
        self._log(attempt, well=True)
        attempt.candidate.succeeded(attempt.call, attempt.epoch, now, request.tokens)
        self._left(attempt)
        provider = self._provider(attempt.candidate)
        request.cost = provider.price * (request.tokens + request.tokens_in / 4)
        self._over(request, ok=True)

    def _failed(self, attempt: Attempt) -> None:
        if attempt.over:
            return
        attempt.over = True
        self._log(attempt, well=False)
        attempt.candidate.failed(attempt.call, attempt.epoch, self.clock.now)
        self._left(attempt)
        self._retry(attempt)

    def _limited(self, attempt: Attempt) -> None:
        if attempt.over:
            return
        attempt.over = True
        self._log(attempt, well=False)
        attempt.request.limited.append(attempt.candidate)
        if self.naive:
            attempt.candidate.abandoned(attempt.call, attempt.epoch)
        else:
            wait_s = RETRY_AFTER_S if self.full else 0.0
            attempt.candidate.limited(attempt.call, attempt.epoch, self.clock.now, wait_s)
        self._left(attempt)
        self._retry(attempt)

    def _left(self, attempt: Attempt) -> None:
        attempt.request.live.remove(attempt)
        candidate = attempt.candidate
        candidate.limit.slots.leave(self.clock.now)
        if candidate.breaker is not None and candidate.breaker.state == "open":
            provider = self._provider(candidate)
            if provider.fault_from <= self.clock.now:
                self._out.add(provider.name)

    def _retry(self, attempt: Attempt) -> None:
        request = attempt.request
        if request.done or request.live:
            return
        if self.naive and request.attempts < ATTEMPTS_MAX:
            request.tried.clear()
            self._next(request)
        elif self.full and not self.naive and request.attempts < ATTEMPTS_MAX and self.budget.spend():
            self._next(request)
        else:
            self._give_up(request, "attempts" if request.attempts >= ATTEMPTS_MAX else "budget")

    def _give_up(self, request: Request, why: str) -> None:
        self.reasons[why] = self.reasons.get(why, 0) + 1
        self._over(request, ok=False)

    def _over(self, request: Request, *, ok: bool) -> None:
        if not request.done:
            request.done = True
            request.ok = ok
            request.total_s = self.clock.now - request.arrived
            self.ended(request)

    # -- time ------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self.clock.now
        self.clock.at(now + 0.1, self._tick)
        for candidate in self.candidates:
            candidate.limit.slots.expire(now)
            breaker = candidate.breaker
            if breaker is not None and breaker.state == "open" and breaker.probe_due(now):
                well = self._provider(candidate).probe(now, self.draw)
                self.clock.at(now + 0.1, candidate.probed, now + 0.1, well)

    def _log(self, attempt: Attempt, *, well: bool) -> None:
        log = attempt.candidate.tag
        assert isinstance(log, Log)
        log.ended(self.clock.now, self.clock.now - attempt.began, well)

    @staticmethod
    def _provider(candidate: Candidate) -> Provider:
        assert isinstance(candidate.tag, Log)
        return candidate.tag.provider


_balancer = Recommended(random.Random(0)).balancer
