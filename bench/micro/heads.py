"""A request head of ten field lines, one of them never seen before: this parser, httptools and h11.

Each splits and judges the lines and gives the fields; the first two rows leave out what follows (host,
framing), `RequestReader` is the whole judgement. `python -m bench.micro.heads`.
"""

from __future__ import annotations

import h11
import httptools

from bench.micro.timing import best_us
from dandolo.wire import fields, server
from dandolo.wire.server import HeadLimits, RequestReader

HEADS = 2000
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n"
    "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    "User-Agent: OpenAI/Python 2.1.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Async: false\r\n"
    "Authorization: Bearer bench-key-0123456789abcdef\r\nX-Request: {:08d}\r\n\r\n"
)


class Fields:
    """What an owner of httptools' parser does with its callbacks."""

    def on_message_begin(self) -> None:
        self.fields: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.lower()] = value


_number = 0


def fresh() -> list[bytes]:
    """Heads whose last line no run has seen."""
    global _number
    _number += HEADS
    return [HEAD.format(_number + number).encode() for number in range(HEADS)]


class Bench:
    """Ways to read the same heads. Making them is not part of a run: `heads` is set before it."""

    def __init__(self) -> None:
        self.heads = iter([fresh() for _ in range(20)])

    def lines(self) -> None:
        for data in next(self.heads):
            lines = data[: data.find(b"\r\n\r\n")].split(b"\r\n")
            dict(fields.parse_lines(lines[1:]))

    def httptools(self) -> None:
        owner = Fields()
        parser = httptools.HttpRequestParser(owner)
        feed = parser.feed_data
        for data in next(self.heads):
            feed(data)

    def h11(self) -> None:
        for data in next(self.heads):
            connection = h11.Connection(h11.SERVER)
            connection.receive_data(data)
            connection.next_event()

    def judged(self) -> None:
        server._repetitions.forget()
        for data in next(self.heads):
            reader = RequestReader(HeadLimits())
            reader.receive(data)
            reader.next_head()

    def repeated(self) -> None:
        server._repetitions.forget()
        reader = RequestReader(HeadLimits())
        for data in next(self.heads):
            if reader.whole(data) is None:
                reader.receive(data)
                reader.next_head()
                reader.begin_body(0)
                reader.next_body()


def main() -> None:
    """Print µs a head."""
    for name, run in (
        ("lines alone (wire.fields)", Bench().lines),
        ("httptools, callbacks only", Bench().httptools),
        ("RequestReader, new connection each", Bench().judged),
        ("RequestReader, kept alive", Bench().repeated),
        ("h11, new connection each", Bench().h11),
    ):
        print(f"{name:36} {best_us(run, HEADS):8.2f} µs a head")


if __name__ == "__main__":
    main()
