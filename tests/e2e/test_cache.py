"""Kept and shared answers of a running gateway, before a simulated provider on real sockets."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Client, Gateway, chat, request, until

from dandolo.sim.script import Fault, Script
from dandolo.sim.server import SimProvider
from dandolo.sim.thread import SimThread

REUSE = '[cache]\nsampled = "reuse"\n'
KEYS = [{"name": "one", "key": "k-one"}, {"name": "two", "key": "k-two"}]


@contextlib.contextmanager
def running(directory: Path, script: Script | None = None, **more: Any) -> Iterator[tuple[Gateway, SimProvider]]:
    sim = SimProvider("sim", script=script or Script())
    with SimThread(sim), Gateway(directory, [sim], toml=more.pop("toml", REUSE), **more) as gateway:
        yield gateway, sim


def ask(gateway: Gateway, text: str = "What is the capital of Peru?", **more: Any) -> Answer:
    headers, key = more.pop("headers", {}), more.pop("key", None)
    body = chat(model="sim/m", messages=[{"role": "user", "content": text}], **more)
    return gateway.ask(request(body=body, headers=headers, key=key))


def state(answer: Answer) -> str | None:
    assert answer.status == 200, answer.body
    return answer.header("x-cache")


def text_of(answer: Answer) -> str:
    if answer.header("content-type") == "text/event-stream":
        assert answer.complete
        datas = [json.loads(data) for data in answer.events if data != b"[DONE]"]
        assert answer.events[-1] == b"[DONE]"
        return "".join(c["delta"].get("content") or "" for d in datas for c in d["choices"])
    return answer.json["choices"][0]["message"]["content"]


def test_a_stream_through_a_shared_call_has_a_time_to_first_token(tmp_path: Path) -> None:
    with running(tmp_path, Script(first_token_s=0.05)) as (gateway, _):
        answer = ask(gateway, stream=True)
        assert state(answer) == "MISS"
        record = gateway.record(answer)
        assert 50.0 <= record["first_token_ms"] <= record["duration_ms"]


# -- kept ----------------------------------------------------------------------------------------------------


@pytest.mark.promise("46")
def test_same_question_is_paid_for_once(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, sim):
        first, second = ask(gateway), ask(gateway)
        assert (state(first), state(second)) == ("MISS", "HIT")
        assert second.body == first.body
        assert second.header("cache-status").startswith("dandolo; hit; ttl=")
        assert second.header("age") == "0"
        assert len(sim.requests) == 1
        record = gateway.record(second)
        assert (record["cache"], record["cost_usd"]) == ("hit", 0.0)
        assert record["output_tokens"] == gateway.record(first)["output_tokens"] > 0
        # White space and the order of members are not the question; a word is.
        body = b'{"messages": [{"content": "What is the capital of Peru?", "role": "user"}],\n "model": "sim/m"}'
        assert state(gateway.ask(request(body=body, headers={"content-type": "application/json"}))) == "HIT"
        assert state(ask(gateway, "What is the capital of Chile?")) == "MISS"
        assert state(ask(gateway, max_tokens=5)) == "MISS"
        assert state(ask(gateway, something_new=True)) == "MISS"


def test_only_deterministic_calls_are_kept_by_default(tmp_path: Path) -> None:
    with running(tmp_path, toml="") as (gateway, sim):
        assert [state(ask(gateway)) for _ in range(2)] == ["BYPASS"] * 2
        assert [state(ask(gateway, temperature=0.7)) for _ in range(2)] == ["BYPASS"] * 2
        assert [state(ask(gateway, temperature=0)) for _ in range(2)] == ["MISS", "HIT"]
        assert [state(ask(gateway, seed=7)) for _ in range(2)] == ["MISS", "HIT"]
        body = {"model": "sim/m", "input": "x"}
        assert [state(gateway.ask(request("/v1/embeddings", body))) for _ in range(2)] == ["MISS", "HIT"]
        assert len(sim.requests) == 7


def test_cache_that_is_off_says_and_keeps_nothing(tmp_path: Path) -> None:
    with running(tmp_path, toml="[cache]\nlevels = []\n") as (gateway, sim):
        assert [state(ask(gateway, temperature=0)) for _ in range(2)] == [None, None]
        assert len(sim.requests) == 2


@pytest.mark.parametrize("first", [False, True])
def test_kept_answer_serves_both_forms(tmp_path: Path, first: bool) -> None:
    with running(tmp_path) as (gateway, sim):
        made = ask(gateway, stream=first)
        other = ask(gateway, stream=not first)
        again = ask(gateway, stream=first)
        assert [state(made), state(other), state(again)] == ["MISS", "HIT", "HIT"]
        assert text_of(made) == text_of(other) == text_of(again)
        assert len(sim.requests) == 1
        streamed = ask(gateway, stream=True, stream_options={"include_usage": True})
        usage = [json.loads(data).get("usage") for data in streamed.events[:-1]]
        assert usage[-1]["completion_tokens"] > 0
        plain = ask(gateway, stream=True)
        assert not any(json.loads(data).get("usage") for data in plain.events[:-1])


@pytest.mark.promise("47")
def test_keys_do_not_see_each_others_answers_unless_they_agree(tmp_path: Path) -> None:
    with running(tmp_path, keys=KEYS) as (gateway, sim):
        assert [state(ask(gateway, key=key)) for key in ("k-one", "k-two", "k-one")] == ["MISS", "MISS", "HIT"]
    shared = [{**key, "cache_scope": "shared"} for key in KEYS]
    with running(tmp_path / "shared", keys=shared) as (gateway, sim):
        assert [state(ask(gateway, key=key)) for key in ("k-one", "k-two")] == ["MISS", "HIT"]
        assert len(sim.requests) == 1


def test_request_headers_steer_it(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, _):
        absent = ask(gateway, headers={"cache-control": "only-if-cached"})
        assert (absent.status, absent.error["code"]) == (504, "not_cached")
        assert state(ask(gateway, headers={"cache-control": "no-store"})) == "BYPASS"
        assert state(ask(gateway, headers={"dandolo-cache": "off"})) == "BYPASS"
        assert state(ask(gateway)) == "MISS"
        assert state(ask(gateway, headers={"cache-control": "only-if-cached"})) == "HIT"
        assert state(ask(gateway, headers={"cache-control": "no-cache"})) == "MISS"
        assert state(ask(gateway, headers={"cache-control": "max-age=0"})) == "MISS"
        assert state(ask(gateway, temperature=1, headers={"dandolo-cache": "force"})) == "MISS"
        assert state(ask(gateway, temperature=1, headers={"dandolo-cache": "force"})) == "HIT"
        assert state(ask(gateway, temperature=1)) == "BYPASS"
        assert ask(gateway, headers={"dandolo-cache": "offf"}).status == 400


@pytest.mark.promise("48")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500),
        Fault("error_200"),
        Fault("no_finish_no_done"),
        Fault("cut_fin", after=3),
        Fault("stream_error", after=3),
    ],
    ids=lambda fault: fault.kind,
)
def test_what_is_no_complete_answer_is_not_kept(tmp_path: Path, fault: Fault) -> None:
    with running(tmp_path, Script(faults=[fault]), routing={"breaker": False}) as (gateway, sim):
        broken = ask(gateway, stream=True)
        assert broken.status >= 500 or not broken.complete
        assert state(ask(gateway, stream=True)) == "MISS"
        assert state(ask(gateway, stream=True)) == "HIT"
        assert len(sim.requests) == 2


def test_answer_cut_for_length_is_not_kept(tmp_path: Path) -> None:
    body = {
        "id": "x",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "half an"}, "finish_reason": "length"}],
    }
    fault = Fault("error_200", body=json.dumps(body))
    with running(tmp_path, Script(default_fault=fault)) as (gateway, _):
        assert [state(ask(gateway)) for _ in range(2)] == ["MISS", "MISS"]


# -- shared while under way ----------------------------------------------------------------------------------


def at_once(gateway: Gateway, *bodies: dict[str, Any]) -> list[Answer]:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in bodies]
        for client, body in zip(clients, bodies, strict=True):
            client.send(request(body=chat(model="sim/m", **body)))
        return [client.answer() for client in clients]


def test_identical_requests_under_way_are_one_call(tmp_path: Path) -> None:
    with running(tmp_path, Script(first_token_s=0.3, tokens_per_s=100, tokens=20)) as (gateway, sim):
        told = {"stream": True, "stream_options": {"include_usage": True}}
        answers = at_once(gateway, *[{"stream": True}] * 4, {}, told)
        assert [answer.status for answer in answers] == [200] * 6
        assert sorted(state(answer) or "" for answer in answers) == ["COLLAPSED"] * 5 + ["MISS"]
        assert len({text_of(answer) for answer in answers}) == 1
        assert len(sim.requests) == 1
        for answer in answers[:4]:
            assert not any(json.loads(data).get("usage") for data in answer.events[:-1])
        assert json.loads(answers[5].events[-2])["usage"]["completion_tokens"] > 0
        records = [gateway.record(answer) for answer in answers]
        assert all(record["output_tokens"] for record in records)
        assert sum(record["attempts"] for record in records) == 6


def test_first_who_leaves_harms_nobody_and_the_last_cancels(tmp_path: Path) -> None:
    with running(tmp_path, Script(first_token_s=0.4, tokens_per_s=50, tokens=20)) as (gateway, sim):
        body = request(body=chat(model="sim/m", stream=True))
        with gateway.client() as first, gateway.client() as second:
            first.send(body)
            until(lambda: sim.in_flight == 1)
            second.send(body)
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 2)
            first.reset()
            answer = second.answer()
            assert (answer.complete, len(sim.requests)) == (True, 1)
        sim.script = Script(first_token_s=30.0)
        with gateway.client() as first, gateway.client() as second:
            for client in (first, second):
                client.send(request(body=chat(model="sim/m", stream=True, seed=1)))
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 2)
        until(lambda: sim.in_flight == 0, 5.0)
        until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 0)
        until(lambda: gateway.metrics()['dandolo_slots_in_use{account="sim"}'] == 0)


@pytest.mark.parametrize("leaves", [False, True])
def test_call_made_the_short_way_is_shared_and_outlives_its_client(tmp_path: Path, leaves: bool) -> None:
    with running(tmp_path, Script(first_token_s=0.4)) as (gateway, sim), gateway.client() as first:

        def body(text: str) -> bytes:
            return request(body=chat(model="sim/m", messages=[{"role": "user", "content": text}]))

        # What was learned from the first call of a connection makes its others short ones.
        first.send(body("Ready?"))
        assert first.answer().status == 200
        first.send(body("And now?"))
        until(lambda: len(sim.requests) == 2)
        with gateway.client() as second:
            second.send(body("And now?"))
            until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 2.0)
            if leaves:
                first.__exit__()
            answer = second.answer()
            assert (answer.status, answer.header("x-cache")) == (200, "COLLAPSED")
        if not leaves:
            assert first.answer().body == answer.body
        assert len(sim.requests) == 2
        records = until(lambda: len(found := gateway.log_lines()) == 3 and found)
        costs = [record["cost_usd"] for record in records if record.get("cost_usd")]
        assert len(costs) in (0, 2)
        assert state(ask(gateway, "And now?")) == "HIT"


@pytest.mark.promise("48")
def test_answer_with_another_good_status_is_not_kept(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, sim), gateway.client() as client:
        said = ask(gateway, "Ready?").body.decode()
        sim.script = Script(default_fault=Fault("status", status=206, body=said))
        for text in ("Ready now?", "Partly?", "Partly?", "Partly?"):
            client.send(request(body=chat(model="sim/m", messages=[{"role": "user", "content": text}])))
            answer = client.answer()
            assert answer.header("x-cache") == "MISS"


def test_long_answers_are_kept_however_many_came_before_on_the_connection(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, sim), gateway.client() as client:
        for text in ("Ready?", "Ready now?"):
            client.send(request(body=chat(model="sim/m", messages=[{"role": "user", "content": text}])))
            assert client.answer().status == 200
        # Longer than what is passed on in one piece.
        sim.script = Script(tokens=100_000)
        states = []
        for _ in range(3):
            client.send(request(body=chat(model="sim/m", messages=[{"role": "user", "content": "At length?"}])))
            states.append(state(client.answer()))
        assert states == ["MISS", "MISS", "HIT"]


def test_purge_finds_an_answer_that_took_several_providers(tmp_path: Path) -> None:
    slow = SimProvider("slow", script=Script(latency_s=1.0))
    quick = SimProvider("quick")
    with SimThread(slow, quick), Gateway(tmp_path, [slow, quick], toml=REUSE, routing={"breaker": False}) as gateway:

        def body(text: str) -> bytes:
            return request(body=chat(messages=[{"role": "user", "content": text}]))

        with gateway.client() as client, Client(gateway.admin_port) as admin:
            for text in ("Ready?", "Ready now?"):
                client.send(body(text))
                assert client.answer().header("x-dandolo-provider") == "slow"
            slow.script = Script(latency_s=1.0, default_fault=Fault("status", status=500))
            client.send(body("And now?"))
            assert client.answer().header("x-dandolo-provider") == "quick"
            client.send(body("And now?"))
            assert state(client.answer()) == "HIT"
            admin.send(request("/admin/cache/purge", {"tag": "provider=quick"}))
            assert admin.answer().status == 200
            client.send(body("And now?"))
            assert state(client.answer()) == "MISS"


def test_failure_is_told_to_all_who_wait(tmp_path: Path) -> None:
    script = Script(default_fault=Fault("cut_rst", after=5), first_token_s=0.3, tokens_per_s=100)
    with running(tmp_path, script, routing={"breaker": False}) as (gateway, _):
        for answer in at_once(gateway, *[{"stream": True}] * 3):
            assert (answer.status, answer.complete) == (200, False)
            assert b"upstream_stream_error" in answer.body
            assert b"[DONE]" not in answer.body
        for answer in at_once(gateway, *[{"stream": False}] * 3):
            assert answer.status == 502


def test_uncacheable_calls_are_never_shared(tmp_path: Path) -> None:
    with running(tmp_path, Script(latency_s=0.3)) as (gateway, sim):
        answers = at_once(gateway, *[{"temperature": 0.9}] * 3)
        assert [state(answer) for answer in answers] == ["BYPASS"] * 3
        assert len(sim.requests) == 3


def test_slow_follower_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with running(tmp_path, Script(first_token_s=0.2, tokens=4000)) as (gateway, sim):
        body = request(body=chat(model="sim/m", stream=True))
        with gateway.client() as slow, gateway.client() as quick:
            slow.send(body)
            until(lambda: sim.in_flight == 1)
            quick.send(body)
            assert quick.answer().complete
            assert slow.answer().complete
        assert len(sim.requests) == 1


# -- past their time -----------------------------------------------------------------------------------------


def test_stale_answer_stands_in_for_an_error(tmp_path: Path) -> None:
    with running(tmp_path, routing={"breaker": False}) as (gateway, sim):
        ttl = {"dandolo-cache-ttl": "1s"}
        assert state(ask(gateway, headers=ttl)) == "MISS"
        sim.script = Script(default_fault=Fault("status", status=500))
        until(lambda: state_or_error(ask(gateway)) != "HIT", 5.0)
        assert state_or_error(ask(gateway)) in ("STALE", "502")


def state_or_error(answer: Answer) -> str:
    return answer.header("x-cache") or str(answer.status) if answer.status == 200 else str(answer.status)


# -- repeated to the byte ------------------------------------------------------------------------------------


def repeated(text: str = "Once more?", key: str | None = None, **headers: str) -> bytes:
    body = chat(model="sim/m", messages=[{"role": "user", "content": text}])
    return request(body=body, key=key, headers={name.replace("_", "-"): value for name, value in headers.items()})


def warm(client: Client, data: bytes) -> None:
    """Until the gateway knows these bytes: asked, found, found by a head that repeats."""
    for _ in range(4):
        client.send(data)
        assert client.answer().status == 200


def test_request_repeated_to_the_byte_is_answered_and_recorded_like_any_other(tmp_path: Path) -> None:
    with running(tmp_path, keys=KEYS) as (gateway, sim), gateway.client() as client:
        data = repeated(key="k-one")
        warm(client, data)
        client.send(data)
        fast = client.answer()
        client.send(repeated(key="k-one", x_other="1"))
        slow = client.answer()
        assert (state(fast), state(slow)) == ("HIT", "HIT")
        assert fast.body == slow.body
        names = [name for name, _ in fast.headers if name != "x-dandolo-overhead-ms"]
        assert sorted(names) == sorted(name for name, _ in slow.headers)
        one, other = gateway.record(fast), gateway.record(slow)
        varying = {"id", "time", "duration_ms", "overhead_ms"}
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
        assert one["id"] != other["id"]
        assert len(sim.requests) == 1
        # From another connection, and in one piece with the next one.
        with gateway.client() as second:
            second.send(data)
            assert state(second.answer()) == "HIT"
            second.send(data + data)
            assert [state(second.answer()) for _ in range(2)] == ["HIT", "HIT"]
            second.send(data[:100])
            second.send(data[100:] + data)
            assert [state(second.answer()) for _ in range(2)] == ["HIT", "HIT"]
        assert gateway.metrics()["dandolo_requests_in_flight"] == 0


def test_repeats_of_a_key_with_a_rate_are_counted_and_told(tmp_path: Path) -> None:
    keys = [{"name": "one", "key": "k-one", "rpm": 8, "concurrent": 1}]
    with running(tmp_path, keys=keys) as (gateway, sim), gateway.client() as client:
        data = repeated(key="k-one")
        left = []
        for _ in range(8):
            client.send(data)
            answer = client.answer()
            assert answer.status == 200
            left.append(answer.header("x-ratelimit-remaining-requests"))
        assert left == ["7", "6", "5", "4", "3", "2", "1", "0"]
        assert state(answer) == "HIT"
        assert gateway.metrics()["dandolo_cache_repeats"] == 1
        names = sorted(name for name, _ in answer.headers)
        for _ in range(2):
            client.send(data)
            refused = client.answer()
            assert (refused.status, refused.header("x-ratelimit-remaining-requests")) == (429, "0")
            assert 0 < float(refused.header("retry-after")) <= 61
        assert names.count("x-ratelimit-limit-requests") == 1
        assert len(sim.requests) == 1


def test_repeated_bytes_of_one_tenant_are_nobody_elses(tmp_path: Path) -> None:
    with running(tmp_path, keys=KEYS) as (gateway, sim), gateway.client() as client:
        warm(client, repeated(key="k-one"))
        # The same body on the same connection, by another key: after a hit of the first one's.
        for _ in range(3):
            client.send(repeated(key="k-one"))
            assert state(client.answer()) == "HIT"
            client.send(repeated(key="k-two"))
            client.answer()
        client.send(repeated(key="k-three"))
        assert client.answer().status == 401
        client.send(repeated(key="k-two"))
        client.answer()
        assert len(sim.requests) == 2
        assert {gateway.record(ask(gateway, "Once more?", key=key))["key"] for key in ("k-one", "k-two")} == {
            "one",
            "two",
        }


def test_repeated_request_is_judged_anew_after_a_reload(tmp_path: Path) -> None:
    with running(tmp_path, keys=KEYS) as (gateway, _sim), gateway.client() as client:
        data = repeated(key="k-two")
        warm(client, data)
        text = gateway.config.read_text()
        start = text.index("[[keys]]", text.index("[[keys]]") + 1)
        gateway.config.write_text(text[:start] + text[text.index("[[providers]]") :])
        gateway.signal(signal.SIGHUP)
        until(lambda: "reloaded" in gateway.said())
        client.send(data)
        assert client.answer().status == 401


def test_repeated_request_finds_no_answer_that_was_purged_or_has_expired(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, _sim), gateway.client() as client:
        data = repeated()
        warm(client, data)
        with Client(gateway.admin_port) as admin:
            admin.send(request("/admin/cache/purge", {"all": True}))
            assert admin.answer().status == 200
        client.send(data)
        assert state(client.answer()) == "MISS"
        brief = repeated("A short life?", dandolo_cache_ttl="1s")
        client.send(brief)
        assert state(client.answer()) == "MISS"
        plain = repeated("A short life?")
        client.send(plain)
        assert state(client.answer()) == "HIT"
        until(lambda: (client.send(plain), state(client.answer()))[1] != "HIT", 5.0)


def test_privacy_remembers_no_request(tmp_path: Path) -> None:
    keys = [{**KEYS[0], "privacy": True}]
    with running(tmp_path, keys=keys) as (gateway, sim), gateway.client() as client:
        data = repeated("A very private question?", key="k-one")
        warm(client, data)
        assert gateway.metrics()["dandolo_cache_repeats"] == 0
        assert len(sim.requests) == 1


def test_annotated_streams_are_nobodys_but_their_callers(tmp_path: Path) -> None:
    with running(tmp_path) as (gateway, sim):
        for _ in range(2):
            answer = ask(gateway, stream=True, headers={"x-dandolo-annotate": "true"})
            assert b"dandolo_metadata" in answer.body
        assert len(sim.requests) == 2
        # There is nothing to annotate in a plain answer, the first of a connection or not.
        with gateway.client() as client:
            for expected in ("MISS", "HIT", "HIT"):
                client.send(repeated(x_dandolo_annotate="true"))
                assert state(client.answer()) == expected


def test_privacy_keeps_no_body_and_still_answers(tmp_path: Path) -> None:
    with running(tmp_path, server={"privacy": True}) as (gateway, sim):
        assert [state(ask(gateway)) for _ in range(2)] == ["MISS", "HIT"]
        assert len(sim.requests) == 1
