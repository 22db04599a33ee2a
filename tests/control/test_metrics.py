"""The metrics page, read back by prometheus-client's parser."""

from __future__ import annotations

import math
import os
import re
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dandolo import __version__
from dandolo.control.exposition import Gauge, number
from dandolo.control.metrics import Metrics, breaker_gauge
from dandolo.record import Record

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Samples:
    """Every sample; the page must not have one twice."""
    samples: Samples = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def at(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": "req_1",
        "time": "2026-01-01T00:00:00.000Z",
        "endpoint": "chat",
        "method": "POST",
        "status": 200,
        "key": "ci",
        "model": "llama",
        "provider": "venice",
        "stream": True,
        "attempts": 2,
        "bytes_in": 10,
        "bytes_out": 20,
        "input_tokens": 300,
        "output_tokens": 20,
        "cost_usd": 0.25,
        "duration_ms": 1500.0,
        "queue_ms": 2.0,
        "first_byte_ms": 100.0,
        "first_token_ms": 250.0,
        "overhead_ms": 0.12,
    }
    return Record(**{**values, **changes})


WHOM = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "venice", "gen_ai_request_model": "llama"}


def test_an_answered_request_is_counted_everywhere() -> None:
    metrics = Metrics()
    metrics.take([record()])
    metrics.take([record()])
    found = read(metrics.text())
    assert at(found, "dandolo_requests_total", endpoint="chat", status="200", provider="venice", key="ci") == 2
    assert at(found, "dandolo_attempts_total") == 4
    assert at(found, "dandolo_bytes_total", direction="in") == 20
    assert at(found, "dandolo_bytes_total", direction="out") == 40
    assert at(found, "dandolo_cost_usd_total", provider="venice", key="ci") == 0.5
    assert at(found, "dandolo_overhead_seconds_count") == 2
    assert at(found, "dandolo_overhead_seconds_bucket", le="0.0001") == 0
    assert at(found, "dandolo_overhead_seconds_bucket", le="0.00015") == 2
    assert at(found, "dandolo_queue_seconds_sum") == pytest.approx(0.004)
    duration = "gen_ai_client_operation_duration_seconds"
    assert at(found, f"{duration}_count", **WHOM) == 2
    assert at(found, f"{duration}_sum", **WHOM) == 3.0
    assert at(found, f"{duration}_bucket", **WHOM, le="1.28") == 0
    assert at(found, f"{duration}_bucket", **WHOM, le="2.56") == 2
    assert at(found, f"{duration}_bucket", **WHOM, le="+Inf") == 2
    assert at(found, "gen_ai_client_operation_time_to_first_chunk_seconds_sum", **WHOM) == 0.5
    assert at(found, "gen_ai_client_token_usage_sum", **WHOM, gen_ai_token_type="input") == 600
    assert at(found, "gen_ai_client_token_usage_sum", **WHOM, gen_ai_token_type="output") == 40
    assert at(found, "dandolo_streams_interrupted_total") == 0
    assert at(found, "dandolo_estimated_requests_total") == 0


def test_errors_are_counted_by_code() -> None:
    metrics = Metrics()
    metrics.take([record(status=504, code="upstream_timeout", stream=False)])
    metrics.take([record(code="upstream_stream_error", estimated=True)])
    metrics.take([record(status=401, code="invalid_api_key", provider="", key="", attempts=0, stream=False)])
    found = read(metrics.text())
    assert at(found, "dandolo_request_errors_total", code="upstream_timeout") == 1
    assert at(found, "dandolo_request_errors_total", code="invalid_api_key") == 1
    assert at(found, "dandolo_streams_interrupted_total") == 1
    assert at(found, "dandolo_estimated_requests_total") == 1
    duration = "gen_ai_client_operation_duration_seconds_count"
    assert at(found, duration, **WHOM, error_type="upstream_timeout") == 1
    assert at(found, duration, **WHOM, error_type="upstream_stream_error") == 1
    assert sum(value for (name, _), value in found.items() if name == duration) == 2


def test_a_plain_answer_has_no_first_chunk() -> None:
    metrics = Metrics()
    metrics.take([record(stream=False, first_token_ms=None)])
    found = read(metrics.text())
    assert at(found, "gen_ai_client_operation_time_to_first_chunk_seconds_count", **WHOM) == 0


def models(found: Samples) -> set[str]:
    return {value for _, labels in found for name, value in labels if name == "gen_ai_request_model"}


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param({"status": 404, "code": "model_not_found", "provider": ""}, id="by us"),
        pytest.param({"status": 404, "code": "model_not_found"}, id="by a provider that passes any name on"),
        pytest.param({"status": 499}, id="the client left"),
    ],
)
def test_a_caller_cannot_mint_labels(refused: dict[str, Any]) -> None:
    metrics = Metrics()
    for n in range(5000):
        metrics.take([record(model=f"invented-{n}", **refused)])
    found = read(metrics.text())
    assert models(found) <= {"other"}
    assert len(found) < 150


def test_failures_of_a_model_that_is_known_are_told_under_its_name() -> None:
    metrics = Metrics()
    metrics.take([record(status=404, code="model_not_found")])
    metrics.take([record()])
    metrics.take([record(status=404, code="model_not_found")])
    found = read(metrics.text())
    duration = "gen_ai_client_operation_duration_seconds_count"
    assert at(found, duration, **WHOM, error_type="model_not_found") == 1
    assert at(found, duration, **{**WHOM, "gen_ai_request_model": "other"}, error_type="model_not_found") == 1


