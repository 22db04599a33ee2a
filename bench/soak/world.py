"""Providers that misbehave in turn: one that is well, one that fails now and then, one with every fault there is."""

from __future__ import annotations

import random

from dandolo.sim import Fault, Script, SimProvider

NAMES = ("well", "failing", "faulty")
LIST = 400
"""Faults that are laid out at a time; a new list comes with every sample."""
SHARE = 0.25
"""Of the third provider's requests that meet a fault."""

WELL = Script(latency_s=0.02, first_token_s=0.01, tokens_per_s=400.0, tokens=30, jitter=0.5)
FAILING = Script(latency_s=0.03, first_token_s=0.02, tokens_per_s=300.0, tokens=30, jitter=0.5, error_rate=0.05, seed=7)

FAULTS = (
    Fault("refuse"),
    Fault("close_before_answer"),
    Fault("reset_before_answer"),
    Fault("hang_before_answer", delay_s=1.0),
    Fault("hang_after_head", delay_s=1.0),
    Fault("stall", after=3, delay_s=1.0),
    Fault("close_on_reuse"),
    Fault("close_after_answer"),
    Fault("unsolicited", data=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"),
    Fault("status", status=429, headers=(("Retry-After", "1"),)),
    Fault("status", status=500),
    Fault("status", status=503),
    Fault("error_200"),
    Fault("html_200"),
    Fault("empty_200"),
    Fault("redirect"),
    Fault("truncated_body"),
    Fault("bad_chunk", after=3),
    Fault("cl_te"),
    Fault("two_cl"),
    Fault("huge_header"),
    Fault("eof_body"),
    Fault("bad_gzip"),
    Fault("dribble", size=40, delay_s=0.001),
    Fault("cut_fin", after=4),
    Fault("cut_rst", after=4),
    Fault("stream_error", after=4),
    Fault("no_done"),
    Fault("no_finish_no_done"),
    Fault("after_done"),
    Fault("hold_after_done", delay_s=0.5),
    Fault("big_event", after=2, size=300_000),
    Fault("sse_cr"),
    Fault("sse_comments"),
)


def providers() -> list[SimProvider]:
    """The three, not yet started."""
    return [
        SimProvider("well", script=WELL),
        SimProvider("failing", script=FAILING),
        SimProvider("faulty", script=faulty(random.Random(0))),
    ]


def faulty(chance: random.Random) -> Script:
    """A script of the third provider: faults of every kind, in an order of chance's."""
    faults = [chance.choice(FAULTS) if chance.random() < SHARE else Fault("ok") for _ in range(LIST)]
    return Script(latency_s=0.01, first_token_s=0.01, tokens_per_s=500.0, tokens=30, jitter=0.5, faults=faults)
