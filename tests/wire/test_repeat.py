"""Heads that repeat: what may vary does, everything else is judged anew."""

from __future__ import annotations

import pytest

from dandolo.errors import ProtocolError
from dandolo.wire import server
from dandolo.wire.fields import parse_lines
from dandolo.wire.repeat import HEAD_BYTES_MAX, SHAPE_LINES_MAX, SHAPES_MAX, VARYING_MAX, Repetition, Repetitions
from dandolo.wire.server import HeadLimits, RequestReader

WATCHED = frozenset((b"host", b"authorization"))
LINES = [b"GET / HTTP/1.1", b"Host: a", b"X-One: 1", b"Accept: b", b"X-Two: 2", b"Content-Length: 5"]


def varied(**changes: bytes) -> list[bytes]:
    """LINES with the values of X-One, X-Two and Content-Length changed."""
    values = {"one": b"1", "two": b"2", "length": b"5", **changes}
    names = {b"X-One": "one", b"X-Two": "two", b"Content-Length": "length"}
    return [
        name + b": " + values[names[name]] if (name := line.partition(b":")[0]) in names else line for line in LINES
    ]


def learn(memory: Repetitions, *heads: list[bytes]) -> Repetition | None:
    learned = None
    for lines in heads:
        learned = memory.learn(lines, parse_lines(lines[1:]))
    return learned


def learned() -> Repetition:
    """A repetition in which X-One, X-Two and Content-Length vary."""
    repetition = learn(Repetitions(WATCHED), LINES, varied(one=b"11", two=b"22", length=b"55"))
    assert repetition is not None
    return repetition


def changed(index: int, line: bytes) -> list[bytes]:
    lines = list(LINES)
    lines[index] = line
    return lines


# -- matching ------------------------------------------------------------------------------------------


def test_a_head_that_differs_only_where_heads_have_differed_matches() -> None:
    repetition = learned()
    assert set(repetition.names) == {b"x-one", b"x-two", b"content-length"}
    assert repetition.varies_length
    head = repetition.match(varied(one=b" \t a b;\xe9\t ", two=b"", length=b"9"))
    assert head == {b"host": b"a", b"x-one": b"a b;\xe9", b"accept": b"b", b"x-two": b"", b"content-length": b"9"}
    assert list(head) == [name for name, _ in parse_lines(LINES[1:])]
    # What was handed out is the caller's own.
    head.clear()
    again = repetition.match(list(LINES))
    assert again is not None
    assert again[b"x-one"] == b"1"


def test_the_fields_are_those_a_full_judgement_gives() -> None:
    repetition = learned()
    for value in (b"v", b"", b"\t", b"a:b", b": ", b"\xff", b'"q"', b"  two  words  "):
        lines = varied(one=value)
        assert repetition.match(list(lines)) == dict(parse_lines(lines[1:]))


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(changed(2, b"X-Other: 1"), id="another name where one varies"),
        pytest.param(changed(2, b"x-one: 1"), id="another spelling of the name"),
        pytest.param(changed(2, b"X-One : 1"), id="space before the colon"),
        pytest.param(changed(2, b"X-One"), id="no colon"),
        pytest.param(changed(2, b" X-One: 1"), id="folded"),
        pytest.param(changed(2, b""), id="empty line"),
        pytest.param(changed(2, b"Host: b"), id="host twice"),
        pytest.param(changed(2, b"Content-Length: 5"), id="length twice"),
        pytest.param(changed(2, b"Transfer-Encoding: chunked"), id="a coding in its place"),
        pytest.param(changed(1, b"Host: b"), id="another watched value"),
        pytest.param(changed(1, b"Host:  a"), id="a watched line with more space"),
        pytest.param(changed(3, b"Accept: c"), id="another constant value"),
        pytest.param(changed(0, b"POST / HTTP/1.1"), id="another request line"),
        pytest.param([*LINES, b"X-Three: 3"], id="a line more"),
        pytest.param([*LINES, LINES[-1]], id="a line twice"),
        pytest.param(LINES[:-1], id="a line less"),
        pytest.param([LINES[0], *LINES[2:], LINES[1]], id="another order"),
        pytest.param([LINES[0]], id="no fields"),
        pytest.param([], id="nothing"),
    ],
)
def test_anything_else_does_not(lines: list[bytes]) -> None:
    assert learned().match(lines) is None


@pytest.mark.parametrize("byte", [*range(0x09), *range(0x0A, 0x20), 0x7F])
def test_no_control_character_slips_into_a_varying_value(byte: int) -> None:
    repetition = learned()
    for value in (bytes([byte]), b"a%cb" % byte, b"%ca" % byte, b"a%c" % byte):
        assert repetition.match(varied(one=value)) is None
        assert repetition.match(varied(length=value)) is None


