"""Providers that misbehave: what their clients are told, and what never reaches them."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from harness import PROVIDER_KEY, Answer, Client, Gateway, Provider, chat, encode, request, until

from dandolo.sim import Fault, Received, Script, SimProvider, SimThread

EVIL = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{"evil":"EVIL"}'
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
QUICK_S = 0.4
"""How long the impatient gateway waits for a first byte, and for more of a stream."""
SILENT = ("hang_before_answer", "hang_after_head", "stall", "keepalive_forever")
PACE = 200.0
"""Tokens a second of a stream whose end must not come together with its content."""


@dataclass
class Rig:
    """A gateway before two providers of OpenAI's dialect and one of Anthropic's, without breakers.

    `impatient` is another before the same, for providers that fall silent.
    """

    gateway: Gateway
    impatient: Gateway
    a: SimProvider
    b: SimProvider
    claude: SimProvider

    def ask(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.gateway.ask(request(path, body, headers=named))

    def facing(self, script: Script) -> Gateway:
        """The gateway to ask when the provider behaves like that."""
        faults = [*script.faults, script.default_fault]
        return self.impatient if any(fault and fault.kind in SILENT for fault in faults) else self.gateway

    def fill_budget(self, gateway: Gateway) -> None:
        """Good requests put back into the retry budget what failovers took out."""
        with gateway.client() as client:
            for _ in range(6):  # a fifth of a token each
                client.send(request(body=chat(model="b/sim")))
                assert client.answer().status == 200


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    a, b = SimProvider("a"), SimProvider("b")
    claude = SimProvider("claude", "anthropic")
    shared: dict[str, Any] = {
        "providers": [a, b, Provider(claude, "anthropic")],
        "routing": {"breaker": False},
        "models": {"both": ["a/sim", "b/sim"]},
    }
    quick = f"{QUICK_S * 1000:.0f}ms"
    with (
        SimThread(a, b, claude),
        Gateway(tmp_path_factory.mktemp("patient"), **shared) as gateway,
        Gateway(
            tmp_path_factory.mktemp("impatient"),
            timeouts={"first_byte": quick, "first_byte_stream": quick, "stream_idle": quick},
            **shared,
        ) as impatient,
    ):
        yield Rig(gateway, impatient, a, b, claude)


@pytest.fixture
def rig(running: Rig) -> Iterator[Rig]:
    for sim in (running.a, running.b, running.claude):
        sim.script = Script()
        sim.forget()
    yield running
    assert running.gateway.alive
    assert running.impatient.alive


def always(kind: Any, **more: Any) -> Script:
    return Script(default_fault=Fault(kind, **more))


def once(kind: Any, **more: Any) -> Script:
    return Script(faults=[Fault(kind, **more)])


def raw(data: bytes, **more: Any) -> Script:
    return Script(default_fault=Fault("raw", data=data, **more))


def chunk(content: str) -> bytes:
    delta = {"id": "x", "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}
    return b"data: " + json.dumps(delta, ensure_ascii=False).encode() + b"\n\n"


def in_chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


FINISH = b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"

INVALID = (502, "upstream_error", "upstream_invalid_response")
UNAVAILABLE = (502, "upstream_error", "upstream_unavailable")
FAILED = (502, "upstream_error", "upstream_error")
TIMEOUT = (504, "timeout_error", "upstream_timeout")

BROKEN: dict[str, tuple[Script, tuple[int, str, str]]] = {
    "refused": (always("refuse"), UNAVAILABLE),
    "closed": (always("close_before_answer"), UNAVAILABLE),
    "reset": (always("reset_before_answer"), UNAVAILABLE),
    "silent": (always("hang_before_answer"), TIMEOUT),
    "silent after its head": (always("hang_after_head"), TIMEOUT),
    "101": (always("switching_101"), INVALID),
    "endless 1xx": (always("endless_1xx"), INVALID),
    "seventeen 1xx": (always("endless_1xx", count=17, status=102), INVALID),
    "huge header": (always("huge_header"), INVALID),
    "NUL in a header": (always("nul_header"), INVALID),
    "CL and TE": (always("cl_te"), INVALID),
    "two CL": (always("two_cl"), INVALID),
    "gzip": (always("gzip"), INVALID),
    "bad gzip": (always("bad_gzip"), INVALID),
    "HTML 200": (always("html_200"), INVALID),
    "empty 200": (always("empty_200"), INVALID),
    "redirect": (always("redirect"), INVALID),
    "307 to a metadata service": (
        always("redirect", status=307, headers=(("location", "http://169.254.169.254/"),)),
        INVALID,
    ),
    "error in a 200": (always("error_200"), FAILED),
    "500": (always("status", status=500), FAILED),
    "502 as HTML": (always("status", status=502, form="html"), FAILED),
    "500 without a body": (always("status", status=500, form="empty"), FAILED),
    "503": (always("status", status=503), (503, "upstream_error", "upstream_overloaded")),
    "504": (always("status", status=504), TIMEOUT),
    "status 600": (always("status", status=600), INVALID),
    "status 999": (always("status", status=999), INVALID),
    "status 099": (raw(b"HTTP/1.1 099 What\r\nContent-Length: 0\r\n\r\n"), INVALID),
    "status of two digits": (raw(b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"), INVALID),
    "HTTP/2.0": (raw(b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
    "HTTP/1.2": (raw(b"HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
    "ICY": (raw(b"ICY 200 OK\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
    "no status line": (raw(b"{}\r\n\r\n"), INVALID),
    "bare LF": (raw(b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}"), INVALID),
    "bare CR in a value": (raw(JSON_HEAD + b"X-A: a\rb\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
    "obs-fold": (raw(JSON_HEAD + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}"), INVALID),
    "space before a colon": (raw(JSON_HEAD + b"Content-Length : 2\r\n\r\n{}"), INVALID),
    "CL with a sign": (raw(JSON_HEAD + b"Content-Length: +2\r\n\r\n{}"), INVALID),
    "CL list": (raw(JSON_HEAD + b"Content-Length: 2, 3\r\n\r\n{}"), INVALID),
    "CL in hex": (raw(JSON_HEAD + b"Content-Length: 0x2\r\n\r\n{}"), INVALID),
    "TE gzip, chunked": (raw(JSON_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"), INVALID),
    "TE identity": (raw(JSON_HEAD + b"Transfer-Encoding: identity\r\n\r\n{}"), INVALID),
    "TE in HTTP/1.0": (
        raw(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        INVALID,
    ),
    "chunk size in letters": (raw(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n"), INVALID),
    "chunk longer than said": (raw(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n"), INVALID),
    "closed within the head": (raw(JSON_HEAD), UNAVAILABLE),
    "EOF inside JSON": (raw(JSON_HEAD + b'\r\n{"choices":['), INVALID),
}  # fmt: skip
"""What a provider does instead of a good answer, before anything was sent to the client."""

PLAIN_ONLY: dict[str, tuple[Script, tuple[int, str, str]]] = {
    "truncated": (always("truncated_body"), INVALID),
    "bad chunk": (always("bad_chunk"), INVALID),
    "FIN halfway": (always("cut_fin"), INVALID),
    "RST halfway": (always("cut_rst"), INVALID),
    "silent halfway": (always("stall"), TIMEOUT),
    "not JSON": (raw(JSON_HEAD + b"Content-Length: 5\r\n\r\nhello"), INVALID),
    "JSON that is no object": (raw(JSON_HEAD + b"Content-Length: 2\r\n\r\n[]"), INVALID),
}
STREAM_ONLY: dict[str, tuple[Script, tuple[int, str, str]]] = {
    "FIN without an event": (always("cut_fin"), INVALID),
    "RST without an event": (always("cut_rst"), INVALID),
    "bad chunk at once": (always("bad_chunk"), INVALID),
    "an error as its first event": (always("stream_error"), FAILED),
    "an error field as its first event": (always("stream_error", form="llamacpp"), FAILED),
    "plain JSON instead": (raw(JSON_HEAD + b'Content-Length: 14\r\n\r\n{"choices":[]}'), INVALID),
}
CASES = [
    *(pytest.param(stream, *case, id=f"{name}-{stream}") for name, case in BROKEN.items() for stream in (False, True)),
    *(pytest.param(False, *case, id=name) for name, case in PLAIN_ONLY.items()),
    *(pytest.param(True, *case, id=name) for name, case in STREAM_ONLY.items()),
]
HELD = [
    pytest.param(True, always("keepalive_forever"), TIMEOUT, id="comments only"),
    pytest.param(True, always("cut_fin", after=1), INVALID, id="FIN after the role"),
    pytest.param(True, always("cut_rst", after=1), INVALID, id="RST after the role"),
    pytest.param(True, always("stall", after=1), TIMEOUT, id="silence after the role"),
    pytest.param(True, always("stream_error", after=1), FAILED, id="an error after the role"),
]
"""What is taken over though the stream had begun: no content had come."""


@pytest.mark.promise("22")
@pytest.mark.parametrize(("stream", "script", "expected"), CASES)
def test_failure_before_the_first_byte_is_told_exactly(
    rig: Rig, stream: bool, script: Script, expected: tuple[int, str, str]
) -> None:
    rig.a.script = script
    gateway = rig.facing(script)
    answer = gateway.ask(request(body=chat(model="a/sim", stream=stream)))
    assert (answer.status, answer.error["type"], answer.error["code"]) == expected
    assert answer.header("content-type") == "application/json"
    assert answer.header("x-request-id")
    assert b"<html" not in answer.body.lower()
    assert answer.complete
    # Our own retries are spent, so the SDKs' would multiply them; a 503 leaves them their Retry-After wait.
    assert answer.header("x-should-retry") == ("false" if answer.status in (502, 504) else None)
    record = gateway.record(answer)
    assert (record["status"], record["code"]) == (expected[0], expected[2])
    assert record["attempts"] == 1
    # Nothing of it is left over for whoever comes next.
    rig.a.script = Script()
    after = gateway.ask(request(body=chat(model="a/sim")))
    assert after.status == 200
    assert after.json["choices"][0]["message"]["content"].startswith("a: hello")


@pytest.mark.promise("22", "31")
@pytest.mark.parametrize(("stream", "script", "expected"), [*CASES, *HELD])
def test_failure_before_the_first_byte_is_taken_over(
    rig: Rig, stream: bool, script: Script, expected: tuple[int, str, str]
) -> None:
    gateway = rig.facing(script)
    rig.fill_budget(gateway)
    rig.a.script = script
    answer = gateway.ask(request(body=chat(model="both", stream=stream)))
    assert answer.status == 200
    assert answer.complete
    assert answer.header("x-dandolo-attempts") == "2"
    assert answer.header("x-dandolo-provider") == "b"
    text = content(answer) if stream else answer.json["choices"][0]["message"]["content"]
    assert text.startswith("b: hello")
    assert gateway.record(answer)["attempts"] == 2


@pytest.mark.promise("22")
@pytest.mark.parametrize("kind", ["two_cl", "cl_te", "nul_header", "truncated_body", "bad_chunk", "switching_101"])
def test_connection_of_a_broken_answer_is_never_used_again(rig: Rig, kind: Any) -> None:
    rig.a.script = once(kind, then="keep")
    assert rig.ask(chat(model="a/sim"), x_dandolo_timeout="500ms").status in (502, 504)
    assert rig.ask(chat(model="a/sim")).status == 200
    bad, good = rig.a.requests
    assert good.connection != bad.connection


# -- what providers refuse -----------------------------------------------------------------------------------


@pytest.mark.promise("23", "44")
@pytest.mark.parametrize("stream", [False, True])
def test_401_says_nothing_of_the_provider_nor_of_the_key(rig: Rig, stream: bool) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {PROVIDER_KEY}.", "code": "invalid_api_key"}})
    rig.a.script = always("status", status=401, body=body)
    answer = rig.ask(chat(model="a/sim", stream=stream))
    assert (answer.status, answer.error["type"], answer.error["code"]) == (502, "upstream_error", "upstream_auth")
    raw_answer = answer.head + answer.body
    assert b"Incorrect" not in raw_answer
    assert PROVIDER_KEY.encode() not in raw_answer
    assert PROVIDER_KEY[-8:].encode() not in raw_answer
    assert PROVIDER_KEY not in json.dumps(rig.gateway.record(answer))
    assert PROVIDER_KEY not in rig.gateway.said()
    assert rig.a.requests[0].header("authorization") == f"Bearer {PROVIDER_KEY}"


@pytest.mark.promise("23", "44")
def test_403_passes_with_everything_that_looks_like_a_key_taken_out(rig: Rig) -> None:
    other = "sk-proj-Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZg"
    message = f"Flagged by moderation; used {PROVIDER_KEY} and {other}"
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "code": "content_policy_violation"}}
    )
    rig.a.script = always("status", status=403, body=body)
    answer = rig.ask(chat(model="both"))
    assert answer.status == 403
    assert "Flagged by moderation" in answer.error["message"]
    assert PROVIDER_KEY not in answer.error["message"]
    assert other not in answer.error["message"]
    assert PROVIDER_KEY not in rig.gateway.said() + json.dumps(rig.gateway.record(answer))
    assert not rig.b.requests  # the caller's doing


@pytest.mark.promise("23")
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((("retry-after", "7"),), ("7", 7000)),
        ((("retry-after-ms", "6500"),), ("7", 6500)),
        ((("Retry-After", "31"), ("retry-after-ms", "30500")), ("31", 30500)),
        ((("x-ratelimit-reset-requests", "6m0s"), ("x-ratelimit-remaining-requests", "0")), ("360", 360_000)),
    ],
)
def test_429_passes_with_its_wait_in_both_forms(
    rig: Rig, headers: tuple[tuple[str, str], ...], expected: tuple[str, int]
) -> None:
    rig.a.script = always("status", status=429, headers=headers)
    answer = rig.ask(chat(model="a/sim"))
    assert answer.status == 429
    assert answer.error["type"] == "rate_limit_error"
    assert answer.header("retry-after") == expected[0]
    assert abs(int(answer.header("retry-after-ms") or "0") - expected[1]) <= 1000
    assert answer.header("x-should-retry") is None
    assert len(rig.a.requests) == 1


@pytest.mark.promise("23")
@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_4xx_passes_in_the_envelope_with_our_request_id(rig: Rig, status: int) -> None:
    body = '{"error":{"message":"that was wrong","type":"invalid_request_error","param":"messages","code":"odd"}}'
    rig.a.script = always("status", status=status, body=body)
    answer = rig.ask(chat(model="a/sim"))
    assert answer.status == status
    assert answer.error["message"] == "that was wrong"
    assert answer.error["param"] == "messages"
    assert (answer.header("x-request-id") or "").startswith("req_")
    assert answer.header("x-should-retry") is None


@pytest.mark.promise("23")
@pytest.mark.parametrize("status", [400, 403, 404, 422, 429, 500, 502, 503, 529])
def test_html_is_never_passed_on(rig: Rig, status: int) -> None:
    rig.a.script = always("status", status=status, form="html")
    for path, body in [
        ("/v1/chat/completions", chat(model="a/sim")),
        ("/v1/embeddings", {"model": "a/sim", "input": "x"}),
    ]:
        answer = rig.ask(body, path)
        assert answer.status >= 400
        assert answer.header("content-type") == "application/json"
        assert answer.error["code"]
        assert b"<" not in answer.body


@pytest.mark.promise("23")
@pytest.mark.parametrize(
    ("status", "told", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 502, "api_error"),
        (429, 429, "rate_limit_error"),
        (500, 502, "api_error"),
        (529, 503, "overloaded_error"),
    ],
)
def test_messages_has_anthropics_envelope(rig: Rig, status: int, told: int, kind: str) -> None:
    rig.claude.script = always("status", status=status, headers=(("retry-after", "30"),) if status == 429 else ())
    answer = rig.ask(message(), "/v1/messages")
    assert answer.status == told
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == kind
    assert answer.header("request-id") == answer.header("x-request-id") == answer.json["request_id"]


# -- bytes nobody asked for ----------------------------------------------------------------------------------


def message(**more: Any) -> dict[str, Any]:
    return {"model": "claude/sim", "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}], **more}


def of_its_own(answer: Answer, received: Received) -> bool:
    """Whether an answer belongs to the request that the provider received."""
    return f"seq={received.sequence} ".encode() in answer.body


@pytest.mark.promise("24")
@pytest.mark.parametrize("then", ["keep", "close"])
def test_bytes_on_an_idle_connection_reach_nobody(rig: Rig, then: Any) -> None:
    rig.a.script = once("unsolicited", data=EVIL, then=then)
    first = rig.ask(chat(model="a/sim"))
    assert first.status == 200
    time.sleep(0.02)
    for _ in range(3):
        answer = rig.ask(chat(model="a/sim"))
        assert answer.status == 200
        assert b"EVIL" not in answer.body
        assert of_its_own(answer, rig.a.requests[-1])
    assert rig.a.requests[1].connection != rig.a.requests[0].connection


@pytest.mark.promise("24")
@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_bytes_beyond_the_framing_reach_nobody(rig: Rig, pause_s: float) -> None:
    good = b'{"choices":[{"message":{"content":"fine"},"finish_reason":"stop"}]}'
    data = JSON_HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(good), good)
    rig.a.script = Script(
        faults=[Fault("raw", data=data + EVIL, size=0 if not pause_s else len(data), delay_s=pause_s, then="keep")]
    )
    assert rig.ask(chat(model="a/sim")).body == good
    until(lambda: rig.a.requests[0].answered_at or rig.a.requests[0].aborted_at)
    time.sleep(0.02)  # the provider's loop has handed the bytes over; ours must have had a turn to read them
    for _ in range(3):
        answer = rig.ask(chat(model="a/sim"))
        assert answer.status == 200
        assert b"EVIL" not in answer.body
        assert of_its_own(answer, rig.a.requests[-1])
    assert rig.a.requests[1].connection != rig.a.requests[0].connection


@pytest.mark.promise("24")
def test_bytes_beyond_a_stream_reach_nobody(rig: Rig) -> None:
    data = SSE_HEAD + in_chunks(chunk("fine"), FINISH, DONE) + b"0\r\n\r\n" + EVIL
    rig.a.script = once("raw", data=data, then="keep")
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.complete
    assert b"EVIL" not in answer.body
    after = rig.ask(chat(model="a/sim"))
    assert of_its_own(after, rig.a.requests[-1])


@pytest.mark.promise("24")
def test_answers_of_a_provider_that_speaks_first_are_never_mixed_up(rig: Rig) -> None:
    rig.a.script = Script(faults=[Fault("speak_first", data=EVIL)] * 3)
    for _ in range(6):
        answer = rig.ask(chat(model="a/sim"))
        if answer.status == 200 and b"EVIL" not in answer.body:
            assert of_its_own(answer, rig.a.requests[-1])
    answer = rig.ask(chat(model="a/sim"))
    assert of_its_own(answer, rig.a.requests[-1])


@pytest.mark.promise("25")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [Fault("early_hints"), Fault("endless_1xx", count=16), Fault("endless_1xx", count=3, status=199)],
    ids=["103", "sixteen 100", "three 199"],
)
def test_interim_answers_are_skipped(rig: Rig, fault: Fault, stream: bool) -> None:
    rig.a.script = Script(faults=[fault])
    answer = rig.ask(chat(model="a/sim", stream=stream))
    assert answer.status == 200
    assert answer.interim == []
    assert answer.complete


@pytest.mark.promise("25")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["eof_body", "eof_body_http10"])
def test_answer_delimited_by_the_end_of_its_connection(rig: Rig, kind: Any, stream: bool) -> None:
    rig.a.script = once(kind)
    answer = rig.ask(chat(model="a/sim", stream=stream))
    assert answer.status == 200
    assert answer.complete
    if stream:
        assert answer.events[-1] == b"[DONE]"
    assert rig.ask(chat(model="a/sim")).status == 200


# -- streams that break --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """One dialect's stream: where it is asked for, and how its broken end looks."""

    path: str
    body: dict[str, Any]
    provider: str = "a"

    def sim(self, rig: Rig) -> SimProvider:
        return rig.claude if self.provider == "claude" else rig.a


