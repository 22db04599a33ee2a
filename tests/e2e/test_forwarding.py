"""What goes on to a provider and what comes back: lists of what may pass, and nobody but the operator says where to."""

from __future__ import annotations

import os
import signal
import ssl
from contextlib import ExitStack

import pytest
import trustme
from harness import CHAT, KEY, MODEL, PROVIDER_KEY, Answer, Gateway, Provider, chat, encode, get, request, until

from dandolo.sim import Fault, Script, SimProvider, SimThread

USUAL = {
    "host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
    "x-request-id", "connection",
}  # fmt: skip
"""Names that every provider may see; those that depend on the client come on top."""
ANSWERED = {
    "date", "content-type", "content-length", "transfer-encoding", "x-request-id", "request-id", "cache-control",
    "x-accel-buffering", "server-timing", "connection", "retry-after", "retry-after-ms", "x-should-retry",
    "x-cache", "cache-status", "age",
}  # fmt: skip
ANSWERED_PREFIXES = ("x-ratelimit-", "openai-", "anthropic-", "x-venice-", "x-dandolo-")
PACED = Script(tokens=5, tokens_per_s=500)


def names(headers: list[tuple[str, str]]) -> list[str]:
    return [name.lower() for name, _ in headers]


@pytest.fixture(scope="module")
def evil():
    """Whom nobody configured. It must never be spoken to."""
    provider = SimProvider("evil")
    with SimThread(provider):
        yield provider
    assert provider.connections_opened == 0


# -- out -----------------------------------------------------------------------------------------------------


HOSTILE = [
    ("Cookie", "session=1"), ("Set-Cookie", "a=b"), ("Proxy-Authorization", "Basic eA=="),
    ("Proxy-Connection", "keep-alive"), ("TE", "trailers"), ("Trailer", "X"), ("Keep-Alive", "timeout=5"),
    ("Via", "1.1 x"), ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Host", "evil"), ("X-Forwarded-Proto", "https"),
    ("X-Real-IP", "1.2.3.4"), ("Forwarded", "for=1.2.3.4"), ("Authorization_", "x"), ("OpenAI_Beta", "alias"),
    ("X_Forwarded_For", "1.2.3.4"), ("Content_Length", "5"), ("Transfer_Encoding", "chunked"),
    ("OpenAI-Organization", "org-x"), ("OpenAI-Project", "proj-x"), ("Origin2", "x"), ("Referer", "http://evil"),
    ("X-Custom", "x"), ("api-key", "x"), ("X-Goog-Api-Key", "x"), ("X-Amz-Date", "x"), ("X-Original-URL", "/admin"),
    ("X-Rewrite-URL", "/admin"), ("X-HTTP-Method-Override", "DELETE"), ("Range", "bytes=0-1"), ("If-None-Match", "x"),
    ("Accept-Language", "en"), ("X-Title", "x"), ("HTTP-Referer", "x"), ("Max-Forwards", "0"),
    ("X-Request-Id", "mine"), ("User-Agent", "client/1"), ("Accept-Encoding", "gzip, br"), ("Priority", "u=1"),
    ("x-stainless-lang", "python"), ("x-dandolo-explain", "false"), ("Sec-Fetch-Mode", "cors"),
    ("Content-Encoding", "identity"),
]  # fmt: skip


@pytest.mark.promise("17")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_provider_sees_only_what_is_on_the_list(stream: bool, keyed: Gateway, sim: SimProvider) -> None:
    sim.script = PACED
    answer = keyed.ask(request(body=chat(stream=stream), key=KEY, headers=[*HOSTILE, ("x-api-key", "sk-other")]))
    assert answer.status == 200
    (seen,) = sim.requests
    assert set(names(seen.headers)) <= USUAL
    assert len(set(names(seen.headers))) == len(seen.headers)
    assert seen.header("accept-encoding") == "identity"
    assert seen.header("authorization") == f"Bearer {PROVIDER_KEY}"
    assert (seen.header("user-agent") or "").startswith("dandolo")
    assert seen.header("x-request-id") == answer.header("x-request-id") != "mine"
    assert seen.header("accept") == ("text/event-stream" if stream else "application/json")
    assert KEY not in str(seen.headers)


