"""Limits over several hosts: what each has let in goes to the others a few times a second, by way of Redis.

Every host keeps one field of a hash: what its keys have used, in the last few seconds, under way, today, this month. It
reads the fields of the others and writes their sum into a row of its board, which its workers count with their own.
Nobody waits for anybody: a request is judged by what is on the board. So hosts may let in what came to the others since
the last exchange, EXCHANGE_S and a round trip ago, and nothing more.

A host that has not been heard of for STALE_S has nothing under way any more, as far as the others know, and its
requests age as always; what it has spent counts until its day and month are over. Without Redis each host goes on with
what it knows, alone. Hosts' clocks should agree to a second, as NTP sees to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from dandolo.board import (
    AMOUNT_BITS,
    AMOUNT_MAX,
    COUNT_BITS,
    COUNT_MAX,
    DAY,
    IN_FLIGHT,
    MONTH,
    PERIODS,
    REQUESTS,
    RESERVED,
    SECONDS,
    STAMPS,
    TOKENS,
    Board,
    Calendar,
)

EXCHANGE_S: Final = 0.2
TOLD_SECONDS: Final = 4
"""Full seconds that are told beside the present one: as long may an exchange fail without anything being lost."""
STALE_S: Final = 5.0
KEPT_S: Final = 32 * 24 * 3600.0
"""How long what a host said is kept: a month's spending must outlast the month."""
HOSTS_MAX: Final = 64
TOLD_BYTES_MAX: Final = 4 * 1024 * 1024
KEYS_TOLD_MAX: Final = 10_000
HASH: Final = b"limits"

_log = logging.getLogger("dandolo")

Ask = Callable[..., Awaitable[Any]]
"""Ask Redis a command (name and arguments as bytes, the hash's own name is known); its reply, or anything else."""


class Used(msgspec.Struct, array_like=True, gc=False):
    """What a key has used on one host: by Unix second, under way, micro-USD reserved and spent."""

    requests: dict[int, int]
    tokens: dict[int, int]
    in_flight: int
    reserved: int
    day: int
    month: int


class Told(msgspec.Struct, array_like=True, gc=False):
    """What one host says: when (Unix seconds), of which day and month, and of each key by its identity."""

    at: float
    day: int
    month: int
    keys: dict[int, Used]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Told).decode


