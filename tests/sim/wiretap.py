"""A blocking client that shows exactly what came over the socket and how the connection ended."""

from __future__ import annotations

import json
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def request(path: str = "/v1/chat/completions", body: Any = CHAT, method: str = "POST", headers: str = "") -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: sim\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def streamed(**more: Any) -> bytes:
    return request(body={**CHAT, "stream": True, **more})


@dataclass
class Seen:
    data: bytes
    ending: str

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


def holds(wanted: Callable[[Seen], Any], seen: Seen) -> bool:
    """Whether `wanted` is true of what was seen; an unfinished answer may also make it stumble."""
    try:
        return bool(wanted(seen))
    except (LookupError, ValueError, AssertionError, zlib.error):
        return False


class Client:
    """A connection.

    `read` takes what comes until the end, or until nothing has come for `quiet_s` and `wanted` is true of it.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, quiet_s: float = 0.06, at_most: int = 1 << 24, wanted: Callable[[Seen], Any] | None = None) -> Seen:
        self.socket.settimeout(quiet_s)
        seen = Seen(b"", "open")
        give_up = time.monotonic() + 5
        while len(seen.data) < at_most:
            try:
                piece = self.socket.recv(65536)
            except TimeoutError:
                if wanted is None or time.monotonic() > give_up or holds(wanted, seen):
                    return seen
                continue  # a busy machine, not silence
            except ConnectionError:
                return Seen(seen.data, "rst")
            if not piece:
                return Seen(seen.data, "fin")
            seen.data += piece
        return Seen(seen.data, "enough")

    def read_until(self, mark: bytes) -> bytes:
        self.socket.settimeout(5)
        data = b""
        while mark not in data:
            piece = self.socket.recv(65536)
            assert piece, f"ended after {data!r}"
            data += piece
        return data


def dechunked(data: bytes) -> bytes:
    """The body of a complete chunked answer."""
    out = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            assert data == b"\r\n", data
            return out
        out += data[:size]
        assert data[size : size + 2] == b"\r\n"
        data = data[size + 2 :]


def complete(seen: Seen) -> bool:
    """Whether one whole answer is there, by its own framing."""
    lines = seen.head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), None)
    if length is not None:
        return len(seen.body) >= length
    return dechunked(seen.body) is not None
