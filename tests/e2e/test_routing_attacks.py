"""What crafted requests, hostile providers and unlucky moments must not do to the choice of a provider."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Gateway, chat, request, until
from test_routing import EQUAL, ask, concurrently, explained, running, warm, who

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


def test_slots_kept_for_others_send_a_call_to_whoever_is_free(tmp_path: Path) -> None:
    main, spare = SimProvider("main", script=Script(latency_s=0.6)), SimProvider("spare")
    keys = [{"name": "own", "key": "k-own", "slots_reserved": 0.5}, {"name": "rest", "key": "k-rest"}]
    options = {"main": {"role": "primary", "concurrency_max": 4}, "spare": {"role": "secondary"}}
    with running(tmp_path, main, spare, keys=keys, **options) as gateway:
        answers: list[Answer] = []

        def one() -> None:
            answers.append(gateway.ask(request(body=chat(model="all"), key="k-rest")))

        threads = [threading.Thread(target=one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = [who(answer) for answer in answers]
        assert (served.count("main"), served.count("spare")) == (2, 4)
        assert all(answer.header("x-dandolo-queue-ms") == "0.000" for answer in answers)


def test_slot_that_comes_free_in_a_cool_down_is_not_used(tmp_path: Path) -> None:
    limited = Fault("status", status=429, headers=[("retry-after", "20")], delay_s=0.2, times=0)
    sim = SimProvider("only", script=Script(latency_s=0.3))
    with running(tmp_path, sim, options={"concurrency_max": 1}) as gateway:
        ask(gateway)
        sim.script = Script(latency_s=0.3, faults=[limited])
        before = len(sim.requests)
        answers = concurrently(gateway, 8)
        assert {answer.status for answer in answers} == {429}
        assert len(sim.requests) - before == 1
        at_rest(gateway)


def test_waiter_goes_elsewhere_when_its_provider_breaks(tmp_path: Path) -> None:
    main, spare = SimProvider("main", script=Script(latency_s=0.3)), SimProvider("spare", script=Script(latency_s=0.3))
    with running(tmp_path, main, spare, options={"role": "primary", "concurrency_max": 1}) as gateway:
        concurrently(gateway, 2)
        main.script = Script(latency_s=0.2, default_fault=Fault("status", status=402))
        asked = len(main.requests)
        answers = concurrently(gateway, 6)
        assert {who(answer) for answer in answers} == {"spare"}
        assert len(main.requests) - asked == 1
        at_rest(gateway)


def test_waiter_for_a_provider_that_a_reload_removed_is_refused_in_its_time(tmp_path: Path) -> None:
    gone, stays = SimProvider("gone", script=Script(latency_s=60.0)), SimProvider("stays")
    keys = [{"name": "vip", "key": "k-vip", "priority": "high"}]
    options = {"role": "primary", "concurrency_max": 1}
    with running(tmp_path, gone, stays, options=options, keys=keys, models={}) as gateway:
        held = [gateway.client() for _ in range(3)]
        for client in held:
            client.send(request(body=chat(model="gone/sim"), key="k-vip"))
        until(lambda: gateway.metrics()['dandolo_slots_waiting{account="gone"}'] == 2)
        config = gateway.config.read_text("utf-8")
        gateway.config.write_text(config.replace('name = "gone"', 'name = "new"'), "utf-8")
        gateway.signal(signal.SIGHUP)
        until(lambda: "reloaded" in gateway.said())
        assert [client.answer().status for client in held[1:]] == [503, 503]
        for client in held:
            client.socket.close()
        at_rest(gateway)


@pytest.mark.parametrize("stream", [False, True])
def test_time_that_others_used_up_speaks_against_nobody(tmp_path: Path, stream: bool) -> None:
    a, b = SimProvider("a", script=Script(latency_s=30.0)), SimProvider("b", script=Script(latency_s=1.0))
    timeouts = {"first_byte": "600ms", "first_byte_stream": "600ms", "total": "1s", "stream_total": "1s"}
    options = {"a": {"role": "primary"}, "b": {"role": "secondary"}}
    with running(tmp_path, a, b, timeouts=timeouts, **options) as gateway:
        assert ask(gateway, stream=stream).status == 504
        accounts = {one["account"]: one for one in json.loads(gateway.admin("/admin/routes").body)["accounts"]}
        assert accounts["a"]["models"][0]["error_rate"] > 0
        assert accounts["b"]["models"][0]["error_rate"] == 0


def test_stream_longer_than_its_time_speaks_against_nobody(tmp_path: Path) -> None:
    sim = SimProvider("only", script=Script(tokens_per_s=10.0, tokens=40))
    with running(tmp_path, sim, timeouts={"stream_total": "1s"}) as gateway:
        for _ in range(3):
            assert not ask(gateway, stream=True).complete
        assert ask(gateway).status == 200


# -- hedges --------------------------------------------------------------------------------------------------


def hedging(tmp_path: Path, a: SimProvider, b: SimProvider, **more: Any) -> Any:
    return running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}, routing={"hedge": True}, **more)


def test_short_timeout_of_a_caller_speaks_against_nobody_in_a_hedge(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with hedging(tmp_path, a, b) as gateway:
        warm(gateway, "a/sim")
        warm(gateway, "b/sim")
        for sim in (a, b):
            sim.script = Script(first_token_s=5.0)
        for _ in range(4):
            assert ask(gateway, headers={"x-dandolo-timeout": "500ms"}, stream=True).status == 504
        until(lambda: a.in_flight == b.in_flight == 0)
        accounts = {one["account"]: one for one in json.loads(gateway.admin("/admin/routes").body)["accounts"]}
        assert accounts["b"]["models"][0]["breaker"] == "closed"
        assert accounts["b"]["models"][0]["error_rate"] == 0
        at_rest(gateway)


def test_answer_of_a_hedge_tells_what_was_asked_of_it(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with hedging(tmp_path, a, b) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=30.0)
        answer = ask(gateway, headers={"x-dandolo-explain": "true"}, stream=True)
        assert who(answer) == "b"
        assert explained(answer)["attempts"][0]["chosen"] == "a sim"
        assert answer.header("x-dandolo-reason") == "a silent"
        answer = ask(gateway, "auto", stream=True, auto={"quality": 0.1})
        assert (who(answer), answer.header("x-dandolo-model")) == ("b", "all")


@pytest.mark.parametrize(("first_s", "other_s"), [(0.5, 0.9), (0.9, 0.1)])
def test_failure_of_a_hedge_is_told_as_its_own(tmp_path: Path, first_s: float, other_s: float) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with hedging(tmp_path, a, b) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(latency_s=first_s, default_fault=Fault("status", status=500))
        b.script = Script(latency_s=other_s, default_fault=Fault("status", status=503))
        answer = ask(gateway, stream=True)
        told = ["a upstream_error", "b upstream_overloaded"] if first_s < other_s else ["b upstream_overloaded"]
        assert (answer.header("x-dandolo-reason") or "").split("; ")[: len(told)] == told
        assert answer.error["code"] == ("upstream_overloaded" if first_s < other_s else "upstream_error")
        assert answer.header("x-dandolo-attempts") == "2"


def test_refusal_by_a_hedge_that_is_the_callers_own_fault_is_the_answer(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with hedging(tmp_path, a, b) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(latency_s=0.5, default_fault=Fault("status", status=500))
        b.script = Script(latency_s=0.9, default_fault=Fault("status", status=400))
        assert ask(gateway, stream=True).status == 400


def test_nothing_of_a_provider_that_was_given_up_is_in_the_answer(tmp_path: Path) -> None:
    for hedge in (False, True):
        a, b = SimProvider("alpha"), SimProvider("beta")
        options = {"alpha": {"role": "primary"}, "beta": {"role": "secondary"}}
        with running(tmp_path / str(hedge), a, b, routing={"hedge": hedge}, **options) as gateway:
            warm(gateway, "alpha/sim")
            a.script = Script(default_fault=Fault("role_first", delay_s=30.0))
            answer = ask(gateway, stream=True)
            assert who(answer) == "beta"
            assert answer.complete
            ids = {json.loads(event)["id"] for event in answer.events if event != b"[DONE]"}
            assert len(ids) == 1
            assert answer.body.count(b'"role"') == 1
            assert answer.body.count(b"[DONE]") == 1


def test_thousand_random_cancels_leak_nothing(tmp_path: Path) -> None:
    """Clients leave while they queue, while two providers are asked, while one is taken over, in a cool-down, in a
    trial, during reloads: then every count is back at nothing, and everybody is served again."""
    draw = random.Random(11)
    faults = [
        Fault("status", status=500), Fault("ok"), Fault("role_first", delay_s=0.2), Fault("ok"),
        Fault("status", status=429, headers=[("retry-after", "0.05")]), Fault("cut_rst", after=3), Fault("ok"),
        Fault("close_before_answer"), Fault("stall", delay_s=0.1), Fault("ok"),
    ]  # fmt: skip
    sims = [SimProvider(name) for name in "abc"]
    keys = [
        {"name": "vip", "key": "k-0", "priority": "high", "slots_reserved": 0.4},
        {"name": "batch", "key": "k-1", "priority": "low"},
        {"name": "rest", "key": "k-2"},
    ]
    options = {"role": "primary", "concurrency_max": 3}
    timeouts = {"first_byte_stream": "1s", "first_byte": "1s"}
    with running(tmp_path, *sims, options=options, keys=keys, routing={"hedge": True}, timeouts=timeouts) as gateway:
        for sim in sims:
            for _ in range(4):
                body = chat(model=f"{sim.name}/sim", stream=True)
                assert gateway.ask(request(body=body, key="k-0")).complete
        for sim in sims:
            chosen = [draw.choice(faults) for _ in range(700)]
            sim.script = Script(latency_s=0.01, first_token_s=0.05, jitter=0.9, tokens_per_s=400, faults=chosen)

        def some(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(125):
                stream = mine.random() < 0.7
                headers = {"x-dandolo-timeout": "200ms"} if mine.random() < 0.1 else {}
                with gateway.client() as client:
                    body = chat(model="all", stream=stream, prompt_cache_key=f"s{mine.randrange(9)}")
                    client.send(request(body=body, key=f"k-{mine.randrange(3)}", headers=headers))
                    time.sleep(mine.random() * 0.25)
                    if mine.random() < 0.5:
                        client.reset()

        threads = [threading.Thread(target=some, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            time.sleep(0.5)
            gateway.signal(signal.SIGHUP)
        for thread in threads:
            thread.join()
        for sim in sims:
            sim.script = Script()
        at_rest(gateway)

        def served() -> bool:
            answer = gateway.ask(request(body=chat(model="all"), key="k-2"))
            return answer.status == 200

        until(served)
        at_rest(gateway)


# -- one tenant and the others -------------------------------------------------------------------------------


def test_model_that_answers_is_not_given_up_for_one_404(tmp_path: Path) -> None:
    """A chat model asked for embeddings is "not found": that must not send everybody's chats away."""
    said = '{"error":{"message":"no such model","code":"model_not_found"}}'
    missing = Fault("status", status=404, body=said, times=0, only="embeddings")
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path, a, b, a={"role": "primary"}, b={"role": "secondary"}) as gateway:
        assert who(ask(gateway)) == "a"
        a.script = Script(faults=[missing])
        answer = gateway.ask(request("/v1/embeddings", {"model": "a/sim", "input": "x"}))
        assert answer.status == 404
        assert who(ask(gateway)) == "a"


