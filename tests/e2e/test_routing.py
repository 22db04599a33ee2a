"""Whom a running gateway asks, before simulated providers on real sockets: score, wishes, waits, second attempts."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import PROVIDER_KEY, Answer, Gateway, Provider, chat, get, request, until

from dandolo.sim.script import Fault, Script
from dandolo.sim.server import SimProvider
from dandolo.sim.thread import SimThread

EQUAL = {"role": "primary"}


@contextmanager
def running(
    directory: Path, *sims: SimProvider, options: Mapping[str, object] = EQUAL, **more: Any
) -> Iterator[Gateway]:
    """A gateway before providers of one role, unless `options` say otherwise; "all" names them."""
    providers = [
        Provider(sim, options={**options, **more.pop(sim.name, {})}, models=more.pop(f"{sim.name}_models", ()))
        for sim in sims
    ]
    models = more.pop("models", {"all": [f"{sim.name}/sim" for sim in sims]})
    with SimThread(*sims), Gateway(directory, providers, models=models, **more) as gateway:
        yield gateway


def ask(gateway: Gateway, model: str = "all", headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    return gateway.ask(request(body=chat(model=model, **more), headers=headers or {}))


def who(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.header("x-dandolo-provider") or ""


def explained(answer: Answer) -> dict[str, Any]:
    told = answer.header("x-dandolo-explain")
    assert told is not None
    return json.loads(told)


def concurrently(gateway: Gateway, count: int, **more: Any) -> list[Answer]:
    """`count` requests at one time, each on a connection of its own; their answers in order."""
    answers: list[Answer | None] = [None] * count

    def one(index: int) -> None:
        answers[index] = ask(gateway, **more)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


# -- the score -----------------------------------------------------------------------------------------------


def test_traffic_goes_to_whoever_answers_sooner(tmp_path: Path) -> None:
    quick, slow = SimProvider("quick"), SimProvider("slow", script=Script(first_token_s=0.15))
    with running(tmp_path, quick, slow) as gateway:
        for _ in range(12):
            ask(gateway, stream=True)
        before = len(slow.requests)
        for _ in range(20):
            ask(gateway, stream=True)
        assert len(slow.requests) - before <= 4


def test_fast_failing_provider_does_not_attract_traffic(tmp_path: Path) -> None:
    broken = SimProvider("broken", script=Script(default_fault=Fault("status", status=500)))
    sound = SimProvider("sound", script=Script(latency_s=0.05))
    with running(tmp_path, broken, sound) as gateway:
        answers = [ask(gateway) for _ in range(20)]
        assert {who(answer) for answer in answers} == {"sound"}
        # Three failures in a row open its breaker; a trial or two may follow.
        assert len(broken.requests) <= 6


def test_provider_without_the_model_is_left_alone_and_the_others_answer(tmp_path: Path) -> None:
    lacking = SimProvider("lacking", script=Script(strict_models=True))
    having = SimProvider("having")
    with running(tmp_path, lacking, having) as gateway:
        answers = [ask(gateway, "anything") for _ in range(12)]
        assert {who(answer) for answer in answers} == {"having"}
        assert len(lacking.requests) <= 1


def test_price_decides_between_equals_that_are_sorted_by_it(tmp_path: Path) -> None:
    dear, cheap = SimProvider("dear"), SimProvider("cheap", script=Script(latency_s=0.03))
    prices = {
        "dear_models": [{"id": "sim", "input_usd_per_mtok": 10.0, "output_usd_per_mtok": 30.0}],
        "cheap_models": [{"id": "sim", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}],
    }
    with running(tmp_path, dear, cheap, **prices) as gateway:
        answers = [who(ask(gateway, f"sim{suffix}")) for suffix in (":cheap", ":floor") for _ in range(12)]
        answers += [who(ask(gateway, "sim", provider={"sort": "price"})) for _ in range(12)]
        # One call in fifty explores, half of those the dear one.
        assert answers.count("cheap") >= 32
        assert {json.loads(one.body)["model"] for one in cheap.requests} == {"sim"}


def test_callers_own_short_timeouts_do_not_close_a_provider_to_others(tmp_path: Path) -> None:
    sim = SimProvider("only", script=Script(latency_s=0.4))
    with running(tmp_path, sim) as gateway:
        for stream in (False, True):
            for _ in range(4):
                assert ask(gateway, headers={"x-dandolo-timeout": "50ms"}, stream=stream).status == 504
        assert ask(gateway).status == 200


# -- wishes --------------------------------------------------------------------------------------------------


def test_provider_object_steers_and_is_not_passed_on(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b) as gateway:
        for wish in ({"only": ["b"]}, {"ignore": ["A"]}, {"order": ["b"]}, {"order": ["B", "a"]}):
            assert [who(ask(gateway, provider=wish)) for _ in range(6)] == ["b"] * 6, wish
        assert not any(b"provider" in one.body for one in b.requests)
        assert len(a.requests) == 0


def test_order_without_fallbacks_asks_nobody_else(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b", script=Script(default_fault=Fault("status", status=500)))
    with running(tmp_path, a, b, routing={"breaker": False}) as gateway:
        answer = ask(gateway, provider={"order": ["b"], "allow_fallbacks": False})
        assert (answer.status, len(a.requests), len(b.requests)) == (502, 0, 1)
        assert who(ask(gateway, provider={"order": ["b"]})) == "a"


@pytest.mark.parametrize(
    ("wish", "status", "code"),
    [
        ({"only": "b"}, 400, "bad_request"),
        ({"sort": "colour"}, 400, "bad_request"),
        ([], 400, "bad_request"),
        ({"max_price": {"prompt": -1}}, 400, "bad_request"),
        ({"max_price": {"prompt": 0.5}}, 404, "no_provider_fits"),
        ({"only": ["nobody"]}, 404, "provider_not_found"),
        ({"ignore": ["a", "b"]}, 404, "no_provider_fits"),
    ],
)
def test_wish_that_cannot_be_met_is_told(tmp_path: Path, wish: object, status: int, code: str) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b) as gateway:
        answer = ask(gateway, provider=wish)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, "provider")
        assert not a.requests
        assert not b.requests


def test_names_of_a_routing_providers_own_are_passed_on_to_it(tmp_path: Path) -> None:
    router, plain = SimProvider("router"), SimProvider("plain")
    options = {"profile": "openrouter", **EQUAL}
    with running(tmp_path, router, plain, router=options) as gateway:
        assert who(ask(gateway, "x/y:nitro", provider={"only": ["DeepInfra"], "order": ["router"]})) == "router"
        sent = json.loads(router.requests[-1].body)
        assert sent["provider"] == {"only": ["DeepInfra"]}
        assert sent["model"] == "x/y:nitro"
        assert who(ask(gateway, "x/y:fast", provider={"only": ["router"]})) == "router"
        sent = json.loads(router.requests[-1].body)
        assert "provider" not in sent
        assert sent["model"] == "x/y:nitro"


def test_region_is_a_constraint_when_asked_for(tmp_path: Path) -> None:
    here, there = SimProvider("here"), SimProvider("there")
    regions = {"here": {"region": "eu-west-1"}, "there": {"region": "us-east-1"}}
    with running(tmp_path, here, there, server={"region": "eu-west-1"}, **regions) as gateway:
        assert {who(ask(gateway, headers={"x-dandolo-region": "us-east-1"})) for _ in range(6)} == {"there"}
        assert ask(gateway, headers={"x-dandolo-region": "moon"}).error["code"] == "no_provider_fits"


def test_models_of_a_request_are_fallbacks_in_order(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b) as gateway:
        assert {who(ask(gateway, "b/sim", models=["a/sim"])) for _ in range(8)} == {"b"}
        b.script = Script(default_fault=Fault("status", status=503))
        answer = ask(gateway, "b/sim", models=["a/sim"])
        assert (who(answer), answer.header("x-dandolo-attempts")) == ("a", "2")
        assert (answer.header("x-dandolo-reason") or "").startswith("b upstream_")


def test_conversation_stays_with_whom_it_began(tmp_path: Path) -> None:
    a, b = (SimProvider(name, script=Script(latency_s=0.05)) for name in "ab")
    explain = {"x-dandolo-explain": "true"}

    def how(answer: Answer) -> str:
        return explained(answer)["attempts"][0]["how"]

    with running(tmp_path, a, b) as gateway:
        for session in range(6):
            answers = [ask(gateway, headers=explain, prompt_cache_key=f"session-{session}") for _ in range(6)]
            assert len({who(answer) for answer in answers}) == 1
            assert [how(answer) for answer in answers] == ["draw"] + ["sticky"] * 5
        long = [{"role": "system", "content": "be brief. " * 500}, {"role": "user", "content": "one"}]
        first = ask(gateway, headers=explain, messages=long)
        for turn in range(6):
            long = [*long, {"role": "assistant", "content": "ok"}, {"role": "user", "content": f"turn {turn}"}]
            answer = ask(gateway, headers=explain, messages=long)
            assert (who(answer), how(answer)) == (who(first), "sticky")
        assert how(ask(gateway, headers=explain)) == "draw"


@pytest.mark.parametrize("stream", [False, True])
def test_stored_responses_are_asked_of_whoever_made_them_and_only_by_their_owner(tmp_path: Path, stream: bool) -> None:
    a, b = (SimProvider(name, script=Script(latency_s=0.05)) for name in "ab")
    keys = [{"name": "one", "key": "k-one"}, {"name": "two", "key": "k-two"}]
    with running(tmp_path, a, b, keys=keys) as gateway:

        def respond(key: str = "k-one", **more: Any) -> Answer:
            body = {"model": "all", "input": "hello", "stream": stream, **more}
            return gateway.ask(request("/v1/responses", body, key=key))

        for _ in range(8):
            made = respond()
            maker = who(made)
            if stream:
                last = json.loads(made.events[-1])
                number = last["response"]["id"]
            else:
                number = made.json["id"]
            assert who(respond(previous_response_id=number)) == maker
            assert who(gateway.ask(get(f"/v1/responses/{number}", key="k-one"))) == maker
            for other in (
                respond("k-two", previous_response_id=number),
                gateway.ask(get(f"/v1/responses/{number}", key="k-two")),
                gateway.ask(request(f"/v1/responses/{number}", None, method="DELETE", key="k-two")),
            ):
                assert (other.status, other.error["code"]) == (404, "response_not_found")
        assert a.requests
        assert b.requests


# -- capacity ------------------------------------------------------------------------------------------------


def test_overflow_takes_what_the_primary_cannot(tmp_path: Path) -> None:
    main, spare = SimProvider("main", script=Script(latency_s=0.4)), SimProvider("spare")
    roles = {"main": {"concurrency_max": 2}, "spare": {"role": "overflow"}}
    with running(tmp_path, main, spare, **roles) as gateway:
        answers = [who(answer) for answer in concurrently(gateway, 6)]
        assert (answers.count("main"), answers.count("spare")) == (2, 4)


def test_high_is_served_before_low(tmp_path: Path) -> None:
    sim = SimProvider("only", script=Script(latency_s=0.15))
    keys = [
        {"name": "vip", "key": "k-vip", "priority": "high"},
        {"name": "batch", "key": "k-batch", "priority": "low"},
    ]
    done: list[str] = []
    with running(tmp_path, sim, options={"concurrency_max": 1}, keys=keys) as gateway:

        def one(key: str, headers: Mapping[str, str]) -> None:
            answer = gateway.ask(request(body=chat(model="all"), key=key, headers=headers))
            assert answer.status == 200
            done.append("low" if headers or key == "k-batch" else "high")

        def start(key: str, headers: Mapping[str, str] | None = None) -> threading.Thread:
            thread = threading.Thread(target=one, args=(key, headers or {}))
            thread.start()
            return thread

        threads = [start("k-batch") for _ in range(3)]
        # A key may ask for less than its class, and never for more.
        threads.append(start("k-vip", {"x-dandolo-priority": "low"}))
        threads.append(start("k-batch", {"x-dandolo-priority": "high"}))
        until(lambda: gateway.metrics()['dandolo_slots_waiting{account="only"}'] == 4)
        threads += [start("k-vip") for _ in range(2)]
        until(lambda: gateway.metrics()['dandolo_slots_waiting{account="only"}'] >= 5)
        for thread in threads:
            thread.join()
        # One was being served; both of the high class overtake all that waited, but for a grant owed.
        assert [index for index, kind in enumerate(done) if kind == "high"][-1] <= 4, done


def test_reserved_slots_stay_free_for_their_key(tmp_path: Path) -> None:
    sim = SimProvider("only", script=Script(latency_s=0.5))
    keys = [{"name": "own", "key": "k-own", "slots_reserved": 0.5}, {"name": "rest", "key": "k-rest"}]
    with running(tmp_path, sim, options={"concurrency_max": 4}, keys=keys) as gateway:
        threads = [
            threading.Thread(target=gateway.ask, args=(request(body=chat(model="all"), key="k-rest"),))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until(lambda: gateway.metrics()['dandolo_slots_waiting{account="only"}'] == 2)
        answer = gateway.ask(request(body=chat(model="all"), key="k-own"))
        assert (answer.status, answer.header("x-dandolo-queue-ms")) == (200, "0.000")
        for thread in threads:
            thread.join()


def test_rate_limit_of_one_is_no_failure_while_another_can_answer(tmp_path: Path) -> None:
    limited = SimProvider("limited", script=Script(rate_limit=2, rate_window_s=60.0))
    free = SimProvider("free", script=Script(latency_s=0.05))
    with running(tmp_path, limited, free) as gateway:
        answers = [ask(gateway) for _ in range(20)]
        assert {answer.status for answer in answers} == {200}
        assert len(limited.requests) <= 3


@pytest.mark.parametrize("status", [429, 500])
def test_failed_call_waits_for_another_that_cools_down_for_a_moment(tmp_path: Path, status: int) -> None:
    first, other = SimProvider("first"), SimProvider("other")
    roles = {"first": {"role": "primary"}, "other": {"role": "secondary"}}
    with running(tmp_path, first, other, **roles) as gateway:
        other.script = Script(faults=[Fault("status", status=429, headers=[("retry-after-ms", "1500")])])
        # Longer than this client has time, so that it is told and the account cools down.
        assert ask(gateway, "other/sim", headers={"x-dandolo-timeout": "1s"}).status == 429
        first.script = Script(faults=[Fault("status", status=status)])
        answer = ask(gateway)
        assert (who(answer), answer.header("x-dandolo-attempts")) == ("other", "2")


def test_all_cooling_down_for_long_is_told_with_the_wait(tmp_path: Path) -> None:
    fault = Fault("status", status=429, headers=[("retry-after", "20")], times=0)
    sim = SimProvider("only", script=Script(faults=[fault]))
    with running(tmp_path, sim) as gateway:
        assert ask(gateway).status == 429
        answer = ask(gateway)
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert 15 <= int(answer.header("retry-after") or 0) <= 20
        assert "only (rate limit" in answer.error["message"]
        assert len(sim.requests) == 1


@pytest.mark.parametrize(
    ("profile", "status", "body", "reason"),
    [
        ("generic", 402, None, "no credit"),
        ("generic", 401, None, "key refused"),
        ("venice", 402, '{"error":"Insufficient USD or Diem balance"}', "no credit"),
    ],
)
def test_account_that_cannot_be_used_is_left_alone_and_named(
    tmp_path: Path, profile: str, status: int, body: str | None, reason: str
) -> None:
    poor = SimProvider("poor", script=Script(default_fault=Fault("status", status=status, body=body)))
    rich = SimProvider("rich")
    roles = {"poor": {"profile": profile, "role": "primary"}, "rich": {"role": "secondary"}}
    with running(tmp_path, poor, rich, **roles) as gateway:
        assert [who(ask(gateway)) for _ in range(5)] == ["rich"] * 5
        assert len(poor.requests) == 1
        answer = ask(gateway, "poor/sim")
        assert (answer.status, answer.error["code"]) == (503, "no_provider_available")
        assert f"poor ({reason}" in answer.error["message"]
        assert PROVIDER_KEY not in answer.body.decode()


def test_error_budget_pauses_the_whole_account(tmp_path: Path) -> None:
    body = '{"error":"Too many failed requests, please wait 30s and try again"}'
    sim = SimProvider("venice", script=Script(faults=[Fault("status", status=429, body=body)]))
    with running(tmp_path, sim, options={"profile": "venice"}) as gateway:
        ask(gateway, "venice/one")
        answer = ask(gateway, "venice/another")
        assert answer.status in (429, 503)
        assert int(answer.header("retry-after") or 0) >= 25
        assert len(sim.requests) == 1


# -- second attempts -----------------------------------------------------------------------------------------


def warm(gateway: Gateway, model: str, count: int = 6) -> None:
    for _ in range(count):
        assert ask(gateway, model, stream=True).complete


@pytest.mark.parametrize("kind", ["keepalive_forever", "role_first", "stall", "hang_before_answer"])
def test_silence_after_the_head_is_taken_over_before_content(tmp_path: Path, kind: Any) -> None:
    """Keep-alive comments and role-only chunks are no first token: they do not satisfy its deadline."""
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(default_fault=Fault(kind, after=1, delay_s=30.0 if kind == "role_first" else 0.0))
        answer = ask(gateway, stream=True)
        assert (who(answer), answer.header("x-dandolo-attempts"), answer.complete) == ("b", "2", True)
        assert answer.header("x-dandolo-reason") == "a upstream_timeout"
        assert gateway.record(answer)["duration_ms"] < 10_000
        until(lambda: gateway.metrics()['dandolo_slots_in_use{account="a"}'] == 0)


def test_hedge_answers_when_the_first_is_silent_and_the_loser_is_cancelled(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=30.0)
        answer = ask(gateway, stream=True)
        assert (who(answer), answer.complete) == ("b", True)
        record = gateway.record(answer)
        assert (record["provider"], record["attempts"], record["status"]) == ("b", 2, 200)
        assert record["duration_ms"] < 1_900
        assert record["output_tokens"] > 0
        until(lambda: a.in_flight == 0)
        until(lambda: gateway.metrics()['dandolo_slots_in_use{account="a"}'] == 0)
        a.script = Script()
        assert ask(gateway, "b/sim", stream=True).complete


def test_hedge_that_loses_is_cancelled(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b", script=Script(first_token_s=30.0))
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=0.8)
        answer = ask(gateway, stream=True)
        assert (who(answer), answer.complete, gateway.record(answer)["attempts"]) == ("a", True, 2)
        until(lambda: b.in_flight == 0)
        until(lambda: gateway.metrics()['dandolo_slots_in_use{account="b"}'] == 0)


def test_hedge_takes_over_when_the_first_fails_meanwhile(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b", script=Script(first_token_s=0.8))
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(default_fault=Fault("close_before_answer", delay_s=0.6))
        answer = ask(gateway, stream=True)
        assert (who(answer), answer.complete, len(b.requests)) == ("b", True, 1)


def test_client_that_leaves_cancels_both_attempts(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b", script=Script(first_token_s=30.0))
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=30.0)
        with gateway.client() as client:
            client.send(request(body=chat(model="all", stream=True)))
            until(lambda: b.in_flight == 1)
        until(lambda: a.in_flight == b.in_flight == 0, 3.0)
        until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 0)


def test_stream_of_a_hedge_that_breaks_is_no_complete_one(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=30.0)
        b.script = Script(default_fault=Fault("cut_rst", after=4))
        answer = ask(gateway, stream=True)
        assert (answer.status, answer.complete) == (200, False)
        assert b"[DONE]" not in answer.body
        assert b"upstream_stream_error" in answer.body


# -- told ----------------------------------------------------------------------------------------------------


def test_choice_is_explained_to_whoever_asks(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b", script=Script(latency_s=0.05))
    with running(tmp_path, a, b) as gateway:
        for _ in range(8):
            ask(gateway, stream=True)
        answer = ask(gateway, headers={"x-dandolo-explain": "true"})
        told = explained(answer)["attempts"][0]
        assert told["chosen"] == f"{who(answer)} sim"
        assert told["how"] in ("draw", "sticky")
        assert {one["account"] for one in told["candidates"]} == {"a", "b"}
        for one in told["candidates"]:
            terms = one["of_latency"] + one["of_errors"] + one["of_load"] + one["of_cost"]
            assert one["score"] == pytest.approx(terms, abs=0.002)
        assert sum(one["probability"] for one in told["candidates"]) == pytest.approx(1.0, abs=0.01)
        assert ask(gateway).header("x-dandolo-explain") is None


def test_explanation_tells_why_somebody_was_left_out(tmp_path: Path) -> None:
    a, b = SimProvider("a", script=Script(default_fault=Fault("status", status=500))), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}) as gateway:
        for _ in range(3):
            ask(gateway)
        told = explained(ask(gateway, headers={"x-dandolo-explain": "true"}))["attempts"][-1]
        out = next(one for one in told["candidates"] if one["account"] == "a")
        assert out["left_out"] == "breaker"
        assert out["reason"] == "3 failures in a row"
        assert out["for_ms"] > 0


def test_operator_sees_accounts_and_a_hypothetical_choice(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b) as gateway:
        for _ in range(6):
            ask(gateway, stream=True)
        accounts = {one["account"]: one for one in json.loads(gateway.admin("/admin/routes").body)["accounts"]}
        assert set(accounts) == {"a", "b"}
        measured = [model for account in accounts.values() for model in account["models"]]
        assert all(model["first_token_ms"] > 0 for model in measured)
        assert accounts["a"]["slots"]["limit"] == 256
        told = json.loads(gateway.admin("/admin/routes?model=all&tokens_in=10").body)
        assert {one["account"] for one in told["candidates"]} == {"a", "b"}
        assert gateway.admin("/admin/routes?model=all&tokens_in=x").status == 400
        assert gateway.admin("/admin/routes?model=%0d%0ax/y").status in (200, 404)


def test_reload_forgets_nothing_that_was_measured(tmp_path: Path) -> None:
    a, b = SimProvider("a", script=Script(default_fault=Fault("status", status=500))), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}) as gateway:
        for _ in range(4):
            ask(gateway)
        asked = len(a.requests)
        gateway.signal(signal.SIGHUP)
        until(lambda: "reloaded" in gateway.said())
        answer = ask(gateway)
        assert (who(answer), len(a.requests)) == ("b", asked)


# -- auto ----------------------------------------------------------------------------------------------------

AUTO = """
[auto]
quality = 0.5
[[auto.models]]
name = "chatty"
quality = { question = 0.9, code = 0.6, tools = 0.6 }
[[auto.models]]
name = "coder"
quality = { question = 0.7, code = 0.95, tools = 0.9 }
capabilities = ["tools"]
[[auto.models]]
name = "wide"
quality = { question = 0.6, code = 0.6, long_context = 0.9 }
context_tokens = 200000
"""
PRICED: dict[str, Any] = {
    "models": {},
    "sim_models": [
        {"id": "chatty", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.2, "context_tokens": 4000},
        {"id": "coder", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0, "context_tokens": 8000},
        {"id": "wide", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.2},
    ],
}
CODE = "Write a Python function that parses an ISO date with a regular expression:\n```python\ndef parse(text):\n```"


def asked(gateway: Gateway, text: str, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    return ask(gateway, "auto", headers, messages=[{"role": "user", "content": text}], **more)


def test_auto_chooses_a_model_by_what_is_asked(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with running(tmp_path, sim, toml=AUTO, **PRICED) as gateway:
        for text, model in (
            ("What is the capital of Peru?", "chatty"),
            (CODE, "coder"),
            ("Summarise: " + "the ledger says nothing of it. " * 2000, "wide"),
        ):
            answer = asked(gateway, text, auto={"quality": 0.5})
            assert (answer.status, answer.header("x-dandolo-model")) == (200, model)
            sent = json.loads(sim.requests[-1].body)
            assert sent["model"] == model
            assert "auto" not in sent
            assert gateway.record(answer)["upstream_model"] == model
        answer = asked(gateway, CODE, headers={"x-dandolo-explain": "true"})
        told = explained(answer)["auto"]
        assert (told["use"], told["models"][0]["name"]) == ("code", "coder")


def test_auto_that_fits_nothing_names_the_bound_and_the_nearest(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with running(tmp_path, sim, toml=AUTO, **PRICED) as gateway:
        answer = asked(gateway, CODE, auto={"max_cost": 1e-9})
        assert (answer.status, answer.error["code"]) == (422, "no_model_fits")
        assert "max_cost" in answer.error["message"]
        answer = asked(gateway, "hello", headers={"x-dandolo-quality": "much"})
        assert answer.status == 400
        assert not sim.requests


def test_auto_falls_back_to_the_next_model(tmp_path: Path) -> None:
    fault = Fault("status", status=503, times=0)
    sim = SimProvider("sim", script=Script(faults=[fault]))
    with running(tmp_path, sim, toml=AUTO, **PRICED) as gateway:
        answer = asked(gateway, "What is the capital of Peru?")
        assert answer.status == 503
        sim.script = Script(faults=[Fault("status", status=503)])
        answer = asked(gateway, "What is the capital of Chile?", models=["coder"])
        assert (answer.status, answer.header("x-dandolo-attempts")) == (200, "2")
        assert json.loads(sim.requests[-2].body)["model"] == "chatty"
        assert json.loads(sim.requests[-1].body)["model"] != "chatty"


def test_auto_sees_only_models_that_the_key_may_use(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    keys = [{"name": "narrow", "key": "k-narrow", "models": ["chatty"]}]
    with running(tmp_path, sim, toml=AUTO, keys=keys, **PRICED) as gateway:
        body = chat(model="auto", messages=[{"role": "user", "content": CODE}])
        answer = gateway.ask(request(body=body, key="k-narrow"))
        assert (answer.status, answer.header("x-dandolo-model")) == (200, "chatty")
