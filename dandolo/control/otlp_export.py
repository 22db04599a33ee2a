"""Records as spans, counts as metrics, both sent by OpenTelemetry's own exporters. Needs the extra `otel`.

A request is a server span, with the caller's span as its parent; below it, where a provider was asked, a client span
whose id is the one that the provider was told. Names follow OpenTelemetry's conventions for HTTP and generative AI;
what has none there is `dandolo.*`. No text of a request or an answer is in a span.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    DataPointT,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from dandolo import __version__
from dandolo.config.otel import Otel
from dandolo.control.metrics import OPERATIONS, Snapshot
from dandolo.record import Record
from dandolo.stats import Histogram as Counted

BATCH_MAX = 512
"""Requests in one message."""
_UNITS = {"_seconds": "s", "_bytes": "By", "_usd": "{USD}"}
_GEN_AI = {
    "gen_ai_client_operation_duration_seconds": "gen_ai.client.operation.duration",
    "gen_ai_client_operation_time_to_first_chunk_seconds": "gen_ai.client.operation.time_to_first_chunk",
    "gen_ai_client_token_usage": "gen_ai.client.token.usage",
    "gen_ai_operation_name": "gen_ai.operation.name",
    "gen_ai_provider_name": "gen_ai.provider.name",
    "gen_ai_request_model": "gen_ai.request.model",
    "gen_ai_token_type": "gen_ai.token.type",
    "error_type": "error.type",
}
_SCOPE = InstrumentationScope("dandolo", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Exporter:
    """Sends spans and metrics to one collector; for one thread. `about` are attributes of the resource."""

    def __init__(self, settings: Otel, about: Mapping[str, str], started: float) -> None:
        assert settings.endpoint is not None
        # The exporters say each failure at length, with tracebacks; ours says it once (`Otlp`).
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        headers = {settings.secret_header.lower(): settings.secret.reveal()} if settings.secret is not None else {}
        bundle = str(settings.ca) if settings.ca is not None else None
        timeout_s = settings.timeout
        self._spans = OTLPSpanExporter(f"{settings.endpoint}/v1/traces", bundle, headers=headers, timeout=timeout_s)
        self._metrics = OTLPMetricExporter(
            f"{settings.endpoint}/v1/metrics", bundle, headers=headers, timeout=timeout_s
        )
        self._resource = Resource.create({"service.name": "dandolo", "service.version": __version__, **about})
        self._started_ns = int(started * 1e9)

    def spans(self, records: Sequence[Record]) -> bool:
        """Send the spans of requests. False when the collector did not take all of them."""
        taken = True
        for begin in range(0, len(records), BATCH_MAX):
            spans = [span for record in records[begin : begin + BATCH_MAX] for span in self._of(record)]
            taken = self._spans.export(spans) is SpanExportResult.SUCCESS and taken
        return taken

    def metrics(self, snapshots: Sequence[Snapshot], now: float) -> bool:
        """Send what was counted since the start, as of `now` (Unix seconds)."""
        metrics = [_metric(one, self._started_ns, int(now * 1e9)) for one in snapshots]
        data = MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])
        return self._metrics.export(data) is MetricExportResult.SUCCESS

    def close(self) -> None:
        """Give up what is being tried."""
        self._spans.shutdown()  # type: ignore[no-untyped-call]
        self._metrics.shutdown()

    def _of(self, record: Record) -> list[ReadableSpan]:
        _, trace, span, _ = record.trace.split("-")
        trace_id, told_id = int(trace, 16), int(span, 16)
        asked = record.attempts > 0
        own_id = random.getrandbits(64) or 1 if asked else told_id
        own = SpanContext(trace_id, own_id, False, _SAMPLED)
        parent = SpanContext(trace_id, int(record.parent, 16), True, _SAMPLED) if record.parent else None
        begin_ns = int(datetime.fromisoformat(record.time).timestamp() * 1e3) * 1_000_000
        end_ns = begin_ns + _ns(record.duration_ms)
        operation = OPERATIONS.get(record.endpoint, record.endpoint)
        name = f"{operation} {record.model}".rstrip()
        events = []
        if record.first_token_ms is not None:
            events.append(Event("dandolo.first_token", timestamp=begin_ns + _ns(record.first_token_ms)))
        failed = record.status >= 500 or (record.status < 400 and bool(record.code))
        status = Status(StatusCode.ERROR, record.code) if failed else Status(StatusCode.UNSET)
        error = {"error.type": record.code or str(record.status)} if record.code or record.status >= 400 else {}
        model: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": record.model,
            "gen_ai.provider.name": record.provider,
            "gen_ai.response.model": record.upstream_model,
            "gen_ai.usage.input_tokens": record.input_tokens,
            "gen_ai.usage.output_tokens": record.output_tokens,
        }
        if record.finish:
            model["gen_ai.response.finish_reasons"] = (record.finish,)
        spans = [
            ReadableSpan(
                name,
                own,
                parent,
                self._resource,
                _known(
                    {
                        "http.request.method": record.method,
                        "http.response.status_code": record.status,
                        "client.address": record.client,
                        "dandolo.request.id": record.id,
                        "dandolo.endpoint": record.endpoint,
                        "dandolo.key": record.key,
                        "dandolo.cache": record.cache,
                        "dandolo.attempts": record.attempts,
                        "dandolo.stream": record.stream,
                        "dandolo.cost.usd": record.cost_usd,
                        "dandolo.queue.duration_ms": record.queue_ms,
                        "dandolo.overhead.duration_ms": record.overhead_ms,
                        **model,
                        **error,
                    }
                ),
                events,
                kind=SpanKind.SERVER,
                status=status,
                start_time=begin_ns,
                end_time=end_ns,
                instrumentation_scope=_SCOPE,
            )
        ]
        if asked:
            told = SpanContext(trace_id, told_id, False, _SAMPLED)
            attributes = _known({"dandolo.account": record.account, **model, **error})
            begin_ns = min(end_ns, begin_ns + _ns(record.queue_ms))
            spans.append(
                ReadableSpan(
                    name,
                    told,
                    own,
                    self._resource,
                    attributes,
                    kind=SpanKind.CLIENT,
                    status=status,
                    start_time=begin_ns,
                    end_time=end_ns,
                    instrumentation_scope=_SCOPE,
                )
            )
        return spans


def _ns(ms: float | None) -> int:
    return int((ms or 0.0) * 1e6)


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    """Without what is unknown: empty texts, None."""
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def _metric(one: Snapshot, started_ns: int, now_ns: int) -> Metric:
    name, unit = one.name.removesuffix("_total"), ""
    for ending, said in _UNITS.items():
        if name.endswith(ending):
            unit = said
    if name in _GEN_AI:
        name, unit = _GEN_AI[name], unit or "{token}"
    elif name.startswith("dandolo_"):
        name = "dandolo." + name.removeprefix("dandolo_")
    points: list[DataPointT] = []
    for labels, value in one.cells:
        attributes = {_GEN_AI.get(label, label): text for label, text in labels if text}
        if isinstance(value, Counted):
            points.append(
                HistogramDataPoint(
                    attributes,
                    started_ns,
                    now_ns,
                    value.count,
                    value.sum,
                    tuple(value.counts),
                    tuple(value.bounds),
                    # Unknown: a histogram of fixed buckets keeps neither.
                    None,  # type: ignore[arg-type]
                    None,  # type: ignore[arg-type]
                )
            )
        else:
            points.append(NumberDataPoint(attributes, started_ns, now_ns, float(value)))
    data: Histogram | Sum | Gauge
    if one.kind == "histogram":
        data = Histogram(points, AggregationTemporality.CUMULATIVE)  # type: ignore[arg-type]
    elif one.kind == "counter":
        data = Sum(points, AggregationTemporality.CUMULATIVE, True)  # type: ignore[arg-type]
    else:
        data = Gauge(points)  # type: ignore[arg-type]
    return Metric(name, one.help, unit, data)