FORMS = {
    "chat": Form("/v1/chat/completions", chat(model="both", stream=True)),
    "completions": Form("/v1/completions", {"model": "both", "prompt": "hello", "stream": True}),
    "messages": Form("/v1/messages", message(stream=True), "claude"),
    "responses": Form("/v1/responses", {"model": "both", "input": "hello", "stream": True}),
}
CUTS = {
    "FIN": Fault("cut_fin", after=8),
    "RST": Fault("cut_rst", after=8),
    "bad chunk": Fault("bad_chunk", after=8),
    "silence": Fault("stall", after=8),
    "comments only": Fault("keepalive_forever", after=8, delay_s=0.2),
    "error event": Fault("stream_error", after=8),
    "error event and a close": Fault("stream_error", after=8, then="close"),
}


def check_broken(answer: Answer, form: str) -> bytes:
    """That a stream is told to be broken, in its dialect; what came before the error event."""
    assert answer.status == 200
    assert not answer.complete
    assert b"[DONE]" not in answer.body
    assert answer.body.endswith(b"\n\n")
    before, _, last = answer.body[:-2].rpartition(b"\n\n")
    lines = last.split(b"\n")
    if form == "messages":
        assert lines[0] == b"event: error"
        error = json.loads(lines[1].removeprefix(b"data: "))
        assert error["type"] == "error"
        assert error["error"]["type"]
        assert error["error"]["message"]
        assert b"message_stop" not in answer.body
    elif form == "responses":
        assert lines[0] == b"event: error"
        error = json.loads(lines[1].removeprefix(b"data: "))
        assert error["type"] == "error"
        assert error["code"] == "upstream_stream_error"
        assert error["message"]
        numbers = [json.loads(one)["sequence_number"] for one in answer.events]
        assert numbers == list(range(len(numbers)))
        assert b"response.completed" not in answer.body
    else:
        assert len(lines) == 1
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "upstream_stream_error"
        assert b'"finish_reason":"stop"' not in answer.body
    return before + b"\n\n"


