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
from typing import Any, NamedTuple

from dandolo.control.ledger_ring import Intent, Slot
from dandolo.journal import (
    ABSENT,
    ANSWERED,
    CACHE_CODES,
    CALL,
    COUNT_MAX,
    ESTIMATED,
    NAMES_MAX,
    REPEATED,
    REPEATED_ENTRY,
    REPEATED_SLOT,
    REQUEST,
    SETTLED,
    Name,
)

SOURCES = ("", "provider", "list", "estimated", "unknown")
NO_COST, PROVIDER, LIST, OWN_ESTIMATE, UNKNOWN_COST = range(5)
_MISS = CACHE_CODES["miss"]
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
COST_MAX = 10**15
"""Nano-dollars of one call: a million dollars. What is beyond is a provider's mistake, and unknown."""
TIME_MAX = 1e11
"""Unix seconds: in the year 5138. What is beyond would be no mistake that anybody here makes."""
SUM_MAX = 2**62
OTHER = "other"
NUMBER_MAX = 2**40 - 1
"""The highest number of a request that an id can show."""
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
        prices = (name.input_usd, name.output_usd, name.direct_input_usd, name.direct_output_usd)
        return Known(number, *(one * 1e3 if one is not None and 0.0 <= one < 1e9 else None for one in prices))

    def __len__(self) -> int:
        return len(self._known)


@dataclass(slots=True)
class Chunk:
    """Settlements of one journal that are kept together, so that one request costs no row: `slots` as they stood,
    `repeated` those of several requests, `names` those that they refer to by number, `low` and `high` the bounds of
    their requests' numbers."""

    slots: list[bytes] = field(default_factory=list)
    repeated: list[bytes] = field(default_factory=list)
    requests: int = 0
    names: dict[int, Known] = field(default_factory=dict)
    low: int = 2**63 - 1
    high: int = 0


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
    seen: set[int] = field(default_factory=set)
    """Intents that were open when they were looked at last."""
    listed: set[int] = field(default_factory=set)
    """Those that are in the file."""


