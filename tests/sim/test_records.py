"""What a provider remembers: bytes as received, clients that leave, counters that return to zero."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import http.client
import socket
import struct
import time
from collections.abc import Callable

import pytest
from wiretap import Client, complete, request, streamed

from dandolo.sim import Fault, Script, SimProvider, SimThread, free_port
from dandolo.sim.server import REQUESTS_MAX

PROMPT_S = 0.1
"""How soon a client's leaving must be seen."""


def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.002)


def leave(client: Client, how: str) -> None:
    if how == "rst":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.socket.close()


SILENT = {
    "before_first_byte": (Script(latency_s=60), streamed()),
    "before_first_token": (Script(first_token_s=60), streamed()),
    "mid_stream": (Script(tokens=1000, tokens_per_s=20), streamed()),
    "plain": (Script(tokens_per_s=0.1), request()),
    "hanging": (Script(faults=[Fault("hang_before_answer")]), streamed()),
    "stalled": (Script(faults=[Fault("stall", after=2)]), streamed()),
    "held": (Script(faults=[Fault("hold_after_done")]), streamed()),
    "keepalives": (Script(faults=[Fault("keepalive_forever")]), streamed()),
    "dribbling": (Script(faults=[Fault("dribble", delay_s=0.01)]), streamed()),
    "endless_1xx": (Script(faults=[Fault("endless_1xx", delay_s=0.01)]), streamed()),
}


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
@pytest.mark.parametrize("when", SILENT)
def test_client_that_leaves_is_noticed_at_once(sim: SimProvider, when: str, how: str) -> None:
    sim.script, sent = SILENT[when]
    client = Client(sim.port)
    client.send(sent)
    until(lambda: sim.in_flight == 1)
    if when in ("mid_stream", "stalled"):
        client.read_until(b"data: ")
    left = time.monotonic()
    leave(client, how)
    until(lambda: sim.in_flight == 0)
    record = sim.requests[0]
    assert record.aborted_at is not None
    assert record.aborted_at - left < PROMPT_S
    assert record.answered_at is None
    until(lambda: sim.connections_open == 0)
    client.socket.close()


def test_client_that_does_not_read_and_leaves_is_an_abort(sim: SimProvider) -> None:
    sim.script = Script(faults=[Fault("big_event", size=64 << 20)])
    client = Client(sim.port)
    client.send(streamed())
    until(lambda: sim.in_flight == 1)
    time.sleep(0.2)
    assert sim.in_flight == 1, "the kernel cannot have taken all of it"
    leave(client, "rst")
    until(lambda: sim.in_flight == 0)
    assert sim.requests[0].aborted_at is not None


