"""The limits, one by one: each is set small in a gateway of its own and run into over a real socket."""

from __future__ import annotations

import json
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from harness import CHAT, KEY, MODEL, Answer, Client, Gateway, Provider, chat, chunked, encode, get, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

OTHER_KEY = "sk-other-0123456789abcdef0123456789abcdef"
LATE_S = 10.0
"""How much later than its deadline anything may come on a busy machine."""
OPEN = {"breaker": False}


def refusal(answer: Answer, status: int, code: str) -> Answer:
    assert (answer.status, answer.error["code"]) == (status, code), answer
    assert answer.header("x-request-id")
    return answer


def drip(client: Client, data: Callable[[], bytes], every_s: float = 0.05, at_most_s: float = LATE_S) -> float:
    """Send a piece now and then until the gateway says something or ends; how long that took."""
    since = time.monotonic()
    while not select.select([client.socket], [], [], every_s)[0]:
        assert time.monotonic() - since < at_most_s, "the gateway let it go on"
        client.send_what_goes(data())
    return time.monotonic() - since


# -- the head ------------------------------------------------------------------------------------------------


def line_of(size: int) -> bytes:
    """A request with a request line of `size` bytes."""
    rest = len("GET / HTTP/1.1")
    return get("/" + "x" * (size - rest))


def head_of(size: int) -> bytes:
    """A request whose head has `size` bytes, in headers of at most 1,000."""
    data = get("/healthz")
    while (missing := size - len(data)) > 0:
        value = min(1000, missing) if missing > 2000 or missing <= 1000 else missing // 2
        data = data[:-2] + b"X-Filler: " + b"x" * max(0, value - 12) + b"\r\n\r\n"
    return data


@pytest.mark.promise("limit:request-line")
def test_request_line_up_to_8_kib(gateway: Gateway) -> None:
    assert gateway.ask(line_of(8192)).status == 404
    for data in (line_of(8193), line_of(30_000), b"GET /" + b"x" * 9000, b"x" * 9000):
        with gateway.client() as client:
            client.send(data)
            answer = client.answer()
            assert (answer.status, answer.closes) in ((414, True), (400, True))
            assert answer.status == 414 or data[:3] != b"GET"
            assert client.closed()


@pytest.mark.promise("limit:header-block")
def test_head_up_to_32_kib(gateway: Gateway) -> None:
    assert len(head_of(32 * 1024)) == 32 * 1024
    assert gateway.ask(head_of(32 * 1024)).status == 200
    for data in (head_of(32 * 1024 + 100), head_of(80_000), head_of(40_000)[:-2]):
        with gateway.client() as client:
            client.send_what_goes(data)
            assert refusal(client.answer(), 431, "headers_too_large").closes
            assert client.closed()


@pytest.mark.promise("limit:header-block", "9")
def test_trailers_draw_on_the_allowance_of_the_head(gateway: Gateway, sim: SimProvider) -> None:
    head = request(body=None, headers={"Transfer-Encoding": "chunked", "X-Filler": "x" * 15_000})
    few = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(10))
    many = b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(20))
    assert gateway.ask(head + chunked(encode(CHAT), trailers=few)).status == 200
    with gateway.client() as client:
        client.send(head + chunked(encode(CHAT), trailers=many))
        assert refusal(client.answer(), 431, "headers_too_large").closes
        assert client.closed()
    assert len(sim.requests) == 1


@pytest.mark.promise("limit:header-count")
def test_headers_up_to_100_and_each_up_to_16_kib(gateway: Gateway) -> None:
    def with_headers(count: int) -> bytes:
        return get("/healthz", headers=[(f"X-{number}", "y") for number in range(count - 1)])

    assert gateway.ask(with_headers(100)).status == 200
    assert gateway.ask(get("/healthz", headers={"X-Long": "y" * (16 * 1024 - 10)})).status == 200
    for data in (with_headers(101), with_headers(2000), get("/healthz", headers={"X-Long": "y" * (16 * 1024)})):
        with gateway.client() as client:
            client.send(data)
            assert refusal(client.answer(), 431, "headers_too_large").closes
            assert client.closed()


