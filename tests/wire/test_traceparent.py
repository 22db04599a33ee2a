"""traceparent as W3C Trace Context has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.wire.traceparent import encode, parse

TRACE, SPAN = b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7"
VALID = b"00-%b-%b-01" % (TRACE, SPAN)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (VALID, True),
        (VALID[:-2] + b"00", False),
        (VALID[:-2] + b"03", True),
        (VALID[:-2] + b"fe", False),
        # A version to come: read as far as it is known.
        (b"01" + VALID[2:], True),
        (b"cc" + VALID[2:] + b"-what-the-future-brings", True),
        (b"cc" + VALID[2:] + b"-", True),
    ],
)
def test_what_is_valid_is_read(value: bytes, sampled: bool) -> None:
    assert parse(value) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        VALID.upper(),
        VALID + b" ",
        b" " + VALID,
        VALID + b"-more",
        VALID + b"-",
        VALID[:-1],
        VALID + b"0",
        b"ff" + VALID[2:],
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE[:-1] + b"g", SPAN),
        b"00-%b-%b-0x" % (TRACE, SPAN),
        VALID.replace(b"-", b"_"),
        VALID + b", " + VALID,
        b"01" + VALID[2:] + b"more",
        VALID + b"\n",
    ],
)
def test_what_is_not_is_none(value: bytes) -> None:
    assert parse(value) is None


@given(st.binary(max_size=80))
def test_anything_is_read_or_not(value: bytes) -> None:
    found = parse(value)
    assert found is None or value[3:35] == found.trace_id


@given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1), st.booleans())
def test_what_is_written_is_read(trace: int, span: int, sampled: bool) -> None:
    ids = b"%032x" % trace, b"%016x" % span
    assert parse(encode(*ids, sampled)) == (*ids, sampled)
