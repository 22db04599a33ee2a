"""Clients that leave, stall, trickle or come in crowds: what the gateway spends on them, and that it gets it back."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from harness import Answer, Client, Gateway, Provider, chat, get, request, until

import dandolo
from dandolo.sim import Fault, Script, SimProvider, SimThread

MIB = 1 << 20


@contextmanager
def running(directory: Path, sim: SimProvider, **more: Any) -> Iterator[Gateway]:
    providers = more.pop("providers", [sim])
    with SimThread(sim), Gateway(directory, providers, routing={"breaker": False}, **more) as gateway:
        yield gateway


@contextmanager
def facing(script: Script, secure: bool, directory: Path) -> Iterator[tuple[Gateway, SimProvider]]:
    """A gateway and its provider, which speaks TLS or does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if secure else None
    sim = SimProvider("sim", script=script, ssl=context)
    with SimThread(sim):
        options: dict[str, str] = {}
        if context is not None:
            authority, ca = trustme.CA(), directory / "ca.pem"
            authority.issue_cert("localhost").configure_cert(context)
            authority.cert_pem.write_to_path(str(ca))
            options = {"base_url": f"https://localhost:{sim.port}/v1", "ca": str(ca)}
        with Gateway(directory, [Provider(sim, options=options)], routing={"breaker": False}) as gateway:
            yield gateway, sim


def at_rest(gateway: Gateway) -> bool:
    """Whether nothing is under way any more."""
    metrics = gateway.metrics()
    busy = ("dandolo_requests_in_flight", "dandolo_slots_in_use", "dandolo_slots_waiting", "dandolo_connections")
    return not any(value for name, value in metrics.items() if name.startswith(busy))


def always(kind: Any, **more: Any) -> Script:
    return Script(default_fault=Fault(kind, **more))


def leave(client: Client, how: str) -> None:
    if how == "rst":
        client.reset()
    elif how == "half-close":
        client.finish()
    else:
        client.socket.close()


# -- leaving -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimProvider]]:
    """A gateway with a single slot at its provider."""
    sim = SimProvider("sim")
    provider = Provider(sim, options={"concurrency_max": 1})
    with running(tmp_path_factory.mktemp("narrow"), sim, providers=[provider]) as gateway:
        yield gateway, sim


@pytest.mark.promise("36")
@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
@pytest.mark.parametrize("phase", ["plain", "first byte of a stream", "stream", "large body out"])
def test_client_that_leaves_cancels_its_call(narrow: tuple[Gateway, SimProvider], phase: str, how: str) -> None:
    gateway, sim = narrow
    sim.forget()
    sim.script = Script(tokens_per_s=50, tokens=1000) if phase == "stream" else always("hang_before_answer")
    body = chat(stream="stream" in phase)
    if phase == "large body out":
        body["messages"] = [{"role": "user", "content": "x" * (8 * MIB)}]
    with gateway.client() as client:
        client.send(request(body=body))
        received = until(lambda: sim.requests and sim.requests[0])
        if phase == "stream":
            client.read_until(b"hello")
        left = time.monotonic()
        leave(client, how)
        at = until(lambda: received.aborted_at, 5.0, "the provider was never told")
        assert at - left <= 1.0
    record = until(lambda: [line for line in gateway.log_lines() if line["status"] == 499])[-1]
    assert record["endpoint"] == "chat"
    until(lambda: at_rest(gateway), what="something was leaked")
    sim.script = Script()
    assert gateway.ask(request()).status == 200


@pytest.mark.promise("36")
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_that_leaves_the_queue_is_forgotten(narrow: tuple[Gateway, SimProvider], how: str) -> None:
    gateway, sim = narrow
    sim.forget()
    sim.script = Script(faults=[Fault("hang_before_answer")])
    waiting = 'dandolo_slots_waiting{account="sim"}'
    with gateway.client() as holder, gateway.client() as queued:
        holder.send(request())
        until(lambda: sim.in_flight)
        queued.send(request(body=chat(user="never")))
        until(lambda: gateway.metrics()[waiting] == 1)
        left = time.monotonic()
        leave(queued, how)
        until(lambda: gateway.metrics()[waiting] == 0, 5.0, "it still waits")
        assert time.monotonic() - left <= 1.0
    until(lambda: at_rest(gateway))
    assert len(sim.requests) == 1


