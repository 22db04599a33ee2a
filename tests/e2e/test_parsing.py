"""Reading requests, over real sockets: what is refused, what is not, and that nobody's bytes become a request.

The malformed requests of the corpus are sent to a running gateway as they stand, each with an honest request of
a known key behind it: had that been interpreted, the provider would have seen it.
"""

from __future__ import annotations

import gc
import threading
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from harness import KEY, MODEL, Answer, Client, Gateway, chat, chunked, encode, get, request, until

from dandolo.sim import Fault, Script, SimProvider

CORPUS = Path(__file__).parent.parent / "corpus" / "requests.toml"
BODY_BYTES_MAX = 1 << 20
SMUGGLED = request(key=KEY, body=chat(user="smuggled"))
"""Whoever interprets this shows it to the provider."""
CODES = {
    400: "bad_request",
    408: "request_timeout",
    413: "request_too_large",
    414: "uri_too_long",
    417: "expectation_failed",
    431: "headers_too_large",
    501: "unsupported_transfer_encoding",
    505: "http_version_not_supported",
}


def corpus() -> list[dict[str, Any]]:
    entries = tomllib.loads(CORPUS.read_text("utf-8"))["request"]
    for entry in entries:
        fill = entry.get("fill", {"text": "", "times": 0})
        entry["bytes"] = entry["bytes"].replace("{fill}", fill["text"] * fill["times"]).encode("latin-1")
    return entries


REFUSED = [entry for entry in corpus() if "status" in entry]
ACCEPTED = [
    entry
    for entry in corpus()
    if "status" not in entry
    and entry["promise"] in (2, 3, 5, 9)
    and entry["bytes"].startswith(b"POST /v1/x HTTP/1.1\r\n")
]


def authorised(data: bytes) -> bytes:
    """A request of the corpus, to an endpoint that reads bodies, from somebody who may come in."""
    data = data.replace(b"/v1/x", b"/v1/chat/completions", 1)
    return data.replace(b"Host: a\r\n", b"Host: a\r\nAuthorization: Bearer %b\r\n" % KEY.encode(), 1)


@pytest.fixture(scope="module")
def strict_gateway(launch, shared_sim):
    limits = {"body_bytes_max": BODY_BYTES_MAX}
    return launch([shared_sim], keys=[KEY], limits=limits, routing={"breaker": False})


@pytest.fixture
def strict(strict_gateway: Gateway, sim: SimProvider):
    yield strict_gateway
    assert strict_gateway.alive


