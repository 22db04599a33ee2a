"""Callers of every kind, at a steady rate: plain, streams, embeddings, repeats, wrong ones, who leave, who read slowly.

Each judges what it got. A failure that is well said (an error in the envelope, a stream that ends in an error event)
is counted by its code; what must never be (no answer, an answer that breaks HTTP, `internal_error`, a clean end of a
stream that is not whole) is counted apart. Some calls name the provider with the faults, so that nobody takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 90.0
IDLE_S = 60.0
"""An idle connection is not used again after this, as clients do."""
KINDS = {
    "plain": 34,
    "stream": 24,
    "embedding": 14,
    "repeat": 8,
    "leaves": 8,
    "slow": 4,
    "wrong": 5,
    "models": 3,
}
"""Kinds of calls and their shares, in hundredths."""
SLOW_BYTES = 256
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
_WRONG = (
    (_POST + b"5\r\n\r\n{bad}", "400"),
    (_POST + b"2\r\nTransfer-Encoding: chunked\r\n\r\n{}", "400"),
    (b"GET /v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
)
PINNED = 0.25
"""Of plain calls and streams: to the provider with the faults."""


class Broken(Exception):
    """What must never be."""


@dataclass(slots=True)
class Answer:
    """Status, lower-case fields, body; `whole` when its framing says so."""

    status: int
    fields: dict[str, str]
    body: bytes
    whole: bool


class Callers:
    """Calls at `rate` a second, each a task of its own, at most `most` at a time. `run` until cancelled."""

    def __init__(self, port: int, rate: float, *, most: int = 400, seed: int = 1) -> None:
        self.outcomes: Counter[str] = Counter()
        self.broken: list[str] = []
        self.skipped = 0
        """Calls that were due while `most` were under way."""
        self._port = port
        self._rate = rate
        self._most = most
        self._chance = random.Random(seed)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    async def run(self) -> None:
        """Call until cancelled; then what is under way is waited for, and every connection closed."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        kinds, weights = list(KINDS), list(KINDS.values())
        try:
            while True:
                due += self._chance.expovariate(self._rate)
                await asyncio.sleep(max(0.0, due - loop.time()))
                if len(self._tasks) >= self._most:
                    self.skipped += 1
                    continue
                self._number += 1
                task = loop.create_task(self._call(self._chance.choices(kinds, weights)[0], self._number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=PATIENCE_S)
            for _, writer, _ in self._idle:
                writer.close()

    async def _call(self, kind: str, number: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                outcome = await getattr(self, f"_{kind}")(number)
        except (Broken, TimeoutError, OSError, ValueError) as error:
            self.broken.append(f"{kind} {number}: {type(error).__name__}: {error}")
            outcome = "BROKEN"
        self.outcomes[f"{kind} {outcome}"] += 1

    # -- kinds -----------------------------------------------------------------------------------------

    async def _plain(self, number: int) -> str:
        size = self._chance.choice((20, 200, 2_000, 30_000))
        answer = await self._ask("/v1/chat/completions", self._chat(f"{number} " + "word " * (size // 5)))
        return _judged(answer)

    async def _repeat(self, number: int) -> str:
        """One of a few that are asked again and again: the cache's."""
        answer = await self._ask("/v1/chat/completions", {**_chat(f"again {number % 20}"), "temperature": 0})
        return _judged(answer)

    async def _embedding(self, number: int) -> str:
        return _judged(await self._ask("/v1/embeddings", {"model": "m", "input": [f"text {number}", "another"]}))

    async def _models(self, number: int) -> str:
        return _judged(await self._ask("/v1/models", None))

    async def _stream(self, number: int) -> str:
        answer = await self._ask("/v1/chat/completions", {**self._chat(str(number)), "stream": True})
        return _judged_stream(answer)

    async def _slow(self, number: int) -> str:
        """Reads its stream a few bytes at a time over a small buffer."""
        async with self._fresh(receive_bytes=4096) as (reader, writer):
            writer.write(request("/v1/chat/completions", {**_chat(str(number)), "stream": True}))
            return _judged_stream(await read_answer(reader, pause_s=0.005))

    async def _leaves(self, number: int) -> str:
        """Goes away at some moment: within its request, while it waits, within the answer."""
        moment = self._chance.choice(("request", "wait", "answer", "reset"))
        async with self._fresh() as (reader, writer):
            data = request("/v1/chat/completions", {**_chat(str(number)), "stream": bool(number % 2)})
            writer.write(data[: len(data) // 2] if moment == "request" else data)
            await writer.drain()
            if moment == "wait":
                await asyncio.sleep(self._chance.random() * 0.05)
            elif moment in ("answer", "reset"):
                await reader.read(64)
            if moment == "reset":
                sock = writer.get_extra_info("socket")
                # SO_LINGER of 0 s: the close is a reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return moment

    async def _wrong(self, number: int) -> str:
        data, expected = self._chance.choice(_WRONG)
        async with self._fresh() as (reader, writer):
            writer.write(data)
            answer = await read_answer(reader)
        if str(answer.status) != expected:
            raise Broken(f"expected {expected}, observed {answer.status}")
        return expected

    def _chat(self, text: str) -> dict[str, Any]:
        body = _chat(text)
        return {**body, "model": "faulty/m"} if self._chance.random() < PINNED else body

    # -- connections -----------------------------------------------------------------------------------

    async def _ask(self, path: str, body: Any) -> Answer:
        """Over a kept connection, or a new one; kept afterwards unless the answer says otherwise."""
        reader, writer = self._kept() or await self._open()
        try:
            writer.write(request(path, body))
            answer = await read_answer(reader)
        except BaseException:
            writer.close()
            raise
        if answer.whole and answer.fields.get("connection") != "close" and len(self._idle) < 64:
            self._idle.append((reader, writer, time.monotonic()))
        else:
            writer.close()
        return answer

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection that was used last, unless it has ended or soon will: the gateway keeps idle ones for 75 s."""
        now = time.monotonic()
        while self._idle:
            reader, writer, since = self._idle.pop()
            if not reader.at_eof() and now - since < IDLE_S:
                return reader, writer
            writer.close()
        return None

    @contextlib.asynccontextmanager
    async def _fresh(self, receive_bytes: int = 0) -> Any:
        reader, writer = await self._open(receive_bytes)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _open(self, receive_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=receive_bytes or 2**16)


def _chat(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0.7}


def request(path: str, body: Any, key: str = "") -> bytes:
    """A request; `body` None: a GET. `key` is presented as a client's."""
    payload = b"" if body is None else json.dumps(body).encode()
    line = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if key:
        line += f"Authorization: Bearer {key}\r\n"
    return f"{line}Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload


async def read_answer(reader: asyncio.StreamReader, *, pause_s: float = 0.0) -> Answer:
    """One answer. Raises Broken when it breaks HTTP, or there is none."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
    except (asyncio.IncompleteReadError, ConnectionError, IndexError, ValueError) as error:
        raise Broken(f"no answer: {type(error).__name__}") from None
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    pieces: list[bytes] = []
    try:
        if fields.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline() or b"z", 16):
                await _take(reader, size, pieces, pause_s)
                if await reader.readexactly(2) != b"\r\n":
                    raise Broken("a chunk does not end in CRLF")
            await reader.readline()
        else:
            await _take(reader, int(fields.get("content-length", 0)), pieces, pause_s)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(status, fields, b"".join(pieces), False)
    except ValueError:
        if reader.at_eof():
            return Answer(status, fields, b"".join(pieces), False)
        raise Broken("a chunk's size is no number") from None
    return Answer(status, fields, b"".join(pieces), True)


async def _take(reader: asyncio.StreamReader, size: int, pieces: list[bytes], pause_s: float) -> None:
    while size:
        piece = await reader.read(min(size, SLOW_BYTES) if pause_s else size)
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        pieces.append(piece)
        size -= len(piece)
        if pause_s:
            await asyncio.sleep(pause_s)


def _judged(answer: Answer) -> str:
    if answer.status == 200:
        if not answer.whole:
            return "cut"
        json.loads(answer.body)
        return "200"
    return _said(answer.status, answer.body)


def _judged_stream(answer: Answer) -> str:
    if answer.status != 200:
        return _said(answer.status, answer.body)
    done = answer.body.rstrip().endswith(b"data: [DONE]")
    if answer.whole and done:
        return "200"
    if answer.whole:
        raise Broken("a stream that is not whole ended as if it were")
    return "cut with an error" if b'"error"' in answer.body else "cut"


def _said(status: int, body: bytes) -> str:
    """Status and code of an error in the envelope."""
    error = json.loads(body)["error"]
    if set(error) != {"message", "type", "param", "code"} or error["code"] == "internal_error":
        raise Broken(f"{status} {error}")
    return f"{status} {error['code']}"
