"""Who makes the call of which key, as the keys' owner knows it. Pure: time is an argument, seconds of one clock.

A lease ends when its holder says so or goes, or after LEASE_S without a renewal. Whoever asks meanwhile is told the
holder; whoever could not do with that holder gets a lease of his own, once: those who come after him are sent to him.
That is what bounds the calls of one key to two when somebody dies in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LEASE_S: Final = 5.0
RENEW_S: Final = 1.0
LEASES_MAX: Final = 4096


class Leases:
    """The table. At most LEASES_MAX; beyond, those who ask are told to do without (`ask` gives None)."""

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[bytes, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def ask(self, key: bytes, asker: str, without: str, now: float) -> str | None:
        """Whom to wait for: `asker` means that he got the lease, None that there is no room."""
        held = self._holders.get(key)
        if held is not None:
            holder, until = held
            if holder not in (asker, without) and now < until:
                return holder
        elif len(self._holders) >= LEASES_MAX:
            self._expire(now)
            if len(self._holders) >= LEASES_MAX:
                return None
        self._holders[key] = asker, now + LEASE_S
        return asker

    def renew(self, keys: Iterable[bytes], holder: str, now: float) -> None:
        """The holder still makes these calls. Whoever lost a lease meanwhile does not get it back."""
        for key in keys:
            held = self._holders.get(key)
            if held is not None and held[0] == holder:
                self._holders[key] = holder, now + LEASE_S

    def release(self, key: bytes, holder: str) -> None:
        """The call is over."""
        held = self._holders.get(key)
        if held is not None and held[0] == holder:
            del self._holders[key]

    def drop(self, holder: str) -> None:
        """The holder is gone."""
        for key in [key for key, held in self._holders.items() if held[0] == holder]:
            del self._holders[key]

    def _expire(self, now: float) -> None:
        for key in [key for key, held in self._holders.items() if now >= held[1]]:
            del self._holders[key]
