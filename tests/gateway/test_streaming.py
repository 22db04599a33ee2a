"""Streams through the whole path without sockets: whatever the reads, the client gets the same events."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.config import parse
from dandolo.gateway.gateway import Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.upstream import Upstream
from dandolo.record import Record
from dandolo.wire.chunked import ChunkedDecoder, encode_chunk

CONFIG = """
[[providers]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
"""
BODY = b'{"model":"m","stream":true,"messages":[]}'
ASKED = b'{"model":"m","stream":true,"messages":[],"stream_options":{"include_usage":true}}'
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent += data

    def writelines(self, pieces: Any) -> None:
        self.sent += b"".join(pieces)

    def set_write_buffer_limits(self, high: int = 0, low: int = 0) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    abort = close


class Rig:
    """A gateway, one client's connection and one to the provider."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gateway = Gateway(parse(CONFIG, "test", {}), self.records.append)
        self.client, self.client_wire = Downstream(self.gateway, "127.0.0.1"), Wire()
        self.client.connection_made(self.client_wire)  # type: ignore[arg-type]
        self.provider, self.provider_wire = Upstream(self.gateway.now(), secure=True), None
        wire: Any = Wire()
        wire.set_read_buffer_limits = lambda high: None
        self.provider.connection_made(wire)
        self.wire = wire
        next(iter(self.gateway.plane.fleet)).pool.put(self.provider, self.gateway.now())

    def stream(self, pieces: list[bytes], body: bytes = BODY) -> tuple[bytes, bool]:
        """Ask for a stream and answer with `pieces`: what the client got, and whether it was complete."""
        self.client_wire.sent = b""
        self.client.data_received(REQUEST % len(body) + body)
        for piece in pieces:
            self.provider.data_received(piece)
        self.client.outbox.flush()
        self.gateway.settle()
        head, _, rest = self.client_wire.sent.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK"), head
        decoder = ChunkedDecoder()
        return decoder.feed(rest), decoder.complete


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    said = {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}
    return b"data: %b\n\n" % json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()


ROLE = event({"role": "assistant", "content": ""})
STOP = event({}, "stop")
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
EVENTS = st.one_of(
    st.text(max_size=12).map(lambda text: event({"content": text})),
    st.text("ab", min_size=5, max_size=5).map(lambda text: event({"content": text})),
    st.sampled_from(
        [
            event({"content": '"error": [DONE] \n\n data: [DONE]'}),
            event({"reasoning_content": "hm"}),
            event({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a":1}'}}]}),
            b": keep-alive\n\n",
            b"event: ping\ndata: {}\n\n",
        ]
    ),
)


@pytest.mark.parametrize("body", [BODY, ASKED], ids=["usage-hidden", "usage-asked"])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), middles=st.lists(st.lists(EVENTS, max_size=12), min_size=1, max_size=3))
def test_cuts_and_chunks_change_nothing(body: bytes, data: st.DataObject, middles: list[list[bytes]]) -> None:
    async def run() -> None:
        rig = Rig()
        for middle in middles:
            events = [ROLE, *middle, STOP, USAGE, DONE]
            joined = b"".join(events)
            if data.draw(st.booleans(), "one event a chunk"):
                chunks = [encode_chunk(one) for one in events]
            else:
                marks = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=6), "chunks"))
                ends = [0, *marks, len(joined)]
                chunks = [encode_chunk(joined[a:b]) for a, b in itertools.pairwise(ends) if b > a]
            if data.draw(st.booleans(), "one chunk a read"):
                pieces = [HEAD, *chunks, b"0\r\n\r\n"]
            else:
                whole = HEAD + b"".join(chunks) + b"0\r\n\r\n"
                marks = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6), "reads"))
                ends = [0, *marks, len(whole)]
                pieces = [whole[a:b] for a, b in itertools.pairwise(ends) if b > a]
            got, complete = rig.stream(pieces, body)
            assert complete
            assert got == (joined if body is ASKED else joined.replace(USAGE, b""))
            record = rig.records[-1]
            assert (record.status, record.finish, record.code) == (200, "stop", "")
            assert (record.input_tokens, record.output_tokens) == (3, 4)
            assert record.bytes_out == len(got)
            assert rig.provider.usable

    asyncio.run(run())


@settings(max_examples=150, deadline=None)
@given(data=st.data(), middle=st.lists(EVENTS, max_size=8))
def test_stream_that_breaks_is_never_taken_for_complete(data: st.DataObject, middle: list[bytes]) -> None:
    async def run() -> None:
        rig = Rig()
        # Once whole, so that the next goes the short way and its head is known.
        for _ in range(3):
            rig.stream([HEAD + encode_chunk(ROLE + event({"content": "x"}) + STOP + DONE) + b"0\r\n\r\n"])
        whole = HEAD + b"".join(map(encode_chunk, [ROLE, event({"content": "first"}), *middle]))
        start = whole.index(b"first") + 40
        cut = data.draw(st.integers(min(start, len(whole)), len(whole)), "cut")
        rig.client_wire.sent = b""
        rig.client.data_received(REQUEST % len(BODY) + BODY)
        rig.provider.data_received(whole[:cut])
        rig.provider.eof_received()
        rig.provider.connection_lost(None)
        rig.client.outbox.flush()
        rig.gateway.settle()
        decoder = ChunkedDecoder()
        got = decoder.feed(rig.client_wire.sent.partition(b"\r\n\r\n")[2])
        assert not decoder.complete
        assert rig.client_wire.closed
        assert b'"upstream_stream_error"' in got
        assert DONE not in got.replace(b"data: [DONE]\\n", b"")
        assert rig.records[-1].code == "upstream_stream_error"

    asyncio.run(run())
