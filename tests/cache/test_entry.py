"""Records: what is written comes back, and nothing else ever comes back."""

import pickle
import random
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache import entry as entries
from dandolo.cache.entry import BODY_BYTES_MAX, DEFLATED_BYTES_MIN, Entry, Tokens, decode, encode
from dandolo.cache.lifetime import TtlClass

KEY = bytes(range(20))


def made(**changed: Any) -> Entry:
    usual: dict[str, Any] = {
        "key": KEY,
        "created": 1_000.0,
        "expires": 2_000.0,
        "stale_until": 2_100.0,
        "kind": TtlClass.QUESTION,
        "status": 200,
        "model": "venice/llama",
        "usage": Tokens(10, 20),
        "cost_usd": 0.001,
        "gen_ms": 900,
        "tags": ("team=web",),
        "body": b'{"choices":[]}',
        "delta_offsets": (3, 9),
    }
    return Entry(**{**usual, **changed})


SMALL = encode(made())
LARGE = encode(made(body=b'{"a":"' + b"the quick brown fox " * 400 + b'"}'))
RANDOM = encode(made(body=random.Random(1).randbytes(6000)))

COUNTS = st.integers(0, 2**48)
ENTRIES = st.builds(
    made,
    key=st.binary(min_size=20, max_size=20),
    created=st.floats(0, 1e3),
    expires=st.floats(1e3, 1e6),
    stale_until=st.floats(1e6, 1e10),
    kind=st.sampled_from(TtlClass),
    status=st.integers(200, 599),
    model=st.text(max_size=20),
    usage=st.none() | st.builds(Tokens, COUNTS, COUNTS, COUNTS, COUNTS),
    cost_usd=st.none() | st.floats(0, 1e6),
    gen_ms=COUNTS,
    tags=st.lists(st.text(max_size=20), max_size=4).map(tuple),
    body=st.binary(max_size=400) | st.binary(min_size=1, max_size=40).map(lambda piece: piece * 300),
    delta_offsets=st.lists(COUNTS, max_size=5).map(tuple),
)


@given(ENTRIES)
def test_what_is_written_comes_back(entry: Entry) -> None:
    assert decode(encode(entry), entry.key) == entry


def test_a_record_is_an_array_in_the_design_s_order() -> None:
    fields = msgspec.msgpack.decode(SMALL[10:])
    body = b'{"choices":[]}'
    assert fields == [
        1,
        KEY,
        1e3,
        2e3,
        2.1e3,
        7,
        200,
        "venice/llama",
        [10, 20, 0, 0],
        0.001,
        900,
        ["team=web"],
        body,
        [3, 9],
    ]


def test_large_records_are_deflated_and_incompressible_ones_are_not() -> None:
    assert len(LARGE) < DEFLATED_BYTES_MIN < len(RANDOM)
    assert (SMALL[1], LARGE[1], RANDOM[1]) == (0, 1, 0)
    assert all(decode(record, KEY) is not None for record in (SMALL, LARGE, RANDOM))


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["plain", "deflated"])
def test_a_flipped_bit_anywhere_is_a_miss(record: bytes) -> None:
    for at in range(len(record)):
        for bit in range(8):
            flipped = record[:at] + bytes((record[at] ^ 1 << bit,)) + record[at + 1 :]
            assert decode(flipped, KEY) is None


@pytest.mark.parametrize("record", [SMALL, LARGE], ids=["plain", "deflated"])
def test_a_record_cut_anywhere_is_a_miss(record: bytes) -> None:
    assert all(decode(record[:length], KEY) is None for length in range(len(record)))
    assert all(decode(record[start:], KEY) is None for start in range(1, len(record)))
    assert decode(record + b"\0", KEY) is None
    assert decode(record + record, KEY) is None


@given(ENTRIES, st.data())
def test_damage_is_a_miss_or_no_damage(entry: Entry, data: st.DataObject) -> None:
    record = bytearray(encode(entry))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(record)))
        end = data.draw(st.integers(start, min(len(record), start + 8)))
        record[start:end] = data.draw(st.binary(max_size=8))
    assert decode(bytes(record), entry.key) in (None, entry)


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_miss(foreign: bytes) -> None:
    assert decode(foreign, KEY) is None