def test_further_models_and_label_sets_are_counted_as_other() -> None:
    metrics = Metrics(series_max=10)
    for n in range(500):
        metrics.take([record(model=f"model-{n}", key=f"key-{n}", provider=f"provider-{n}", code=f"code-{n}")])
    found = read(metrics.text())
    assert len(models(found)) == 11
    assert sum(value for (name, _), value in found.items() if name == "dandolo_requests_total") == 500
    other = {"endpoint": "other", "status": "200", "provider": "other", "key": "other"}
    assert at(found, "dandolo_requests_total", **other) == 490
    assert at(found, "dandolo_request_errors_total", code="other") == 490
    for name in {name for name, _ in found if name.endswith(("_count", "_total"))}:
        assert sum(known == name for known, _ in found) <= 12, name


def test_statuses_that_nobody_registered_share_a_label() -> None:
    metrics = Metrics()
    for status in range(560, 600):
        metrics.take([record(status=status, code="upstream_error")])
    found = read(metrics.text())
    assert at(found, "dandolo_requests_total", endpoint="chat", status="other", provider="venice", key="ci") == 40


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('a"b', 'a"b'),
        ("a\\b", "a\\b"),
        ("a\\nb", "a\\nb"),
        ("a\nb", "a\\nb"),
        ("a\r\x1b\u2028{}=,b", "a\\r\\u001b\\u2028{}=,b"),
        ("模型", "模型"),
        ("x" * 200, "x" * 125 + "…"),
    ],
)
def test_label_values_are_escaped(name: str, shown: str) -> None:
    metrics = Metrics()
    metrics.take([record(model=name)])
    assert models(read(metrics.text())) == {shown}


def test_names_that_look_the_same_once_cut_are_one_series() -> None:
    metrics = Metrics()
    metrics.take([record(model="x" * 200)])
    metrics.take([record(model="x" * 201)])
    found = read(metrics.text([breaker_gauge("venice", "x" * n, "open") for n in (200, 201)]))
    shown = {**WHOM, "gen_ai_request_model": "x" * 125 + "…"}
    assert at(found, "gen_ai_client_operation_duration_seconds_count", **shown) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e300])
def test_a_provider_cannot_spoil_a_sum(value: float) -> None:
    metrics = Metrics()
    metrics.take([record(cost_usd=value, input_tokens=10**400, output_tokens=-5)])
    metrics.take([record()])
    found = read(metrics.text())
    assert at(found, "dandolo_cost_usd_total", provider="venice", key="ci") == 0.25
    assert at(found, "gen_ai_client_token_usage_sum", **WHOM, gen_ai_token_type="input") == 300
    assert at(found, "gen_ai_client_token_usage_sum", **WHOM, gen_ai_token_type="output") == 20


def test_gauges_from_outside_are_written_as_families() -> None:
    account = (("account", "venice/alice"),)
    page = Metrics().text(
        [
            Gauge("dandolo_connections", 3),
            Gauge("dandolo_slots_in_use", 2, account),
            breaker_gauge("venice/alice", "llama", "half-open"),
            Gauge("dandolo_slots_in_use", 5, (("account", "venice/bob"),)),
            breaker_gauge("venice/alice", "qwen", "open"),
            breaker_gauge("venice/bob", "qwen", "closed"),
            Gauge("dandolo_log_lines_dropped_total", 7),
            Gauge("something_new", 1.5),
        ]
    )
    found = read(page)
    assert at(found, "dandolo_connections") == 3
    assert at(found, "dandolo_slots_in_use", account="venice/alice") == 2
    assert at(found, "dandolo_slots_in_use", account="venice/bob") == 5
    assert at(found, "dandolo_breaker_state", account="venice/alice", model="llama") == 1
    assert at(found, "dandolo_breaker_state", account="venice/alice", model="qwen") == 2
    assert at(found, "dandolo_breaker_state", account="venice/bob", model="qwen") == 0
    assert at(found, "dandolo_log_lines_dropped_total") == 7
    assert at(found, "something_new") == 1.5
    assert at(found, "dandolo_build_info", version=__version__) == 1
    assert page.count(b"# TYPE dandolo_slots_in_use gauge\n") == 1


def test_gauges_are_bounded_and_the_worst_stay() -> None:
    samples = [breaker_gauge("venice", f"m{n}", "open" if n == 499 else "closed") for n in range(500)]
    found = read(Metrics(series_max=10).text(samples))
    states = {labels: value for (name, labels), value in found.items() if name == "dandolo_breaker_state"}
    assert len(states) == 10
    assert at(found, "dandolo_breaker_state", account="venice", model="m499") == 2
    assert at(found, "dandolo_breaker_state", account="other", model="other") == 0


def test_the_process_is_described() -> None:
    found = read(Metrics().text())
    resident = at(found, "process_resident_memory_bytes")
    started = at(found, "process_start_time_seconds")
    assert resident is not None
    assert 1e6 < resident < 1e12
    assert started is not None
    assert time.time() - 86_400 < started < time.time()
    assert (at(found, "process_cpu_seconds_total") or 0) > 0
    assert at(found, "process_open_fds") == pytest.approx(len(os.listdir("/proc/self/fd")) - 1, abs=2)
    assert (at(found, "process_max_fds") or 0) > 0


def test_every_line_is_of_the_format() -> None:
    metrics = Metrics()
    metrics.take([record()])
    page = metrics.text().decode()
    assert page.endswith("\n")
    for line in page.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{([a-z_]+="[^"]*",?)+\})? [0-9.e+-]+', line), line


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.0, "1"), (0.25, "0.25"), (1e-7, "1e-07"), (1e20, "1e+20"), (math.inf, "+Inf"), (math.nan, "NaN")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