# -- learning ------------------------------------------------------------------------------------------


def test_one_head_is_not_yet_a_repetition_and_the_same_twice_varies_nowhere() -> None:
    memory = Repetitions(WATCHED)
    assert learn(memory, LINES) is None
    same = learn(memory, list(LINES))
    assert same is not None
    assert same.names == ()
    assert same.match(varied(one=b"11")) is None


def test_what_varied_before_keeps_varying() -> None:
    memory = Repetitions(WATCHED)
    both = learn(memory, LINES, varied(one=b"11"), varied(one=b"11", two=b"22"))
    assert both is not None
    assert both.match(varied(one=b"x", two=b"y")) is not None


def test_watched_names_never_vary() -> None:
    memory = Repetitions(WATCHED)
    assert learn(memory, *(changed(1, b"Host: %d" % number) for number in range(5))) is None


def test_heads_with_a_name_twice_are_not_learned() -> None:
    twice = [*LINES, b"ACCEPT: c"]
    assert learn(Repetitions(WATCHED), twice, twice, twice) is None


def test_what_is_learned_and_kept_is_bounded() -> None:
    memory = Repetitions(WATCHED)
    for number in range(3 * SHAPES_MAX):
        learn(memory, changed(1, b"Host: a%d" % number))
        assert len(memory._shapes) <= SHAPES_MAX
    long = varied(one=b"x" * HEAD_BYTES_MAX)
    assert learn(memory, long, long) is None
    many = [LINES[0], *(b"X-%d: 1" % number for number in range(SHAPE_LINES_MAX))]
    assert learn(memory, many, many) is None
    memory.forget()
    assert not memory._shapes


def test_a_head_of_which_too_much_varies_is_not_a_repetition() -> None:
    def head(value: int, varying: int) -> list[bytes]:
        return [LINES[0], *(b"X-%d: %d" % (number, value) for number in range(varying))]

    assert learn(Repetitions(WATCHED), *(head(value, VARYING_MAX) for value in range(3))) is not None
    assert learn(Repetitions(WATCHED), *(head(value, VARYING_MAX + 1) for value in range(3))) is None


# -- as a request reader uses it -----------------------------------------------------------------------

HEAD = (
    b"POST /v1/x HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer one\r\nConnection: keep-alive\r\n"
    b"Origin: https://a.example\r\nX-Request: %d\r\nContent-Length: %d\r\n\r\n"
)


def whole_or_long(reader: RequestReader, data: bytes, body_bytes_max: int = 1000) -> tuple[server.Request, bool]:
    """One request from `data` as a connection reads it, and whether it came the short way."""
    request = reader.whole(data)
    if request is not None:
        return request, True
    reader.receive(data)
    request = reader.next_head()
    assert request is not None
    reader.begin_body(body_bytes_max)
    body = reader.next_body()
    assert body is not None
    request.body = body
    return request, False


@pytest.fixture
def reader() -> RequestReader:
    """A reader that has seen one head often enough to know it."""
    server._repetitions.forget()
    reader = RequestReader(HeadLimits())
    ways = []
    for number in range(20):
        body = b"b" * number
        request, short = whole_or_long(reader, HEAD % (number, number) + body)
        assert request.body == body
        assert request.length == number
        assert request.fields[b"x-request"] == b"%d" % number
        ways.append(short)
    assert ways[-1]
    assert not ways[0]
    return reader


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        (b"Bearer one", b"Bearer two", b"authorization"),
        (b"Host: a.example", b"Host: b.example", b"host"),
        (b"Connection: keep-alive", b"Connection: close", b"connection"),
        (b"https://a.example", b"https://b.example", b"origin"),
        (b"X-Request", b"X-Api-Key", b"x-api-key"),
    ],
)
def test_what_decides_something_is_judged_anew(reader: RequestReader, old: bytes, new: bytes, field: bytes) -> None:
    known, _ = whole_or_long(reader, HEAD % (1, 2) + b"bb")
    known.context = "what was decided"
    data = (HEAD % (7, 2) + b"bb").replace(old, new)
    request, short = whole_or_long(reader, data)
    assert not short
    # Another request: nothing that was decided about the earlier one sticks to it.
    assert request is not known
    assert request.context is None
    assert field in request.fields
    assert request.fields == dict(parse_lines(data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]))
    assert request.authority == request.fields[b"host"]
    assert request.keep_alive is (b"close" not in new)


