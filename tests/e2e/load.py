"""A load of keep-alive connections that takes note of every request that fails: for tests of what must lose none."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from typing import Self

from harness import chat, request

PATIENCE_S = 15.0


class Load:
    """`connections` clients that ask again and again, each over one connection for as long as it is let.

    A client that is told `Connection: close` opens another one, as any client does. Everything else that is no 200
    is a failure: a reset, an end within an answer, a refused connection, a request on an open connection that is
    not answered. With `fresh`, every request has a connection of its own. With `stream`, answers are streams, which
    must end as streams do.
    """

    def __init__(
        self,
        port: int,
        *,
        connections: int = 8,
        fresh: bool = False,
        stream: bool = False,
        pause_s: float = 0.002,
        key: str | None = None,
    ) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.slowest_s = 0.0
        self.opened = 0
        self.by_worker: Counter[str] = Counter()
        self._port = port
        self._fresh = fresh
        self._stream = stream
        self._pause_s = pause_s
        self._key = key
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(connections)]
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S * 2)
            assert not thread.is_alive()

    def more(self, count: int, within_s: float = PATIENCE_S) -> None:
        """Wait for so many further answers."""
        wanted, end = self.answers + count, time.monotonic() + within_s
        while self.answers < wanted:
            assert time.monotonic() < end, f"only {self.answers} of {wanted} answers; {self.failures[:3]}"
            time.sleep(0.005)

    def _run(self, number: int) -> None:
        sock: socket.socket | None = None
        serial = 0
        while not self._over.is_set():
            serial += 1
            began = time.monotonic()
            try:
                if sock is None:
                    sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
                    sock.settimeout(PATIENCE_S)
                    with self._lock:
                        self.opened += 1
                sock.sendall(request(body=chat(user=f"{number}-{serial}", stream=self._stream), key=self._key))
                head, body = self._answer(sock)
                if not head.startswith(b"HTTP/1.1 200 "):
                    raise OSError(f"{head[:40]!r} {body[:200]!r}")
                close = self._fresh or b"connection: close" in head.lower()
            except OSError as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
                close = True
            else:
                with self._lock:
                    self.answers += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if close and sock is not None:
                sock.close()
                sock = None
            time.sleep(self._pause_s)
        if sock is not None:
            sock.close()

    @staticmethod
    def _answer(sock: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError("the connection ended before an answer" if not data else "within a head")
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            while not body.endswith(b"\r\n0\r\n\r\n"):
                piece = sock.recv(65536)
                if not piece:
                    raise ConnectionError("the connection ended within a stream")
                body += piece
            if b"data: [DONE]\n\n" not in body:
                raise OSError(f"a stream ended without [DONE]: {body[-200:]!r}")
            return head, body
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError("the connection ended within an answer")
            body += piece
        return head, body
