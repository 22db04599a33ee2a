"""The field grammar: what a line is, what it never is, what may be sent, and a memory that stays small."""

from __future__ import annotations

import pytest

from dandolo.errors import InternalError
from dandolo.wire import fields

TOKEN_BYTES = b"!#$%&'*+-.^_`|~" + bytes(range(0x30, 0x3A)) + bytes(range(0x41, 0x5B)) + bytes(range(0x61, 0x7B))
VALUE_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))

LINES = [
    ("plain", b"Name: value", (b"name", b"value")),
    ("no-space", b"Name:value", (b"name", b"value")),
    ("spaces-around", b"Name: \t value \t ", (b"name", b"value")),
    ("spaces-within", b"Name: a  b", (b"name", b"a  b")),
    ("empty", b"Name:", (b"name", b"")),
    ("empty-with-spaces", b"Name: \t", (b"name", b"")),
    ("colons", b"a::b:", (b"a", b":b:")),
    ("obs-text", b"a: \xe9\xff", (b"a", b"\xe9\xff")),
    ("folded", b" a: b", None),
    ("folded-tab", b"\ta: b", None),
    ("space-before-colon", b"a : b", None),
    ("tab-before-colon", b"a\t: b", None),
    ("no-name", b": b", None),
    ("no-colon", b"a", None),
    ("nothing", b"", None),
    ("line-end-kept", b"a: b\r\n", None),
    ("lf-at-end", b"a: b\n", None),
]


@pytest.mark.parametrize(("id", "line", "expected"), LINES, ids=[row[0] for row in LINES])
def test_a_line_is_judged_whole_and_the_same_when_seen_again(
    id: str, line: bytes, expected: fields.Field | None
) -> None:
    fields.forget_lines()
    for _ in range(2):
        if expected is None:
            with pytest.raises(fields.FieldError):
                fields.parse_lines([line])
        else:
            assert fields.parse_lines([line]) == [expected]


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_allowed_exactly_where_the_grammar_has_it(byte: int) -> None:
    char = bytes([byte])
    assert fields.is_token(b"a" + char) == (byte in TOKEN_BYTES)
    assert fields.is_value(b"a" + char + b"b") == (byte in VALUE_BYTES)
    for line, allowed in ((b"a" + char + b"b: c", byte in TOKEN_BYTES or char == b":"), (b"a: b" + char + b"c", None)):
        if byte in VALUE_BYTES if allowed is None else allowed:
            fields.parse_lines([line])
        else:
            with pytest.raises(fields.FieldError):
                fields.parse_lines([line])
    if byte in TOKEN_BYTES and byte in VALUE_BYTES:
        assert fields.encode_fields([(b"a" + char, char)]) == b"a" + char + b": " + char + b"\r\n"
    if byte not in VALUE_BYTES:
        with pytest.raises(InternalError):
            fields.encode_fields([(b"a", b"b" + char + b"c")])
    if byte not in TOKEN_BYTES:
        with pytest.raises(InternalError):
            fields.encode_fields([(b"a" + char, b"b")])


def test_nothing_is_sent_of_fields_that_hold_one_bad() -> None:
    for bad in ((b"", b"x"), (b"x", b"a\r\nSet-Cookie: b"), (b"x\r\ny", b"z"), (b"x", b"a\0"), (b"x", b"a\n")):
        with pytest.raises(InternalError):
            fields.encode_fields([(b"good", b"value"), bad])


def test_an_error_never_shows_the_value() -> None:
    for line in (b"authorization : secret", b"authorization: secret\x01", b" secret", b"secret", b"(: secret"):
        with pytest.raises(fields.FieldError) as raised:
            fields.parse_line(line)
        assert "secret" not in str(raised.value)


LENGTHS = [
    (b"0", 0),
    (b"5", 5),
    (b"007", 7),
    (b"9" * 15, 10**15 - 1),
    (b"9" * 16, None),
    (b"", None),
    (b"+5", None),
    (b"-5", None),
    (b"5_0", None),
    (b"0x5", None),
    (b" 5", None),
    (b"5 ", None),
    (b"5\n", None),
    (b"5.0", None),
    (b"1e3", None),
    (b"\xb2", None),
    ("٥".encode(), None),
    ("５".encode(), None),
    (b"5,5", None),
    (b"5\0", None),
]


@pytest.mark.parametrize(("text", "expected"), LENGTHS)
def test_a_length_is_one_to_fifteen_ascii_digits(text: bytes, expected: int | None) -> None:
    assert fields.parse_length(text) == expected


LISTS = [
    (b"", []),
    (b",", []),
    (b"close", [b"close"]),
    (b"Keep-Alive, CLOSE", [b"keep-alive", b"close"]),
    (b" a ,\tb\t,,c;q=1 ", [b"a", b"b", b"c"]),
    (b"closed", [b"closed"]),
]


@pytest.mark.parametrize(("value", "members"), LISTS)
def test_a_list_gives_its_members_in_lower_case(value: bytes, members: list[bytes]) -> None:
    assert fields.list_members(value) == members


def test_remembered_lines_are_bounded_in_number_and_length() -> None:
    fields.forget_lines()
    long = b"a: " + b"b" * fields.REMEMBERED_LINE_BYTES_MAX
    fields.parse_line(long)
    assert not fields._remembered
    fields.parse_line(long[: fields.REMEMBERED_LINE_BYTES_MAX])
    assert len(fields._remembered) == 1
    for number in range(2 * fields.REMEMBERED_LINES_MAX + 5):
        fields.parse_line(b"a: %d" % number)
        assert len(fields._remembered) <= fields.REMEMBERED_LINES_MAX
    fields.forget_lines()
    assert not fields._remembered


def test_a_line_that_was_refused_is_not_remembered() -> None:
    fields.forget_lines()
    with pytest.raises(fields.FieldError):
        fields.parse_line(b"a : b")
    assert not fields._remembered
