"""The chunked decoder: one outcome for any cut, bounds that hold on both of its paths, nothing after an error."""

from __future__ import annotations

import pytest
from feeding import cuts, piece_by_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.wire import chunked
from dandolo.wire.chunked import LAST_CHUNK, ChunkedDecoder, ChunkError, TrailersTooLarge, encode_chunk

CONTENT = st.binary(min_size=1, max_size=40)


def decode(pieces: list[bytes], decoder: ChunkedDecoder | None = None) -> tuple[bytes, bool, bytes, bool]:
    """Content, completeness, rest, and whether it was an error, of bytes fed in pieces."""
    decoder = decoder or ChunkedDecoder()
    content = b""
    try:
        for piece in pieces:
            content += decoder.feed(piece)
    except ChunkError:
        with pytest.raises(ChunkError):
            decoder.feed(b"3\r\nabc\r\n0\r\n\r\n")
        with pytest.raises(ChunkError):
            decoder.feed(b"")
        assert not decoder.complete
        return content, False, b"", True
    assert decoder.content_bytes == len(content)
    return content, decoder.complete, decoder.rest, False


CODED = [
    ("one-chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""),
    ("two-chunks", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", b""),
    ("empty", b"0\r\n\r\n", b"", b""),
    ("rest", b"1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"a", b"GET / HTTP/1.1\r\n\r\n"),
    ("rest-is-line-ends", b"1\r\na\r\n0\r\n\r\n\r\n\r\n", b"a", b"\r\n\r\n"),
    ("data-is-line-ends", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b""),
    ("data-looks-like-the-end", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", b""),
    ("one-byte-chunks", b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"abc", b""),
    ("trailers", b"0\r\nX: y\r\nZ:\r\n\r\nrest", b"", b"rest"),
    ("extension", b'1;a="\\"\t\xff";b\r\na\r\n0;c\r\n\r\n', b"a", b""),
]


@pytest.mark.parametrize(("id", "data", "content", "rest"), CODED, ids=[row[0] for row in CODED])
def test_content_and_rest_are_the_same_for_any_cut(id: str, data: bytes, content: bytes, rest: bytes) -> None:
    for pieces in cuts(data):
        assert decode(pieces) == (content, True, rest, False)
    coded = data[: len(data) - len(rest)]
    for end in range(len(coded)):
        assert decode([coded[:end]])[1:] == (False, b"", False)


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 255, 256, 2047, 2048, 70_000])
def test_what_is_encoded_is_decoded(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    chunk = encode_chunk(content[:size])
    assert decode([chunk, chunk, LAST_CHUNK]) == (content[:size] * 2, True, b"", False)
    assert decode([chunk + chunk + LAST_CHUNK]) == (content[:size] * 2, True, b"", False)


@pytest.mark.parametrize("content", [b"a", b"ab", b"abc"])
@pytest.mark.parametrize("size", [b"%x", b"0%x", b"%x;abcdefghijklmnopqrstuvwxyz"])
def test_framing_that_outweighs_content_is_refused_at_the_same_chunk_for_any_cut(content: bytes, size: bytes) -> None:
    chunk = size % len(content) + b"\r\n" + content + b"\r\n"
    excess = len(chunk) - len(content) - 2 * len(content)
    allowed = chunked.OVERHEAD_FREE_BYTES // excess if excess > 0 else 30_000
    whole = decode([chunk * allowed])
    assert whole == (content * allowed, False, b"", False)
    assert decode([chunk] * allowed) == whole
    if excess > 0:
        assert decode([chunk * (allowed + 1)])[3]
        assert decode([chunk] * (allowed + 1))[3]
        assert decode([chunk * allowed, *piece_by_piece(chunk)])[3]


def test_content_that_came_in_whole_chunks_pays_for_later_framing() -> None:
    chunk = encode_chunk(b"a" * 1000)
    small = encode_chunk(b"a")
    count = (chunked.OVERHEAD_FREE_BYTES + 10 * (2000 - 7)) // 3
    for first in ([chunk] * 10, [chunk * 10], list(piece_by_piece(chunk * 10, 11))):
        assert not decode([*first, small * count])[3]
        assert decode([*first, small * (count + 1)])[3]


def test_trailers_are_bounded_in_lines_and_bytes() -> None:
    for trailers, refused in (
        (b"X: y\r\n" * 3, False),
        (b"X: y\r\n" * 4, True),
        (b"X: " + b"y" * 25 + b"\r\n", False),
        (b"X: " + b"y" * 26 + b"\r\n", True),
        (b"X: " + b"y" * 200, True),
    ):
        data = b"0\r\n" + trailers + b"\r\n"
        for pieces in cuts(data):
            decoder = ChunkedDecoder(trailer_bytes_max=30, trailers_max=3)
            if refused:
                with pytest.raises(TrailersTooLarge):
                    _ = [decoder.feed(piece) for piece in pieces]
            else:
                assert decode(pieces, decoder) == (b"", True, b"", False)


def test_no_trailer_at_all_may_be_allowed() -> None:
    for pieces in cuts(LAST_CHUNK):
        assert decode(pieces, ChunkedDecoder(trailer_bytes_max=0, trailers_max=0))[1]
    for pieces in cuts(b"0\r\nX: y\r\n\r\n"):
        assert decode(pieces, ChunkedDecoder(trailer_bytes_max=0, trailers_max=0))[3]


def test_size_line_that_is_cut_within_its_line_end_is_not_a_size_line_yet() -> None:
    # The line end of an earlier chunk stands where the cut one's content would end.
    coded = b"".join(map(encode_chunk, (b"abc", b"8 bytes.", b"8 bytes!"))) + LAST_CHUNK
    for cut in range(len(coded)):
        assert decode([coded[:cut], coded[cut:]]) == (b"abc8 bytes.8 bytes!", True, b"", False)


@settings(max_examples=1500, deadline=None)
@given(chunks=st.lists(CONTENT, max_size=6), data=st.data())
def test_cutting_never_changes_the_outcome(chunks: list[bytes], data: st.DataObject) -> None:
    coded = b"".join(map(encode_chunk, chunks)) + LAST_CHUNK + b"rest"
    if data.draw(st.booleans(), "mutate"):
        at = data.draw(st.integers(0, len(coded) - 1), "at")
        put = data.draw(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"0", b";", b" ", b"\0", b"f", b":"]), "put")
        coded = coded[:at] + put + coded[at + data.draw(st.integers(0, 2), "dropped") :]
    whole = decode([coded])
    marks = sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=5), "cuts"))
    pieces = [coded[a:b] for a, b in zip([0, *marks], [*marks, len(coded)], strict=True)]
    for other in (decode(pieces), decode(list(piece_by_piece(coded)))):
        # Content before an error may have been handed out or not; completeness and the rest must agree.
        assert other[1:] == whole[1:]
        if not whole[3]:
            assert other[0] == whole[0]
