"""How much one account may be given: a limit learned from refusals, what its headers say is left, cool-downs.

The limit is additive increase, multiplicative decrease (Chiu and Jain 1989) on calls in flight: a 429 takes
a tenth off, at most once per 200 ms because refusals come in volleys; a success adds 1 / limit. Concurrency
is bounded although providers count requests: by Little's law one follows from the other at a given latency,
and a provider that slows down is given fewer requests without being asked. A server that refuses nothing and
lets calls wait is told by its first tokens, which come later the more are in flight. Time is monotonic seconds.
"""

from __future__ import annotations

from dandolo.route.capacity import Slots

DECREASE = 0.9
DECREASE_EVERY_S = 0.2
LIMIT_MIN = 1.0
USED_SHARE_TO_GROW = 0.25
"""A limit that is hardly used is not raised: nothing was learned about it."""
REACH = 3.0
"""A limit is taken to lie at most this far above what was in flight when it was refused. Not nearer: load is
one term of several, so that a good provider is driven to its capacity only by a limit above it."""
REACH_MIN = 12.0
"""Nor is it taken to lie lower than that for one refusal: a lonely call that was refused met a rate, not a bound."""
CEILING_S = 60.0
CEILING_SHARE = 0.9
CEILING_CARE = 0.1
CEILING_HURRY = 2.0
"""Close below the level that was last refused, growth is ten times slower, until that is a minute ago: what lies
above is known. Not so while callers wait: they want what they can get, and a refusal costs them less."""
SLOWED_FACTOR = 1.25
SLOWED_MIN_S = 0.5
"""Below that nobody queues, whatever the ratio; a burst of a thousand calls makes tens of milliseconds of a few,
half of them our own."""
SLOWED_CALLS = 3.0
"""The quick quarter of first tokens takes longer than the slow quarter usually does, by that much, and more than three
of our calls wait in that queue."""
SLOWED_DECREASE = 0.5
SLOWED_EPISODE_S = 10.0
SLOWED_HELPED = 0.8
"""It helped: once half as many are in flight, first tokens take at most that share of what they took."""
SLOW_START_S = 8.0
SLOW_START_SHARE = 0.1
COOL_DOWN_S = 0.2
COOL_DOWN_MAX_S = 1.6
"""After a 429 that names no time; twice as long after each that follows without a success in between.

The limit that has been lowered is what keeps from another refusal where calls in flight are counted: a second of
idleness after each cost three quarters of what small limits carry. Where requests a minute are, the wait grows.
"""
RATE_LIMITED = "rate limit"


