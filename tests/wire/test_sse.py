"""Event streams: any cut gives back the same bytes, ends at event boundaries, and says what WHATWG says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.wire import sse
from dandolo.wire.sse import EventStream


def lines_of(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and the unfinished one, one byte at a time as the specification's grammar has them."""
    lines = []
    line = bytearray()
    at = 0
    while at < len(data):
        byte = data[at : at + 1]
        at += 1
        if byte == b"\r":
            if data[at : at + 1] == b"\n":
                at += 1
        elif byte != b"\n":
            line += byte
            continue
        lines.append(bytes(line))
        line.clear()
    return lines, bytes(line)


def reference(data: bytes) -> list[tuple[bytes, bytes | None]]:
    """Type and data of every event that has a field of either, after WHATWG HTML §9.2.6, on whole input."""
    lines, _ = lines_of(data.removeprefix(sse.BOM))
    events = []
    kind = b""
    buffer: bytes | None = None
    for line in lines:
        if line == b"":
            if kind or buffer is not None:
                events.append((kind, None if buffer is None else buffer[:-1]))
            kind, buffer = b"", None
        elif not line.startswith(b":"):
            name, value = line, b""
            if b":" in line:
                at = line.index(b":")
                name, value = line[:at], line[at + 1 :]
                value = value[1:] if value[:1] == b" " else value
            if name == b"event":
                kind = value
            elif name == b"data":
                buffer = (buffer or b"") + value + b"\n"
    return events


def ends_an_event(data: bytes) -> bool:
    """Whether nothing of an event is pending after `data`: its last line is blank and whole."""
    lines, rest = lines_of(data)
    return rest == b"" and bool(lines) and lines[-1] == b""