def test_client_that_leaves_after_the_answer_is_no_abort(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        client.send(request())
        client.read_until(b'"usage"')
    until(lambda: sim.connections_open == 0)
    assert sim.requests[0].aborted_at is None
    assert sim.requests[0].answered_at is not None


def test_client_that_leaves_inside_its_own_body(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        client.send(request()[:-5])
        until(lambda: sim.connections_open == 1)
    until(lambda: sim.requests)
    record = sim.requests[0]
    assert (record.complete, record.status) == (False, 0)
    assert record.aborted_at is not None
    assert request().endswith(record.body + request()[-5:])


def test_request_is_recorded_as_received(sim: SimProvider) -> None:
    sent = request(headers="X-CaSe: a  b\r\nx-twice: 1\r\nX-Twice: 2\r\n")
    with Client(sim.port) as client:
        client.send(sent)
        seen = client.read_until(b'"usage"')
        client.send(request("/v1/models?x=1", None, "GET"))
        client.read_until(b'"list"')
    first, second = sim.requests
    body = sent.partition(b"\r\n\r\n")[2]
    assert first.body == body
    assert first.headers[2:] == [("X-CaSe", "a  b"), ("x-twice", "1"), ("X-Twice", "2")]
    assert first.header("HOST") == "sim"
    assert (first.method, first.target) == ("POST", "/v1/chat/completions")
    assert (second.method, second.target) == ("GET", "/v1/models?x=1")
    assert (first.connection, second.connection) == (1, 1)
    assert (first.sequence, second.sequence) == (1, 2)
    digest = hashlib.sha256(body).hexdigest()[:16].encode()
    assert b"x-sim-body-sha256: " + digest in seen
    assert b"sim-a: hello model=m seq=1 sha256=" + digest in seen
    assert first.sent_bytes == len(seen)
    assert first.first_byte_at is not None
    assert first.first_byte_at >= first.received_at


def test_pipelined_requests_are_answered_in_order(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        client.send(request() * 3)
        seen = client.read(wanted=lambda seen: seen.data.count(b'"usage"') == 3).data
    assert [seen.index(b"seq=%d" % n) for n in (1, 2, 3)] == sorted(seen.index(b"seq=%d" % n) for n in (1, 2, 3))


def test_chunked_body_and_expectation_are_understood(sim: SimProvider) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=5)
    body = [b'{"model":"m",', b'"messages":[{"role":"user","content":"x"}]}']
    connection.request("POST", "/v1/chat/completions", iter(body), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().read().count(b"sim-a") >= 1
    connection.close()
    assert sim.requests[0].body == b"".join(body)
    with Client(sim.port) as client:
        head, _, data = request(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(data)
        assert b" 200 OK" in client.read_until(b'"usage"')


def test_what_is_no_http_is_refused_and_noted(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        seen = client.read(wanted=lambda seen: seen.ending != "open")
    assert (seen.ending, seen.data[:12]) == ("fin", b"HTTP/1.1 400")
    assert len(sim.protocol_errors) == 1
    assert sim.received == 0


def test_record_is_bounded(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        for _ in range(REQUESTS_MAX // 50 + 1):
            client.send(request("/v1/models/none", None, "GET") * 50)
            until(lambda: sim.in_flight == 0)
        until(lambda: sim.received == REQUESTS_MAX + 50)
    assert len(sim.requests) == REQUESTS_MAX
    assert sim.requests[-1].sequence == REQUESTS_MAX + 50
    sim.forget()
    assert sim.requests == []
    assert sim.received == REQUESTS_MAX + 50


def test_counters(sim: SimProvider) -> None:
    with Client(sim.port), Client(sim.port):
        until(lambda: sim.connections_open == 2)
    until(lambda: sim.connections_open == 0)
    assert sim.connections_opened == 2


def test_killed_provider_refuses_and_comes_back_on_the_same_port() -> None:
    provider = SimProvider("a", script=Script(first_token_s=60))
    with SimThread(provider) as sims, Client(provider.port) as client:
        client.send(streamed())
        until(lambda: provider.in_flight == 1)
        port = provider.port
        sims.kill("a")
        assert client.read(wanted=lambda seen: False).ending in ("fin", "rst")
        with pytest.raises(ConnectionRefusedError):
            Client(port)
        until(lambda: provider.in_flight == 0)
        assert provider.requests[0].aborted_at is None, "the client did not leave: the provider died"
        sims.revive("a")
        assert provider.port == port
        sims["a"].script = Script()
        with Client(port) as again:
            again.send(request())
            assert b"a: hello" in again.read_until(b'"usage"')
        sims.kill("a")
        sims.kill("a")


def test_start_on_a_taken_port_raises_in_the_callers_thread() -> None:
    with SimThread(SimProvider("a")) as sims:
        with pytest.raises(OSError):
            SimThread(SimProvider("b", port=sims["a"].port)).__enter__()
        with pytest.raises(KeyError):
            sims["c"]


def test_free_port_has_no_listener() -> None:
    with pytest.raises(ConnectionRefusedError):
        Client(free_port())


def test_nothing_is_left_on_the_loop() -> None:
    async def used() -> None:
        async with SimProvider("a", script=Script(first_token_s=60)) as provider:
            readers = []
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
                writer.write(streamed())
                readers.append((reader, writer))
            while provider.in_flight < 5:
                await asyncio.sleep(0.001)
        assert provider.connections_open == 0
        assert provider.in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for _, writer in readers:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass

    asyncio.run(used(), debug=True)
    gc.collect()


def test_script_can_be_changed_while_it_serves(sim: SimProvider) -> None:
    with Client(sim.port) as client:
        for script, said in ((Script(faults=[Fault("status", status=500)]), b" 500 "), (Script(), b" 200 ")):
            sim.script = script
            client.send(request())
            assert said in client.read(wanted=complete).head
    assert [r.fault for r in sim.requests] == ["status", None]
