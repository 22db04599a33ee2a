"""What was purged by name, and when: an answer as old as a purge that means it is not given again.

A purge costs the same however much it hits: only its time is noted. Because times are compared, a copy that comes back
later from another tier is caught as well. Bounded: forgetting a purge purges everything as old as it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, NamedTuple

from dandolo.cache.entry import Entry

PURGES_MAX = 4_096
"""Purged names remembered, hard and soft each; beyond that whatever is older than the oldest of them goes."""

Purged = Literal["tag", "scope", "model", "class"]
PURGED: tuple[Purged, ...] = ("tag", "scope", "model", "class")

NEVER = float("-inf")


class Latest(NamedTuple):
    """When an answer was last purged, hard and soft; NEVER when it was not."""

    hard: float
    soft: float


class Purges:
    """When what was purged last. Times are those of the entries."""

    __slots__ = ("_hard", "_hard_all", "_soft", "_soft_all")

    def __init__(self) -> None:
        self._hard: OrderedDict[tuple[Purged, str], float] = OrderedDict()
        self._soft: OrderedDict[tuple[Purged, str], float] = OrderedDict()
        self._hard_all = NEVER
        self._soft_all = NEVER

    def add(self, name: tuple[Purged, str], now: float, *, soft: bool) -> None:
        """Purge what carries a name and was made until `now`."""
        table = self._soft if soft else self._hard
        table[name] = max(now, table.pop(name, NEVER))
        if len(table) > PURGES_MAX:
            self.add_all(table.popitem(last=False)[1], soft=soft)

    def add_all(self, now: float, *, soft: bool) -> None:
        """Purge everything that was made until `now`."""
        if soft:
            self._soft_all = max(now, self._soft_all)
        else:
            self._hard_all = max(now, self._hard_all)

    def latest(self, entry: Entry, scope: str) -> Latest:
        """The last hard and the last soft purge that meant an entry."""
        hard, soft = self._hard_all, self._soft_all
        if self._hard or self._soft:
            names: list[tuple[Purged, str]] = [("tag", tag) for tag in entry.tags]
            names += (("scope", scope), ("model", entry.model), ("class", entry.kind.name))
            for name in names:
                hard = max(hard, self._hard.get(name, NEVER))
                soft = max(soft, self._soft.get(name, NEVER))
        return Latest(hard, soft)
