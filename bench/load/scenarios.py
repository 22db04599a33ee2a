"""What is measured, as data: loads, measures, gates.  Nothing here runs anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["closed", "open", "streams", "idle", "open_streams", "start"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the report.

    `metric` names a number of a run (`run.metrics`).  `against` says what the gate is about:
    ``nginx``: this target's number over nginx's; ``added``: the same after taking the direct
    path's number from both; ``itself``: the number as it is; another target's name: that target's
    number over this one's, where more is better.
    """

    name: str
    title: str
    metric: str
    unit: str
    against: str
    gate: float | None
    aim: float | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load and what is read off it."""

    name: str
    kind: Kind
    measures: tuple[Measure, ...]
    arguments: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("direct", "nginx", "dandolo", "starlette")
    stub_tls: bool = False
    client_tls: bool = False
    proves_generator: bool = False


def _bodies(name: str, title: str, size: int, gate: float | None, aim: float | None, *, english: bool) -> Scenario:
    """A large body of English prose and code, or of many scripts (whose UTF-8 must be checked: reported beside it)."""
    return Scenario(
        name,
        "closed",
        (
            Measure(
                name, f"CPU per request, {title} body, 64 connections", "cpu_us_per_request", "µs", "nginx", gate, aim
            ),
        ),
        ("--connections", "64", "--bytes", str(size), *(["--ascii"] if english else [])),
        targets=("direct", "nginx", "nginx-512k", "dandolo", "starlette") if english else ("nginx-512k", "dandolo"),
        proves_generator=english,
    )


def _streams(count: int, *extra: Measure, repeat: int = 3, ramp: float = 0.5) -> Scenario:
    return Scenario(
        f"streams_{count}",
        "streams",
        extra,
        (
            "--streams",
            str(count),
            "--repeat",
            str(repeat),
            "--ramp",
            str(ramp),
            "--chunks",
            "50",
            "--interval-us",
            "20000",
        ),
    )


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "cpu_1k",
        "closed",
        (
            Measure(
                "cpu_1k", "CPU per request, 1 KB body, 64 connections", "cpu_us_per_request", "µs", "nginx", 2.0, 1.4
            ),
            Measure(
                "cpu_starlette",
                "Starlette+aiohttp's CPU per request over ours",
                "cpu_us_per_request",
                "µs",
                "starlette",
                5.0,
                8.0,
            ),
            Measure(
                "cpu_litellm",
                "LiteLLM's CPU per request over ours",
                "cpu_us_per_request",
                "µs",
                "litellm",
                200.0,
                300.0,
            ),
        ),
        ("--connections", "64", "--bytes", "1024"),
        targets=("direct", "nginx", "dandolo", "starlette", "litellm"),
        proves_generator=True,
    ),
    _bodies("cpu_32k", "32 KB", 32768, 2.5, 1.6, english=True),
    _bodies("cpu_256k", "256 KB", 262144, 1.6, 1.2, english=True),
    _bodies("cpu_32k_scripts", "32 KB many-script", 32768, None, None, english=False),
    _bodies("cpu_256k_scripts", "256 KB many-script", 262144, None, None, english=False),
    Scenario(
        "latency_1",
        "closed",
        (
            Measure("latency_1", "added p50, one connection", "p50_us", "µs", "added", 1.5, 1.15),
            Measure("latency_1_p99", "p99, one connection", "p99_us", "µs", "nginx", None, None),
        ),
        ("--connections", "1", "--bytes", "1024"),
    ),
    Scenario(
        "latency_1000",
        "open",
        (
            Measure("latency_1000", "added p50 at 1,000 requests/s, open loop", "p50_us", "µs", "added", 1.5, 1.2),
            Measure("latency_1000_p99", "p99 at 1,000 requests/s, open loop", "p99_us", "µs", "nginx", None, None),
        ),
        ("--rate", "1000", "--connections", "64", "--bytes", "1024"),
    ),
    _streams(
        10,
        Measure("delay_10", "added chunk delay p50, 10 streams", "delay_p50_us", "µs", "added", 1.8, 1.3),
        Measure("delay_10_p99", "chunk delay p99, 10 streams", "delay_p99_us", "µs", "nginx", None, None),
    ),
    _streams(
        50,
        Measure(
            "chunk_50", "CPU per chunk, 50 streams × 50 chunks × 20 ms", "cpu_us_per_chunk", "µs", "nginx", 1.4, 1.15
        ),
        Measure("delay_50", "added chunk delay p50, 50 streams", "delay_p50_us", "µs", "added", None, None),
    ),
    _streams(
        1000,
        Measure(
            "chunk_1000",
            "CPU per chunk, 1,000 streams × 50 chunks × 20 ms",
            "cpu_us_per_chunk",
            "µs",
            "nginx",
            1.4,
            1.15,
        ),
        Measure(
            "delay_1000",
            "chunk delay p99.9, 1,000 streams on one core, all complete",
            "delay_p99_9_ms",
            "ms",
            "itself",
            150.0,
            50.0,
        ),
        repeat=3,
        ramp=1.0,
    ),
    Scenario(
        "memory_idle",
        "idle",
        (
            Measure(
                "memory_idle",
                "memory per idle connection (2,000, after 1,000 requests at a time)",
                "kb_each",
                "KiB",
                "nginx",
                1.3,
                0.8,
            ),
        ),
        # 1,000 at a time is what one key may have in flight by default.  What such a crowd leaves
        # allocated is most of what an idle connection costs nginx.
        ("--idle", "2000", "--wave", "1000"),
        targets=("nginx", "dandolo", "starlette"),
    ),
    Scenario(
        "memory_calm",
        "idle",
        (
            Measure(
                "memory_calm",
                "memory per idle connection (2,000, after 64 requests at a time)",
                "kb_each",
                "KiB",
                "nginx",
                None,
                None,
            ),
        ),
        ("--idle", "2000", "--wave", "64"),
        targets=("nginx", "dandolo", "starlette"),
    ),
    Scenario(
        "memory_streams",
        "open_streams",
        (Measure("memory_streams", "memory per open stream (1,000)", "kb_each", "KiB", "nginx", 1.5, 1.0),),
        ("--streams", "1000", "--ramp", "1", "--chunks", "40", "--interval-us", "100000", "--announce"),
        targets=("nginx", "dandolo", "starlette"),
    ),
    Scenario(
        "start",
        "start",
        (Measure("start", "start to first successful answer", "start_s", "s", "itself", 0.35, 0.2),),
        targets=("nginx", "dandolo", "starlette"),
    ),
    Scenario(
        "tls_provider",
        "closed",
        (
            Measure(
                "tls_provider", "CPU per request, TLS to the provider", "cpu_us_per_request", "µs", "nginx", 2.0, None
            ),
        ),
        ("--connections", "64", "--bytes", "1024"),
        targets=("direct", "nginx", "dandolo"),
        stub_tls=True,
    ),
    Scenario(
        "tls_client",
        "closed",
        (
            Measure(
                "tls_client", "CPU per request, TLS from the client", "cpu_us_per_request", "µs", "nginx", 2.0, None
            ),
        ),
        ("--connections", "64", "--bytes", "1024"),
        targets=("nginx", "dandolo"),
        client_tls=True,
    ),
)