@pytest.mark.parametrize(
    ("profile", "status", "body"),
    [
        ("venice", 401, '{"error":"This model is only available to Pro users"}'),
        ("generic", 403, "<html><h1>Sorry, you have been blocked</h1></html>"),
        ("generic", 451, '{"error":{"message":"not available for legal reasons"}}'),
    ],
)
def test_refusal_of_one_model_or_request_does_not_pause_the_account(
    tmp_path: Path, profile: str, status: int, body: str
) -> None:
    """Anybody can name a model that the account may not use, or write what a firewall takes for an attack."""
    sim = SimProvider("only", script=Script(faults=[Fault("status", status=status, body=body)]))
    with running(tmp_path, sim, options={"profile": profile, **EQUAL}) as gateway:
        assert ask(gateway, "only/barred").status >= 400
        assert ask(gateway, "only/other").status == 200


def test_answer_longer_than_the_credit_left_does_not_pause_the_account(tmp_path: Path) -> None:
    said = (
        "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, but can only "
        "afford 1432. To increase, visit https://openrouter.ai/settings/credits"
    )
    sim = SimProvider("router")
    with running(tmp_path, sim, options={"profile": "openrouter", **EQUAL}) as gateway:
        body = json.dumps({"error": {"message": said, "code": 402}})
        sim.script = Script(faults=[Fault("status", status=402, body=body)])
        assert ask(gateway, "x/y", max_tokens=65536).status == 402
        assert ask(gateway, "x/y").status == 200


