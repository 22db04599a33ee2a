"""Retries, pools, slots and breakers, judged by what providers received."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Answer, Client, Gateway, Provider, chat, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

CANCELS = 1_000
WAITERS_MAX = 1_024
"""How many calls may wait for a slot of one account."""


@contextmanager
def running(directory: Path, *sims: SimProvider, **more: Any) -> Iterator[Gateway]:
    """A gateway before simulated providers, which an alias "all" names in order."""
    providers = more.pop("providers", list(sims))
    models = {"all": [f"{sim.name}/sim" for sim in sims]}
    with SimThread(*sims), Gateway(directory, providers, models=models, **more) as gateway:
        yield gateway


def ask(gateway: Gateway, model: str = "all", **more: Any) -> Answer:
    return gateway.ask(request(body=chat(model=model, **more)))


def always(kind: Any, **more: Any) -> Script:
    """A fault of every call; health probes, which ask for the models, find all well."""
    return Script(default_fault=Fault(kind, only="/chat", **more))


def called(sim: SimProvider) -> int:
    """Calls received, probes apart."""
    return sum("/chat" in one.target for one in sim.requests)


def breaker_state(gateway: Gateway, account: str = "a", model: str = "sim") -> float:
    """0 closed, 1 half-open, 2 open."""
    found = [
        value
        for name, value in gateway.metrics().items()
        if name.startswith("dandolo_breaker_state") and f'"{account}"' in name and f'model="{model}"' in name
    ]
    return found[0] if found else 0.0


def at_rest(gateway: Gateway) -> bool:
    """Whether nothing is under way any more."""
    metrics = gateway.metrics()
    busy = ("dandolo_requests_in_flight", "dandolo_slots_in_use", "dandolo_slots_waiting", "dandolo_connections")
    return not any(value for name, value in metrics.items() if name.startswith(busy))


# -- the same account again ----------------------------------------------------------------------------------


@pytest.mark.promise("31")
@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_reused_connection_lost_before_first_byte_is_retried(tmp_path: Path, then: Any, stream: bool) -> None:
    a = SimProvider("a", script=Script(faults=[Fault("close_on_reuse", then=then)]))
    with running(tmp_path, a) as gateway:
        assert ask(gateway).status == 200
        answer = ask(gateway, stream=stream)
        assert answer.status == 200
        assert answer.complete
        assert answer.header("x-dandolo-attempts") == "1"
    lost, again = a.requests[1:]
    assert lost.connection == a.requests[0].connection
    assert again.connection != lost.connection
    assert again.body == lost.body


@pytest.mark.promise("31")
def test_stale_connections_do_not_touch_the_retry_budget(tmp_path: Path) -> None:
    a, b = SimProvider("a", script=always("close_on_reuse")), SimProvider("b")
    with running(tmp_path, a, b, routing={"breaker": False}) as gateway:
        for _ in range(80):  # the bucket holds 20, and gains a fifth with every request
            answer = ask(gateway, "a/sim")
            assert answer.status == 200
            assert answer.header("x-dandolo-attempts") == "1"
        a.script = always("status", status=500)
        taken_over = [ask(gateway).status for _ in range(20)]
        assert taken_over == [200] * 20


@pytest.mark.promise("31")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("raw", data=b"H"),
        Fault("raw", data=b"HTTP/1.1 200 OK\r\nContent-"),
        Fault("cut_rst"),
        Fault("truncated_body"),
    ],
    ids=["one byte", "half a head", "reset", "truncated"],
)
def test_reused_connection_lost_after_a_byte_is_not_retried(tmp_path: Path, fault: Fault) -> None:
    a = SimProvider("a", script=Script(faults=[Fault("ok"), fault]))
    with running(tmp_path, a) as gateway:
        assert ask(gateway).status == 200
        answer = ask(gateway)
        assert answer.status == 502
    assert len(a.requests) == 2
    assert a.requests[0].connection == a.requests[1].connection


@pytest.mark.promise("31")
@pytest.mark.parametrize("kind", ["close_before_answer", "reset_before_answer"])
def test_fresh_connection_that_is_lost_is_not_retried_on_the_same_account(tmp_path: Path, kind: Any) -> None:
    a = SimProvider("a", script=always(kind))
    with running(tmp_path, a) as gateway:
        answer = ask(gateway)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
        assert answer.header("x-dandolo-attempts") == "1"
    assert len(a.requests) == 1


# -- somebody else -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimProvider, SimProvider]]:
    a, b = SimProvider("a"), SimProvider("b")
    with running(tmp_path_factory.mktemp("pair"), a, b, routing={"breaker": False}) as gateway:
        yield gateway, a, b


@pytest.fixture
def fresh(pair: tuple[Gateway, SimProvider, SimProvider]) -> tuple[Gateway, SimProvider, SimProvider]:
    for sim in pair[1:]:
        sim.script = Script()
        sim.forget()
    return pair


@pytest.mark.promise("31")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, None),
        (413, None),
        (422, None),
        (403, '{"error":{"message":"flagged","type":"invalid_request_error","code":"content_policy_violation"}}'),
        (400, '{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}'),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failure_the_caller_caused_is_tried_nowhere_else(
    fresh: tuple[Gateway, SimProvider, SimProvider], status: int, body: str | None, stream: bool
) -> None:
    gateway, a, b = fresh
    a.script = always("status", status=status, body=body)
    # A stream to a provider of this profile is asked again without our own option: that is no retry elsewhere.
    answer = ask(gateway, stream=stream, stream_options={"include_usage": True}) if stream else ask(gateway)
    assert answer.status == status
    assert answer.header("x-dandolo-attempts") == "1"
    assert len(a.requests) == 1
    assert not b.requests


@pytest.mark.promise("31")
@pytest.mark.parametrize("status", [401, 402, 404, 408, 429, 500, 502, 503, 504, 529])
def test_failure_of_the_provider_is_taken_over(fresh: tuple[Gateway, SimProvider, SimProvider], status: int) -> None:
    gateway, a, b = fresh
    a.script = always("status", status=status)
    answer = ask(gateway)
    assert (answer.status, answer.header("x-dandolo-provider")) == (200, "b")
    assert (len(a.requests), len(b.requests)) == (1, 1)


@pytest.mark.promise("31")
def test_connect_failure_is_taken_over(tmp_path: Path) -> None:
    a, b = SimProvider("a"), SimProvider("b")
    with SimThread(a, b) as sims, Gateway(tmp_path, [a, b], models={"all": ["a/sim", "b/sim"]}) as gateway:
        sims.kill("a")
        answer = ask(gateway)
        assert (answer.status, answer.header("x-dandolo-provider")) == (200, "b")
        sims.kill("b")
        answer = ask(gateway)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
        sims.revive("a")
        assert ask(gateway, "a/sim").status == 200


@pytest.mark.promise("31")
def test_attempts_are_bounded(tmp_path: Path) -> None:
    sims = [SimProvider(name, script=always("status", status=500)) for name in "abcd"]
    with running(tmp_path, *sims) as gateway:
        answer = ask(gateway)
        assert answer.status == 502
        assert answer.header("x-dandolo-attempts") == "3"
        assert gateway.record(answer)["attempts"] == 3
    # The two that share a role are drawn by lot.
    assert sorted(len(sim.requests) for sim in sims) == [0, 1, 1, 1]


@pytest.mark.promise("31")
def test_outage_does_not_multiply_the_traffic_that_caused_it(tmp_path: Path) -> None:
    sims = [SimProvider(name, script=always("status", status=500)) for name in "abc"]
    with running(tmp_path, *sims, routing={"breaker": False}) as gateway:
        with gateway.client() as client:
            for _ in range(200):
                client.send(request(body=chat(model="all")))
                assert client.answer().status == 502
        calls = sum(sim.received for sim in sims)
        assert 200 + 20 <= calls <= 200 + 20 + 200 * 0.2 + 1  # not 600
        for sim in sims:
            sim.script = Script()
        assert ask(gateway).status == 200


# -- 429 -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("31")
@pytest.mark.parametrize(("headers", "least_s"), [((("retry-after", "1"),), 1.0), ((("retry-after-ms", "300"),), 0.3)])
def test_short_429_is_waited_out(
    fresh: tuple[Gateway, SimProvider, SimProvider], headers: tuple[tuple[str, str], ...], least_s: float
) -> None:
    gateway, a, _ = fresh
    a.script = Script(faults=[Fault("status", status=429, headers=headers)])
    started = time.monotonic()
    answer = ask(gateway, "a/sim")
    took = time.monotonic() - started
    assert answer.status == 200
    assert answer.header("x-dandolo-attempts") == "2"
    assert least_s <= took < least_s * 1.1 + 1.0


@pytest.mark.promise("31")
@pytest.mark.parametrize(
    ("headers", "more"),
    [((("retry-after", "6"),), {}), ((), {}), ((("retry-after", "2"),), {"x-dandolo-timeout": "1s"})],
    ids=["too long", "unsaid", "beyond the deadline"],
)
def test_other_429_is_passed_on_at_once(
    fresh: tuple[Gateway, SimProvider, SimProvider], headers: tuple[tuple[str, str], ...], more: dict[str, str]
) -> None:
    gateway, a, _ = fresh
    a.script = always("status", status=429, headers=headers)
    started = time.monotonic()
    answer = gateway.ask(request(body=chat(model="a/sim"), headers=more))
    assert answer.status == 429
    assert time.monotonic() - started < 0.9
    assert len(a.requests) == 1
    assert answer.header("retry-after") == (headers[0][1] if headers else None)


@pytest.mark.promise("31")
def test_429_that_lasts_is_waited_out_once(fresh: tuple[Gateway, SimProvider, SimProvider]) -> None:
    gateway, a, _ = fresh
    a.script = always("status", status=429, headers=(("retry-after-ms", "100"),))
    answer = ask(gateway, "a/sim")
    assert answer.status == 429
    assert answer.header("retry-after-ms") == "100"
    assert len(a.requests) == 2


# -- pools ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("32")
def test_connection_used_last_is_used_next(tmp_path: Path) -> None:
    a = SimProvider("a", script=Script(latency_s=0.2))
    with running(tmp_path, a) as gateway:
        threads = [threading.Thread(target=ask, args=(gateway,)) for _ in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        assert a.connections_opened == 4
        last = max(a.requests, key=lambda received: received.answered_at or 0.0).connection
        a.script = Script()
        for _ in range(5):
            assert ask(gateway).status == 200
    assert {received.connection for received in a.requests[4:]} == {last}
    assert a.connections_opened == 4


@pytest.mark.promise("32")
def test_idle_connections_expire(tmp_path: Path) -> None:
    a = SimProvider("a")
    options = {"http_idle": "1s"}
    with running(tmp_path, a, providers=[Provider(a, options=options)]) as gateway:
        assert ask(gateway).status == 200
        assert a.connections_open == 1
        time.sleep(1.2)
        assert ask(gateway).status == 200
        assert [received.connection for received in a.requests] == [1, 2]
        until(lambda: a.connections_open == 0, 10.0, "idle connections were never closed")


@pytest.mark.promise("32")
@pytest.mark.parametrize("then", ["close", "reset"])
def test_connection_closed_while_idle_is_not_used(tmp_path: Path, then: Any) -> None:
    a = SimProvider("a", script=Script(faults=[Fault("close_after_answer", then=then, delay_s=0.02)]))
    with running(tmp_path, a) as gateway:
        assert ask(gateway).status == 200
        until(lambda: a.connections_open == 0)
        until(lambda: gateway.metrics()['dandolo_idle_connections{account="a"}'] in (0.0, 1.0))
        assert ask(gateway).status == 200
    assert [received.connection for received in a.requests] == [1, 2]


@pytest.mark.promise("35")
def test_name_with_a_dead_address_first_is_connected_within_the_timeout(tmp_path: Path) -> None:
    a = SimProvider("a")  # on IPv4 only
    with SimThread(a):
        option = {"base_url": f"http://localhost:{a.port}/v1"}
        with Gateway(tmp_path, [Provider(a, options=option)]) as gateway:
            started = time.monotonic()
            assert ask(gateway, "a/sim").status == 200
            assert time.monotonic() - started < 2.5


# -- breakers ------------------------------------------------------------------------------------------------


@pytest.mark.promise("34")
@pytest.mark.parametrize(
    "script",
    [always("status", status=500), always("close_before_answer"), always("html_200"), always("truncated_body")],
    ids=["500", "close", "garbage", "truncated"],
)
def test_breaker_opens_probes_once_and_closes(tmp_path: Path, script: Script) -> None:
    a = SimProvider("a", script=script)
    with running(tmp_path, a) as gateway:
        for _ in range(3):
            assert ask(gateway).status == 502
        refused = ask(gateway)
        assert (refused.status, refused.error["code"]) == (503, "no_provider_available")
        assert int(refused.header("retry-after") or "0") >= 1
        assert refused.header("x-should-retry") is None
        assert called(a) == 3
        assert breaker_state(gateway) == 2
        # Half-open: one at a time.
        a.script = Script(latency_s=0.4)
        time.sleep(1.25)
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(gateway))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status for answer in answers) == [200] + [503] * 7
        assert called(a) == 4
        a.script = Script()
        assert ask(gateway).status == 200
        until(lambda: breaker_state(gateway) == 0)
        assert ask(gateway).status == 200


@pytest.mark.promise("34")
def test_failing_probe_opens_the_breaker_for_longer(tmp_path: Path) -> None:
    a = SimProvider("a", script=always("status", status=500))
    with running(tmp_path, a) as gateway:
        for _ in range(3):
            ask(gateway)
        time.sleep(1.25)
        assert ask(gateway).status == 502
        again = ask(gateway)
        assert (again.status, again.error["code"]) == (503, "no_provider_available")
        assert 1000 < int(again.header("retry-after-ms") or "0") <= 2500
        assert called(a) == 4


@pytest.mark.promise("34")
@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_4xx_does_not_open_the_breaker(tmp_path: Path, status: int) -> None:
    a = SimProvider("a", script=always("status", status=status))
    with running(tmp_path, a) as gateway:
        for _ in range(10):
            assert ask(gateway).status == status
        assert breaker_state(gateway) == 0
        a.script = Script()
        assert ask(gateway).status == 200


@pytest.mark.promise("34")
def test_clients_that_leave_do_not_open_the_breaker(tmp_path: Path) -> None:
    a = SimProvider("a", script=always("hang_before_answer"))
    with running(tmp_path, a) as gateway:
        for _ in range(12):
            with gateway.client() as client:
                client.send(request(body=chat(model="all")))
                until(lambda: a.in_flight)
            until(lambda: not a.in_flight)
        assert breaker_state(gateway) == 0
        a.script = Script()
        assert ask(gateway).status == 200


@pytest.mark.promise("34")
def test_open_breaker_of_one_provider_leaves_the_other_alone(tmp_path: Path) -> None:
    a, b = SimProvider("a", script=always("status", status=500)), SimProvider("b")
    with running(tmp_path, a, b) as gateway:
        answers = [ask(gateway) for _ in range(12)]
        assert [answer.status for answer in answers] == [200] * 12
        assert a.received == 3
        assert answers[-1].header("x-dandolo-attempts") == "1"
        assert gateway.ask(request("/readyz", None, method="GET")).status == 200


# -- slots ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("33")
def test_slots_are_the_only_queue(tmp_path: Path) -> None:
    a = SimProvider("a", script=Script(latency_s=0.1))
    with running(tmp_path, a, providers=[Provider(a, options={"concurrency_max": 2})]) as gateway:
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(gateway))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status for answer in answers] == [200] * 8
        assert a.connections_opened == 2
        assert max(float(answer.header("x-dandolo-queue-ms") or "0") for answer in answers) > 50
        assert max(gateway.record(answer).get("queue_ms", 0) for answer in answers) > 50


@pytest.mark.promise("33")
def test_full_queue_refuses_with_a_wait(tmp_path: Path) -> None:
    a = SimProvider("a", script=always("hang_before_answer"))
    with running(tmp_path, a, providers=[Provider(a, options={"concurrency_max": 1})]) as gateway:
        clients = []
        try:
            for _ in range(WAITERS_MAX + 1):
                client = gateway.client()
                clients.append(client)
                client.send(request(body=chat(model="all")))
            waiting = 'dandolo_slots_waiting{account="a"}'
            until(lambda: gateway.metrics()[waiting] == WAITERS_MAX, 15.0, "the queue never filled")
            answer = ask(gateway)
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert int(answer.header("retry-after") or "0") >= 1
            assert a.received == 1
        finally:
            for client in clients:
                client.socket.close()
        until(lambda: at_rest(gateway), 15.0, "slots were not given back")


class Tarpit:
    """A listener whose queue is full: whoever connects waits."""

    def __enter__(self) -> str:
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        address = self._sockets[0].getsockname()
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            self._sockets.append(filler)
        return f"http://127.0.0.1:{address[1]}/v1"

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()


@pytest.mark.promise("33", "36")
def test_a_thousand_cancels_leak_nothing(tmp_path: Path) -> None:
    chance = random.Random(7)
    a, slow, idle = SimProvider("a"), SimProvider("slow"), SimProvider("tar")
    a.script = Script(latency_s=0.004, first_token_s=0.004, tokens_per_s=1000, tokens=2000, jitter=1.0)
    slow.script = Script(latency_s=0.05)
    with Tarpit() as dead, SimThread(a, slow, idle):
        providers = [
            Provider(a, options={"concurrency_max": 16}),
            Provider(slow, options={"concurrency_max": 2}),
            Provider(idle, options={"base_url": dead}),
        ]
        with Gateway(tmp_path, providers, routing={"breaker": False}) as gateway:
            left = CANCELS
            while left:
                clients: list[Client] = []
                for _ in range(min(40, left)):
                    client = gateway.client()
                    clients.append(client)
                    # Queued, dialling, waiting for the first byte, in the middle of a stream, or of its own body.
                    provider = chance.choice(["a", "a", "slow", "tar"])
                    data = request(body=chat(model=f"{provider}/sim", stream=chance.random() < 0.7))
                    client.send(data if chance.random() < 0.85 else data[: chance.randrange(20, len(data))])
                left -= len(clients)
                chance.shuffle(clients)
                for client in clients:
                    if chance.random() < 0.3:
                        time.sleep(chance.random() * 0.004)
                    if chance.random() < 0.5:
                        client.reset()
                    else:
                        client.socket.close()
            until(lambda: at_rest(gateway), 15.0, "something was leaked")
            until(lambda: a.in_flight == slow.in_flight == 0)
            a.script = slow.script = Script()
            for name in ("a", "slow"):
                for _ in range(20):
                    assert ask(gateway, f"{name}/sim").status == 200
            assert at_rest(gateway)
