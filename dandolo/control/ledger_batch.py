"""From a journal's slots to what the ledger is to be changed by: sums by hour and name, requests, open calls.

Pure: it reads no file and no clock. A call costs what its provider said; else what the price list says of the tokens
the provider counted; else, where those are our own count, that is an estimate; else it is unknown, and counted as
such. Money is whole nano-dollars.

What going direct would have cost: the same tokens at the first candidate of the route, by its list price; where the
call went to that one, or its price is not known, what it did cost. A kept answer adds what it cost when it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dandolo.control.ledger_ring import Slot
from dandolo.journal import (
    ANSWERED,
    CACHE_CODES,
    CALL,
    COUNT_MAX,
    ESTIMATED,
    INTENT,
    NAME,
    NAMES_MAX,
    NANO,
    NOBODY,
    REQUEST,
    SETTLED,
    STREAM,
    Name,
)

SOURCES = ("", "provider", "list", "estimated", "unknown")
NO_COST, PROVIDER, LIST, OWN_ESTIMATE, UNKNOWN_COST = range(5)
CACHE = {code: word for word, code in CACHE_CODES.items()}
SUMS = (
    "requests", "failed", "refused", "cancelled", "cache_hits", "cache_misses", "calls", "unknown", "tokens_in",
    "tokens_out", "tokens_cached", "tokens_reasoning", "paid", "paid_list", "paid_estimated", "direct", "saved_cache",
)  # fmt: skip
"""The columns that are added up: counts, tokens, nano-dollars."""
(
    _REQUESTS, _FAILED, _REFUSED, _CANCELLED, _HITS, _MISSES, _CALLS, _UNKNOWN, _IN, _OUT, _CACHED, _REASONING, _PAID,
    _PAID_LIST, _PAID_ESTIMATED, _DIRECT, _SAVED,
) = range(len(SUMS))  # fmt: skip
OTHER = "other"
NAMES_KNOWN_MAX = 20_000
"""Names in the ledger; what comes beyond them is booked under the model `other`."""

Columns = tuple[str, str, str, str, str, str, str, str]
"""key, tags, endpoint, model, provider, account, owner, upstream_model."""


class Known(NamedTuple):
    """A name as slots refer to it: its number in the ledger, prices in nano-dollars a token (None: unknown)."""

    id: int
    price_in: float | None
    price_out: float | None
    direct_in: float | None
    direct_out: float | None


class Names:
    """The names of the ledger and their numbers. `fresh` are those that are not in the file yet."""

    def __init__(self, known: dict[Columns, int]) -> None:
        self._known = known
        self._next = max(known.values(), default=0) + 1
        self.fresh: dict[Columns, int] = {}

    def of(self, name: Name) -> Known:
        """The number of a name, which is new at need."""
        columns: Columns = (
            name.key, name.tags, name.endpoint, name.model, name.provider, name.account, name.owner,
            name.upstream_model,
        )  # fmt: skip
        number = self._known.get(columns)
        if number is None and len(self._known) >= NAMES_KNOWN_MAX:
            columns = (*columns[:3], OTHER, *columns[4:7], OTHER)
            number = self._known.get(columns)
        if number is None:
            number = self._known[columns] = self.fresh[columns] = self._next
            self._next += 1
        return Known(
            number, *(price if price is None else price * 1e3 for price in (
                name.input_usd, name.output_usd, name.direct_input_usd, name.direct_output_usd,
            ))
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._known)


@dataclass(slots=True)
class Request:
    """One request as it can be looked up: facts, never text. Nano-dollars; seconds, -1 where there is none."""

    name: int = 0
    started: float = 0.0
    status: int = 0
    cache: int = 0
    attempts: int = 0
    stream: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    paid: int = 0
    source: int = 0
    saved: int = 0
    duration_s: float = -1.0
    first_token_s: float = -1.0


@dataclass(slots=True)
class Opened:
    """A call that has not been settled."""

    request: int
    name: int
    reserved_micro_usd: int
    at: float


@dataclass(slots=True)
class Source:
    """A journal as the ledger knows it. `cursor` and `known` move on only when what they came from is committed."""

    id: bytes
    prefix: str
    offset_s: float
    """What makes Unix time of the worker's monotonic times."""
    cursor: int = 0
    dropped: int = 0
    """Rows that found no room in it, of those that are counted already."""
    known: dict[int, Known] = field(default_factory=dict)
    heard: dict[int, Name] = field(default_factory=dict)
    """Every name it told this process, in the file or not: should the file be lost, they are entered anew."""


