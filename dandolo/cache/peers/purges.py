"""Purges on their way to everybody: numbered by whoever began them, so that one that was missed is noticed. Pure.

Each process numbers its own purges from 1 and remembers the last ones. On every new connection it says which it
has and repeats them; who hears them passes over those he knows. Where some are missing that are not remembered any
more, all of the cache is dropped: forgetting too much is always right, forgetting a purge never is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, get_args

from dandolo.cache.generations import Kind, Purge
from dandolo.cache.peers.frames import Inv, Sync

REMEMBERED_MAX: Final = 256
ORIGINS_MAX: Final = 1024
KINDS: Final = frozenset(get_args(Kind))


class Journal:
    """The purges that began here."""

    __slots__ = ("_last", "_sequence")

    def __init__(self) -> None:
        self._sequence = 0
        self._last: deque[Inv] = deque(maxlen=REMEMBERED_MAX)

    def add(self, purge: Purge) -> Inv:
        """The frame that tells a new one."""
        self._sequence += 1
        what, name, soft = purge
        inv = Inv(0, self._sequence, what, name, soft)
        self._last.append(inv)
        return inv

    def story(self) -> Iterator[Sync | Inv]:
        """What to say on a new connection."""
        yield Sync(0, self._sequence - len(self._last) + 1, self._sequence)
        yield from self._last


class Heard:
    """The purges of others, by the life of a process (`instance`) that they began in."""

    __slots__ = ("_doubted", "_last", "_names")

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._names: dict[str, bytes] = {}
        self._doubted: set[str] = set()

    def sync(self, name: str, instance: bytes, first: int, last: int) -> bool:
        """A connection begins and `first` … `last` follow. True: something was missed, drop everything."""
        missed = name in self._doubted and self._names.get(name) != instance
        self._doubted.discard(name)
        self._note(name, instance, self._last.get(instance, 0))
        if self._last[instance] + 1 < first:
            self._last[instance] = first - 1
            missed = True
        return missed

    def heard(self, instance: bytes, sequence: int) -> tuple[bool, bool]:
        """A purge has come: whether it is new, and whether some before it were missed."""
        last = self._last.get(instance, 0)
        if sequence <= last:
            return False, False
        self._last[instance] = sequence
        return True, sequence > last + 1

    def silent(self, name: str) -> None:
        """A connection was given up without the other having closed it: it may have said things we never heard."""
        if len(self._doubted) >= ORIGINS_MAX:
            self._doubted.clear()
            # Whoever comes next is not known any more, and has to begin from 1.
            self._last.clear()
        self._doubted.add(name)

    def _note(self, name: str, instance: bytes, last: int) -> None:
        self._last[instance] = last
        self._last.move_to_end(instance)
        self._names[name] = instance
        while len(self._last) > ORIGINS_MAX:
            self._last.popitem(last=False)
        while len(self._names) > ORIGINS_MAX:
            del self._names[next(iter(self._names))]