@pytest.mark.promise("17")
def test_listed_headers_pass_unchanged(keyed: Gateway, sim: SimProvider) -> None:
    passed = [
        ("OpenAI-Beta", "assistants=v2"), ("anthropic-version", "2023-06-01"), ("anthropic-beta", "a,b"),
        ("Idempotency-Key", "k-1"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=b"), ("X-Venice-TEE-Nonce", "n"),
    ]  # fmt: skip
    assert keyed.ask(request(key=KEY, headers=passed)).status == 200
    (seen,) = sim.requests
    assert [seen.header(name) for name, _ in passed] == [value for _, value in passed]
    assert set(names(seen.headers)) <= USUAL | {name.lower() for name, _ in passed}


@pytest.mark.promise("17")
@pytest.mark.parametrize("name", ["OpenAI-Beta", "anthropic-beta", "traceparent", "Idempotency-Key"])
def test_header_that_the_client_calls_hop_by_hop_does_not_pass(name: str, keyed: Gateway, sim: SimProvider) -> None:
    """RFC 9110 §7.6.1: "Intermediaries MUST ... remove any header or trailer field(s) from the message with the
    same name as the connection-option"."""
    headers = [(name, "hop"), ("Connection", f"keep-alive, {name}")]
    assert keyed.ask(request(key=KEY, headers=headers)).status == 200
    assert sim.requests[0].header(name) is None


@pytest.mark.promise("17")
@pytest.mark.parametrize("nominated", ["authorization", "content-length", "host", "x-request-id", "content-type"])
def test_nominating_what_we_set_changes_nothing(nominated: str, keyed: Gateway, sim: SimProvider) -> None:
    assert keyed.ask(request(key=KEY, headers={"Connection": nominated})).status == 200
    (seen,) = sim.requests
    assert seen.header("authorization") == f"Bearer {PROVIDER_KEY}"
    assert seen.body == encode(CHAT)


@pytest.mark.promise("17", "20")
def test_clients_key_stays_here_when_the_provider_has_none(launch, sim: SimProvider) -> None:
    with SimThread(SimProvider("keyless")) as sims:
        gateway = launch([Provider(sims["keyless"], key=None)])
        headers = [("Authorization", "Bearer sk-client"), ("x-api-key", "sk-client"), ("api-key", "sk-client")]
        assert gateway.ask(request(headers=headers)).status == 200
        (seen,) = sims["keyless"].requests
        assert set(names(seen.headers)) <= USUAL - {"authorization"}


@pytest.mark.promise("17", "18")
def test_configured_headers_pass_to_their_provider_only(launch) -> None:
    with SimThread(SimProvider("wide"), SimProvider("narrow")) as sims:
        more = {"forward_headers": ["X-Custom"], "headers": {"X-Title": "ours"}}
        gateway = launch([Provider(sims["wide"], options=more), sims["narrow"]])
        headers = [("X-Custom", "c"), ("X-Title", "theirs"), ("X-Other", "o")]
        for name in ("wide", "narrow"):
            assert gateway.ask(request(body=chat(model=f"{name}/{MODEL}"), headers=headers)).status == 200
        (wide,), (narrow,) = sims["wide"].requests, sims["narrow"].requests
        assert (wide.header("x-custom"), wide.header("x-other")) == ("c", None)
        assert wide.header("x-title") == "ours"
        assert [narrow.header(name) for name in ("x-custom", "x-title", "x-other")] == [None, None, None]
        assert wide.body == narrow.body == encode(CHAT)


@pytest.mark.promise("17", "20")
def test_anthropic_provider_gets_our_key_in_its_own_header(launch) -> None:
    body = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    with SimThread(SimProvider("claude", "anthropic", key=PROVIDER_KEY)) as sims:
        gateway = launch([Provider(sims["claude"], profile="anthropic")], keys=[KEY])
        headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "tools"}
        answer = gateway.ask(request("/v1/messages?beta=true", body, headers=headers))
        assert answer.status == 200, answer
        (seen,) = sims["claude"].requests
        assert seen.header("x-api-key") == PROVIDER_KEY
        assert seen.header("authorization") is None
        assert (seen.header("anthropic-version"), seen.header("anthropic-beta")) == ("2023-06-01", "tools")
        assert seen.target == "/v1/messages"
        assert KEY not in str(seen.headers)


