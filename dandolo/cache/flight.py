"""Single flight: identical requests that are under way at one time share one call to a provider.

A `Flight` is that call as others see it: the pieces of its answer so far, and its end. Whoever joins late is given
the pieces from the start and then those that come, at its own pace; the leader is nobody's client, so that no
follower's leaving harms the others. Decisions only: it keeps and tells, the gateway asks and sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from dandolo.cache.entry import Entry

FLIGHTS_MAX = 4096
"""Flights at one time; beyond, a request flies alone."""
PIECES_BYTES_MAX = 4 * 1024 * 1024
"""A longer answer is not shared with anybody who joins later: its pieces are kept for those who are there."""

H = TypeVar("H")


class Follower(Protocol):
    """Whoever waits for a flight."""

    @property
    def place(self) -> int:
        """How many pieces it has taken."""

    def moved(self) -> None:
        """There is a head, another piece, or the end."""


class Row(Protocol):
    """Whoever hands pieces on to several followers together."""

    def moved(self) -> None:
        """There is another piece."""


class Leading(Protocol):
    """Whoever makes the call of a flight."""

    def left(self) -> None:
        """Nobody follows any more."""

    def let_go(self) -> None:
        """The flight has landed, and nobody waits to be told of it."""


class Lone(Protocol):
    """Who makes a call of its own under a key, and would let others have its answer."""

    def joined(self, flight: Flight[Any]) -> None:
        """Somebody asks the same: `flight.leader` is to be set, and the answer told there."""


class Flight(Generic[H]):
    """One call under way. `head` is set when its answer has begun, `error` when it failed.

    `pieces` are in order; a follower keeps its own place in them. `landed`: nothing more will come.
    """

    __slots__ = (
        "_apart", "_followers", "_trimmed", "bytes", "entry", "error", "head", "kept", "key", "landed", "leader",
        "paid", "pieces", "rows", "unwanted", "whole",
    )  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.head: H | None = None
        self.error: BaseException | None = None
        self.pieces: list[bytes] = []
        self.bytes = 0
        self.landed = False
        self.leader: Leading | None = None
        """Whoever makes the call."""
        self.whole: bytes | None = None
        """The answer as one plain body, when it has landed and could be made one."""
        self.kept: object | None = None
        """An answer that was found after all, for everybody who waits."""
        self.entry: Entry | None = None
        """The answer as it is kept, when it has landed and is."""
        self.unwanted = False
        """It was purged meanwhile: its answer is not to be kept."""
        self.paid = False
        """Whether its cost is on somebody's record."""
        self.rows: list[Row] = []
        """Whoever is told of pieces in the stead of followers (`join_row`)."""
        self._trimmed = 0
        # In the order in which they came; those apart are told of pieces one by one.
        self._followers: dict[Follower, None] = {}
        self._apart: dict[Follower, None] = {}

    @property
    def followers(self) -> int:
        """How many wait."""
        return len(self._followers)

    @property
    def open(self) -> bool:
        """Whether somebody may still join: it has not ended and is not too long to be kept."""
        return not self.landed and self.bytes <= PIECES_BYTES_MAX

    def join(self, follower: Follower) -> None:
        """Wait for it too. The follower looks at once at what is there."""
        self._followers[follower] = None
        self._apart[follower] = None

    def join_row(self, follower: Follower) -> None:
        """One of `rows` hands it what comes: it is told of the end only, until `leave_row`."""
        self._apart.pop(follower, None)

    def leave_row(self, follower: Follower) -> None:
        """It goes at its own pace again."""
        if follower in self._followers:
            self._apart[follower] = None

    def leave(self, follower: Follower) -> bool:
        """Wait no longer. True when nobody is left, and the call is of no use to anybody who is here."""
        self._followers.pop(follower, None)
        self._apart.pop(follower, None)
        self.let_go()
        return not self._followers

    def let_go(self) -> None:
        """Forget who made the call and who told of it, once it has landed and nobody waits: each knows the other."""
        if not self.landed or self._followers:
            return
        self.rows.clear()
        leader = self.leader
        if leader is not None:
            self.leader = None
            leader.let_go()

    def begin(self, head: H) -> None:
        """Its answer has begun."""
        self.head = head
        self._tell()

    def add(self, piece: bytes) -> None:
        """Another piece of its answer."""
        self.pieces.append(piece)
        self.bytes += len(piece)
        for row in self.rows:
            row.moved()
        if self._apart:
            for follower in tuple(self._apart):
                follower.moved()

    def trim(self) -> int:
        """Let go of pieces that everybody has, but the last; how many bytes the slowest is behind."""
        slowest = min((follower.place for follower in self._followers), default=len(self.pieces))
        # The last one tells whether the answer broke off within an event.
        unneeded = min(slowest, len(self.pieces) - 1)
        for index in range(self._trimmed, unneeded):
            self.pieces[index] = b""
        self._trimmed = max(self._trimmed, unneeded)
        return sum(map(len, self.pieces[slowest:]))

    def find(self, kept: object) -> None:
        """An answer was found that may be given to everybody; whether the call is made all the same is not said."""
        self.kept = kept
        self._tell()

    def land(self, error: BaseException | None = None) -> None:
        """Its answer is complete, or with `error` has failed."""
        if self.landed:
            return
        self.landed = True
        self.error = error
        self._tell()

    def _tell(self) -> None:
        # A follower that is told may leave, or let another join.
        for follower in tuple(self._followers):
            follower.moved()


class Flights(Generic[H]):
    """The flights of one worker, by key."""

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[H] | Lone] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def find(self, key: bytes) -> Flight[H] | None:
        """The flight of a key, if it can still be joined."""
        flight = self._flights.get(key)
        if flight is None:
            return None
        if not isinstance(flight, Flight):
            lone = flight
            flight = self._flights[key] = Flight(key)
            lone.joined(flight)
        return flight if flight.open else None

    def free(self, key: bytes) -> bool:
        """Whether a call may `lead`: there is none under its key, and not too many."""
        return key not in self._flights and len(self._flights) < FLIGHTS_MAX

    def lead(self, key: bytes, lone: Lone) -> None:
        """Make a call under a key for oneself, until somebody joins. `leave` or `end` must follow."""
        self._flights[key] = lone

    def leave(self, key: bytes, lone: Lone) -> None:
        """Such a call is over, and nobody has joined."""
        if self._flights.get(key) is lone:
            del self._flights[key]

    def start(self, key: bytes) -> Flight[H] | None:
        """A new flight, registered before anything is awaited; None when there are too many.

        It takes the place of one that cannot be joined any more. `end` must follow.
        """
        if len(self._flights) >= FLIGHTS_MAX:
            return None
        flight: Flight[H] = Flight(key)
        self._flights[key] = flight
        return flight

    def end(self, flight: Flight[H]) -> None:
        """Nobody is to find it any more."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