# -- the body ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(launch, shared_sim):
    limits = {"body_bytes_max": "64KiB", "upload_bytes_max": "256KiB", "header_bytes_max": "4KiB", "headers_max": 20,
              "request_line_bytes_max": "256B"}  # fmt: skip
    return launch([shared_sim], limits=limits, routing=OPEN)


@pytest.mark.promise("limit:request-line", "limit:header-block", "limit:header-count")
def test_limits_of_the_head_can_be_configured(small: Gateway) -> None:
    assert small.ask(line_of(300)).status == 414
    assert small.ask(head_of(5000)).status == 431
    assert small.ask(get("/healthz", headers=[(f"X-{n}", "") for n in range(20)])).status == 431
    assert small.ask(get("/healthz", headers=[(f"X-{n}", "") for n in range(19)])).status == 200


@pytest.mark.promise("limit:body")
@pytest.mark.parametrize(("path", "limit"), [("/v1/chat/completions", 64 << 10), ("/v1/images/generations", 256 << 10)])
def test_declared_body_too_large_is_refused_before_it_is_read(path, limit, small: Gateway, sim: SimProvider) -> None:
    for size in (limit + 1, 1 << 30, 999_999_999_999_999):
        with small.client() as client:
            client.send(request(path, None, method="POST", headers={"Content-Length": str(size)}))
            # Not one byte of the body has been sent.
            assert refusal(client.answer(), 413, "request_too_large").closes
            client.send_what_goes(b"x" * 100_000)
            assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("limit:body")
def test_body_up_to_the_limit_passes_and_a_chunked_one_is_counted(small: Gateway, sim: SimProvider) -> None:
    def sized(size: int) -> bytes:
        return encode(chat(user="x" * (size - len(encode(chat(user=""))))))

    head = request(body=None, headers={"Transfer-Encoding": "chunked"})
    assert small.ask(request(body=sized(64 << 10))).status == 200
    assert small.ask(head + chunked(sized(64 << 10), 1000)).status == 200
    with small.client() as client:
        client.send(head + chunked(sized((64 << 10) + 1), 30_000))
        assert refusal(client.answer(), 413, "request_too_large").closes
        assert client.closed()
    with small.client() as client:
        # The size line alone does not decide, what comes does; it need not come to its end.
        client.send(head + b"ffffffff\r\n" + b"x" * 70_000)
        assert refusal(client.answer(), 413, "request_too_large").closes
        assert client.closed()
    assert len(sim.requests) == 2


@pytest.mark.promise("limit:body")
def test_default_limits_are_32_and_100_mib(gateway: Gateway, sim: SimProvider) -> None:
    for path, limit in (("/v1/chat/completions", 32 << 20), ("/v1/audio/transcriptions", 100 << 20)):
        declared = {"Content-Length": str(limit + 1), "Expect": "100-continue"}
        answer = gateway.ask(request(path, None, method="POST", headers=declared))
        assert (answer.status, answer.interim) == (413, [])
        with gateway.client() as client:
            declared["Content-Length"] = str(limit)
            client.send(request(path, None, method="POST", headers=declared))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    assert sim.requests == []


@pytest.mark.promise("limit:chunk-overhead", "9")
@pytest.mark.parametrize(
    "body",
    [
        b"3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
        b"0" * 300 + b"3\r\nabc\r\n0\r\n\r\n",
        b"3;" + b"a" * 10_000,
        b"".join([b"1;" + b"a" * 200 + b"\r\nx\r\n"] * 1000) + b"0\r\n\r\n",
        b"".join([b"1\r\nx\r\n"] * 30_000) + b"0\r\n\r\n",
    ],
    ids=["extension", "zeros", "endless-line", "extensions-in-all", "single-bytes"],
)
def test_more_framing_than_body_is_refused(body: bytes, gateway: Gateway, sim: SimProvider) -> None:
    with gateway.client() as client:
        client.send_what_goes(request(body=None, headers={"Transfer-Encoding": "chunked"}) + body)
        assert refusal(client.answer(), 400, "bad_request").closes
        assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("limit:pipelined", "13")
