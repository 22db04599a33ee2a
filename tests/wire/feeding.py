"""What the tests of the wire share: the corpus, and ways to feed bytes and write down all that came out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dandolo.errors import ProtocolError, UpstreamError
from dandolo.wire.client import ResponseReader
from dandolo.wire.server import HeadLimits, RequestReader

CORPUS = Path(__file__).parent.parent / "corpus"
BODY_BYTES_MAX = 1024 * 1024
SPLIT_BYTES_MAX = 300


def corpus(name: str, table: str) -> list[Any]:
    """The entries of a corpus file, with `fill` put in and every text of the wire as bytes."""
    entries = tomllib.loads((CORPUS / name).read_text("utf-8"))[table]
    for entry in entries:
        fill = entry.pop("fill", {"text": "", "times": 0})
        for key in set(entry) - {"id"}:
            if isinstance(entry[key], str):
                text = entry[key].replace("{fill}", fill["text"] * fill["times"])
                entry[key] = text.encode("latin-1")
    return entries


def piece_by_piece(data: bytes, size: int = 1) -> Iterable[bytes]:
    """`data` in pieces of `size` bytes."""
    return (data[at : at + size] for at in range(0, len(data), size))


def cuts(data: bytes) -> list[list[bytes]]:
    """Ways to deliver `data`: whole, in even pieces, byte by byte and in every two pieces while it is short."""
    ways = [[data], list(piece_by_piece(data, 7)), list(piece_by_piece(data, 4096))]
    if len(data) <= 4 * SPLIT_BYTES_MAX:
        ways.append(list(piece_by_piece(data)))
    if len(data) <= SPLIT_BYTES_MAX:
        ways += [[data[:at], data[at:]] for at in range(1, len(data))]
    return ways


@dataclass
class Heard:
    """What a request reader made of its bytes."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    status: int | None = None
    """The status of the refusal that ended the reading."""
    unfinished: bool = False
    """Whether bytes of an unfinished request are left."""


def hear(pieces: Iterable[bytes], limits: HeadLimits | None = None) -> Heard:
    """Feed a request reader as a connection does: a body after each head, nothing after a last request."""
    reader = RequestReader(limits or HeadLimits())
    heard = Heard()
    request = None
    closing = False
    for piece in pieces:
        if closing:
            break
        reader.receive(piece)
        try:
            while not closing:
                if request is None:
                    request = reader.next_head()
                    if request is None:
                        break
                    reader.begin_body(BODY_BYTES_MAX)
                body = reader.next_body()
                if body is None:
                    break
                heard.requests.append(
                    {
                        "method": request.method,
                        "path": request.path,
                        "query": request.query,
                        "authority": request.authority,
                        "keep_alive": request.keep_alive,
                        "minor": request.minor,
                        "fields": dict(request.fields),
                        "body": body,
                    }
                )
                closing = not request.keep_alive
                request = None
        except ProtocolError as error:
            heard.status = error.status
            _assert_dead(reader)
            return heard
    heard.unfinished = request is not None or bool(reader.buffered_bytes)
    return heard


def _assert_dead(reader: RequestReader) -> None:
    """Nothing that comes after an error is interpreted, however the reader is asked."""
    assert reader.dead
    for piece in (b"", b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n"):
        reader.receive(piece)
        assert reader.buffered_bytes == 0
        assert reader.next_head() is None
        assert reader.next_body() is None
        assert reader.body_missing == 0
        assert not reader.in_head
    assert reader.dead


@dataclass
class Answer:
    """What an answer reader made of its bytes, and of the end of the connection if there was one."""

    status: int = 0
    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    reusable: bool = False
    error: str = ""
    """The code of the failure, if there was one."""


def read_answer(pieces: Iterable[bytes], *, head_only: bool = False, eof: bool = False) -> Answer:
    """Feed an answer reader as a connection does."""
    reader = ResponseReader()
    reader.begin(head_only=head_only)
    answer = Answer()
    response = None
    content = []
    try:
        for piece in pieces:
            if response is not None:
                content.append(reader.body(piece))
                continue
            response = reader.head(piece)
            if response is not None:
                answer.status, answer.fields = response.status, dict(response.fields)
                content.append(reader.body(b""))
        if eof:
            reader.eof()
    except UpstreamError as error:
        assert not reader.complete
        assert not reader.reusable
        answer.error = error.code or ""
    answer.body = b"".join(content)
    answer.complete = reader.complete
    answer.reusable = reader.reusable
    return answer