def test_a_coding_in_the_place_of_the_length_is_obeyed(reader: RequestReader) -> None:
    data = (HEAD % (7, 5)).replace(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"2\r\nhi\r\n0\r\n\r\n"
    request, short = whole_or_long(reader, data)
    assert (short, request.chunked, request.length, request.body) == (False, True, None, b"hi")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 2", id="a second length"),
        pytest.param(b"X-Request: 7", b"Content-Length: 3", id="a second length in another's place"),
        pytest.param(b"X-Request: 7", b"Host: a.example", id="a second host in another's place"),
        pytest.param(b"X-Request: 7", b"Transfer-Encoding: chunked", id="a coding beside the length"),
        pytest.param(b"X-Request: 7", b"X-Request: 7\r\n folded", id="a folded line"),
        pytest.param(b"X-Request: 7", b" X-Request: 7", id="a folded line in another's place"),
        pytest.param(b"X-Request: 7", b"X-Request : 7", id="space before the colon"),
        pytest.param(b"X-Request: 7", b"X-Request: 7\nX-Api-Key: k", id="a bare LF"),
        pytest.param(b"X-Request: 7", b"X-Request: 7\rX-Api-Key: k", id="a bare CR"),
        pytest.param(b"X-Request: 7", b"X-Request: \x00", id="a NUL"),
        pytest.param(b"Content-Length: 2", b"Content-Length: +2", id="a signed length"),
        pytest.param(b"Content-Length: 2", b"Content-Length: 2, 2", id="a list of lengths"),
        pytest.param(b"Content-Length: 2", b"Content-Length: 0x2", id="a hexadecimal length"),
        pytest.param(b"Content-Length: 2", b"Content-Length: ", id="no length"),
        pytest.param(b"Content-Length: 2", b"Content-Length: " + b"2" * 16, id="a long length"),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_what_is_wrong_is_refused_after_any_number_of_good_ones(
    reader: RequestReader, old: bytes, new: bytes, size: int
) -> None:
    data = (HEAD % (7, 2) + b"bb").replace(old, new)
    assert reader.whole(data) is None
    with pytest.raises(ProtocolError):  # noqa: PT012 - any of the pieces may be the one
        for at in range(0, len(data), size):
            reader.receive(data[at : at + size])
            reader.next_head()
    assert reader.dead


@pytest.mark.parametrize("rest", [b"b", b"bbGET / HTTP/1.1\r\n\r\n"])
def test_more_or_less_than_one_request_goes_the_long_way(reader: RequestReader, rest: bytes) -> None:
    data = HEAD % (7, 2) + rest
    assert reader.whole(data) is None
    reader.receive(data)
    request = reader.next_head()
    assert request is not None
    assert request.length == 2
    reader.begin_body(1000)
    assert reader.next_body() == (b"bb" if len(rest) > 1 else None)


@pytest.mark.parametrize(
    "limits",
    [
        HeadLimits(headers_max=5),
        HeadLimits(header_line_bytes_max=20),
        HeadLimits(request_line_bytes_max=10),
        HeadLimits(header_bytes_max=100),
    ],
)
def test_what_one_connection_may_send_another_may_not(reader: RequestReader, limits: HeadLimits) -> None:
    # The shape is known to all readers; each still keeps its own bounds.
    strict = RequestReader(limits)
    data = HEAD % (7, 2) + b"bb"
    assert strict.whole(data) is None
    strict.receive(data)
    with pytest.raises(ProtocolError) as refused:
        strict.next_head()
    assert refused.value.status in (431, 414)


def test_a_repeated_head_keeps_the_bound_of_all_its_headers() -> None:
    server._repetitions.forget()
    reader = RequestReader(HeadLimits(header_bytes_max=300, header_line_bytes_max=300))
    for number in range(10):
        whole_or_long(reader, HEAD % (number, 2) + b"bb")
    data = (HEAD % (7, 2)).replace(b"X-Request: 7", b"X-Request: " + b"7" * 300) + b"bb"
    assert reader.whole(data) is None
    reader.receive(data)
    with pytest.raises(ProtocolError) as refused:
        reader.next_head()
    assert refused.value.status == 431


def test_a_connection_whose_heads_never_repeat_stops_learning() -> None:
    server._repetitions.forget()
    reader = RequestReader(HeadLimits())
    for number in range(3 * server.LEARNINGS_MAX):
        whole_or_long(reader, (HEAD % (number, 2)).replace(b"/v1/x", b"/v1/%d" % number) + b"bb")
    assert len(server._repetitions._shapes) <= server.LEARNINGS_MAX
