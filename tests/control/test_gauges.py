"""Gauges of several workers as those of one gateway; counters that never fall."""

from __future__ import annotations

from dandolo.control.child import Sample
from dandolo.control.gauges import Gauges

A = (("account", "a"),)


def together(gauges: Gauges) -> dict[str, float]:
    return {one.name: one.value for one in gauges.together()}


def test_numbers_are_added_up_and_of_states_the_worst_counts() -> None:
    gauges = Gauges()
    gauges.report(1, [Sample("dandolo_connections", 3, ()), Sample("dandolo_breaker_state", 0, A)])
    gauges.report(2, [Sample("dandolo_connections", 4, ()), Sample("dandolo_breaker_state", 2, A)])
    assert together(gauges) == {"dandolo_connections": 7, "dandolo_breaker_state": 2}
    gauges.report(2, [Sample("dandolo_probe_well", 1, A)])
    gauges.report(3, [Sample("dandolo_probe_well", 0, A)])
    assert together(gauges)["dandolo_probe_well"] == 0


def test_what_a_worker_counted_stays_and_what_it_had_goes() -> None:
    gauges = Gauges()
    gauges.report(1, [Sample("dandolo_cache_hits_total", 5, ()), Sample("dandolo_connections", 3, ())])
    gauges.gone(1)
    assert together(gauges) == {"dandolo_cache_hits_total": 5}
    gauges.report(2, [Sample("dandolo_cache_hits_total", 2, ())])
    assert together(gauges) == {"dandolo_cache_hits_total": 7}
    gauges.gone(2)
    gauges.gone(2)
    assert together(gauges) == {"dandolo_cache_hits_total": 7}