def envelope(answer: Answer, status: int, code: str | None, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Check everything that a refusal has, and return its error."""
    assert answer.status == status, answer
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-request-id")
    error = answer.error
    assert error["code"] == code
    assert error["type"] == kind
    return error


def assert_refused(
    gateway: Gateway, sim: SimProvider, data: bytes, status: int = 400, after: bytes = SMUGGLED
) -> Answer:
    """The request gets one answer, the connection ends without a reset, and the provider hears nothing."""
    received = sim.received
    with gateway.client() as client:
        client.send_what_goes(data + after)
        answer = client.answer()
        envelope(answer, status, CODES[status])
        assert answer.closes
        assert answer.interim == []
        assert client.closed()
    assert sim.received == received
    return answer


# -- the corpus ----------------------------------------------------------------------------------------------


@pytest.mark.promise("1", "2", "3", "4", "5", "6", "7", "8", "9", "limit:request-line", "limit:header-block")
@pytest.mark.promise("limit:header-count", "limit:body", "limit:chunk-overhead")
@pytest.mark.parametrize("entry", REFUSED, ids=[entry["id"] for entry in REFUSED])
def test_malformed_request_is_refused_and_ends_the_connection(entry, strict: Gateway, sim: SimProvider) -> None:
    assert_refused(strict, sim, authorised(entry["bytes"]), entry["status"])


@pytest.mark.promise("2", "3", "5", "9")
@pytest.mark.parametrize("entry", ACCEPTED, ids=[entry["id"] for entry in ACCEPTED])
def test_unusual_but_valid_framing_ends_where_it_says(entry, strict: Gateway) -> None:
    with strict.client() as client:
        client.send(authorised(entry["bytes"]) + get("/healthz"))
        answer = client.answer()
        assert "JSON" in envelope(answer, 400, "bad_request")["message"] or b"empty" in answer.body
        assert not answer.closes
        assert client.answer().json == {"status": "ok"}


@pytest.mark.promise("1", "4", "13")
def test_malformed_request_byte_by_byte_is_refused_all_the_same(strict: Gateway, sim: SimProvider) -> None:
    received = sim.received
    data = authorised(
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"
    )
    with strict.client() as client:
        for byte in data:
            assert client.send_what_goes(bytes((byte,)))
        envelope(client.answer(), 400, "bad_request")
        assert client.closed()
    assert sim.received == received


# -- framing of bodies ---------------------------------------------------------------------------------------


@pytest.mark.promise("9", "17")
def test_chunked_body_reaches_the_provider_with_a_length_and_without_trailers(keyed: Gateway, sim: SimProvider) -> None:
    body = encode(chat(user="é" * 100))
    trailers = (
        b"Authorization: Bearer stolen\r\nOpenAI-Beta: trailer\r\nHost: elsewhere\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 3\r\nanthropic-beta: trailer\r\n"
    )
    head = request(key=KEY, body=None, headers=[("Transfer-Encoding", "chunked"), ("OpenAI-Beta", "head")])
    with keyed.client() as client:
        client.send(head + chunked(body, 1, 2, 60, extension=b';a="\\"";b', trailers=trailers) + get("/healthz"))
        assert client.answer().status == 200
        assert client.answer().json == {"status": "ok"}
    (seen,) = sim.requests
    assert seen.body == body
    assert seen.header("content-length") == str(len(body))
    assert seen.header("transfer-encoding") is None
    assert seen.header("openai-beta") == "head"
    assert seen.header("anthropic-beta") is None
    assert "stolen" not in str(seen.headers)
    assert "elsewhere" not in str(seen.headers)


@pytest.mark.promise("9")
def test_chunked_body_may_come_in_any_pieces(gateway: Gateway, sim: SimProvider) -> None:
    body = encode(chat())
    data = request(body=None, headers={"Transfer-Encoding": "chunked"}) + chunked(body, 10, 20, trailers=b"a: b\r\n")
    with gateway.client() as client:
        for byte in data:
            client.send(bytes((byte,)))
        assert client.answer().status == 200
    assert [seen.body for seen in sim.requests] == [body]


UPGRADES = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "not-nominated": "Upgrade: h2c\r\n",
    "own": "Connection: keep-alive, upgrade\r\nUpgrade: smuggle\r\n",
}


@pytest.mark.promise("10")
@pytest.mark.parametrize("name", UPGRADES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upgrade_is_ignored_and_ends_the_connection(name: str, framing: str, keyed: Gateway, sim: SimProvider) -> None:
    body = encode(chat(user=name))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n{UPGRADES[name]}".encode()
    framed = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    if framing == "chunked":
        framed = b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, 9)
    with keyed.client() as client:
        client.send(head + framed + SMUGGLED)
        answer = client.answer()
        assert (answer.status, answer.closes) == (200, True)
        assert answer.header("upgrade") is None
        assert client.closed()
    assert [seen.body for seen in sim.requests] == [body]
    assert sim.requests[0].header("upgrade") is None
    assert sim.requests[0].header("connection") in (None, "keep-alive")


@pytest.mark.promise("10", "12")
@pytest.mark.parametrize("name", UPGRADES)
def test_body_behind_an_upgrade_is_no_request(name: str, keyed: Gateway, sim: SimProvider) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: a\r\n{UPGRADES[name]}Content-Length: {len(SMUGGLED)}\r\n\r\n".encode()
    with keyed.client() as client:
        client.send(head + SMUGGLED)
        assert client.answer().json == {"status": "ok"}
        assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("12", "1")
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/nothing", "/v1/chat/completions"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_of_a_method_without_one_is_no_request(method, path, framing, keyed: Gateway, sim: SimProvider) -> None:
    framed = [("Content-Length", str(len(SMUGGLED)))] if framing == "length" else [("Transfer-Encoding", "chunked")]
    body = SMUGGLED if framing == "length" else chunked(SMUGGLED, 40)
    with keyed.client() as client:
        client.send(request(path, None, method=method, headers=framed, key=KEY) + body + get("/readyz"))
        answer = client.answer(head_only=method == "HEAD")
        assert answer.status < 500
        if answer.closes:
            assert client.closed()
        else:
            assert client.answer().json == {"status": "ready"}
    assert [seen.target for seen in sim.requests if seen.target != "/v1/models"] == []


# -- the request line ----------------------------------------------------------------------------------------


@pytest.mark.promise("6")
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/moderations", "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("get", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/v1/models/x", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("BREW", "/v1/responses", "POST"),
    ],
)
def test_method_outside_the_routes_set_is_told_the_set(method, path, allow, keyed: Gateway, sim: SimProvider) -> None:
    with keyed.client() as client:
        client.send(request(path, method=method, key=KEY))
        answer = client.answer()
        envelope(answer, 405, "method_not_allowed")
        assert answer.header("allow") == allow
        client.send(get("/healthz"))
        assert client.answer().status == 200
    assert sim.requests == []


@pytest.mark.promise("6", "20")
@pytest.mark.parametrize(
    "line",
    ["CONNECT 127.0.0.1:{port}", "CONNECT /v1/chat/completions", "TRACE /v1/chat/completions", "TRACE /healthz",
     "CONNECT api.example.com:443"],
)  # fmt: skip
def test_connect_and_trace_are_405_and_the_end(line: str, keyed: Gateway, sim: SimProvider) -> None:
    opened = sim.connections_opened
    head = f"{line.format(port=sim.port)} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    with keyed.client() as client:
        client.send(head.encode() + SMUGGLED)
        answer = client.answer()
        envelope(answer, 405, "method_not_allowed")
        assert answer.header("allow") is not None
        assert answer.closes
        assert client.closed()
    assert sim.connections_opened == opened


@pytest.mark.promise("6")
def test_two_empty_lines_before_a_request_are_forgiven(gateway: Gateway) -> None:
    with gateway.client() as client:
        for _ in range(3):
            client.send(b"\r\n\r\n" + get("/healthz"))
            assert client.answer().status == 200


@pytest.mark.promise("7")
@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/v1/../v1/models", "/./v1/models", "/v1/models/", "/V1/models", "/v1%2Fmodels",
     "/v1/%6dodels", "/v1/models;x", "/v1", "/v1/", "/v1/chat/completions/", "/v1/chat/completions/x", "/admin",
     "/metrics", "/v1/organization/users", "/%2e%2e/v1/models", "/v1/responses/../models", "/v1/responses/a%2Fb",
     "/v1\\models", "/healthz/", "/v1/files", "/.env", "/v1/models%00", "/v1/fine_tuning/jobs"],
)  # fmt: skip
def test_unknown_path_is_404_however_it_could_be_read(path: str, keyed: Gateway, sim: SimProvider) -> None:
    with keyed.client() as client:
        client.send(get(path, key=KEY) + get("/healthz"))
        envelope(client.answer(), 404, "not_found")
        assert client.answer().status == 200
    assert sim.requests == []


@pytest.mark.promise("7")
def test_absolute_target_replaces_host_and_is_never_gone_to(gateway: Gateway, sim: SimProvider) -> None:
    opened = sim.connections_opened
    answer = gateway.ask(get(f"http://127.0.0.1:{sim.port}/healthz", host="elsewhere.example"))
    assert answer.json == {"status": "ok"}
    assert gateway.ask(get(f"HTTP://LOCALHOST:{sim.port}", host="elsewhere.example")).status == 200
    refused = gateway.ask(get("http://elsewhere.example/healthz"))
    envelope(refused, 403, "host_not_allowed", "permission_error")
    assert sim.connections_opened == opened
    answer = gateway.ask(request(f"https://127.0.0.1:{sim.port}/v1/chat/completions?x=y", host="elsewhere.example"))
    assert answer.status == 200
    (seen,) = sim.requests
    assert seen.target == "/v1/chat/completions"
    assert seen.header("host") == f"127.0.0.1:{sim.port}"


@pytest.mark.promise("7")
@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (f"/v1/models/{MODEL}", MODEL),
        (f"/v1/models/sim%2F{MODEL}", f"sim/{MODEL}"),
        (f"/v1/models/sim/{MODEL}", f"sim/{MODEL}"),
        ("/v1/models/%73im-small", MODEL),
        (f"/v1/models/{MODEL}?beta=true", MODEL),
    ],
)
def test_model_id_in_a_path_is_percent_decoded(path: str, wanted: str, gateway: Gateway) -> None:
    assert gateway.ask(get(path)).json["id"] == wanted


@pytest.mark.promise("7", "18")
@pytest.mark.parametrize(
    "wanted",
    ["%0d%0aX-Injected:%20yes", "..%2f..%2fadmin", "%00", "%ff%fe", "%25", "%", "%zz", "a" * 4000, "%1b%5b31m"],
)
def test_unknown_model_in_a_path_is_404_and_goes_nowhere(wanted: str, gateway: Gateway, sim: SimProvider) -> None:
    answer = gateway.ask(get(f"/v1/models/{wanted}"))
    envelope(answer, 404, "model_not_found")
    assert answer.header("x-injected") is None
    assert not any(byte < 0x20 or byte == 0x7F for byte in answer.error["message"].encode())
    assert {seen.target for seen in sim.requests} <= {"/v1/models"}
    assert gateway.record(answer)["status"] == 404


@pytest.mark.promise("7", "20")
def test_query_is_ignored(keyed: Gateway, sim: SimProvider) -> None:
    evil = "beta=true&api_base=http://127.0.0.1:1&api_key=x&host=evil&stream=true"
    answer = keyed.ask(request(f"/v1/chat/completions?{evil}", key=KEY))
    assert (answer.status, answer.framing) == (200, "length")
    assert [seen.target for seen in sim.requests] == ["/v1/chat/completions"]


@pytest.mark.promise("8", "17")
def test_provider_is_called_by_its_own_name(keyed: Gateway, sim: SimProvider) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Host": "evil.example"}
    assert keyed.ask(request(key=KEY, host="evil.example:1", headers=headers)).status == 200
    (seen,) = sim.requests
    assert [value for name, value in seen.headers if name.lower() == "host"] == [f"127.0.0.1:{sim.port}"]
    assert "evil" not in str(seen.headers)


# -- expectations --------------------------------------------------------------------------------------------


EXPECT = ("Expect", "100-continue")


@pytest.mark.promise("11")
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_continue_comes_once_before_the_body(framing: str, keyed: Gateway, sim: SimProvider) -> None:
    body = encode(chat())
    framed = ("Content-Length", str(len(body))) if framing == "length" else ("Transfer-Encoding", "chunked")
    sent = body if framing == "length" else chunked(body, 10)
    with keyed.client() as client:
        for _ in range(2):
            client.send(request(body=None, key=KEY, headers=[framed, EXPECT]))
            assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(sent[:5])
            client.send(sent[5:])
            answer = client.answer()
            assert (answer.status, answer.interim, answer.closes) == (200, [], False)
    assert [seen.header("expect") for seen in sim.requests] == [None, None]


@pytest.mark.promise("11", "12", "limit:body")
@pytest.mark.parametrize(
    ("path", "key", "more", "status"),
    [
        ("/v1/chat/completions", "sk-wrong", {"Content-Length": "100"}, 401),
        ("/v1/chat/completions", None, {"Content-Length": "100"}, 401),
        ("/v1/chat/completions", "sk-wrong", {"Transfer-Encoding": "chunked"}, 401),
        ("/v1/chat/completions", KEY, {"Content-Length": str(BODY_BYTES_MAX + 1)}, 413),
        ("/v1/nothing", KEY, {"Content-Length": "100"}, 404),
        ("/v1/models", KEY, {"Content-Length": "100"}, 405),
        ("/v1/chat/completions", KEY, {"Content-Length": "100", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_refusal_comes_in_place_of_continue(path, key, more, status, strict: Gateway, sim: SimProvider) -> None:
    with strict.client() as client:
        client.send(request(path, None, method="POST", key=key, headers=[*more.items(), EXPECT]))
        answer = client.answer()
        assert (answer.status, answer.interim, answer.closes) == (status, [], True)
        assert answer.error["message"]
        client.send_what_goes(SMUGGLED)
        assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("11", "14")
def test_http_1_0_client_never_sees_an_interim_answer(keyed: Gateway, sim: SimProvider) -> None:
    with keyed.client() as client:
        client.send(request(key=KEY, version="HTTP/1.0", headers=[EXPECT]))
        answer = client.answer()
        assert (answer.status, answer.interim, answer.closes) == (200, [], True)
        assert client.closed()
    assert sim.requests[0].header("expect") is None


@pytest.mark.promise("11")
def test_another_expectation_is_417(keyed: Gateway, sim: SimProvider) -> None:
    for value in ("200-maybe", "100-continue, x", "", "100-continue;q=1"):
        answer = keyed.ask(request(key=KEY, headers=[("Expect", value)]))
        envelope(answer, 417, "expectation_failed")
    assert sim.requests == []


@pytest.mark.promise("11")
def test_expectation_with_its_body_at_once_is_answered(keyed: Gateway, sim: SimProvider) -> None:
    with keyed.client() as client:
        client.send(request(key=KEY, headers=[EXPECT]))
        answer = client.answer()
        assert answer.status == 200
        assert answer.interim in ([], [100])
    assert len(sim.requests) == 1


# -- early answers -------------------------------------------------------------------------------------------


EARLY = {
    "401": (request(key="sk-wrong", body=b"x" * 200_000), 401),
    "404": (request("/v1/nothing", key=KEY, body=b"x" * 200_000), 404),
    "405": (request("/v1/models", key=KEY, body=b"x" * 200_000), 405),
    "415": (request(key=KEY, body=b"x" * 200_000, headers={"Content-Encoding": "gzip"}), 415),
}


@pytest.mark.promise("12")
@pytest.mark.parametrize("name", EARLY)
def test_connection_is_of_use_after_an_early_answer_to_a_small_body(
    name: str, strict: Gateway, sim: SimProvider
) -> None:
    data, status = EARLY[name]
    head, _, body = data.partition(b"\r\n\r\n")
    # Within the body stand whole requests, which must remain body.
    body = (SMUGGLED * (len(body) // len(SMUGGLED) + 1))[: len(body)]
    with strict.client() as client:
        client.send(head + b"\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.closes) == (status, False)
        assert sim.requests == []
        for at in range(0, len(body), 50_000):
            client.send(body[at : at + 50_000])
        client.send(request(key=KEY, body=chat(user="honest")))
        assert client.answer().status == 200
    assert [seen.body for seen in sim.requests] == [encode(chat(user="honest"))]


@pytest.mark.promise("12")
@pytest.mark.parametrize(
    "head",
    [
        request(key="sk-wrong", body=None, headers={"Content-Length": str(8 << 20)}),
        request(key="sk-wrong", body=None, headers={"Transfer-Encoding": "chunked"}),
        request("/v1/nothing", None, method="POST", key=KEY, headers={"Content-Length": str(8 << 20)}),
    ],
)
def test_client_can_read_an_early_answer_while_it_sends_a_large_body(head: bytes, strict: Gateway, sim) -> None:
    with strict.client() as client:
        client.send(head)
        client.send(SMUGGLED * (1_500_000 // len(SMUGGLED)))
        answer = client.answer()
        assert answer.status in (401, 404)
        assert answer.closes
        assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("12", "20")
def test_rest_of_a_body_is_never_a_request_after_a_client_went_on_too_early(keyed: Gateway, sim: SimProvider) -> None:
    """A front that believes the answer ends the request reuses the connection at once; its bytes are still body."""
    with keyed.client() as client:
        client.send(request(key="sk-wrong", body=None, headers={"Content-Length": str(len(SMUGGLED))}))
        assert client.answer().status == 401
        client.send(SMUGGLED)
        client.send(get("/healthz"))
        assert client.answer().json == {"status": "ok"}
    assert sim.requests == []


# -- pipelining ----------------------------------------------------------------------------------------------


@pytest.mark.promise("13")
def test_pipelined_requests_are_handled_one_at_a_time_in_order(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(latency_s=0.01)
    users = [f"u{number}" for number in range(12)]
    with gateway.client() as client:
        client.send(b"".join(request(body=chat(user=user)) + get("/healthz") for user in users))
        for number in range(len(users)):
            assert client.answer().status == 200
            assert client.answer().json == {"status": "ok"}, number
    seen = sim.requests
    assert [one.body for one in seen] == [encode(chat(user=user)) for user in users]
    for before, after in pairwise(seen):
        assert before.answered_at is not None
        assert after.received_at >= before.answered_at


@pytest.mark.promise("13")
def test_pipelined_streams_and_plain_answers_keep_their_order(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=5, tokens_per_s=500)
    with gateway.client() as client:
        client.send((request(body=chat(stream=True)) + request()) * 3)
        kinds = []
        for _ in range(6):
            answer = client.answer()
            assert answer.status == 200
            kinds.append(answer.framing)
    assert kinds == ["chunked", "length"] * 3


@pytest.mark.promise("13")
@pytest.mark.parametrize(
    "bad", [b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\x16\x03\x01\x02\x00"]
)
def test_good_request_before_a_bad_one_is_answered(bad: bytes, gateway: Gateway, sim: SimProvider) -> None:
    with gateway.client() as client:
        client.send(request() + bad + SMUGGLED)
        assert client.answer().status == 200
        answer = client.answer()
        assert (answer.status, answer.closes) == (400, True)
        assert client.closed()
    assert len(sim.requests) == 1


@pytest.mark.promise("13", "14")
@pytest.mark.parametrize(
    "last", [get("/healthz", headers={"Connection": "close"}), get("/healthz", version="HTTP/1.0"),
             get("/healthz", version="HTTP/1.0", headers={"Connection": "keep-alive"}),
             get("/healthz", headers={"Connection": "x, Close ,y"})]
)  # fmt: skip
def test_nothing_is_interpreted_after_a_last_request(last: bytes, gateway: Gateway, sim: SimProvider) -> None:
    with gateway.client() as client:
        client.send(last + SMUGGLED)
        answer = client.answer()
        assert (answer.status, answer.closes) == (200, True)
        assert client.closed()
    assert sim.requests == []


# -- framing of answers --------------------------------------------------------------------------------------


@pytest.mark.promise("14")
@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/none"])
def test_head_is_get_without_the_body(path: str, gateway: Gateway) -> None:
    with gateway.client() as client:
        client.send(get(path) + request(path, None, method="HEAD") + get("/healthz"))
        got, head = client.answer(), client.answer(head_only=True)
        assert client.answer().json == {"status": "ok"}
    assert got.status == head.status
    assert head.body == b""
    varying = {"x-request-id", "date", "server-timing"}
    assert {name for name, _ in head.headers} == {name for name, _ in got.headers}
    assert dict(pair for pair in head.headers if pair[0] not in varying) == dict(
        pair for pair in got.headers if pair[0] not in varying
    )
    assert head.header("content-length") == str(len(got.body))


@pytest.mark.promise("14")
def test_options_is_204_without_body_or_length(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.send(request("/v1/chat/completions", None, method="OPTIONS") + request("*", None, method="OPTIONS"))
        for _ in range(2):
            answer = client.answer()
            assert (answer.status, answer.closes) == (204, False)
            assert answer.header("allow")


@pytest.mark.promise("14")
def test_http_1_0_gets_a_plain_answer_with_its_length(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.send(request(version="HTTP/1.0", headers={"Connection": "keep-alive"}))
        answer = client.answer()
        assert (answer.status, answer.framing, answer.closes) == (200, "length", True)
        assert client.closed()


@pytest.mark.promise("14")
def test_http_1_0_stream_ends_with_the_connection(gateway: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=5, tokens_per_s=500)
    answer = gateway.ask(request(body=chat(stream=True), version="HTTP/1.0"))
    assert (answer.status, answer.framing, answer.complete) == (200, "eof", True)
    assert answer.events[-1] == b"[DONE]"


@pytest.mark.promise("14", "26")
def test_http_1_0_stream_that_breaks_is_reset(gateway: Gateway, sim: SimProvider) -> None:
    """Only a reset tells a broken body from a complete one that the end of the connection delimits."""
    sim.script = Script(tokens=5, tokens_per_s=200, faults=[Fault("cut_rst", after=3)])
    answer = gateway.ask(request(body=chat(stream=True), version="HTTP/1.0"))
    assert (answer.framing, answer.ending) == ("eof", "rst")
    assert b"[DONE]" not in answer.body


@pytest.mark.promise("14")
def test_http_1_0_needs_no_host(gateway: Gateway) -> None:
    assert gateway.ask(b"GET /healthz HTTP/1.0\r\n\r\n").json == {"status": "ok"}


# -- bodies --------------------------------------------------------------------------------------------------


@pytest.mark.promise("15")
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
def test_compressed_body_is_415(coding: str, keyed: Gateway, sim: SimProvider) -> None:
    answer = keyed.ask(request(key=KEY, headers={"Content-Encoding": coding}))
    envelope(answer, 415, "unsupported_content_encoding")
    assert sim.requests == []


@pytest.mark.promise("15")
def test_identity_is_no_coding(keyed: Gateway, sim: SimProvider) -> None:
    assert keyed.ask(request(key=KEY, headers={"Content-Encoding": "identity"})).status == 200
    assert sim.requests[0].header("content-encoding") is None


M = b'"messages":[{"role":"user","content":"x"}]'
N = b'"model":"sim-small"'
BAD_BODIES: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "spaces": (b"  \r\n", None),
    "word": (b"hello", None),
    "array": (b"[]", None),
    "text": (b'"x"', None),
    "null": (b"null", None),
    "cut": (b"{" + N + b",", None),
    "trailing": (b"{" + N + b"," + M + b"}{}", None),
    "single-quotes": (b"{'model':'x'}", None),
    "comment": (b"{" + N + b"," + M + b"/**/}", None),
    "trailing-comma": (b"{" + N + b"," + M + b",}", None),
    "bom": (b"\xef\xbb\xbf{" + N + b"," + M + b"}", None),
    "utf-16": (("{" + N.decode() + "," + M.decode() + "}").encode("utf-16"), None),
    "invalid-utf-8": (b"{" + N + b"," + M + b',"user":"\xff"}', None),
    "overlong-utf-8": (b"{" + N + b"," + M + b',"user":"\xc0\xaf"}', None),
    "utf-8-surrogate": (b"{" + N + b"," + M + b',"user":"\xed\xa0\x80"}', None),
    "lone-surrogate": (b"{" + N + b"," + M + b',"user":"\\ud800"}', None),
    "lone-low-surrogate": (b"{" + N + b"," + M + b',"user":"\\udc00x"}', None),
    "nan": (b"{" + N + b"," + M + b',"temperature":NaN}', None),
    "infinity": (b"{" + N + b"," + M + b',"temperature":-Infinity}', None),
    "control": (b"{" + N + b"," + M + b',"user":"a\nb"}', None),
    "nul": (b"{" + N + b"," + M + b',"user":"a\x00b"}', None),
    "twice": (b"{" + N + b',"model":"other",' + M + b"}", "model"),
    "twice-spaced": (b'{ "model" : "a" , "model" : "b" , ' + M + b"}", "model"),
    "twice-escaped": (b"{" + N + b',"mod\\u0065l":"other",' + M + b"}", "model"),
    "twice-both-escaped": (b'{"mod\\u0065l":"a","\\u006dodel":"b",' + M + b"}", "model"),
    "twice-equal": (b"{" + N + b"," + N + b"," + M + b"}", "model"),
    "twice-unknown": (b"{" + N + b"," + M + b',"x":1,"x":2}', "x"),
    "twice-stream": (b"{" + N + b"," + M + b',"stream":false,"stream":true}', "stream"),
    "deep-object": (b"{" + N + b"," + M + b',"x":' + b'{"a":' * 128 + b"1" + b"}" * 128 + b"}", None),
    "deep-array": (b"{" + N + b"," + M + b',"x":' + b"[" * 128 + b"]" * 128 + b"}", None),
    "bottomless": (b"{" + N + b"," + M + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "bottomless-open": (b'{"a":' * 100_000, None),
    "digits-in-options": (
        b"{" + N + b"," + M + b',"stream":true,"stream_options":{"x":' + b"9" * 100_000 + b"}}",
        "stream_options",
    ),
    "model-missing": (b"{" + M + b"}", "model"),
    "model-null": (b'{"model":null,' + M + b"}", "model"),
    "model-number": (b'{"model":5,' + M + b"}", "model"),
    "model-object": (b'{"model":{},' + M + b"}", "model"),
    "model-empty": (b'{"model":"",' + M + b"}", "model"),
    "model-long": (b'{"model":"' + b"a" * 300 + b'",' + M + b"}", "model"),
    "model-crlf": (b'{"model":"a\\r\\nX-Evil: 1",' + M + b"}", "model"),
    "model-nul": (b'{"model":"a\\u0000",' + M + b"}", "model"),
    "messages-missing": (b"{" + N + b"}", "messages"),
    "messages-null": (b"{" + N + b',"messages":null}', "messages"),
    "messages-object": (b"{" + N + b',"messages":{}}', "messages"),
    "messages-text": (b"{" + N + b',"messages":"x"}', "messages"),
    "stream-text": (b"{" + N + b"," + M + b',"stream":"true"}', "stream"),
    "stream-number": (b"{" + N + b"," + M + b',"stream":1}', "stream"),
    "options-list": (b"{" + N + b"," + M + b',"stream":true,"stream_options":[]}', "stream_options"),
    "models-text": (b"{" + N + b"," + M + b',"models":"x"}', "models"),
    "models-of-numbers": (b"{" + N + b"," + M + b',"models":[1]}', "models"),
    "models-many": (b"{" + N + b"," + M + b',"models":' + encode([f"m{n}" for n in range(99)]) + b"}", "models"),
}


@pytest.mark.promise("16", "limit:json")
@pytest.mark.parametrize("name", BAD_BODIES)
def test_ambiguous_or_wrong_body_is_400_that_names_the_field(name: str, keyed: Gateway, sim: SimProvider) -> None:
    body, param = BAD_BODIES[name]
    with keyed.client() as client:
        client.send(request(key=KEY, body=body, headers={"Content-Type": "application/json"}) + get("/healthz"))
        answer = client.answer()
        error = envelope(answer, 400, "bad_request")
        assert error["param"] == param
        assert len(error["message"]) < 1000
        assert not answer.closes
        assert client.answer().status == 200
    assert sim.requests == []


@pytest.mark.promise("16")
@pytest.mark.parametrize(
    "more",
    [b'"stream":null', b'"stream":null,"stream_options":null', b'"x":{"a":1,"a":2}',
     b'"user":"\\ud83d\\ude00"', b'"x":' + b"[" * 100 + b"]" * 100, b'"max_tokens":null', b'"x":"' + b"[" * 1000 + b'"',
     b'"x":1e308', b'"seed":18446744073709551615'],
)  # fmt: skip
def test_null_is_absent_and_what_is_not_ours_passes_untouched(more: bytes, keyed: Gateway, sim: SimProvider) -> None:
    body = b"{" + N + b"," + M + b"," + more + b"}"
    answer = keyed.ask(request(key=KEY, body=body))
    assert (answer.status, answer.framing) == (200, "length"), answer
    assert [seen.body for seen in sim.requests] == [body]


@pytest.mark.promise("16", "limit:json")
@pytest.mark.parametrize("field", ["max_tokens", "seed", "n", "temperature", "unknown"])
def test_number_of_endless_digits_is_no_mistake_of_ours(field: str, keyed: Gateway, sim: SimProvider) -> None:
    body = b"{" + N + b"," + M + b',"%b":' % field.encode() + b"7" * 100_000 + b"}"
    assert keyed.ask(request(key=KEY, body=body)).status < 500


def worst_bodies() -> dict[str, bytes]:
    """Bodies of 1 MiB that are as dear as can be to judge."""
    head, room = b"{" + N + b"," + M + b",", (1 << 20) - 200

    def filled(piece: bytes, before: bytes = b'"x":', opening: bytes = b"", closing: bytes = b"}") -> bytes:
        return head + before + opening + piece * (room // len(piece)) + closing

    return {
        "brackets": filled(b"[", closing=b""),
        "small-objects": filled(b'{"a":0},', opening=b"[", closing=b"0]}"),
        "empty-arrays": filled(b"[],", opening=b"[", closing=b"0]}"),
        "escapes": filled(b"\\u0041", opening=b'"', closing=b'"}'),
        "quotes": filled(b'\\"', opening=b'"', closing=b'"}'),
        "backslashes": filled(b"\\\\", opening=b'"', closing=b'"}'),
        "brackets-in-text": filled(b'\\"[{', opening=b'"', closing=b'"}'),
        "digits": filled(b"9"),
        "spaces": filled(b" ", closing=b"1}"),
        "keys": head + b",".join(b'"k%d":0' % n for n in range(room // 13)) + b"}",
        "keys-spaced": head + b" , ".join(b'"k%d" :\t0' % n for n in range(room // 17)) + b"}",
        "same-key": head + b",".join([b'"k":0'] * (room // 6)) + b"}",
        "wide-text": filled("é".encode(), opening=b'"', closing=b'"}'),
        "models": head + b'"models":' + encode(["m"] * (room // 4)) + b"}",
        "options": head + b'"stream":true,"stream_options":{"x":' + b"9" * room + b"}}",
        "options-deep": head
        + b'"stream":true,"stream_options":{"x":'
        + b"[" * (room // 2)
        + b"]" * (room // 2)
        + b"}}",
    }


@pytest.mark.promise("16")
@pytest.mark.parametrize("name", worst_bodies())
def test_worst_body_of_1_mib_neither_fails_us_nor_blocks_others(name: str, keyed: Gateway, sim: SimProvider) -> None:
    body = worst_bodies()[name]

    def longest_wait_s() -> float:
        """How long another client waited while the body was judged three times."""
        statuses: list[int] = []

        def ask() -> None:
            with keyed.client() as client:
                for _ in range(3):
                    client.send(request(key=KEY, body=body))
                    statuses.append(client.answer().status)

        thread = threading.Thread(target=ask)
        thread.start()
        slowest = 0.0
        with keyed.client() as other:
            while thread.is_alive() or slowest == 0.0:
                since = time.monotonic()
                other.send(get("/healthz"))
                assert other.answer().status == 200
                slowest = max(slowest, time.monotonic() - since)
        thread.join()
        assert len(statuses) == 3
        assert max(statuses) < 500, statuses
        return slowest

    # The promise is 50 ms of the loop; the rest is for machines that are busy with something else, and so are the
    # further tries: what really blocks does so in each. The provider decodes the body in this very process, where
    # a collection of all that the tests before have left would stop the clock's thread too.
    gc.freeze()
    waits: list[float] = []
    try:
        while len(waits) < 3 and (not waits or waits[-1] >= 0.5):
            waits.append(longest_wait_s())
    finally:
        gc.unfreeze()
    assert min(waits) < 0.5, f"another request waited {waits} s"


@pytest.mark.promise("16", "42")
def test_gateway_is_well_after_all_of_it(keyed: Gateway, sim: SimProvider) -> None:
    assert keyed.ask(request(key=KEY)).status == 200
    until(lambda: keyed.metrics()["dandolo_requests_in_flight"] == 0)
    assert keyed.errors() == []
    with Client(keyed.port) as client:
        client.send(get("/readyz"))
        assert client.answer().json == {"status": "ready"}