@pytest.mark.promise("26")
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("form", FORMS)
def test_stream_broken_after_content_ends_with_an_error_event(rig: Rig, form: str, cut: str) -> None:
    one = FORMS[form]
    sim = one.sim(rig)
    sim.script = Script(faults=[CUTS[cut]], tokens_per_s=PACE)
    gateway = rig.facing(sim.script)
    started = time.monotonic()
    with gateway.client() as client:
        client.send(request(one.path, one.body))
        answer = client.answer()
        before = check_broken(answer, form)
        assert client.ending() in ("fin", "rst")
    assert time.monotonic() - started < 5
    events = [event for event in before.split(b"\n\n") if event and not event.startswith(b":")]
    # A provider's broken framing may take the event with it that came in the same piece.
    assert len(events) in ((7, 8) if cut == "bad chunk" else (8,))
    assert all(json.loads(event.rpartition(b"data: ")[2]) for event in events)
    assert not rig.b.requests  # nobody else's text is spliced in
    assert len(sim.requests) == 1
    record = gateway.record(answer)
    assert record["code"] == "upstream_stream_error"
    assert record["estimated"] is True
    assert record["output_tokens"] > 0


@pytest.mark.promise("26")
@pytest.mark.parametrize(
    "tail", [b'data: {"choi', b"data: x\r", b"d", chunk("half")[:-1]], ids=["json", "cr", "d", "lf"]
)
@pytest.mark.parametrize("ending", ["close", "reset"])
def test_half_an_event_is_not_forwarded(rig: Rig, tail: bytes, ending: Any) -> None:
    data = SSE_HEAD + in_chunks(chunk("one"), chunk("two"), tail)
    rig.a.script = once("raw", data=data, size=len(SSE_HEAD) + 300, delay_s=0.05, then=ending)
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert check_broken(answer, "chat") == chunk("one") + chunk("two")


