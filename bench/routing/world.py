"""Virtual time and simulated providers: what a worker cannot see, and the oracle can.

A provider answers after a log-normal first token at a speed of its own, refuses beyond its rate with 429 and
Retry-After, and has one fault within a window of time. Nothing here waits: events are taken from a heap.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import log

BASE_ERRORS = 0.002
FIRST_SIGMA = 0.35
REFUSED_S = 0.02
RESET_S = 0.005
FAILED_S = 0.1
RETRY_AFTER_S = 1.0
BROWNOUT = 0.3
CUT_SHARE = 0.2
SLOWER = 10.0
FLAP_S = 10.0

FAULTS = ("healthy", "brownout", "rst", "black hole", "429 cut", "flapping", "slow x10")


class Clock:
    """Events in order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()

    def at(self, when: float, do: Callable[..., None], *arguments: object) -> None:
        """Call `do` at a time, not before now."""
        heapq.heappush(self._events, (max(when, self.now), next(self._order), do, arguments))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            self.now, _, do, arguments = heapq.heappop(self._events)
            do(*arguments)
        self.now = until


@dataclass(slots=True)
class Answer:
    """What will come of an attempt. `kind` is "ok", "error", "429" or "silence"; times are virtual seconds."""

    kind: str
    first_at: float = 0.0
    end_at: float = 0.0


@dataclass(slots=True)
class Provider:
    """A provider as it is. Prices are USD per token, `rate` requests/s with a burst of one second."""

    name: str
    first_s: float
    tokens_per_s: float
    price: float
    rate: float
    fault: str = "healthy"
    fault_from: float = 1e18
    fault_until: float = 1e18
    served: int = 0
    _tokens: float = field(default=-1.0)
    _tokens_at: float = 0.0

    def state(self, now: float) -> str:
        """The fault at work now, "healthy" without one."""
        if not self.fault_from <= now < self.fault_until:
            return "healthy"
        if self.fault == "flapping":
            return "rst" if int((now - self.fault_from) / FLAP_S) % 2 == 0 else "healthy"
        return self.fault

    def room(self, now: float) -> float:
        """Requests that would be taken at once."""
        rate = self.rate * (CUT_SHARE if self.state(now) == "429 cut" else 1.0)
        if self._tokens < 0:
            self._tokens = rate
        self._tokens = min(rate, self._tokens + rate * (now - self._tokens_at))
        self._tokens_at = now
        return self._tokens

    def ask(self, now: float, tokens: int, draw: random.Random) -> Answer:
        """An attempt arrives."""
        self.served += 1
        state = self.state(now)
        if state == "rst":
            return Answer("error", end_at=now + RESET_S)
        if state == "black hole":
            return Answer("silence")
        if self.room(now) < 1.0:
            return Answer("429", end_at=now + REFUSED_S)
        self._tokens -= 1.0
        if draw.random() < (BROWNOUT if state == "brownout" else BASE_ERRORS):
            return Answer("error", end_at=now + FAILED_S)
        slower = SLOWER if state == "slow x10" else 1.0
        first_at = now + draw.lognormvariate(log(self.first_s), FIRST_SIGMA) * slower
        return Answer("ok", first_at, first_at + tokens / self.tokens_per_s * slower)

    def probe(self, now: float, draw: random.Random) -> bool:
        """Whether a background probe would be answered well."""
        state = self.state(now)
        return state not in ("rst", "black hole") and not (state == "brownout" and draw.random() < BROWNOUT)

    def expected_s(self, now: float, tokens: float) -> float:
        """The true mean latency (the oracle's)."""
        slower = SLOWER if self.state(now) == "slow x10" else 1.0
        return slower * (self.first_s + tokens / self.tokens_per_s)


@dataclass(slots=True)
class Queueing(Provider):
    """A server that refuses nothing: beyond its `places` it lets calls wait, all of them, in order of arrival.

    Whoever gives up is served all the same, as by servers that do not notice.
    """

    places: int = 1
    _free_at: list[float] = field(default_factory=list)

    def ask(self, now: float, tokens: int, draw: random.Random) -> Answer:
        """The wait for a place comes on top of the first token."""
        self.served += 1
        if draw.random() < BASE_ERRORS:
            return Answer("error", end_at=now + FAILED_S)
        waited_until = now
        if len(self._free_at) >= self.places:
            waited_until = max(now, heapq.heappop(self._free_at))
        first_at = waited_until + draw.lognormvariate(log(self.first_s), FIRST_SIGMA)
        answer = Answer("ok", first_at, first_at + tokens / self.tokens_per_s)
        heapq.heappush(self._free_at, answer.end_at)
        return answer


def three(*, equal: bool = False) -> list[Provider]:
    """Fast and dear, middling, slow and cheap; or equally fast at 10 : 3 : 1."""
    unit = 0.94e-6
    if equal:
        return [Provider(f"p{price}", 0.5, 60.0, price * unit, 14.0) for price in (10, 3, 1)]
    return [
        Provider("fast", 0.3, 110.0, 3 * unit, 14.0),
        Provider("middling", 0.5, 60.0, 1.5 * unit, 14.0),
        Provider("slow", 0.8, 40.0, unit, 14.0),
    ]


def fresh(seed: int, *, equal: bool = False) -> tuple[list[Provider], float]:
    """Two to eight providers like those three, everything jittered by half, and a rate of arrivals.

    Arrivals are jittered too and then kept within 85 % of what is left without the first provider: more
    could not be served by anybody while that one is gone.
    """
    draw = random.Random(seed * 7919 + 13)
    size = draw.randint(2, 8)
    kinds = three(equal=equal)
    made = []
    for index in range(size):
        kind = kinds[index % 3] if size > 2 else kinds[index * 2]
        jitter = [draw.uniform(0.5, 1.5) for _ in range(4)]
        speed = [1.0, 1.0] if equal else jitter
        price = kind.price if equal else kind.price * jitter[2]
        made.append(
            Provider(f"p{index}", kind.first_s * speed[0], kind.tokens_per_s / speed[1], price, kind.rate * jitter[3])
        )
    made.sort(key=lambda provider: provider.expected_s(0.0, 250.0))
    rate = 20.0 * size / 3 * draw.uniform(0.5, 1.5)
    return made, min(rate, 0.85 * sum(provider.rate for provider in made[1:]))
