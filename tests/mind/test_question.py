"""One request over a real socket, read by h11: the head always, the body within bounds, the connection never kept."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop

from dandolo.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from dandolo.mind.question import INTERIM_MAX, PIECES_MAX, Reply, Request, ask
from dandolo.net.dial import Destination, Dialer
from dandolo.sim import SimProvider

TIMEOUT_S = 5.0
SOON_S = 0.2
GET = Request(b"GET /v1/models HTTP/1.1\r\nhost: h\r\nauthorization: Bearer sk-x\r\naccept: application/json\r\n")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)

    return go


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Destination]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield Destination("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.sleep(0.02)


def saying(data: bytes, then: str = "close") -> Handler:
    """Reads a head, writes `data`, and closes, resets or waits for the client to leave."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        if then == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.02)
            writer.transport.abort()
        elif then == "wait":
            await reader.read()

    return handler


def everything(status: int, head: dict[bytes, bytes]) -> int:
    return 1000


def nothing(status: int, head: dict[bytes, bytes]) -> int:
    return 0


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
HINTS = b"HTTP/1.1 103 E\r\n\r\n" * INTERIM_MAX
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("wants", [everything, nothing])
@pytest.mark.parametrize(
    ("data", "then", "status", "body"),
    [
        pytest.param(OK + b"content-length: 2\r\n\r\n{}", "wait", 200, b"{}", id="length"),
        pytest.param(OK + CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", "wait", 200, b"{}", id="chunked"),
        pytest.param(OK + b"\r\n{}", "close", 200, b"{}", id="until the end"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\n{}", "close", 200, b"{}", id="1.0"),
        pytest.param(b"HTTP/1.1 204 No\r\n\r\n", "wait", 204, b"", id="none"),
        pytest.param(b"HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "wait", 302, b"", id="redirect"),
        pytest.param(b"HTTP/1.1 503 F\r\ncontent-length: 2\r\n\r\nno", "wait", 503, b"no", id="5xx"),
        pytest.param(HINTS + OK + b"content-length: 0\r\n\r\n", "wait", 200, b"", id="interim"),
    ],
)  # fmt: skip
def test_an_answer_is_read_by_its_framing(
    run: Run, data: bytes, then: str, status: int, body: bytes, wants: Any
) -> None:
    async def main() -> None:
        async with serving(saying(data, then)) as destination:
            reply = await ask(Dialer(), destination, GET, wants, TIMEOUT_S)
            assert (reply.status, reply.problem) == (status, "")
            assert reply.body == (body if wants is everything else None)
            assert 0 < reply.connect_s <= reply.latency_s < TIMEOUT_S

    run(main())


@pytest.mark.parametrize(
    ("data", "then", "kind", "words"),
    [
        (b"", "close", UpstreamUnavailable, "before it answered"),
        (b"", "reset", UpstreamUnavailable, "reset"),
        (b"HTTP/1.1 200 OK\r\nx: y", "close", UpstreamInvalid, "before its answer was complete"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "wait", UpstreamInvalid, "not begin like HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "close", UpstreamInvalid, ""),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000, "wait", UpstreamInvalid, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx\x00: y\r\n\r\n", "wait", UpstreamInvalid, "not HTTP"),
        (OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "wait", UpstreamInvalid, "not HTTP"),
        (b"HTTP/1.1 101 S\r\nupgrade: x\r\n\r\n", "wait", UpstreamInvalid, ""),
        (b"HTTP/1.1 100 C\r\n\r\n" * (INTERIM_MAX + 1), "wait", UpstreamInvalid, "interim"),
    ],
)
def test_what_is_no_answer_is_an_error_that_shows_nothing_of_it(
    run: Run, data: bytes, then: str, kind: type[UpstreamError], words: str
) -> None:
    async def main() -> None:
        async with serving(saying(data, then)) as destination:
            with pytest.raises(kind) as caught:
                await ask(Dialer(), destination, GET, everything, TIMEOUT_S)
        assert words in caught.value.message
        assert "OpenSSH" not in caught.value.message

    run(main())


@pytest.mark.parametrize(
    ("data", "then", "problem"),
    [
        (OK + b"content-length: 5\r\n\r\n{}", "close", "before its answer was complete"),
        (OK + b"content-length: 5\r\n\r\n{}", "reset", "complete"),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n", "wait", "not HTTP"),
        (OK + b"content-length: 1001\r\n\r\n" + b"x" * 1001, "wait", "more than 1000 bytes"),
        (OK + b"\r\n" + b"x" * 1_000_000, "wait", "more than 1000 bytes"),
    ],
)
def test_a_body_that_fails_leaves_the_head(run: Run, data: bytes, then: str, problem: str) -> None:
    async def main() -> None:
        async with serving(saying(data, then)) as destination:
            reply = await ask(Dialer(), destination, GET, everything, TIMEOUT_S)
            assert (reply.status, reply.body) == (200, None)
            assert problem in reply.problem

    run(main())


def test_a_body_in_crumbs_is_given_up(run: Run) -> None:
    """Each costs as much as a large piece: a million of them would keep everybody else waiting."""
    crumbs = OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (PIECES_MAX + 1)

    async def main() -> None:
        async with serving(saying(crumbs, "wait")) as destination:
            reply = await ask(Dialer(), destination, GET, lambda status, head: 1 << 20, TIMEOUT_S)
        assert (reply.status, reply.body) == (200, None)
        assert "pieces" in reply.problem

    run(main())


def test_silence_is_bounded(run: Run) -> None:
    async def main() -> None:
        async with serving(saying(b"", "wait")) as destination:
            with pytest.raises(UpstreamTimeout, match=r"no answer within 0\.2 s"):
                await ask(Dialer(), destination, GET, everything, SOON_S)

    run(main())


@pytest.mark.parametrize("within", ["head", "body"])
def test_a_drip_is_bounded_as_a_whole(run: Run, within: str) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK if within == "head" else OK + b"content-length: 900\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(SOON_S / 10)

    async def main() -> Reply:
        async with asyncio.timeout(TIMEOUT_S), serving(drip) as destination:
            return await ask(Dialer(), destination, GET, everything, SOON_S)

    async def outcome() -> None:
        if within == "head":
            with pytest.raises(UpstreamTimeout):
                await main()
        else:
            reply = await main()
            assert (reply.status, reply.body) == (200, None)
            assert "not whole within 0.2 s" in reply.problem

    run(outcome())


def test_what_was_asked_arrives(run: Run) -> None:
    async def main() -> None:
        async with SimProvider("sim", key="sk-x") as sim:
            destination = Destination(sim.host, sim.port)
            assert (await ask(Dialer(), destination, GET, nothing, TIMEOUT_S)).status == 200
            post = Request(GET.head.replace(b"GET /v1/models", b"POST /v1/chat/completions"), b'{"model":"m"}')
            await ask(Dialer(), destination, post, nothing, TIMEOUT_S)
            listing, chat = sim.requests
            assert (listing.method, listing.target, listing.body) == ("GET", "/v1/models", b"")
            assert dict(listing.headers)["authorization"] == "Bearer sk-x"
            assert "content-length" not in dict(listing.headers)
            assert (chat.method, chat.target, chat.body) == ("POST", "/v1/chat/completions", b'{"model":"m"}')
            assert sim.protocol_errors == []
            await gone(sim)

    run(main())


async def gone(sim: SimProvider) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while sim.connections_open:
            await asyncio.sleep(0.005)


def test_tls_needs_an_authority_that_is_trusted(run: Run) -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def main() -> None:
        body = b'{"data":[]}'
        answer = OK + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        async with serving(saying(answer, "wait"), tls=server) as plain:
            secure = Destination("localhost", plain.port, tls=trusting)
            assert (await ask(Dialer(), secure, GET, everything, TIMEOUT_S)).body == body
            stranger = Destination("localhost", plain.port, tls=ssl.create_default_context())
            with pytest.raises(UpstreamUnavailable, match="certificate"):
                await ask(Dialer(), stranger, GET, everything, TIMEOUT_S)

    run(main())


def test_a_metadata_address_is_refused(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(UpstreamUnavailable, match="connect_private"):
            await ask(Dialer(), Destination("169.254.169.254", 80), GET, nothing, TIMEOUT_S)

    run(main())


def test_who_speaks_before_being_asked_is_not_believed(run: Run) -> None:
    async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"content-length: 0\r\n\r\n")
        await reader.read()

    class Slow(Dialer):
        async def dial(self, destination: Destination, timeout_s: float) -> Any:
            connection = await super().dial(destination, timeout_s)
            async with asyncio.timeout(TIMEOUT_S):
                while not connection.closed:
                    await asyncio.sleep(0.005)
            return connection

    async def main() -> None:
        async with serving(eager) as destination:
            with pytest.raises(UpstreamUnavailable, match="before it was asked"):
                await ask(Slow(), destination, GET, everything, TIMEOUT_S)

    run(main())


def test_nothing_is_left_of_a_question_that_was_given_up(run: Run) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with SimProvider("sim", script=None) as sim, serving(saying(b"", "wait")) as destination:
            await ask(Dialer(), Destination(sim.host, sim.port), GET, nothing, TIMEOUT_S)
            await gone(sim)
            before = descriptors()
            for _ in range(5):
                task = asyncio.ensure_future(ask(Dialer(), destination, GET, everything, TIMEOUT_S))
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            async with asyncio.timeout(TIMEOUT_S):
                while descriptors() > before:
                    await asyncio.sleep(0.01)

    run(main())
