"""TLS over real sockets: backpressure, half-closes, ends that are none, and handshakes that never come to one."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop

from dandolo.errors import UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from dandolo.net import tls
from dandolo.net.dial import Destination, Dialer
from dandolo.net.sockets import reset_on_close
from dandolo.net.tls import TlsTransport
from dandolo.wire.tls import Session, harden

TIMEOUT_S = 3.0
MIB = 1 << 20


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs to the end; whatever the loop would have logged as unhandled fails the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def watched(main: Coroutine[Any, Any, None]) -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unhandled.append(what))
        async with asyncio.timeout(20):
            await main
        assert not unhandled

    def go(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(watched(main))

    return go


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return harden(server), harden(client)


class Within(asyncio.Protocol):
    """The protocol within: keeps what happens to it."""

    def __init__(self) -> None:
        self.transport: TlsTransport
        self.received = bytearray()
        self.happened: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda _: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        self.received += data
        self.on_data(data)
        self.changed.set()

    def eof_received(self) -> bool:
        self.happened.append("eof")
        self.changed.set()
        return False

    def pause_writing(self) -> None:
        self.happened.append("pause")
        self.changed.set()

    def resume_writing(self) -> None:
        self.happened.append("resume")
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.happened.append("lost")
        self.lost.set_result(exc)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Peer:
    """The other side, by hand: a session on a plain stream, so that every byte and every end is ours to choose."""

    def __init__(
        self, context: ssl.SSLContext, host: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.session = Session(context, host)
        self.reader, self.writer = reader, writer
        self.received = bytearray()

    async def shake(self, piece: int = 1 << 20) -> None:
        done = self.session.handshake()
        while True:
            await self.send(self.session.drain(), piece)
            if done:
                self.received += self.session.rest()
                return
            data = await self.reader.read(65536)
            assert data, "the connection ended within the handshake"
            done = self.session.handshake(data)

    async def send(self, ciphertext: bytes, piece: int = 1 << 20) -> None:
        for start in range(0, len(ciphertext), piece):
            self.writer.write(ciphertext[start : start + piece])
            await self.writer.drain()
            if piece < len(ciphertext):
                await asyncio.sleep(0)  # a read of its own for each

    def record(self, content: bytes) -> bytes:
        self.session.encrypt(content)
        return self.session.drain()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until it is so, or until the end."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                data = await self.reader.read(65536)
                if not data:
                    return
                self.received += self.session.receive(data)

    async def until_end(self) -> bool:
        """Read everything; whether the other side has said that it is all."""
        await self.until(lambda: False)
        return self.session.ended and self.session.failure is None


@asynccontextmanager
async def connected(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    *,
    receive_bytes: int = 0,
    piece: int = 1 << 20,
    ours: str = "server",
) -> AsyncIterator[tuple[Within, Peer]]:
    """One connection: our side is the server's, or the client's."""
    context, others = contexts if ours == "server" else contexts[::-1]
    host = None if ours == "server" else "localhost"
    made: asyncio.Future[Within] = asyncio.get_running_loop().create_future()

    def opened() -> Within:
        within = Within()
        made.set_result(within)
        return within

    server = await asyncio.get_running_loop().create_server(
        lambda: TlsTransport(context, host, opened, made.set_exception), "127.0.0.1", 0
    )
    sock = socket.socket()
    sock.setblocking(False)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(sock, server.sockets[0].getsockname())
    peer = Peer(
        others, "localhost" if ours == "server" else None, *await asyncio.open_connection(sock=sock, limit=4096)
    )
    try:
        await peer.shake(piece)
        yield await made, peer
    finally:
        peer.writer.transport.abort()
        server.close()
        await server.wait_closed()
        if made.done() and made.exception() is None:
            await asyncio.wait_for(asyncio.shield(made.result().lost), TIMEOUT_S)


# -- content ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 13, 1 << 20])
def test_content_passes_both_ways_in_any_pieces(run: Any, contexts: Any, piece: int) -> None:
    async def main() -> None:
        async with connected(contexts, piece=piece) as (within, peer):
            within.on_data = lambda data: within.transport.write(data.upper())
            await peer.send(peer.record(b"a") + peer.record(b"b" * 600), piece)
            await peer.until(lambda: len(peer.received) == 601)
            assert within.received == b"a" + b"b" * 600
            assert peer.received == b"A" + b"B" * 600
            within.transport.close()
            assert await peer.until_end()
        assert within.lost.result() is None

    run(main())


def test_large_content_passes_both_ways(run: Any, contexts: Any) -> None:
    content = os.urandom(3 * MIB)

    async def main() -> None:
        async with connected(contexts) as (within, peer):
            sending = asyncio.create_task(
                peer.send(b"".join(peer.record(content[i : i + 16000]) for i in range(0, len(content), 16000)))
            )
            await within.until(lambda: len(within.received) == len(content))
            await sending
            assert within.received == content
            within.transport.writelines([content[:100], b"", bytearray(content[100:])])
            await peer.until(lambda: len(peer.received) == len(content))
            assert peer.received == content

    run(main())


def test_what_came_with_the_handshakes_last_flight_is_delivered(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            await peer.send(peer.record(b"x"))
            await within.until(lambda: bool(within.received))
        session = Session(contexts[1], "localhost")
        got = bytearray()
        made: list[Within] = []

        def opened() -> Within:
            made.append(Within())
            made[0].on_data = got.extend
            return made[0]

        server = await asyncio.get_running_loop().create_server(
            lambda: TlsTransport(contexts[0], None, opened, lambda _: None), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        session.handshake()
        writer.write(session.drain())
        while not session.handshake(await reader.read(65536)):
            pass
        last_flight = session.drain()
        session.encrypt(b"early")
        writer.write(last_flight + session.drain() + session.end())
        async with asyncio.timeout(TIMEOUT_S):
            while not made:
                await asyncio.sleep(0.001)
            await made[0].lost
        assert got == b"early"
        assert made[0].happened == ["eof", "lost"]
        writer.close()
        server.close()

    run(main())


# -- backpressure ----------------------------------------------------------------------------------------------


def test_a_large_write_waits_unencrypted_and_goes_on(run: Any, contexts: Any) -> None:
    content = os.urandom(8 * MIB)

    async def main() -> None:
        async with connected(contexts, receive_bytes=8192) as (within, peer):
            transport = within.transport
            transport.set_write_buffer_limits(high=65536, low=16384)
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.write(content)
            transport.write(b"the end")
            assert within.happened == ["pause"]
            raw = transport._raw
            # Of ciphertext there is no more than the mark and one joined write.
            assert raw.get_write_buffer_size() <= 65536 + tls.JOINED_RECORDS * 17_000
            assert MIB < transport.get_write_buffer_size() <= len(content) + MIB
            await peer.until(lambda: len(peer.received) == len(content) + 7)
            assert peer.received == content + b"the end"
            await within.until(lambda: within.happened == ["pause", "resume"])
            assert transport.get_write_buffer_size() == 0
            transport.write(b"and again")
            await peer.until(lambda: peer.received.endswith(b"and again"))

    run(main())


def test_closing_sends_what_was_written_first(run: Any, contexts: Any) -> None:
    content = os.urandom(4 * MIB)

    async def main() -> None:
        async with connected(contexts, receive_bytes=8192) as (within, peer):
            within.transport.write(content)
            within.transport.close()
            assert within.transport.is_closing()
            within.transport.write(b"too late")
            assert await peer.until_end()
            assert peer.received == content

    run(main())


@pytest.mark.parametrize("ours", ["server", "client"])
def test_a_pause_in_the_middle_bounds_what_is_held(run: Any, contexts: Any, ours: str) -> None:
    content = os.urandom(6 * MIB)

    async def main() -> None:
        async with connected(contexts, ours=ours) as (within, peer):
            largest = 0

            def on_data(data: bytes) -> None:
                nonlocal largest
                largest = max(largest, len(data) if within.transport._sips else 0)
                within.transport.pause_reading()

            within.on_data = on_data
            records = b"".join(peer.record(content[i : i + 16000]) for i in range(0, len(content), 16000))
            sending = asyncio.create_task(peer.send(records))
            await within.until(lambda: bool(within.received))
            while len(within.received) < len(content):
                held = len(within.received)
                assert not within.transport.is_reading()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert len(within.received) == held, "it was delivered in spite of the pause"
                within.transport.resume_reading()
                await within.until(lambda held=held: len(within.received) > held)  # type: ignore[misc]
            await sending
            within.transport.resume_reading()
            assert within.received == content
            # A client's streams come in sips; what a server is sent is bounded by the loop's own reads.
            assert 0 < largest <= (256_000 if ours == "server" else tls.SIP_BYTES_MAX) + 16384

    run(main())


def test_a_pause_before_the_first_content_holds_it(run: Any, contexts: Any) -> None:
    class Shy(Within):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async def main() -> None:
        made: list[Shy] = []

        def opened() -> Shy:
            made.append(Shy())
            return made[0]

        server = await asyncio.get_running_loop().create_server(
            lambda: TlsTransport(contexts[0], None, opened, lambda _: None), "127.0.0.1", 0
        )
        session = Session(contexts[1], "localhost")
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        session.handshake()
        writer.write(session.drain())
        while not session.handshake(await reader.read(65536)):
            pass
        flight = session.drain()
        session.encrypt(b"early")
        writer.write(flight + session.drain())
        while not made:
            await asyncio.sleep(0.001)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not made[0].received
        made[0].transport.resume_reading()
        await made[0].until(lambda: made[0].received == b"early")
        writer.close()
        await asyncio.wait_for(made[0].lost, TIMEOUT_S)
        server.close()

    run(main())


# -- ends ------------------------------------------------------------------------------------------------------


def test_half_close_says_the_end_and_goes_on_receiving(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            assert within.transport.can_write_eof()
            within.transport.write(b"last words")
            within.transport.write_eof()
            assert not within.transport.is_closing()
            with pytest.raises(RuntimeError):
                within.transport.write(b"more")
            assert await peer.until_end()
            assert peer.received == b"last words"
            await peer.send(peer.record(b"x" * 10_000))
            await within.until(lambda: len(within.received) == 10_000)
            await peer.send(peer.session.end())
            await within.until(lambda: within.happened == ["eof", "lost"])
        assert within.lost.result() is None

    run(main())


def test_half_close_towards_a_peer_that_has_gone_is_a_loss_and_no_fault(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            within.transport.write(b"last words")
            # With all of it read the peer's end is no reset.
            await peer.until(lambda: peer.received == b"last words")
            peer.writer.transport.abort()
            # The peer's socket is closed in this turn of the loop; ours hears of it in the next. What says the end
            # is then answered with a reset, before the half-close.
            await asyncio.sleep(0)
            within.transport.write_eof()
            await within.until(lambda: "lost" in within.happened)

    run(main())


def test_a_broken_record_after_a_half_close_is_a_loss(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            within.transport.write_eof()
            await peer.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            await within.until(lambda: within.happened == ["lost"])
        assert isinstance(within.lost.result(), ssl.SSLError)

    run(main())


def test_half_close_waits_for_what_was_written(run: Any, contexts: Any) -> None:
    content = os.urandom(4 * MIB)

    async def main() -> None:
        async with connected(contexts, receive_bytes=8192) as (within, peer):
            within.transport.write(content)
            within.transport.write_eof()
            assert await peer.until_end()
            assert peer.received == content
            within.transport.close()
            await within.until(lambda: "lost" in within.happened)

    run(main())


def test_an_end_that_was_said_is_an_end(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            await peer.send(peer.record(b"all") + peer.session.end())
            await within.until(lambda: within.happened == ["eof", "lost"])
            assert within.received == b"all"
            assert await peer.until_end()
        assert within.lost.result() is None

    run(main())


@pytest.mark.parametrize("within_a_record", [False, True])
def test_an_end_that_was_not_said_is_a_loss(run: Any, contexts: Any, within_a_record: bool) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            data = peer.record(b"some") + peer.record(b"never whole")
            await peer.send(data[: -5 if within_a_record else None])
            peer.writer.write_eof()
            await within.until(lambda: "lost" in within.happened)
            assert within.happened == ["lost"]
            assert within.received == (b"some" if within_a_record else b"somenever whole")
        assert isinstance(within.lost.result(), ConnectionResetError)

    run(main())


def test_a_broken_record_is_a_loss_and_told_to_the_peer(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            bad = bytearray(peer.record(b"bad"))
            bad[-1] ^= 1
            await peer.send(bytes(bad))
            assert not await peer.until_end()
            assert peer.session.failure is not None, "no alert came"
            await within.until(lambda: within.happened == ["lost"])
        assert isinstance(within.lost.result(), ssl.SSLError)

    run(main())


@pytest.mark.parametrize("how", ["abort", "reset"])
def test_what_is_cut_does_not_look_complete(run: Any, contexts: Any, how: str) -> None:
    async def main() -> None:
        async with connected(contexts) as (within, peer):
            within.transport.write(b"half of it")
            await peer.until(lambda: bool(peer.received))
            if how == "abort":
                within.transport.abort()
            else:
                reset_on_close(within.transport)
                within.transport.close()
            try:
                assert not await peer.until_end()
            except ConnectionResetError:
                pass
            assert not peer.session.ended
            await within.until(lambda: "lost" in within.happened)
            within.transport.write(b"to nobody")
            within.transport.close()
            within.transport.abort()
        assert within.lost.result() is None

    run(main())


# -- a provider's side -----------------------------------------------------------------------------------------


@asynccontextmanager
async def provider(
    context: ssl.SSLContext, answer: Callable[[Session], bytes], *, handshake: bool = True
) -> AsyncIterator[int]:
    """A provider that does the handshake, reads something, sends what it is told to and ends its socket."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(context, None)
        try:
            done = False
            while handshake and not done:
                flight = await reader.read(65536)
                if not flight:
                    return
                done = session.handshake(flight)
                writer.write(session.drain())
            request = session.rest() if handshake else b""
            while not request and (data := await reader.read(65536)):
                request = session.receive(data) if handshake else data
            writer.write(answer(session))
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def until_closed(said: bool) -> Callable[[Session], bytes]:
    def answer(session: Session) -> bytes:
        session.encrypt(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}")
        return session.drain() + (session.end() if said else b"")

    return answer


