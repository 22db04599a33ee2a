"""Who is asked next after a failure, and how often that may happen at all.

One token bucket bounds retries and hedges of a worker: every request puts in a fifth of a token, a
retry takes a whole one, so that an outage cannot multiply the traffic that caused it. Decisions only;
waiting and asking happen in the exchange.
"""

from __future__ import annotations

from dandolo.errors import GatewayError, Retry

TOKENS_PER_REQUEST = 0.2
TOKENS_MAX = 20.0
LOCAL_WAIT_MAX_S = 5.0
"""A 429 that nobody can take over is waited out here only up to this long."""


class Budget:
    """The token bucket. Starts full."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = TOKENS_MAX

    def earn(self) -> None:
        """A client's request has come."""
        self.tokens = min(TOKENS_MAX, self.tokens + TOKENS_PER_REQUEST)

    def spend(self) -> bool:
        """Take a token for one more attempt; False when there is none."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


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
