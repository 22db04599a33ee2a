"""How long a first token is waited for: when a second provider is asked too, when the first is given up.

Both follow from the 95th percentile that was measured, so that they fit a model of 0.2 s as well as one of
20 s. Hedges and retries draw on one budget (`retry.Budget`): at 1.5 · p95 about 2 % of calls are asked twice
(after Dean and Barroso, *The Tail at Scale*, 2013). Our own lateness is told from the provider's: a timeout soon
after this loop did not run speaks against nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from dandolo.route.candidate import Candidate
from dandolo.route.measure import Measured
from dandolo.route.retry import Budget, Purse

HEDGE_FACTOR = 1.5
HEDGE_MIN_S = 0.15
DEADLINE_FACTOR = 4.0
DEADLINE_MIN_S = 1.0
DEADLINE_COLD_S = 10.0
READ_AT_ONCE_TOKENS = 4096.0
READ_TOKENS_PER_S = 1000.0
"""A first token waits for the prompt to be read, at a thousand a second where that is slow. What was measured of short
prompts must not judge a provider by a long one: anybody could close it to all others by three of them."""
PLAIN_DEADLINE_FACTOR = 8.0
PLAIN_DEADLINE_MIN_S = 30.0
LAG_S = 0.05
LAG_REMEMBERED_S = 1.0


def reading_s(tokens: float) -> float:
    """Seconds to grant for reading a prompt of so many tokens, beyond what is measured of usual ones."""
    return max(0.0, tokens - READ_AT_ONCE_TOKENS) / READ_TOKENS_PER_S


def hedge_after_s(measured: Measured, reading_s: float = 0.0) -> float | None:
    """Seconds without content after which somebody else may be asked too; None while nothing is known."""
    p95 = measured.first_p95_s
    return max(HEDGE_MIN_S, HEDGE_FACTOR * p95) + reading_s if p95 else None


def may_hedge(measured: Measured, waited_s: float, budget: Budget | Purse, reading_s: float = 0.0) -> bool:
    """Whether to ask somebody else too, now that `waited_s` have passed. True has taken a token of `budget`."""
    after = hedge_after_s(measured, reading_s)
    return after is not None and waited_s >= after and budget.spend()


def first_token_deadline_s(
    measured: Measured, configured_s: float, reading_s: float = 0.0, peers: Sequence[Candidate] = ()
) -> float:
    """Seconds without content after which the provider is given up, where somebody else can take over.

    Four times the 95th percentile, at least DEADLINE_MIN_S, never above what is configured. While nothing is known
    of it, the slowest of `peers` stands in, with DEADLINE_COLD_S at least; nothing known of anybody: as configured.
    """
    p95, least_s = measured.first_p95_s, DEADLINE_MIN_S
    if not p95:
        p95, least_s = max((peer.measured.first_p95_s for peer in peers), default=0.0), DEADLINE_COLD_S
    return min(configured_s, max(least_s, DEADLINE_FACTOR * p95) + reading_s) if p95 else configured_s


def plain_deadline_s(measured: Measured, configured_s: float) -> float:
    """The same for a plain answer, whose first token is not seen: eight times its usual time, at least half a minute.

    Generous, since one answer may be many times as long as another, and a second one is paid for too.
    """
    total = measured.total_s
    return min(configured_s, max(PLAIN_DEADLINE_MIN_S, PLAIN_DEADLINE_FACTOR * total)) if total else configured_s


class Watch:
    """The starvation guard: how late our own loop runs. A timeout while `excused` is reported as abandoned and not as
    failed."""

    __slots__ = ("_late_at",)

    def __init__(self) -> None:
        self._late_at = -1e9

    def ticked(self, now: float, due: float) -> float:
        """A periodic timer that was due at `due` has run. Returns the lag in seconds, 0 when it is no starvation."""
        lag = now - due
        if lag <= LAG_S:
            return 0.0
        self._late_at = now
        return lag

    def excused(self, now: float) -> bool:
        """Whether the loop has been late within the last LAG_REMEMBERED_S."""
        return now - self._late_at <= LAG_REMEMBERED_S
