"""Every endpoint, from the client's path to the provider's: names, defaults, headers, browsers, signs of life."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import CHAT, KEY, MODEL, PROVIDER_KEY, Answer, Gateway, Provider, chat, encode, get, request, until

from dandolo.sim import Fault, Received, Script, SimProvider, SimThread

HELLO = [{"role": "user", "content": "hello"}]
ORIGIN = "https://app.example"
BOUNDARY = "boundary0123456789"
JSON_ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "hello"},
    "/v1/embeddings": {"input": ["hello"]},
    "/v1/moderations": {"input": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/images/generations": {"prompt": "a boat"},
    "/v1/audio/speech": {"input": "hello", "voice": "alloy"},
    "/v1/rerank": {"query": "boat", "documents": ["a boat", "a house"]},
}
FORM_ENDPOINTS = {
    "/v1/images/edits": "image",
    "/v1/images/variations": "image",
    "/v1/audio/transcriptions": "file",
    "/v1/audio/translations": "file",
}


class Rig:
    """`a` takes what OpenAI's dialect has, `venice` Venice's own paths too, `claude` Messages."""

    def __init__(self, gateway: Gateway, a: SimProvider, venice: SimProvider, claude: SimProvider) -> None:
        self.gateway, self.a, self.venice, self.claude = gateway, a, venice, claude

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.gateway.ask(request(path, body, headers=named, key=KEY))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    a = SimProvider("a", key=PROVIDER_KEY)
    venice, claude = SimProvider("venice", "venice", base_path="/api/v1"), SimProvider("claude", "anthropic")
    options = {
        "headers": {"X-Title": "Dandolo", "HTTP-Referer": "https://dandolo.example"},
        "forward_headers": ["X-Trace-Me"],
        "defaults": {"temperature": 0.25, "metadata": {"from": "gateway", "deep": {"a": 1}}},
    }
    venice_options = {"defaults": {"venice_parameters": {"include_venice_system_prompt": False}}}
    with (
        SimThread(a, venice, claude),
        Gateway(
            tmp_path_factory.mktemp("endpoints"),
            [
                Provider(a, options=options),
                Provider(venice, "venice", options=venice_options, models=[{"id": "llama"}, {"id": "vendor/llama"}]),
                Provider(claude, "anthropic", options={"base_url": claude.base_url}, models=[{"id": "opus"}]),
            ],
            keys=[KEY, {"name": "narrow", "key": "sk-narrow", "models": ["fast", "venice/*"]}],
            server={"cors_origins": [ORIGIN]},
            routing={"breaker": False},
            models={"fast": ["a/quick-1"], "both": ["a/first", "venice/llama"]},
            toml="[cache]\nlevels = []\n",
        ) as gateway,
    ):
        yield Rig(gateway, a, venice, claude)


@pytest.fixture
def rig(running: Rig) -> Iterator[Rig]:
    for sim in (running.a, running.venice, running.claude):
        sim.script = Script()
        sim.forget()
    yield running
    assert running.gateway.alive


def form(**fields: bytes) -> bytes:
    """A multipart body whose parts are named by `fields`; a file's part has a file name."""
    parts = []
    for name, value in fields.items():
        named = f'Content-Disposition: form-data; name="{name}"'
        if name in ("file", "image"):
            named += f'; filename="{name}.bin"\r\nContent-Type: application/octet-stream'
        parts.append(f"--{BOUNDARY}\r\n{named}\r\n\r\n".encode() + value + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def sent(sim: SimProvider) -> Received:
    """The one request a provider received."""
    assert len(sim.requests) == 1
    return sim.requests[0]


# -- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?beta=true", "?model=evil&api_key=x"])
@pytest.mark.parametrize("path", JSON_ENDPOINTS)
def test_json_endpoint_reaches_the_providers_path(rig: Rig, path: str, query: str) -> None:
    answer = rig.post(path + query, {"model": "a/quick-1", **JSON_ENDPOINTS[path]})
    assert answer.status == 200
    received = sent(rig.a)
    assert (received.method, received.target.partition("?")[0]) == ("POST", path)
    assert "evil" not in received.target
    assert json.loads(received.body)["model"] == "quick-1"
    assert received.header("authorization") == f"Bearer {PROVIDER_KEY}"
    assert received.header("host") == f"127.0.0.1:{rig.a.port}"
    assert received.header("content-type") == "application/json"
    assert received.header("accept-encoding") == "identity"
    assert received.header("x-request-id") == answer.header("x-request-id")
    assert rig.gateway.record(answer)["model"] == "a/quick-1"


@pytest.mark.parametrize("path", FORM_ENDPOINTS)
def test_form_endpoint_passes_its_upload_byte_by_byte(rig: Rig, path: str) -> None:
    upload = bytes(range(256)) * 600 + b"\r\n--not the boundary\r\n"
    body = form(model=b"a/quick-1", **{FORM_ENDPOINTS[path]: upload}, prompt="größer".encode())
    answer = rig.post(path, body, Content_Type=f"multipart/form-data; boundary={BOUNDARY}")
    assert answer.status == 200
    received = sent(rig.a)
    assert received.target == path
    assert received.body == form(model=b"quick-1", **{FORM_ENDPOINTS[path]: upload}, prompt="größer".encode())
    assert received.header("content-type") == f"multipart/form-data; boundary={BOUNDARY}"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"])
def test_messages_reaches_a_provider_that_speaks_it(rig: Rig, path: str) -> None:
    answer = rig.gateway.ask(
        request(
            path,
            {"model": "claude/opus", "max_tokens": 20, "messages": HELLO},
            headers={"x-api-key": KEY, "anthropic-version": "2023-01-01", "anthropic-beta": "one,two"},
        )
    )
    assert answer.status == 200
    received = sent(rig.claude)
    assert received.target.partition("?")[0] == path.partition("?")[0]
    assert received.header("anthropic-version") == "2023-01-01"
    assert received.header("anthropic-beta") == "one,two"
    assert received.header("x-api-key") == PROVIDER_KEY
    assert json.loads(received.body)["model"] == "opus"


@pytest.mark.parametrize("name", ["generate", "upscale", "edit", "multi-edit", "background-remove"])
def test_venices_own_paths_reach_venice(rig: Rig, name: str) -> None:
    rig.venice.script = Script(default_fault=Fault("status", status=200, body='{"images":["x"]}'))
    answer = rig.post(f"/v1/image/{name}", {"prompt": "a boat"})
    assert answer.status == 200
    assert answer.json == {"images": ["x"]}
    assert sent(rig.venice).target == f"/api/v1/image/{name}"
    assert not rig.a.requests


def test_venices_styles_are_a_get(rig: Rig) -> None:
    rig.venice.script = Script(default_fault=Fault("status", status=200, body='{"data":["3D"]}'))
    answer = rig.gateway.ask(get("/v1/image/styles", key=KEY))
    assert answer.status == 200
    assert (sent(rig.venice).method, sent(rig.venice).body) == ("GET", b"")


def test_stored_responses(rig: Rig) -> None:
    made = rig.post("/v1/responses", {"model": "a/quick-1", "input": "hello"}).json
    for suffix in ("", "/input_items"):
        assert rig.gateway.ask(get(f"/v1/responses/{made['id']}{suffix}", key=KEY)).status == 200
        assert rig.a.requests[-1].target == f"/v1/responses/{made['id']}{suffix}"
    assert rig.gateway.ask(request(f"/v1/responses/{made['id']}/cancel", None, key=KEY)).status == 200
    assert rig.gateway.ask(request(f"/v1/responses/{made['id']}", None, method="DELETE", key=KEY)).json["deleted"]
    assert rig.gateway.ask(get(f"/v1/responses/{made['id']}", key=KEY)).status == 404


@pytest.mark.parametrize(
    "path",
    ["/chat/completions", "/v1/chat/completions/", "/v1//chat/completions", "/v1/organization/users", "/v1/realtime",
     "/V1/chat/completions", "/v1/chat/../chat/completions", "/v1/chat%2Fcompletions", "/metrics"],
)  # fmt: skip
def test_unknown_path_is_404_and_reaches_nobody(rig: Rig, path: str) -> None:
    answer = rig.post(path, CHAT)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert not rig.a.requests


@pytest.mark.parametrize("path", [*JSON_ENDPOINTS, *FORM_ENDPOINTS, "/v1/messages"])
def test_other_method_is_405_with_allow(rig: Rig, path: str) -> None:
    answer = rig.gateway.ask(get(path, key=KEY))
    assert (answer.status, answer.header("allow")) == (405, "POST")


def test_pages_touch_no_provider_and_need_no_key(rig: Rig) -> None:
    for path in ("/", "/healthz", "/readyz"):
        assert rig.gateway.ask(get(path)).status == 200
        head = rig.gateway.ask(request(path, None, method="HEAD"), head_only=True)
        assert (head.status, head.body) == (200, b"")
    assert not rig.a.requests


def test_endpoint_that_no_provider_of_the_model_offers_is_404(rig: Rig) -> None:
    answer = rig.post("/v1/chat/completions", {**CHAT, "model": "claude/opus"})
    assert (answer.status, answer.error["code"]) == (404, "endpoint_not_available")
    assert not rig.claude.requests


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "provider", "model"),
    [
        ("fast", "a", "quick-1"),
        ("a/quick-1", "a", "quick-1"),
        ("a/vendor/x", "a", "vendor/x"),
        ("llama", "venice", "llama"),
        ("venice/llama", "venice", "llama"),
        ("vendor/llama", "venice", "vendor/llama"),
        ("venice/vendor/llama", "venice", "vendor/llama"),
        ("someone/else", "a", "someone/else"),
        ("mödel-名", "a", "mödel-名"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_model_name_is_resolved_and_rewritten(rig: Rig, name: str, provider: str, model: str, stream: bool) -> None:
    rig.a.script = rig.venice.script = Script(tokens_per_s=1000)
    answer = rig.post("/v1/chat/completions", chat(model=name, stream=stream, user="größe \u2028 \"'"))
    assert answer.status == 200
    assert answer.header("x-dandolo-provider") == provider
    received = sent(rig.a if provider == "a" else rig.venice)
    body = json.loads(received.body)
    assert body["model"] == model
    assert (body["user"], body["messages"]) == ("größe \u2028 \"'", CHAT["messages"])
    record = rig.gateway.record(answer)
    assert (record["provider"], record["upstream_model"]) == (provider, model)


def test_list_of_models_is_a_list_of_fallbacks(rig: Rig) -> None:
    rig.a.script = Script(default_fault=Fault("status", status=500))
    answer = rig.post("/v1/chat/completions", chat(model="fast", models=["llama"]))
    assert (answer.status, answer.header("x-dandolo-provider")) == (200, "venice")
    assert answer.header("x-dandolo-attempts") == "2"
    for received, model in ((sent(rig.a), "quick-1"), (sent(rig.venice), "llama")):
        body = json.loads(received.body)
        assert body["model"] == model
        assert "models" not in body
    rig.a.forget()
    alone = {"models": ["a/x", "llama"], "messages": HELLO}
    assert rig.post("/v1/chat/completions", alone).header("x-dandolo-provider") == "venice"
    assert json.loads(sent(rig.a).body)["model"] == "x"


def test_unknown_model_names_the_nearest(rig: Rig) -> None:
    answer = rig.gateway.ask(request(body=chat(model="venise/lama"), key="sk-narrow"))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert "venice/llama" in answer.error["message"]
    assert not rig.a.requests


def test_key_sees_and_uses_its_own_models_only(rig: Rig) -> None:
    names = {item["id"] for item in rig.gateway.ask(get("/v1/models", key="sk-narrow")).json["data"]}
    assert "fast" in names
    assert "venice/llama" in names
    assert "opus" not in names
    assert rig.gateway.ask(request(body=chat(model="a/quick-1"), key="sk-narrow")).status == 404
    assert rig.gateway.ask(request(body=chat(model="fast"), key="sk-narrow")).status == 200


def test_models_are_listed_under_all_their_names(rig: Rig) -> None:
    names = {item["id"] for item in rig.gateway.ask(get("/v1/models?limit=5", key=KEY)).json["data"]}
    assert {"fast", "both", MODEL, f"a/{MODEL}", "llama", "venice/llama", "vendor/llama", "claude/opus"} <= names
    for path in ("/v1/models/vendor%2Fllama", "/v1/models/vendor/llama", "/v1/models/fast"):
        assert rig.gateway.ask(get(path, key=KEY)).status == 200
    missing = rig.gateway.ask(get("/v1/models/fasst", key=KEY))
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert "'fast'" in missing.error["message"]


# -- bodies and headers --------------------------------------------------------------------------------------


def test_defaults_are_merged_where_the_caller_is_silent(rig: Rig) -> None:
    rig.post("/v1/chat/completions", chat(model="fast"))
    body = json.loads(sent(rig.a).body)
    assert (body["temperature"], body["metadata"]) == (0.25, {"from": "gateway", "deep": {"a": 1}})
    rig.a.forget()
    rig.post("/v1/chat/completions", chat(model="fast", temperature=0, metadata={"from": "me", "deep": {"b": 2}}))
    body = json.loads(sent(rig.a).body)
    assert (body["temperature"], body["metadata"]) == (0, {"from": "me", "deep": {"b": 2, "a": 1}})
    rig.post("/v1/chat/completions", chat(model="llama"))
    assert json.loads(sent(rig.venice).body)["venice_parameters"] == {"include_venice_system_prompt": False}


def test_field_that_cannot_be_merged_is_refused_and_takes_nothing(rig: Rig) -> None:
    bad = b'{"model":"a/x","messages":[{"role":"user","content":"hi"}],"metadata":{"n":' + b"9" * 5000 + b"}}"
    with rig.gateway.client() as client:
        for _ in range(3):
            # The second on one connection goes the short way.
            client.send(request(body=chat(model="a/x"), key=KEY))
            assert client.answer().status == 200
        for _ in range(3):
            client.send(request(body=bad, headers={"Content-Type": "application/json"}, key=KEY))
            answer = client.answer()
            assert answer.status == 400
            assert answer.error["param"] == "metadata"
        client.send(request(body=chat(model="a/x"), key=KEY))
        assert client.answer().status == 200
    until(lambda: not rig.gateway.metrics()['dandolo_slots_in_use{account="a"}'])


def test_unknown_fields_pass_untouched(rig: Rig) -> None:
    odd = b'{"model":"a/x","messages":[{"role":"user","content":"\\u00e9\\/"}],"huge":12345678901234567890,"f":1.10}'
    assert rig.gateway.ask(request(body=odd, headers={"Content-Type": "application/json"}, key=KEY)).status == 200
    body = sent(rig.a).body
    assert b'"huge":12345678901234567890,"f":1.10' in body
    assert b'"content":"\\u00e9\\/"' in body


def test_only_listed_headers_reach_the_provider(rig: Rig) -> None:
    given = {
        "X-Trace-Me": "yes",
        "X-Private": "no",
        "Cookie": "a=b",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "OpenAI-Beta": "assistants=v2",
        "Idempotency-Key": "once",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "X-Title": "mine",
        "User-Agent": "somebody/1.0",
        "x-openai-host": "evil.example",
        "Connection": "X-Trace-Me",
    }
    answer = rig.gateway.ask(request(body=chat(model="fast"), headers=given, key=KEY))
    assert answer.status == 200
    received = sent(rig.a)
    names = {name.lower() for name, _ in received.headers}
    assert not names & {"x-private", "cookie", "x-forwarded-for", "forwarded", "x-openai-host", "connection"}
    assert received.header("openai-beta") == "assistants=v2"
    assert received.header("idempotency-key") == "once"
    assert received.header("traceparent") == given["traceparent"]
    assert received.header("x-title") == "Dandolo"
    assert received.header("http-referer") == "https://dandolo.example"
    assert len(names) == len(received.headers)
    rig.a.forget()
    del given["Connection"]
    rig.gateway.ask(request(body=chat(model="fast"), headers=given, key=KEY))
    assert sent(rig.a).header("x-trace-me") == "yes"
    rig.gateway.ask(request(body=chat(model="llama"), headers=given, key=KEY))
    assert sent(rig.venice).header("x-trace-me") is None  # another provider's list


def test_answer_carries_what_is_ours_and_what_is_allowed(rig: Rig) -> None:
    answer = rig.post("/v1/chat/completions", chat(model="llama"))
    assert answer.header("x-venice-model-id") == "llama"
    assert answer.header("x-ratelimit-type") == "user"
    assert answer.header("cf-ray") is None
    assert float(answer.header("x-dandolo-overhead-ms") or "-1") >= 0
    assert float(answer.header("x-dandolo-queue-ms") or "-1") == 0
    assert "provider;dur=" in (answer.header("server-timing") or "")
    rig.venice.script = Script(tokens_per_s=1000)
    stream = rig.post("/v1/chat/completions", chat(model="llama", stream=True))
    assert stream.header("cache-control") == "no-cache, no-transform"
    assert stream.header("x-accel-buffering") == "no"
    assert stream.header("content-type") == "text/event-stream"


# -- browsers ------------------------------------------------------------------------------------------------


def test_listed_origin_may_ask_and_read(rig: Rig) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = rig.gateway.ask(request("/v1/chat/completions", None, method="OPTIONS", headers=asked))
    assert answer.status == 204
    assert answer.header("access-control-allow-origin") == ORIGIN
    assert "POST" in (answer.header("access-control-allow-methods") or "")
    assert answer.header("access-control-allow-headers") == "authorization,content-type"
    rig.a.script = Script(tokens_per_s=1000)
    for stream in (False, True):
        answer = rig.post("/v1/chat/completions", chat(model="fast", stream=stream), Origin=ORIGIN)
        assert answer.status == 200
        assert answer.header("access-control-allow-origin") == ORIGIN
        assert answer.header("vary") == "origin"
    refused = rig.post("/v1/chat/completions", chat(model="claude/opus"), Origin=ORIGIN)
    assert refused.status == 404
    assert refused.header("access-control-allow-origin") == ORIGIN  # else a browser cannot read the error


def test_listed_origin_can_read_a_refusal_that_needs_no_body(rig: Rig) -> None:
    answer = rig.gateway.ask(request(body=chat(model="fast"), headers={"Origin": ORIGIN}, key="sk-wrong"))
    assert answer.status == 401
    assert answer.header("access-control-allow-origin") == ORIGIN


def test_other_origins_are_refused(rig: Rig) -> None:
    for origin in ("https://evil.example", "null", ORIGIN + ".evil.example"):
        answer = rig.post("/v1/chat/completions", chat(model="fast"), Origin=origin)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert answer.header("access-control-allow-origin") is None
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = rig.gateway.ask(request("/v1/chat/completions", None, method="OPTIONS", headers=asked))
        assert answer.status == 403
    assert not rig.a.requests


# -- streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form_", ["chat", "completions"])
def test_annotation_closes_a_stream(rig: Rig, form_: str) -> None:
    path = "/v1/chat/completions" if form_ == "chat" else "/v1/completions"
    rig.a.script = Script(tokens_per_s=500)
    body = {"model": "fast", "stream": True, **({"messages": HELLO} if form_ == "chat" else {"prompt": "hello"})}
    answer = rig.post(path, body, x_dandolo_annotate="true")
    assert answer.complete
    assert answer.events[-1] == b"[DONE]"
    note = json.loads(answer.events[-2])
    assert note["choices"] == []
    assert abs(note["timestamp"] / 1000 - time.time()) < 60
    told = note["dandolo_metadata"]
    assert (told["provider"], told["model"], told["attempts"]) == ("a", "quick-1", 1)
    assert told["total_ms"] >= told["first_token_ms"] > 0
    assert told["output_tokens"] > 0
    without = rig.post(path, body)
    assert b"dandolo_metadata" not in without.body


def test_annotation_is_supplied_with_the_done_that_was_missing(rig: Rig) -> None:
    rig.a.script = Script(faults=[Fault("no_done")], tokens_per_s=500)
    answer = rig.post("/v1/chat/completions", chat(model="fast", stream=True), x_dandolo_annotate="true")
    assert answer.events[-1] == b"[DONE]"
    assert "dandolo_metadata" in json.loads(answer.events[-2])
    assert answer.body.count(b"dandolo_metadata") == 1


def test_annotation_never_follows_a_broken_stream(rig: Rig) -> None:
    rig.a.script = Script(faults=[Fault("cut_fin", after=6)], tokens_per_s=200)
    answer = rig.post("/v1/chat/completions", chat(model="fast", stream=True), x_dandolo_annotate="true")
    assert not answer.complete
    assert b"dandolo_metadata" not in answer.body


def test_heartbeats_keep_a_silent_stream_alive(tmp_path_factory: pytest.TempPathFactory) -> None:
    sim = SimProvider("sim", script=Script(first_token_s=1.0, tokens=4))
    with (
        SimThread(sim),
        Gateway(tmp_path_factory.mktemp("heartbeat"), [sim], server={"heartbeat": "200ms"}) as gateway,
        gateway.client() as client,
    ):
        started = time.monotonic()
        client.send(request(body=chat(stream=True)))
        client.read_until(b": dandolo\n\n")
        assert time.monotonic() - started < 0.9
        rest = client.read_until(b"data: [DONE]\n\n")
        assert rest.count(b": dandolo\n\n") >= 1
        client.read_until(b"0\r\n\r\n")
        # The next request of the same connection, without silence, gets none.
        sim.script = Script(tokens_per_s=1000)
        client.send(request(body=chat(stream=True)))
        assert b": dandolo" not in client.answer().body


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["300ms", "0.3s", "0.3"])
@pytest.mark.parametrize("stream", [False, True])
def test_callers_own_deadline_is_kept(rig: Rig, given: str, stream: bool) -> None:
    rig.a.script = Script(default_fault=Fault("hang_before_answer"))
    started = time.monotonic()
    answer = rig.post("/v1/chat/completions", chat(model="both", stream=stream), x_dandolo_timeout=given)
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert 0.25 < time.monotonic() - started < 1.5
    until(lambda: rig.a.requests[0].aborted_at, 3.0)
    assert not rig.venice.requests  # no time was left for anybody else


def test_callers_own_deadline_ends_a_stream_under_way(rig: Rig) -> None:
    rig.a.script = Script(tokens_per_s=50, tokens=1000)
    answer = rig.post("/v1/chat/completions", chat(model="fast", stream=True), x_dandolo_timeout="400ms")
    assert answer.status == 200
    assert not answer.complete
    assert b"[DONE]" not in answer.body
    assert json.loads(answer.events[-1])["error"]["code"] == "upstream_stream_error"


@pytest.mark.parametrize("given", ["", "0", "-1s", "1h", "soon", "30 s", "1e3"])
def test_deadline_that_is_none_is_400(rig: Rig, given: str) -> None:
    answer = rig.post("/v1/chat/completions", chat(model="fast"), x_dandolo_timeout=given)
    assert answer.status == 400
    assert "x-dandolo-timeout" in answer.error["message"]
    assert not rig.a.requests


def test_large_body_passes_whole(rig: Rig) -> None:
    body = chat(model="fast", messages=[{"role": "user", "content": "größer " * 400_000}])
    answer = rig.post("/v1/chat/completions", body)
    assert answer.status == 200
    assert json.loads(sent(rig.a).body)["messages"] == body["messages"]
    assert rig.gateway.record(answer)["bytes_in"] == len(encode(body))
