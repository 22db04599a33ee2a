"""The metrics page in OpenMetrics' form, read back by prometheus-client's strict parser, and who gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_plain

from dandolo.control.basic import basic_routes
from dandolo.control.exposition import Gauge, _bound, wants_openmetrics
from dandolo.control.families import GAUGES
from dandolo.control.metrics import Metrics
from dandolo.control.route import Answer, Asked
from dandolo.record import Record

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "time": "2026-01-01T00:00:00.250Z",
        "id": "req_1",
        "status": 200,
        "method": "POST",
        "endpoint": "chat",
        "model": 'lla"ma\\\n',
        "provider": "venice",
        "stream": True,
        "attempts": 1,
        "input_tokens": 300_000_000,
        "output_tokens": 3,
        "duration_ms": 1500.0,
        "first_token_ms": 250.0,
        "overhead_ms": 0.12,
        "trace": f"00-{TRACE}-{SPAN}-01",
    }
    return Record(**{**values, **changes})


def filled() -> Metrics:
    metrics = Metrics()
    metrics.take([record()])
    metrics.take([record(status=502, code="upstream_unavailable", trace="")])
    return metrics


def every_gauge() -> list[Gauge]:
    """One sample of each gauge that there may be; a name without description is one that nobody told us of."""
    return [
        *(Gauge(name, 1, (("account", "a"),)) for name in GAUGES if not name.startswith("process_")),
        Gauge("new", 2),
    ]


def test_the_page_is_read_by_the_strict_parser() -> None:
    page = filled().text(every_gauge(), openmetrics=True).decode()
    assert page.endswith("# EOF\n")
    families = {family.name: family for family in read_open(page)}
    assert families["dandolo_requests"].type == "counter"
    assert families["dandolo_cache_hits"].type == "counter"
    assert families["new"].type == "unknown"
    assert families["gen_ai_client_token_usage"].type == "histogram"
    # The same numbers as in the plain form.
    plain = {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in read_plain(filled().text(every_gauge()).decode())
        for one in family.samples
        if "le" not in one.labels and not one.name.startswith("process_")
    }
    opened = {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families.values()
        for one in family.samples
        if "le" not in one.labels and not one.name.startswith("process_")
    }
    assert opened == plain


def test_buckets_name_the_newest_trace_that_fell_into_them() -> None:
    metrics = filled()
    metrics.take([record(trace=f"00-{'a' * 32}-{SPAN}-01", duration_ms=1400.0)])
    metrics.take([record(trace=f"00-{'b' * 32}-{SPAN}-00", duration_ms=1450.0)])
    families = {family.name: family for family in read_open(metrics.text(openmetrics=True).decode())}
    found = {
        (family.name, one.labels["le"]): one.exemplar
        for family in families.values()
        for one in family.samples
        if one.exemplar is not None
    }
    duration = found["gen_ai_client_operation_duration_seconds", "2.56"]
    assert duration.labels == {"trace_id": "a" * 32, "span_id": SPAN}
    assert duration.value == 1.4
    assert float(duration.timestamp) == 1_767_225_600.25
    assert found["gen_ai_client_operation_time_to_first_chunk_seconds", "0.32"].value == 0.25
    assert len(found) == 2
    # The plain form has none: its parsers would take one for an error.
    assert b"trace_id" not in metrics.text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.0"),
        (0.25, "0.25"),
        (0.00005, "5e-05"),
        (262144, "262144.0"),
        (1048576, "1.048576e+06"),
        (16777216, "1.6777216e+07"),
        (20000000, "2.0e+07"),
    ],
)
def test_bounds_are_written_as_go_does(value: float, text: str) -> None:
    assert _bound(value) == text


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/plain", False),
        (b"application/openmetrics-text", True),
        (b"application/openmetrics-text; version=1.0.0", True),
        # Prometheus 2.50
        (
            b"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            b"text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        (b"text/plain;q=0.9, application/openmetrics-text;q=0.5", False),
        (b"application/openmetrics-text;q=0", False),
        (b"application/openmetrics-text;q=high", False),
        (b",;,q=1;;" * 1000, False),
    ],
)
def test_who_gets_it(accept: bytes, wanted: bool) -> None:
    assert wants_openmetrics(accept) == wanted
    routes = basic_routes(
        metrics_text=lambda: b"plain",
        openmetrics_text=lambda: b"open",
        ready=lambda: (True, ""),
        routes=lambda query: None,
    )
    (route,) = [one for one in routes if one.path == b"/metrics"]

    async def ask() -> Answer:
        answer = route.handle(Asked("GET", b"/metrics", b"", b"", "", b"", accept))
        assert isinstance(answer, Awaitable)
        return await answer

    answer = asyncio.run(ask())
    assert answer.body == (b"open" if wanted else b"plain")
    assert answer.kind.startswith(b"application/openmetrics-text; version=1.0.0" if wanted else b"text/plain")
