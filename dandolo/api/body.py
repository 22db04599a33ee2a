"""JSON bodies: judged whole, decoded only where they steer, changed only where they must change.

`judge` proves that a body is one JSON object that every parser reads the same way: valid UTF-8 and JSON
throughout, no lone surrogate, no NaN, bounded depth, and no top-level key twice (also not in another
spelling). Only then may a field be acted on and the bytes be sent on: what was judged is what is sent.

The proofs are chosen for their price. msgspec skips over values while checking them (NaN, surrogates,
control characters, trailing bytes), `bytes.decode` checks UTF-8, and the sum of the lengths of all keys
and values equals the length of a compact body only when no key stands twice, none is escaped and there is
no white space; other layouts are rebuilt and compared, or scanned exactly. Measured (`bench/micro/bodies.py`):
1.9 µs for 1 KiB, 12 µs for 32 and 90 µs for 256 KiB of ASCII, 3, 32 and 260 to 450 µs of mixed text: from 32 KiB
on about what orjson takes to decode a body, proving nothing but that it is JSON.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import msgspec

from dandolo.errors import RequestError

DEPTH_MAX = 128
DIGITS_MAX = 64
COUNTED_BYTES_MAX = 2048
UTF8_PIECE_BYTES = 64 * 1024
FIELDS_MAX = 4096
"""Top-level fields of one body: no API has a hundredth of it, and finding so many costs more than a call may."""

_LIMIT_HOLDS = sys.version_info < (3, 12)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_any = msgspec.json.Decoder()
_string = msgspec.json.Decoder(str)
_space = re.compile(r"[ \t\r\n]*").match
_encoder = msgspec.json.Encoder()
# The scanner of the standard library finds where a value ends; numbers are not converted (a digit bomb).
_scan_value: Callable[[str, int], tuple[Any, int]] = vars(json.JSONDecoder(parse_int=len, parse_float=len))["scan_once"]
_scan_string: Callable[[str, int], tuple[str, int]] = vars(json.decoder)["scanstring"]
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")

_Span = tuple[int, int, int]


class JsonBody:
    """A judged body: its bytes and its top-level fields, each still raw JSON."""

    __slots__ = ("_colon", "_comma", "_spans", "fields", "raw")

    def __init__(self, raw: bytes, fields: dict[str, msgspec.Raw]) -> None:
        self.raw = raw
        self.fields = fields
        self._colon = 1
        self._comma = 1
        self._spans: dict[str, _Span] | None = None

    def get(self, name: str) -> bytes | None:
        """The raw JSON of a top-level field; None when it is absent or null."""
        raw = self.fields.get(name)
        if raw is None or (len(raw) == 4 and bytes(raw) == b"null"):
            return None
        return bytes(raw)

    def text(self, name: str, *, required: bool = False) -> str | None:
        """A string field. Raises RequestError naming it when it is something else, or missing though required."""
        raw = self.get(name)
        if raw is None:
            if required:
                raise RequestError(f"the field '{name}' is missing; give it as a string", param=name)
            return None
        if raw[0] != 0x22:
            raise RequestError(f"the field '{name}' must be a string", param=name)
        return _string.decode(raw)

    def flag(self, name: str) -> bool:
        """A boolean field, False when absent. Raises RequestError when it is something else."""
        raw = self.get(name)
        if raw is None or raw == b"false":
            return False
        if raw == b"true":
            return True
        raise RequestError(f"the field '{name}' must be true or false", param=name)

    def number(self, name: str) -> int | None:
        """A non-negative integer field. Raises RequestError for other values and for more than DIGITS_MAX digits."""
        raw = self.get(name)
        if raw is None:
            return None
        if len(raw) > DIGITS_MAX or not raw.isdigit():
            raise RequestError(f"the field '{name}' must be a whole number of at most {DIGITS_MAX} digits", param=name)
        return int(raw)

    def require(self, name: str, opening: bytes, kind: str) -> None:
        """Refuse a field that is missing or does not begin with one of the bytes `opening` (its JSON type)."""
        raw = self.fields.get(name)
        if raw is None or (len(raw) == 4 and bytes(raw) == b"null"):
            raise RequestError(f"the field '{name}' is missing; give it as {kind}", param=name)
        # Only the first byte: the value itself may be most of the body.
        if memoryview(raw)[0] not in opening:
            raise RequestError(f"the field '{name}' must be {kind}", param=name)

    def value(self, name: str) -> Any:
        """A field decoded whole, None when absent. Raises RequestError for what cannot be (a digit bomb)."""
        raw = self.get(name)
        if raw is None:
            return None
        try:
            return _any.decode(raw)
        except (ValueError, RecursionError):
            raise RequestError(f"the field '{name}' cannot be decoded", param=name) from None

    def edited(self, edits: Mapping[str, bytes | None]) -> bytes:
        """The body with top-level values replaced, added (at the end) or, for None, removed.

        Every other byte stays as it was.
        """
        spans = {name: span for name in edits if (span := self._span(name)) is not None}
        if any(value is None for value in edits.values()) or len(spans) < len(edits):
            return self._edited_structure(edits)
        raw = self.raw
        pieces: list[bytes] = []
        at = 0
        for name in sorted(spans, key=lambda name: spans[name]):
            _, start, end = spans[name]
            replacement = edits[name]
            assert replacement is not None
            pieces += (raw[at:start], replacement)
            at = end
        pieces.append(raw[at:])
        return b"".join(pieces)

    def _edited_structure(self, edits: Mapping[str, bytes | None]) -> bytes:
        """Edits that add or remove fields: values keep their bytes, the top-level object is written anew."""
        raw = self.raw
        added = {name: value for name, value in edits.items() if name not in self.fields and value is not None}
        kept = {name: value for name, value in edits.items() if name in self.fields}
        if any(value is None for value in kept.values()) or not self.fields:
            members = []
            for name, value in self.fields.items():
                new = kept[name] if name in kept else bytes(value)
                if new is not None:
                    members.append(_encoder.encode(name) + b":" + new)
            members += [_encoder.encode(name) + b":" + value for name, value in added.items()]
            return b"{" + b",".join(members) + b"}"
        if kept:
            raw = self.edited(kept)
        end = raw.rindex(b"}")
        tail = b"".join(b"," + _encoder.encode(name) + b":" + value for name, value in added.items())
        return raw[:end] + tail + raw[end:]

    def _span(self, name: str) -> _Span | None:
        """Where a field's key and value stand: (start of key, start of value, end of value)."""
        if name not in self.fields:
            return None
        if self._spans is not None:
            return self._spans[name]
        at = 1
        for key, value in self.fields.items():
            key_bytes = len(key) if key.isascii() else len(key.encode())
            start = at + key_bytes + 2 + self._colon
            end = start + len(value)
            if key == name:
                return (at, start, end)
            at = end + self._comma
        raise AssertionError("the field was just there")


