"""Listening: what is opened, who is let in, and that running out of descriptors stops nothing for good."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme

from dandolo.net.downstream import DownstreamLimits
from dandolo.net.listen import Census, Listener, describe, from_systemd, open_tcp, open_unix, trusts
from dandolo.net.service import NoRepeats
from dandolo.net.sweep import Sweep
from dandolo.net.tasks import Tasks
from dandolo.wire.server import HeadLimits

LOOPBACK = (ip_network("127.0.0.0/8"),)


class Door:
    """A service that answers every request with the address it came from."""

    def __init__(self) -> None:
        self.limits = DownstreamLimits(head=HeadLimits())
        self.sweep = Sweep()
        self.draining = False
        self.repeats = NoRepeats()
        self.left = 0

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def admit(self, connection: Any, request: Any) -> int:
        return 1024

    def enter_again(self, connection: Any, request: Any) -> bool:
        return False

    def body_grew(self, connection: Any, size: int) -> None:
        pass

    def start(self, connection: Any, request: Any) -> None:
        connection.answer(200, b"", connection.peer.encode())
        connection.finish()

    def refusal(self, connection: Any, request: Any, error: Any) -> tuple[int, bytes, bytes]:
        return error.status, b"", b""

    def gone(self, connection: Any) -> None:
        self.left += 1


def listening(
    main: Callable[[int, Census, Door], Awaitable[None]],
    *,
    process: int = 100,
    per_address: int = 100,
    **options: Any,
) -> None:
    async def run() -> None:
        (sock,) = open_tcp("127.0.0.1", 0)
        census, tasks, door = Census(process, per_address), Tasks(), Door()
        listener = Listener(sock, door, census, tasks, **options)
        listener.start()
        try:
            await main(sock.getsockname()[1], census, door)
            for _ in range(200):
                if census.count == 0:
                    break
                await asyncio.sleep(0.01)
            assert census.count == 0
            assert not door.sweep.items
        finally:
            listener.close()
            await tasks.close()
            census.close()

    asyncio.run(run())


async def ask(port: int, before: bytes = b"") -> bytes:
    """What the server says to one request after `before`; b"" when it just closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(before + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_a_connection_is_served_and_counted_out() -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        answer = await ask(port)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"127.0.0.1")

    listening(main)


V2 = b"\r\n\r\n\x00\r\nQUIT\n"
PROXIED = [
    ("v1", b"PROXY TCP4 203.0.113.7 10.0.0.1 1234 80\r\n", b"203.0.113.7"),
    ("v1-six", b"PROXY TCP6 2001:db8::7 ::1 1234 80\r\n", b"2001:db8::7"),
    ("v1-unknown", b"PROXY UNKNOWN\r\n", b"127.0.0.1"),
    ("v2", V2 + b"\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x00\x00\x01\x04\xd2\x00\x50", b"203.0.113.7"),
    ("v2-local", V2 + b"\x20\x00\x00\x00", b"127.0.0.1"),
    ("none", b"", None),
    ("v1-broken", b"PROXY TCP4 garbage\r\n", None),
    ("v1-endless", b"PROXY " + b"x" * 200, None),
    ("v2-too-long", V2 + b"\x21\x11\xff\xff", None),
    ("v2-version", V2 + b"\x31\x11\x00\x00", None),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", None),
]


@pytest.mark.parametrize(("header", "expected"), [case[1:] for case in PROXIED], ids=[case[0] for case in PROXIED])
def test_a_trusted_proxy_must_say_whom_it_speaks_for(header: bytes, expected: bytes | None) -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        answer = await ask(port, header)
        if expected is None:
            assert answer == b""
        else:
            assert answer.endswith(b"\r\n\r\n" + expected)

    listening(main, proxy_protocol=True, trusted=LOOPBACK)


def test_nobody_else_is_believed_to_be_a_proxy() -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        assert b"400" in (await ask(port, PROXIED[0][1])).partition(b"\r\n")[0]
        assert (await ask(port)).endswith(b"127.0.0.1")

    listening(main, proxy_protocol=True)


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_a_client_with_tls_is_served_until_it_leaves(contexts: Any) -> None:
    server, client = contexts

    async def main(port: int, census: Census, door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"127.0.0.1")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"127.0.0.1")
        writer.close()

    listening(main, tls=server)
    assert server.options & ssl.OP_NO_RENEGOTIATION


def test_a_proxys_header_comes_before_tls(contexts: Any) -> None:
    server, client = contexts

    async def main(port: int, census: Census, door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PROXIED[0][1])
        await writer.start_tls(client, server_hostname="localhost")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"\r\n\r\n203.0.113.7")
        writer.close()

    listening(main, tls=server, proxy_protocol=True, trusted=LOOPBACK)