@pytest.mark.promise("36")
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_that_leaves_within_its_own_body_costs_nothing(narrow: tuple[Gateway, SimProvider], how: str) -> None:
    gateway, sim = narrow
    sim.forget()
    sim.script = Script()
    data = request(body=chat(messages=[{"role": "user", "content": "x" * MIB}]))
    with gateway.client() as client:
        client.send(data[: len(data) // 2])
        leave(client, how)
    until(lambda: at_rest(gateway))
    assert not sim.requests


# -- backpressure --------------------------------------------------------------------------------------------


def flood(size: int) -> bytes:
    """A whole stream of about `size` bytes, in events of 16 KiB."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 16_000 + b'"}}]}\n\n'
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chunk * (size // len(event)) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)


@pytest.mark.promise("37")
def test_unread_stream_pauses_its_provider_and_goes_on_when_read(tmp_path: Path) -> None:
    data = flood(64 * MIB)
    sim = SimProvider("sim", script=always("raw", data=data, size=64 << 10, then="keep"))
    with running(tmp_path, sim) as gateway:
        assert gateway.ask(get("/healthz")).status == 200
        before = gateway.rss_bytes()
        with gateway.client(receive_bytes=4096) as client:
            client.send(request(body=chat(stream=True)))
            received = until(lambda: sim.requests and sim.requests[0])

            def paused() -> bool:
                sent = received.sent_bytes
                time.sleep(0.3)
                return sent > 0 and received.sent_bytes == sent

            until(paused, 10.0, "the provider was never paused")
            # Two sockets' kernel buffers hold what neither side has taken.
            assert received.sent_bytes < 32 * MIB
            assert gateway.rss_bytes() - before < 4 * MIB
            assert received.aborted_at is None
            client.socket.settimeout(30)
            answer = client.answer()
        assert answer.complete
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert len(answer.events) == data.count(b"data: ")
        assert gateway.rss_bytes() - before < 8 * MIB


@pytest.mark.promise("37")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_hundred_unread_streams_take_little_memory(secure: bool, tmp_path: Path) -> None:
    script = always("raw", data=flood(16 * MIB), size=64 << 10, then="keep")
    with facing(script, secure, tmp_path) as (gateway, sim), ExitStack() as stack:
        assert gateway.ask(get("/healthz")).status == 200
        rss_bytes = gateway.rss_bytes()
        clients = [stack.enter_context(gateway.client(receive_bytes=4096)) for _ in range(100)]
        for client in clients:
            client.send(request(body=chat(stream=True)))
        until(lambda: sim.in_flight == 100, 20.0)
        sizes = [-1, -2]

        def settled() -> bool:
            sizes.append(sum(received.sent_bytes for received in sim.requests))
            time.sleep(0.2)
            return len(set(sizes[-3:])) == 1

        until(settled, 20.0, "the provider was never paused")
        grown = gateway.rss_bytes() - rss_bytes
        assert grown <= 100 * 256 * 1024, grown
        assert gateway.ask(get("/healthz")).status == 200
        stack.close()
        until(lambda: at_rest(gateway), 20.0)
        until(lambda: sim.in_flight == 0)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_large_reads_arrive_whole(secure: bool, tmp_path: Path) -> None:
    data = flood(3 * MIB)
    script = always("raw", data=data, size=256 << 10, then="keep")
    with facing(script, secure, tmp_path) as (gateway, sim), gateway.client() as client:
        for _ in range(3):
            client.send(request(body=chat(stream=True)))
            answer = client.answer()
            assert answer.complete
            assert len(answer.events) == data.count(b"data: ")
        assert sim.connections_opened == 1


@pytest.mark.promise("37", "limit:write-stall")
def test_client_that_never_reads_is_let_go(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=always("raw", data=flood(32 * MIB), size=64 << 10, then="keep"))
    with running(tmp_path, sim, timeouts={"write_stall": "1s"}) as gateway:
        with gateway.client(receive_bytes=4096) as client:
            client.send(request(body=chat(stream=True)))
            received = until(lambda: sim.requests and sim.requests[0])
            started = time.monotonic()
            at = until(lambda: received.aborted_at, 10.0, "the provider was never let go")
            assert 0.8 < at - started < 6
        until(lambda: at_rest(gateway))


@pytest.mark.promise("37")
@pytest.mark.parametrize("repeats", [True, False], ids=["to the byte", "varied"])
def test_answers_that_are_not_read_are_not_made(tmp_path: Path, repeats: bool) -> None:
    sim = SimProvider("sim", script=Script(tokens=10_000))
    kept = '[cache]\nsampled = "reuse"\n'
    asked = [
        request(body=chat(model="sim/m"), headers={} if repeats else {"x-number": f"{number:03}"})
        for number in range(400)
    ]
    with running(tmp_path, sim, toml=kept) as gateway:
        with gateway.client() as client:
            for data in (asked[0],) * 4:
                client.send(data)
                assert client.answer().status == 200
        before = gateway.rss_bytes()
        with gateway.client(receive_bytes=4096) as client:
            for data in asked:
                client.send_what_goes(data)
                time.sleep(0.001)
            assert gateway.rss_bytes() - before < 8 * MIB
            # Once they are read, all of them come.
            for _ in asked:
                assert client.answer().header("x-cache") == "HIT"


@pytest.mark.promise("37")
def test_client_that_reads_slowly_is_not_let_go(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=always("raw", data=flood(8 * MIB), size=64 << 10, then="keep"))
    with running(tmp_path, sim, timeouts={"write_stall": "1s"}) as gateway:
        with gateway.client(receive_bytes=32 << 10) as client:
            client.send(request(body=chat(stream=True)))
            for _ in range(12):
                time.sleep(0.2)
                client.rest += client.socket.recv(128 << 10)
            answer = client.answer()
        assert answer.complete
        assert answer.body.endswith(b"data: [DONE]\n\n")


# -- slow and silent clients ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimProvider]]:
    sim = SimProvider("sim")
    times = {
        "header_read": "500ms",
        "body_idle": "500ms",
        "body_total": "1s",
        "first_request": "500ms",
        "keep_alive_idle": "1s",
    }
    with running(tmp_path_factory.mktemp("strict"), sim, timeouts=times) as gateway:
        yield gateway, sim


def trickle(client: Client, data: bytes, pause_s: float, at_most_s: float) -> None:
    """Send byte by byte until the peer has had enough."""
    end = time.monotonic() + at_most_s
    client.socket.settimeout(pause_s)
    for index in range(len(data)):
        if not client.send_what_goes(data[index : index + 1]):
            break
        try:
            client.rest += client.socket.recv(65536)
        except TimeoutError:
            pass
        except ConnectionError:
            break
        if client.rest or time.monotonic() > end:
            break
    client.socket.settimeout(client.timeout_s)


@pytest.mark.promise("38")
def test_slow_head_ends_in_total_time(strict: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = strict
    sim.forget()
    with gateway.client() as client:
        started = time.monotonic()
        trickle(client, request(), 0.05, 5.0)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.closes
        assert 0.4 < time.monotonic() - started < 2.5
    assert not sim.requests


@pytest.mark.promise("38")
@pytest.mark.parametrize("pause_s", [0.05, 3.0], ids=["trickle", "silence"])
def test_slow_body_ends_in_time(strict: tuple[Gateway, SimProvider], pause_s: float) -> None:
    gateway, sim = strict
    sim.forget()
    data = request(body=chat(user="x" * 2000))
    head = data.index(b"\r\n\r\n") + 4
    with gateway.client() as client:
        client.send(data[:head])
        started = time.monotonic()
        trickle(client, data[head:], pause_s, 8.0)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.closes
        assert time.monotonic() - started < 5.0
    assert not sim.requests
    until(lambda: at_rest(gateway))


@pytest.mark.promise("38")
def test_silent_connections_are_closed_without_a_word(strict: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = strict
    sim.script = Script()
    started = time.monotonic()
    with gateway.client() as client, gateway.client() as kept:
        kept.send(request())
        assert kept.answer().status == 200
        assert client.ending() == "fin"
        assert time.monotonic() - started < 2.5
        assert kept.ending() == "fin"
        assert 0.8 < time.monotonic() - started < 4


# -- crowds --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, SimProvider]]:
    sim = SimProvider("sim")
    with running(
        tmp_path_factory.mktemp("roomy"),
        sim,
        limits={"connections_per_ip_max": 5000},
        timeouts={"first_request": "60s"},
    ) as gateway:
        yield gateway, sim


def latency_s(gateway: Gateway) -> float:
    """The median of some requests on one connection."""
    took = []
    with gateway.client() as client:
        for _ in range(40):
            started = time.monotonic()
            client.send(request())
            assert client.answer().status == 200
            took.append(time.monotonic() - started)
    return sorted(took)[len(took) // 2]


def connections(gateway: Gateway) -> float:
    return gateway.metrics()["dandolo_connections"]


@pytest.mark.promise("39")
def test_two_thousand_idle_connections_cost_little(roomy: tuple[Gateway, SimProvider]) -> None:
    gateway, _ = roomy
    alone = latency_s(gateway)
    until(lambda: connections(gateway) == 0)
    before, descriptors = gateway.rss_bytes(), gateway.fds()
    crowd = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(2000)]
    try:
        until(lambda: connections(gateway) == 2000, 15.0)
        grown = gateway.rss_bytes() - before
        assert grown <= 2000 * 20 * 1024, f"{grown / 2000 / 1024:.1f} KiB each"
        assert latency_s(gateway) < max(5 * alone, 0.02)
    finally:
        for one in crowd:
            one.close()
    until(lambda: connections(gateway) == 0, 15.0)
    until(lambda: gateway.fds() <= descriptors + 2, 5.0, "descriptors were leaked")


@pytest.mark.promise("39")
def test_churn_leaves_descriptors_and_memory_where_they_were(roomy: tuple[Gateway, SimProvider]) -> None:
    gateway, sim = roomy
    sim.script = Script()

    def churn(times: int) -> None:
        for number in range(times):
            with gateway.client() as client:
                if number % 4 == 0:
                    continue  # says nothing
                client.send(request(body=chat(stream=number % 4 == 2)))
                if number % 4 != 3:
                    assert client.answer().complete
                else:
                    client.reset()
        until(lambda: at_rest(gateway), 15.0)

    # What a process takes for good it has taken by then: heaps grown, pages of the journal and tables touched.
    churn(2000)
    before, descriptors = gateway.rss_bytes(), gateway.fds()
    churn(2000)
    until(lambda: gateway.fds() <= descriptors + 4, 5.0, "descriptors were leaked")
    assert gateway.rss_bytes() - before < 8 * MIB
    idle = gateway.cpu_s()
    time.sleep(0.5)
    assert gateway.cpu_s() - idle < 0.1  # nothing goes on turning


@pytest.mark.promise("40")
def test_running_out_of_descriptors_neither_spins_nor_ends(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with running(tmp_path, sim, errors_expected=True) as gateway:
        assert gateway.ask(request()).status == 200
        until(lambda: connections(gateway) == 0)
        (worker,) = gateway.workers()
        _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (gateway.fds() + 6, hard))
        crowd = []
        try:
            for _ in range(60):
                one = socket.create_connection(("127.0.0.1", gateway.port))
                crowd.append(one)
            used = gateway.cpu_s()
            time.sleep(1.5)
            assert gateway.alive
            assert gateway.cpu_s() - used < 0.5, "it spins"
            complaints = [line for line in gateway.errors() if "cannot accept" in line]
            assert len(complaints) == 1, complaints
            # Those who are already in are served.
            crowd[0].settimeout(5)
            crowd[0].sendall(request())
            assert crowd[0].recv(15) == b"HTTP/1.1 200 OK"
        finally:
            for one in crowd:
                one.close()

        def served() -> bool:
            try:
                return gateway.ask(request()).status == 200
            except (AssertionError, OSError):
                return False

        until(served, 10.0, "it never recovered")
        assert not [line for line in gateway.said().splitlines() if "Traceback" in line]


@pytest.mark.promise("limit:connections")
def test_connection_beyond_the_limit_is_told_so(tmp_path: Path) -> None:
    sim = SimProvider("sim")
    with running(tmp_path, sim, limits={"connections_max": 4}) as gateway, ExitStack() as stack:
        inside = [stack.enter_context(gateway.client()) for _ in range(4)]
        inside[3].send(request())
        assert inside[3].answer().status == 200
        answer = stack.enter_context(gateway.client()).answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.header("retry-after") == "1"
        assert answer.closes
        inside[0].socket.close()
        until(lambda: gateway.ask(request()).status == 200)


@pytest.mark.promise("41", "limit:in-flight")
def test_overload_is_refused_before_the_body_and_health_still_answers(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=always("hang_before_answer"))
    with running(tmp_path, sim, limits={"in_flight_max": 2}) as gateway:
        with gateway.client() as one, gateway.client() as two, gateway.client() as third:
            one.send(request())
            two.send(request())
            until(lambda: sim.in_flight == 2)
            data = request(body=chat(user="x" * 100_000))
            third.send(data[: data.index(b"\r\n\r\n") + 4])  # no byte of the body
            started = time.monotonic()
            answer = third.answer()
            assert time.monotonic() - started < 2
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert answer.header("retry-after") == "1"
            assert answer.header("x-should-retry") is None
            for path in ("/healthz", "/readyz", "/"):
                assert gateway.ask(get(path)).status == 200
            assert gateway.ask(get("/v1/models")).status == 503
        until(lambda: at_rest(gateway))
        sim.script = Script()
        assert gateway.ask(request()).status == 200


@pytest.mark.promise("41", "limit:in-flight")
def test_one_keys_overload_is_its_own(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=always("hang_before_answer"))
    keys: list[Any] = [{"name": "greedy", "key": "sk-greedy", "concurrent": 1}, {"name": "other", "key": "sk-other"}]
    with running(tmp_path, sim, keys=keys) as gateway, gateway.client() as one:
        one.send(request(key="sk-greedy"))
        until(lambda: sim.in_flight == 1)
        answer = gateway.ask(request(key="sk-greedy"))
        assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
        assert answer.header("retry-after") == "1"
        sim.script = Script()
        assert gateway.ask(request(key="sk-other")).status == 200


# -- mistakes of our own -------------------------------------------------------------------------------------

BROKEN_GATEWAY = """
from dandolo.api.call import Call
from dandolo.gateway.tap import StreamTap

body_for, observe = Call.body_for, StreamTap.observe


def broken_body_for(self, *args, **more):
    if b"explode at once" in self.raw:
        raise ZeroDivisionError("the secret of the trace")
    return body_for(self, *args, **more)


def broken_observe(self, events):
    if b"explode later" in events:
        raise ZeroDivisionError("the secret of the trace")
    return observe(self, events)


Call.body_for, StreamTap.observe = broken_body_for, broken_observe
"""


@pytest.mark.promise("42")
def test_mistake_of_our_own_ends_one_request_without_a_trace(tmp_path: Path) -> None:
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(BROKEN_GATEWAY)
    path = os.pathsep.join([str(patch), str(Path(dandolo.__file__).parent.parent)])
    sim = SimProvider("sim")
    with running(tmp_path, sim, environ={"PYTHONPATH": path}, errors_expected=True) as gateway:
        for stream in (False, True):
            with gateway.client() as client:
                client.send(request(body=chat(user="explode at once", stream=stream)))
                answer = client.answer()
                assert (answer.status, answer.error["type"], answer.error["code"]) == (
                    500,
                    "server_error",
                    "internal_error",
                )
                assert answer.closes
                assert client.ending() == "fin"
            check_no_trace(answer)
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
        pieces = [event % b"fine", event % b"explode later", event % b"more"]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        size = len(head) + len(pieces[0]) + 6
        sim.script = Script(faults=[Fault("raw", data=data, size=size, delay_s=0.05)])
        answer = gateway.ask(request(body=chat(stream=True)))
        assert answer.status == 200
        assert not answer.complete
        assert b"[DONE]" not in answer.body
        check_no_trace(answer)
        assert gateway.ask(request()).status == 200
        until(lambda: at_rest(gateway))
        assert len([line for line in gateway.errors() if "failed within the gateway" in line]) >= 2


def check_no_trace(answer: Answer) -> None:
    for word in (b"Traceback", b"ZeroDivision", b"secret", b".py"):
        assert word not in answer.body


def test_process_holds_only_so_many_bytes_of_bodies(tmp_path: Path) -> None:
    sim = SimProvider("sim", script=always("hang_before_answer"))
    limits = dict.fromkeys(("body_memory_max", "body_bytes_max", "upload_bytes_max"), "1MiB")
    with running(tmp_path, sim, limits=limits) as gateway, ExitStack() as stack:
        large = request(body=chat(user="x" * 300_000))
        waiting = []
        for _ in range(3):
            waiting.append(stack.enter_context(gateway.client()))
            waiting[-1].send(large)
        until(lambda: gateway.metrics()["dandolo_request_body_bytes"] > 900_000)
        refused = gateway.ask(large)
        assert (refused.status, refused.header("retry-after") is not None) == (503, True)
        assert gateway.ask(get("/healthz")).status == 200
        for client in waiting:
            client.socket.close()
        until(lambda: gateway.metrics()["dandolo_request_body_bytes"] == 0)
