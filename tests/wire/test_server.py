"""The request reader against the corpus: the same judgement for any cut of the bytes, silence after an error."""

from __future__ import annotations

from typing import Any

import pytest
from feeding import BODY_BYTES_MAX, corpus, cuts, hear, piece_by_piece

from dandolo.errors import ProtocolError
from dandolo.wire import request as heads
from dandolo.wire.server import DRAIN_BYTES_MAX, PIECE_BYTES_MIN, HeadLimits, RequestReader

REQUESTS = corpus("requests.toml", "request")
GOOD = b"POST /good HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\ngood"
LONG_ENOUGH = 20_000


def ids(entries: list[Any]) -> list[str]:
    return [entry["id"] for entry in entries]


def check(entry: dict[str, Any], heard: Any, before: int = 0) -> None:
    if "status" in entry:
        assert heard.status == entry["status"]
        assert len(heard.requests) == before
        return
    assert heard.status is None
    request = heard.requests[before]
    for key in set(entry) - {"id", "promise", "bytes"}:
        assert request[key] == entry[key], key


@pytest.mark.parametrize("entry", REQUESTS, ids=ids(REQUESTS))
def test_every_cut_of_the_bytes_has_the_same_outcome(entry: dict[str, Any]) -> None:
    for pieces in cuts(entry["bytes"]):
        heard = hear(pieces)
        check(entry, heard)
        assert len(heard.requests) == ("status" not in entry)
        assert not heard.unfinished


@pytest.mark.parametrize("entry", REQUESTS, ids=ids(REQUESTS))
def test_a_valid_request_before_it_is_still_delivered(entry: dict[str, Any]) -> None:
    data = GOOD + entry["bytes"]
    for pieces in ([data], [GOOD, entry["bytes"]], piece_by_piece(data, 5 if len(data) < LONG_ENOUGH else 1000)):
        heard = hear(pieces)
        assert heard.requests[0]["body"] == b"good"
        check(entry, heard, before=1)


@pytest.mark.parametrize("entry", REQUESTS, ids=ids(REQUESTS))
def test_what_follows_is_read_only_after_an_accepted_request(entry: dict[str, Any]) -> None:
    data = entry["bytes"] + GOOD
    for pieces in ([data], [entry["bytes"], GOOD], piece_by_piece(data, 3 if len(data) < LONG_ENOUGH else 1000)):
        heard = hear(pieces)
        check(entry, heard)
        followed = "status" not in entry and entry.get("keep_alive", True)
        assert len(heard.requests) == ("status" not in entry) + followed
        assert all(request["path"] != b"/smuggled" for request in heard.requests)
        if followed:
            assert heard.requests[1]["body"] == b"good"


def test_the_corpus_covers_every_promise_that_the_reader_decides() -> None:
    assert set(range(14)) <= {entry["promise"] for entry in REQUESTS}


def test_a_line_seen_under_other_limits_is_judged_by_these() -> None:
    line = b"X: " + b"y" * 97
    request = b"GET /" + b"a" * 95 + b" HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n"
    assert hear([request]).status is None
    assert hear([request], HeadLimits(header_line_bytes_max=100)).status is None
    assert hear([request], HeadLimits(header_line_bytes_max=99)).status == 431
    assert hear([request], HeadLimits(request_line_bytes_max=109)).status is None
    assert hear([request], HeadLimits(request_line_bytes_max=108)).status == 414
    assert hear([request], HeadLimits(headers_max=1)).status == 431


@pytest.mark.parametrize("spare", [-2, -1, 0, 1])
@pytest.mark.parametrize("whole", [True, False])
def test_limits_are_met_at_the_same_byte_for_any_cut(spare: int, whole: bool) -> None:
    line = b"GET /" + b"a" * 200 + b" HTTP/1.1"
    head = line + b"\r\nHost: a\r\nX: " + b"y" * 100
    data = head + b"\r\n\r\n"
    for limits, status in (
        (HeadLimits(request_line_bytes_max=len(line) + spare), 414),
        (HeadLimits(header_bytes_max=len(head) + spare), 431),
        (HeadLimits(header_line_bytes_max=103 + spare), 431),
        (HeadLimits(headers_max=2 + spare), 431),
    ):
        assert hear([data] if whole else piece_by_piece(data), limits).status == (status if spare < 0 else None)


def test_trailers_count_against_the_allowance_of_the_head() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    for trailers, status in ((b"X: yyyyy\r\n", None), (b"X: yyyyyy\r\n", 431)):
        for pieces in cuts(head + b"0\r\n" + trailers + b"\r\n"):
            assert hear(pieces, HeadLimits(header_bytes_max=len(head) + 10)).status == status
    for count, status in ((3, None), (4, 431)):
        data = head + b"0\r\n" + b"X: y\r\n" * count + b"\r\n"
        assert hear([data], HeadLimits(headers_max=5)).status == status


