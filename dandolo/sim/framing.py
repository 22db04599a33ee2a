"""How an answer's bytes are framed: by h11 when the framing is right, by hand when a fault wants it wrong.

`Output` is one answer on one connection. It offers head, data, end; the fault decides what they write.
"""

from __future__ import annotations

import asyncio
import zlib
from http import HTTPStatus
from typing import Final, Protocol

import h11

from dandolo.sim.answer import Answer
from dandolo.sim.script import Fault

Headers = list[tuple[bytes, bytes]]

HAND_FRAMED: Final = frozenset(
    ("truncated_body", "bad_chunk", "cl_te", "two_cl", "nul_header", "eof_body", "eof_body_http10")
)
"""Faults whose head or body h11 rightly refuses to write."""

STREAM_LENGTH = 1 << 20
"""The Content-Length claimed by faults that put one on a stream."""

HUGE_HEADER_BYTES = 128 << 10


class Stage(Protocol):
    """What an answer is performed on: a client's connection."""

    def frame(self, event: h11.Event) -> bytes:
        """The bytes of an event in the connection's own (right) framing."""

    async def write(self, data: bytes) -> None:
        """Hand bytes to the kernel; returns when it has taken them."""

    def by_hand(self) -> None:
        """Note that this answer was framed by hand, so that the connection's h11 state is thrown away."""

    @property
    def head_only(self) -> bool:
        """Whether the request was a HEAD."""


class Output:
    """One answer being written. `length` of `head` is the body's size in bytes, None for a stream."""

    __slots__ = ("_chunked", "_fault", "_kind", "_spoil", "_stage", "_zip", "bodiless")

    def __init__(self, stage: Stage, fault: Fault | None, status: int) -> None:
        self._stage = stage
        self._fault = fault
        kind: str = fault.kind if fault else "ok"
        if not 200 <= status <= 599:
            kind = "odd_status"  # h11 refuses some of them
        self._kind = kind
        self._chunked = False
        self._zip = zlib.compressobj(wbits=31) if kind in ("gzip", "bad_gzip") else None
        self._spoil = 10 if kind == "bad_gzip" else -1  # the ten bytes of gzip's header stay right
        self.bodiless = stage.head_only or status in (204, 304)

    async def head(self, answer: Answer, extra: Headers, length: int | None) -> None:
        """Write status line and headers."""
        status, kind = answer.status, self._kind
        headers: Headers = []
        if answer.content_type and length != 0:
            headers.append((b"Content-Type", answer.content_type.encode()))
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        headers += extra
        if length is None:
            headers.append((b"Cache-Control", b"no-cache"))
        if self._zip:
            headers.append((b"Content-Encoding", b"gzip"))
            length = None  # known only at the end: chunked
        if kind == "huge_header":
            size = (self._fault.size if self._fault else 0) or HUGE_HEADER_BYTES
            headers.append((b"X-Huge", b"h" * size))
        if kind not in HAND_FRAMED and kind != "odd_status":
            if length is not None:
                headers.append((b"Content-Length", str(length).encode()))
            reason = _reason(status)
            await self._put(self._stage.frame(h11.Response(status_code=status, headers=headers, reason=reason)))
            return
        self._stage.by_hand()
        size = STREAM_LENGTH if length is None else length
        chunked = kind in ("bad_chunk", "cl_te") or (length is None and kind in ("nul_header", "odd_status"))
        if kind == "truncated_body":
            missing = (self._fault.size if self._fault else 0) or 100
            headers.append((b"Content-Length", str(size + missing).encode()))
        elif kind == "two_cl":
            headers += [(b"Content-Length", str(size).encode()), (b"Content-Length", str(size + 5).encode())]
        elif kind == "cl_te" or (kind in ("nul_header", "odd_status") and not chunked):
            headers.append((b"Content-Length", str(size).encode()))
        elif kind.startswith("eof_body"):
            headers.append((b"Connection", b"close"))
        if kind == "nul_header":
            headers.append((b"X-Nul", b"a\x00b"))
        if chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        self._chunked = chunked
        version = b"HTTP/1.0" if kind == "eof_body_http10" else b"HTTP/1.1"
        await self._put(head_bytes(status, headers, version))

    async def data(self, data: bytes) -> None:
        """Write a piece of the body (an event, or all of it)."""
        if self._zip:
            data = self._spoilt(self._zip.compress(data) + self._zip.flush(zlib.Z_SYNC_FLUSH))
        if data and not self.bodiless:
            await self._put(self._framed(data))

    async def end(self) -> None:
        """Write what ends the body, if its framing has an end."""
        if self._zip and not self.bodiless:
            await self._put(self._framed(self._spoilt(self._zip.flush(zlib.Z_FINISH))))
        if self._by_hand:
            if self._chunked and not self.bodiless:
                await self._put(b"0\r\n\r\n")
        else:
            await self._put(self._stage.frame(h11.EndOfMessage()))

    async def broken(self) -> None:
        """Write what a fault puts in the place of a good end."""
        if self._kind == "bad_chunk":
            await self._put(b"xyz\r\n")

    @property
    def _by_hand(self) -> bool:
        return self._kind in HAND_FRAMED or self._kind == "odd_status"

    def _framed(self, data: bytes) -> bytes:
        if not self._by_hand:
            return self._stage.frame(h11.Data(data=data))
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _spoilt(self, data: bytes) -> bytes:
        if self._spoil < 0:
            return data
        kept, self._spoil = self._spoil, max(0, self._spoil - len(data))
        return data[:kept] + bytes(byte ^ 0xFF for byte in data[kept:])

    async def _put(self, data: bytes) -> None:
        if self._kind != "dribble" or self._fault is None:
            await self._stage.write(data)
            return
        await dribble(self._stage, data, self._fault.size or 1, self._fault.delay_s)


async def dribble(stage: Stage, data: bytes, size: int, delay_s: float) -> None:
    """Write `data` in pieces of `size` bytes, `delay_s` seconds apart (0: one turn of the loop)."""
    for start in range(0, len(data), size):
        await stage.write(data[start : start + size])
        await asyncio.sleep(delay_s)


def head_bytes(status: int, headers: Headers, version: bytes = b"HTTP/1.1") -> bytes:
    """A response head as it stands, right or wrong."""
    lines = [b"%b %03d %b" % (version, status, _reason(status))]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Simulated"
