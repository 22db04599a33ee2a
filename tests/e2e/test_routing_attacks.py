"""What crafted requests, hostile providers and unlucky moments must not do to the choice of a provider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Gateway, request, until
from test_routing import ask, running, warm, who

from dandolo.sim.script import Fault, Script
from dandolo.sim.server import SimProvider

HUGE = 10**400


def at_rest(gateway: Gateway) -> None:
    """Nothing is under way any more, by every count there is."""

    def counted() -> bool:
        samples = gateway.metrics()
        names = ("dandolo_slots_in_use", "dandolo_slots_waiting", "dandolo_requests_in_flight")
        return not any(value for name, value in samples.items() if name.startswith(names))

    until(counted, what=str(gateway.metrics()))
    for account in json.loads(gateway.admin("/admin/routes").body)["accounts"]:
        assert (account["slots"]["in_use"], account["slots"]["waiting"]) == (0, 0), account
        assert not any(model["in_flight"] for model in account["models"]), account


# -- numbers and windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"provider": {"max_price": {"prompt": HUGE}}},
        {"provider": {"preferred_max_latency": HUGE}},
        {"provider": {"preferred_min_throughput": {"p50": HUGE}}},
        {"model": "auto", "auto": {"max_latency": HUGE}},
        {"model": "auto", "auto": {"max_cost": HUGE}},
    ],
)
def test_number_beyond_a_float_is_the_callers_mistake(tmp_path: Path, more: dict[str, Any]) -> None:
    sim = SimProvider("only")
    with running(tmp_path, sim) as gateway:
        answer = ask(gateway, **{"model": "all", **more})
        assert (answer.status, answer.error["code"]) == (400, "bad_request")


def test_window_smaller_than_any_answer_stops_nobody(tmp_path: Path) -> None:
    """A second choice among windows that are all too small must end: it once went round and round."""
    a = SimProvider("a", script=Script(default_fault=Fault("status", status=500)))
    b = SimProvider("b", script=Script(default_fault=Fault("status", status=500)))
    small = [{"id": "sim", "context_tokens": 64}]
    with running(tmp_path, a, b, a_models=small, b_models=small) as gateway:
        assert ask(gateway).status == 502
        assert (len(a.requests), len(b.requests)) == (1, 1)
        assert gateway.ask(request("/healthz", None, method="GET")).status == 200


# -- waits ---------------------------------------------------------------------------------------------------


def test_callers_preference_does_not_wait_for_whom_it_prefers(tmp_path: Path) -> None:
    quick, slow = SimProvider("quick"), SimProvider("slow", script=Script(first_token_s=0.3))
    with running(tmp_path, quick, slow) as gateway:
        warm(gateway, "quick/sim")
        warm(gateway, "slow/sim", 2)
        quick.script = Script(default_fault=Fault("status", status=429, headers=[("retry-after", "20")]))
        ask(gateway, "quick/sim")
        answer = ask(gateway, provider={"preferred_max_latency": 0.15})
        assert (who(answer), answer.header("x-dandolo-queue-ms")) == ("slow", "0.000")


# -- hedges --------------------------------------------------------------------------------------------------
