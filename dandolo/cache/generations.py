"""Purges in constant time: counters that make what is older than a purge invalid.

Every entry is born with the current generation. A purge of a tag, scope, model, class or of everything counts
on by one and notes the new number under that name; an entry is dead when a name of its own carries a
number above its birth. Nothing needs to be found or deleted for that; the file catches up at leisure. A soft
purge makes entries stale instead of dead. What is noted is bounded: where there would be too many names, all
of the cache is purged, because forgetting too much is always right and forgetting a purge never is.

Not thread-safe for changes: whoever changes it from two threads holds a lock of his own. Looking is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["key", "tag", "model", "scope", "class", "all"]
KINDS: tuple[Kind, ...] = ("key", "tag", "model", "scope", "class", "all")

NAMES_MAX = 4096
"""Purged names noted at a time, of each: hard, soft, and keys to be deleted."""

Name = tuple[str, str]
"""A kind and a name; of "key" the key in hexadecimal, of "all" the empty text."""
Purge = tuple[str, str, bool]
"""A kind, a name, and whether it is soft."""
EVERYTHING: Name = ("all", "")


@dataclass(frozen=True, slots=True)
class Marks:
    """What an entry can be purged by, beside its key."""

    scope: str = ""
    model: str = ""
    ttl_class: str = ""
    tags: tuple[str, ...] = ()

    def names(self) -> Iterator[Name]:
        """All names whose purge concerns the entry."""
        yield EVERYTHING
        yield "scope", self.scope
        yield "model", self.model
        yield "class", self.ttl_class
        for tag in self.tags:
            yield "tag", tag


class Generations:
    """The current generation and what was purged in which.

    `hard` and `soft` map names to generations, `deletes` keys. `unsaved` are those of the first two that no file
    knows of yet. `forgotten` counts names and keys dropped because their entries are
    gone: whoever reads an entry first and asks here later must read again when it has moved.
    """

    __slots__ = ("current", "deletes", "forgotten", "hard", "soft", "unsaved")

    def __init__(self) -> None:
        self.current = 1
        self.forgotten = 0
        self.hard: dict[Name, int] = {}
        self.soft: dict[Name, int] = {}
        self.deletes: dict[bytes, int] = {}
        self.unsaved: dict[Purge, int] = {}

    def purge(self, kind: Kind, name: str = "", *, soft: bool = False) -> None:
        """Let what carries the name and is older than now be dead, or stale when `soft`."""
        assert soft or kind != "key", "keys are deleted by `delete`"
        self.current += 1
        noted = self.soft if soft else self.hard
        at: Name = (kind, "" if kind == "all" else name)
        if at not in noted and len(noted) >= NAMES_MAX:
            at = EVERYTHING
        # The new before the old are dropped: somebody may be looking.
        noted[at] = self.current
        self.unsaved[(*at, soft)] = self.current
        if at == EVERYTHING:
            for other in [other for other in noted if other != EVERYTHING]:
                del noted[other]
                self.unsaved.pop((*other, soft), None)

    def delete(self, keys: Iterable[bytes]) -> None:
        """Let what is stored under these keys now be dead."""
        self.current += 1
        for key in keys:
            if key not in self.deletes and len(self.deletes) >= NAMES_MAX:
                self.purge("all")
                self.deletes.clear()
                return
            self.deletes[key] = self.current

    def dead(self, key: bytes, born: int, marks: Marks) -> bool:
        """Whether an entry born in that generation must not be seen any more."""
        if self.deletes and self.deletes.get(key, 0) > born:
            return True
        return bool(self.hard) and self.dead_by_name(born, marks)

    def dead_by_name(self, born: int, marks: Marks) -> bool:
        """The same, leaving keys out: their deletion is somebody else's."""
        return any(self.hard.get(name, 0) > born for name in marks.names())

    def stale(self, key: bytes, born: int, marks: Marks) -> bool:
        """Whether a soft purge came after it was born."""
        soft = self.soft
        if not soft:
            return False
        return soft.get(("key", key.hex()), 0) > born or any(soft.get(name, 0) > born for name in marks.names())

    def rebase(self, current: int, stored: Mapping[Purge, int]) -> None:
        """Go on from where a file stopped: its generations come before all of ours.

        Whoever holds entries born here raises their births by the same number, `current`.
        """
        self.current += current
        for noted in (self.hard, self.soft):
            for name in noted:
                noted[name] += current
        for key in self.deletes:
            self.deletes[key] += current
        for purge in self.unsaved:
            self.unsaved[purge] += current
        for (kind, text, soft), number in stored.items():
            (self.soft if soft else self.hard).setdefault((kind, text), number)

    def deleted(self, before: int) -> None:
        """Drop the keys whose entries are gone: numbers up to `before`."""
        for key in [key for key, number in self.deletes.items() if number <= before]:
            del self.deletes[key]
            self.forgotten += 1

    def settled(self, before: int, *, soft: bool) -> None:
        """Drop the names that no entry is older than any more: numbers up to `before`."""
        noted = self.soft if soft else self.hard
        for name in [name for name, number in noted.items() if number <= before]:
            del noted[name]
            self.forgotten += 1
            self.unsaved.pop((*name, soft), None)
