"""traceparent through a running gateway: untouched while tracing is off, our own span's once it is on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import CHAT, Gateway, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

sys.path.insert(0, str(Path(__file__).parents[1] / "control"))

from collector import Collector, attributes

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[tuple[Gateway, SimProvider]]:
    sim = SimProvider("sim")
    toml = f'[otel]\nendpoint = "{collector.url}"\nmetrics_interval = "1s"\n[cache]\nlevels = []\n'
    with SimThread(sim), Gateway(tmp_path_factory.mktemp("traced"), [sim], toml=toml) as gateway:
        yield gateway, sim


def told(sim: SimProvider) -> list[str]:
    """The traceparents that the provider was sent."""
    found = [one.header("traceparent") for one in sim.requests if one.body]
    sim.forget()
    return [one for one in found if one is not None]


def asked(gateway: Gateway, headers: dict[str, str], **more: object) -> dict[str, object]:
    """Ask, and the line of the log."""
    answer = gateway.ask(request(body={**CHAT, **more}, headers=headers))
    assert answer.status == 200
    return gateway.record(answer)


def test_off_it_passes_untouched_and_none_is_made(gateway: Gateway, sim: SimProvider) -> None:
    for value in (GIVEN, "nonsense"):
        record = asked(gateway, {"traceparent": value, "tracestate": "a=1"})
        assert told(sim) == [value]
        assert "trace" not in record
    asked(gateway, {})
    assert told(sim) == []


@pytest.mark.parametrize("stream", [False, True])
def test_on_the_provider_is_told_our_own_span(
    rig: tuple[Gateway, SimProvider], collector: Collector, stream: bool
) -> None:
    gateway, sim = rig
    collector.spans.clear()
    record = asked(gateway, {"traceparent": GIVEN, "tracestate": "a=1"}, stream=stream)
    assert sim.requests[-1].header("tracestate") == "a=1"
    (value,) = told(sim)
    version, trace, span, flags = value.split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != CALLER
    assert (record["trace"], record["parent"]) == (value, CALLER)

    def ours() -> list[Any]:
        # Spans of an earlier test may still arrive.
        own = record["id"]
        return [
            one
            for one in collector.spans
            if one.span_id.hex() == span or attributes(one).get("dandolo.request.id") == own
        ]

    until(lambda: len(ours()) == 2, what="two spans")
    server, client = ours()
    assert server.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == CALLER
    assert client.span_id.hex() == span
    assert attributes(server)["dandolo.request.id"] == record["id"]


def test_on_a_trace_begins_here_when_none_came(rig: tuple[Gateway, SimProvider], collector: Collector) -> None:
    gateway, sim = rig
    collector.spans.clear()
    # Several over one connection, so that the short way is taken too.
    with gateway.client() as client:
        for _ in range(5):
            client.send(request(body=CHAT))
            assert client.answer().status == 200
    values = told(sim)
    assert len(set(values)) == 5
    assert len({value.split("-")[1] for value in values}) == 5
    traces = {value.split("-")[1] for value in values}
    until(lambda: len([s for s in collector.spans if s.trace_id.hex() in traces]) == 10, what="ten spans")


def test_on_the_short_way_keeps_each_callers_trace(rig: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = rig
    with gateway.client() as client:
        for number in range(1, 6):
            trace = f"{number:032x}"
            client.send(
                request(body=CHAT, headers={"traceparent": f"00-{trace}-{CALLER}-00", "tracestate": f"n={number}"})
            )
            assert client.answer().status == 200
            received = sim.requests[-1]
            assert received.header("tracestate") == f"n={number}"
            (value,) = told(sim)
            assert value.split("-")[1] == trace
            # Who was not recorded by its caller is not by us.
            assert value.endswith("-00")


def test_on_what_is_invalid_begins_anew_without_its_state(rig: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = rig
    for value in ("nonsense", GIVEN.upper(), f"ff-{TRACE}-{CALLER}-01", f"00-{'0' * 32}-{CALLER}-01"):
        record = asked(gateway, {"traceparent": value, "tracestate": "a=1"})
        assert sim.requests[-1].header("tracestate") is None
        (made,) = told(sim)
        assert TRACE not in made
        assert "parent" not in record


def test_on_every_attempt_has_the_same_place(rig: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = rig
    sim.script = Script(faults=[Fault("close_on_reuse"), Fault("ok")])
    for _ in range(3):
        asked(gateway, {"traceparent": GIVEN})
    for value in told(sim):
        assert value.split("-")[1] == TRACE
    sim.script = Script()


def test_on_answers_from_memory_have_spans_too(tmp_path: Path, sim: SimProvider) -> None:
    with Collector() as collector:
        toml = f'[otel]\nendpoint = "{collector.url}"\n'
        with Gateway(tmp_path, [sim], toml=toml) as gateway, gateway.client() as client:
            for _ in range(5):
                client.send(request(body={**CHAT, "temperature": 0}, headers={"traceparent": GIVEN}))
                assert client.answer().status == 200
            until(lambda: len(collector.spans) == 6, what="a call and five requests")
        assert len(told(sim)) == 1
        servers = [span for span in collector.spans if span.parent_span_id.hex() == CALLER]
        assert sorted(attributes(span)["dandolo.cache"] for span in servers) == ["hit"] * 4 + ["miss"]
        assert len({span.span_id for span in collector.spans}) == 6


def test_on_a_refused_request_has_a_span_and_broken_ones_do_no_harm(
    rig: tuple[Gateway, SimProvider], collector: Collector
) -> None:
    gateway, _ = rig
    collector.spans.clear()
    refused = gateway.ask(request("/v1/nothing", body=CHAT, headers={"traceparent": GIVEN}))
    assert refused.status == 404
    assert gateway.record(refused)["parent"] == CALLER
    said = refused.error["code"]
    until(lambda: [one for one in collector.spans if attributes(one).get("error.type") == said], what="its span")
    assert gateway.ask(b"nonsense\r\n\r\n").status == 400


def test_metrics_arrive(rig: tuple[Gateway, SimProvider], collector: Collector) -> None:
    gateway, _ = rig
    asked(gateway, {})
    until(lambda: "gen_ai.client.operation.duration" in collector.metrics, 20.0, "metrics")
    assert "dandolo.requests" in collector.metrics
    assert gateway.metrics()['dandolo_otel_requests_total{outcome="failed"}'] == 0
