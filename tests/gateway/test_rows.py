"""Followers of one stream that are sent its pieces together: the same bytes for all, each at its own pace."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dandolo.config import parse
from dandolo.gateway.gateway import Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.outbox import running_outbox
from dandolo.net.upstream import Upstream
from dandolo.record import Record
from tests.gateway.transport import Transport

CONFIG = """
[[keys]]
name = "one"
key = { env = "KEY" }
[[providers]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
key = { env = "PROVIDER_KEY" }
[[providers.models]]
id = "m"
"""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'


class Paced(Transport):
    """Keeps what it is given; beyond `room` bytes its client is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.room: int | None = None
        self.reading = True
        self.client: Downstream | None = None
        self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data
        self.writes += 1
        if self.room is not None and len(self.sent) > self.room and not self.paused and self.client is not None:
            self.paused = True
            self.client.pause_writing()

    def drain(self) -> None:
        """The client reads again."""
        self.room, self.paused = None, False
        assert self.client is not None
        self.client.resume_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Stage:
    """A gateway, its provider's connection and its clients, all without sockets."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        environ = {"KEY": "k-one", "PROVIDER_KEY": "p"}
        self.gateway = Gateway(parse(CONFIG, "test", environ), self.records.append)
        self.provider = Upstream(self.gateway.now(), secure=True)
        self.wire = Paced()
        self.provider.connection_made(self.wire)  # type: ignore[arg-type]
        self.provider.reader.begin()
        self.provider.reader._state = 5
        next(iter(self.gateway.plane.fleet)).pool._idle.append(self.provider)
        self.begun = False

    def join(self, *, minor: int = 1, usage: bool = False, stream: bool = True) -> Paced:
        """Another client asks."""
        asked: dict[str, Any] = {"model": "m", "temperature": 0, "stream": stream}
        asked["messages"] = [{"role": "user", "content": "hi"}]
        if usage:
            asked["stream_options"] = {"include_usage": True}
        body = json.dumps(asked).encode()
        transport = Paced()
        client = transport.client = Downstream(self.gateway, "127.0.0.1")
        client.connection_made(transport)  # type: ignore[arg-type]
        client.data_received(
            b"POST /v1/chat/completions HTTP/1.%d\r\nHost: 127.0.0.1\r\nAuthorization: Bearer k-one\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (minor, len(body), body)
        )
        return transport

    def say(self, *contents: bytes) -> None:
        """The provider sends something, in a turn of its own."""
        head, self.begun = (b"" if self.begun else HEAD), True
        self.provider.data_received(head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in contents))
        self.flush()

    def end(self) -> None:
        """The stream ends as it should."""
        stop = event("", "stop")
        self.say(stop + USAGE + b"data: [DONE]\n\n", b"")
        self.flush()
        self.gateway.settle()

    def flush(self) -> None:
        running_outbox().flush()


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice]}).encode()


def payload(transport: Paced) -> bytes:
    """The body that a client was sent, out of its framing."""
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not size or size == b"0":
            return content
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        content, body = content + body[:length], body[length + 2 :]


def run(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(Stage())

    asyncio.run(main())


def test_all_are_sent_the_same_in_one_write_a_piece() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join() for _ in range(5)]
        stage.say(event("first"))
        before = [client.writes for client in clients]
        for number in range(10):
            stage.say(event(f"word {number}"))
        assert [client.writes - was for client, was in zip(clients, before, strict=True)] == [10] * 5
        stage.end()
        assert len({payload(client) for client in clients}) == 1
        assert payload(clients[0]).endswith(b"data: [DONE]\n\n")
        assert b"usage" not in payload(clients[0])
        assert all(client.sent.endswith(b"0\r\n\r\n") for client in clients)
        assert [record.status for record in stage.records] == [200] * 5
        assert {record.bytes_out for record in stage.records} == {len(payload(clients[0]))}
        assert len(stage.gateway.flights) == 0

    run(story)


def test_forms_are_kept_apart() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join(), stage.join(usage=True), stage.join(minor=0), stage.join(), stage.join(usage=True)]
        for number in range(4):
            stage.say(event(f"word {number}"))
        stage.end()
        plain, told, old, again, told_again = (payload(client) for client in clients)
        assert plain == old == again
        assert told == told_again
        assert told.replace(USAGE, b"") == plain != told
        assert b"chunked" not in clients[2].sent.lower()
        assert [record.bytes_out for record in stage.records] == [len(payload(client)) for client in clients]

    run(story)


def test_who_does_not_read_holds_nobody_up_and_is_given_the_rest_later() -> None:
    async def story(stage: Stage) -> None:
        slow, quick = stage.join(), stage.join()
        stage.say(event("first"))
        slow.room = len(slow.sent) + 300
        for number in range(50):
            stage.say(event(f"word {number}"))
        held = len(slow.sent)
        assert held < slow.room + 200
        assert b"word 49" in quick.sent
        slow.drain()
        assert payload(slow) == payload(quick)
        stage.say(event("together again"))
        assert payload(slow) == payload(quick)
        slow.room = len(slow.sent)
        stage.say(event("slow again"), event("and more"))
        stage.end()
        assert quick.sent.endswith(b"0\r\n\r\n")
        assert not slow.sent.endswith(b"0\r\n\r\n")
        slow.drain()
        assert slow.sent.endswith(b"0\r\n\r\n")
        assert payload(slow) == payload(quick)
        stage.gateway.settle()
        assert [record.bytes_out for record in stage.records] == [len(payload(quick))] * 2

    run(story)


def test_late_ones_are_given_what_came_before_and_then_what_comes() -> None:
    async def story(stage: Stage) -> None:
        first = stage.join()
        stage.say(event("early"))
        for number in range(1000):
            stage.say(event(f"word {number}" * 10))
        late = stage.join()
        assert late.writes < 10
        assert payload(late) == payload(first)
        stage.say(event("live"))
        assert payload(late) == payload(first)
        stage.end()
        assert payload(late) == payload(first)

    run(story)


@pytest.mark.parametrize("leaves", [0, 1, 2])
def test_who_leaves_a_row_harms_nobody(leaves: int) -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join() for _ in range(3)]
        stage.say(event("first"))
        stage.say(event("second"))
        gone = clients.pop(leaves)
        gone.closing = True
        stage.say(event("while it goes"))
        assert gone.client is not None
        gone.client.connection_lost(None)
        stage.say(event("third"))
        stage.end()
        assert payload(clients[0]) == payload(clients[1])
        assert payload(clients[0]).endswith(b"data: [DONE]\n\n")
        assert b"third" not in gone.sent
        assert sorted(record.status for record in stage.records) == [200, 200, 499]

    run(story)


def test_a_stream_that_breaks_is_told_to_the_whole_row() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join() for _ in range(3)]
        stage.say(event("first"))
        stage.say(event("second"))
        stage.provider.connection_lost(ConnectionResetError())
        stage.flush()
        for client in clients:
            assert b"upstream_stream_error" in payload(client)
            assert not client.sent.endswith(b"0\r\n\r\n")
            assert client.closing

    run(story)


BIG = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"' + b"x" * 200_000


def test_no_error_is_told_within_an_event() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join(), stage.join(usage=True), stage.join(minor=0), stage.join()]
        stage.say(event("first"))
        stage.say(event("second"))
        slow = clients[3]
        slow.room = len(slow.sent)
        stage.say(BIG)
        clients.append(stage.join())
        stage.provider.connection_lost(ConnectionResetError())
        stage.flush()
        slow.drain()
        for client in clients:
            assert b"xxx" in client.sent
            assert b"error" not in client.sent
            assert not client.sent.endswith(b"0\r\n\r\n")
            assert client.closing
        stage.gateway.settle()
        assert {record.code for record in stage.records} == {"upstream_stream_error"}

    run(story)


def test_an_error_is_told_after_an_event_that_came_in_pieces() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join(), stage.join(minor=0)]
        stage.say(event("first"))
        stage.say(BIG)
        stage.say(b'"}}]}\n\n')
        stage.provider.connection_lost(ConnectionResetError())
        stage.flush()
        assert all(b"upstream_stream_error" in payload(client) for client in clients)

    run(story)


def test_a_long_stream_that_names_usage_in_every_piece_is_let_go_of() -> None:
    async def story(stage: Stage) -> None:
        clients = [stage.join(), stage.join(), stage.join(usage=True)]
        stage.say(event("first"))
        text = "word " * 6_000
        tracemalloc.start()
        try:
            for number in range(400):
                piece = event(f"{number} {text}")
                stage.say(piece.replace(b"}]}", b'}], "usage": null}'))
                assert all(text.encode() in client.sent for client in clients)
                for client in clients:
                    client.sent = b""
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # 12 MB have passed; what is held is what a follower may be behind, at most.
        assert held < 1_500_000
        stage.end()
        assert all(client.sent.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for client in clients)

    run(story)


@pytest.mark.parametrize("more", [0, 1])
def test_a_long_stream_waits_no_longer_for_who_has_left(more: int) -> None:
    async def story(stage: Stage) -> None:
        slow, quick = stage.join(), stage.join()
        others = [stage.join() for _ in range(more)]
        stage.say(event("first"))
        slow.room = len(slow.sent)
        for number in range(400):
            if not stage.wire.reading:
                break
            stage.say(event(f"{number} " + "word " * 6_000))
        assert not stage.wire.reading
        for other in others:
            assert other.client is not None
            other.client.connection_lost(None)
            assert not stage.wire.reading
        assert slow.client is not None
        slow.client.connection_lost(None)
        assert stage.wire.reading
        stage.end()
        assert quick.sent.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    run(story)


def test_a_long_stream_does_not_wait_for_who_wants_it_whole() -> None:
    async def story(stage: Stage) -> None:
        quick = stage.join()
        stage.say(event("first"))
        whole = stage.join(stream=False)
        assert len(stage.gateway.flights) == 1
        for number in range(200):
            stage.say(event(f"{number} " + "word " * 6_000))
            assert stage.wire.reading
        stage.end()
        assert quick.sent.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        # It asks alone, as a connection is dialled which nobody answers here.
        assert not whole.sent
        assert whole.client is not None
        whole.client.connection_lost(None)
        stage.gateway.settle()
        assert sorted(record.status for record in stage.records) == [200, 499]

    run(story)