def sealed(kind: bytes, payload: bytes) -> bytes:
    """A record whose checksum is right whatever is in it."""
    return kind + entries._checksum(kind, payload) + payload


@given(st.binary(max_size=100), st.sampled_from([b"\xda\x00", b"\xda\x01", b"\xda\x02", b"\xdb\x00"]))
def test_foreign_bytes_with_a_right_checksum_are_a_miss(foreign: bytes, kind: bytes) -> None:
    assert decode(sealed(kind, foreign), KEY) is None


def changed(at: int, value: Any) -> bytes:
    fields = msgspec.msgpack.decode(SMALL[10:])
    fields[at] = value
    return sealed(b"\xda\x00", msgspec.msgpack.encode(fields))


WRONG: list[tuple[str, bytes]] = [
    ("another version", changed(0, 2)),
    ("another key", changed(1, bytes(20))),
    ("a key that begins the same", changed(1, KEY + b"\0")),
    ("a key as text", changed(1, "x")),
    ("a time that is none", changed(3, float("nan"))),
    ("no end", changed(4, float("inf"))),
    ("expired before it was made", changed(3, 10.0)),
    ("an unknown class", changed(5, 99)),
    ("a status that is none", changed(6, 7)),
    ("a text for a number", changed(10, "1")),
    ("too many tags", changed(11, ["t"] * 17)),
    ("a body as text", changed(12, "{}")),
    ("a field too many", sealed(b"\xda\x00", msgspec.msgpack.encode([*msgspec.msgpack.decode(SMALL[10:]), 1]))),
    ("bytes after it", sealed(b"\xda\x00", SMALL[10:] + b"\0")),
    ("a pickle", sealed(b"\xda\x00", pickle.dumps(["x"]))),
    ("deep nesting", sealed(b"\xda\x00", b"\x91" * 100_000)),
]


@pytest.mark.parametrize("record", [pytest.param(record, id=name) for name, record in WRONG])
def test_a_right_checksum_does_not_make_an_entry(record: bytes) -> None:
    assert decode(record, KEY) is None


def test_nothing_inflates_beyond_what_it_says_or_a_body_may_have() -> None:
    payload = msgspec.msgpack.encode(made(body=bytes(10_000)))
    deflated = zlib.compress(payload, 1)
    size = len(payload)
    assert decode(sealed(b"\xda\x01", size.to_bytes(4, "big") + deflated), KEY) is not None
    for said in (0, 1, size - 1, size + 1, 2**32 - 1):
        assert decode(sealed(b"\xda\x01", said.to_bytes(4, "big") + deflated), KEY) is None
    assert decode(sealed(b"\xda\x01", size.to_bytes(4, "big") + deflated + b"more"), KEY) is None
    assert decode(sealed(b"\xda\x01", size.to_bytes(4, "big") + deflated[:-1]), KEY) is None


def test_another_key_never_gets_the_entry() -> None:
    assert decode(SMALL, KEY) == made()
    assert decode(SMALL, KEY[:-1] + b"\0") is None
    assert decode(SMALL, KEY[:-1]) is None


@pytest.mark.parametrize(
    "entry",
    [
        made(key=b"short"),
        made(expires=1.0),
        made(stale_until=float("inf")),
        made(status=0),
        made(tags=("t",) * 17),
        made(tags=("t" * 129,)),
        made(delta_offsets=tuple(range(5000))),
        made(version=2),
    ],
)
def test_what_would_not_come_back_is_not_written(entry: Entry) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        encode(entry)


def test_a_body_beyond_the_limit_is_not_written() -> None:
    with pytest.raises(ValueError, match="bytes"):
        encode(made(body=bytes(BODY_BYTES_MAX + 1)))


def test_usable_for_errors_by_class() -> None:
    assert made().usable_until == 2_000.0 + 86_400.0
    assert made(kind=TtlClass.CODE).usable_until == 2_100.0


def test_a_record_need_not_be_deflated() -> None:
    entry = made(body=b'{"a":"' + b"the quick brown fox " * 400 + b'"}')
    plain = encode(entry, deflates=False)
    assert len(plain) > len(LARGE) * 4
    assert decode(plain, KEY) == decode(LARGE, KEY) == entry