@pytest.mark.promise("26")
def test_large_event_that_breaks_is_cut_without_an_event(rig: Rig) -> None:
    data = SSE_HEAD + in_chunks(chunk("one"), chunk("x" * 200_000)[:-10])
    rig.a.script = raw(data, size=150_000, delay_s=0.05)
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.status == 200
    assert not answer.complete
    assert b"[DONE]" not in answer.body
    assert b"upstream_stream_error" not in answer.body
    assert (chunk("one") + chunk("x" * 200_000)).startswith(answer.body)
    assert len(answer.body) > 100_000  # it passes piecewise
    assert rig.gateway.record(answer)["code"] == "upstream_stream_error"


@pytest.mark.promise("26")
def test_event_of_more_than_sixteen_mebibytes_breaks_the_stream(rig: Rig) -> None:
    rig.a.script = once("big_event", after=2, size=17 << 20)
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.status == 200
    assert not answer.complete
    assert b"[DONE]" not in answer.body[-1000:]
    assert len(answer.body) <= (16 << 20) + (1 << 20)
    assert rig.gateway.record(answer)["code"] == "upstream_stream_error"


@pytest.mark.promise("26")
@pytest.mark.parametrize("size", [60 << 10, 1 << 20, 15 << 20])
def test_big_event_passes_unchanged(rig: Rig, size: int) -> None:
    rig.a.script = once("big_event", after=2, size=size)
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.complete
    assert answer.events[-1] == b"[DONE]"
    big = answer.events[3]
    assert len(big) == size
    assert set(json.loads(big)["choices"][0]["delta"]["content"]) == {"x"}