def judge(raw: bytes) -> JsonBody:
    """Prove a request body to be one unambiguous JSON object. Raises RequestError (400) saying what is wrong."""
    try:
        fields, shallow = _decode(raw)
        if not raw.isascii():
            _check_utf8(raw)
    except msgspec.ValidationError:
        raise RequestError("the body must be a JSON object") from None
    except msgspec.DecodeError as error:
        if not raw.strip():
            raise RequestError("the body is empty; send a JSON object") from None
        raise RequestError(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    except UnicodeError:
        raise RequestError("the body is not valid UTF-8") from None
    body = JsonBody(raw, fields)
    if not shallow and any(
        memoryview(value)[0] in b"[{" and _nested_beyond(bytes(value), DEPTH_MAX - 1) for value in fields.values()
    ):
        raise _too_deep()
    count = len(fields)
    if count > FIELDS_MAX:
        raise RequestError(f"the body has more than {FIELDS_MAX} fields at its top level")
    keys = "".join(fields)
    size = (len(keys) if keys.isascii() else len(keys.encode())) + sum(map(len, fields.values()))
    if size + 4 * count + 1 == len(raw) and count:
        return body
    if size + 6 * count == len(raw) and count and _spaced(fields) == raw:
        body._colon = body._comma = 2
        return body
    body._spans = _scan(raw, fields)
    return body


def _decode(raw: bytes) -> tuple[dict[str, msgspec.Raw], bool]:
    """The top-level fields, and whether the body is surely within DEPTH_MAX. Raises what msgspec raises.

    The decoder stops at the interpreter's recursion limit. Set to DEPTH_MAX + 1 for the time of one call, in
    which no other Python code runs, it proves for a tenth of a microsecond that a body is not too deep
    (Python's own frames make it stricter, never laxer); counting brackets costs 3 to 30 µs at 32 KiB. Since
    CPython 3.12 the limit does not hold for C code, so there the brackets are counted.
    """
    if not _LIMIT_HOLDS:
        return _object.decode(raw), not _openers_exceed(raw, DEPTH_MAX)
    usual = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(DEPTH_MAX + 1)
        return _object.decode(raw), True
    except RecursionError:
        pass
    finally:
        sys.setrecursionlimit(usual)
    return _object.decode(raw), False


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested more than {DEPTH_MAX} levels deep")


def _spaced(fields: dict[str, msgspec.Raw]) -> bytes:
    """The body as Python's json.dumps would space it by default."""
    return b"{" + b", ".join([b'"%b": %b' % (key.encode(), value) for key, value in fields.items()]) + b"}"


def _openers_exceed(raw: bytes, bound: int) -> bool:
    """Whether more than `bound` brackets open anywhere, in strings too: only then can the depth exceed it."""
    if len(raw) < COUNTED_BYTES_MAX:
        # bytes.count goes byte by byte, find with memchr: the first is cheaper only where there is little.
        return raw.count(b"{") + raw.count(b"[") > bound
    find = raw.find
    seen = 0
    for bracket in (b"{", b"["):
        at = find(bracket)
        while at >= 0:
            seen += 1
            if seen > bound:
                return True
            at = find(bracket, at + 1)
    return False


def _nested_beyond(raw: bytes, levels: int, decoded: int = 3) -> bool:
    """Whether valid JSON has more than `levels` containers within each other.

    Brackets in strings are what makes that hard to see. The outer levels are taken apart by msgspec, which
    leaves few parts that could be deep at all; only those are looked at byte by byte.
    """
    if raw[0] not in b"[{" or not _openers_exceed(raw, levels):
        return False
    if not decoded:
        return _depth(raw) > levels
    children = _array.decode(raw) if raw[0] == 0x5B else list(_object.decode(raw).values())
    for child in children:
        # The first byte tells a container; a string is not copied to find that out.
        if (
            len(child) > levels
            and memoryview(child)[0] in b"[{"
            and _nested_beyond(bytes(child), levels - 1, decoded - 1)
        ):
            return True
    return False


def _depth(raw: bytes) -> int:
    """Exact nesting depth of valid JSON: what is left of it outside its strings, as steps up and down."""
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in raw else raw
    steps = b"".join(plain.split(b'"')[::2]).translate(_STEPS, _NOT_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def _check_utf8(raw: bytes) -> None:
    """Raise UnicodeDecodeError unless `raw` is UTF-8. In pieces: a large text costs more to allocate than to check."""
    if len(raw) <= UTF8_PIECE_BYTES:
        raw.decode()
        return
    view = memoryview(raw)
    at = 0
    while at < len(raw):
        end = min(at + UTF8_PIECE_BYTES, len(raw))
        # Not within a character: continuation bytes are 10xxxxxx, and no character has more than three.
        for _ in range(3):
            if end < len(raw) and raw[end] & 0xC0 == 0x80:
                end -= 1
        str(view[at:end], "utf-8")
        at = end


def _scan(raw: bytes, fields: dict[str, msgspec.Raw]) -> dict[str, _Span]:
    """Where each top-level field stands, by an exact scan. Raises RequestError when one is given twice."""
    text = raw.decode()
    ascii_only = raw.isascii()
    spans: dict[str, _Span] = {}
    bytes_at = chars_at = 0

    def offset(char: int) -> int:
        nonlocal bytes_at, chars_at
        if ascii_only:
            return char
        bytes_at += len(text[chars_at:char].encode())
        chars_at = char
        return bytes_at

    at = _skip_space(text, _skip_space(text, 0) + 1)
    while text[at] != "}":
        key_at = offset(at)
        key, at = _scan_string(text, at + 1)
        at = _skip_space(text, _skip_space(text, at) + 1)
        start = offset(at)
        _, at = _scan_value(text, at)
        if key in spans:
            raise RequestError(f"the field '{key[:64]}' stands twice in the body; give it once", param=key[:64])
        spans[key] = (key_at, start, offset(at))
        at = _skip_space(text, at)
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    assert len(spans) == len(fields)
    return spans


def _skip_space(text: str, at: int) -> int:
    space = _space(text, at)
    assert space is not None
    return space.end()
