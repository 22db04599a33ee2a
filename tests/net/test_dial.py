"""Connecting: where to, within which time, through what, and nothing left behind. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trustme
import uvloop

from dandolo.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from dandolo.net import dial as dialing
from dandolo.net.dial import Destination, Dialer, ForwardProxy, refused_address

TIMEOUT_S = 5.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)

    return go


async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def serving(handler: Handler = quiet, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.02)


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def black_hole() -> AsyncIterator[int]:
    """A port whose queue is full: SYNs are dropped, as in front of a dead machine."""
    listener = socket.socket()
    fillers = []
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        await asyncio.sleep(0.02)
        yield port
    finally:
        for sock in (listener, *fillers):
            sock.close()


def resolving(dialer: Dialer, *addresses: tuple[str, int]) -> None:
    async def resolve(host: str, port: int) -> list[Any]:
        return [(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)) for host, port in addresses]

    dialer.resolve = resolve  # type: ignore[method-assign]


async def failure(
    destination: Destination,
    timeout_s: float = TIMEOUT_S,
    dialer: Dialer | None = None,
    kind: type[UpstreamError] = UpstreamUnavailable,
) -> str:
    with pytest.raises(kind) as caught:
        await (dialer or Dialer()).dial(destination, timeout_s)
    return caught.value.message


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def settled(count: int) -> int:
    for _ in range(200):
        if descriptors() <= count:
            break
        await asyncio.sleep(0.01)
    return descriptors()


def test_a_connection_carries_bytes_both_ways(run: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        await quiet(reader, writer)

    async def main() -> None:
        async with serving(answer) as port:
            connection = await Dialer().dial(Destination("127.0.0.1", port), TIMEOUT_S)
            waiter = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"")
            while not waiter.done:
                await asyncio.sleep(0.001)
            assert connection.usable
            assert not connection.secure
            connection.close()

    run(main())


def test_a_refused_connection_is_unavailable_and_leaves_nothing(run: Any) -> None:
    async def main() -> None:
        port = unused_port()
        await failure(Destination("127.0.0.1", port))
        before = descriptors()
        assert str(port) in await failure(Destination("127.0.0.1", port))
        assert await settled(before) <= before

    run(main())


def test_a_black_hole_ends_with_the_deadline(run: Any) -> None:
    async def main() -> None:
        async with black_hole() as port:
            before = descriptors()
            assert "within 0.1 s" in await failure(Destination("127.0.0.1", port), 0.1, kind=UpstreamTimeout)
            assert await settled(before) <= before

    run(main())


def test_cancelling_closes_what_was_half_open(run: Any) -> None:
    async def main() -> None:
        async with black_hole() as port:
            before = descriptors()
            task = asyncio.ensure_future(Dialer().dial(Destination("127.0.0.1", port), 60.0))
            while descriptors() == before:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await settled(before) <= before

    run(main())


def test_a_second_address_is_tried_beside_a_stuck_first(run: Any) -> None:
    async def main() -> None:
        async with black_hole() as stuck, serving() as port:
            before = descriptors()
            dialer = Dialer()
            resolving(dialer, ("127.0.0.1", stuck), ("127.0.0.1", port))
            connection = await dialer.dial(Destination("p.example", 1), TIMEOUT_S)
            assert connection.transport.get_extra_info("peername")[1] == port
            connection.close()
            assert await settled(before) <= before

    run(main())


def test_a_second_address_is_tried_at_once_after_a_refusal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "SECOND_TRY_S", 1000.0)

    async def main() -> None:
        async with serving() as port:
            dialer = Dialer()
            resolving(dialer, ("127.0.0.1", unused_port()), ("127.0.0.1", port))
            (await dialer.dial(Destination("p.example", 1), TIMEOUT_S)).close()

    run(main())


def test_no_address_at_all_is_unavailable() -> None:
    async def main() -> None:
        dialer = Dialer()
        resolving(dialer)
        assert "no address" in await failure(Destination("p.example", 1), dialer=dialer)

    asyncio.run(main())


# -- addresses that are refused ------------------------------------------------------------------------

REFUSED = [
    "169.254.169.254", "169.254.1.1", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
    "::ffff:169.254.169.254", "0.0.0.0", "::", "224.0.0.1", "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_link_local_and_metadata_addresses_are_refused_after_resolving(address: str) -> None:
    async def main() -> None:
        dialer = Dialer()
        resolving(dialer, (address, 80))
        assert "refused" in await failure(Destination("innocent.example", 80), dialer=dialer)

    assert refused_address(address)
    asyncio.run(main())


@pytest.mark.parametrize("address", REFUSED[:5])
def test_a_forward_proxy_is_not_asked_for_such_an_address_either(address: str) -> None:
    async def main() -> None:
        proxy = ForwardProxy("127.0.0.1", unused_port(), None)
        assert "refused" in await failure(Destination(address, 80, proxy=proxy))

    asyncio.run(main())


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "::1", "fd12::1", "8.8.8.8", "2606::1"])
def test_other_addresses_are_not_refused(address: str) -> None:
    assert not refused_address(address)


def test_good_addresses_beside_a_refused_one_are_used() -> None:
    async def main() -> None:
        async with serving() as port:
            dialer = Dialer()
            resolving(dialer, ("169.254.169.254", 80), ("127.0.0.1", port))
            (await dialer.dial(Destination("p.example", 1), TIMEOUT_S)).close()

    asyncio.run(main())


def test_what_is_configured_as_meant_is_tried() -> None:
    async def main() -> None:
        dialer = Dialer()
        resolving(dialer, ("0.0.0.0", unused_port()))
        message = await failure(Destination("p.example", 1, link_local_allowed=True), dialer=dialer)
        assert "link-local" not in message

    asyncio.run(main())


# -- names ---------------------------------------------------------------------------------------------


class Resolver:
    """A name service that answers as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.answer: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]
        self.hangs = False
        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", self._ask)

    async def _ask(self, *_: object, **__: object) -> Any:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_addresses_are_kept_for_their_time_and_the_last_good_ones_on_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        resolver, dialer = Resolver(monkeypatch), Dialer()
        first = await dialer.resolve("p.example", 80)
        assert await dialer.resolve("p.example", 80) == first
        assert resolver.asked == 1
        monkeypatch.setattr(dialing, "DNS_TTL_S", 0.0)
        resolver.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
        dialer._addresses["p.example", 80] = (0.0, first)
        assert await dialer.resolve("p.example", 80) == first
        assert resolver.asked == 2
        resolver.answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 80))]
        assert (await dialer.resolve("p.example", 80))[0][1] == ("127.0.0.2", 80)

    asyncio.run(main())