@pytest.mark.parametrize("size", [1, 2, 3])
def test_empty_lines_cannot_be_sent_for_ever(size: int) -> None:
    assert hear(piece_by_piece(b"\r\n" * 50, size)).status == 400


def test_a_declared_length_over_the_limit_is_refused_before_the_body() -> None:
    reader = RequestReader(HeadLimits())
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
    assert reader.next_head() is not None
    with pytest.raises(ProtocolError) as refused:
        reader.begin_body(10)
    assert refused.value.status == 413
    assert reader.dead
    assert reader.next_body() is None
    assert reader.dead


def test_a_dead_reader_stays_dead_whatever_is_asked_of_it() -> None:
    for framing in (b"Content-Length: 4", b"Transfer-Encoding: chunked", b"X: y"):
        reader = RequestReader(HeadLimits())
        reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        assert reader.next_head() is not None
        reader.kill()
        reader.begin_body(BODY_BYTES_MAX)
        assert not reader.drain()
        reader.receive(GOOD)
        assert reader.next_body() is None
        assert reader.next_head() is None
        assert reader.dead


@pytest.mark.parametrize("size", [1, 2, 100, PIECE_BYTES_MIN - 1, PIECE_BYTES_MIN, PIECE_BYTES_MIN + 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_in_small_pieces_is_not_kept_as_small_pieces(size: int, framing: str) -> None:
    body = bytes(range(256)) * 80
    head = b"POST / HTTP/1.1\r\nHost: a\r\n"
    reader = RequestReader(HeadLimits())
    if framing == "length":
        reader.receive(head + b"Content-Length: %d\r\n\r\n" % len(body))
        rest = body
    else:
        reader.receive(head + b"Transfer-Encoding: chunked\r\n\r\n")
        rest = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert reader.next_head() is not None
    reader.begin_body(BODY_BYTES_MAX)
    got = None
    for piece in piece_by_piece(rest, size):
        assert got is None
        assert reader.body_missing > 0
        reader.receive(piece)
        got = reader.next_body()
        assert len(reader._pieces or ()) <= len(body) // PIECE_BYTES_MIN + 1
    assert got == body
    assert reader.body_missing == 0


def test_a_small_body_nobody_wants_is_read_past_and_the_next_request_stands() -> None:
    for size in (0, 1, 4, 1000):
        reader = RequestReader(HeadLimits())
        reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + GOOD[:size])
        assert reader.next_head() is not None
        assert reader.drain()
        reader.receive(b"x" * max(0, size - len(GOOD)))
        assert reader.next_body() is not None
        reader.receive(GOOD)
        request = reader.next_head()
        assert request is not None
        assert request.path == b"/good"


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: %d" % (DRAIN_BYTES_MAX + 1)])
def test_a_body_too_large_or_of_unknown_length_is_never_read_past(framing: bytes) -> None:
    reader = RequestReader(HeadLimits())
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + GOOD)
    assert reader.next_head() is not None
    assert not reader.drain()
    assert reader.dead
    assert reader.next_head() is None


def test_a_body_is_never_looked_at_as_a_head() -> None:
    reader = RequestReader(HeadLimits())
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
    assert reader.next_head() is not None
    with pytest.raises(AssertionError):
        reader.next_head()


def test_a_head_is_handed_out_before_its_body_and_says_what_is_expected() -> None:
    reader = RequestReader(HeadLimits())
    reader.receive(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    request = reader.next_head()
    assert request is not None
    assert (request.expect, request.length, request.chunked) == (True, 3, False)
    reader.begin_body(BODY_BYTES_MAX)
    assert reader.body_missing == 3
    assert reader.next_body() is None
    reader.receive(b"abcGET")
    assert reader.next_body() == b"abc"
    assert reader.in_head


def test_expect_is_not_heard_from_http_1_0() -> None:
    reader = RequestReader(HeadLimits())
    reader.receive(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    request = reader.next_head()
    assert request is not None
    assert not request.expect


def test_list_fields_are_joined_in_order() -> None:
    heard = hear([b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nX: y\r\nACCEPT: c\r\n\r\n"])
    assert heard.requests[0]["fields"] == {b"host": b"a", b"accept": b"b, c", b"x": b"y"}
    assert list(heard.requests[0]["fields"]) == [b"host", b"accept", b"x"]


def test_remembered_lines_and_hosts_are_bounded() -> None:
    for number in range(heads._REMEMBERED_MAX + 10):
        hear([b"GET /%d HTTP/1.1\r\nHost: a%d\r\n\r\n" % (number, number)])
        assert b"a%d" % number in heads._hosts
        assert len(heads.request_lines) <= heads._REMEMBERED_MAX
        assert len(heads._hosts) <= heads._REMEMBERED_MAX
