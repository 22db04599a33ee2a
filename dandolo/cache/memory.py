"""L1: answers in this worker's memory, ready to be written. Synchronous, without lock, await or clock of its own.

S3-FIFO (Yang, Qiu, Zhang, Yue, Rashmi, *FIFO queues are all you need for cache eviction*, SOSP 2023): what is new
waits in a small queue, a tenth of the whole; what was asked for at least once meanwhile moves to the main queue,
the rest leaves, and its key is remembered by a ghost as long as main. A key that comes back while it is a ghost
enters main at once. Main is a FIFO, too, whose entries go round again as often as they were asked for, three times at
most. One-off prompts, nearly half of all, thus never displace what is asked again (`bench/cache/results/memory.md`).
The paper asks for two requests before main; `uses_min` says how many here.

A purge by tag, scope, model or class costs the same however much it hits: its time is noted and one counter
raised, and an entry proves itself anew when it is next asked for. Because times are compared, a copy that comes
back later from another tier is caught as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from dandolo.api.endpoints import Endpoint
from dandolo.api.usage import Usage
from dandolo.cache.entry import Entry
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.policy import Permission
from dandolo.cache.purges import Purged, Purges
from dandolo.cache.replay import Replay

ENTRIES_MAX = 1_000
BYTES_MAX = 64 * 1024 * 1024
SHARE_MAX = 20
"""No object over a twentieth of the bytes: a few of them would displace everything."""
SMALL_SHARE = 10
"""The small queue is a tenth of the whole."""
FREQUENCY_MAX = 3
USES_MIN = 1
"""Uses that take an entry from the small queue to main."""
ENTRY_BYTES = 600
"""What an entry costs beside its head and body: objects, their fields, places in two tables (462 measured), tags."""


NO_ENTRY = Entry(
    key=b"", created=0.0, expires=0.0, stale_until=0.0, kind=TtlClass.OTHER, status=200, model="", usage=None,
    cost_usd=None, gen_ms=0, tags=(), body=b"",
)  # fmt: skip
"""Stands where an entry will be once its draft is judged."""
UNJUDGED = -1
"""The generation of what is a draft: never the present one, so that whoever looks at it judges it first."""


class Draft(msgspec.Struct, gc=False, frozen=True):
    """A plain answer that is judged, and its lifetime worked out, when it is first asked for: most never are.

    `made_at` is the caller's clock, `asked_at` the memory's: a purge since then means it. The request is kept whole, so
    that none is made for keys in privacy mode.
    """

    endpoint: Endpoint
    raw: bytes
    model: str
    body: bytes
    permission: Permission
    usage: Usage | None
    provider: bytes
    tags: tuple[str, ...]
    made_at: float
    asked_at: float


class Kept(msgspec.Struct, gc=False, eq=False):
    """An entry as L1 holds it. `head` are the header lines that do not vary, `entry.body` what follows them.

    `entry` is not there while there is a `draft`. `replay` are its events, once somebody asked for a stream of
    them (`attach`).
    """

    key: bytes
    entry: Entry
    head: bytes
    scope: str
    created: float
    expires: float
    generation: int
    size: int
    draft: Draft | None = None
    frequency: int = 0
    in_main: bool = False
    replay: Replay | None = None

    def fresh(self, now: float) -> bool:
        """Whether it may be given without further ado. A soft purge ends this before the entry says so."""
        return now < self.expires


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Counts since the start, and sizes now.

    `hits_at_double` estimates the hits that twice the size would have given: those there were, and misses of
    keys that had been displaced lately.
    """

    entries: int
    bytes: int
    entries_max: int
    bytes_max: int
    hits: int
    misses: int
    expired: int
    purged: int
    evicted: int
    refused: int
    hits_at_double: int

    @property
    def hit_rate(self) -> float:
        """Hits per lookup, 0 … 1."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def hit_rate_at_double(self) -> float:
        """The estimate for twice the size, 0 … 1."""
        return self.hits_at_double / max(1, self.hits + self.misses)


class Memory:
    """The first tier. Times are seconds of one steady clock, the one of the entries' own times."""

    __slots__ = (
        "_bytes_max", "_displaced", "_entries_max", "_evicted", "_expired", "_generation", "_ghost", "_hits", "_kept",
        "_main", "_misses", "_nearly", "_purged", "_refused", "_small", "_small_bytes", "_uses_min", "bytes",
        "judge", "purges",
    )  # fmt: skip

    def __init__(self, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX, uses_min: int = USES_MIN) -> None:
        if entries_max < 1 or bytes_max < 1:
            raise ValueError("a memory tier holds at least one entry and one byte")
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._uses_min = uses_min
        self._kept: dict[bytes, Kept] = {}
        self._small: OrderedDict[bytes, Kept] = OrderedDict()
        self._main: OrderedDict[bytes, Kept] = OrderedDict()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()
        # What left main: no ghost of the algorithm, only of the estimate.
        self._displaced: OrderedDict[bytes, None] = OrderedDict()
        self.purges = Purges()
        self.judge: Callable[[Draft, bytes], tuple[Entry, bytes] | None] = lambda draft, key: None
        """Makes an entry and its head of a draft that stands under a key; None when it is not fit to be given."""
        self._generation = 0
        self.bytes = 0
        self._small_bytes = 0
        self._hits = self._misses = self._expired = self._purged = self._evicted = self._refused = self._nearly = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def holds(self, kept: Kept) -> bool:
        """Whether this very answer is kept now."""
        return self._kept.get(kept.key) is kept

    def get(self, key: bytes, now: float) -> Kept | None:
        """The fresh answer under `key`. Never one that has expired or was purged."""
        kept = self._kept.get(key)
        if kept is not None:
            if now < kept.expires and kept.generation == self._generation:
                if kept.frequency < FREQUENCY_MAX:
                    kept.frequency += 1
                self._hits += 1
                return kept
            return self._doubtful(kept, now)
        self._misses += 1
        if key in self._ghost or key in self._displaced:
            self._nearly += 1
        return None

    def stale(self, key: bytes, now: float, *, for_error: bool = False) -> Kept | None:
        """What is left under `key` though it may have expired: to be given while it is fetched anew.

        With `for_error`: to be given since it cannot be fetched. Counts neither as hit nor as miss.
        """
        kept = self._kept.get(key)
        if kept is None or not self._proven(kept):
            return None
        until = kept.entry.usable_until if for_error else kept.entry.stale_until
        return kept if now < until else None

    def put(self, entry: Entry, head: bytes, scope: str, now: float, asked_at: float | None = None) -> bool:
        """Keep an answer; whether it is kept. What was under its key goes in either case.

        Not kept: what is too large, has expired, or was purged since it was asked for (`asked_at`; left out: since it
        was made). No other than this call makes room, and it returns with both caps kept.
        """
        kept = self._made(entry, head, scope)
        purged_at, softly_at = self.purges.latest(kept.entry, kept.scope)
        since = kept.created if asked_at is None else asked_at
        if softly_at >= since:
            kept.expires = min(kept.expires, softly_at)
        if kept.size * SHARE_MAX > self._bytes_max or purged_at >= since or now >= entry.usable_until:
            self._refused += 1
            self.delete(entry.key)
            return False
        self._place(kept)
        return entry.key in self._kept

    def _made(self, entry: Entry, head: bytes, scope: str) -> Kept:
        size = len(head) + len(entry.body) + ENTRY_BYTES
        return Kept(entry.key, entry, head, scope, entry.created, entry.expires, self._generation, size)

    def _place(self, kept: Kept) -> None:
        key = kept.key
        old = self._kept.get(key)
        if old is not None:
            self._remove(old)
            kept.frequency, kept.in_main = old.frequency, old.in_main
        elif key in self._ghost:
            del self._ghost[key]
            kept.in_main = True
        if kept.in_main:
            self._main[key] = kept
        else:
            self._small[key] = kept
            self._small_bytes += kept.size
        if self._displaced:
            self._displaced.pop(key, None)
        self._kept[key] = kept
        self.bytes += kept.size
        while len(self._kept) > self._entries_max or self.bytes > self._bytes_max:
            self._evict()

    def put_draft(self, draft: Draft, key: bytes, scope: str, size: int, now: float) -> None:
        """Keep an answer of `size` bytes, with all that it takes to judge it, which happens when it is asked for."""
        if size * SHARE_MAX > self._bytes_max:
            self._refused += 1
            self.delete(key)
            return
        self._place(Kept(key, NO_ENTRY, b"", scope, now, now, UNJUDGED, size + ENTRY_BYTES, draft))

    def promote(self, entry: Entry, head: bytes, scope: str, now: float) -> Kept | None:
        """An answer of another tier as it may be given, kept here if there is room; None: it was purged, or is over."""
        purged_at, softly_at = self.purges.latest(entry, scope)
        if purged_at >= entry.created or now >= entry.usable_until:
            return None
        if self.put(entry, head, scope, now):
            return self._kept[entry.key]
        kept = self._made(entry, head, scope)
        if softly_at >= entry.created:
            kept.expires = min(kept.expires, softly_at)
        return kept

    def attach(self, kept: Kept, replay: Replay) -> None:
        """Keep the events made of an answer beside it; others make room for them."""
        if kept.replay is None and self._kept.get(kept.key) is kept:
            kept.replay = replay
            kept.size += replay.size
            self.bytes += replay.size
            if not kept.in_main:
                self._small_bytes += replay.size
            while self.bytes > self._bytes_max:
                self._evict()

    def delete(self, key: bytes) -> bool:
        """Forget one answer; whether there was one."""
        kept = self._kept.get(key)
        if kept is None:
            return False
        self._remove(kept)
        return True

    def delete_where(self, concerned: Callable[[bytes], bool]) -> None:
        """Forget every answer for whose key `concerned` is true."""
        for kept in [kept for key, kept in self._kept.items() if concerned(key)]:
            self._remove(kept)

    def drop_drafts(self) -> None:
        """Forget what has not been judged, and with it the requests that are kept for that."""
        for kept in [kept for kept in self._kept.values() if kept.draft is not None]:
            self._remove(kept)

    # -- purging -----------------------------------------------------------------------------------------------

    def purge_key(self, key: bytes, now: float, *, soft: bool = False) -> bool:
        """Forget one answer, or for a soft purge let it expire now; whether there was one."""
        kept = self._kept.get(key)
        if kept is None or not soft or kept.draft is not None:
            return self.delete(key)
        kept.expires = min(kept.expires, now)
        return True

    def purge(self, what: Purged, name: str, now: float, *, soft: bool = False) -> None:
        """Forget all answers of a tag, scope, model or class (its name, say "QUESTION") that were made until `now`."""
        self.purges.add((what, name), now, soft=soft)
        self._generation += 1

    def purge_all(self, now: float, *, soft: bool = False) -> None:
        """Forget everything made until `now`, wherever it may come back from."""
        self.purges.add_all(now, soft=soft)
        self._generation += 1
        if not soft:
            self._purged += len(self._kept)
            for table in (self._kept, self._small, self._main, self._ghost, self._displaced):
                table.clear()
            self.bytes = self._small_bytes = 0

    # -- telling -----------------------------------------------------------------------------------------------

    def hottest(self, count: int) -> Iterator[Kept]:
        """Up to `count` entries of the main queue, the youngest first: what is worth handing on."""
        for _, kept in zip(range(count), reversed(self._main.values()), strict=False):
            if kept.draft is None:
                yield kept

    def stats(self) -> MemoryStats:
        """Counts and sizes. Purged entries that nobody has asked for since are still in the sizes."""
        return MemoryStats(
            entries=len(self._kept),
            bytes=self.bytes,
            entries_max=self._entries_max,
            bytes_max=self._bytes_max,
            hits=self._hits,
            misses=self._misses,
            expired=self._expired,
            purged=self._purged,
            evicted=self._evicted,
            refused=self._refused,
            hits_at_double=self._hits + self._nearly,
        )

    # -- within ------------------------------------------------------------------------------------------------

    def _doubtful(self, kept: Kept, now: float) -> Kept | None:
        """A hit that has expired, or that must prove that no purge since it was last asked for meant it."""
        if self._proven(kept):
            if now < kept.expires:
                return self.get(kept.key, now)
            if now >= kept.entry.usable_until:
                self._remove(kept)
            self._expired += 1
        self._misses += 1
        return None

    def _proven(self, kept: Kept) -> bool:
        """Whether no hard purge meant this entry; otherwise it is removed. Applies soft ones."""
        if kept.generation == self._generation:
            return True
        since = kept.created
        if kept.draft is not None:
            since = kept.draft.asked_at
            if not self._judge(kept, kept.draft):
                return False
        purged_at, softly_at = self.purges.latest(kept.entry, kept.scope)
        if purged_at >= since:
            self._remove(kept)
            self._purged += 1
            return False
        if softly_at >= since:
            kept.expires = min(kept.expires, softly_at)
        kept.generation = self._generation
        return True

    def _judge(self, kept: Kept, draft: Draft) -> bool:
        """Make an entry of a draft; whether it is one. What it took to judge it is let go of."""
        judged = self.judge(draft, kept.key)
        if judged is None:
            self._remove(kept)
            self._refused += 1
            return False
        kept.draft = None
        kept.entry, kept.head = judged
        kept.expires = kept.entry.expires
        grown = len(kept.head) + len(kept.entry.body) + ENTRY_BYTES - kept.size
        kept.size += grown
        self.bytes += grown
        if not kept.in_main:
            self._small_bytes += grown
        return True

    def _remove(self, kept: Kept) -> None:
        del self._kept[kept.key]
        self.bytes -= kept.size
        if kept.in_main:
            del self._main[kept.key]
        else:
            del self._small[kept.key]
            self._small_bytes -= kept.size

    def _evict(self) -> None:
        """Make one step: an entry leaves, or moves on from small to main. Main's rounds end, since each costs a use."""
        small = self._small
        if small and (
            not self._main
            or len(small) * SMALL_SHARE > self._entries_max
            or self._small_bytes * SMALL_SHARE > self._bytes_max
        ):
            key, kept = small.popitem(last=False)
            self._small_bytes -= kept.size
            if kept.frequency >= self._uses_min:
                kept.frequency = 0
                kept.in_main = True
                self._main[key] = kept
                return
            self._ghost[key] = None
            if len(self._ghost) > self._entries_max - self._entries_max // SMALL_SHARE:
                self._ghost.popitem(last=False)
        else:
            while True:
                key, kept = self._main.popitem(last=False)
                if not kept.frequency:
                    break
                kept.frequency -= 1
                self._main[key] = kept
            self._displaced[key] = None
            if len(self._displaced) > self._entries_max:
                self._displaced.popitem(last=False)
        del self._kept[key]
        self.bytes -= kept.size
        self._evicted += 1