@pytest.mark.parametrize("said", [True, False])
def test_a_body_until_the_end_is_complete_only_if_the_end_was_said(run: Any, contexts: Any, said: bool) -> None:
    async def main() -> None:
        async with provider(contexts[0], until_closed(said)) as port:
            connection = await Dialer().dial(Destination("localhost", port, tls=contexts[1]), TIMEOUT_S)
            waiter = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"")
            async with asyncio.timeout(TIMEOUT_S):
                while not waiter.done:
                    await asyncio.sleep(0.001)
            outcome: list[Any] = []
            waiter.then(outcome.append, outcome.append)
            if said:
                assert outcome == [b"{}"]
            else:
                assert isinstance(outcome[0], UpstreamInvalid)
            assert connection.closed

    run(main())


def test_a_provider_that_ends_within_the_handshake_is_unavailable_and_said_to(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with provider(contexts[0], lambda _: b"", handshake=False) as port:
            with pytest.raises(UpstreamUnavailable, match="ended within the TLS handshake"):
                await Dialer().dial(Destination("localhost", port, tls=contexts[1]), TIMEOUT_S)

    run(main())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_dial_that_is_cancelled_at_any_moment_leaves_nothing(run: Any, contexts: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with provider(contexts[0], lambda _: b"") as port:
            dialer = Dialer()
            await dialer.resolve("localhost", port)
            destination = Destination("localhost", port, tls=contexts[1])
            finished = 0
            before = None
            for turns in range(60):
                task = loop.create_task(dialer.dial(destination, TIMEOUT_S))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    (await task).close()
                    finished += 1
                except asyncio.CancelledError:
                    pass
                async with asyncio.timeout(TIMEOUT_S):
                    # The provider's side ends too; then there is what there was.
                    while before is not None and descriptors() > before:
                        await asyncio.sleep(0.001)
                    while len(asyncio.all_tasks()) > 1:
                        await asyncio.sleep(0.001)
                before = before or descriptors()
            # Some were cancelled within, and some were too quick for it.
            assert finished < 60

    run(main())


def test_a_dials_deadline_ends_a_handshake_that_trickles(run: Any, contexts: Any) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(contexts[0], None)
        session.handshake(await reader.read(65536))
        try:
            for byte in session.drain():
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UpstreamTimeout):
            await Dialer().dial(Destination("localhost", port, tls=contexts[1]), 0.2)
        server.close()
        await server.wait_closed()

    run(main())


# -- clients that come to no handshake ---------------------------------------------------------------------------

BAD = [
    ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("zeros", bytes(600)),
    ("record-of-nonsense", b"\x16\x03\x01\x00\x05hello"),
    ("record-too-long", b"\x16\x03\x01\xff\xff" + bytes(70_000)),
    ("alert", b"\x15\x03\x01\x00\x02\x02\x28"),
    ("old-version", b"\x16\x03\x00\x00\x2f\x01\x00\x00\x2b\x03\x00" + bytes(41)),
    ("nothing", b""),
]


@asynccontextmanager
async def listening(context: ssl.SSLContext, handshake_s: float = 30.0) -> AsyncIterator[tuple[int, list[Exception]]]:
    failures: list[Exception] = []

    def opened() -> Within:
        raise AssertionError("no handshake should have succeeded")

    server = await asyncio.get_running_loop().create_server(
        lambda: TlsTransport(context, None, opened, failures.append, handshake_s=handshake_s), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1], failures
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("garbage", [bad[1] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_garbage_ends_without_a_word_in_the_log(
    run: Any, contexts: Any, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with listening(contexts[0]) as (port, failures):
            for ending in ("wait", "eof", "abort"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(garbage)
                if ending == "abort" or (ending == "wait" and not garbage):
                    await writer.drain()
                    writer.transport.abort()
                elif ending == "eof":
                    writer.write_eof()
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        # At most an alert.
                        assert len(await reader.read()) <= 7
                except ConnectionError:
                    pass
                writer.close()
            async with asyncio.timeout(TIMEOUT_S):
                while len(failures) < 3:
                    await asyncio.sleep(0.001)
            assert all(isinstance(failure, OSError) for failure in failures)

    with caplog.at_level(logging.DEBUG):
        run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_a_slow_handshake_ends_in_time(run: Any, contexts: Any) -> None:
    async def main() -> None:
        async with listening(contexts[0], handshake_s=0.3) as (port, failures):
            session = Session(contexts[1], "localhost")
            session.handshake()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            silent_reader, silent_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for byte in session.drain():
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.005)
                assert await reader.read() == b""
            except OSError:  # with uvloop also for a write to what is closed by now
                pass
            assert await silent_reader.read() == b""
            assert [type(failure) for failure in failures] == [TimeoutError, TimeoutError]
            writer.close()
            silent_writer.close()

    run(main())


def test_a_peer_that_only_asks_for_answers_is_cut_off(run: Any, contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "UNSENT_BYTES_MAX", 100_000)

    async def main() -> None:
        async with connected(contexts, receive_bytes=4096) as (within, peer):
            # As if each record had made OpenSSL answer with much; the peer reads nothing.
            within.on_data = lambda _: within.transport._session.outgoing.write(bytes(30_000)) and None
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    while not within.lost.done():
                        await peer.send(peer.record(b"x") + peer.record(b"y"))
                        await asyncio.sleep(0)
            except ConnectionError:
                await asyncio.wait_for(asyncio.shield(within.lost), TIMEOUT_S)
        assert isinstance(within.lost.result(), ConnectionAbortedError)

    run(main())
