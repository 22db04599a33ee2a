"""Redis replies: any cut gives the same values, all is bounded, garbage is told and nothing after it is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from feeding import cuts
from hypothesis import given
from hypothesis import strategies as st

from dandolo.wire import resp
from dandolo.wire.resp import ErrorReply, Push, Reply, ReplyReader, RespError

E = ErrorReply
REPLIES: list[tuple[str, bytes, list[Any]]] = [
    ("simple", b"+OK\r\n", [b"OK"]),
    ("simple-empty", b"+\r\n", [b""]),
    ("error", b"-ERR no such thing\r\n", [E(b"ERR no such thing")]),
    ("integer", b":0\r\n:-12\r\n:+7\r\n:9223372036854775807\r\n", [0, -12, 7, 2**63 - 1]),
    ("bulk", b"$5\r\nhello\r\n$0\r\n\r\n", [b"hello", b""]),
    ("bulk-with-line-ends", b"$6\r\n\r\n$1\r\n\r\n", [b"\r\n$1\r\n"]),
    ("nulls", b"$-1\r\n*-1\r\n_\r\n", [None, None, None]),
    ("array", b"*3\r\n$1\r\na\r\n:1\r\n*2\r\n_\r\n+b\r\n", [[b"a", 1, [None, b"b"]]]),
    ("array-empty", b"*0\r\n", [[]]),
    ("array-of-empty", b"*2\r\n*0\r\n*0\r\n:1\r\n", [[[], []], 1]),
    ("error-in-array", b"*2\r\n-EX a\r\n+OK\r\n", [[E(b"EX a"), b"OK"]]),
    ("map", b"%2\r\n+a\r\n:1\r\n$1\r\nb\r\n%0\r\n", [{b"a": 1, b"b": {}}]),
    ("set", b"~2\r\n:1\r\n:1\r\n", [[1, 1]]),
    ("doubles", b",1.5\r\n,-2\r\n,1e3\r\n,inf\r\n,-inf\r\n", [1.5, -2.0, 1000.0, math.inf, -math.inf]),
    ("booleans", b"#t\r\n#f\r\n", [True, False]),
    ("big-number", b"(-349999999999999999999999999\r\n", [-349999999999999999999999999]),
    ("verbatim", b"=8\r\ntxt:some\r\n", [b"some"]),
    ("bulk-error", b"!9\r\nEX what\r\n\r\n", [E(b"EX what\r\n")]),
    ("push", b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n+OK\r\n", [Push(b"invalidate", [[b"k"]]), b"OK"]),
    ("push-flush", b">2\r\n+invalidate\r\n_\r\n", [Push(b"invalidate", [None])]),
    ("attribute", b"|1\r\n+ttl\r\n:9\r\n$1\r\na\r\n|0\r\n:1\r\n", [b"a", 1]),
    ("attribute-last", b"|1\r\n+ttl\r\n:9\r\n$1\r\na\r\n", [b"a"]),
    ("attribute-within", b"*2\r\n|1\r\n+ttl\r\n*1\r\n:9\r\n:1\r\n:2\r\n:3\r\n", [[1, 2], 3]),
]

GARBAGE: list[tuple[str, bytes, list[Any]]] = [
    ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n", []),
    ("http-after", b"+OK\r\nHTTP/1.1", [b"OK"]),
    ("zeros", b"\0\0\0\0", []),
    ("inline", b"PING\r\n", []),
    ("empty-line", b"\r\n", []),
    ("bulk-longer", b"$2\r\nabc\r\n", []),
    ("bulk-shorter", b"$4\r\nabc\r\n+OK\r\n", []),
    ("bulk-negative", b"$-2\r\n", []),
    ("bulk-null-elsewhere", b"=-1\r\n", []),
    ("length-signed", b"$+1\r\na\r\n", []),
    ("length-padded", b"$ 1\r\na\r\n", []),
    ("length-underscored", b"*1_0\r\n", []),
    ("length-none", b"$\r\n", []),
    ("length-long", b"$00000000001\r\na\r\n", []),
    ("length-not-ascii", "$²\r\n".encode(), []),
    ("integer-none", b":\r\n", []),
    ("integer-real", b":1.5\r\n", []),
    ("integer-underscored", b":1_0\r\n", []),
    ("double-words", b",infinity\r\n", []),
    ("boolean-word", b"#true\r\n", []),
    ("null-full", b"_0\r\n", []),
    ("bare-lf", b"+O\nK\r\n", []),
    ("bare-cr", b"-E\rX\r\n", []),
    ("verbatim-unformatted", b"=4\r\nsome\r\n", []),
    ("streamed", b"$?\r\n;4\r\nsome\r\n;0\r\n", []),
    ("push-in-array", b"*1\r\n>1\r\n+a\r\n", []),
    ("push-empty", b">0\r\n", []),
    ("push-of-number", b">1\r\n:1\r\n", []),
    ("map-key-array", b"%1\r\n*0\r\n:1\r\n", []),
    ("map-null", b"%-1\r\n", []),
    ("set-null", b"~-1\r\n", []),
    ("big-number-word", b"(1e5\r\n", []),
]


def read(pieces: list[bytes], reader: ReplyReader | None = None) -> tuple[list[Reply], str | None]:
    """All replies and pushes, and what the failure said if there was one."""
    reader = reader or ReplyReader()
    replies: list[Reply] = []
    for piece in pieces:
        try:
            replies += reader.feed(piece)
        except RespError as error:
            replies += error.replies
            with pytest.raises(RespError) as again:
                reader.feed(b"+OK\r\n")
            assert again.value.replies == []
            return replies, str(error)
    return replies, None


@pytest.mark.parametrize(("id", "data", "expected"), REPLIES, ids=[row[0] for row in REPLIES])
def test_every_cut_gives_the_same_replies(id: str, data: bytes, expected: list[Any]) -> None:
    for pieces in cuts(data):
        reader = ReplyReader()
        assert read(pieces, reader) == (expected, None)
        assert reader.at_boundary
        assert reader.held_bytes == 0
        # What follows at once changes nothing of what was before.
        replies, failure = read([*pieces[:-1], pieces[-1] + b"$3\r\nab"])
        assert (replies, failure) == (expected, None)


@pytest.mark.parametrize(("id", "data", "before"), GARBAGE, ids=[row[0] for row in GARBAGE])
def test_garbage_is_told_after_what_came_whole_before_it(id: str, data: bytes, before: list[Any]) -> None:
    for pieces in cuts(data):
        replies, failure = read(pieces)
        assert replies == before
        assert failure is not None


@pytest.mark.parametrize(("id", "data", "expected"), REPLIES, ids=[row[0] for row in REPLIES])
def test_an_unfinished_reply_is_waited_for(id: str, data: bytes, expected: list[Any]) -> None:
    for end in range(1, len(data)):
        reader = ReplyReader()
        replies = reader.feed(data[:end])
        assert replies == expected[: len(replies)]
        assert replies + reader.feed(data[end:]) == expected


def test_limits_are_kept_before_anything_is_kept() -> None:
    reader = {"reply_bytes_max": 100, "elements_max": 5, "depth_max": 3}
    for id, data, wanted in (
        ("string", b"$101\r\n", "longer than 100 bytes"),
        ("sum", b"*3\r\n$60\r\n" + b"x" * 60 + b"\r\n$60\r\n", "longer than 100 bytes"),
        ("sum-of-small", b"*2\r\n$80\r\n" + b"x" * 80 + b"\r\n+ten-and-more\r\n", "longer than 100 bytes"),
        ("count", b"*6\r\n", "more than 5 elements"),
        ("count-of-a-map", b"%3\r\n", "more than 5 elements"),
        ("count-of-all", b"*2\r\n*2\r\n:1\r\n:2\r\n*2\r\n", "more than 5 elements"),
        ("depth", b"*1\r\n*1\r\n*1\r\n*1\r\n", "more than 3 deep"),
        ("depth-of-empty", b"*1\r\n*1\r\n*1\r\n*0\r\n", "more than 3 deep"),
        ("attributes", b"|1\r\n+a\r\n$80\r\n" + b"x" * 80 + b"\r\n|1\r\n+a\r\n", "longer than 100 bytes"),
    ):
        for pieces in cuts(data):
            replies, failure = read(pieces, ReplyReader(**reader))
            assert replies == [], id
            assert failure is not None, id
            assert wanted in failure, id
    fits = b"*2\r\n$60\r\n" + b"x" * 60 + b"\r\n*2\r\n:1\r\n:2\r\n"
    assert read([fits * 3], ReplyReader(**reader)) == ([[b"x" * 60, [1, 2]]] * 3, None)


def test_a_line_without_end_is_bounded() -> None:
    for data in (b"+" + b"x" * resp.LINE_BYTES_MAX, b"$" + b"1" * resp.LINE_BYTES_MAX):
        assert read([data])[1] is None
        assert read([data + b"xxxx"])[1] is not None
        assert read([data, b"xx", b"xx"])[1] is not None


def test_a_long_string_byte_by_byte_is_joined_once() -> None:
    reader = ReplyReader()
    assert reader.feed(b"$100000\r\n") == []
    for _ in range(1000):
        assert reader.feed(b"x" * 100) == []
    assert reader.held_bytes == 9 + 100_000
    assert reader.feed(b"\r") == []
    assert reader.feed(b"\n:1\r\n") == [b"x" * 100_000, 1]
    assert reader.held_bytes == 0


def test_errors_show_their_code_only() -> None:
    error = ErrorReply(b"WRONGPASS invalid username-password pair for sk-secret")
    assert error.code == b"WRONGPASS"
    assert "secret" not in repr(error)
    assert ErrorReply(b"OOM").code == b"OOM"


def test_commands_are_arrays_of_strings() -> None:
    assert resp.encode(b"GET", b"a\r\nb") == b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n"
    assert resp.encode(b"SET", b"", b"x") == b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$1\r\nx\r\n"


def written(value: Any) -> bytes:
    """A reply as a server writes it in RESP3, apart from the reader's own code."""
    if value is None:
        return b"_\r\n"
    if value is True or value is False:
        return b"#t\r\n" if value else b"#f\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value if abs(value) < 2**63 else b"(%d\r\n" % value
    if isinstance(value, float):
        return b",%b\r\n" % repr(value).encode()
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, ErrorReply):
        return b"!%d\r\n%b\r\n" % (len(value.message), value.message)
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(written, value))
    if isinstance(value, dict):
        return b"%%%d\r\n" % len(value) + b"".join(written(key) + written(one) for key, one in value.items())
    assert isinstance(value, Push)
    return b">%d\r\n" % (1 + len(value.items)) + written(value.kind) + b"".join(map(written, value.items))