def test_client_that_runs_ahead_is_not_read(launch, sim: SimProvider) -> None:
    with SimThread(SimProvider("slow", script=Script(faults=[Fault("hang_before_answer")]))) as sims:
        gateway = launch([sims["slow"]])
        gateway.ask(get("/healthz"))
        before = gateway.rss_bytes()
        with gateway.client(timeout_s=0.5) as client:
            client.send(request())
            until(lambda: sims["slow"].in_flight == 1)
            assert not client.send_what_goes(get("/healthz") * (64 << 20 >> 6)), "64 MiB of requests were taken in"
            assert gateway.rss_bytes() - before < 16 << 20
            with gateway.client() as other:
                other.send(get("/healthz"))
                assert other.answer().status == 200


# -- time ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty(launch, shared_sim):
    timeouts = {
        "header_read": "600ms", "first_request": "800ms", "keep_alive_idle": "1s", "body_idle": "500ms",
        "body_total": "1s", "write_stall": "1s",
    }  # fmt: skip
    return launch([shared_sim], timeouts=timeouts, routing=OPEN)


@pytest.mark.promise("limit:header-read", "38")
@pytest.mark.parametrize("first", [b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"GET /", b"G"])
def test_head_that_comes_byte_by_byte_gets_408_in_time(first: bytes, hasty: Gateway) -> None:
    with hasty.client() as client:
        client.send(first)
        took = drip(client, lambda: b"x")
        assert took >= 0.5
        assert refusal(client.answer(), 408, "request_timeout").closes
        assert client.closed()


@pytest.mark.promise("limit:header-read", "38")
def test_head_that_stops_gets_408_also_on_a_used_connection(hasty: Gateway) -> None:
    with hasty.client() as client:
        client.send(get("/healthz") + get("/healthz")[:30])
        assert client.answer().status == 200
        assert refusal(client.answer(), 408, "request_timeout").closes
        assert client.closed()


@pytest.mark.promise("limit:idle", "38")
def test_connection_that_says_nothing_is_closed_without_a_word(hasty: Gateway) -> None:
    since = time.monotonic()
    with hasty.client() as silent, hasty.client() as empty_lines, hasty.client() as used:
        used.send(get("/healthz"))
        assert used.answer().status == 200
        answered = time.monotonic()
        empty_lines.send(b"\r\n")
        assert silent.ending() == "fin"
        assert 0.7 <= time.monotonic() - since < 0.8 + LATE_S
        assert used.ending() == "fin"
        assert 0.9 <= time.monotonic() - answered < 1.0 + LATE_S
        until(lambda: select.select([empty_lines.socket], [], [], 0)[0])


@pytest.mark.promise("limit:body-read", "38")
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("pace", ["stops", "crawls"])
def test_body_that_stops_or_crawls_gets_408(framing: str, pace: str, hasty: Gateway, sim: SimProvider) -> None:
    framed = {"Content-Length": "1000000"} if framing == "length" else {"Transfer-Encoding": "chunked"}
    piece = b"x" * 10 if framing == "length" else b"a\r\n" + b"x" * 10 + b"\r\n"
    with hasty.client() as client:
        client.send(request(body=None, headers=framed) + piece)
        took = drip(client, lambda: piece if pace == "crawls" else b"", every_s=0.1)
        assert took >= (0.9 if pace == "crawls" else 0.4)
        assert refusal(client.answer(), 408, "request_timeout").closes
        assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("limit:body-read")
def test_large_body_at_a_fair_pace_outlives_the_total(hasty: Gateway, sim: SimProvider) -> None:
    body = encode(chat(user="x" * 1_000_000))
    with hasty.client() as client:
        client.send(request(body=None, headers={"Content-Length": str(len(body))}))
        since = time.monotonic()
        at = 0
        while time.monotonic() - since < 1.6:
            assert not select.select([client.socket], [], [], 0.1)[0], client.answer()
            client.send(body[at : at + 40_000])
            at += 40_000
        client.send(body[at:])
        assert client.answer().status == 200
    assert sim.requests[0].body == body


