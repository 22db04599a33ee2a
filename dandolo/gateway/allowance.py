"""What a key may use, judged by what all workers have written on the board (`dandolo.board`). Decisions only.

`enter` counts a request in (rate, concurrency) and `leave` out; `reserve` sets tokens and money aside when the call is
known and `settle` puts what it really was in their place. All four count first and judge the sum of all workers then,
so that two workers never both let in the last one. `now` is monotonic, `unix` Unix seconds.
"""

from __future__ import annotations

from dandolo.board import (
    AMOUNT_MAX,
    COUNT_MAX,
    IN_FLIGHT,
    OPENED,
    REQUESTS,
    RESERVED,
    TAKEN_OVER,
    TOKENS,
    WINDOW_S,
    Board,
    Calendar,
)  # fmt: skip
from dandolo.errors import RequestError
from dandolo.gateway.tally import Tally
from dandolo.policy import KeyTerms

BUSY_RETRY_S = 1.0
"""What a key with as many requests under way as it may have is told to wait: nobody knows when one ends."""
LINES_S = 0.05
"""How long header lines that tell of plenty are used again."""
REQUESTS_MANY = 1_000
TOKENS_MANY = 100_000


class Allowance:
    """One key's limits at work in one worker: its terms, judged by its tally."""

    __slots__ = (
        "_budget_day", "_budget_month", "_cells", "_concurrent", "_form", "_lines", "_lines_until", "_rpm", "_tally",
        "_tpm", "budgeted", "terms",
    )  # fmt: skip

    def __init__(self, terms: KeyTerms, board: Board, place: int, calendar: Calendar) -> None:
        self.terms = terms
        self._rpm, self._tpm, self._concurrent = terms.rpm, terms.tpm, terms.concurrent
        self._budget_day, self._budget_month = terms.budget_day, terms.budget_month
        self.budgeted = terms.budget_day is not None or terms.budget_month is not None
        self._cells = board.cells
        tally = self._tally = Tally.of(board, place, calendar)
        tally.counts_requests |= terms.rpm is not None
        tally.counts_tokens |= terms.tpm is not None
        tally.until = 0.0
        self._lines, self._lines_until = b"", 0.0
        self._form = _form(b"requests", terms.rpm) + _form(b"tokens", terms.tpm)

    # -- a request comes and goes ------------------------------------------------------------------------

    def enter(self, now: float) -> bool:
        """Count a request in; False when it is one too many, and then it is not counted."""
        cells, tally = self._cells, self._tally
        if tally.several and cells[OPENED] != tally.opened:
            tally.see_rows()
        most = self._concurrent
        if most is not None:
            count = tally.in_flight = tally.in_flight + 1
            cells[tally.in_flight_at] = count
            for row in tally.others:
                count += cells[row + IN_FLIGHT]
            if count > most:
                self.leave()
                return False
        if self._rpm is not None:
            if now >= tally.until:
                tally.turn(now)
            count = tally.requests = tally.requests + 1
            cells[tally.requests_at] = tally.stamp + count
            if tally.others:
                count += tally.elsewhere(tally.low)
            if count + tally.requests_before > self._rpm:
                tally.requests -= 1
                cells[tally.requests_at] = tally.stamp + tally.requests
                self.leave()
                return False
        return True

    def pass_through(self, now: float) -> bool:
        """`enter` and `leave` at once, for a request that is answered before anything else can begin."""
        cells, tally = self._cells, self._tally
        if tally.several and cells[OPENED] != tally.opened:
            tally.see_rows()
        most = self._concurrent
        if most is not None:
            count = tally.in_flight
            for row in tally.others:
                count += cells[row + IN_FLIGHT]
            if count >= most:
                return False
        if self._rpm is not None:
            if now >= tally.until:
                tally.turn(now)
            count = tally.requests + 1
            used = count + tally.requests_before
            # Counted before it is judged, as by all who count: two workers never both let in the last one.
            tally.requests = count
            cells[tally.requests_at] = tally.stamp + count
            if tally.others:
                used += tally.elsewhere(tally.low)
            if used > self._rpm:
                tally.requests = count - 1
                cells[tally.requests_at] = tally.stamp + count - 1
                return False
        return True

    def leave(self) -> None:
        """Count a request out."""
        if self._concurrent is not None:
            tally = self._tally
            count = tally.in_flight = tally.in_flight - 1
            self._cells[tally.in_flight_at] = count

    def check(self, now: float) -> None:
        """Refuse early, with nothing counted. Raises RequestError (429)."""
        cells, tally, most = self._cells, self._tally, self._concurrent
        if tally.several and cells[OPENED] != tally.opened:
            tally.see_rows()
        if most is not None and tally.in_flight + sum(cells[at + IN_FLIGHT] for at in tally.others) >= most:
            raise _too_many(
                f"{most} requests of this key are under way, as many as it may have; try again later",
                BUSY_RETRY_S,
            )
        if self._rpm is not None and self.used(REQUESTS, now) >= self._rpm:
            raise _too_many(
                f"this key has made {self._rpm} requests within a minute, as many as it may",
                self._wait_s(now, REQUESTS, 1),
            )

    # -- its call is known, and ends ---------------------------------------------------------------------

    def reserve(self, now: float, unix: float, least: int, tokens: int, micro: int) -> int:
        """Set aside `tokens` (of which `least` are sent for certain) and `micro` USD for a call; how many tokens were.

        Raises RequestError, with nothing set aside: 429 for tokens, 402 for money, 400 for a call that can never pass.
        """
        cells, tally, limit = self._cells, self._tally, self._tpm
        if tally.several and cells[OPENED] != tally.opened:
            tally.see_rows()
        if limit is not None:
            if least > limit:
                raise RequestError(
                    f"this request has about {least} tokens, and this key may use {limit} a minute; shorten it",
                    code="tokens_per_minute_exceeded",
                )
            if tokens > limit:
                # Who asks for the longest of answers is let in by an empty minute, or never would be.
                tokens = limit
            if now >= tally.until:
                tally.turn(now)
            count = tally.tokens + tokens
            if count > COUNT_MAX:
                count = COUNT_MAX
            tally.tokens = count
            cells[tally.tokens_at] = tally.stamp + count
            if tally.others:
                count += tally.elsewhere(TOKENS + tally.low)
            if count + tally.tokens_before > limit:
                tally.add_tokens(tally.second, -tokens)
                raise self._too_many_tokens(now, tokens)
        if self.budgeted:
            if not tally.day_began <= unix < tally.day_ends:
                tally.turn_day(unix)
            reserved = tally.reserved = tally.reserved + micro
            cells[tally.reserved_at] = reserved
            day, month = reserved + tally.day, reserved + tally.month
            if tally.others:
                reserved = sum(cells[row + RESERVED] for row in tally.others)
                day += reserved + tally.day_elsewhere()
                month += reserved + tally.month_elsewhere()
            # The base last: what is taken over from a row is added to it before it is cleared there.
            if cells[TAKEN_OVER] != tally.taken_over:
                tally.see_base()
            budget = self._budget_day
            if budget is not None and (over := day + tally.base_day - budget) > 0:
                refusal = self._no_money("day", budget, over, micro)
            else:
                budget = self._budget_month
                if budget is None or (over := month + tally.base_month - budget) <= 0:
                    return tokens
                refusal = self._no_money("month", budget, over, micro)
            tally.reserved -= micro
            cells[tally.reserved_at] = tally.reserved
            if limit is not None:
                tally.add_tokens(tally.second, -tokens)
            raise refusal
        return tokens

    def settle(
        self, since: float, held_tokens: int, held_micro: int, now: float, unix: float, tokens: int, micro: int
    ) -> None:
        """A call is over for which something was set aside at `since`: `tokens` and `micro` USD are what it took."""
        cells, tally = self._cells, self._tally
        if self._tpm is not None:
            more = tokens - held_tokens
            # More is learned of only now, and holds back what comes now. Less is given back to the minute from which it
            # was taken, as long as that counts.
            if more < 0 and tally.second <= since < tally.until:
                count = tally.tokens + more
                if count < 0:
                    count = 0
                tally.tokens = count
                cells[tally.tokens_at] = tally.stamp + count
            elif more:
                tally.add_tokens(int(now if more > 0 else since), more)
        if self.budgeted:
            if micro > 0:
                if not tally.day_began <= unix < tally.day_ends:
                    tally.turn_day(unix)
                amount = tally.day + micro
                if amount > AMOUNT_MAX:
                    amount = AMOUNT_MAX
                tally.day = amount
                cells[tally.day_at] = tally.day_stamp + amount
                amount = tally.month + micro
                if amount > AMOUNT_MAX:
                    amount = AMOUNT_MAX
                tally.month = amount
                cells[tally.month_at] = tally.month_stamp + amount
            # Last: for a moment both count, never neither.
            reserved = tally.reserved = tally.reserved - held_micro
            cells[tally.reserved_at] = reserved

    # -- what is known -----------------------------------------------------------------------------------

    def used(self, ring: int, now: float) -> int:
        """Requests or tokens (REQUESTS, TOKENS; of which there is a limit) within the last minute, by all workers."""
        tally = self._tally
        if now >= tally.until:
            tally.turn(now)
        used = tally.requests_before + tally.requests if ring == REQUESTS else tally.tokens_before + tally.tokens
        return used + tally.elsewhere(ring + tally.low)

    def lines(self, now: float) -> bytes:
        """Header lines that tell a client how much of its rates is left: `x-ratelimit-*`, as OpenAI has them.

        Up to LINES_S old while more than REQUESTS_MANY requests and TOKENS_MANY tokens are left, exact below.
        """
        if now < self._lines_until:
            return self._lines
        tally = self._tally
        if now >= tally.until:
            tally.turn(now)
        others, requests, tokens = tally.others, self._rpm, self._tpm
        if requests is not None:
            requests -= tally.requests_before + tally.requests
            if others:
                requests -= tally.elsewhere(tally.low)
            if requests < 0:
                requests = 0
        if tokens is not None:
            tokens -= tally.tokens_before + tally.tokens
            if others:
                tokens -= tally.elsewhere(TOKENS + tally.low)
            if tokens < 0:
                tokens = 0
        if requests is None:
            lines = self._form % tokens
        elif tokens is None:
            lines = self._form % requests
        else:
            lines = self._form % (requests, tokens)
        if (requests is None or requests > REQUESTS_MANY) and (tokens is None or tokens > TOKENS_MANY):
            self._lines, self._lines_until = lines, now + LINES_S
        return lines

    # -- within ------------------------------------------------------------------------------------------

    def _too_many_tokens(self, now: float, tokens: int) -> RequestError:
        return _too_many(
            f"this key may use {self._tpm} tokens a minute, {self.used(TOKENS, now)} are used or set aside, and this"
            f" request may take {tokens}",
            self._wait_s(now, TOKENS, tokens),
        )

    def _wait_s(self, now: float, ring: int, wanted: int) -> float:
        """How long until `wanted` are free again, if nobody takes them: when the oldest seconds have left."""
        limit = self._rpm if ring == REQUESTS else self._tpm
        assert limit is not None
        excess, tally = self.used(ring, now) + wanted - limit, self._tally
        ages = tally.ages(ring)
        for age in sorted(ages, reverse=True):
            excess -= ages[age]
            if excess <= 0:
                return tally.second + WINDOW_S + 1 - age - now
        return float(WINDOW_S)

    def _no_money(self, period: str, budget: int, over: int, micro: int) -> RequestError:
        calendar = self._tally.calendar
        ends = calendar.day_ends if period == "day" else calendar.month_ends
        left = max(0, micro - over)
        remedy = "lower max_tokens"
        if micro <= budget:
            remedy += f", wait for requests to end, or until {ends}"
        return RequestError(
            f"this key's budget of {usd(budget)} USD a {period} has {usd(left)} USD left that is neither spent nor set"
            f" aside for requests under way, and this request may cost up to {usd(micro)} USD: {remedy}",
            status=402,
            type="insufficient_quota",
            code="budget_exceeded",
        )


def usd(micro: int) -> str:
    """Micro-USD as people write dollars."""
    return f"{micro / 1e6:.6f}".rstrip("0").rstrip(".")


def _form(what: bytes, limit: int | None) -> bytes:
    """Header lines, but for what is left. What has just been counted is free again when the window has passed it."""
    if limit is None:
        return b""
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %ds\r\n" % (
        what, limit, what, what, WINDOW_S + 1,
    )  # fmt: skip


def _too_many(message: str, wait_s: float) -> RequestError:
    return RequestError(
        f"{message}; try again in {wait_s:.1f} s" if "try again" not in message else message,
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
    )