class Batch:
    """What one transaction will change."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.hourly: dict[tuple[int, int], list[int]] = {}
        self.chunks: dict[bytes, Chunk] = {}
        self.opened: dict[bytes, dict[int, Intent]] = {}
        """Calls to be listed as not settled: by journal and number their intents."""
        self.closed: list[tuple[bytes, int]] = []
        self.learnt: dict[tuple[bytes, int], Known] = {}
        self.cursors: dict[bytes, int] = {}
        self.rows = 0

    def take(self, source: Source, slots: Sequence[Slot], cursor: int) -> None:
        """Add what a journal says up to `cursor`."""
        journal, known, hourly, chunk = source.id, source.known, self.hourly, Chunk()
        offset_s, settled_call, put = source.offset_s, self._call, chunk.slots.append
        low, high, last_name, last_key = chunk.low, chunk.high, -1, (-1, -1)
        name: Known | None = None
        sums: list[int] = []
        for kind, fields, inner in slots:
            if kind == SETTLED:
                (_, _, _, flags, _, _, number, name_number, status, cache, _, _, _, _, _, _, saved, started, _,
                 _) = fields  # fmt: skip
                if name_number != last_name or name is None:
                    name = chunk.names[name_number] = known.get(name_number) or self.known(source, name_number)
                    last_name = name_number
                began = started + offset_s
                if not 0.0 <= began < TIME_MAX:
                    began = 0.0
                key = (int(began) // 3600, name.id)
                if key != last_key:
                    last_key = key
                    sums = hourly.get(key) or hourly.setdefault(key, [0] * len(SUMS))
                if flags & CALL:
                    settled_call(sums, fields, name)
                if 0 < saved <= COST_MAX:
                    sums[_SAVED] += saved
                    sums[_DIRECT] += saved
                if flags & REQUEST:
                    sums[_REQUESTS] += 1
                    if status >= 400 and not flags & ABSENT:
                        # A kept answer that was not there is a miss, and nobody's failure.
                        sums[_FAILED if status >= 500 else _CANCELLED if status == 499 else _REFUSED] += 1
                    if cache:
                        sums[_MISSES if cache == _MISS else _HITS] += 1
                put(inner)
                low = number if number < low else low
                high = number if number > high else high
            elif kind == REPEATED:
                (_, _, _, _, name_number, count, _, _, _, _, _, saved, number, started) = fields
                name = chunk.names[name_number] = known.get(name_number) or self.known(source, name_number)
                last_name = name_number
                began = started + offset_s
                if not 0.0 <= began < TIME_MAX:
                    began = 0.0
                last_key = key = (int(began) // 3600, name.id)
                sums = hourly.get(key) or hourly.setdefault(key, [0] * len(SUMS))
                sums[_REQUESTS] += count
                sums[_HITS] += count
                if 0 < saved <= COST_MAX:
                    sums[_SAVED] += saved * count
                    sums[_DIRECT] += saved * count
                chunk.repeated.append(inner)
                chunk.requests += count
                low = min(number, low)
                # They are in the order of their numbers.
                high = max(number + REPEATED_ENTRY.unpack_from(inner, _last_entry(count))[0], high)
            else:
                hear(source, fields, inner)
                self.known(source, fields)
        chunk.requests += len(chunk.slots)
        if chunk.requests:
            chunk.low, chunk.high = min(low, NUMBER_MAX), min(high, NUMBER_MAX)
            self.chunks[journal] = chunk
        self.cursors[journal] = cursor
        self.rows += len(slots)

    def look(self, source: Source, open_calls: dict[int, Intent], *, closely: bool, last: bool) -> None:
        """Add which calls of a journal are open. Most are over before the next look: only those that were open at
        the last one are listed, all when `closely`. One whose name is still to be read waits for that, unless this is
        the `last` look."""
        listed, heard, known = source.listed, source.heard, source.known
        new = {
            number: intent
            for number, intent in open_calls.items()
            if number not in listed
            and (closely or number in source.seen)
            and (last or intent[2] in known or intent[2] in heard)
        }
        source.seen = set(open_calls)
        if new:
            self.opened[source.id] = new
        self.closed += [(source.id, number) for number in listed - source.seen]

    def known(self, source: Source, number: int) -> Known:
        """A name that this batch has to enter; of one that nobody knows any more nothing can be said."""
        found = source.known.get(number) or self.learnt.get((source.id, number))
        if found is None:
            found = self.learnt[source.id, number] = self.names.of(source.heard.get(number) or Name())
        return found

    def unsettled(self, sources: Sequence[Source]) -> list[tuple[bytes, int, str, int, int, int, float]]:
        """Rows of calls that are open: journal, intent, prefix and number of the request, name, what was reserved in
        micro-dollars, Unix time. May learn of names: to be asked before those are written."""
        return [
            (
                source.id,
                min(number, SUM_MAX),
                source.prefix,
                min(request, NUMBER_MAX),
                self.known(source, name).id,
                reserved_micro,
                at if 0.0 <= (at := started + source.offset_s) < TIME_MAX else 0.0,
            )
            for source in sources
            for number, (_, request, name, reserved_micro, started, _) in self.opened.get(source.id, {}).items()
        ]

    @staticmethod
    def _call(sums: list[int], fields: Sequence[Any], name: Known) -> None:
        """Add a call to sums."""
        cost, source = cost_of(fields, name)
        _, _, _, flags, _, _, _, _, _, _, _, t_in, t_out, t_cached, t_reasoning, *_ = fields
        if t_in > COUNT_MAX or t_out > COUNT_MAX:
            t_in = t_out = t_cached = t_reasoning = 0
        sums[_CALLS] += 1
        sums[_IN] += t_in
        sums[_OUT] += t_out
        if t_cached or t_reasoning:
            sums[_CACHED] += t_cached
            sums[_REASONING] += t_reasoning
        sums[_PAID] += cost
        if source == LIST:
            sums[_PAID_LIST] += cost
        elif source == OWN_ESTIMATE:
            sums[_PAID_ESTIMATED] += cost
        elif source == UNKNOWN_COST:
            sums[_UNKNOWN] += 1
        if flags & ANSWERED:
            if name.direct_in is not None and name.direct_out is not None and (t_in or t_out):
                sums[_DIRECT] += round(min(t_in * name.direct_in + t_out * name.direct_out, COST_MAX))
            else:
                sums[_DIRECT] += cost

    def committed(self, sources: Sequence[Source]) -> None:
        """It is in the file: the journals may be told, and go on from here."""
        for source in sources:
            if source.id in self.cursors:
                source.cursor = self.cursors[source.id]
            source.listed |= self.opened.get(source.id, {}).keys()
            source.listed &= source.seen
        known = {source.id: source.known for source in sources}
        for (journal, number), one in self.learnt.items():
            known[journal][number] = one
            known[journal].pop(number - 2 * NAMES_MAX, None)
        self.names.fresh.clear()


def cost_of(fields: Sequence[Any], name: Known) -> tuple[int, int]:
    """What the call of a settlement (`journal.SETTLED_WHOLE`) cost in nano-dollars, and who says so (of SOURCES)."""
    flags, own, t_in, t_out = fields[3], fields[15], fields[11], fields[12]
    if 0 <= own <= COST_MAX:
        return own, PROVIDER
    if not flags & (ANSWERED | ESTIMATED):
        return 0, NO_COST
    price_in, price_out = name.price_in, name.price_out
    if price_in is None or price_out is None or not (t_in or t_out) or t_in > COUNT_MAX or t_out > COUNT_MAX:
        return 0, UNKNOWN_COST
    cost = t_in * price_in + t_out * price_out
    if not 0.0 <= cost <= COST_MAX:
        return 0, UNKNOWN_COST
    return round(cost), OWN_ESTIMATE if flags & ESTIMATED else LIST


def _last_entry(count: int) -> int:
    return REPEATED_SLOT.size + (count - 1) * REPEATED_ENTRY.size


def hear(source: Source, number: int, name: Name) -> None:
    """Remember what a NAME slot says, whether or not what follows gets into the file."""
    source.heard[number] = name
    source.heard.pop(number - 2 * NAMES_MAX, None)
