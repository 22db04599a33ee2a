"""The commands of the tier on their way: what each asks for, and what its outcome means.

A command hears its outcome in the call that read it from the socket, answers a redirection by sending itself
again, and ends by telling the batch it belongs to. A reply of a type that its command cannot have means that
replies and commands are out of step: the connection is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final, Generic, TypeAlias, TypeVar

from dandolo.cache.redis.connection import Command, Failure, Outcome
from dandolo.cache.redis.servers import Servers
from dandolo.wire.resp import ErrorReply

REDIRECTS_MAX: Final = 3
"""Hops of one command: to the new owner, on to one that is taking over (ASK), and once more for a map that moves."""

_CANNOT_SERVE: Final = frozenset((b"LOADING", b"CLUSTERDOWN", b"MASTERDOWN", b"TRYAGAIN", b"BUSY", b"NOAUTH"))

T = TypeVar("T")


@dataclass(slots=True)
class Counts:
    """What happened, since the start."""

    gets: int = 0
    hits: int = 0
    misses: int = 0
    """The server had nothing. All else that is not a hit is counted below."""
    puts: int = 0
    """Stored."""
    puts_failed: int = 0
    oversize: int = 0
    """Not stored, because of their size."""
    deletes: int = 0
    down: int = 0
    bypassed: int = 0
    """The breaker was open."""
    overflows: int = 0
    timeouts: int = 0
    lost: int = 0
    errors: int = 0
    """Error replies other than redirections."""
    redirects: int = 0
    foreign: int = 0
    """Values that another key's GET should have brought."""
    nonsense: int = 0
    """Replies of a type that their command cannot have."""
    invalidations: int = 0
    gaps: int = 0

    def copied(self) -> Counts:
        """As it is now."""
        return Counts(*(getattr(self, one.name) for one in fields(self)))

    def failed(self, failure: Failure) -> None:
        """Count why there was no reply."""
        if failure is Failure.DOWN:
            self.down += 1
        elif failure is Failure.OPEN:
            self.bypassed += 1
        elif failure is Failure.BUSY:
            self.overflows += 1
        elif failure is Failure.TIMEOUT:
            self.timeouts += 1
        else:
            self.lost += 1


To: TypeAlias = Callable[[list[T]], None] | asyncio.Future[list[T]]
"""Who is told results."""


def _tell(to: To[T], results: list[T]) -> None:
    if isinstance(to, asyncio.Future):
        # Done already when the task that waited was cancelled.
        if not to.done():
            to.set_result(results)
    else:
        to(results)


class Batch(Generic[T]):
    """Commands that belong together: their results in order, told once all are there."""

    __slots__ = ("_left", "_results", "_to")

    def __init__(self, results: list[T], to: To[T]) -> None:
        self._results = results
        self._left = len(results)
        self._to = to

    def ended(self, index: int, result: T) -> None:
        """One has come to its end."""
        self._results[index] = result
        self._left -= 1
        if not self._left:
            _tell(self._to, self._results)


class Context:
    """What all commands of a tier share."""

    __slots__ = ("belongs", "counts", "distrusted", "remove", "servers")

    def __init__(
        self,
        servers: Servers,
        counts: Counts,
        belongs: Callable[[bytes, bytes], bool] | None,
        distrusted: Callable[[bytes], None],
        remove: Callable[[bytes], None],
    ) -> None:
        self.servers = servers
        self.counts = counts
        self.belongs = belongs
        self.distrusted = distrusted
        """Told of a key to remove once there is another connection."""
        self.remove = remove
        """Told of a key to remove now."""

    def declined(self, command: Command, error: ErrorReply, key: bytes, hops: int) -> bool:
        """Handle an error reply. True: the command was redirected, is in flight again and will hear another."""
        code = error.code
        taker = command.taker
        if code in (b"MOVED", b"ASK"):
            if hops < REDIRECTS_MAX:
                self.counts.redirects += 1
                failure = self.servers.redirected(command, error)
                if failure is None:
                    return True
                self.counts.failed(failure)
                return False
            self.counts.errors += 1
            return False
        self.counts.errors += 1
        if taker is None:
            return False
        if code in _CANNOT_SERVE:
            taker.failed()
        elif code == b"READONLY":
            # A failover: the name may lead to the new master.
            taker.drop("it has become a replica")
        elif code == b"WRONGTYPE":
            self.remove(key)
        return False


class Get(Command):
    """GET: the value, or None for a miss of any cause. `batch` None: it is the only one, and `to` is told itself."""

    __slots__ = ("_batch", "_context", "_hops", "_index", "_to", "key")

    def __init__(
        self,
        data: bytes,
        deadline: float,
        context: Context,
        key: bytes,
        to: To[bytes | None],
        batch: Batch[bytes | None] | None = None,
        index: int = 0,
    ) -> None:
        # Written out: this is made for every look-up.
        self.data = data
        self.deadline = deadline
        self.abandoned = False
        self.taker = None
        self.key = key
        self._context = context
        self._to = to
        self._batch = batch
        self._index = index
        self._hops = 0

    def hear(self, outcome: Outcome) -> None:
        """From the connection."""
        context = self._context
        value = None
        if type(outcome) is bytes:
            if context.belongs is None or context.belongs(self.key, outcome):
                context.counts.hits += 1
                value = outcome
            else:
                context.counts.foreign += 1
                context.distrusted(self.key)
                self._drop("a value came that belongs to another key")
        elif outcome is None:
            context.counts.misses += 1
        elif type(outcome) is ErrorReply:
            if context.declined(self, outcome, self.key, self._hops):
                self._hops += 1
                return
        elif type(outcome) is Failure:
            context.counts.failed(outcome)
        else:
            context.counts.nonsense += 1
            self._drop("a reply came that no GET has")
        self.ended(value)

    def ended(self, value: bytes | None) -> None:
        """Its result is known."""
        if self._batch is not None:
            self._batch.ended(self._index, value)
        else:
            _tell(self._to, [value])

    def _drop(self, reason: str) -> None:
        if self.taker is not None:
            self.taker.drop(reason)


class Write(Command):
    """SET or UNLINK. Its result is how many keys the server says it wrote or removed: 0 or 1."""

    __slots__ = ("_batch", "_context", "_hops", "_index", "_removes", "key")

    def __init__(
        self, data: bytes, deadline: float, context: Context, batch: Batch[int], index: int, key: bytes, removes: bool
    ) -> None:
        super().__init__(data, deadline)
        self.key = key
        self._context = context
        self._batch = batch
        self._index = index
        self._hops = 0
        self._removes = removes

    def hear(self, outcome: Outcome) -> None:
        """From the connection."""
        context = self._context
        result = 0
        if self._removes and type(outcome) is int:
            result = min(1, max(0, outcome))
        elif not self._removes and outcome == b"OK":
            result = 1
        elif type(outcome) is ErrorReply:
            if context.declined(self, outcome, self.key, self._hops):
                self._hops += 1
                return
        elif type(outcome) is Failure:
            context.counts.failed(outcome)
        else:
            context.counts.nonsense += 1
            if self.taker is not None:
                self.taker.drop(f"a reply came that no {'UNLINK' if self._removes else 'SET'} has")
        self._batch.ended(self._index, result)
