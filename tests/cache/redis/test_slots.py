"""Slots of keys against a bitwise CRC16, maps and redirections however they are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache.redis.link import Endpoint
from dandolo.cache.redis.slots import SLOTS, ranges, redirection, slot_of
from dandolo.wire.resp import ErrorReply

ASKED = Endpoint("10.0.0.1", 7000)


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM bit by bit: polynomial 0x1021, nothing reflected, from 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
        crc &= 0xFFFF
    return crc


def test_known_slots() -> None:
    assert crc16(b"123456789") == 0x31C3
    # As `CLUSTER KEYSLOT` gives them.
    assert slot_of(b"foo") == 12182
    assert slot_of(b"123456789") == 0x31C3 % SLOTS
    assert slot_of(b"") == 0


@given(st.binary(max_size=60).filter(lambda key: b"{" not in key))
def test_a_key_without_braces_counts_whole(key: bytes) -> None:
    assert slot_of(key) == crc16(key) % SLOTS


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"a{user1000}.followers", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"}foo{bar}", b"bar"),
        (b"foo}bar", b"foo}bar"),
    ],
)
def test_what_stands_in_the_first_braces_counts_alone(key: bytes, counts: bytes) -> None:
    assert slot_of(key) == crc16(counts) % SLOTS


def test_ranges_give_the_masters() -> None:
    reply: Any = [
        [0, 99, [b"10.0.0.2", 7001, b"name"], [b"10.0.0.3", 7002, b"replica"]],
        [100, 100, [b"", 7003, b"name", []]],
        [101, 101, [None, 7004, b"name"]],
        [102, 102, [b"?", 7005, b"name"]],
        [103, 16383, [b"node.example", 7006]],
    ]
    assert ranges(reply, ASKED) == [
        (0, 99, Endpoint("10.0.0.2", 7001)),
        (100, 100, Endpoint("10.0.0.1", 7003)),
        (101, 101, Endpoint("10.0.0.1", 7004)),
        (103, 16383, Endpoint("node.example", 7006)),
    ]
    assert ranges([], ASKED) == []


@pytest.mark.parametrize(
    "reply",
    [
        None, b"OK", 1, ErrorReply(b"ERR This instance has cluster support disabled"), [1], [[]], [[0, 1]],
        [[0, 1, b"host"]], [[0, 1, [b"host"]]], [[0, SLOTS, [b"host", 1]]], [[2, 1, [b"host", 1]]],
        [[-1, 1, [b"host", 1]]], [[b"0", 1, [b"host", 1]]], [[0, 1, [7, 1]]], [[0, 1, [b"host", 0]]],
        [[0, 1, [b"host", 65536]]], [[0, 1, [b"host", b"1"]]], [[0, 1, ["h\u00f6st".encode(), 1]]],
    ],
)  # fmt: skip
def test_what_is_no_map_is_told(reply: Any) -> None:
    with pytest.raises(ValueError):
        ranges(reply, ASKED)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"MOVED 3999 10.0.0.2:6381", (False, 3999, Endpoint("10.0.0.2", 6381))),
        (b"ASK 0 node.example:1", (True, 0, Endpoint("node.example", 1))),
        (b"MOVED 16383 :6381", (False, 16383, Endpoint("10.0.0.1", 6381))),
        (b"MOVED 1 ::1:6381", (False, 1, Endpoint("::1", 6381))),
        (b"MOVED 1 [::1]:6381", (False, 1, Endpoint("::1", 6381))),
        (b"MOVED 16384 a:1", None),
        (b"MOVED -1 a:1", None),
        (b"MOVED 1 ?:1", None),
        (b"MOVED 1 a:0", None),
        (b"MOVED 1 a:65536", None),
        (b"MOVED 1 a:999999", None),
        (b"MOVED 1 a", None),
        (b"MOVED 1", None),
        (b"MOVED 1 a:1 b", None),
        (b"MOVED 1 \xff:1", None),
        (b"MOVED  a:1", None),
        (b"ERR 1 a:1", None),
        (b"", None),
    ],
)
def test_redirections(message: bytes, expected: object) -> None:
    assert redirection(ErrorReply(message), ASKED) == expected