@pytest.mark.promise("limit:write-stall", "36")
def test_client_that_reads_nothing_is_cut_off_and_its_provider_stopped(hasty: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=200_000)
    with hasty.client(receive_bytes=4096) as client:
        client.send(request(body=chat(stream=True)))
        until(lambda: sim.requests and sim.requests[0].aborted_at is not None, 5 + LATE_S)
        until(lambda: hasty.metrics()["dandolo_requests_in_flight"] == 0)
        answer = client.answer()
        assert not answer.complete
        assert b"[DONE]" not in answer.body


@pytest.mark.promise("limit:write-buffer", "37")
def test_provider_is_not_read_faster_than_the_client_reads(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=100_000)
    gateway.ask(get("/healthz"))
    before = gateway.rss_bytes()
    with gateway.client(receive_bytes=4096) as client:
        client.send(request(body=chat(stream=True)))
        sent = -1

        def stopped() -> bool:
            nonlocal sent
            last, sent = sent, sim.requests[0].sent_bytes if sim.requests else 0
            select.select([], [], [], 0.3)
            return 0 < sent == last

        until(stopped)
        assert sim.requests[0].answered_at is None
        assert gateway.rss_bytes() - before < 8 << 20
        # Whoever reads on gets everything.
        answer = client.answer()
        assert answer.complete
        assert answer.events[-1] == b"[DONE]"
        assert len(answer.events) >= 100_000


# -- how many ------------------------------------------------------------------------------------------------


@pytest.mark.promise("limit:requests-per-connection")
def test_connection_announces_its_end_after_a_thousand_requests(gateway: Gateway) -> None:
    with gateway.client() as client:
        count = 0
        closes = False
        while not closes:
            client.send(get("/healthz") * 50)
            for _ in range(50):
                answer = client.answer()
                count += 1
                assert answer.status == 200
                closes = answer.closes
                if closes:
                    break
            assert count <= 1000
        assert count >= 900
        assert client.closed()


@contextmanager
def connected(gateway: Gateway, count: int, source: str | None = None) -> Iterator[list[Client]]:
    """Connections that have been let in, each shown by an answer."""
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client(source=source)) for _ in range(count)]
        for client in clients:
            client.send(get("/healthz"))
            assert client.answer().status == 200
        yield clients


def gone(gateway: Gateway) -> None:
    until(lambda: gateway.metrics()["dandolo_connections"] == 0)


@pytest.mark.promise("limit:connections", "41")
def test_connections_beyond_the_limits_are_refused(launch, shared_sim: SimProvider) -> None:
    gateway = launch(
        [shared_sim],
        limits={"connections_max": 8, "connections_per_ip_max": 3},
        server={"trusted_proxies": ["127.0.0.9"]},
    )
    gone(gateway)
    with connected(gateway, 3), connected(gateway, 1, "127.0.0.2"):
        with gateway.client() as beyond:
            assert beyond.ending() in ("fin", "rst")
        with connected(gateway, 4, "127.0.0.9"), gateway.client(source="127.0.0.9") as beyond:
            # The process's limit, told without being asked; a request that is on its way does no harm.
            answer = refusal(beyond.answer(), 503, "overloaded")
            assert answer.closes
            assert answer.header("retry-after")
            assert beyond.ending() == "fin"
    gone(gateway)
    with connected(gateway, 3):
        pass


@pytest.mark.promise("limit:connections")
def test_refused_connection_can_read_its_answer_though_it_has_sent_a_request(launch, shared_sim: SimProvider) -> None:
    gateway = launch([shared_sim], limits={"connections_max": 1})
    gone(gateway)
    with connected(gateway, 1):
        for _ in range(20):
            with gateway.client() as beyond:
                beyond.send_what_goes(request())
                assert refusal(beyond.answer(), 503, "overloaded").closes


