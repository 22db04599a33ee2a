"""The cache of this worker as its peers meet it, and the way of its calls to them (`cache.peers`).

What may not leave this process never does: answers of a key in privacy mode, calls that are to be in memory only.
What comes from a peer is checked as what comes from any other tier: a record that is not whole, or another key's, is
nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.cache.entry import Entry, decode, encode
from dandolo.cache.generations import Purge
from dandolo.cache.peers.frames import RECORD_BYTES_MAX, Value
from dandolo.cache.peers.mesh import Peers
from dandolo.cache.peers.place import Membership
from dandolo.cache.peers.session import Outlet
from dandolo.gateway.keeping import STEADY_OFFSET_S
from dandolo.gateway.making import Leader
from dandolo.gateway.seeking import Seeking

if TYPE_CHECKING:
    from dandolo.gateway.gateway import Gateway
    from dandolo.gateway.looking import Looking

_now = time.monotonic


class Sharing:
    """One worker's part in a cache that several share (a `cache.peers.home.Home`)."""

    def __init__(self, gateway: Gateway, membership: Membership, secret: bytes) -> None:
        """Opens the listening sockets. Raises OSError."""
        self._gateway = gateway
        self._seeking: dict[bytes, Seeking | Looking] = {}
        self.peers = Peers(membership, secret, self)

    def start(self) -> None:
        """Listen and connect, on the running loop."""
        self.peers.start()

    async def close(self) -> None:
        """End all connections."""
        await self.peers.close()

    # -- for calls made here ---------------------------------------------------------------------------

    def concerns(self, leader: Leader) -> bool:
        """Whether a call is anybody else's business."""
        permission, caching = leader.plan.permission, leader.detached.plane.caching
        return (
            permission.lookup
            and not permission.memory_only
            and caching is not None
            and caching.may_leave(permission.scope)
        )

    def seek(self, leader: Leader, without: str) -> None:
        """Look for the answer among the peers, or for leave to make the call; `leader.make` may follow.

        `without`: a peer that is of no use.
        """
        seeking = leader.seeking = Seeking(leader, self)
        permission = leader.plan.permission
        if permission.coalesces() and not permission.only_if_cached:
            self._seeking[leader.plan.key] = seeking
        seeking.begin(without)

    def register(self, looking: Looking) -> None:
        """A call made the short way looks for its answer here; `forget` must follow."""
        self._seeking[looking.key] = looking

    def value_of(self, entry: Entry, scope: str) -> Value | None:
        """An answer as peers may have it."""
        caching = self._gateway.plane.caching
        if caching is None or not caching.may_leave(scope):
            return None
        try:
            # Deflating takes milliseconds of the loop, which no network between peers is slow enough to pay for.
            record = encode(entry, deflates=False)
        except ValueError:
            return None
        return Value(record, scope) if len(record) <= RECORD_BYTES_MAX else None

    def forget(self, seeking: Seeking | Looking) -> None:
        """It is over."""
        if self._seeking.get(seeking.key) is seeking:
            del self._seeking[seeking.key]

    # -- for peers -------------------------------------------------------------------------------------

    def value(self, key: bytes) -> Value | None:
        """The answer under a key."""
        caching = self._gateway.plane.caching
        if caching is None:
            return None
        if caching.drafts and key in caching.drafts:
            caching.settle()
        if key not in caching.memory:
            return None
        kept = caching.memory.get(key, _now() + STEADY_OFFSET_S)
        if kept is None:
            return None
        return self.value_of(kept.entry, kept.scope)

    def take(self, key: bytes, value: Value) -> None:
        """An answer from elsewhere."""
        caching = self._gateway.plane.caching
        if caching is None or not caching.may_leave(value.scope):
            return
        entry = decode(value.record, key)
        if entry is not None:
            caching.take(entry, value.scope, _now())

    def leading(self, key: bytes) -> bool:
        """Whether a call of this key is made here, or about to be."""
        seeking = self._seeking.get(key)
        return seeking is not None and seeking.leads

    def following(self, key: bytes) -> str:
        """Who makes it, where it is followed here."""
        seeking = self._seeking.get(key)
        return "" if seeking is None else seeking.holder

    def join(self, key: bytes, outlet: Outlet) -> bool:
        """Let another process follow the call made here."""
        seeking = self._seeking.get(key)
        return seeking is not None and seeking.join(outlet)

    def purge_from(self, purge: Purge) -> None:
        """Others have purged this."""
        self._gateway.store.purged_by_peer(purge)

    def flush(self) -> None:
        """Purges may have been missed."""
        self._gateway.store.purged_by_peer(("all", "", False))