@pytest.mark.promise("17")
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/v1/responses"])
def test_every_endpoint_is_built_from_the_list(path: str, keyed: Gateway, sim: SimProvider) -> None:
    body = {"model": MODEL, "input": "x", "prompt": "x"}
    assert keyed.ask(request(path, body, key=KEY, headers=HOSTILE)).status == 200
    (seen,) = sim.requests
    assert set(names(seen.headers)) <= USUAL
    assert seen.target == path


@pytest.mark.promise("18")
@pytest.mark.parametrize(
    "model",
    ["a/../../admin", "sim/../x", "x?y=z#f", "a b", 'q"uote', "{{7*7}}", "%0d%0aX-Evil:1", "http://127.0.0.1:1/v1",
     "é" * 50, "../../etc/passwd", "$(id)", "a'; DROP TABLE x;--", "x" * 256],
)  # fmt: skip
def test_model_is_data_wherever_it_is_told(model: str, keyed: Gateway, sim: SimProvider) -> None:
    answer = keyed.ask(request(body=chat(model=model, user="a\r\nX-Evil: 1\x1b[31m"), key=KEY))
    assert answer.status in (200, 404)
    for seen in sim.requests:
        assert seen.target == "/v1/chat/completions"
        assert set(names(seen.headers)) <= USUAL
    assert answer.header("x-evil") is None
    record = keyed.record(answer)
    assert record["status"] == answer.status
    assert all(ord(char) >= 0x20 for value in record.values() if isinstance(value, str) for char in value)


@pytest.mark.promise("18")
def test_a_log_line_is_one_line_whatever_a_client_says(keyed: Gateway, sim: SimProvider) -> None:
    lines = len(keyed.log_lines())
    for path in ('/v1/x"}\\n{"id":"forged', "/%0a%1b[2J", "/" + "y" * 5000):
        answer = keyed.ask(get(path, key=KEY, headers={"X-Forwarded-For": '1.1.1.1"}', "User-Agent": '"}\\r\\n'}))
        assert answer.status == 404
        assert keyed.record(answer)["client"] == "127.0.0.1"
    assert len(keyed.log_lines()) == lines + 3
    assert all(len(line) < 4096 for line in keyed.stdout.read_text().splitlines())


@pytest.mark.promise("18")
@pytest.mark.parametrize("value", ["a\tb", "é", "a\xffb", "x" * 10_000, '"\\"'])
def test_odd_but_valid_header_value_goes_on_as_it_is_or_not_at_all(
    value: str, keyed: Gateway, sim: SimProvider
) -> None:
    answer = keyed.ask(request(key=KEY, headers={"Idempotency-Key": value}))
    assert answer.status == 200
    assert sim.requests[0].header("idempotency-key") in (value, None)


# -- where to ------------------------------------------------------------------------------------------------


STEERING = ["x-portkey-custom-host", "x-custom-host", "x-base-url", "x-api-base", "x-upstream-host", "x-provider-url",
            "x-litellm-api-base", "x-openai-base-url", "x-target-host", "x-dandolo-base-url"]  # fmt: skip


