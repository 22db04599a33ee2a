"""Embedding calls that travel together, before a simulated provider on real sockets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Gateway, get, request, until

from dandolo.sim.script import Fault, Script
from dandolo.sim.server import SimProvider
from dandolo.sim.thread import SimThread

WIDE = {"batch_window": "50ms"}


def call(given: Any, *, key: str | None = None, path: str = "/v1/embeddings", **more: Any) -> bytes:
    return request(path, {"model": "sim/e", "input": given, **more}, key=key)


def embed(gateway: Gateway, given: Any, **more: Any) -> Answer:
    return gateway.ask(call(given, **more))


def together(gateway: Gateway, calls: list[dict[str, Any]]) -> list[Answer]:
    """The first alone, the others at one go while it is under way; their answers in order."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in calls]
        clients[0].send(call(**calls[0]))
        until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 1)
        for client, one in zip(clients[1:], calls[1:], strict=True):
            client.send(call(**one))
        return [client.answer() for client in clients]


def inputs(sim: SimProvider) -> list[int]:
    """How many inputs each call had that the provider received."""
    sent = [json.loads(one.body)["input"] for one in sim.requests if one.body]
    return [1 if isinstance(one, str) else len(one) for one in sent]


def vectors(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.body
    assert [entry["index"] for entry in answer.json["data"]] == list(range(len(answer.json["data"])))
    return [entry["embedding"] for entry in answer.json["data"]]


def test_calls_behind_one_under_way_travel_together_and_get_their_own(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.3))
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        calls = [{"given": "first"}, *({"given": [f"text {n}", f"more {n}"]} for n in range(5)), {"given": "last"}]
        answers = together(gateway, calls)
        found = [vectors(answer) for answer in answers]
        assert [len(one) for one in found] == [1, 2, 2, 2, 2, 2, 1]
        assert sorted(inputs(sim)) == [1, 11]
        # Each has the vectors that it would have had alone.
        sim.script = Script()
        for call, one in zip(calls, found, strict=True):
            assert vectors(embed(gateway, **call)) == one
        tokens = [gateway.record(answer)["input_tokens"] for answer in answers]
        merged = json.loads(answers[1].body)["usage"]
        assert all(tokens)
        assert merged["prompt_tokens"] == tokens[1]
        assert {gateway.record(answer)["provider"] for answer in answers} == {"sim"}


def test_call_that_finds_nobody_under_way_waits_for_nobody(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        for _ in range(5):
            assert gateway.record(embed(gateway, "alone"))["duration_ms"] < 50
        assert inputs(sim) == [1] * 5


@pytest.mark.parametrize(
    "others",
    [
        {"given": "b", "dimensions": 8},
        {"given": "b", "user": "somebody"},
        {"given": [[1, 2, 3]]},
        {"given": "b", "key": "k-two"},
        {"given": "b" * 70_000},
    ],
    ids=["dimensions", "user", "tokens", "tenant", "long"],
)
def test_other_kinds_travel_apart(tmp_path: Path, others: Mapping[str, Any]) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.3))
    keys = [{"name": "one", "key": "k-one"}, {"name": "two", "key": "k-two"}]
    with SimThread(sim), Gateway(tmp_path, [sim], keys=keys, routing=WIDE) as gateway:
        answers = together(gateway, [{"given": "a", "key": "k-one"}, {"key": "k-one", **others}])
        assert [answer.status for answer in answers] == [200, 200]
        assert len(sim.requests) == 2


def test_window_of_nothing_turns_it_off(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.2))
    with SimThread(sim), Gateway(tmp_path, [sim], routing={"batch_window": "0s"}) as gateway:
        together(gateway, [{"given": f"text {n}"} for n in range(4)])
        assert inputs(sim) == [1] * 4


def test_one_bad_input_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    """The batch is refused as a whole; each of its calls finds out for itself."""
    first, refused = Fault("ok"), Fault("status", status=400, body='{"error":{"message":"bad","code":"bad_input"}}')
    sim = SimProvider("sim", script=Script(latency_s=0.3, faults=[first, refused]))
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        answers = together(gateway, [{"given": f"text {n}"} for n in range(4)])
        assert [answer.status for answer in answers] == [200] * 4
        assert inputs(sim) == [1, 3, 1, 1, 1]
        # For a while they do not try again.
        sim.forget()
        together(gateway, [{"given": f"text {n}"} for n in range(4)])
        assert inputs(sim) == [1] * 4


def test_failure_of_the_provider_fails_all_and_is_taken_over_first(tmp_path: Path) -> None:
    a, b = SimProvider("a", script=Script(latency_s=0.3)), SimProvider("b")
    models = {"e": ["a/e", "b/e"]}
    with SimThread(a, b), Gateway(tmp_path, [a, b], models=models, routing=WIDE) as gateway:
        a.script = Script(latency_s=0.3, faults=[Fault("ok"), Fault("status", status=500)])
        answers = together(gateway, [{"given": f"text {n}", "model": "e"} for n in range(4)])
        assert [answer.status for answer in answers] == [200] * 4
        assert [answer.header("x-dandolo-provider") for answer in answers] == ["a", "b", "b", "b"]
        assert inputs(b) == [3]


def test_server_that_answers_one_of_several_is_asked_one_by_one(tmp_path: Path) -> None:
    one = '{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1]}],"model":"e"}'
    faults = [Fault("ok"), Fault("error_200", body=one)]
    sim = SimProvider("sim", script=Script(latency_s=0.3, faults=faults))
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        answers = together(gateway, [{"given": f"text {n}"} for n in range(3)])
        assert [answer.status for answer in answers] == [200] * 3
        assert inputs(sim) == [1, 2, 1, 1]


def test_whoever_leaves_harms_nobody_and_the_last_cancels(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.4))
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        body = {"model": "sim/e", "input": "x"}
        with gateway.client() as first, gateway.client() as second, gateway.client() as third:
            first.send(request("/v1/embeddings", body))
            until(lambda: sim.in_flight == 1)
            second.send(request("/v1/embeddings", body))
            third.send(request("/v1/embeddings", body))
            until(lambda: sim.in_flight == 2)
            second.reset()
            assert first.answer().status == 200
            assert third.answer().status == 200
        sim.script = Script(latency_s=30.0)
        with gateway.client() as first, gateway.client() as second, gateway.client() as third:
            for number, client in enumerate((first, second, third)):
                client.send(request("/v1/embeddings", body))
                until(lambda number=number: sim.in_flight == min(2, number + 1))
        until(lambda: sim.in_flight == 0, 5.0)
        until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 0)
        until(lambda: gateway.metrics()['dandolo_slots_in_use{account="sim"}'] == 0)


def test_moderations_travel_together_too(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=Script(latency_s=0.3))
    with SimThread(sim), Gateway(tmp_path, [sim], routing=WIDE) as gateway:
        answers = together(gateway, [{"given": f"text {n}", "path": "/v1/moderations"} for n in range(4)])
        assert [len(answer.json["results"]) for answer in answers] == [1] * 4
        assert sorted(inputs(sim)) == [1, 3]
        assert gateway.ask(get("/healthz")).status == 200