def test_request_larger_than_a_minutes_limit_does_not_cool_the_model_down(tmp_path: Path) -> None:
    said = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 61200."
    body = json.dumps({"error": {"message": said, "type": "tokens", "param": None, "code": "rate_limit_exceeded"}})
    sim = SimProvider("openai")
    with running(tmp_path, sim, options={"profile": "openai", **EQUAL}) as gateway:
        sim.script = Script(faults=[Fault("status", status=429, body=body)])
        started = time.monotonic()
        assert ask(gateway, "openai/gpt-4o").status == 429
        answer = ask(gateway, "openai/gpt-4o")
        assert answer.status == 200
        assert time.monotonic() - started < 0.9


def test_caller_that_leaves_does_not_end_the_counting_of_tokens(tmp_path: Path) -> None:
    sim = SimProvider("only")
    with running(tmp_path, sim) as gateway:
        faults = [Fault("status", status=400, body='{"error":{"message":"bad"}}'), Fault("hang_before_answer")]
        sim.script = Script(faults=faults)
        with gateway.client() as client:
            client.send(request(body=chat(model="all", stream=True)))
            until(lambda: len(sim.requests) == 2)
        until(lambda: sim.in_flight == 0)
        assert ask(gateway, stream=True).complete
        assert b"include_usage" in sim.requests[-1].body


