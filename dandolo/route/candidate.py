"""A candidate as it lives: prices and abilities that stand fixed, and everything measured about it.

One object per account and model, kept ready made, so that a decision reads and allocates nothing. It is the
one place an attempt reports to; what it hears goes to the measurement, the limit and the breaker alike, in
the order they need.
"""

from __future__ import annotations

from dandolo.route.breaker import Breaker
from dandolo.route.limit import SLOWED_CALLS, SLOWED_FACTOR, SLOWED_MIN_S, Limit
from dandolo.route.measure import Measured


class Candidate:
    """One account of one provider, for one model.

    `rank` 0 is asked before 1 (the role: primary, secondary, overflow). Prices are USD per token, None where
    unknown; `context_tokens` the window, None where unknown; `capabilities` None where unknown. `limit` may be
    shared by the models of an account. `breaker` is None where breakers are off.
    """

    __slots__ = (
        "account", "breaker", "capabilities", "context_tokens", "cooled_until", "limit", "measured", "model",
        "price_in", "price_out", "prior_s", "provider", "rank", "reason", "region", "tag",
    )  # fmt: skip

    def __init__(
        self,
        provider: str,
        limit: Limit,
        breaker: Breaker | None,
        *,
        account: str = "",
        model: str = "",
        rank: int = 0,
        region: str = "",
        price_in: float | None = None,
        price_out: float | None = None,
        context_tokens: int | None = None,
        capabilities: frozenset[str] | None = None,
        tag: object = None,
    ) -> None:
        self.provider = provider
        self.account = account or provider
        self.model = model
        self.rank = rank
        self.region = region
        self.price_in = price_in
        self.price_out = price_out
        self.context_tokens = context_tokens
        self.capabilities = capabilities
        self.limit = limit
        self.breaker = breaker
        self.measured = Measured()
        self.cooled_until = 0.0
        """Until when this model is to be left alone on its account (the account's own cool-down is its limit's)."""
        self.reason = ""
        """Why it was cooled down last, in words."""
        self.prior_s = 0.0
        """A first token to be expected before anything was measured (a distant region), 0 for no expectation."""
        self.tag = tag
        """Whatever the owner wants to find again (its target)."""

    def __repr__(self) -> str:
        return f"<Candidate {self.account} {self.model}>"

    # -- the life of an attempt ------------------------------------------------------------------------

    def begin(self, now: float, stream: bool = True) -> tuple[int, int]:
        """The request is sent. Returns the call's number and the breaker's epoch, to be handed back.

        One of `succeeded`, `failed`, `limited` or `abandoned` must follow, before the slot is left.
        """
        breaker = self.breaker
        return self.measured.begin(now, stream), 0 if breaker is None else breaker.epoch

    def first_content(self, call: int, epoch: int, now: float) -> None:
        """The first content, reasoning or tool delta of a stream has come (no comment, no role-only chunk)."""
        measured = self.measured
        since = measured.first_content(call, now)
        low_s, usual_s = measured.first_low_s, measured.first_usual_s
        # In a queue the quickest are slower than the slow ones usually are. A mean would take a few long prompts for
        # a queue: with first tokens as uneven as prompts are, that shut out most calls of a provider that was well.
        if (
            low_s > SLOWED_MIN_S
            and low_s > SLOWED_FACTOR * usual_s
            and measured.unanswered * (1.0 - usual_s / low_s) > SLOWED_CALLS
            and self.limit.slowed(now, low_s, usual_s)
        ):
            measured.first_usual_s = low_s
        breaker = self.breaker
        if breaker is not None:
            row = breaker.row_since
            breaker.answered(now, epoch, row > since and measured.newest_at <= row)

    def succeeded(self, call: int, epoch: int, now: float, tokens: int = 0) -> None:
        """The answer is complete, with `tokens` of output (0: not told)."""
        self.measured.finished(call, now, tokens)
        self.limit.succeeded(now)
        breaker = self.breaker
        if breaker is not None:
            shut = breaker.state != "closed"
            # A stream told when it answered by its first content, a plain call does it now.
            breaker.succeeded(now, epoch, call < 0)
            if shut and breaker.state == "closed":
                self._closed(now)

    def failed(self, call: int, epoch: int, now: float) -> None:
        """It failed in a way that speaks against the provider: connect error, 5xx, timeout, garbage, cut."""
        answered = self.measured.failed(call, now)
        if self.breaker is not None:
            self.breaker.failed(now, epoch, answered)

    def cool(self, until: float, reason: str) -> None:
        """Leave this model alone on its account until then: overloaded, not there. A later time wins."""
        if until > self.cooled_until:
            self.cooled_until = until
            self.reason = reason

    def limited(self, call: int, epoch: int, now: float, retry_after_s: float | None) -> None:
        """It was refused for a limit (429). That says nothing about health, only about capacity."""
        self.measured.abandoned(call)
        self.limit.refused(now, retry_after_s)
        if self.breaker is not None:
            self.breaker.abandoned(epoch)

    def outrun(self, call: int, epoch: int, now: float, reading_s: float = 0.0) -> None:
        """It was still silent when the other of a hedge had content.

        Were that to say nothing, hedging would hide a provider that answers nobody: its wait counts as a
        first token of at least that long, and when it is out of all proportion as a failure.
        """
        failed = self.measured.outrun(call, now, reading_s)
        if self.breaker is not None:
            if failed:
                self.breaker.failed(now, epoch)
            else:
                self.breaker.abandoned(epoch)

    def abandoned(self, call: int, epoch: int) -> None:
        """It ended without saying anything: the client left, a 4xx, our own starvation."""
        self.measured.abandoned(call)
        if self.breaker is not None:
            self.breaker.abandoned(epoch)

    def probed(self, now: float, well: bool) -> None:
        """A background probe has come back."""
        if self.breaker is not None:
            shut = self.breaker.state != "closed"
            self.breaker.probed(now, well)
            if shut and self.breaker.state == "closed":
                self._closed(now)

    def _closed(self, now: float) -> None:
        self.measured.forgive()
        self.limit.begin_slow_start(now)

    # -- what a decision asks --------------------------------------------------------------------------

    def cost_usd(self, tokens_in: float, tokens_out: float) -> float | None:
        """What the price list says of a call, None when it does not know the model."""
        if self.price_in is None or self.price_out is None:
            return None
        return tokens_in * self.price_in + tokens_out * self.price_out

    def blocked(self, now: float) -> str | None:
        """Why it cannot be asked now: "breaker", "cool-down" or "limit"; None when it can."""
        breaker = self.breaker
        if breaker is not None and breaker.retry_after_s(now) > 0:
            return "breaker"
        if self.limit.cooled_until > now or self.cooled_until > now:
            return "cool-down"
        return None if self.limit.room(now) else "limit"

    def plain(self, now: float) -> bool:
        """Whether nothing at all is the matter: closed, no cool-down, no slow start, something left of its limits.

        Then a slot is all that is needed, and `balance` would find the same in more steps.
        """
        limit, breaker = self.limit, self.breaker
        return (
            (breaker is None or breaker.state == "closed")
            and limit.cooled_until <= now
            and self.cooled_until <= now
            and (limit.headroom > 0.0 or limit.told_until <= now)
            and limit.slow_until <= now
        )

    def wait_s(self, now: float) -> float:
        """Seconds of cool-down that are left, the account's or the model's, 0 when it may be asked."""
        return max(self.limit.wait_s(now), self.cooled_until - now)