def test_a_name_service_that_hangs_does_not_take_the_last_good_addresses_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "STALE_WAIT_S", 0.01)

    async def main() -> None:
        resolver, dialer = Resolver(monkeypatch), Dialer()
        first = await dialer.resolve("p.example", 80)
        dialer._addresses["p.example", 80] = (0.0, first)
        resolver.hangs = True
        for _ in range(5):
            assert await dialer.resolve("p.example", 80) == first
        assert resolver.asked == 2

    asyncio.run(main())


def test_many_who_ask_at_once_ask_once_and_one_who_leaves_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        resolver, dialer = Resolver(monkeypatch), Dialer()
        asking = [asyncio.ensure_future(dialer.resolve("p.example", 80)) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(isinstance(item, list) for item in found[1:])
        assert resolver.asked == 1

    asyncio.run(main())


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved_is_unavailable(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def main() -> None:
        Resolver(monkeypatch).answer = error
        assert "cannot be resolved" in await failure(Destination("x" * 70 + ".example", 80))

    asyncio.run(main())


def test_what_is_kept_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        Resolver(monkeypatch)
        dialer = Dialer()
        for i in range(2500):
            await dialer.resolve(f"p{i}.example", 80)
        assert len(dialer._addresses) <= 1026
        assert not dialer._lookups

    asyncio.run(main())


# -- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize(
    ("name", "trusted", "expected"),
    [("p.example", True, None), ("other.example", True, "not accepted"), ("p.example", False, "not accepted")],
    ids=["good", "wrong-name", "untrusted"],
)
def test_certificates_are_verified(
    run: Any, authority: trustme.CA, name: str, trusted: bool, expected: str | None
) -> None:
    async def main() -> None:
        server, client = contexts(authority, name)
        if not trusted:
            client = ssl.create_default_context()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's view of a refusal
        async with serving(tls=server) as port:
            dialer = Dialer()
            resolving(dialer, ("127.0.0.1", port))
            destination = Destination("p.example", port, tls=client)
            before = descriptors()
            if expected is None:
                connection = await dialer.dial(destination, TIMEOUT_S)
                assert connection.secure
                connection.close()
            else:
                assert expected in await failure(destination, dialer=dialer)
            assert await settled(before) <= before

    run(main())


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28"])
def test_a_server_that_speaks_no_tls_is_unavailable(run: Any, greeting: bytes) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(greeting)
        writer.close()

    async def main() -> None:
        async with serving(plain) as port:
            before = descriptors()
            await failure(Destination("127.0.0.1", port, tls=ssl.create_default_context()))
            assert await settled(before) <= before

    run(main())


def test_a_handshake_that_never_ends_ends_with_the_deadline(run: Any) -> None:
    async def main() -> None:
        async with serving() as port:
            before = descriptors()
            destination = Destination("127.0.0.1", port, tls=ssl.create_default_context())
            assert "within" in await failure(destination, 0.1, kind=UpstreamTimeout)
            assert await settled(before) <= before

    run(main())


# -- forward proxies -----------------------------------------------------------------------------------

PROXY_ANSWERS = [
    ("200", b"HTTP/1.1 200 Connection established\r\n\r\n", None),
    ("200-in-1.0-without-reason", b"HTTP/1.0 200\r\n\r\n", None),
    ("200-with-headers", b"HTTP/1.1 200 OK\r\nVia: x\r\nX: y\r\n\r\n", None),
    ("407", b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", "407"),
    ("403", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403"),
    ("302", b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\n\r\n", "302"),
    ("101", b"HTTP/1.1 101 Switching\r\n\r\n", "101"),
    ("200-and-bytes", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx", "refused CONNECT"),
    ("garbage", b"SSH-2.0-OpenSSH\r\n\r\n", "no status"),
    ("http-2", b"HTTP/2 200\r\n\r\n", "refused CONNECT"),
    ("status-of-four", b"HTTP/1.1 2000 OK\r\n\r\n", "refused CONNECT"),
    ("endless", b"x" * 70_000, "no answer"),
    ("cut", b"HTTP/1.1 200 OK\r\n", "no answer"),
    ("nothing", b"", "no answer"),
]


@pytest.mark.parametrize(("answer", "expected"), [c[1:] for c in PROXY_ANSWERS], ids=[c[0] for c in PROXY_ANSWERS])
def test_a_forward_proxys_answer_is_read_strictly(run: Any, answer: bytes, expected: str | None) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if expected is None:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
            await writer.drain()
        except OSError:
            pass
        writer.close()

    async def main() -> None:
        async with serving(proxy) as port:
            before = descriptors()
            through = ForwardProxy.parse(f"http://us%40er:p%3Aw@127.0.0.1:{port}")
            destination = Destination("p.example", 443, proxy=through)
            if expected is not None:
                message = await failure(destination)
                assert expected in message
                assert "evil" not in message
            else:
                connection = await Dialer().dial(destination, TIMEOUT_S)
                waiter = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"")
                while not waiter.done:
                    await asyncio.sleep(0.001)
                assert connection.response is not None
                connection.close()
            assert await settled(before) <= before

    run(main())
    assert seen[0] == (
        b"CONNECT p.example:443 HTTP/1.1\r\nHost: p.example:443\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n"
    )


def test_a_proxy_that_never_answers_ends_with_the_deadline(run: Any) -> None:
    async def main() -> None:
        async with serving() as port:
            before = descriptors()
            proxy = ForwardProxy("127.0.0.1", port, None)
            destination = Destination("p.example", 443, proxy=proxy)
            assert "within" in await failure(destination, 0.1, kind=UpstreamTimeout)
            assert await settled(before) <= before

    run(main())


def test_a_host_that_is_no_ascii_never_reaches_a_proxy() -> None:
    async def main() -> None:
        async with serving() as port:
            await failure(Destination("é.example", 443, proxy=ForwardProxy("127.0.0.1", port, None)))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy:8080", ForwardProxy("proxy", 8080, None)),
        ("proxy", ForwardProxy("proxy", 3128, None)),
        ("proxy:1", ForwardProxy("proxy", 1, None)),
        ("http://[::1]:9", ForwardProxy("::1", 9, None)),
        ("http://u:p@proxy", ForwardProxy("proxy", 3128, "Basic dTpw")),
        ("http://u@proxy", ForwardProxy("proxy", 3128, "Basic dTo=")),
    ],
)
def test_proxy_urls_are_understood(url: str, expected: ForwardProxy) -> None:
    assert ForwardProxy.parse(url) == expected
