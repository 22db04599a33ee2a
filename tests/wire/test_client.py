"""The answer reader against the corpus: complete and reusable, or refused, the same for any cut of the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from feeding import corpus, cuts, piece_by_piece, read_answer

from dandolo.errors import UpstreamError, UpstreamInvalid
from dandolo.wire.client import HEAD_BYTES_MAX, ResponseReader

ANSWERS = corpus("answers.toml", "answer")
IDS = [entry["id"] for entry in ANSWERS]
NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("entry", ANSWERS, ids=IDS)
def test_every_cut_of_the_bytes_has_the_same_outcome(entry: dict[str, Any]) -> None:
    for pieces in cuts(entry["bytes"]):
        answer = read_answer(pieces, head_only=entry.get("head_only", False), eof=entry.get("eof", False))
        if "error" in entry:
            assert answer.error.encode() == entry["error"]
            assert not answer.complete
            assert not answer.reusable
        else:
            assert answer.error == ""
            assert answer.complete
            assert (answer.status, answer.body, answer.reusable) == (entry["status"], entry["body"], entry["reusable"])


@pytest.mark.parametrize("entry", [entry for entry in ANSWERS if not entry.get("eof")], ids=lambda entry: entry["id"])
def test_bytes_that_follow_reach_nobody_and_spoil_the_connection(entry: dict[str, Any]) -> None:
    for pieces in ([entry["bytes"] + NEXT], [entry["bytes"], NEXT]):
        answer = read_answer(pieces, head_only=entry.get("head_only", False))
        assert not answer.reusable
        assert b"evil" not in answer.body
        if "error" not in entry:
            assert (answer.complete, answer.body) == (True, entry["body"])
        else:
            assert not answer.complete


def test_the_corpus_covers_every_promise_that_the_reader_decides() -> None:
    assert {entry["promise"] for entry in ANSWERS} == {22, 24, 25, 30}


BROKEN = [
    ("head", b"HTTP/1.1 999 X\r\n\r\n"),
    ("partial-head", b"garbage"),
    ("chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
    ("interim", b"HTTP/1.1 101 X\r\n\r\n"),
]


@pytest.mark.parametrize(("id", "data"), BROKEN, ids=[id for id, _ in BROKEN])
def test_a_reader_that_raised_reads_nothing_more(id: str, data: bytes) -> None:
    reader = ResponseReader()
    reader.begin()
    with pytest.raises(UpstreamInvalid):
        assert reader.head(data) is None or reader.body(b"")
    with pytest.raises(UpstreamInvalid):
        reader.head(NEXT)
    for piece in (b"", NEXT, b"5\r\nhello\r\n", b"0\r\n\r\n"):
        assert reader.body(piece) == b""
        assert not reader.complete
        assert not reader.reusable
    with pytest.raises(UpstreamInvalid):
        reader.eof()
    assert not reader.complete
    with pytest.raises(AssertionError):
        reader.begin()


def test_an_answer_before_a_request_is_refused() -> None:
    reader = ResponseReader()
    with pytest.raises(UpstreamInvalid):
        reader.head(NEXT)
    assert not reader.reusable


def test_an_answer_after_a_complete_answer_is_refused() -> None:
    reader = ResponseReader()
    reader.begin()
    assert reader.head(NEXT) is not None
    assert reader.body(b"") == b"evil"
    assert reader.reusable
    with pytest.raises(UpstreamInvalid):
        reader.head(NEXT)
    assert not reader.reusable


def test_one_connection_reads_many_answers_of_every_framing() -> None:
    reader = ResponseReader()
    answers = [
        (entry, piece)
        for entry in ANSWERS
        if "error" not in entry and entry["reusable"]
        for piece in (1, len(entry["bytes"]))
        if len(entry["bytes"]) < 2000
    ]
    assert len(answers) > 40
    for entry, size in answers:
        reader.begin(head_only=entry.get("head_only", False))
        response = None
        body = b""
        for piece in piece_by_piece(entry["bytes"], size):
            if response is None:
                response = reader.head(piece)
                body += b"" if response is None else reader.body(b"")
            else:
                body += reader.body(piece)
        assert response is not None
        assert (response.status, body, reader.reusable) == (entry["status"], entry["body"], True)


def test_leftover_bytes_are_never_the_start_of_the_next_answer() -> None:
    reader = ResponseReader()
    reader.begin()
    assert reader.head(NEXT + NEXT) is not None
    assert reader.body(b"") == b"evil"
    assert not reader.reusable
    with pytest.raises(AssertionError):
        reader.begin()


@pytest.mark.parametrize("over", [0, 1, 2, 3, 4, 1000])
@pytest.mark.parametrize("size", [1000, 4096, HEAD_BYTES_MAX * 2])
def test_the_bound_of_the_head_does_not_depend_on_the_cut(over: int, size: int) -> None:
    head = b"HTTP/1.1 204 X\r\nX: "
    head += b"y" * (HEAD_BYTES_MAX - len(head) + over)
    answer = read_answer(piece_by_piece(head + b"\r\n\r\n", size))
    assert answer.complete == (over == 0)


def test_the_declared_length_is_told_before_the_body() -> None:
    for framing, length in ((b"Content-Length: 7", 7), (b"Transfer-Encoding: chunked", None), (b"X: y", None)):
        reader = ResponseReader()
        reader.begin()
        response = reader.head(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        assert response is not None
        assert response.length == length
        assert reader.delimited_by_eof == (framing == b"X: y")


def test_the_end_of_an_idle_connection_is_no_error_and_ends_its_use() -> None:
    reader = ResponseReader()
    reader.begin()
    reader.head(NEXT)
    reader.body(b"")
    assert reader.reusable
    reader.eof()
    assert not reader.reusable


def test_whether_any_byte_came_is_known_for_the_retry() -> None:
    reader = ResponseReader()
    reader.begin()
    assert not reader.received
    reader.head(b"H")
    assert reader.received
    with pytest.raises(UpstreamError):
        reader.eof()
