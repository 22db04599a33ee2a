"""Frames: each kind there and back in any pieces, and everything else refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache.peers import frames
from dandolo.cache.peers.frames import (
    FRAME_BYTES_MAX,
    GREETING_BYTES_MAX,
    Abort,
    Auth,
    Begin,
    Done,
    Flow,
    Follow,
    Frame,
    FrameError,
    FrameReader,
    Get,
    Grant,
    Hello,
    Inv,
    Lease,
    Leave,
    Nothing,
    Piece,
    Ping,
    Pong,
    Put,
    Renew,
    Sync,
    Val,
    Value,
    Wait,
    encode,
)

KEY = bytes(range(20))
VALUE = Value(b"\xda\x00" + b"r" * 5000, "key:app")
EVERY: list[Frame] = [
    Hello(0, "edge-1", b"i" * 16, b"n" * 32),
    Auth(0, b"p" * 32),
    Ping(1),
    Pong(1),
    Get(2, KEY),
    Val(2, VALUE),
    Nothing(3),
    Lease(4, KEY, "edge-2", False),
    Lease((1 << 32) - 1, KEY, "", True),
    Grant(4, 5000),
    Wait(4, "edge-3"),
    Follow(5, KEY),
    Begin(5, 200, True, ""),
    Piece(5, b"data: {}\n\n"),
    Piece(5, b""),
    Done(5, KEY, None),
    Done(0, KEY, VALUE),
    Abort(5),
    Put(0, KEY, VALUE),
    Renew(0, (KEY, KEY)),
    Renew(0, ()),
    Flow(5, True),
    Leave(5),
    Sync(0, 1, 7),
    Inv(0, 7, "tag", "a tag", True),
]


def reader() -> FrameReader:
    made = FrameReader()
    made.bytes_max = FRAME_BYTES_MAX
    return made


def raw(*items: object, version: int = frames.VERSION) -> bytes:
    """A frame made by hand: version, kind and whatever follows."""
    payload = msgspec.msgpack.encode([version, *items])
    return len(payload).to_bytes(4, "big") + payload


def test_every_kind_is_tried() -> None:
    assert {type(frame) for frame in EVERY} == set(frames.KINDS)


@pytest.mark.parametrize("frame", EVERY, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert reader().feed(encode(frame)) == [frame]
    read = reader()
    assert [one for byte in encode(frame) for one in read.feed(bytes((byte,)))] == [frame]
    assert reader().feed(encode(frame) + encode(Ping(9)) + b"\0\0") == [frame, Ping(9)]


@given(st.lists(st.sampled_from(EVERY), max_size=12), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_any_cut_of_a_stream_gives_the_same_frames(several: list[Frame], sizes: list[int]) -> None:
    data = b"".join(map(encode, several))
    read, heard, at, turn = reader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        heard += read.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert heard == several


HOSTILE = [
    ("too long", (FRAME_BYTES_MAX + 1).to_bytes(4, "big"), "is the most"),
    ("length of everything", b"\xff\xff\xff\xff", "is the most"),
    ("HTTP", b"GET / HTTP/1.1\r\n\r\n", "is the most"),
    ("empty", b"\0\0\0\0", "less than three"),
    ("two bytes", b"\0\0\0\2\x92\x01", "less than three"),
    ("a map", b"\0\0\0\4\x83\x01\x03\x01", "no array"),
    ("a long array", b"\0\0\0\x06\xdc\x00\x03\x01\x03\x01", "no array"),
    ("an array of two", b"\0\0\0\3\x92\x01\x03", "no array"),
    ("another version", raw(3, 0, version=2), "version 2"),
    ("an unknown kind", raw(99, 0), "unknown kind"),
    ("kind 0", raw(0, 0), "unknown kind"),
    ("a kind that is a text", raw("x", 0), "unknown kind"),
    ("a field too few", raw(5, 1), "not of its shape"),
    ("a field too many", raw(3, 1, 2), "not of its shape"),
    ("a negative id", raw(3, -1), "not of its shape"),
    ("an id of 33 bits", raw(3, 1 << 32), "not of its shape"),
    ("a key of 19 bytes", raw(5, 1, b"k" * 19), "not of its shape"),
    ("a key of 21 bytes", raw(5, 1, b"k" * 21), "not of its shape"),
    ("a key that is a text", raw(5, 1, "k" * 20), "not of its shape"),
    ("a name with a line end", raw(10, 1, "edge\r\nX: y"), "not of its shape"),
    ("a name that ends in a line end", raw(10, 1, "edge\n"), "not of its shape"),
    ("an empty name", raw(10, 1, ""), "not of its shape"),
    ("a long name", raw(10, 1, "e" * 65), "not of its shape"),
    ("a provider with a line end", raw(12, 1, 200, True, "a\r\nb"), "not of its shape"),
    ("a status of 99", raw(12, 1, 99, True, ""), "not of its shape"),
    ("a flag that is a number", raw(18, 1, 1), "not of its shape"),
    ("a text that is no UTF-8", b"\0\0\0\x06\x94\x01\x0a\x01\xa1\xff", "not of its shape"),
    ("an array that goes deep", b"\0\0\x10\x04\x93\x01\x11\x00" + b"\x91" * 4096, "not of its shape"),
    ("bytes after the array", b"\0\0\0\5\x93\x01\x03\x01\x01", "not of its shape"),
    ("too many keys", raw(17, 0, [KEY] * 1025), "not of its shape"),
    ("a short kind at length", raw(21, 0, 1, "tag", "x" * 70_000, False), "is the most"),
    ("a long piece", raw(13, 1, b"x" * (frames.PIECE_BYTES_MAX + 1)), "not of its shape"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_what_is_no_frame_is_refused_behind_what_was_one(data: bytes, reason: str) -> None:
    for before in ([], [Ping(1), Get(2, KEY)]):
        with pytest.raises(FrameError, match=reason) as caught:
            reader().feed(b"".join(map(encode, before)) + data)
        assert caught.value.frames == before


def test_strangers_may_say_little() -> None:
    stranger = FrameReader()
    assert stranger.feed(encode(EVERY[0])) == EVERY[:1]
    with pytest.raises(FrameError, match=f"{GREETING_BYTES_MAX} is the most"):
        stranger.feed(encode(Put(0, KEY, VALUE))[:8])


@given(st.binary(max_size=200))
def test_garbage_is_never_another_error(data: bytes) -> None:
    try:
        reader().feed(data)
    except FrameError:
        pass


@given(st.sampled_from(EVERY), st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_is_never_another_error(frame: Frame, at: int, byte: int) -> None:
    data = bytearray(encode(frame))
    data[at % len(data)] = byte
    try:
        reader().feed(bytes(data))
    except FrameError:
        pass


def test_what_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(ValueError, match="is the most"):
        encode(Put(0, KEY, Value(b"x" * FRAME_BYTES_MAX, "")))
