"""What an operator may see of a worker's state: a dict of JSON's types, made when it is asked for.

How a worker's account goes on to whoever shows it is no matter here; `control.together` puts those of several together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from dandolo.control import process
from dandolo.errors import GatewayError
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.explanation import routes
from dandolo.gateway.worker import Worker
from dandolo.net.sweep import PERIOD_S
from dandolo.route.queue import PRIORITIES

MODELS_MAX = 24
"""Of each account: those in trouble and in use. A worker with hundreds must not stop for milliseconds to tell them."""
_CLASSES = tuple(sorted(PRIORITIES, key=PRIORITIES.__getitem__))


class Seen:
    """The state of one worker. `probes` gives how the last probe of each account went. `beat` is called at each of
    the worker's own beats, `told` about once a second."""

    def __init__(self, worker: Worker, name: str, probes: Callable[[], Mapping[str, Any]]) -> None:
        self._worker = worker
        self._name = name
        self._probes = probes
        self._beat_at = 0.0
        self._late_s = 0.0
        self._cpu = time.process_time(), time.monotonic()

    def beat(self, now: float) -> None:
        """Monotonic seconds: how late this came is how late everything else did."""
        if self._beat_at:
            self._late_s = max(self._late_s, now - self._beat_at - PERIOD_S)
        self._beat_at = now

    def told(self, models: Iterable[str] = ()) -> dict[str, Any]:
        """Everything, and how candidates for `models` score."""
        return {
            "worker": self._process(),
            "load": _load(self._worker),
            "providers": self._providers(),
            "cache": _cache(self._worker),
            "keys": _keys(self._worker),
            "scores": {model: scores for model in models if (scores := self._scores(model)) is not None},
        }

    def _process(self) -> dict[str, Any]:
        late_s, self._late_s = self._late_s, 0.0
        before, since = self._cpu
        cpu, at = self._cpu = time.process_time(), time.monotonic()
        seen = {gauge.name: gauge.value for gauge in process.gauges()}
        return {
            "name": self._name,
            "pid": os.getpid(),
            "cpu": round((cpu - before) / max(1e-3, at - since), 3),
            "rss_bytes": seen.get("process_resident_memory_bytes"),
            "descriptors": seen.get("process_open_fds"),
            "lag_ms": round(late_s * 1e3, 1),
            "connections": self._worker.census.count,
            "requests": self._worker.gateway.requests,
        }

    def _providers(self) -> list[dict[str, Any]]:
        gateway = self._worker.gateway
        accounts: list[dict[str, Any]] = routes(gateway.plane, b"", gateway.now(), MODELS_MAX)["accounts"]
        probes = self._probes()
        for account in accounts:
            if (probe := probes.get(account["account"])) is not None:
                account["probe"] = probe
        return accounts

    def _scores(self, model: str) -> dict[str, Any] | None:
        gateway = self._worker.gateway
        try:
            return routes(gateway.plane, b"model=" + quote(model, safe="").encode(), gateway.now())
        except GatewayError:
            # Not a chat model, or one that was configured a minute ago.
            return None


def _load(worker: Worker) -> dict[str, Any]:
    gateway = worker.gateway
    waiting = [runtime.slots.waiting_by_class for runtime in gateway.plane.fleet]
    return {
        "in_flight": gateway.admission.in_flight,
        "streams": sum(map(_streams, gateway.sweep.items)),
        "connections": worker.census.count,
        "queue": {name: sum(one[index] for one in waiting) for index, name in enumerate(_CLASSES)},
        "draining": gateway.draining,
    }


def _streams(item: object) -> bool:
    """Whether it is a client's request for a stream. (Calls that several share are made by another kind.)"""
    return type(item) is Exchange and item.call is not None and item.call.stream


def _cache(worker: Worker) -> list[dict[str, Any]]:
    caching = worker.gateway.plane.caching
    if caching is None:
        return []
    stats = caching.memory.stats()
    told: list[dict[str, Any]] = [
        {
            "tier": "memory",
            "hits": stats.hits,
            "misses": stats.misses,
            "entries": stats.entries,
            "entries_max": stats.entries_max,
            "bytes": stats.bytes,
            "bytes_max": stats.bytes_max,
            "evicted": stats.evicted,
        }
    ]
    tiers = worker.gateway.tiers
    if tiers is None:
        return told
    for tier, name in (("l2", "redis"), ("l3", "disk")):
        state, counts = tiers.state(tier), tiers.counts
        if state is not None:
            told.append(
                {
                    "tier": name,
                    "hits": counts.hits.get(tier, 0),
                    "misses": counts.misses.get(tier, 0),
                    "state": "down" if not state.up else "in use" if state.closed else "open",
                }
            )
    return told


def _keys(worker: Worker) -> list[dict[str, Any]]:
    return [
        {
            "name": tenant.name,
            "priority": _CLASSES[tenant.priority],
            "concurrent": {"used": tenant.in_flight, "limit": tenant.in_flight_max},
        }
        for tenant in worker.gateway.admission.tenants
    ]
