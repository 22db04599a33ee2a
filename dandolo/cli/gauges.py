"""The state of a worker as gauges, read when somebody asks for metrics."""

from __future__ import annotations

from collections.abc import Iterator

from dandolo.control.exposition import Gauge
from dandolo.gateway.worker import Worker

_STATES = {"closed": 0, "half-open": 1, "open": 2}


def gauges(worker: Worker) -> Iterator[Gauge]:
    """Connections, requests and their bodies, the cache; for each account its slots, idle connections and breakers."""
    yield Gauge("dandolo_connections", worker.census.count)
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
    for runtime in worker.gateway.plane.fleet:
        account = (("account", runtime.account.label),)
        yield Gauge("dandolo_slots_in_use", runtime.slots.in_use, account)
        yield Gauge("dandolo_slots_limit", runtime.slots.limit, account)
        yield Gauge("dandolo_slots_waiting", runtime.slots.waiting, account)
        yield Gauge("dandolo_idle_connections", len(runtime.pool), account)
        for model, candidate in runtime.candidates.items():
            if candidate.breaker is not None:
                yield Gauge("dandolo_breaker_state", _STATES[candidate.breaker.state], (*account, ("model", model)))