@pytest.mark.promise("limit:in-flight", "41")
def test_requests_beyond_the_limits_are_told_when_to_come_back(launch) -> None:
    with SimThread(SimProvider("slow", script=Script(default_fault=Fault("hang_before_answer")))) as sims:
        slow = sims["slow"]
        keys = [{"key": KEY, "concurrent": 2}, {"key": OTHER_KEY}]
        gateway = launch([slow], keys=keys, limits={"in_flight_max": 4, "in_flight_per_key_max": 3})
        with ExitStack() as stack:

            def begin(key: str) -> None:
                client = stack.enter_context(gateway.client())
                client.send(request(key=key))

            def refused(key: str, status: int, code: str) -> None:
                # Decided from the head: the body is neither asked for nor waited for.
                head = request(body=None, key=key, headers={"Content-Length": "100", "Expect": "100-continue"})
                answer = refusal(gateway.ask(head), status, code)
                assert answer.interim == []
                assert int(answer.header("retry-after") or 0) >= 1
                assert int(answer.header("retry-after-ms") or 0) >= 1
                assert answer.header("x-should-retry") is None

            begin(KEY)
            begin(KEY)
            until(lambda: slow.in_flight == 2)
            refused(KEY, 429, "rate_limit_exceeded")
            begin(OTHER_KEY)
            begin(OTHER_KEY)
            until(lambda: slow.in_flight == 4)
            refused(OTHER_KEY, 503, "overloaded")
            assert gateway.ask(get("/healthz")).status == 200
            assert gateway.ask(get("/readyz")).status == 200
            assert slow.received == 4
        until(lambda: slow.in_flight == 0)
        slow.script = Script()
        until(lambda: gateway.metrics()["dandolo_requests_in_flight"] == 0)
        assert gateway.ask(request(key=KEY)).status == 200


@pytest.mark.promise("limit:in-flight")
def test_one_key_may_not_take_everything(launch) -> None:
    with SimThread(SimProvider("slow", script=Script(default_fault=Fault("hang_before_answer")))) as sims:
        gateway = launch([sims["slow"]], keys=[KEY, OTHER_KEY], limits={"in_flight_per_key_max": 1})
        with gateway.client() as client, gateway.client() as other:
            client.send(request(key=KEY))
            until(lambda: sims["slow"].in_flight == 1)
            refusal(gateway.ask(request(key=KEY)), 429, "rate_limit_exceeded")
            other.send(request(key=OTHER_KEY))
            until(lambda: sims["slow"].in_flight == 2)


@pytest.mark.promise("limit:provider-connections", "33")
def test_account_is_asked_no_more_at_a_time_than_configured(launch) -> None:
    with SimThread(SimProvider("narrow", script=Script(latency_s=0.05, max_concurrency=2))) as sims:
        gateway = launch([Provider(sims["narrow"], options={"concurrency_max": 2})])
        with ExitStack() as stack:
            clients = [stack.enter_context(gateway.client()) for _ in range(8)]
            for client in clients:
                client.send(request())
            answers = [client.answer() for client in clients]
        assert [answer.status for answer in answers] == [200] * 8
        assert sims["narrow"].connections_opened <= 2
        assert max(float(answer.header("x-dandolo-queue-ms") or 0) for answer in answers) >= 50


# -- providers -----------------------------------------------------------------------------------------------