class Limit:
    """The learned limit of what `slots` bounds, between 1 and `bound` calls in flight; starts at `bound`.

    It keeps `slots.limit` in step with itself. `value` is the limit; `cooled_until`, `told_until` and
    `slow_until` are monotonic times up to which cool-down, `headroom` and slow start hold.
    """

    __slots__ = (
        "_ceiling", "_ceiling_at", "_decreased_at", "_refusals", "_slowed_at", "_slowed_by", "_slowed_from", "bound",
        "cooled_until", "headroom", "reason", "slots", "slow_until", "told_until", "value",
    )  # fmt: skip

    def __init__(self, slots: Slots, bound: int | None = None) -> None:
        self.slots = slots
        self.bound = float(bound if bound is not None else slots.limit)
        self.value = self.bound
        self.headroom = 1.0
        self.reason = ""
        """Why it was cooled down last, in words."""
        self.cooled_until = 0.0
        self.told_until = 0.0
        self.slow_until = 0.0
        self._decreased_at = -1e9
        self._refusals = 0
        self._ceiling = 0.0
        self._ceiling_at = -1e9
        self._slowed_at = -1e9
        self._slowed_from = 0.0
        self._slowed_by = 0.0

    def succeeded(self, now: float) -> None:
        """A call ended well: room for 1 / limit more, if the limit is being used."""
        self._refusals = 0
        value = self.value
        if value >= self.bound or self.slots.in_use < USED_SHARE_TO_GROW * value:
            return
        step = 1.0 / value
        if self._ceiling and value >= CEILING_SHARE * self._ceiling:
            if now - self._ceiling_at > CEILING_S:
                self._ceiling = 0.0
            else:
                step *= CEILING_HURRY if self.slots.waiting else CEILING_CARE
        self._set(min(self.bound, value + step), now)

    def refused(self, now: float, retry_after_s: float | None) -> None:
        """A 429, with the wait it asks for (None: it names none). To be told before the call's slot is left.

        The limit falls from within reach of what was really in flight: a bound never neared says nothing.
        """
        if now - self._decreased_at >= DECREASE_EVERY_S:
            # Those of one volley are one.
            self._refusals += 1
        wait_s = retry_after_s
        if wait_s is None:
            wait_s = min(COOL_DOWN_MAX_S, COOL_DOWN_S * 2 ** (min(self._refusals, 8) - 1))
        self.cool(now + max(DECREASE_EVERY_S, wait_s), RATE_LIMITED)
        if now - self._decreased_at < DECREASE_EVERY_S:
            return
        self._decreased_at = now
        reached = min(self.value, max(REACH * self.slots.in_use, REACH_MIN))
        self._ceiling, self._ceiling_at = reached, now
        self._set(max(LIMIT_MIN, DECREASE * reached), now)

    def slowed(self, now: float, first_s: float, usual_s: float) -> bool:
        """First tokens take `first_s`, much more than `usual_s`, what they take when nobody queues.

        Some servers refuse nothing and let all wait, out of sight of our queue and its classes. The limit
        falls from what is in flight, by the ratio of the two times and to a half at most, once per first
        token, for no sooner is it seen whether that helped (after the gradient limits of Netflix's
        concurrency-limits and TCP Vegas). True: it did not help, the provider is slow by itself, and
        `first_s` is to be taken for normal.
        """
        since = now - self._slowed_at
        if since < max(DECREASE_EVERY_S, first_s):
            return False
        reached = min(self.value, float(max(1, self.slots.in_use)))
        # A ratio and not seconds, for models of one account may share the limit.
        by = first_s / usual_s
        if since > SLOWED_EPISODE_S + first_s:
            self._slowed_from, self._slowed_by = reached, by
        elif reached <= SLOWED_DECREASE * self._slowed_from:
            if by > SLOWED_HELPED * self._slowed_by:
                self._slowed_at = -1e9
                return True
            self._slowed_from, self._slowed_by = reached, by
        self._slowed_at = now
        self._ceiling, self._ceiling_at = reached, now
        self._set(max(LIMIT_MIN, min(1.0, max(SLOWED_DECREASE, SLOWED_FACTOR / by)) * reached), now)
        return False

    def cool(self, until: float, reason: str = "") -> None:
        """Nothing is to be sent before `until`; a later one wins."""
        if until > self.cooled_until:
            self.cooled_until = until
            self.reason = reason
            if until > self.slots.held_until:
                self.slots.held_until = until

    def told(self, remaining: float, limit: float, until: float) -> None:
        """What rate-limit headers said: `remaining` of `limit` (requests or tokens), true until `until`.

        Where a provider tells of both, tell the scarcer. A limit of 0 or less (Azure has -1) says nothing.
        """
        if limit > 0:
            self.headroom = min(1.0, max(0.0, remaining / limit))
            self.told_until = until
            held = self.cooled_until
            self.slots.held_until = held if self.headroom > 0.0 or held > until else until

    def begin_slow_start(self, now: float) -> None:
        """The breaker has closed: a tenth of the limit at first, all of it after SLOW_START_S."""
        self.slow_until = now + SLOW_START_S

    def capacity(self, now: float) -> float:
        """Calls that may be in flight now: the limit, while slow start lasts a share of it, at least 1."""
        left = self.slow_until - now
        if left <= 0:
            return self.value
        return max(1.0, self.value * (1.0 - (1.0 - SLOW_START_SHARE) * min(1.0, left / SLOW_START_S)))

    def room(self, now: float) -> bool:
        """Whether one more call may be sent now, cool-down apart."""
        if self.told_until > now and self.headroom <= 0.0:
            return False
        return self.slots.in_use + 1 <= self.capacity(now)

    def wait_s(self, now: float) -> float:
        """Seconds of cool-down, or of a headroom of nothing, that are left."""
        until = self.cooled_until
        if self.headroom <= 0.0 and self.told_until > until:
            until = self.told_until
        return max(0.0, until - now)

    def _set(self, value: float, now: float) -> None:
        self.value = value
        whole = int(value)
        if whole != self.slots.limit:
            self.slots.resize(whole, now)
