"""A small HTTP client for `demo` and `try`: one kept-alive connection, plain answers and streams, with their times.

It speaks to our own gateway only, so it takes what that sends (Content-Length or chunked) and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

LINE_BYTES_MAX = 1 << 20
_encode = msgspec.json.encode
_decode = msgspec.json.decode


@dataclass(slots=True)
class Answer:
    """What came back. Times are milliseconds from the request's first byte; `first_token_ms` is None where no
    content came, `done` tells whether a stream ended in [DONE] (or message_stop, as Messages has it). `reason`
    says what is wrong with it, if anything."""

    status: int
    headers: Mapping[str, str]
    text: str = ""
    reason: str = ""
    total_ms: float = 0.0
    first_token_ms: float | None = None
    done: bool = False
    output_tokens: int = 0
    body: dict[str, Any] = field(default_factory=dict)


class Broken(Exception):
    """The connection ended, or what came is no HTTP answer."""


class Client:
    """One connection. Use it as `async with Client.tcp(…)`."""

    def __init__(self, *, host: str = "", port: int = 0, unix: str = "") -> None:
        self._host, self._port, self._unix = host, port, unix
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Client:
        if self._unix:
            opened = await asyncio.open_unix_connection(self._unix, limit=LINE_BYTES_MAX)
        else:
            opened = await asyncio.open_connection(self._host, self._port, limit=LINE_BYTES_MAX)
        self._reader, self._writer = opened
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass

    async def ask(self, path: str, payload: Mapping[str, Any] | None = None) -> Answer:
        """POST `payload`, or GET without one, and read the whole answer. Raises Broken or OSError."""
        body = _encode(payload) if payload is not None else b""
        head = (
            f"{'GET' if payload is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._writer.write(head.encode() + body)
        try:
            answer = await self._head()
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await self._events(answer, started)
            else:
                self._plain(answer, b"".join([piece async for piece in self._pieces(answer.headers)]))
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise Broken("the connection ended, or what came is no HTTP answer") from error
        answer.total_ms = (time.perf_counter() - started) * 1000
        return answer

    async def _head(self) -> Answer:
        line = await self._reader.readuntil(b"\r\n")
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Answer(status, headers)

    async def _pieces(self, headers: Mapping[str, str]) -> Any:
        if headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(headers.get("content-length", "0")))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")

    def _plain(self, answer: Answer, body: bytes) -> None:
        try:
            answer.body = _decode(body)
        except msgspec.DecodeError:
            answer.reason = "the answer is no JSON"
            return
        if answer.status != 200:
            answer.reason = _told(answer.body) or f"status {answer.status}"
            return
        for choice in answer.body.get("choices", ()):
            answer.text += choice["message"].get("content") or ""
        for block in answer.body.get("content", ()):
            answer.text += block.get("text") or ""
        answer.output_tokens = (answer.body.get("usage") or {}).get("completion_tokens", 0)

    async def _events(self, answer: Answer, started: float) -> None:
        unfinished = b""
        async for piece in self._pieces(answer.headers):
            *lines, unfinished = (unfinished + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(answer, line[5:].strip(), started)
        if not answer.done and not answer.reason:
            answer.reason = "the stream ended before its last event"

    @staticmethod
    def _event(answer: Answer, data: bytes, started: float) -> None:
        if data == b"[DONE]":
            answer.done = True
            return
        event = _decode(data)
        answer.reason = answer.reason or _told(event)
        if event.get("type") == "message_stop":
            answer.done = True
        deltas = [choice.get("delta") or {} for choice in event.get("choices", ())]
        for delta in (*deltas, event.get("delta") or {}):
            text = delta.get("content") or delta.get("text") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking")
            if answer.first_token_ms is None and (text or thought):
                answer.first_token_ms = (time.perf_counter() - started) * 1000
            answer.text += text
        if event.get("usage"):
            answer.output_tokens = event["usage"].get("completion_tokens", 0)


def _told(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message", "")) if isinstance(error, dict) else ""
