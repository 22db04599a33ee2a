"""Spans and metrics as a collector gets them."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from collector import Collector, attributes

from dandolo.config.otel import Otel
from dandolo.config.secret import Secret
from dandolo.control.exposition import Gauge
from dandolo.control.metrics import Metrics
from dandolo.control.otlp import SPANS_MAX, Export, Otlp
from dandolo.control.otlp_export import Exporter
from dandolo.record import Record

PATIENCE_S = 20.0
TRACE, SPAN, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
CLIENT, SERVER, ERROR, UNSET = 3, 2, 2, 0


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "time": "2026-01-01T00:00:00.250Z",
        "id": "req_1",
        "status": 200,
        "method": "POST",
        "endpoint": "chat",
        "key": "ci",
        "model": "fast",
        "provider": "venice",
        "account": "venice/alice",
        "upstream_model": "llama",
        "stream": True,
        "attempts": 2,
        "finish": "stop",
        "input_tokens": 300,
        "output_tokens": 20,
        "cost_usd": 0.25,
        "duration_ms": 1500.0,
        "queue_ms": 2.0,
        "first_token_ms": 250.0,
        "overhead_ms": 0.12,
        "trace": f"00-{TRACE}-{SPAN}-01",
        "parent": CALLER,
    }
    return Record(**{**values, **changes})


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner() as runner:
        runner.run(main())


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)


def sending(collector: Collector, metrics: Metrics | None = None, **changes: Any) -> Otlp:
    settings = Otel(endpoint=collector.url, **{"timeout": 5.0, "metrics_interval": 60.0, **changes})

    def begin() -> Export:
        return Exporter(settings, {"service.instance.id": "edge-1"}, 1_764_000_000.0)

    gauges = [Gauge("dandolo_connections", 7), Gauge("dandolo_cache_hits_total", 3)]
    return Otlp(settings, lambda: (metrics or Metrics()).snapshots(gauges), begin)


def test_a_request_is_a_server_span_with_the_call_below_it() -> None:
    async def main() -> None:
        with Collector() as collector:
            otlp = sending(collector, secret=Secret("sesame"), secret_header="X-Team")
            otlp.take([record()], 1.0)
            otlp.tick(1.0)
            await until(lambda: collector.spans)
            server, client = collector.spans
            assert (server.kind, client.kind) == (SERVER, CLIENT)
            assert server.name == client.name == "chat fast"
            assert {server.trace_id.hex(), client.trace_id.hex()} == {TRACE}
            assert server.parent_span_id.hex() == CALLER
            assert client.parent_span_id == server.span_id
            # The provider was told the id of the call's own span.
            assert client.span_id.hex() == SPAN
            assert server.start_time_unix_nano == 1_767_225_600_250_000_000
            assert server.end_time_unix_nano - server.start_time_unix_nano == 1_500_000_000
            assert client.start_time_unix_nano - server.start_time_unix_nano == 2_000_000
            assert server.events[0].name == "dandolo.first_token"
            assert server.status.code == UNSET
            found = attributes(server)
            assert found["http.response.status_code"] == 200
            assert found["gen_ai.operation.name"] == "chat"
            assert found["gen_ai.usage.output_tokens"] == 20
            assert found["gen_ai.response.finish_reasons"] == ["stop"]
            assert found["dandolo.request.id"] == "req_1"
            assert "dandolo.cache" not in found
            assert attributes(client)["dandolo.account"] == "venice/alice"
            about = collector.resources[0]
            assert about["service.name"] == "dandolo"
            assert about["service.instance.id"] == "edge-1"
            assert collector.headers[0]["x-team"] == "sesame"
            await until(lambda: otlp.exported == 1)
            await otlp.close()

    run(main)


def test_what_no_provider_was_asked_for_has_one_span_and_failures_say_so() -> None:
    async def main() -> None:
        with Collector() as collector:
            otlp = sending(collector)
            hit = record(attempts=0, provider="", cache="hit", parent="")
            failed = record(status=502, code="upstream_unavailable")
            broken = record(code="upstream_stream_error")
            left = record(status=499, code="client_left")
            otlp.take([hit, failed, broken, left], 1.0)
            otlp.tick(1.0)
            await until(lambda: len(collector.spans) == 7)
            assert collector.spans[0].span_id.hex() == SPAN
            assert collector.spans[0].parent_span_id == b""
            assert [span.status.code for span in collector.spans[1::2]] == [ERROR, ERROR, UNSET]
            assert attributes(collector.spans[1])["error.type"] == "upstream_unavailable"
            await otlp.close()

    run(main)


def test_only_recorded_traces_are_sent() -> None:
    async def main() -> None:
        with Collector() as collector:
            otlp = sending(collector)
            otlp.take([record(trace=""), record(trace=f"00-{TRACE}-{SPAN}-00"), record()], 1.0)
            await otlp.close()
            assert len(collector.spans) == 2
            assert otlp.exported == 1

    run(main)


def test_metrics_have_opentelemetrys_names() -> None:
    async def main() -> None:
        with Collector() as collector:
            metrics = Metrics()
            for _ in range(3):
                metrics.take([record()])
            otlp = sending(collector, metrics, metrics_interval=1.0)
            for now in range(1, 4):
                otlp.tick(1_764_000_100.0 + now)
                await until(lambda: not otlp._busy)
            found = collector.metrics
            duration = found["gen_ai.client.operation.duration"]
            assert duration.unit == "s"
            (point,) = duration.histogram.data_points
            assert duration.histogram.aggregation_temporality == 2
            assert (point.count, point.sum) == (3, 4.5)
            assert sum(point.bucket_counts) == 3
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            assert point.start_time_unix_nano == 1_764_000_000_000_000_000
            expected = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "venice",
                "gen_ai.request.model": "fast",
            }
            assert attributes(point) == expected
            tokens = found["gen_ai.client.token.usage"]
            assert tokens.unit == "{token}"
            assert {attributes(one)["gen_ai.token.type"]: one.sum for one in tokens.histogram.data_points} == {
                "input": 900,
                "output": 60,
            }
            requests = found["dandolo.requests"].sum
            assert requests.is_monotonic
            assert requests.data_points[0].as_double == 3
            assert found["dandolo.connections"].gauge.data_points[0].as_double == 7
            assert found["dandolo.cache_hits"].sum.data_points[0].as_double == 3
            await otlp.close()

    run(main)


def test_a_collector_that_fails_is_said_once_and_costs_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dandolo")

    async def main() -> None:
        with Collector() as collector:
            collector.status = 400
            otlp = sending(collector)
            for number in range(1, 4):
                otlp.take([record()], 0.0)
                otlp.tick(10.0 * number)
                await until(lambda: otlp.failed == number)  # noqa: B023
            collector.status = 200
            otlp.take([record()], 0.0)
            otlp.tick(100.0)
            await until(lambda: otlp.exported == 1)
            gauges = {dict(one.labels)["outcome"]: one.value for one in otlp.gauges()}
            assert gauges == {"exported": 1, "failed": 3, "dropped": 0}
            await otlp.close()

    run(main)
    assert [one.levelname for one in caplog.records if "collector" in one.getMessage()] == ["WARNING", "INFO"]


def test_a_collector_that_hangs_holds_nothing_up() -> None:
    async def main() -> None:
        with Collector() as collector:
            collector.hangs.set()
            otlp = sending(collector, timeout=60.0)
            otlp.take([record()], 0.0)
            otlp.tick(1.0)
            await until(lambda: collector.headers)
            begun = time.monotonic()
            otlp.take([record()] * (SPANS_MAX + 5), 0.0)
            otlp.tick(3.0)
            assert otlp.dropped == 5
            await otlp.close()
            assert time.monotonic() - begun < 10.0
            assert otlp.dropped == SPANS_MAX + 5

    run(main)


def test_the_sdk_is_loaded_only_by_whoever_exports() -> None:
    program = (
        "import sys, dandolo.cli.service, dandolo.cli.telemetry, dandolo.control.otlp;"
        "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'requests', 'google')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
