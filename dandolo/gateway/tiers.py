"""The cache's tiers as one worker has them: made from the configuration, in front of them the memory of the plane."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dandolo.cache.entry import Entry
from dandolo.cache.generations import Kind, Purge
from dandolo.cache.key import KEY_BYTES
from dandolo.cache.purges import NEVER, PURGED, Latest, Purged
from dandolo.config.schema import Config
from dandolo.gateway.keeping import STEADY_OFFSET_S

if TYPE_CHECKING:
    from dandolo.cache.redis.servers import Concerned
    from dandolo.cache.tiers import Tiers
    from dandolo.gateway.gateway import Gateway

FILE = "cache.db"


def steady() -> float:
    """Unix time in seconds that no correction of the clock moves."""
    return time.monotonic() + STEADY_OFFSET_S


def file_of(state_dir: Path, slot: int) -> Path:
    """Where a worker keeps its file: one process has one open at a time."""
    return state_dir / (FILE if not slot else f"cache-{slot}.db")


class Store:
    """The memory of whichever plane is at work, for the tiers behind it (`cache.tiers.Host`); purges through all."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def purged(self, entry: Entry, scope: str) -> Latest:
        """When an entry was last purged."""
        caching = self._gateway.plane.caching
        return Latest(NEVER, NEVER) if caching is None else caching.memory.purges.latest(entry, scope)

    def dropped(self, keys: list[bytes]) -> None:
        """Others have changed these keys."""
        caching = self._gateway.plane.caching
        if caching is not None:
            for key in keys:
                caching.memory.delete(key)

    def lost_track(self, concerned: Concerned) -> None:
        """Changes may have gone untold."""
        caching = self._gateway.plane.caching
        if caching is not None:
            caching.memory.delete_where(concerned)

    def purged_elsewhere(self, kind: str, name: str, at: float, soft: bool) -> None:
        """Another process has purged."""
        self.forget(kind, name, at, soft=soft)

    def forget(self, kind: str, name: str, at: float, *, soft: bool) -> None:
        """Purge memory, at once."""
        caching = self._gateway.plane.caching
        if caching is None:
            return
        caching.settle()
        caching.refusals.clear()
        self._gateway.repeats.clear()
        if kind == "all":
            caching.memory.purge_all(at, soft=soft)
            return
        known: Purged
        for known in PURGED:
            if kind == known:
                caching.memory.purge(known, name, at, soft=soft)

    async def purge(self, kind: Kind, name: str, *, soft: bool) -> dict[str, Any]:
        """Purge every tier; what was done, and what could not be. Raises ValueError for a key that is none."""
        gateway, at = self._gateway, steady()
        failed: list[str] = []
        found = False
        if kind == "key":
            found = self._forget_key(name, at, soft=soft)
            failed += self._tell_peers(kind, name, soft)
        else:
            self.forget(kind, name, at, soft=soft)
            failed += self._tell_peers(kind, name, soft)
            if gateway.tiers is not None:
                failed += await gateway.tiers.purge(kind, name, at, soft=soft)
        return {"found": found, "failed": failed}

    def purged_by_peer(self, purge: Purge) -> None:
        """A process that shares the cache has purged: memory at once, the file behind it soon. Redis was told there."""
        kind, name, soft = purge
        gateway = self._gateway
        if kind == "key":
            with contextlib.suppress(ValueError):
                self._forget_key(name, steady(), soft=soft)
            return
        self.forget(kind, name, steady(), soft=soft)
        if gateway.tiers is not None:
            gateway.tasks.spawn(gateway.tiers.purge_disk(cast("Kind", kind), name, soft=soft), "purge of a peer")

    def _forget_key(self, name: str, at: float, *, soft: bool) -> bool:
        """Purge one answer; whether memory had it. Raises ValueError for a key that is none."""
        gateway = self._gateway
        key = bytes.fromhex(name)
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES * 2} hexadecimal digits")
        flight = gateway.flights.find(key)
        if flight is not None:
            # What was asked before is answered to those who asked, and not kept.
            flight.unwanted = True
            gateway.flights.end(flight)
        gateway.repeats.clear()
        found = False
        if gateway.plane.caching is not None:
            gateway.plane.caching.refusals.clear()
            gateway.plane.caching.settle()
            found = gateway.plane.caching.memory.purge_key(key, at, soft=soft)
        if gateway.tiers is not None:
            # Beyond memory a soft purge of one key is a hard one: there is nothing that would renew it there.
            gateway.tiers.forget(key)
        return found

    def _tell_peers(self, kind: str, name: str, soft: bool) -> list[str]:
        """Tell all that share the cache; who could not be told now."""
        sharing = self._gateway.sharing
        if sharing is None:
            return []
        sharing.peers.purge((kind, name, soft))
        return [
            f"the peer at {one.address} is not connected: it hears of this when it is"
            for one in sharing.peers.health()
            if not one.up
        ]


def tiers_of(config: Config, store: Store, slot: int) -> Tiers | None:
    """The tiers that are configured beyond memory, None for none. Raises OSError for a CA bundle that is unreadable."""
    cache = config.cache
    if not {"redis", "sqlite"} & set(cache.levels):
        return None
    # What most do without is loaded only where it is wanted: the start and the memory of all others are none the worse.
    from dandolo.cache.tiers import Tiers

    tiers = Tiers(store, steady)
    if "redis" in cache.levels:
        from dandolo.cache.redis.tier import RedisTier
        from dandolo.config.redisurl import parse_redis_url

        url = parse_redis_url(cache.redis.url.reveal())
        tiers.add_redis(lambda tracker, belongs: RedisTier(url, ca=cache.redis.ca, tracker=tracker, belongs=belongs))
    if "sqlite" in cache.levels:
        from dandolo.cache.sqlite import BYTES_MIN, Sqlite

        workers = config.server.workers if isinstance(config.server.workers, int) else 1
        bytes_max = max(BYTES_MIN, cache.sqlite.bytes_max // workers)
        tiers.add_disk(Sqlite(file_of(config.server.state_dir, slot), bytes_max, clock=steady))
    return tiers
