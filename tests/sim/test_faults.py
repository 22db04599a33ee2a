"""Each fault on the wire: what a client sees, byte for byte where it matters, on asyncio and uvloop."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from wiretap import CHAT, Client, Seen, complete, dechunked, holds, request, streamed

from dandolo.sim import KINDS, Fault, Script, SimProvider

Check = Callable[[Seen], Any]


def events(seen: Seen) -> list[bytes]:
    return [line for line in dechunked(seen.body).split(b"\n") if line.startswith(b"data:")]


def chunks(seen: Seen) -> list[dict[str, Any]]:
    return [json.loads(line[5:]) for line in events(seen) if b"[DONE]" not in line]


def whole(seen: Seen) -> bool:
    return events(seen)[-1] == b"data: [DONE]" and b'"finish_reason":"stop"' in seen.body


def good(seen: Seen) -> bool:
    return b"sim-a: hello" in seen.body and seen.head.startswith(b"HTTP/1.1 200 OK")


def length_of(seen: Seen) -> list[int]:
    lines = seen.head.lower().split(b"\r\n")
    return [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]


PLAIN: list[tuple[str, Fault, str, Check]] = [
    ("ok", Fault("ok"), "open", good),
    ("refuse", Fault("refuse"), "rst", lambda s: not s.data),
    ("speak_first", Fault("speak_first", data=b"early"), "open", lambda s: s.data.startswith(b"early")),
    ("close_before", Fault("close_before_answer"), "fin", lambda s: not s.data),
    ("reset_before", Fault("reset_before_answer"), "rst", lambda s: not s.data),
    ("hang_before", Fault("hang_before_answer"), "open", lambda s: not s.data),
    ("hang_before_then_close", Fault("hang_before_answer", delay_s=0.05), "fin", lambda s: not s.data),
    ("hang_after_head", Fault("hang_after_head"), "open", lambda s: s.head and not s.body),
    ("stall", Fault("stall"), "open", lambda s: 0 < len(s.body) < length_of(s)[0]),
    (
        "unsolicited",
        Fault("unsolicited", data=b"surprise", delay_s=0.02),
        "open",
        lambda s: good(s) and s.data.endswith(b"}surprise"),
    ),
    ("unsolicited_close", Fault("unsolicited", then="close"), "fin", lambda s: s.data.count(b"HTTP/1.1 ") == 2),
    ("close_after", Fault("close_after_answer", delay_s=0.02), "fin", good),
    ("reset_after", Fault("close_after_answer", delay_s=0.02, then="reset"), "rst", good),
    ("raw", Fault("raw", data=b"HTTP/9 \0", then="reset", delay_s=0.02), "rst", lambda s: s.data == b"HTTP/9 \0"),
    ("raw_pieces", Fault("raw", data=b"abcd", size=1, then="keep"), "open", lambda s: s.data == b"abcd"),
    ("raw_hang", Fault("raw", data=b"abcd", then="hang"), "open", lambda s: s.data == b"abcd"),
    (
        "status",
        Fault("status", status=503, headers=[("retry-after", "7")]),
        "open",
        lambda s: s.head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 7" in s.head and json.loads(s.body)["error"],
    ),
    ("status_body", Fault("status", status=418, body="teapot"), "open", lambda s: s.body == b"teapot"),
    ("status_odd", Fault("status", status=999, form="html"), "open", lambda s: b" 999 " in s.head and b"<" in s.body),
    ("status_low", Fault("status", status=42), "open", lambda s: s.head.startswith(b"HTTP/1.1 042 ")),
    ("status_204", Fault("status", status=204), "open", lambda s: not s.body),
    ("error_200", Fault("error_200"), "open", lambda s: b" 200 " in s.head and json.loads(s.body)["error"]),
    ("html_200", Fault("html_200"), "open", lambda s: b"text/html" in s.head and b"<html>" in s.body),
    ("empty_200", Fault("empty_200"), "open", lambda s: length_of(s) == [0] and not s.body),
    ("redirect", Fault("redirect"), "open", lambda s: b" 302 " in s.head and b"location: http" in s.head),
    ("private", Fault("private_headers"), "open", lambda s: good(s) and b"Set-Cookie" in s.head),
    ("truncated", Fault("truncated_body"), "fin", lambda s: length_of(s) == [len(s.body) + 100]),
    ("bad_chunk", Fault("bad_chunk"), "fin", lambda s: s.body.endswith(b"\r\nxyz\r\n")),
    ("cl_te", Fault("cl_te"), "open", lambda s: length_of(s) == [len(dechunked(s.body))] and b"chunked" in s.head),
    ("two_cl", Fault("two_cl"), "open", lambda s: length_of(s) == [len(s.body), len(s.body) + 5]),
    ("101", Fault("switching_101"), "open", lambda s: s.data.startswith(b"HTTP/1.1 101 ") and not s.body),
    ("some_1xx", Fault("endless_1xx", count=20), "open", lambda s: s.data.count(b"HTTP/1.1 100 Continue") == 20),
    ("endless_1xx", Fault("endless_1xx"), "enough", lambda s: b" 200 " not in s.data),
    ("odd_1xx", Fault("endless_1xx", count=2, status=142), "open", lambda s: s.data.count(b"HTTP/1.1 142 ") == 2),
    ("103", Fault("early_hints"), "open", lambda s: b" 103 " in s.head and b"HTTP/1.1 200 " in s.body),
    ("huge_header", Fault("huge_header", size=50_000), "open", lambda s: b"h" * 50_000 in s.head),
    ("nul_header", Fault("nul_header"), "open", lambda s: b"a\0b" in s.head and length_of(s) == [len(s.body)]),
    ("eof", Fault("eof_body"), "fin", lambda s: good(s) and not length_of(s) and b"chunked" not in s.head),
    ("eof10", Fault("eof_body_http10"), "fin", lambda s: s.data.startswith(b"HTTP/1.0 200 ") and not length_of(s)),
    ("gzip", Fault("gzip"), "open", lambda s: b"sim-a: hello" in zlib.decompress(dechunked(s.body), 31)),
    ("dribble", Fault("dribble"), "open", good),
    ("cut_fin", Fault("cut_fin"), "fin", lambda s: 0 < len(s.body) < length_of(s)[0]),
    ("cut_rst", Fault("cut_rst"), "rst", lambda s: 0 < len(s.body) < length_of(s)[0]),
    ("stream_error", Fault("stream_error"), "open", lambda s: b" 200 " in s.head and json.loads(s.body)["error"]),
]

STREAMS: list[tuple[str, Fault, str, Check]] = [
    ("ok", Fault("ok"), "open", whole),
    ("hang_after_head", Fault("hang_after_head"), "open", lambda s: s.head and not s.body),
    ("stall", Fault("stall", after=3), "open", lambda s: s.body.count(b"data: ") == 3),
    ("truncated", Fault("truncated_body"), "fin", lambda s: length_of(s)[0] > len(s.body)),
    ("two_cl", Fault("two_cl", then="close"), "fin", lambda s: len(length_of(s)) == 2),
    ("cl_te", Fault("cl_te"), "open", lambda s: whole(s) and length_of(s)),
    ("nul_header", Fault("nul_header"), "open", whole),
    ("eof", Fault("eof_body"), "fin", lambda s: s.body.endswith(b"data: [DONE]\n\n")),
    ("gzip", Fault("gzip"), "open", lambda s: zlib.decompress(dechunked(s.body), 31).endswith(b"[DONE]\n\n")),
    ("dribble", Fault("dribble", size=3), "open", whole),
    ("bad_chunk", Fault("bad_chunk", after=2), "fin", lambda s: s.body.endswith(b"\n\n\r\nxyz\r\n")),
    ("cut_fin", Fault("cut_fin", after=4), "fin", lambda s: s.body.count(b"data: ") == 4),
    ("cut_fin_at_once", Fault("cut_fin"), "fin", lambda s: s.head and not s.body),
    ("cut_rst", Fault("cut_rst", after=4), "rst", lambda s: s.body.count(b"data: ") == 4),
    ("error", Fault("stream_error", after=2), "open", lambda s: chunks(s)[-1]["error"]["type"] == "server_error"),
    (
        "error_openrouter",
        Fault("stream_error", after=2, form="openrouter"),
        "open",
        lambda s: chunks(s)[-1]["error"] and chunks(s)[-1]["choices"][0]["finish_reason"] == "error",
    ),
    (
        "error_llamacpp",
        Fault("stream_error", after=2, form="llamacpp", count=1),
        "open",
        lambda s: b"\nerror: {" in dechunked(s.body) and events(s)[-1] == b"data: [DONE]",
    ),
    (
        "error_anthropic",
        Fault("stream_error", after=2, form="anthropic", then="reset"),
        "rst",
        lambda s: b"event: error\ndata: {" in s.body,
    ),
    ("no_done", Fault("no_done"), "open", lambda s: b"[DONE]" not in s.body and b'"stop"' in s.body),
    ("no_finish", Fault("no_finish"), "open", lambda s: b"[DONE]" in s.body and b'"stop"' not in s.body),
    ("neither", Fault("no_finish_no_done"), "open", lambda s: b"[DONE]" not in s.body and b'"stop"' not in s.body),
    ("after_done", Fault("after_done"), "open", lambda s: events(s)[-2] == b"data: [DONE]" and chunks(s)),
    (
        "hold",
        Fault("hold_after_done"),
        "open",
        lambda s: s.body.endswith(b"data: [DONE]\n\n\r\n"),
    ),
    ("hold_a_moment", Fault("hold_after_done", delay_s=0.05), "open", whole),
    ("big", Fault("big_event", size=200_000), "open", lambda s: max(map(len, events(s))) == 200_000 + 6),
    (
        "keepalives",
        Fault("keepalive_forever", after=1, delay_s=0.001),
        "enough",
        lambda s: s.body.count(b": keep-alive\n\n") > 10 and s.body.count(b"data:") == 1,
    ),
    ("role_first", Fault("role_first", delay_s=9), "open", lambda s: s.body.count(b"data:") == 1),
    ("no_usage", Fault("finish_no_usage"), "open", lambda s: whole(s) and not any("usage" in c for c in chunks(s))),
    ("in_choice", Fault("usage_in_choice"), "open", lambda s: chunks(s)[-1]["choices"][0]["usage"]["total_tokens"]),
    ("x_groq", Fault("usage_x_groq"), "open", lambda s: chunks(s)[-1]["x_groq"]["usage"]["total_tokens"]),
    (
        "continuous",
        Fault("usage_continuous"),
        "open",
        lambda s: all("usage" in c for c in chunks(s)) and chunks(s)[-1]["choices"] == [],
    ),
    (
        "cumulative",
        Fault("usage_cumulative"),
        "open",
        lambda s: (
            sorted(t := [c["usage"]["completion_tokens"] for c in chunks(s) if not c["choices"]]) == t and len(t) == 17
        ),
    ),
    ("crlf", Fault("sse_crlf"), "open", lambda s: dechunked(s.body).endswith(b"data: [DONE]\r\n\r\n")),
    (
        "cr",
        Fault("sse_cr"),
        "open",
        lambda s: dechunked(s.body).endswith(b"data: [DONE]\r\r") and b"\n" not in dechunked(s.body),
    ),
    ("bom", Fault("sse_bom"), "open", lambda s: dechunked(s.body).startswith(b"\xef\xbb\xbfdata") and whole(s)),
    ("comments", Fault("sse_comments"), "open", lambda s: b": a comment" in s.body and whole(s)),
    ("no_space", Fault("sse_no_space"), "open", lambda s: events(s)[-1] == b"data:[DONE]"),
]


@pytest.mark.parametrize(("fault", "ending", "check"), [c[1:] for c in PLAIN], ids=[c[0] for c in PLAIN])
def test_fault_of_a_plain_answer(sim: SimProvider, fault: Fault, ending: str, check: Check) -> None:
    sees(sim, request(), fault, ending, check)


@pytest.mark.parametrize(("fault", "ending", "check"), [c[1:] for c in STREAMS], ids=[c[0] for c in STREAMS])
def test_fault_of_a_stream(sim: SimProvider, fault: Fault, ending: str, check: Check) -> None:
    sees(sim, streamed(), fault, ending, check)


def sees(sim: SimProvider, sent: bytes, fault: Fault, ending: str, check: Check) -> None:
    sim.script = Script(faults=[fault])
    try:
        with Client(sim.port) as client:
            client.send(sent)
            seen = client.read(
                at_most=1 << 15 if ending == "enough" else 1 << 24,
                wanted=lambda seen: seen.ending == ending and check(seen),
            )
    except ConnectionError:  # the reset was quicker than connecting or sending, and is told only once
        assert fault.kind == "refuse"
        seen = Seen(b"", "rst")
    assert (seen.ending, holds(check, seen)) == (ending, True), seen.data[:2000]
    # Whatever happened, the provider goes on.
    with Client(sim.port) as client:
        client.send(request())
        assert b"sim-a: hello" in client.read_until(b'"usage"')


def test_every_kind_is_tried_here() -> None:
    tried = {case[1].kind for case in PLAIN + STREAMS} | {"close_on_reuse", "bad_gzip"}
    assert tried == set(KINDS)


def test_bad_gzip_looks_like_gzip_and_is_not(sim: SimProvider) -> None:
    for sent in (request(), streamed()):
        sim.script = Script(faults=[Fault("bad_gzip")])
        with Client(sim.port) as client:
            client.send(sent)
            body = dechunked(client.read(wanted=complete).body)
        assert body.startswith(b"\x1f\x8b\x08")
        with pytest.raises(zlib.error):
            zlib.decompress(body, 31)


@pytest.mark.parametrize("then", ["close", "reset"])
def test_connection_that_answered_dies_at_its_next_request(sim: SimProvider, then: Any) -> None:
    sim.script = Script(faults=[Fault("close_on_reuse", then=then)])
    with Client(sim.port) as client:
        client.send(request())
        assert good(client.read(wanted=good))
        client.send(request())
        seen = client.read(wanted=lambda seen: False)
    assert (seen.data, seen.ending) == (b"", "fin" if then == "close" else "rst")
    assert [r.status for r in sim.requests] == [200, 0]
    assert sim.requests[1].aborted_at is None


@pytest.mark.parametrize("kind", ["nul_header", "cl_te", "two_cl", "gzip", "early_hints", "dribble", "no_done"])
def test_connection_is_usable_after_a_fault_that_keeps_it(sim: SimProvider, kind: Any) -> None:
    sim.script = Script(faults=[Fault(kind)])
    with Client(sim.port) as client:
        for _ in range(2):
            client.send(request())
            seen = client.read(wanted=lambda seen: seen.data.endswith((b"}", b"\r\n0\r\n\r\n")))
        assert good(seen)
    assert {r.connection for r in sim.requests} == {1}


def test_gzip_stream_can_be_read_event_by_event(sim: SimProvider) -> None:
    sim.script = Script(faults=[Fault("gzip")], tokens=2, tokens_per_s=2)
    with Client(sim.port) as client:
        client.send(streamed())
        early = client.read(wanted=lambda seen: seen.body.count(b"\r\n") >= 2).data
    pieces = early.partition(b"\r\n\r\n")[2]
    size = int(pieces.partition(b"\r\n")[0], 16)
    first = pieces.partition(b"\r\n")[2][:size]
    assert zlib.decompressobj(31).decompress(first).endswith(b"\n\n")


def test_error_event_of_the_messages_dialect(sim: SimProvider) -> None:
    sim.script = Script(faults=[Fault("stream_error", after=3)])
    with Client(sim.port) as client:
        client.send(request("/v1/messages", {**CHAT, "stream": True, "max_tokens": 99}))
        body = dechunked(client.read(wanted=complete).body)
    assert body.count(b"event: ") == 4
    assert b'event: error\ndata: {"type":"error"' in body


def test_stream_without_terminal_event_on_messages_and_responses(sim: SimProvider) -> None:
    sim.script = Script(default_fault=Fault("no_done"), tokens=1)
    for path, body, mark in (
        ("/v1/messages", {**CHAT, "stream": True, "max_tokens": 99}, b"message_stop"),
        ("/v1/responses", {"model": "m", "input": "x", "stream": True}, b"response.completed"),
    ):
        with Client(sim.port) as client:
            client.send(request(path, body))
            seen = client.read(wanted=complete)
        assert good(seen)
        assert mark not in seen.body


def test_big_event_on_every_streaming_endpoint(sim: SimProvider) -> None:
    sim.script = Script(default_fault=Fault("big_event", after=1, size=9_000))
    for path, more in (
        ("/v1/messages", {"max_tokens": 99}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        with Client(sim.port) as client:
            client.send(request(path, {**CHAT, "stream": True, **more}))
            assert next(len(e) for e in events(client.read(wanted=complete)) if len(e) > 8_000) == 9_006


def test_dribble_is_slow_when_told(sim: SimProvider) -> None:
    sim.script = Script(faults=[Fault("dribble", size=64, delay_s=0.01)])
    started = time.monotonic()
    with Client(sim.port) as client:
        client.send(request())
        client.read_until(b'"usage"')
    assert time.monotonic() - started > 0.05