@pytest.fixture
def dark() -> Iterator[int]:
    """A port whose connects neither succeed nor fail: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.promise("limit:connect", "22", "31")
def test_provider_that_cannot_be_reached_is_passed_over_or_a_504(
    dark: int, launch, shared_sim: SimProvider, sim
) -> None:
    unreachable = Provider(SimProvider("dark"), options={"base_url": f"http://127.0.0.1:{dark}/v1"})
    gateway = launch([unreachable, shared_sim], timeouts={"connect": "300ms"}, routing=OPEN)
    since = time.monotonic()
    answer = gateway.ask(request())
    assert (answer.status, answer.header("x-dandolo-provider"), answer.header("x-dandolo-attempts")) == (
        200,
        "sim",
        "2",
    )
    answer = refusal(gateway.ask(request(body=chat(model=f"dark/{MODEL}"))), 504, "upstream_timeout")
    assert answer.error["type"] == "timeout_error"
    assert 0.5 < time.monotonic() - since < 0.6 + LATE_S


@pytest.fixture(scope="module")
def impatient(launch, shared_sim):
    timeouts = {"first_byte": "500ms", "first_byte_stream": "500ms", "stream_idle": "500ms", "total": "1s",
                "stream_total": "2s"}  # fmt: skip
    return launch([shared_sim], timeouts=timeouts, routing=OPEN)


@pytest.mark.promise("limit:first-byte", "22")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("kind", ["hang_before_answer", "hang_after_head", "endless_1xx"])
def test_silence_before_an_answer_is_a_504(kind, stream, impatient: Gateway, sim: SimProvider) -> None:
    sim.script = Script(default_fault=Fault(kind, delay_s=0.2 if kind == "endless_1xx" else 0))
    since = time.monotonic()
    answer = refusal(impatient.ask(request(body=chat(stream=stream))), 504, "upstream_timeout")
    assert (answer.error["type"], answer.header("x-should-retry")) == ("timeout_error", "false")
    assert 0.4 < time.monotonic() - since < 1.0 + LATE_S
    until(lambda: sim.in_flight == 0)


@pytest.mark.promise("limit:first-byte", "26")
@pytest.mark.parametrize(
    ("script", "at_least_s"),
    [
        (Script(tokens=9, tokens_per_s=500, faults=[Fault("stall", after=4)]), 0.4),
        (Script(tokens=9, tokens_per_s=500, faults=[Fault("keepalive_forever", after=4)]), 0.4),
        (Script(tokens=1000, tokens_per_s=20), 1.9),
    ],
    ids=["idle", "only-comments", "total"],
)
def test_stream_that_falls_silent_or_never_ends_is_broken_off(script, at_least_s, impatient: Gateway, sim) -> None:
    sim.script = script
    since = time.monotonic()
    answer = impatient.ask(request(body=chat(stream=True)))
    assert at_least_s < time.monotonic() - since < at_least_s + LATE_S
    assert (answer.status, answer.complete) == (200, False)
    assert json.loads(answer.events[-1])["error"]["code"] in ("upstream_stream_error", "upstream_timeout")
    assert b"[DONE]" not in answer.body
    until(lambda: sim.in_flight == 0)


@pytest.mark.promise("limit:first-byte", "30")
def test_plain_answer_that_dribbles_ends_with_the_total(impatient: Gateway, sim: SimProvider) -> None:
    sim.script = Script(faults=[Fault("dribble", size=2, delay_s=0.05)])
    since = time.monotonic()
    answer = impatient.ask(request())
    assert answer.status == 504
    assert 0.4 < time.monotonic() - since < 1.0 + LATE_S


@pytest.mark.promise("limit:first-byte")
def test_callers_own_deadline_counts(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(default_fault=Fault("hang_before_answer"))
    for value in ("300ms", "0.3s", "0.3"):
        answer = gateway.ask(request(headers={"x-dandolo-timeout": value}))
        refusal(answer, 504, "upstream_timeout")
    for value in ("0s", "-1s", "soon", ""):
        refusal(gateway.ask(request(headers={"x-dandolo-timeout": value})), 400, "bad_request")


@pytest.mark.promise("limit:provider-head", "22", "25")
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault("huge_header", size=32 << 10), 200),
        (Fault("huge_header", size=128 << 10), 502),
        (Fault("huge_header", size=8 << 20), 502),
        (Fault("endless_1xx", count=16), 200),
        (Fault("endless_1xx", count=17), 502),
        (Fault("endless_1xx"), 502),
        (Fault("endless_1xx", status=103), 502),
    ],
    ids=["32KiB", "128KiB", "8MiB", "16-interim", "17-interim", "endless", "endless-103"],
)
def test_endless_head_of_a_provider_is_a_502(fault: Fault, status: int, gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(faults=[fault])
    answer = gateway.ask(request())
    assert answer.status == status
    if status == 502:
        assert (answer.error["type"], answer.error["code"]) == ("upstream_error", "upstream_invalid_response")


def raw(body: bytes, framing: bytes) -> Script:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing + b"\r\n\r\n"
    return Script(faults=[Fault("raw", data=head + body)])


@pytest.mark.promise("limit:provider-body", "30")
def test_plain_answer_beyond_32_mib_is_refused_or_cut(gateway: Gateway, sim: SimProvider) -> None:
    most = 32 << 20
    sim.script = raw(b"{", b"Content-Length: %d" % (most + 1))
    refusal(gateway.ask(request()), 502, "upstream_invalid_response")
    body = b'{"id":"' + b"x" * (most - 9) + b'"}'
    sim.script = raw(body, b"Content-Length: %d" % most)
    answer = gateway.ask(request())
    assert (answer.status, len(answer.body), answer.complete) == (200, most, True)
    sim.script = raw(chunked(b" " + body, 1 << 20, 1 << 20), b"Transfer-Encoding: chunked")
    answer = gateway.ask(request())
    assert answer.status == 502 or not answer.complete


@pytest.mark.promise("limit:event", "26")
def test_event_beyond_16_mib_breaks_its_stream(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=4, faults=[Fault("big_event", after=2, size=15 << 20)])
    answer = gateway.ask(request(body=chat(stream=True)))
    assert answer.complete
    assert answer.events[-1] == b"[DONE]"
    assert max(map(len, answer.events)) == 15 << 20
    sim.script = Script(tokens=4, faults=[Fault("big_event", after=2, size=17 << 20)])
    answer = gateway.ask(request(body=chat(stream=True)))
    assert (answer.status, answer.complete) == (200, False)
    assert b"[DONE]" not in answer.body


@pytest.mark.promise("limit:attempts", "31")
def test_one_request_asks_at_most_three_times(launch) -> None:
    failing = [SimProvider(f"p{n}", script=Script(default_fault=Fault("status", status=500))) for n in range(5)]
    with SimThread(*failing):
        gateway = launch(failing, routing=OPEN)
        answer = gateway.ask(request())
        assert (answer.status, answer.header("x-should-retry")) == (502, "false")
        assert answer.header("x-dandolo-attempts") == "3"
        assert sorted(one.received for one in failing) == [0, 0, 1, 1, 1]


@pytest.mark.promise("limit:attempts", "31")
def test_retries_of_all_requests_draw_on_one_budget(launch) -> None:
    """Twenty to begin with and a fifth of a retry for each request: an outage is not multiplied by three."""
    failing = [SimProvider(f"p{n}", script=Script(default_fault=Fault("status", status=500))) for n in range(3)]
    with SimThread(*failing):
        gateway = launch(failing, routing=OPEN)
        with gateway.client() as client:
            for _ in range(100):
                client.send(request())
                assert client.answer().status == 502
        calls = sum(one.received for one in failing)
        assert 100 + 20 <= calls <= 100 + 20 + 100 * 0.2 + 1


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.promise("limit:drain")
def test_drain_lets_requests_finish_and_tells_those_that_cannot(tmp_path) -> None:
    script = Script(tokens=20, tokens_per_s=20)
    with SimThread(
        SimProvider("short", script=script), SimProvider("long", script=Script(tokens=10_000, tokens_per_s=20))
    ) as sims:
        gateway = Gateway(tmp_path, list(sims.providers), server={"drain_timeout": "2s"})
        gateway.start()
        try:
            with gateway.client() as short, gateway.client() as long, gateway.client() as idle:
                idle.send(get("/healthz"))
                assert idle.answer().status == 200
                short.send(request(body=chat(model=f"short/{MODEL}", stream=True)))
                long.send(request(body=chat(model=f"long/{MODEL}", stream=True)))
                for one in (short, long):
                    one.await_bytes(b"data: ")
                since = time.monotonic()
                gateway.signal(signal.SIGTERM)
                assert idle.ending() == "fin"
                finished = short.answer()
                assert finished.complete
                assert finished.events[-1] == b"[DONE]"
                cut = long.answer()
                assert not cut.complete
                assert b"[DONE]" not in cut.body
                assert json.loads(cut.events[-1])["error"]["code"] == "shutting_down"
                assert 1.5 < time.monotonic() - since < 2.0 + LATE_S
            assert gateway.wait() == 0
            assert gateway.errors() == []
        finally:
            gateway.kill()
