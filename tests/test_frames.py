"""Frames: what is sent comes out, however it is cut; what is none is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.frames import PAYLOAD_BYTES_MAX, FrameError, Frames, Kind, encode

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=200)), max_size=8)


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_frames_come_out_as_they_were_sent_however_they_are_cut(
    sent: list[tuple[Kind, bytes]], cuts: list[int]
) -> None:
    data = b"".join(encode(kind, payload) for kind, payload in sent)
    frames, found, at = Frames(), list[tuple[Kind, bytes]](), 0
    for size in cuts * (len(data) + 1):
        if at >= len(data):
            break
        found += frames.feed(data[at : at + size])
        at += size
    assert found == sent


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (struct.pack("<IB", PAYLOAD_BYTES_MAX + 1, Kind.RECORDS), "expected at most"),
        (struct.pack("<IB", 0, 0), "a frame of kind 0"),
        (struct.pack("<IB", 0, 200), "a frame of kind 200"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, said: str) -> None:
    good = encode(Kind.BEAT, b"x")
    frames = Frames().feed(good + data)
    assert next(frames) == (Kind.BEAT, b"x")
    with pytest.raises(FrameError, match=said):
        next(frames)


def test_a_length_is_judged_before_its_payload_is_waited_for() -> None:
    with pytest.raises(FrameError):
        list(Frames().feed(b"\xff\xff\xff\xff\x04"))


def test_a_reader_that_stops_early_leaves_the_rest() -> None:
    frames = Frames()
    one = frames.feed(encode(Kind.BEAT, b"1") + encode(Kind.BEAT, b"2"))
    assert next(one) == (Kind.BEAT, b"1")
    one.close()
    assert list(frames.feed(b"")) == [(Kind.BEAT, b"2")]