# -- ends of streams -----------------------------------------------------------------------------------------


def content(answer: Answer) -> str:
    """The text of a chat stream."""
    parts = []
    for event in answer.events:
        if event != b"[DONE]":
            for choice in json.loads(event)["choices"]:
                parts.append(choice["delta"].get("content") or "")
    return "".join(parts)


@pytest.mark.promise("27")
@pytest.mark.parametrize("form", ["chat", "completions"])
@pytest.mark.parametrize("kind", ["no_done", "no_finish", "after_done", "ok"])
def test_complete_stream_ends_with_exactly_one_done(rig: Rig, form: str, kind: Any) -> None:
    rig.a.script = once(kind)
    answer = rig.ask(FORMS[form].body, FORMS[form].path)
    assert answer.status == 200
    assert answer.complete
    assert answer.events.count(b"[DONE]") == 1
    assert answer.body.endswith(DONE)
    assert rig.gateway.record(answer).get("code") is None


@pytest.mark.promise("27")
@pytest.mark.parametrize(
    ("form", "kind"),
    [("chat", "no_finish_no_done"), ("completions", "no_finish_no_done"), ("messages", "no_finish_no_done"),
     ("responses", "no_done")],
)  # fmt: skip
def test_stream_that_ends_without_saying_so_is_broken(rig: Rig, form: str, kind: Any) -> None:
    one = FORMS[form]
    one.sim(rig).script = once(kind)
    answer = rig.ask(one.body, one.path)
    check_broken(answer, form)
    assert rig.gateway.record(answer)["code"] == "upstream_stream_error"