texts = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"$-1\r\n", b">1\r\n"])
scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts
    | texts.map(ErrorReply)
)  # fmt: skip
values = st.recursive(
    scalars, lambda one: st.lists(one, max_size=4) | st.dictionaries(texts, one, max_size=3), max_leaves=12
)
pushes = st.builds(Push, texts, st.lists(values, max_size=2))
streams = st.lists(values | pushes, min_size=1, max_size=6)


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(streams, st.lists(st.integers(0, 10_000), max_size=8))
def test_what_a_server_writes_is_read_however_it_is_cut(stream: list[Any], places: list[int]) -> None:
    reader = ReplyReader(depth_max=64)
    assert read(cut_at(b"".join(map(written, stream)), places), reader) == (stream, None)
    assert reader.at_boundary


@given(streams, st.integers(0, 10_000), st.binary(max_size=4), st.lists(st.integers(0, 10_000), max_size=8))
def test_mutations_raise_nothing_else_and_cuts_do_not_change_what_is_read(
    stream: list[Any], at: int, put: bytes, places: list[int]
) -> None:
    data = b"".join(map(written, stream))
    at %= len(data)
    data = data[:at] + put + data[at + 1 :]
    whole = read([data])
    reader = ReplyReader()
    pieces, failed = read(cut_at(data, places), reader)
    # Byte by byte a failure is seen no later, and never where whole bytes show none.
    assert repr(pieces) == repr(whole[0])
    assert (failed is None) == (whole[1] is None)
    assert reader.held_bytes <= len(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_replies_garbage_or_unfinished(data: bytes) -> None:
    replies, failed = read([data])
    bytewise = read([data[at : at + 1] for at in range(len(data))])
    assert repr(bytewise[0]) == repr(replies)
    assert (bytewise[1] is None) == (failed is None)
