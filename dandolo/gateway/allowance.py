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
    """One key's limits at work in one worker.

    What is the same for a whole second (which cells are written, how much of a rate the seconds before have left) and
    for as long as no other worker begins (which cells are read) is worked out once (`_turn`): a request pays only for
    the cells it writes and reads. These are the truth, and read each time: who else writes in the same row (the terms
    before these, to their end) is never overlooked.
    """

    __slots__ = (
        "_bases",
        "_board",
        "_budget_day",
        "_budget_month",
        "_calendar",
        "_cells",
        "_concurrent",
        "_day",
        "_days",
        "_form",
        "_full",
        "_in_flight",
        "_low",
        "_month",
        "_months",
        "_opened",
        "_others",
        "_own",
        "_place",
        "_requests",
        "_requests_room",
        "_reserved",
        "_rows",
        "_rpm",
        "_second",
        "_several",
        "_stamp",
        "_tokens",
        "_tokens_room",
        "_tpm",
        "_until",
        "budgeted",
        "terms",
    )  # fmt: skip

    def __init__(self, terms: KeyTerms, board: Board, place: int, calendar: Calendar) -> None:
        assert board.row is not None, "only a worker lets requests in"
        self.terms = terms
        self._rpm, self._tpm, self._concurrent = terms.rpm, terms.tpm, terms.concurrent
        self._budget_day, self._budget_month = terms.budget_day, terms.budget_month
        self._board = board
        self._cells = board.cells
        self._place = place
        self._calendar = calendar
        own = self._own = board.at(place, board.row)
        self._in_flight, self._reserved = own + IN_FLIGHT, own + RESERVED
        self._day, self._month = own + DAY, own + MONTH
        self._several = board.workers > 1
        """Whether other workers can begin."""
        self._opened = -1
        self._rows: tuple[int, ...] = ()
        self._others: tuple[int, ...] = ()
        self._bases: tuple[int, ...] = ()
        self._days: tuple[int, ...] = ()
        self._months: tuple[int, ...] = ()
        self._second = -1
        self._until = 0.0
        """When the present second ends, as far as these were turned."""
        self._low = self._stamp = self._full = 0
        self._requests = self._tokens = 0
        """One's own cells of the present second; they bear its stamp."""
        self._requests_room = self._tokens_room = 0
        """What the own cell of the present second may hold if the others' are empty: the limit less what was counted in
        the seconds before, with the stamp."""
        self._form = _form(b"requests", terms.rpm) + _form(b"tokens", terms.tpm)
        self._see_rows()
        self.budgeted = terms.budget_day is not None or terms.budget_month is not None

    def _see_rows(self) -> None:
        """Another worker has begun."""
        board, place = self._board, self._place
        self._opened = board.opened
        self._rows = (*board.rows(place), *board.elsewhere(place))
        self._others = tuple(at for at in self._rows if at != self._own)
        # The base last: what is taken over from a row is added to it before it is cleared there.
        self._bases = (*self._rows, board.at(place, board.workers))
        self._days = tuple(at + DAY for at in self._bases)
        self._months = tuple(at + MONTH for at in self._bases)
        self._until = 0.0

    # -- a request comes and goes ------------------------------------------------------------------------

    def enter(self, now: float) -> bool:
        """Count a request in; False when it is one too many, and then it is not counted."""
        cells = self._cells
        if self._several and cells[OPENED] != self._opened:
            self._see_rows()
        most = self._concurrent
        if most is not None:
            at = self._in_flight
            count = cells[at] + 1
            cells[at] = count
            for row in self._others:
                count += cells[row + IN_FLIGHT]
            if count > most:
                cells[at] -= 1
                return False
        if self._rpm is not None:
            if now >= self._until:
                self._turn(now)
            at = self._requests
            used = cells[at] + 1
            cells[at] = used
            if self._others:
                used += self._of_others(self._low)
            if used > self._requests_room:
                cells[at] -= 1
                if most is not None:
                    cells[self._in_flight] -= 1
                return False
        return True

    def leave(self) -> None:
        """Count a request out."""
        if self._concurrent is not None:
            self._cells[self._in_flight] -= 1

    def check(self, now: float) -> None:
        """Refuse early, with nothing counted. Raises RequestError (429)."""
        cells, most = self._cells, self._concurrent
        if self._several and cells[OPENED] != self._opened:
            self._see_rows()
        if most is not None and cells[self._in_flight] + sum(cells[at + IN_FLIGHT] for at in self._others) >= most:
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
        cells, limit = self._cells, self._tpm
        if self._several and cells[OPENED] != self._opened:
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
            if now >= self._until:
                self._turn(now)
            at = self._tokens
            before = cells[at]
            count = before + tokens
            if count > self._full:
                count = self._full
            cells[at] = count
            if self._others:
                count += self._of_others(TOKENS + self._low)
            if count > self._tokens_room:
                cells[at] = before
                raise self._too_many_tokens(now, tokens)
        if self.budgeted:
            calendar = self._calendar
            if not calendar.since <= unix < calendar.until:
                calendar.at(unix)
            own = self._reserved
            reserved = cells[own] + micro
            cells[own] = reserved
            for row in self._others:
                reserved += cells[row + RESERVED]
            if (
                self._budget_day is not None
                and (over := reserved + self._spent(self._days, calendar.day_stamp) - self._budget_day) > 0
            ):
                refusal = self._no_money("day", self._budget_day, over, micro)
            elif (
                self._budget_month is not None
                and (over := reserved + self._spent(self._months, calendar.month_stamp) - self._budget_month) > 0
            ):
                refusal = self._no_money("month", self._budget_month, over, micro)
            else:
                return tokens
            cells[own] -= micro
            if limit is not None:
                cells[self._tokens] = before
            raise refusal
        return tokens

    def settle(
        self, since: float, held_tokens: int, held_micro: int, now: float, unix: float, tokens: int, micro: int
    ) -> None:
        """A call is over for which something was set aside at `since`: `tokens` and `micro` USD are what it took."""
        cells = self._cells
        if self._tpm is not None:
            more = tokens - held_tokens
            if more > 0:
                # Learned of only now: it holds back what comes now.
                self._add_tokens(int(now), more)
            elif more:
                # Given back to the minute from which it was taken, as long as that counts.
                if self._second <= since < self._until:
                    count = cells[self._tokens] + more
                    cells[self._tokens] = count if count > self._stamp else self._stamp
                else:
                    self._add_tokens(int(since), more)
        if self.budgeted:
            if micro > 0:
                calendar = self._calendar
                if not calendar.since <= unix < calendar.until:
                    calendar.at(unix)
                add_spent(cells, self._day, calendar.day_stamp, micro)
                add_spent(cells, self._month, calendar.month_stamp, micro)
            # Last: for a moment both count, never neither.
            cells[self._reserved] -= held_micro

    # -- what is known -----------------------------------------------------------------------------------

    def used(self, ring: int, now: float) -> int:
        """Requests or tokens (REQUESTS, TOKENS; of which there is a limit) within the last minute, by all workers."""
        if now >= self._until:
            self._turn(now)
        limit, room, own = (
            (self._rpm, self._requests_room, self._requests)
            if ring == REQUESTS
            else (self._tpm, self._tokens_room, self._tokens)
        )
        assert limit is not None
        return limit - room + self._cells[own] + self._of_others(ring + self._low)

    def lines(self, now: float) -> bytes:
        """Header lines that tell a client how much of its rates is left: `x-ratelimit-*`, as OpenAI has them."""
        if now >= self._until:
            self._turn(now)
        cells, others = self._cells, self._others
        if self._rpm is None:
            requests = None
        else:
            requests = self._requests_room - cells[self._requests]
            if others:
                requests -= self._of_others(self._low)
            if requests < 0:
                requests = 0
        if self._tpm is None:
            return self._form % requests
        tokens = self._tokens_room - cells[self._tokens]
        if others:
            tokens -= self._of_others(TOKENS + self._low)
        if tokens < 0:
            tokens = 0
        return self._form % tokens if requests is None else self._form % (requests, tokens)

    # -- within ------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        """A new second: sum up the 60 before it, of all workers. About 5 µs a worker and ring, once a second."""
        second = max(int(now), self._second)
        self._second, self._until = second, second + 1.0
        self._low = low = second & _LOW
        self._stamp = stamp = (second & STAMPS) << COUNT_BITS
        self._full = stamp | COUNT_MAX
        self._requests, self._tokens = self._own + low, self._own + TOKENS + low
        cells = self._cells
        if self._rpm is not None:
            self._begin(cells, self._requests, stamp)
            self._requests_room = stamp + self._rpm - sum(map(self._closed, self._rows))
        if self._tpm is not None:
            self._begin(cells, self._tokens, stamp)
            self._tokens_room = stamp + self._tpm - sum(self._closed(at + TOKENS) for at in self._rows)

    @staticmethod
    def _begin(cells: memoryview, at: int, stamp: int) -> None:
        """What stands in one's own cell of a new second is of an earlier round, if anything."""
        if not 0 <= cells[at] ^ stamp <= COUNT_MAX:
            cells[at] = stamp

    def _closed(self, at: int) -> int:
        second = self._second & STAMPS
        return sum(
            cell & COUNT_MAX
            for cell in self._board.ring(at)
            if cell and 1 <= (second - (cell >> COUNT_BITS)) & STAMPS <= WINDOW_S
        )

    def _of_others(self, low: int) -> int:
        """What the others have counted in the present second."""
        cells, stamp, total = self._cells, self._stamp, 0
        for at in self._others:
            count = cells[at + low] ^ stamp
            if 0 <= count <= COUNT_MAX:
                total += count
        return total

    def _spent(self, cells: tuple[int, ...], stamp: int) -> int:
        """Micro-USD in the cells of a period, of all rows."""
        board, total = self._cells, 0
        for at in cells:
            amount = board[at] ^ stamp
            if 0 <= amount <= AMOUNT_MAX:
                total += amount
        return total

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
            self._tokens_room -= after - count

    def _wait_s(self, now: float, ring: int, wanted: int) -> float:
        """How long until `wanted` are free again, if nobody takes them: when the oldest seconds have left."""
        limit = self._rpm if ring == REQUESTS else self._tpm
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

    def _too_many_tokens(self, now: float, tokens: int) -> RequestError:
        return _too_many(
            f"this key may use {self._tpm} tokens a minute, {self.used(TOKENS, now)} are used or set aside, and this"
            f" request may take {tokens}",
            self._wait_s(now, TOKENS, tokens),
        )

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