def pushed(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The parts that pushes gave, each checked, and the tail."""
    stream = EventStream()
    parts = []
    given = b""
    out = b""
    for piece in pieces:
        given += piece
        part = stream.push(piece)
        if part:
            parts.append(part)
        out += part
        assert out + stream.tail == given
        assert stream.tail_bytes == len(stream.tail)
        if part:
            assert ends_an_event(out)
        assert b"".join(sse.split(part)) == part
        # All that is complete has been handed out: what is held is one unfinished event.
        held, _ = lines_of(stream.tail.removesuffix(b"\r"))
        assert b"" not in held[1:]
    return parts, stream.take_tail()


def meant(parts: list[bytes]) -> list[tuple[bytes, bytes | None]]:
    """What the events of all parts say."""
    said = [sse.parse(event) for part in parts for event in sse.split(part)]
    return [event for event in said if event != (b"", None)]


STREAMS = [
    ("lf", b"data: a\n\ndata: b\n\n"),
    ("crlf", b"data: a\r\n\r\ndata: b\r\n\r\n"),
    ("cr", b"data: a\r\rdata: b\r\r"),
    ("mixed", b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\ndata: d\n\rdata: e\r\n\r"),
    ("mixed-within", b"event: x\rdata: a\ndata: b\r\ndata: c\n\n"),
    ("no-space", b"data:a\n\nevent:x\ndata:b\n\n"),
    ("two-spaces", b"data:  a\n\n"),
    ("no-colon", b"data\n\nevent\ndata\n\n"),
    ("multi-line", b"data: a\ndata:\ndata: b\n\n"),
    ("comments", b": hello\n\n:\n\ndata: a\n: within\ndata: b\n\n"),
    ("openrouter", b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\ndata: {}\n\ndata: [DONE]\n\n"),
    ("bom", sse.BOM + b"data: a\n\ndata: b\n\n"),
    ("bom-crlf", sse.BOM + b"data: a\r\n\r\n"),
    ("utf-8", "data: äöü €uro 😀\n\ndata: 文字\r\n\r\n".encode()),
    ("utf-8-like-line-ends", "data: \u010a\u010d\u2028\u2029\u0085\n\n".encode()),
    ("other-white-space", b"data: a\x0b\x0c\x1c\x1d\x1e\x85b\n\n"),
    ("colons", b'data: {"a":"b:c"}\n\n'),
    ("unknown-fields", b"id: 1\nretry: 3000\nfoo: bar\ndata: a\n\n"),
    ("data-prefix-is-not-data", b"datax: a\nxdata: b\n data: c\ndata : d\n\n"),
    ("last-event-name-wins", b"event: x\nevent: y\ndata: a\n\n"),
    ("event-without-data", b"event: ping\n\ndata: a\n\n"),
    ("blank-lines", b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n"),
    ("blank-lines-cr", b"\r\r\rdata: a\r\r\r\r\rdata: b\r\r"),
    ("blank-lines-crlf", b"\r\n\r\n\r\ndata: a\r\n\r\n\r\n\r\ndata: b\r\n\r\n"),
    ("unfinished", b"data: a\n\ndata: b\n"),
    ("unfinished-line", b"data: a\n\ndata: b"),
    ("unfinished-cr", b"data: a\n\ndata: b\r"),
    ("nothing", b""),
    ("anthropic", b'event: message_start\ndata: {"type":"message_start"}\n\nevent: ping\ndata: {"type": "ping"}\n\n'),
]


@pytest.mark.parametrize(("id", "data"), STREAMS, ids=[row[0] for row in STREAMS])
def test_every_cut_gives_the_bytes_back_and_the_events_of_the_specification(id: str, data: bytes) -> None:
    ways = [[data], [data[at : at + 1] for at in range(len(data))]]
    ways += [[data[:at], data[at:]] for at in range(1, len(data))]
    ways += [[data[:at], data[at : at + 1], data[at + 1 :]] for at in range(1, len(data))]
    for pieces in ways:
        parts, tail = pushed(pieces)
        assert b"".join(parts) + tail == data
        assert meant(parts) == reference(data)


@pytest.mark.parametrize(("id", "data"), STREAMS, ids=[row[0] for row in STREAMS])
def test_split_gives_one_event_to_a_piece(id: str, data: bytes) -> None:
    pieces = sse.split(data)
    assert b"".join(pieces) == data
    for piece in pieces:
        assert len(reference(piece)) <= 1
    for piece in pieces[:-1]:
        assert ends_an_event(piece)


def test_a_line_end_cut_in_two_neither_ends_an_event_nor_loses_one() -> None:
    stream = EventStream()
    assert stream.push(b"data: a\r") == b""
    assert stream.push(b"\ndata: b\r\n") == b""
    assert stream.push(b"\r") == b"data: a\r\ndata: b\r\n\r"
    assert stream.push(b"\ndata: c\r\n\r\n") == b"\ndata: c\r\n\r\n"
    assert stream.tail == b""


def test_a_tail_put_back_still_finds_the_boundary() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\n", b"\n\r\n"):
        for cut in range(len(end) + 1):
            stream = EventStream()
            assert stream.push(b"data: " + b"x" * 100 + end[:cut]) == b"" or cut >= len(end) - 1
            held = stream.take_tail()
            stream.tail = held[-3:]
            rest = stream.push(end[cut:] + b"data: next")
            if held:
                assert rest == held[-3:] + end[cut:]
            assert stream.tail.endswith(b"data: next")


def test_the_tail_is_given_up_once() -> None:
    stream = EventStream()
    stream.push(b"data: a")
    assert stream.take_tail() == b"data: a"
    assert stream.take_tail() == b""
    assert stream.push(b"data: b\n\n") == b"data: b\n\n"


PIECE = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"event: ",
        b": c",
        b":",
        b"a",
        b" ",
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\r",
        "€".encode(),
        b"\xe2",
        b"id: 1",
        b"\0",
        b"[DONE]",
    ]
)


@settings(max_examples=400, deadline=None)
@given(words=st.lists(PIECE, max_size=25), bom=st.booleans(), data=st.data())
def test_any_bytes_in_any_cut_agree_with_the_reference(words: list[bytes], bom: bool, data: st.DataObject) -> None:
    stream = (sse.BOM if bom else b"") + b"".join(words)
    marks = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6), "cuts"))
    pieces = [stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True)]
    parts, tail = pushed(pieces)
    assert b"".join(parts) + tail == stream
    assert meant(parts) == reference(stream)
    assert b"".join(sse.split(stream)) == stream


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), st.sampled_from([b"", b"error"]))
def test_our_own_events_say_what_they_were_given(text: str, kind: bytes) -> None:
    event = sse.encode(text.encode(), kind)
    assert sse.split(event) == [event]
    assert sse.parse(event) == (kind, text.encode())
    assert reference(event) == [(kind, text.encode())]
    assert not sse.is_comment(event)


@pytest.mark.parametrize("bad", [b"a\nb", b"a\r", b"\n"])
def test_our_own_events_are_one_line(bad: bytes) -> None:
    with pytest.raises(AssertionError):
        sse.encode(bad)


COMMENTS = [
    (b": a\n\n", True),
    (b":\r\n\r\n", True),
    (b"\n", True),
    (b"", True),
    (sse.BOM + b": a\n\n", True),
    (b": a\n: b\n\n", True),
    (b": a\ndata: b\n\n", False),
    (b"data\n\n", False),
    (b"retry: 1\n\n", False),
    (b" : a\n\n", False),
]


@pytest.mark.parametrize(("event", "expected"), COMMENTS)
def test_a_comment_is_told_from_payload(event: bytes, expected: bool) -> None:
    assert sse.is_comment(event) is expected


VALUES = [
    (b"error: x\n\n", b"x"),
    (b"error:x\r\n\r\n", b"x"),
    (b"data: a\rerror:  y\r\r", b" y"),
    (b"data: error: x\n\n", None),
    (b"error\n\n", None),
    (b"errors: x\n\n", None),
    (sse.BOM + b"error: x\n\n", b"x"),
    (b"error: x\nerror: y\n\n", b"x"),
]


@pytest.mark.parametrize(("event", "expected"), VALUES)
def test_the_value_of_a_named_field(event: bytes, expected: bytes | None) -> None:
    assert sse.field_value(event, b"error") == expected


@given(st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"data: x"]), max_size=8).map(b"".join))
def test_an_end_within_an_event_is_told_apart(data: bytes) -> None:
    # Whether a line is open is all that counts: what follows an event may be empty lines of the next one.
    stream = EventStream()
    if stream.push(b"data: x" + data) == b"data: x" + data:
        assert sse.ends_event(b"data: x" + data)
    elif not data.endswith((b"\r", b"\n")):
        assert not sse.ends_event(b"data: x" + data)
