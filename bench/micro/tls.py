"""One exchange over TLS: our layer beside uvloop's engine, and beside none. `python -m bench.micro.tls`.

A server of a few lines takes 1,400 bytes and answers 1,200, in a process of its own whose CPU time is read; a
blocking client asks. The three take turns; what is printed is the least of all turns.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvloop

from bench.load.targets import certificates
from dandolo.net.tls import TlsTransport

KINDS = ("plain", "uvloop", "layer")
QUESTION, ANSWER = b"q" * 1400, b"a" * 1200
EXCHANGES, TURNS = 4000, 7


class Answering(asyncio.Protocol):
    """Answers every whole question."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.write: Callable[[bytes], None] = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """A read is a question: the client waits for its answer."""
        if len(data) == len(QUESTION):
            self.write(ANSWER)


async def serve(kind: str, cert: str, key: str) -> None:
    """Listen, tell the port, serve until stdin ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    loop = asyncio.get_running_loop()
    factory: Callable[[], asyncio.Protocol] = Answering
    if kind == "layer":
        factory = lambda: TlsTransport(context, None, Answering, lambda _: None)  # noqa: E731
    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=context if kind == "uvloop" else None)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)


def cpu_us(pid: int) -> float:
    """CPU time of a process so far, kernel work included, in microseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1000


def main() -> None:
    """Take turns and print."""
    with tempfile.TemporaryDirectory() as folder:
        cert, key, ca = certificates(Path(folder))
        context = ssl.create_default_context(cafile=str(ca))
        best = dict.fromkeys(KINDS, float("inf"))
        servers = {}
        for kind in KINDS:
            command = [sys.executable, "-m", "bench.micro.tls", kind, str(cert), str(key)]
            servers[kind] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        clients = {}
        for kind, server in servers.items():
            assert server.stdout is not None
            plain = socket.create_connection(("127.0.0.1", int(server.stdout.readline())))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[kind] = plain if kind == "plain" else context.wrap_socket(plain, server_hostname="localhost")
        for _ in range(TURNS):
            for kind in KINDS:
                before = cpu_us(servers[kind].pid)
                for _ in range(EXCHANGES):
                    clients[kind].sendall(QUESTION)
                    missing = len(ANSWER)
                    while missing:
                        missing -= len(clients[kind].recv(missing))
                best[kind] = min(best[kind], (cpu_us(servers[kind].pid) - before) / EXCHANGES)
        for kind in KINDS:
            print(f"{kind:8} {best[kind]:6.2f} µs of CPU per exchange")
            clients[kind].close()
            servers[kind].communicate()


if __name__ == "__main__":
    if len(sys.argv) == 4:
        uvloop.run(serve(*sys.argv[1:]))
    else:
        main()
