"""Scripts and faults as data: what is accepted, what JSON keeps, in which order faults are used."""

from __future__ import annotations

import msgspec
import pytest

from dandolo.sim import KINDS, Fault, Script
from dandolo.sim.limits import RateLimit, go_duration, retry_headers
from dandolo.sim.script import FaultQueue


def test_script_survives_json() -> None:
    script = Script(
        first_token_s=0.2,
        tokens_per_s=50,
        faults=[Fault("raw", data=b"\x00\xff", then="reset"), Fault("status", headers=[("a", "b")])],
        default_fault=Fault("no_done", times=0),
    )
    assert Script.from_json(script.to_json()) == script


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"latency": 1}', "unknown key 'latency'"),
        ('{"faults": [{"kind": "refuse", "afer": 1}]}', "unknown key 'afer'"),
        ('{"default_fault": {"kind": "refuse", "afer": 1}}', "unknown key 'afer'"),
        ('{"faults": [{"kind": "explode"}]}', "explode"),
        ('{"error_rate": 1.5}', "error_rate"),
        ('{"tokens": 0}', "tokens"),
        ('{"latency_s": -1}', "negative"),
        ("[]", "Expected `object`"),
    ],
)
def test_wrong_script_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError), match=said.replace("'", ".")):
        Script.from_json(text)


def test_every_kind_can_be_made() -> None:
    for kind in KINDS:
        assert Fault(kind).ending in ("keep", "close", "reset")  # type: ignore[arg-type]


def kinds(queue: FaultQueue, *targets: str) -> list[str | None]:
    return [fault.kind if (fault := queue.on_request(target)) else None for target in targets]


def test_faults_are_used_in_order_then_the_default() -> None:
    script = Script(faults=[Fault("no_done"), Fault("ok"), Fault("cut_fin", times=2)], default_fault=Fault("gzip"))
    queue = FaultQueue(script)
    assert kinds(queue, *"abcdef") == ["no_done", "ok", "cut_fin", "cut_fin", "gzip", "gzip"]


def test_fault_for_one_endpoint_waits_for_it() -> None:
    queue = FaultQueue(Script(faults=[Fault("cut_fin", only="chat"), Fault("gzip")]))
    assert kinds(queue, "/v1/models", "/v1/chat/completions", "/v1/models") == ["gzip", "cut_fin", None]


def test_fault_without_bound_stays() -> None:
    queue = FaultQueue(Script(faults=[Fault("no_done", times=0)]))
    assert kinds(queue, *"abc") == ["no_done"] * 3


def test_connection_faults_are_taken_when_a_connection_opens_and_only_at_the_head() -> None:
    queue = FaultQueue(Script(faults=[Fault("refuse"), Fault("gzip"), Fault("refuse")]))
    first = queue.on_connect()
    assert first is not None
    assert first.kind == "refuse"
    assert queue.on_connect() is None
    assert kinds(queue, "/") == ["gzip"]


def test_rate_limit_counts_per_key_and_window() -> None:
    limit, script = RateLimit(), Script(rate_limit=2, rate_window_s=10)
    assert [limit.admit("a", script, 0.0), limit.admit("a", script, 1.0)] == [(None, 1), (None, 0)]
    assert limit.admit("a", script, 4.0) == (6.0, 0)
    assert limit.admit("b", script, 4.0) == (None, 1)
    assert limit.admit("a", script, 10.0) == (None, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.012, "12ms"), (1, "1s"), (360, "6m0s"), (179.56, "2m59.56s"), (3661, "1h1m1s"), (0, "1ms")],
)
def test_go_duration(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_retry_headers_of_every_form() -> None:
    wall = 1_750_000_000.2
    assert retry_headers("seconds", 1.2, wall) == (("retry-after", "2"),)
    assert retry_headers("http-date", 1.2, wall) == (("retry-after", "Sun, 15 Jun 2025 15:06:42 GMT"),)
    assert retry_headers("retry-after-ms", 0.25, wall) == (("retry-after-ms", "250"),)
    assert retry_headers("go-duration", 61, wall)[1] == ("x-ratelimit-reset-requests", "1m1s")
    assert retry_headers("unix-timestamp", 1, wall)[1] == ("x-ratelimit-reset-requests", "1750000002")
    assert retry_headers("rfc3339", 1, wall)[1][1] == "2025-06-15T15:06:42Z"
    assert retry_headers("none", 1, wall) == ()