@pytest.mark.promise("20")
@pytest.mark.parametrize("where", ["body", "headers", "query"])
def test_client_cannot_say_where_a_request_goes(
    where: str, keyed: Gateway, sim: SimProvider, evil: SimProvider
) -> None:
    fields = dict.fromkeys(("api_base", "base_url", "api_key", "proxy", "custom_host", "endpoint"), evil.base_url)
    more = {"extra_headers": {"Authorization": "Bearer x", "Host": "evil"}, "headers": {"Host": "evil"}}
    path, body, headers = "/v1/chat/completions", chat(), {}
    if where == "body":
        body = chat(
            **fields, **more, extra_body=fields, custom_llm_provider="openai", provider={"base_url": evil.base_url}
        )
    elif where == "headers":
        headers = dict.fromkeys(STEERING, evil.base_url)
    else:
        path += "?" + "&".join(f"{name}={value}" for name, value in fields.items())
    answer = keyed.ask(request(path, body, key=KEY, headers=headers))
    assert answer.status in (200, 400)
    for seen in sim.requests:
        assert seen.header("authorization") == f"Bearer {PROVIDER_KEY}"
        assert seen.header("host") == f"127.0.0.1:{sim.port}"
        assert set(names(seen.headers)) <= USUAL
    assert evil.connections_opened == 0


@pytest.mark.promise("20")
@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308, 399])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_redirect_is_not_followed_and_not_told(
    status, stream, keyed: Gateway, sim: SimProvider, evil: SimProvider
) -> None:
    sim.script = Script(default_fault=Fault("redirect", status=status, headers=[("Location", f"{evil.base_url}/x")]))
    answer = keyed.ask(request(body=chat(stream=stream), key=KEY))
    assert answer.status == 502
    assert (answer.error["type"], answer.error["code"]) == ("upstream_error", "upstream_invalid_response")
    assert answer.header("location") is None
    assert str(evil.port) not in answer.body.decode()
    assert evil.connections_opened == 0


@pytest.mark.promise("20")
@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fe80::1]"]
)
def test_metadata_address_is_refused_however_it_is_written(host: str, launch, tmp_path) -> None:
    options = {"base_url": f"http://{host}/v1"}
    gateway = Gateway(tmp_path, [Provider(SimProvider("metadata"), options=options)], timeouts={"connect": "5s"})
    try:
        gateway.start()
    except AssertionError as error:
        assert "exit 78" in str(error)  # noqa: PT017 - a refusal at the start is as good
        return
    try:
        answer = gateway.ask(request())
        assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
        assert "refused" in answer.error["message"]
    finally:
        gateway.stop()