class Sharing:
    """The exchange of one host, whose name is `host`: the same after a restart, or what it spent counts twice."""

    def __init__(self, board: Board, host: bytes, ask: Ask) -> None:
        assert board.shared, "the board has no row for others"
        self._board = board
        self._host = host
        self._ask = ask
        self._calendar = Calendar(time.time())
        self._counts: dict[tuple[int, int], dict[bytes, int]] = {}
        """By cell and second: what each other host has told."""
        self._filled: set[int] = set()
        self._opened = -1
        self._rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.well = True

    async def run(self) -> None:
        """Exchange again and again."""
        while True:
            try:
                await self.exchange(time.monotonic(), time.time())
            except Exception:
                # What others say is none of our making; one round of it must not end all others.
                _log.error("limits could not be exchanged with other hosts", exc_info=True)
            await asyncio.sleep(EXCHANGE_S)

    async def exchange(self, now: float, unix: float) -> None:
        """Say what was used here, and take over what was used elsewhere."""
        said = await self._ask(b"HSET", self._host, self.report(now, unix))
        told = await self._ask(b"HGETALL") if isinstance(said, int) else None
        fields = _fields(told)
        if fields is None:
            if self.well:
                _log.warning("limits are not shared with other hosts: Redis does not answer; each goes on alone")
            self.well = False
            fields = {}
        elif not self.well:
            _log.info("limits are shared with other hosts again")
            self.well = True
        for old in self.take(fields, now, unix):
            await self._ask(b"HDEL", old)

    # -- what is said ------------------------------------------------------------------------------------

    def report(self, now: float, unix: float) -> bytes:
        """What was used on this host (monotonic and Unix seconds)."""
        board, calendar, offset = self._board, self._calendar.at(unix), unix - now
        recent = [int(now) - back for back in range(TOLD_SECONDS + 1)]
        stamps = [
            (second & (SECONDS - 1), (second & STAMPS) << COUNT_BITS, round(second + offset)) for second in recent
        ]
        told: dict[int, Used] = {}
        if board.opened != self._opened:
            self._opened = board.opened
            self._rows.clear()
        for place in range(min(board.claimed, KEYS_TOLD_MAX)):
            if place == len(self._rows):
                self._rows.append((board.rows(place), (*board.rows(place), board.at(place, board.workers))))
            rows, bases = self._rows[place]
            used = Used(
                self._recent(rows, REQUESTS, stamps),
                self._recent(rows, TOKENS, stamps),
                self._sum(rows, IN_FLIGHT),
                self._sum(rows, RESERVED),
                self._spent(bases, DAY, calendar.day_stamp),
                self._spent(bases, MONTH, calendar.month_stamp),
            )
            if used.requests or used.tokens or used.in_flight or used.reserved or used.day or used.month:
                told[board.identity(place)] = used
        return _encode(Told(unix, calendar.day, calendar.month, told))

    # In plain loops: all keys are looked at each time, 5 µs each.

    def _recent(self, rows: tuple[int, ...], ring: int, stamps: list[tuple[int, int, int]]) -> dict[int, int]:
        cells, found = self._board.cells, dict[int, int]()
        for slot, stamp, second in stamps:
            for at in rows:
                count = cells[at + ring + slot] ^ stamp
                if 0 < count <= COUNT_MAX:
                    found[second] = found.get(second, 0) + count
        return found

    def _sum(self, rows: tuple[int, ...], cell: int) -> int:
        cells, total = self._board.cells, 0
        for at in rows:
            total += cells[at + cell]
        return total

    def _spent(self, bases: tuple[int, ...], cell: int, stamp: int) -> int:
        cells, total = self._board.cells, 0
        for at in bases:
            amount = cells[at + cell] ^ stamp
            if 0 < amount <= AMOUNT_MAX:
                total += amount
        return total

    # -- what is heard -----------------------------------------------------------------------------------

    def take(self, fields: Mapping[bytes, bytes], now: float, unix: float) -> list[bytes]:
        """Write what other hosts say onto the board; the hosts that have not been heard of for so long that they may
        be forgotten."""
        board, calendar, offset = self._board, self._calendar.at(unix), unix - now
        sums: dict[int, list[int]] = {}
        forgotten: list[bytes] = []
        second = int(now)
        others = sorted(host for host in fields if host != self._host)
        for host in others[:HOSTS_MAX]:
            told = _told(fields[host])
            if told is None:
                # Of another version, perhaps.
                continue
            if unix - told.at > KEPT_S:
                forgotten.append(host)
                continue
            fresh = abs(unix - told.at) <= STALE_S
            for identity, used in told.keys.items():
                place = board.identified(identity)
                if place is None:
                    continue
                total = sums.setdefault(place, [0, 0, 0, 0])
                if fresh:
                    self._note(host, place, REQUESTS, used.requests, second, offset)
                    self._note(host, place, TOKENS, used.tokens, second, offset)
                    total[0] += _sane(used.in_flight)
                    total[1] += _sane(used.reserved)
                if told.day == calendar.day:
                    total[2] += _sane(used.day)
                if told.month == calendar.month:
                    total[3] += _sane(used.month)
        self._write_counts(second)
        for place in self._filled - sums.keys():
            sums[place] = [0, 0, 0, 0]
        for place, (in_flight, reserved, day, month) in sums.items():
            (at,) = board.elsewhere(place)
            board.cells[at + IN_FLIGHT] = in_flight
            board.cells[at + RESERVED] = min(reserved, AMOUNT_MAX)
            board.cells[at + DAY] = (calendar.day & PERIODS) << AMOUNT_BITS | min(day, AMOUNT_MAX)
            board.cells[at + MONTH] = (calendar.month & PERIODS) << AMOUNT_BITS | min(month, AMOUNT_MAX)
        self._filled = {place for place, total in sums.items() if any(total)}
        return forgotten

    def _note(self, host: bytes, place: int, ring: int, counts: dict[int, int], second: int, offset: float) -> None:
        (at,) = self._board.elsewhere(place)
        for their_second, count in counts.items():
            own = round(their_second - offset)
            # Beyond what is told there is nothing to learn, and a clock that is wrong.
            if second - SECONDS < own <= second + 2 and abs(second - own) <= STALE_S + TOLD_SECONDS:
                self._counts.setdefault((at + ring, own), {})[host] = min(_sane(count), COUNT_MAX)

    def _write_counts(self, second: int) -> None:
        cells = self._board.cells
        for key in [key for key in self._counts if key[1] <= second - SECONDS]:
            del self._counts[key]
        for (ring, own), by_host in self._counts.items():
            if own > second - TOLD_SECONDS - STALE_S - 1:
                stamp = (own & STAMPS) << COUNT_BITS
                cells[ring + (own & (SECONDS - 1))] = stamp | min(sum(by_host.values()), COUNT_MAX)


def _fields(reply: Any) -> dict[bytes, bytes] | None:
    """The reply to HGETALL, which is a map or a list of names and values in turn; None for anything else."""
    if isinstance(reply, list) and len(reply) % 2 == 0:
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    if not isinstance(reply, dict):
        return None
    return {name: value for name, value in reply.items() if isinstance(name, bytes) and isinstance(value, bytes)}


def _told(value: bytes) -> Told | None:
    if len(value) > TOLD_BYTES_MAX:
        return None
    try:
        return _decode(value)
    except (ValueError, RecursionError):
        return None


def _sane(count: int) -> int:
    return count if 0 < count <= AMOUNT_MAX else 0