class Batch:
    """What one transaction will change."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.hourly: dict[tuple[int, int], list[int]] = {}
        self.requests: dict[tuple[str, int], Request] = {}
        self.opened: dict[tuple[bytes, int], Opened] = {}
        self.closed: list[tuple[bytes, int]] = []
        self.learnt: dict[tuple[bytes, int], Known] = {}
        self.cursors: dict[bytes, int] = {}
        self.rows = 0

    def take(self, source: Source, slots: Sequence[Slot], cursor: int) -> None:
        """Add what a journal says up to `cursor`."""
        journal, known = source.id, source.known
        for slot in slots:
            kind = slot[0]
            if kind == SETTLED:
                self._settled(source, slot, known.get(slot[4]) or self._known(source, slot[4]))
            elif kind == INTENT:
                _, position, request, name, reserved, time_s = slot
                number = (known.get(name) or self._known(source, name)).id
                self.opened[journal, position] = Opened(request, number, reserved, time_s + source.offset_s)
            elif kind == NAME:
                hear(source, slot)
                self._known(source, slot[1])
        self.cursors[journal] = cursor
        self.rows += len(slots)

    def _known(self, source: Source, number: int) -> Known:
        """A name that this batch has to enter; of one that nobody knows any more nothing can be said."""
        place = (source.id, number)
        found = self.learnt.get(place)
        if found is None:
            found = self.learnt[place] = self.names.of(source.heard.get(number) or Name())
        return found

    def _settled(self, source: Source, slot: Slot, name: Known) -> None:
        (_, flags, intent, number, _, status, cache, attempts, t_in, t_out, t_cached, t_reasoning, _, saved, started,
         duration_s, first_token_s) = slot  # fmt: skip
        if intent != NOBODY and self.opened.pop((source.id, intent), None) is None:
            self.closed.append((source.id, intent))
        if t_in > COUNT_MAX or t_out > COUNT_MAX:
            t_in = t_out = t_cached = t_reasoning = 0
        began = started + source.offset_s
        key = (int(began) // 3600, name.id)
        sums = self.hourly.get(key)
        if sums is None:
            sums = self.hourly[key] = [0] * len(SUMS)
        request = self.requests.get((source.prefix, number))
        if request is None:
            request = self.requests[source.prefix, number] = Request()
        if not request.started or flags & REQUEST:
            request.started = began
        if not request.name or flags & ANSWERED or (flags & REQUEST and not request.paid):
            request.name = name.id
        if flags & CALL:
            self._call(sums, request, slot, name)
        if saved > 0:
            sums[_SAVED] += saved
            sums[_DIRECT] += saved
            request.saved += saved
        request.tokens_in = max(request.tokens_in, t_in)
        request.tokens_out = max(request.tokens_out, t_out)
        request.tokens_cached = max(request.tokens_cached, t_cached)
        request.tokens_reasoning = max(request.tokens_reasoning, t_reasoning)
        if not flags & REQUEST:
            return
        request.status, request.cache, request.attempts = status, cache, attempts
        request.stream = 1 if flags & STREAM else 0
        request.duration_s, request.first_token_s = duration_s, first_token_s
        sums[_REQUESTS] += 1
        if status >= 400:
            sums[_FAILED if status >= 500 else _CANCELLED if status == 499 else _REFUSED] += 1
        if cache:
            sums[_MISSES if cache == 2 else _HITS] += 1

    def _call(self, sums: list[int], request: Request, slot: Slot, name: Known) -> None:
        flags, own = slot[1], slot[12]
        t_in, t_out, t_cached, t_reasoning = slot[8:12]
        cost, source = 0, NO_COST
        if own >= 0:
            cost, source = own, PROVIDER
        elif flags & (ANSWERED | ESTIMATED):
            if name.price_in is not None and name.price_out is not None and (t_in or t_out):
                cost = round(t_in * name.price_in + t_out * name.price_out)
                source = OWN_ESTIMATE if flags & ESTIMATED else LIST
            else:
                source = UNKNOWN_COST
        sums[_CALLS] += 1
        sums[_IN] += t_in
        sums[_OUT] += t_out
        sums[_CACHED] += t_cached
        sums[_REASONING] += t_reasoning
        sums[_PAID] += cost
        if source == UNKNOWN_COST:
            sums[_UNKNOWN] += 1
        elif source == LIST:
            sums[_PAID_LIST] += cost
        elif source == OWN_ESTIMATE:
            sums[_PAID_ESTIMATED] += cost
        if flags & ANSWERED:
            if name.direct_in is not None and name.direct_out is not None and (t_in or t_out):
                sums[_DIRECT] += round(t_in * name.direct_in + t_out * name.direct_out)
            else:
                sums[_DIRECT] += cost
        request.paid += cost
        request.source = max(request.source, source)

    def committed(self, sources: Sequence[Source]) -> None:
        """It is in the file: the journals may be told, and go on from here."""
        for source in sources:
            if source.id in self.cursors:
                source.cursor = self.cursors[source.id]
        known = {source.id: source.known for source in sources}
        for (journal, number), one in self.learnt.items():
            known[journal][number] = one
            known[journal].pop(number - 2 * NAMES_MAX, None)
        self.names.fresh.clear()


def hear(source: Source, slot: Slot) -> None:
    """Remember what a NAME slot says, whether or not what follows gets into the file."""
    source.heard[slot[1]] = slot[2]
    source.heard.pop(slot[1] - 2 * NAMES_MAX, None)


def usd(nano: int) -> float:
    """Dollars of nano-dollars."""
    return nano / NANO
