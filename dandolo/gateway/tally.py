"""What one worker has counted for one key, and where the others write what they have.

Only this process writes in its row, so what stands there it need not read: it remembers, and each change goes to the
board at once. One tally for each key and board, shared by whoever counts for it (a key's terms before and after a
change). What is the same for a whole second is worked out once in it (`turn`).
"""

from __future__ import annotations

from dandolo.board import (
    AMOUNT_MAX,
    COUNT_BITS,
    COUNT_MAX,
    DAY,
    IN_FLIGHT,
    MONTH,
    RESERVED,
    SECONDS,
    STAMPS,
    TAKEN_OVER,
    TOKENS,
    WINDOW_S,
    Board,
    Calendar,
)  # fmt: skip

_LOW = SECONDS - 1


class Tally:
    """`requests` and `tokens` are those of the present second, `*_before` those of the 60 seconds before it, by all
    workers; `day` and `month` micro-USD, of the periods that `day_stamp` and `month_stamp` name."""

    __slots__ = (
        "_base", "_board", "_calendar", "_own", "_place", "_rows", "base_day", "base_month", "cells", "counts_requests",
        "counts_tokens", "day", "day_at", "day_began", "day_ends", "day_stamp", "in_flight", "in_flight_at", "low",
        "month", "month_at", "month_stamp", "opened", "others", "requests", "requests_at", "requests_before",
        "reserved", "reserved_at", "second", "several", "stamp", "taken_over", "tokens", "tokens_at", "tokens_before",
        "until",
    )  # fmt: skip

    def __init__(self, board: Board, place: int, calendar: Calendar) -> None:
        assert board.row is not None, "only a worker lets requests in"
        self._board, self._place, self._calendar = board, place, calendar
        cells = self.cells = board.cells
        own = self._own = board.at(place, board.row)
        self.in_flight_at, self.reserved_at, self.day_at, self.month_at = (
            own + IN_FLIGHT, own + RESERVED, own + DAY, own + MONTH,
        )  # fmt: skip
        self.in_flight, self.reserved = cells[self.in_flight_at], cells[self.reserved_at]
        self.day = self.month = 0
        self.day_stamp = self.month_stamp = -1
        self.day_began = self.day_ends = 0.0
        """Unix seconds between which the stamps are right."""
        self._base = board.at(place, board.workers)
        self.base_day = self.base_month = self.taken_over = 0
        self.several = board.workers > 1
        """Whether other workers can begin."""
        self.counts_requests = self.counts_tokens = False
        """Whether anybody asks."""
        self.second = -1
        self.until = 0.0
        """When the present second ends; 0.0: it has to be looked at anew."""
        self.low = self.stamp = 0
        self.requests = self.tokens = self.requests_before = self.tokens_before = 0
        self.requests_at = self.tokens_at = own
        self.see_rows()

    @classmethod
    def of(cls, board: Board, place: int, calendar: Calendar) -> Tally:
        """The tally of a key on a board."""
        tally = board.tallies.get(place)
        if not isinstance(tally, Tally):
            tally = board.tallies[place] = cls(board, place, calendar)
        return tally

    def see_rows(self) -> None:
        """Another worker has begun."""
        board, place = self._board, self._place
        self.opened = board.opened
        self._rows = (*board.rows(place), *board.elsewhere(place))
        self.others = tuple(at for at in self._rows if at != self._own)
        self.until = 0.0

    # -- seconds -----------------------------------------------------------------------------------------

    def turn(self, now: float) -> None:
        """A new second: sum up the 60 before it, of all workers. About 5 µs a worker and ring, once a second."""
        second = max(int(now), self.second)
        self.second, self.until = second, second + 1.0
        self.low = low = second & _LOW
        self.stamp = (second & STAMPS) << COUNT_BITS
        self.requests_at, self.tokens_at = self._own + low, self._own + TOKENS + low
        if self.counts_requests:
            self.requests = self._count(self.requests_at)
            self.requests_before = sum(map(self._before, self._rows))
        if self.counts_tokens:
            self.tokens = self._count(self.tokens_at)
            self.tokens_before = sum(self._before(at + TOKENS) for at in self._rows)

    def elsewhere(self, low: int) -> int:
        """What the others have counted in the present second, in the cells that lie `low` cells into their blocks."""
        cells, stamp, total = self.cells, self.stamp, 0
        for at in self.others:
            count = cells[at + low] ^ stamp
            if 0 <= count <= COUNT_MAX:
                total += count
        return total

    def add_tokens(self, second: int, tokens: int) -> None:
        """Add to a second, or take from it; nothing when it has left the ring."""
        if second == self.second:
            after = self.tokens + tokens
            after = self.tokens = 0 if after < 0 else min(after, COUNT_MAX)
            self.cells[self.tokens_at] = self.stamp | after
            return
        cells, at, stamp = self.cells, self._own + TOKENS + (second & _LOW), (second & STAMPS) << COUNT_BITS
        count = cells[at] ^ stamp
        if not 0 <= count <= COUNT_MAX:
            if tokens < 0:
                return
            count = 0
        after = min(max(count + tokens, 0), COUNT_MAX)
        cells[at] = stamp | after
        if second < self.second <= second + WINDOW_S:
            self.tokens_before += after - count

    def ages(self, ring: int) -> dict[int, int]:
        """What was counted how many seconds ago, by all workers."""
        ages: dict[int, int] = {}
        second = self.second & STAMPS
        for at in self._rows:
            for cell in self._board.ring(at + ring):
                age = (second - (cell >> COUNT_BITS)) & STAMPS
                if cell and age <= WINDOW_S:
                    ages[age] = ages.get(age, 0) + (cell & COUNT_MAX)
        return ages

    def _count(self, at: int) -> int:
        count = self.cells[at] ^ self.stamp
        return count if 0 <= count <= COUNT_MAX else 0

    def _before(self, at: int) -> int:
        second = self.second & STAMPS
        return sum(
            cell & COUNT_MAX
            for cell in self._board.ring(at)
            if cell and 1 <= (second - (cell >> COUNT_BITS)) & STAMPS <= WINDOW_S
        )

    # -- days and months ---------------------------------------------------------------------------------

    @property
    def calendar(self) -> Calendar:
        """The day and month that are counted."""
        return self._calendar

    def turn_day(self, unix: float) -> None:
        """A new day, and perhaps a new month (UTC)."""
        calendar, cells = self._calendar.at(unix), self.cells
        self.day_began, self.day_ends = calendar.since, calendar.until
        self.day_stamp, self.month_stamp = calendar.day_stamp, calendar.month_stamp
        self.day = _amount(cells[self.day_at], self.day_stamp)
        self.month = _amount(cells[self.month_at], self.month_stamp)
        self.see_base()

    def see_base(self) -> None:
        """The control process has taken over what a row held, or what was spent before: read the base again.

        To be asked after the rows of others were read: what left them before is then in it.
        """
        cells = self.cells
        self.taken_over = cells[TAKEN_OVER]
        self.base_day = _amount(cells[self._base + DAY], self.day_stamp)
        self.base_month = _amount(cells[self._base + MONTH], self.month_stamp)

    def day_elsewhere(self) -> int:
        """Micro-USD that others have spent in the day."""
        cells, stamp, total = self.cells, self.day_stamp, 0
        for at in self.others:
            amount = cells[at + DAY] ^ stamp
            if 0 <= amount <= AMOUNT_MAX:
                total += amount
        return total

    def month_elsewhere(self) -> int:
        """Micro-USD that others have spent in the month."""
        cells, stamp, total = self.cells, self.month_stamp, 0
        for at in self.others:
            amount = cells[at + MONTH] ^ stamp
            if 0 <= amount <= AMOUNT_MAX:
                total += amount
        return total


def _amount(cell: int, stamp: int) -> int:
    amount = cell ^ stamp
    return amount if 0 <= amount <= AMOUNT_MAX else 0