@pytest.mark.promise("27")
@pytest.mark.parametrize("form", ["messages", "responses"])
def test_other_dialects_end_on_their_own_event(rig: Rig, form: str) -> None:
    one = FORMS[form]
    answer = rig.ask(one.body, one.path)
    assert answer.complete
    assert b"[DONE]" not in answer.body
    last = json.loads(answer.events[-1])["type"]
    assert last == ("message_stop" if form == "messages" else "response.completed")
    assert rig.gateway.record(answer).get("code") is None


@pytest.mark.promise("27", "28")
@pytest.mark.parametrize("dialect", ["chat", "messages"])
def test_stream_that_comes_whole_in_one_read_is_a_stream(rig: Rig, dialect: str) -> None:
    events = LINES if dialect == "chat" else [b'event: message_stop\ndata: {"type":"message_stop"}\n\n']
    one = FORMS[dialect]
    one.sim(rig).script = once("raw", data=SSE_HEAD + in_chunks(*events) + b"0\r\n\r\n", then="keep")
    answer = rig.ask(one.body, one.path)
    assert (answer.status, answer.header("x-dandolo-attempts")) == (200, "1")
    assert answer.header("content-type") == "text/event-stream"
    assert answer.body == b"".join(events)


@pytest.mark.promise("27")
@pytest.mark.parametrize("form", FORMS)
def test_answer_ends_though_the_provider_holds_its_own_open(rig: Rig, form: str) -> None:
    one = FORMS[form]
    sim = one.sim(rig)
    sim.script = Script(faults=[Fault("hold_after_done")], tokens_per_s=PACE)
    started = time.monotonic()
    answer = rig.ask(one.body, one.path)
    assert answer.complete
    assert time.monotonic() - started < 1.5
    received = sim.requests[0]
    until(lambda: received.aborted_at, 5.0, "the provider was never let go")
    assert received.aborted_at is not None
    assert received.aborted_at - started < 3.0
    assert rig.gateway.record(answer).get("code") is None
    assert rig.ask(one.body, one.path).complete


@pytest.mark.promise("27")
def test_connection_is_used_again_when_its_answer_ends_soon_after_done(rig: Rig) -> None:
    rig.a.script = once("hold_after_done", delay_s=0.1)
    assert rig.ask(chat(model="a/sim", stream=True)).complete
    until(lambda: rig.a.requests[0].answered_at, 5.0)
    time.sleep(0.05)
    assert rig.ask(chat(model="a/sim")).status == 200
    assert rig.a.requests[0].connection == rig.a.requests[1].connection


# -- what a stream may look like -----------------------------------------------------------------------------

UTF8 = "Wasser, água, 水, 🌊"
LINES = [chunk("one"), chunk(UTF8), chunk("three"), FINISH, DONE]
TEXTS: dict[str, bytes] = {
    "LF": b"".join(LINES),
    "CRLF": b"".join(LINES).replace(b"\n", b"\r\n"),
    "CR": b"".join(LINES).replace(b"\n", b"\r"),
    "mixed": LINES[0].replace(b"\n", b"\r\n") + LINES[1] + LINES[2].replace(b"\n", b"\r") + LINES[3] + LINES[4],
    "BOM": b"\xef\xbb\xbf" + b"".join(LINES),
    "comments": b": hi\n\n" + LINES[0] + b":\n" + LINES[1] + b": data: no\nid: 7\nretry: 3000\n" + b"".join(LINES[2:]),
    "no space": b"".join(LINES).replace(b"data: ", b"data:"),
    "two data lines": LINES[0] + b'data: {"choices":[{"index":0,\ndata: "delta":{}}]}\n\n' + b"".join(LINES[2:]),
    "blank lines": b"\n\n" + LINES[0] + b"\n\n\n" + b"".join(LINES[1:]),
    "unknown fields": LINES[0] + b"foo: bar\nevent: message\n" + b"".join(LINES[1:]),
}  # fmt: skip
_END = re.compile(rb"\r\n|\n|\r")


