"""What peers need of the process they are in, and what they tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dandolo.cache.generations import Purge
from dandolo.cache.peers.frames import Value
from dandolo.cache.peers.session import Outlet


class Home(Protocol):
    """The cache of this process, as peers meet it. Nothing here may raise."""

    def value(self, key: bytes) -> Value | None:
        """The answer under a key, if it may leave this process and is not too long."""

    def take(self, key: bytes, value: Value) -> None:
        """An answer from elsewhere, to be checked and kept."""

    def leading(self, key: bytes) -> bool:
        """Whether a call of this key is made here, or about to be."""

    def following(self, key: bytes) -> str:
        """The name of who makes it, where it is followed here; "" otherwise."""

    def join(self, key: bytes, outlet: Outlet) -> bool:
        """Let the outlet hear the call; False when none is made here. Must not tell it anything if so."""

    def purge_from(self, purge: Purge) -> None:
        """Others have purged this."""

    def flush(self) -> None:
        """Purges may have been missed: drop everything."""


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    asked: int = 0
    hits: int = 0
    grants: int = 0
    waits: int = 0
    without: int = 0
    """Questions that nobody answered in time."""
    served: int = 0
    pushed: int = 0
    purges: int = 0
    flushes: int = 0
    refused: int = 0
    """Connections that were dialled to us and not let in."""


@dataclass(frozen=True, slots=True)
class PeerHealth:
    """One address of the configuration."""

    address: str
    name: str
    up: bool
    breaker: str
    connects: int
    timeouts: int
    reason: str
