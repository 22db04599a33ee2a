"""Who is asked next after a failure, and how often that may happen at all.

One token bucket bounds retries and hedges of a worker: every request puts in a fifth of a token, a
retry takes a whole one, so that an outage cannot multiply the traffic that caused it. A smaller one for each
tenant bounds what it takes of that. Decisions only;
waiting and asking happen in the exchange.
"""

from __future__ import annotations

from dandolo.errors import GatewayError, Retry

TOKENS_PER_REQUEST = 0.2
TOKENS_MAX = 20.0
TOKENS_OWN_MAX = 10.0
"""Of one tenant among several."""
LOCAL_WAIT_MAX_S = 5.0
"""A 429 that nobody can take over is waited out here only up to this long."""


class Budget:
    """The token bucket. Starts full."""

    __slots__ = ("tokens", "tokens_max")

    def __init__(self, tokens_max: float = TOKENS_MAX) -> None:
        self.tokens = self.tokens_max = tokens_max

    def earn(self) -> None:
        """A client's request has come."""
        self.tokens = min(self.tokens_max, self.tokens + TOKENS_PER_REQUEST)

    def spend(self) -> bool:
        """Take a token for one more attempt; False when there is none."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Purse:
    """What one tenant may spend of the worker's budget: no more than its own bucket holds too.

    Else one whose requests always fail, because it names models that nobody has, would use up what takes the
    others from a provider that is down to one that is not.
    """

    __slots__ = ("common", "own")

    def __init__(self, common: Budget, own: Budget) -> None:
        self.common = common
        self.own = own

    def earn(self) -> None:
        """A request of the tenant has come."""
        self.common.earn()
        self.own.earn()

    def spend(self) -> bool:
        """Take a token of both; False when either has none."""
        if self.own.tokens < 1.0 or not self.common.spend():
            return False
        return self.own.spend()


def may_take_over(error: GatewayError) -> bool:
    """Whether another account or provider may be asked after this failure (promise 31)."""
    return error.retry is not Retry.NEVER


def local_wait_s(error: GatewayError, remaining_s: float, spread: float) -> float | None:
    """How long to wait before asking the same account again after its 429, or None to pass it on.

    `remaining_s` is what the deadline leaves, `spread` a random number in [0, 1) for the jitter.
    """
    if error.status != 429 or error.retry_after_s is None or error.retry_after_s > LOCAL_WAIT_MAX_S:
        return None
    wait = error.retry_after_s * (1.0 + 0.1 * spread)
    return wait if wait < remaining_s else None
