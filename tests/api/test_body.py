"""Bodies: one meaning or none, edits that touch nothing else, and bounded work for hostile input."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dandolo.api.body import DEPTH_MAX, DIGITS_MAX, FIELDS_MAX, judge
from dandolo.errors import RequestError


def refused(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        judge(raw)
    assert caught.value.status == 400
    return caught.value


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """An object whose one field makes it `levels` deep in all."""
    return ('{"a":' + opening * (levels - 1) + closing * (levels - 1) + "}").encode()


REFUSED = [
    ("empty", b""),
    ("white-space-only", b" \r\n\t"),
    ("byte-order-mark", b"\xef\xbb\xbf{}"),
    ("utf-16", '{"a":1}'.encode("utf-16")),
    ("array", b"[]"),
    ("string", b'"model"'),
    ("number", b"1"),
    ("null", b"null"),
    ("trailing-junk", b'{"a":1} x'),
    ("second-object", b'{"a":1}{"a":2}'),
    ("trailing-nul", b'{"a":1}\x00'),
    ("trailing-comma", b'{"a":1,}'),
    ("trailing-comma-in-array", b'{"a":[1,]}'),
    ("missing-colon", b'{"a" 1}'),
    ("missing-value", b'{"a":}'),
    ("unquoted-key", b"{a:1}"),
    ("single-quotes", b"{'a':1}"),
    ("comment", b'{"a":1/**/}'),
    ("vertical-tab", b"{\x0b}"),
    ("no-break-space", b'{\xc2\xa0"a":1}'),
    ("unterminated", b'{"a":"'),
    ("cut-in-escape", b'{"a":"\\u00'),
    ("NaN", b'{"a":NaN}'),
    ("Infinity", b'{"a":Infinity}'),
    ("-Infinity", b'{"a":[-Infinity]}'),
    ("nested-NaN", b'{"a":{"b":[NaN]}}'),
    ("leading-zero", b'{"a":01}'),
    ("plus", b'{"a":+1}'),
    ("bare-minus", b'{"a":-}'),
    ("bare-point", b'{"a":1.}'),
    ("bare-exponent", b'{"a":1e}'),
    ("hexadecimal", b'{"a":0x1}'),
    ("underscore", b'{"a":1_0}'),
    ("true-cut", b'{"a":tru}'),
    ("True", b'{"a":True}'),
    ("control-character", b'{"a":"\x01"}'),
    ("raw-line-feed-in-string", b'{"a":"\n"}'),
    ("raw-tab-in-key", b'{"a\t":1}'),
    ("unknown-escape", b'{"a":"\\x41"}'),
    ("bad-hex-escape", b'{"a":"\\u00zz"}'),
    ("lone-high-surrogate", b'{"a":"\\ud800"}'),
    ("lone-low-surrogate", b'{"a":"\\udc00"}'),
    ("reversed-surrogates", b'{"a":"\\udc00\\ud800"}'),
    ("two-high-surrogates", b'{"a":"\\ud800\\ud800"}'),
    ("lone-surrogate-in-key", b'{"\\ud800":1}'),
    ("lone-surrogate-nested", b'{"a":[{"b":"\\udfff"}]}'),
    ("lone-surrogate-in-nested-key", b'{"a":{"\\ud800":1}}'),
    ("invalid-utf8-in-value", b'{"a":"\xff"}'),
    ("invalid-utf8-in-key", b'{"\xff":1}'),
    ("invalid-utf8-nested", b'{"a":[["\xc3("]]}'),
    ("overlong-utf8", b'{"a":"\xc0\xaf"}'),
    ("utf8-surrogate", b'{"a":"\xed\xa0\x80"}'),
    ("utf8-beyond-unicode", b'{"a":"\xf4\x90\x80\x80"}'),
    ("utf8-cut", b'{"a":"\xe2\x82"}'),
]


@pytest.mark.parametrize("raw", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_not_one_json_object_is_refused(raw: bytes) -> None:
    refused(raw)


@pytest.mark.parametrize("raw", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusals_repeat_no_value_of_the_caller(raw: bytes) -> None:
    assert "\n" not in refused(raw).message


DUPLICATES = [
    ("compact", b'{"model":"a","model":"b"}', "model"),
    ("compact-apart", b'{"model":"a","messages":[],"model":"b"}', "model"),
    ("same-value", b'{"model":"a","model":"a"}', "model"),
    ("null-first", b'{"model":null,"model":"b"}', "model"),
    ("spaced", b'{"model": "a", "model": "b"}', "model"),
    ("spaced-apart", b'{"model": "a", "x": 1, "model": "b"}', "model"),
    ("pretty", b'{\n  "model": "a",\n  "model": "b"\n}', "model"),
    ("pretty-crlf", b'{\r\n\t"model":\t"a",\r\n\t"model":\t"b"\r\n}', "model"),
    ("space-before-colon", b'{"model" :"a","model":"b"}', "model"),
    ("trailing-white-space", b'{"model":"a","model":"b"}\n', "model"),
    ("escaped-second", b'{"model":"a","mod\\u0065l":"b"}', "model"),
    ("escaped-first", b'{"\\u006dodel":"a","model":"b"}', "model"),
    ("both-escaped", b'{"\\u006dodel":"a","mode\\u006c":"b"}', "model"),
    ("escaped-hex-case", b'{"a\\u006Ab":1,"a\\u006ab":2}', "ajb"),
    ("escaped-slash", b'{"a/b":1,"a\\/b":2}', "a/b"),
    ("escaped-spaced", b'{"model": "a", "mod\\u0065l": "b"}', "model"),
    ("non-ascii", '{"modèle":1,"modèle":2}'.encode(), "modèle"),
    ("non-ascii-escaped", '{"modèle":1,"mod\\u00e8le":2}'.encode(), "modèle"),
    ("surrogate-pair-and-utf8", '{"😀":1,"\\ud83d\\ude00":2}'.encode(), "😀"),
    ("non-ascii-pretty", '{ "é":1,\n "é":2}'.encode(), "é"),
    ("empty-name", b'{"":1,"":2}', ""),
    ("thrice", b'{"a":1,"a":2,"a":3}', "a"),
    ("containing-objects", b'{"a":{"b":1},"a":{"b":2}}', "a"),
]


@pytest.mark.parametrize(("raw", "name"), [case[1:] for case in DUPLICATES], ids=[case[0] for case in DUPLICATES])
def test_a_field_given_twice_is_refused_and_named(raw: bytes, name: str) -> None:
    assert refused(raw).param == name


@given(
    st.lists(st.sampled_from(["a", "b", "model", "é", "😀", 'q"', "b\\"]), min_size=1, max_size=5, unique=True),
    st.lists(st.text(alphabet='{}[]:," a\\é', max_size=12), min_size=6, max_size=6),
    st.sampled_from([(",", ":"), (", ", ": "), (",", ": "), (", ", ":"), (" , ", " : "), (",\n", ":")]),
    st.booleans(),
    st.data(),
)
def test_a_duplicate_never_hides_whatever_the_layout(
    names: list[str], values: list[str], separators: tuple[str, str], escape: bool, data: st.DataObject
) -> None:
    twice = data.draw(st.sampled_from(names))
    order = data.draw(st.permutations([*names, twice]))
    comma, colon = separators
    members = [
        json.dumps(name, ensure_ascii=escape) + colon + json.dumps(value, ensure_ascii=False)
        for name, value in zip(order, values, strict=False)
    ]
    assert refused(("{" + comma.join(members) + "}").encode()).param == twice


def test_a_duplicate_cannot_hide_in_a_length_that_fits_another_layout() -> None:
    # n members written compactly take 4n+1 bytes besides keys and values, spaced ones 6n. A duplicate vanishes
    # from the decoded fields; what it took is made up for so that each of the sums the judge compares comes out.
    tried = 0
    for others in range(1, 40):
        body = "".join(f'"k{i}":1,' for i in range(others))
        for value in ("1", "22", "[]", '""', "[1,2]", '"' + "x" * others + '"'):
            raw = ("{" + body + f'"d":{value},"d":{value}' + "}").encode()
            fields = json.loads(raw)
            size = sum(len(k) for k in fields) + others + len(value)
            tried += size + 6 * len(fields) == len(raw)
            assert refused(raw).param == "d"
    assert tried, "no case reached the coincidence that the test is about"


@pytest.mark.parametrize("count", range(1, 9))
def test_an_escaped_key_whose_length_fits_the_spaced_layout_is_still_read_exactly(count: int) -> None:
    # Five bytes saved by an escape, two spent by each space that is not there.
    for escapes in range(4):
        key = "\\u0061" * escapes + "z"
        raw = ("{" + f'"{key}":0,' + ",".join(f'"k{i}":{i}' for i in range(count)) + "}").encode()
        body = judge(raw)
        assert json.loads(body.edited({"k0": b'"new"'})) == {**json.loads(raw), "k0": "new"}


def test_nested_duplicates_are_the_providers_business() -> None:
    assert judge(b'{"a":{"b":1,"b":2}}').get("a") == b'{"b":1,"b":2}'


# -- depth and digits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_at_the_bound_is_accepted_and_one_more_is_refused(opening: str, closing: str) -> None:
    inner = "0" if opening != "[" else ""
    at_bound = '{"a":' + opening * (DEPTH_MAX - 1) + inner + closing * (DEPTH_MAX - 1) + "}"
    judge(at_bound.encode())
    beyond = '{"a":' + opening * DEPTH_MAX + inner + closing * DEPTH_MAX + "}"
    assert "deep" in refused(beyond.encode()).message


@pytest.mark.parametrize(
    "text", ["[" * 500, "{" * 500, '\\"[' * 300, "\\\\", "\\\\\\\\[{", '[\\\\\\"[' * 200, "]" * 500 + "[" * 500]
)
@pytest.mark.parametrize("layout", ['{"t":"%s","a":%s}', '{ "a": %s ,\n"t": "%s"}'])
def test_brackets_inside_strings_are_no_depth(text: str, layout: str) -> None:
    def body(levels: int) -> bytes:
        deep = "[" * (levels - 1) + "]" * (levels - 1)
        return (layout % ((text, deep) if layout.startswith('{"t"') else (deep, text))).encode()

    judge(body(DEPTH_MAX))
    refused(body(DEPTH_MAX + 1))


def test_width_is_no_depth() -> None:
    judge(b'{"a":[' + b"[]," * 5000 + b"[]]}")


@pytest.mark.parametrize("levels", [129, 1000, 5000, 100_000])
def test_depth_bombs_are_refused(levels: int) -> None:
    refused(nested(levels))
    refused(b'{"a":' + b"[" * levels)


@pytest.mark.parametrize("raw", [b"1" * 5000, b"-" + b"9" * 5000, b"1." + b"1" * 5000, b"1e999999999", b"1" * 100_000])
def test_digit_bombs_are_never_converted(raw: bytes) -> None:
    body = judge(b'{"max_tokens":' + raw + b', "n":1}')
    with pytest.raises(RequestError) as caught:
        body.number("max_tokens")
    assert caught.value.param == "max_tokens"
    try:
        body.value("max_tokens")
    except RequestError as error:
        assert error.param == "max_tokens"  # noqa: PT017 - either a number or a refusal


def test_more_top_level_fields_than_anybody_has_are_refused() -> None:
    def body(count: int) -> bytes:
        return json.dumps({f"k{i}": i for i in range(count)}, indent=1).encode()

    assert len(judge(body(FIELDS_MAX)).fields) == FIELDS_MAX
    refused(body(FIELDS_MAX + 1))


MIB = 1 << 20
HOSTILE = [
    ("deep", b'{"a":' + b"[" * (MIB // 2) + b"]" * (MIB // 2) + b"}"),
    ("wide-arrays", b'{ "a":[' + b"[]," * (MIB // 3) + b"[]]}"),
    ("wide-objects", b'{ "a":[' + b"{}," * (MIB // 3) + b"{}]}"),
    ("keys-compact", ("{" + ",".join(f'"{i:x}":1' for i in range(110_000)) + "}").encode()),
    ("keys-spaced", json.dumps({f"{i:x}": 1 for i in range(90_000)}).encode()),
    ("keys-pretty", json.dumps({f"é{i:x}": 1 for i in range(80_000)}, indent=0, ensure_ascii=False).encode()),
    ("one-key-often", b"{" + b",".join([b'"":0'] * 200_000) + b"}"),
    ("nested-keys", b'{ "a":' + json.dumps({f"{i:x}": 1 for i in range(90_000)}).encode() + b"}"),
    ("escaped-quotes", b'{ "a":"' + b'\\"' * (MIB // 2) + b'"}'),
    ("backslashes", b'{ "a":"' + b"\\\\" * (MIB // 2) + b'"}'),
    ("strings-with-brackets", b'{ "a":[' + b'"[",' * (MIB // 4) + b'""]}'),
    ("numbers", b'{ "a":[' + b"1," * (MIB // 2) + b"1]}"),
    ("digits", b'{ "a":' + b"1" * MIB + b"}"),
    ("white-space", b'{ "a":1' + b" " * MIB + b"}"),
    ("non-ascii", ('{ "a":"' + "é" * (MIB // 2) + '"}').encode()),
    ("cut", b'{"a":"' + b"x" * MIB),
]


@pytest.mark.parametrize("raw", [case[1] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_mebibyte_costs_bounded_work(raw: bytes) -> None:
    begun = time.process_time()
    try:
        judge(raw)
    except RequestError:
        pass
    # Against blow-up only: the usual figure is below a twentieth of this.
    assert time.process_time() - begun < 1.0


# -- fields --------------------------------------------------------------------------------------------


def test_null_counts_as_absent() -> None:
    body = judge(b'{"model":null,"stream":null,"n":null,"x": null}')
    assert body.get("model") is None
    assert body.text("model") is None
    assert body.flag("stream") is False
    assert body.number("n") is None
    assert body.value("x") is None
    with pytest.raises(RequestError):
        body.text("model", required=True)
    with pytest.raises(RequestError):
        body.require("model", b'"', "a string")


@pytest.mark.parametrize("value", [b"1", b"true", b"[]", b"{}", b"1.5"])
def test_a_string_field_of_another_type_is_refused_by_name(value: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        judge(b'{"model":' + value + b"}").text("model")
    assert caught.value.param == "model"


@pytest.mark.parametrize("value", [b"1", b"0", b'"true"', b'""', b"[]", b"{}"])
def test_a_flag_of_another_type_is_refused_by_name(value: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        judge(b'{"stream":' + value + b"}").flag("stream")
    assert caught.value.param == "stream"


@pytest.mark.parametrize("value", [b"-1", b"1.0", b"1e3", b'"1"', b"true", b"[]", b"1" * (DIGITS_MAX + 1)])
def test_a_number_of_another_form_is_refused_by_name(value: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        judge(b'{"n":' + value + b"}").number("n")
    assert caught.value.param == "n"


def test_numbers_up_to_the_digit_bound_are_read() -> None:
    assert judge(b'{"n":0}').number("n") == 0
    assert judge(b'{"n":' + b"9" * DIGITS_MAX + b"}").number("n") == 10**DIGITS_MAX - 1


@pytest.mark.parametrize("raw", [b'{"a":"x"}', b'{ "a" : "x" }', b'\n{"a": "x"}\n', b'{"a":\t"x"}'])
def test_white_space_is_no_part_of_a_value(raw: bytes) -> None:
    body = judge(raw)
    assert body.get("a") == b'"x"'
    assert body.text("a") == "x"


def test_escapes_are_resolved_in_names_and_strings() -> None:
    body = judge(b'{"mod\\u0065l":"\\u0061\\ud83d\\ude00"}')
    assert body.text("model") == "a😀"


# -- edits ---------------------------------------------------------------------------------------------

_scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)  # fmt: skip
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
_objects = st.dictionaries(st.text(max_size=6), _values, max_size=6)
_space = st.text(alphabet=" \t\r\n", max_size=2)


@st.composite
def _written(draw: st.DrawFn) -> tuple[dict[str, Any], bytes, dict[str, tuple[int, int]]]:
    """An object, its bytes in some layout, and where its values stand."""
    value = draw(_objects)
    layout = draw(st.sampled_from(["compact", "spaced", "random"]))
    ascii_only = draw(st.booleans())
    out = b""
    spans: dict[str, tuple[int, int]] = {}

    def gap(usual: bytes = b"") -> bytes:
        return draw(_space).encode() if layout == "random" else usual

    out += gap() + b"{"
    for i, (name, item) in enumerate(value.items()):
        if i:
            out += gap() + b"," + gap(b" " if layout == "spaced" else b"")
        else:
            out += gap()
        out += json.dumps(name, ensure_ascii=ascii_only).encode() + gap() + b":"
        out += gap(b" " if layout == "spaced" else b"")
        text = json.dumps(item, ensure_ascii=ascii_only).encode()
        spans[name] = (len(out), len(out) + len(text))
        out += text
    out += gap() + b"}" + gap()
    return value, out, spans


@settings(max_examples=300)
@given(_written(), st.data())
def test_replacing_values_changes_no_other_byte(
    written: tuple[dict[str, Any], bytes, dict[str, tuple[int, int]]], data: st.DataObject
) -> None:
    value, raw, spans = written
    names = data.draw(st.lists(st.sampled_from(list(value)), unique=True)) if value else []
    new = {name: json.dumps(data.draw(_values)).encode() for name in names}
    expected, at = b"", 0
    for name in sorted(new, key=lambda name: spans[name]):
        start, end = spans[name]
        expected += raw[at:start] + new[name]
        at = end
    body = judge(raw)
    assert body.edited(new) == expected + raw[at:]
    assert {name: body.get(name) for name in value} == {
        name: None if item is None else raw[slice(*spans[name])] for name, item in value.items()
    }


@settings(max_examples=300)
@given(_written(), st.dictionaries(st.text(max_size=6), st.none() | _values.map(json.dumps), max_size=3), st.data())
def test_edits_mean_what_the_same_edits_of_a_dict_mean(
    written: tuple[dict[str, Any], bytes, dict[str, tuple[int, int]]],
    edits: dict[str, str | None],
    data: st.DataObject,
) -> None:
    value, raw, _ = written
    if value:
        for name in data.draw(st.lists(st.sampled_from(list(value)), unique=True, max_size=2)):
            edits[name] = data.draw(st.none() | _values.map(json.dumps))
    expected = dict(value)
    for name, text in edits.items():
        if text is None:
            expected.pop(name, None)
        else:
            expected[name] = json.loads(text)
    edited = judge(raw).edited({name: None if text is None else text.encode() for name, text in edits.items()})
    assert json.loads(edited) == expected
    judge(edited)


@given(_written(), st.text(min_size=1, max_size=6))
def test_adding_a_field_leaves_what_was_there(
    written: tuple[dict[str, Any], bytes, dict[str, tuple[int, int]]], name: str
) -> None:
    value, raw, _ = written
    if name in value or not value:
        return
    edited = judge(raw).edited({name: b"1"})
    assert edited.startswith(raw[: raw.rindex(b"}")])


def test_no_edits_give_the_same_bytes() -> None:
    raw = b'{ "a" : 1 }\n'
    assert judge(raw).edited({}) == raw
    assert judge(raw).edited({"absent": None}) == raw


# -- anything ------------------------------------------------------------------------------------------


def _reference(raw: bytes) -> dict[str, Any] | None:
    """What the standard library makes of it under the same rules; None when it is to be refused."""

    class Refused(Exception):
        pass

    def constant(_: str) -> None:
        raise Refused

    depth = 0

    def measure(value: Any, level: int) -> int:
        if isinstance(value, list):
            return max((measure(item, level + 1) for item in value), default=level + 1)
        if isinstance(value, tuple):
            return max((measure(item, level + 1) for _, item in value), default=level + 1)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise Refused
        return level

    def names(value: Any) -> None:
        if isinstance(value, tuple):
            for name, item in value:
                measure(name, 0)
                names(item)
        elif isinstance(value, list):
            for item in value:
                names(item)

    try:
        value = json.loads(
            raw.decode(), parse_constant=constant, object_pairs_hook=tuple, parse_int=str, parse_float=str
        )
        if not isinstance(value, tuple):
            return None
        names(value)
        depth = measure(value, 0)
    except (ValueError, Refused, RecursionError):
        return None
    if depth > DEPTH_MAX or len({name for name, _ in value}) < len(value):
        return None
    return dict(value)


_fragments = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b":", b",", b'"', b'"a"', b'"\\u0061"', b'"\\ud800"', b"\\", b"1", b"-0.5e1", b"0",
         b"null", b"NaN", b"true", b" ", b"\n", b'"a":1', b'"b": [{}]', b"\xc3\xa9", b"\xff", b"\x00", b"\xef\xbb\xbf"]
    ),
    max_size=14,
).map(b"".join)  # fmt: skip


@settings(max_examples=600)
@given(st.binary(max_size=60) | _fragments | _fragments.map(lambda inner: b"{" + inner + b"}"))
@example(b"{} ")
@example(b'{"a":1}\x0c')
@example(b'{"":0,"\\u0000":1}')
def test_any_bytes_are_judged_as_the_standard_library_would_or_refused(raw: bytes) -> None:
    expected = _reference(raw)
    try:
        body = judge(raw)
    except RequestError as error:
        assert expected is None, error.message  # noqa: PT017
        return
    assert expected is not None
    assert list(body.fields) == list(expected)
    for name in body.fields:
        assert json.loads(body.edited({name: b'"\xc3\xa9"'}))[name] == "é"


@given(_written(), st.data())
def test_a_mutated_body_is_judged_without_any_other_exception(
    written: tuple[dict[str, Any], bytes, dict[str, tuple[int, int]]], data: st.DataObject
) -> None:
    raw = bytearray(written[1])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not raw:
            break
    expected = _reference(bytes(raw))
    try:
        judge(bytes(raw))
    except RequestError:
        assert expected is None
    else:
        assert expected is not None


def test_floats_beyond_range_are_no_reason_to_fail() -> None:
    assert judge(b'{"temperature":1e999}').get("temperature") == b"1e999"
    assert math.isinf(json.loads(b"1e999"))