def test_a_refused_request_can_be_read_whole_over_tls_too(contexts: Any) -> None:
    server, client = contexts

    async def main(port: int, census: Census, door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        writer.write(b"BROKEN\r\n\r\n" + b"x" * 300_000)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"Connection: close" in answer
        writer.close()

    listening(main, tls=server)


def test_a_storm_of_handshakes_that_fail_leaves_nothing_and_no_line(
    contexts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\x00\x05hello", b""]

    async def main(port: int, census: Census, door: Door) -> None:
        async def one(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(first[number % len(first)])
                if number % 3 == 0:
                    writer.transport.abort()
                else:
                    writer.write_eof()
                assert len(await reader.read()) <= 7
            except ConnectionError:
                pass
            finally:
                writer.close()

        for start in range(0, 200, 50):
            await asyncio.gather(*(one(start + i) for i in range(50)))
        while census.count:
            await asyncio.sleep(0.001)
        assert not census._by_address

    listening(main, tls=contexts[0])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_handshake_has_the_time_of_a_head(contexts: Any) -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        door.limits = DownstreamLimits(head=HeadLimits(), header_read_s=0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        try:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        except ConnectionError:
            pass
        writer.close()

    listening(main, tls=contexts[0])


async def connected(port: int, census: Census, count: int) -> list[asyncio.StreamWriter]:
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(count)]
    while census.count < count:
        await asyncio.sleep(0.001)
    return writers


def test_beyond_one_addresss_share_a_connection_is_closed() -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        writers = await connected(port, census, 2)
        assert await ask(port) == b""
        assert census.refused == 1
        for writer in writers:
            writer.close()
        while census.count:
            await asyncio.sleep(0.001)
        assert await ask(port) != b""

    listening(main, per_address=2)


def test_trusted_proxies_have_no_share() -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        writers = await connected(port, census, 5)
        for writer in writers:
            writer.close()

    listening(main, per_address=2, trusted=LOOPBACK)


def test_beyond_the_processs_limit_a_connection_is_told_so() -> None:
    async def main(port: int, census: Census, door: Door) -> None:
        writers = await connected(port, census, 3)
        assert (await ask(port)).startswith(b"HTTP/1.1 503 busy")
        for writer in writers:
            writer.close()

    listening(main, process=3, busy_answer=lambda: b"HTTP/1.1 503 busy\r\n\r\n")


def test_a_census_never_goes_wrong_for_addresses_it_forgot() -> None:
    census = Census(10, 2)
    assert [census.enter("a", exempt=False) for _ in range(3)] == [True, True, False]
    assert census.enter("b", exempt=False)
    for address in ("a", "a", "b"):
        census.leave(address)
    assert census.count == 0
    assert not census._by_address
    census.close()
    census.close()


EXHAUSTION = """
import asyncio, logging, os, resource, socket, sys
sys.path.insert(0, {tests!r})
from dandolo.net.listen import Census, Listener, open_tcp
from dandolo.net.tasks import Tasks
import test_listen

async def main():
    logged = []
    logging.getLogger("dandolo").addHandler(type("H", (logging.Handler,), {{"emit": lambda s, r: logged.append(r)}})())
    (sock,) = open_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    census, tasks = Census(1000, 1000), Tasks()
    listener = Listener(sock, test_listen.Door(), census, tasks)
    listener.start()
    clients = [socket.socket() for _ in range(8)]
    for client in clients:
        client.setblocking(False)
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    try:
        while True:
            fill.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    loop = asyncio.get_running_loop()
    await loop.sock_connect(clients[0], ("127.0.0.1", port))
    assert await loop.sock_recv(clients[0], 10) == b"", "told by a close"
    for client in clients[1:]:
        await loop.sock_connect(client, ("127.0.0.1", port))
    await asyncio.sleep(0.35)
    assert len(logged) == 1, logged
    assert census._spare is not None
    for descriptor in fill:
        os.close(descriptor)
    late = socket.socket()
    late.setblocking(False)
    await loop.sock_connect(late, ("127.0.0.1", port))
    await loop.sock_sendall(late, b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    assert (await asyncio.wait_for(loop.sock_recv(late, 100), 5)).startswith(b"HTTP/1.1 200"), "served again"
    for sock in (*clients, late):
        sock.close()
    listener.close()
    await tasks.close()
    census.close()

asyncio.run(main())
print("ok")
"""


def script(text: str, **options: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=30, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def root() -> dict[str, str]:
    import dandolo

    return {**os.environ, "PYTHONPATH": str(Path(dandolo.__file__).parent.parent)}


def test_running_out_of_descriptors_closes_pauses_and_recovers() -> None:
    assert script(EXHAUSTION.format(tests=str(Path(__file__).parent)), env=root()) == "ok"


SYSTEMD = """
import os, socket, sys
from dandolo.net.listen import describe, from_systemd
given = socket.socket()
given.bind(("127.0.0.1", 0))
given.listen()
where = given.getsockname()
os.dup2(given.fileno(), 3)
(sock,) = from_systemd({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, os.getpid())
assert sock.getsockname() == where and sock.fileno() == 3
assert not sock.getblocking() and not sock.get_inheritable()
assert describe(sock) == "127.0.0.1:%d" % where[1]
print("ok")
"""


def test_sockets_passed_by_systemd_are_taken() -> None:
    assert script(textwrap.dedent(SYSTEMD), env=root()) == "ok"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": "7"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "x"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "-1"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "١"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "0"},
    ],
)
def test_sockets_meant_for_nobody_or_another_are_left_alone(environ: dict[str, str]) -> None:
    assert from_systemd(environ, 7) == []


# -- unix sockets --------------------------------------------------------------------------------------


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    first = open_unix(path)
    assert describe(first) == f"unix:{path}"
    assert os.stat(path).st_mode & 0o777 == 0o660
    with pytest.raises(OSError, match="another process"):
        open_unix(path)
    first.close()
    second = open_unix(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    second.close()


def test_a_live_socket_with_a_full_queue_is_not_taken_for_stale(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    clients = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(path)
            clients.append(client)
        with pytest.raises(OSError, match="another process"):
            open_unix(path)
        assert os.path.exists(path)
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("data")
    else:
        path.mkdir()
    with pytest.raises(OSError, match="no socket"):
        open_unix(str(path))
    assert path.exists()


def test_an_address_in_use_is_named() -> None:
    (sock,) = open_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        open_tcp("127.0.0.1", port)
    sock.close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::1", False),
        ("", False),
        ("localhost", False),
        ("127.0.0.1:80", False),
        ("127.1", False),
    ],
)
def test_trust_is_by_address_only(address: str, expected: bool) -> None:
    assert trusts(LOOPBACK, address) is expected
