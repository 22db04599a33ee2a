"""Rivals for the memory tier, each in its plainest form: hits of a trace at a given number of entries."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Sequence

from dandolo.cache.entry import Entry
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.memory import Memory, MemoryStats


def lru(keys: Sequence[int], size: int) -> int:
    """Least recently used goes first."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
            continue
        kept[key] = None
        if len(kept) > size:
            kept.popitem(last=False)
    return hits


def sieve(keys: Sequence[int], size: int) -> int:
    """SIEVE (Zhang, Yang, Yue, Vigfusson, Rashmi, NSDI 2024): one queue, a hand that spares what was visited."""
    # A linked list by hand: older and younger neighbour of each key.
    older: dict[int, int] = {}
    younger: dict[int, int] = {}
    visited: dict[int, bool] = {}
    head = tail = hand = -1
    hits = 0
    for key in keys:
        if key in visited:
            hits += 1
            visited[key] = True
            continue
        if len(visited) >= size:
            at = hand if hand != -1 else tail
            while visited[at]:
                visited[at] = False
                at = younger[at] if younger[at] != -1 else tail
            hand = younger[at]
            before, after = older.pop(at), younger.pop(at)
            del visited[at]
            if before != -1:
                younger[before] = after
            else:
                tail = after
            if after != -1:
                older[after] = before
            else:
                head = before
        visited[key] = False
        older[key], younger[key] = head, -1
        if head != -1:
            younger[head] = key
        else:
            tail = key
        head = key
    return hits


def belady(keys: Sequence[int], size: int) -> int:
    """What is asked for furthest in the future goes first (it may be the newcomer): no policy can do better."""
    never = len(keys)
    following = [never] * len(keys)
    seen: dict[int, int] = {}
    for at in range(len(keys) - 1, -1, -1):
        following[at] = seen.get(keys[at], never)
        seen[keys[at]] = at
    kept: dict[int, int] = {}
    furthest: list[tuple[int, int]] = []
    hits = 0
    for at, key in enumerate(keys):
        hits += key in kept
        kept[key] = following[at]
        heapq.heappush(furthest, (-following[at], key))
        while len(kept) > size:
            when, key = heapq.heappop(furthest)
            if kept.get(key) == -when:
                del kept[key]
    return hits


def s3_fifo(keys: Sequence[int], size: int) -> MemoryStats:
    """Dandolo's own tier, as it runs."""
    memory = Memory(size, 1 << 40)
    get, put = memory.get, memory.put
    for number in keys:
        key = number.to_bytes(20, "big")
        if get(key, 1.0) is None:
            put(entry(key), b"", "key:bench", 1.0)
    return memory.stats()


def entry(key: bytes, body: bytes = b"{}") -> Entry:
    """An answer that lives long enough for a bench."""
    return Entry(
        key=key,
        created=0.0,
        expires=1e6,
        stale_until=1.1e6,
        kind=TtlClass.QUESTION,
        status=200,
        model="m",
        usage=None,
        cost_usd=None,
        gen_ms=0,
        tags=(),
        body=body,
    )


RIVALS: dict[str, Callable[[Sequence[int], int], int]] = {"LRU": lru, "SIEVE": sieve, "Belady": belady}