def test_session_that_uses_two_models_stays_with_both(tmp_path: Path) -> None:
    a, b = (SimProvider(name, script=Script(latency_s=0.05)) for name in "ab")
    names = {"one": ["a/sim-1", "b/sim-1"], "two": ["a/sim-2", "b/sim-2"]}
    with running(tmp_path, a, b, models=names) as gateway:
        served: dict[str, set[str]] = {"one": set(), "two": set()}
        for session in range(4):
            for _ in range(6):
                for name, seen in served.items():
                    seen.add(f"{session} {who(ask(gateway, name, prompt_cache_key=f'session-{session}'))}")
        # Sixteen places when nobody stays; one may move while little is known, to whom is clearly better.
        assert sum(map(len, served.values())) <= 10, served


@pytest.mark.parametrize("hedge", [False, True])
def test_long_prompts_do_not_close_a_provider_to_short_ones(tmp_path: Path, hedge: bool) -> None:
    """What is usual of a provider is learned from all prompts; a long one takes its time before the first token."""
    a, b = SimProvider("a"), SimProvider("b")
    options = {"a": {"role": "primary"}, "b": {"role": "secondary"}}
    with running(tmp_path, a, b, routing={"hedge": hedge}, **options) as gateway:
        warm(gateway, "a/sim")
        a.script = Script(first_token_s=3.0)
        long = [{"role": "user", "content": "one more word " * 8000}]
        answers = concurrently(gateway, 4, messages=long, stream=True)
        assert [who(answer) for answer in answers] == ["a"] * 4
        a.script = Script()
        assert who(ask(gateway)) == "a"


def test_tenant_whose_requests_always_fail_does_not_use_up_the_retries_of_others(tmp_path: Path) -> None:
    missing = Fault("status", status=404, body='{"error":{"message":"no such model","code":"model_not_found"}}')
    a, b = (SimProvider(name, script=Script(default_fault=missing)) for name in "ab")
    keys = [{"name": "odd", "key": "k-odd"}, {"name": "even", "key": "k-even"}]
    options = {"a": {"role": "primary"}, "b": {"role": "secondary"}}
    with running(tmp_path, a, b, keys=keys, routing={"breaker": False}, **options) as gateway:
        for number in range(40):
            assert gateway.ask(request(body=chat(model=f"name-{number}"), key="k-odd")).status == 404
        a.script, b.script = Script(default_fault=Fault("close_before_answer")), Script()
        assert [who(gateway.ask(request(body=chat(model="all"), key="k-even"))) for _ in range(5)] == ["b"] * 5
