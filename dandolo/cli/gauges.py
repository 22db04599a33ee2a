"""The state of a worker as gauges, read when somebody asks for metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dandolo.control.exposition import Gauge
from dandolo.gateway.worker import Worker

if TYPE_CHECKING:
    from dandolo.cache.tiers import Tiers
    from dandolo.gateway.sharing import Sharing

_STATES = {"closed": 0, "half-open": 1, "open": 2}


def _tiers(tiers: Tiers) -> Iterator[Gauge]:
    yield Gauge("dandolo_cache_writes_waiting", tiers.waiting)
    yield Gauge("dandolo_cache_writes_dropped_total", tiers.counts.dropped)
    for tier in ("l2", "l3"):
        state = tiers.state(tier)
        if state is not None:
            label = (("tier", tier),)
            yield Gauge("dandolo_cache_tier_up", state.up, label)
            yield Gauge("dandolo_cache_tier_breaker_open", not state.closed, label)
            yield Gauge("dandolo_cache_tier_hits_total", tiers.counts.hits.get(tier, 0), label)
            yield Gauge("dandolo_cache_tier_misses_total", tiers.counts.misses.get(tier, 0), label)
            yield Gauge("dandolo_cache_tier_corrupt_total", tiers.counts.corrupt.get(tier, 0), label)


def _peers(sharing: Sharing) -> Iterator[Gauge]:
    counts, health = sharing.peers.counts, sharing.peers.health()
    yield Gauge("dandolo_cache_peers", len(health))
    yield Gauge("dandolo_cache_peers_up", sum(one.up and one.breaker == "closed" for one in health))
    yield Gauge("dandolo_cache_peer_questions_total", counts.asked)
    yield Gauge("dandolo_cache_peer_hits_total", counts.hits)
    yield Gauge("dandolo_cache_peer_follows_total", counts.waits)
    yield Gauge("dandolo_cache_peer_unanswered_total", counts.without)
    yield Gauge("dandolo_cache_peer_served_total", counts.served)
    yield Gauge("dandolo_cache_peer_flushes_total", counts.flushes)


def gauges(worker: Worker) -> Iterator[Gauge]:
    """Connections, requests and their bodies, the cache; for each account its slots, idle connections and breakers."""
    yield Gauge("dandolo_connections", worker.census.count)
    yield Gauge("dandolo_tasks", len(asyncio.all_tasks()))
    yield Gauge("dandolo_requests_in_flight", worker.gateway.admission.in_flight)
    yield Gauge("dandolo_request_body_bytes", worker.gateway.admission.body_bytes)
    yield Gauge("dandolo_flights", len(worker.gateway.flights))
    caching = worker.gateway.plane.caching
    if caching is not None:
        stats = caching.memory.stats()
        yield Gauge("dandolo_cache_entries", stats.entries)
        yield Gauge("dandolo_cache_bytes", stats.bytes)
        yield Gauge("dandolo_cache_hits_total", stats.hits)
        yield Gauge("dandolo_cache_misses_total", stats.misses)
        yield Gauge("dandolo_cache_evicted_total", stats.evicted)
        yield Gauge("dandolo_cache_hit_rate_at_double", stats.hit_rate_at_double)
        yield Gauge("dandolo_cache_repeats", len(worker.gateway.repeats.slots))
        yield Gauge("dandolo_cache_refusals", len(caching.refusals))
    if worker.gateway.tiers is not None:
        yield from _tiers(worker.gateway.tiers)
    if worker.gateway.sharing is not None:
        yield from _peers(worker.gateway.sharing)
    for runtime in worker.gateway.plane.fleet:
        account = (("account", runtime.account.label),)
        yield Gauge("dandolo_slots_in_use", runtime.slots.in_use, account)
        yield Gauge("dandolo_slots_limit", runtime.slots.limit, account)
        yield Gauge("dandolo_slots_waiting", runtime.slots.waiting, account)
        yield Gauge("dandolo_idle_connections", len(runtime.pool), account)
        for model, candidate in runtime.candidates.items():
            if candidate.breaker is not None:
                yield Gauge("dandolo_breaker_state", _STATES[candidate.breaker.state], (*account, ("model", model)))