def events_of(text: bytes) -> list[bytes]:
    """The data of each event, as the WHATWG's algorithm reads a stream."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in _END.split(text.removeprefix(b"\xef\xbb\xbf")):
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events


@pytest.mark.promise("28")
@pytest.mark.parametrize("size", [0, 1, 7], ids=["whole", "byte by byte", "by sevens"])
@pytest.mark.parametrize("text", TEXTS)
def test_stream_is_relayed_unchanged_however_it_is_written_and_cut(rig: Rig, text: str, size: int) -> None:
    data = TEXTS[text]
    rig.a.script = once("raw", data=SSE_HEAD + in_chunks(data) + b"0\r\n\r\n", size=size, then="keep")
    answer = rig.ask(chat(model="a/sim", stream=True, stream_options={"include_usage": True}))
    assert answer.complete
    # A lone CR ends a line too: when the LF after the very last one comes in another piece, nobody waits for it.
    assert answer.body == data or (text == "CRLF" and answer.body + b"\n" == data)
    assert events_of(answer.body) == events_of(b"".join(LINES)) or text == "two data lines"


@pytest.mark.promise("28")
def test_stream_is_relayed_unchanged_in_chunks_of_one_byte(rig: Rig) -> None:
    data = b"".join(LINES).replace(b"\n", b"\r\n")
    rig.a.script = once("raw", data=SSE_HEAD + in_chunks(*(data[i : i + 1] for i in range(len(data)))) + b"0\r\n\r\n")
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.body == data


@pytest.mark.promise("28")
@pytest.mark.parametrize("kind", ["sse_crlf", "sse_cr", "sse_bom", "sse_comments", "sse_no_space", "dribble"])
@pytest.mark.parametrize("form", FORMS)
def test_every_dialect_arrives_whole_however_it_is_written(rig: Rig, form: str, kind: Any) -> None:
    one = FORMS[form]
    one.sim(rig).script = once(kind)
    answer = rig.ask(one.body, one.path)
    assert answer.complete
    expected = rig.ask(one.body, one.path)
    # The same request gets the same pieces, but for what names this very request.
    number = re.compile(rb"seq=\d+|-\d+\"|17500\d+|\"created\w*\":\d+")
    seen = [number.sub(b"", event) for event in events_of(answer.body)]
    assert seen == [number.sub(b"", event) for event in events_of(expected.body)]


@pytest.mark.promise("28")
def test_first_event_is_forwarded_at_once(rig: Rig) -> None:
    delays = []
    for _ in range(25):
        rig.a.script = Script(tokens_per_s=200, tokens=6)
        with rig.gateway.client() as client:
            client.send(request(body=chat(model="a/sim", stream=True)))
            client.read_until(b"data: ")
            seen = time.monotonic()
            client.read_until(b"[DONE]")
        sent = rig.a.requests[-1].first_byte_at
        assert sent is not None
        delays.append(seen - sent)
    assert sorted(delays)[len(delays) // 4] <= 0.005, delays


@pytest.mark.promise("28")
def test_events_are_not_gathered(rig: Rig) -> None:
    rig.a.script = Script(tokens_per_s=20, tokens=8)
    arrivals = []
    with rig.gateway.client() as client:
        client.send(request(body=chat(model="a/sim", stream=True)))
        for _ in range(9):
            client.read_until(b"data: ")
            arrivals.append(time.monotonic())
        client.read_until(b"[DONE]")
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals[2:])]
    assert min(gaps) > 0.01, gaps


@pytest.mark.promise("29")
@pytest.mark.parametrize(
    "text",
    ["a\nb", "a\r\ndata: [DONE]\r\n\r\n", "a\u2028b\u2029c\u0085d", "\x00\x1b[31m"],
    ids=["lf", "crlf", "ls", "esc"],
)
@pytest.mark.parametrize("form", ["chat", "messages", "responses"])
def test_event_of_our_own_is_one_line(rig: Rig, form: str, text: str) -> None:
    begin = {
        "chat": chunk("one"),
        "messages": b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"one"}}\n\n',
        "responses": b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",'
        b'"sequence_number":0,"delta":"one"}\n\n',
    }[form]
    error = b"data: " + encode({"type": "error", "error": {"message": text, "type": "server_error"}}) + b"\n\n"
    one = FORMS[form]
    one.sim(rig).script = once(
        "raw", data=SSE_HEAD + in_chunks(begin, error), size=len(SSE_HEAD + begin) + 6, delay_s=0.05
    )
    answer = rig.ask(one.body, one.path)
    assert not answer.complete
    assert answer.body.startswith(begin)
    own = answer.body.removeprefix(begin).decode()
    lines = own.splitlines()
    assert [line.partition(":")[0] for line in lines if line] == (["data"] if form == "chat" else ["event", "data"])
    assert json.loads(lines[-2].removeprefix("data: "))


@pytest.mark.promise("30")
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 400000", b"Transfer-Encoding: chunked", b"Connection: close"], ids=["cl", "te", "eof"]
)
@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("size", [1000, 300_000])
def test_truncated_answer_never_looks_complete(rig: Rig, framing: bytes, ending: Any, size: int) -> None:
    body = (b'{"object":"list","data":[{"embedding":[' + b"0.25," * 80_000)[:size]
    if b"chunked" in framing:
        body = in_chunks(body)
    data = JSON_HEAD + framing + b"\r\n\r\n" + body
    rig.a.script = once("raw", data=data, size=200_000, delay_s=0.05, then=ending)
    answer = rig.ask({"model": "a/sim", "input": "x"}, "/v1/embeddings")
    if answer.status == 200:
        assert not answer.complete
        assert rig.gateway.record(answer)["code"] == "upstream_stream_error"
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_invalid_response")


@pytest.mark.promise("30")
def test_large_plain_answer_passes_with_its_length(rig: Rig) -> None:
    body = {"model": "a/sim", "input": ["x"] * 8, "dimensions": 8192}
    answer = rig.ask(body, "/v1/embeddings")
    assert answer.status == 200
    assert answer.framing == "length"
    assert len(answer.body) > 1 << 20
    assert len(answer.json["data"]) == 8
    assert rig.gateway.record(answer)["input_tokens"] == 8


@pytest.mark.promise("30")
def test_plain_answer_of_more_than_the_limit_is_refused(rig: Rig) -> None:
    rig.a.script = raw(JSON_HEAD + b"Content-Length: 40000000\r\n\r\n{")
    answer = rig.ask({"model": "a/sim", "input": "x"}, "/v1/embeddings")
    assert (answer.status, answer.error["code"]) == (502, "upstream_invalid_response")


# -- usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [None, False, True])
@pytest.mark.parametrize(
    "kind", ["ok", "usage_in_choice", "usage_x_groq", "usage_continuous", "usage_cumulative", "no_done"]
)
def test_usage_is_counted_wherever_it_stands(rig: Rig, kind: Any, wanted: bool | None) -> None:
    rig.a.script = once(kind)
    options = {} if wanted is None else {"stream_options": {"include_usage": wanted}}
    answer = rig.ask(chat(model="a/sim", stream=True, **options))
    assert answer.complete
    record = rig.gateway.record(answer)
    assert record["input_tokens"] == 2
    assert record["output_tokens"] > 20
    assert record.get("estimated") is None
    assert record["finish"] == "stop"


@pytest.mark.parametrize("form", ["chat", "completions"])
def test_usage_is_asked_for_and_its_chunk_hidden(rig: Rig, form: str) -> None:
    one = FORMS[form]
    plain = rig.ask(one.body, one.path)
    assert json.loads(rig.a.requests[-1].body)["stream_options"] == {"include_usage": True}
    assert b'"usage"' not in plain.body
    asked = rig.ask({**one.body, "stream_options": {"include_usage": True}}, one.path)
    assert b'"choices":[]' in asked.body
    assert b'"usage"' in asked.body
    refused = rig.ask({**one.body, "stream_options": {"include_usage": False, "other": 1}}, one.path)
    assert json.loads(rig.a.requests[-1].body)["stream_options"] == {"include_usage": True, "other": 1}
    assert b'"choices":[]' not in refused.body
    for answer in (plain, asked, refused):
        assert rig.gateway.record(answer)["output_tokens"] > 20


def test_usage_that_never_comes_is_estimated_and_says_so(rig: Rig) -> None:
    rig.a.script = once("finish_no_usage")
    answer = rig.ask(chat(model="a/sim", stream=True))
    assert answer.complete
    record = rig.gateway.record(answer)
    assert record["estimated"] is True
    assert record["output_tokens"] > 0


@pytest.mark.parametrize("status", [400, 422])
def test_provider_that_refuses_stream_options_is_asked_without_and_remembered(rig: Rig, status: int) -> None:
    model = f"a/refuses-{status}"
    rig.a.script = once("status", status=status)
    answer = rig.ask(chat(model=model, stream=True))
    assert answer.status == 200
    assert answer.complete
    first, second = (json.loads(received.body) for received in rig.a.requests)
    assert "stream_options" in first
    assert "stream_options" not in second
    assert answer.header("x-dandolo-attempts") == "1"
    assert rig.ask(chat(model=model, stream=True)).complete
    assert "stream_options" not in json.loads(rig.a.requests[-1].body)
    # A caller's own wish is never taken away.
    rig.ask(chat(model=model, stream=True, stream_options={"include_usage": True}))
    assert "stream_options" in json.loads(rig.a.requests[-1].body)


def test_refusal_that_has_nothing_to_do_with_stream_options_passes_and_is_not_remembered(rig: Rig) -> None:
    rig.a.script = Script(faults=[Fault("status", status=400)] * 2)
    assert rig.ask(chat(model="a/strict", stream=True)).status == 400
    assert len(rig.a.requests) == 2
    rig.a.script = Script()
    assert rig.ask(chat(model="a/strict", stream=True)).complete
    assert "stream_options" in json.loads(rig.a.requests[-1].body)


# -- what else stays behind ----------------------------------------------------------------------------------


@pytest.mark.promise("19")
@pytest.mark.parametrize("stream", [False, True])
def test_providers_private_headers_stay_behind(rig: Rig, stream: bool) -> None:
    rig.a.script = once("private_headers")
    answer = rig.ask(chat(model="a/sim", stream=stream))
    assert answer.status == 200
    names = {name for name, _ in answer.headers}
    assert not names & {"set-cookie", "server", "location", "alt-svc", "via", "x-powered-by", "x-hop", "connection"}
    assert "openai-processing-ms" in names


@pytest.mark.promise("26")
def test_client_of_http_1_0_can_tell_a_broken_stream(rig: Rig) -> None:
    rig.a.script = once("cut_fin", after=4)
    with Client(rig.gateway.port) as client:
        client.send(request(body=chat(model="a/sim", stream=True), version="HTTP/1.0"))
        answer = client.answer()
    assert answer.framing == "eof"
    assert answer.ending == "rst"
    assert b"[DONE]" not in answer.body
