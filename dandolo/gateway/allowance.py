"""What a key may use, judged by what all workers have written on the board (`dandolo.board`). Decisions only.

`enter` counts a request in (rate, concurrency) and `leave` out; `reserve` sets tokens and money aside when the call is
known and `settle` puts what it really was in their place. All four count first and judge the sum of all workers then,
so that two workers never both let in the last one. `now` is monotonic, `unix` Unix seconds.
"""

from __future__ import annotations

from dandolo.board import (
    AMOUNT_MAX,
    COUNT_BITS,
    COUNT_MAX,
    DAY,
    IN_FLIGHT,
    MONTH,
    OPENED,
    REQUESTS,
    RESERVED,
    SECONDS,
    STAMPS,
    TOKENS,
    WINDOW_S,
    Board,
    Calendar,
    add_spent,
)  # fmt: skip
from dandolo.errors import RequestError
from dandolo.policy import KeyTerms

BUSY_RETRY_S = 1.0
"""What a key with as many requests under way as it may have is told to wait: nobody knows when one ends."""
_LOW = SECONDS - 1


class Allowance:
    """One key's limits at work in one worker."""

    __slots__ = (
        "_bases",
        "_board",
        "_calendar",
        "_cells",
        "_opened",
        "_own",
        "_place",
        "_requests_closed",
        "_requests_form",
        "_rows",
        "_second",
        "_tokens_closed",
        "_tokens_form",
        "budgeted",
        "terms",
    )  # fmt: skip

    def __init__(self, terms: KeyTerms, board: Board, place: int, calendar: Calendar) -> None:
        assert board.row is not None, "only a worker lets requests in"
        self.terms = terms
        self._board = board
        self._cells = board.cells
        self._place = place
        self._calendar = calendar
        self._own = board.at(place, board.row)
        self._opened = -1
        self._rows: tuple[int, ...] = ()
        self._bases: tuple[int, ...] = ()
        self._second = -1
        self._requests_closed = self._tokens_closed = 0
        self._requests_form, self._tokens_form = _form(b"requests", terms.rpm), _form(b"tokens", terms.tpm)
        self._see_rows()
        self.budgeted = terms.budget_day is not None or terms.budget_month is not None

    def _see_rows(self) -> None:
        """Another worker has begun."""
        board, place = self._board, self._place
        self._opened = board.opened
        self._rows = (*board.rows(place), *board.elsewhere(place))
        self._bases = (*self._rows, board.at(place, board.workers))

    # -- a request comes and goes ------------------------------------------------------------------------

    def enter(self, now: float) -> bool:
        """Count a request in; False when it is one too many, and then it is not counted."""
        cells, terms = self._cells, self.terms
        if cells[OPENED] != self._opened:
            self._see_rows()
        if terms.concurrent is not None:
            own = self._own + IN_FLIGHT
            cells[own] += 1
            under_way = 0
            for at in self._rows:
                under_way += cells[at + IN_FLIGHT]
            if under_way > terms.concurrent:
                cells[own] -= 1
                return False
        if terms.rpm is not None:
            second = int(now)
            if second != self._second:
                second = self._turn(second)
            low, stamp = second & _LOW, (second & STAMPS) << COUNT_BITS
            own = self._own + low
            count = cells[own] ^ stamp
            cells[own] = stamp + count + 1 if 0 <= count < COUNT_MAX else stamp + 1
            used = self._requests_closed
            for at in self._rows:
                count = cells[at + low] ^ stamp
                if 0 <= count <= COUNT_MAX:
                    used += count
            if used > terms.rpm:
                cells[own] -= 1
                if terms.concurrent is not None:
                    cells[self._own + IN_FLIGHT] -= 1
                return False
        return True

    def leave(self) -> None:
        """Count a request out."""
        if self.terms.concurrent is not None:
            self._cells[self._own + IN_FLIGHT] -= 1

    def check(self, now: float) -> None:
        """Refuse early, with nothing counted. Raises RequestError (429)."""
        terms = self.terms
        if self._cells[OPENED] != self._opened:
            self._see_rows()
        if terms.concurrent is not None and self._board.total(self._place, IN_FLIGHT) >= terms.concurrent:
            raise _too_many(
                f"{terms.concurrent} requests of this key are under way, as many as it may have; try again later",
                BUSY_RETRY_S,
            )
        if terms.rpm is not None and self.used(REQUESTS, now) >= terms.rpm:
            raise _too_many(
                f"this key has made {terms.rpm} requests within a minute, as many as it may",
                self._wait_s(now, REQUESTS, 1),
            )

    # -- its call is known, and ends ---------------------------------------------------------------------

    def reserve(self, now: float, unix: float, least: int, tokens: int, micro: int) -> int:
        """Set aside `tokens` (of which `least` are sent for certain) and `micro` USD for a call; how many tokens were.

        Raises RequestError, with nothing set aside: 429 for tokens, 402 for money, 400 for a call that can never pass.
        """
        cells, limit = self._cells, self.terms.tpm
        if cells[OPENED] != self._opened:
            self._see_rows()
        if limit is not None:
            if least > limit:
                raise RequestError(
                    f"this request has about {least} tokens, and this key may use {limit} a minute; shorten it",
                    code="tokens_per_minute_exceeded",
                )
            if tokens > limit:
                # Who asks for the longest of answers is let in by an empty minute, or never would be.
                tokens = limit
            second = int(now)
            self._add_tokens(second, tokens)
            used = self.used(TOKENS, now)
            if used > limit:
                self._add_tokens(second, -tokens)
                raise _too_many(
                    f"this key may use {limit} tokens a minute, {used - tokens} are used or set aside, and this request"
                    f" may take {tokens}",
                    self._wait_s(now, TOKENS, tokens),
                )
        if self.budgeted:
            own = self._own + RESERVED
            cells[own] += micro
            spent = self._over_budget(unix)
            if spent is not None:
                cells[own] -= micro
                if limit is not None:
                    self._add_tokens(int(now), -tokens)
                raise self._no_money(*spent, micro)
        return tokens

    def settle(
        self, since: float, held_tokens: int, held_micro: int, now: float, unix: float, tokens: int, micro: int
    ) -> None:
        """A call is over for which something was set aside at `since`: `tokens` and `micro` USD are what it took."""
        cells = self._cells
        if self.terms.tpm is not None:
            more = tokens - held_tokens
            if more > 0:
                # Learned of only now: it holds back what comes now.
                self._add_tokens(int(now), more)
            elif more:
                # Given back to the minute from which it was taken, as long as that counts.
                self._add_tokens(int(since), more)
        if self.budgeted:
            own = self._own
            if micro > 0:
                calendar = self._calendar.at(unix)
                add_spent(cells, own + DAY, calendar.day_stamp, micro)
                add_spent(cells, own + MONTH, calendar.month_stamp, micro)
            # Last: for a moment both count, never neither.
            cells[own + RESERVED] -= held_micro

    # -- what is known -----------------------------------------------------------------------------------

    def used(self, ring: int, now: float) -> int:
        """Requests or tokens (REQUESTS, TOKENS) within the last minute, by all workers."""
        second = int(now)
        if second != self._second:
            second = self._turn(second)
        cells, low, stamp = self._cells, ring + (second & _LOW), (second & STAMPS) << COUNT_BITS
        used = self._requests_closed if ring == REQUESTS else self._tokens_closed
        for at in self._rows:
            count = cells[at + low] ^ stamp
            if 0 <= count <= COUNT_MAX:
                used += count
        return used

    def lines(self, now: float) -> bytes:
        """Header lines that tell a client how much of its rates is left: `x-ratelimit-*`, as OpenAI has them."""
        terms, lines = self.terms, b""
        if terms.rpm is not None:
            left = terms.rpm - self.used(REQUESTS, now)
            lines = self._requests_form % (left if left > 0 else 0)
        if terms.tpm is not None:
            left = terms.tpm - self.used(TOKENS, now)
            lines += self._tokens_form % (left if left > 0 else 0)
        return lines

    # -- within ------------------------------------------------------------------------------------------

    def _turn(self, second: int) -> int:
        """A new second: sum up the 60 before it, of all workers. About 5 µs a worker and ring, once a second."""
        if second < self._second:
            # Whoever asks has looked at the clock a little earlier than the last one who asked.
            return self._second
        self._second = second
        terms = self.terms
        if terms.rpm is not None:
            self._requests_closed = sum(map(self._closed, self._rows))
        if terms.tpm is not None:
            self._tokens_closed = sum(self._closed(at + TOKENS) for at in self._rows)
        return second

    def _closed(self, at: int) -> int:
        second = self._second & STAMPS
        return sum(
            cell & COUNT_MAX
            for cell in self._board.ring(at)
            if cell and 1 <= (second - (cell >> COUNT_BITS)) & STAMPS <= WINDOW_S
        )

    def _add_tokens(self, second: int, tokens: int) -> None:
        """Add to a second of one's own ring, or take from it; nothing when it has left the ring."""
        cells, at, stamp = self._cells, self._own + TOKENS + (second & _LOW), (second & STAMPS) << COUNT_BITS
        count = cells[at] ^ stamp
        if not 0 <= count <= COUNT_MAX:
            if tokens < 0:
                return
            count = 0
        after = count + tokens
        if after < 0:
            after = 0
        elif after > COUNT_MAX:
            after = COUNT_MAX
        cells[at] = stamp | after
        if second < self._second <= second + WINDOW_S:
            self._tokens_closed += after - count

    def _wait_s(self, now: float, ring: int, wanted: int) -> float:
        """How long until `wanted` are free again, if nobody takes them: when the oldest seconds have left."""
        limit = self.terms.rpm if ring == REQUESTS else self.terms.tpm
        assert limit is not None
        excess = self.used(ring, now) + wanted - limit
        ages: dict[int, int] = {}
        second = self._second & STAMPS
        for at in self._rows:
            for cell in self._board.ring(at + ring):
                age = (second - (cell >> COUNT_BITS)) & STAMPS
                if cell and age <= WINDOW_S:
                    ages[age] = ages.get(age, 0) + (cell & COUNT_MAX)
        for age in sorted(ages, reverse=True):
            excess -= ages[age]
            if excess <= 0:
                return self._second + WINDOW_S + 1 - age - now
        return float(WINDOW_S)

    def _over_budget(self, unix: float) -> tuple[str, int, int] | None:
        """Which budget is exceeded by what is spent and set aside, how large it is, and by how much; None: none is."""
        cells, calendar, terms = self._cells, self._calendar.at(unix), self.terms
        reserved = 0
        for at in self._rows:
            reserved += cells[at + RESERVED]
        for budget, cell, stamp, period in (
            (terms.budget_day, DAY, calendar.day_stamp, "day"),
            (terms.budget_month, MONTH, calendar.month_stamp, "month"),
        ):
            if budget is not None:
                total = reserved
                for at in self._bases:
                    amount = cells[at + cell] ^ stamp
                    if 0 <= amount <= AMOUNT_MAX:
                        total += amount
                if total > budget:
                    return period, budget, total - budget
        return None

    def _no_money(self, period: str, budget: int, over: int, micro: int) -> RequestError:
        calendar = self._calendar
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
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %ds\r\n" % (
        what, limit or 0, what, what, WINDOW_S + 1,
    )  # fmt: skip


def _too_many(message: str, wait_s: float) -> RequestError:
    return RequestError(
        f"{message}; try again in {wait_s:.1f} s" if "try again" not in message else message,
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
    )