# -- TLS to providers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure():
    """A provider with TLS for the name localhost, and what it was asked for by name."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    provider = SimProvider("secure", ssl=context)
    with SimThread(provider):
        yield provider, authority, asked


@pytest.mark.promise("20")
def test_certificate_is_verified_and_the_name_is_sent(secure, launch, tmp_path) -> None:
    provider, authority, asked = secure
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    options = {"base_url": f"https://localhost:{provider.port}/v1", "ca": str(ca)}
    assert launch([Provider(provider, options=options)]).ask(request()).status == 200
    assert asked == ["localhost"]


@pytest.mark.promise("20")
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_wrong_certificate_is_never_spoken_to(wrong: str, secure, launch, tmp_path) -> None:
    provider, authority, _ = secure
    ca = tmp_path / "ca.pem"
    (trustme.CA() if wrong == "authority" else authority).cert_pem.write_to_path(str(ca))
    host = "localhost" if wrong == "authority" else "127.0.0.1"
    received = provider.received
    answer = launch(
        [Provider(provider, options={"base_url": f"https://{host}:{provider.port}/v1", "ca": str(ca)})]
    ).ask(request())
    assert (answer.status, answer.error["code"]) == (502, "upstream_unavailable")
    assert provider.received == received


# -- back ----------------------------------------------------------------------------------------------------


def assert_only_listed(answer: Answer) -> None:
    unlisted = [name for name, _ in answer.headers if name not in ANSWERED and not name.startswith(ANSWERED_PREFIXES)]
    assert not unlisted
    assert len({name for name, _ in answer.headers}) == len(answer.headers)


@pytest.mark.promise("19")
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_client_sees_only_what_is_on_the_list(stream: bool, keyed: Gateway, sim: SimProvider) -> None:
    sim.script = Script(tokens=5, tokens_per_s=500, faults=[Fault("private_headers")])
    with keyed.client() as client:
        client.send(request(body=chat(stream=stream), key=KEY))
        answer = client.answer()
        assert (answer.status, answer.complete, answer.closes) == (200, True, False)
        assert_only_listed(answer)
        assert answer.header("openai-processing-ms")
        client.send(get("/healthz"))
        assert client.answer().status == 200


@pytest.mark.promise("19", "23")
@pytest.mark.parametrize("status", [400, 403, 404, 422, 429, 500, 503])
def test_headers_of_a_refusal_are_listed_too(status: int, keyed: Gateway, sim: SimProvider) -> None:
    headers = [
        ("Set-Cookie", "a=b"), ("Server", "secret/1"), ("Location", "/x"), ("Retry-After", "9"), ("X-Powered-By", "x"),
        ("x-ratelimit-remaining-requests", "3"), ("WWW-Authenticate", "Basic"), ("X-Request-Id", "theirs"),
        ("Alt-Svc", "h3"), ("Strict-Transport-Security", "max-age=1"), ("Access-Control-Allow-Origin", "*"),
    ]  # fmt: skip
    sim.script = Script(default_fault=Fault("status", status=status, headers=headers))
    answer = keyed.ask(request(key=KEY))
    assert answer.status in (status, 502, 503)
    assert_only_listed(answer)
    assert answer.header("x-request-id") != "theirs"


@pytest.mark.promise("19", "25")
@pytest.mark.parametrize(
    "fault", [Fault("early_hints"), Fault("endless_1xx", count=3), Fault("endless_1xx", count=2, status=102)],
    ids=["103", "100", "102"],
)  # fmt: skip
def test_interim_answers_of_a_provider_stay_here(fault: Fault, keyed: Gateway, sim: SimProvider) -> None:
    sim.script = Script(faults=[fault])
    answer = keyed.ask(request(key=KEY))
    assert (answer.status, answer.interim) == (200, [])
    assert answer.header("link") is None


@pytest.mark.promise("19")
def test_every_answer_has_a_request_id_of_its_own(keyed: Gateway, sim: SimProvider) -> None:
    ids = []
    with keyed.client() as client:
        for data in (request(key=KEY), get("/healthz"), get("/none"), request(key="bad"), request(key=KEY, body=b"x")):
            client.send(data)
            ids.append(client.answer().header("x-request-id"))
    assert all(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.promise("28")
def test_stream_that_arrives_in_one_piece_is_a_stream(keyed: Gateway, sim: SimProvider) -> None:
    event = encode({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
                    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]})  # fmt: skip
    content = b"data: %b\n\ndata: [DONE]\n\n" % event
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    counted = head + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    sim.script = Script(faults=[Fault("raw", data=data, then="keep") for data in (chunked, counted, chunked)])
    for _ in range(3):
        answer = keyed.ask(request(body=chat(stream=True), key=KEY))
        assert answer.status == 200, answer
        assert answer.events == [event, b"[DONE]"]


# -- who may call --------------------------------------------------------------------------------------------


@pytest.mark.promise("20")
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
             "0.0.0.0", "[::2]", "127.0.0.1@evil.example", "2130706433", "localhost.", "notlocalhost"]
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/healthz"])
def test_gateway_without_keys_answers_to_loopback_names_only(host, path, gateway: Gateway, sim: SimProvider) -> None:
    method, body = ("POST", CHAT) if path.endswith("completions") else ("GET", None)
    answer = gateway.ask(request(path, body, method=method, host=host))
    if host != "localhost.":  # a name of this machine as well; either answer is safe
        assert answer.status in (400, 403)
        assert sim.requests == []


@pytest.mark.promise("8")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:8080", "127.9.9.9", "x.localhost"])
def test_loopback_names_are_let_in(host: str, gateway: Gateway) -> None:
    assert gateway.ask(get("/v1/models", host=host)).status == 200


@pytest.mark.promise("20")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://127.0.0.1:8080", ""])
@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_browser_of_an_unlisted_origin_is_refused(origin, method, gateway: Gateway, keyed: Gateway, sim) -> None:
    for one, key in ((gateway, None), (keyed, KEY)):
        body = CHAT if method == "POST" else None
        answer = one.ask(request(body=body, method=method, headers={"Origin": origin}, key=key))
        assert answer.status == 403
        assert answer.error["code"] == "origin_not_allowed"
        assert answer.header("access-control-allow-origin") is None
    assert sim.requests == []


@pytest.mark.promise("20")
def test_browser_of_a_listed_origin_may_read_the_answer(launch, sim: SimProvider, shared_sim: SimProvider) -> None:
    gateway = launch([shared_sim], server={"cors_origins": ["https://app.example"]})
    origin = {"Origin": "https://app.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = gateway.ask(request(body=None, method="OPTIONS", headers={**origin, **asked}))
    assert (answer.status, answer.header("access-control-allow-origin")) == (204, "https://app.example")
    for data in (request(headers=origin), request(headers=origin, body=b"x"), get("/v1/models", headers=origin)):
        assert gateway.ask(data).header("access-control-allow-origin") == "https://app.example"
    assert gateway.ask(request(headers={"Origin": "https://app.example.evil"})).status == 403


@pytest.mark.promise("43")
def test_every_key_that_is_not_known_gets_the_same_401(keyed: Gateway, sim: SimProvider) -> None:
    wrong = ["Bearer sk-unknown", "Bearer", "Bearer ", "", "Basic eA==", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
             f"Bearer {KEY.upper()}", f"Bearer {KEY} {KEY}", f"Basic {KEY}", "Bearer \xff", "Bearer " + "x" * 10_000,
             f'Bearer "{KEY}"', f"Bearer {KEY},{KEY}"]  # fmt: skip
    answers = [keyed.ask(request())]
    answers += [keyed.ask(request(headers={"Authorization": value})) for value in wrong]
    answers += [keyed.ask(request(headers={"x-api-key": value})) for value in ("", "x", f"Bearer {KEY}")]
    answers += [keyed.ask(request(headers={"Authorization": "Bearer x", "x-api-key": KEY}))]
    assert [answer.status for answer in answers] == [401] * len(answers)
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].error["code"] == "invalid_api_key"
    assert sim.requests == []


@pytest.mark.promise("43", "5")
def test_two_keys_of_one_kind_are_no_request(keyed: Gateway, sim: SimProvider) -> None:
    for name, value in (("Authorization", f"Bearer {KEY}"), ("x-api-key", KEY)):
        for second in (value, "other"):
            with keyed.client() as client:
                client.send(request(headers=[(name, value), (name, second)]) + request(key=KEY))
                answer = client.answer()
                assert (answer.status, answer.closes) == (400, True)
                assert client.closed()
    assert sim.requests == []


@pytest.mark.promise("43")
@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"X-API-Key": KEY},
                {"Authorization": f"Bearer {KEY}", "x-api-key": "other"}],
)  # fmt: skip
def test_known_key_is_let_in_however_it_is_sent(headers: dict[str, str], keyed: Gateway, sim: SimProvider) -> None:
    assert keyed.ask(request(headers=headers)).status == 200
    assert sim.requests[0].header("x-api-key") is None


# -- whose address -------------------------------------------------------------------------------------------


FORWARDED = {
    "one": ("203.0.113.7", "203.0.113.7"),
    "through-one-more": ("203.0.113.7, 10.1.2.3", "203.0.113.7"),
    "forged-on-the-left": ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
    "forged-as-a-proxy": ("6.6.6.6, 10.0.0.1, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
    "ipv6": ("2001:db8::7", "2001:db8::7"),
    "spaces": (" \t203.0.113.7\t,  10.1.1.1 ", "203.0.113.7"),
    "only-proxies": ("10.0.0.2, 10.0.0.1", "10.0.0.2"),
    "text": ("evil", "127.0.0.1"),
    "text-on-the-left": ("evil, 203.0.113.7", "203.0.113.7"),
    "text-on-the-right": ("203.0.113.7, evil", "127.0.0.1"),
    "empty": ("", "127.0.0.1"),
    "port": ("203.0.113.7:80", "127.0.0.1"),
    "zone": ("fe80::1%<script>", "127.0.0.1"),
    "endless": (", ".join(["10.0.0.1"] * 2000), "10.0.0.1"),
}


@pytest.fixture(scope="module")
def behind_proxies(launch, shared_sim):
    return launch(
        [shared_sim], server={"trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}, limits={"header_bytes_max": "64KiB"}
    )


@pytest.mark.promise("21")
@pytest.mark.parametrize("name", FORWARDED)
def test_client_is_the_rightmost_hop_that_is_no_proxy(name: str, behind_proxies: Gateway, sim: SimProvider) -> None:
    value, wanted = FORWARDED[name]
    answer = behind_proxies.ask(request(headers={"X-Forwarded-For": value}))
    if name == "endless" and answer.status == 431:
        return
    assert behind_proxies.record(answer)["client"] == wanted


@pytest.mark.promise("21")
def test_two_forwarding_headers_are_one_list(behind_proxies: Gateway, sim: SimProvider) -> None:
    headers = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "203.0.113.9, 10.0.0.1")]
    assert behind_proxies.record(behind_proxies.ask(request(headers=headers)))["client"] == "203.0.113.9"


@pytest.mark.promise("21")
def test_forwarding_headers_of_a_stranger_count_for_nothing(behind_proxies: Gateway, gateway: Gateway, sim) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Real-IP": "203.0.113.8", "Forwarded": "for=203.0.113.9"}
    for one, source in ((gateway, "127.0.0.1"), (behind_proxies, "127.0.0.2")):
        with one.client(source=source) as client:
            client.send(request(headers=headers))
            assert one.record(client.answer())["client"] == source


@pytest.mark.promise("36", "42")
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_that_leaves_as_its_answer_comes_costs_others_nothing(how: str, launch, tmp_path) -> None:
    """The process is stopped for a moment, so that clients leave and answers come within one turn of its loop."""
    with (
        SimThread(SimProvider("all", script=Script(latency_s=0.3))) as sims,
        Gateway(tmp_path, [sims["all"]]) as gateway,
    ):
        (worker,) = gateway.workers()
        # Which of them the loop hears of first is left to the kernel, hence several rounds.
        for _ in range(5):
            sims["all"].forget()
            with ExitStack() as stack:
                clients = [stack.enter_context(gateway.client(timeout_s=5)) for _ in range(20)]
                for client in clients:
                    client.send(request())
                until(lambda: len(sims["all"].requests) == 20)
                os.kill(worker, signal.SIGSTOP)
                try:
                    for client in clients[::2]:
                        client.reset() if how == "rst" else client.socket.close()
                    until(lambda: all(seen.answered_at for seen in sims["all"].requests))
                finally:
                    os.kill(worker, signal.SIGCONT)
                assert [client.answer().status for client in clients[1::2]] == [200] * 10
        assert gateway.errors() == []
