"""The same bytes to h11 and httptools: whatever we accept they read alike, however traffic is cut and mutated.

h11 must accept what we accept, but for KNOWN; httptools, when it accepts, must have read the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import h11
import httptools
import pytest
from feeding import Answer, corpus, hear, read_answer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dandolo.wire.client import ResponseReader
from dandolo.wire.server import HeadLimits, RequestReader

REQUESTS = [entry for entry in corpus("requests.toml", "request") if "status" not in entry]
ANSWERS = [entry for entry in corpus("answers.toml", "answer") if "error" not in entry]

# What h11 refuses and we accept on purpose: where it says so, what it says, why we differ.
KNOWN = [
    ("head", r"no request line received", "RFC 9112 §2.2: empty lines before a request line are ignored; h11 refuses"),
    ("body", r"illegal chunk header: .*[0-9A-Fa-f](?: |\\t)+;", "RFC 9112 §7.1.1: white space before an extension"),
    ("body", r"illegal chunk header: .*'0{6}", "RFC 9112 §7.1: 1*HEXDIG has no bound on zeros; h11 takes 20 digits"),
    ("body", r"Content-Length|Transfer-Encoding", "RFC 9110 §6.5: framing fields in trailers are dropped unread"),
]


@dataclass
class Read:
    """What another parser made of the bytes."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    stage: str = "head"


def joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    head: dict[bytes, bytes] = {}
    for name, value in pairs:
        name = name.lower()
        head[name] = head[name] + b", " + value if name in head else value
    return head


def by_h11(data: bytes) -> Read:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    read = Read()
    message: dict[str, Any] = {}
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                message = {"method": event.method, "target": event.target, "body": b""}
                message["fields"] = joined(list(event.headers))
                read.stage = "body"
            elif isinstance(event, h11.Data):
                message["body"] += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                read.messages.append(message)
                read.stage = "head"
                connection.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            else:
                break
    except h11.RemoteProtocolError as error:
        read.error = str(error)
    return read


class Collector:
    """Callbacks of httptools."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.trailers = False

    def on_message_begin(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.target = self.body = b""
        self.trailers = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.trailers:
            self.pairs.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.trailers = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages.append({"target": self.target, "fields": joined(self.pairs), "body": self.body})


def by_httptools(data: bytes, kind: type = httptools.HttpRequestParser) -> Read:
    collector = Collector()
    parser = kind(collector)
    read = Read(collector.messages)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        read.error = repr(error)
    return read


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    target = theirs["target"]
    path = ours["path"] + (b"?" + ours["query"] if ours["query"] else b"")
    if target.lower().startswith((b"http://", b"https://")):
        assert target.endswith(path) or path.startswith(b"/")
    else:
        assert target in (path, path + b"?")
    assert theirs.get("method", ours["method"]) == ours["method"]
    assert theirs["body"] == ours["body"]
    assert list(theirs["fields"]) == list(ours["fields"])
    for name, value in ours["fields"].items():
        other = theirs["fields"][name]
        assert (other.lower(), name) == (value.lower(), name) if name == b"transfer-encoding" else other == value


def known(read: Read) -> bool:
    return any(stage == read.stage and re.search(pattern, read.error) for stage, pattern, _ in KNOWN)


def compare(data: bytes, requests: list[dict[str, Any]]) -> None:
    """Fail when a request of ours was refused or read otherwise by h11, or read otherwise by httptools."""
    read = by_h11(data)
    for ours, theirs in zip(requests, read.messages, strict=False):
        assert_alike(ours, theirs)
    if len(read.messages) < len(requests):
        assert known(read), read.error or "h11 wants more bytes for what we took for whole"
    if any(b"upgrade" in request["fields"] or request["method"] == b"CONNECT" for request in requests):
        return  # llhttp takes the bytes after such a head for another protocol's.
    for ours, theirs in zip(requests, by_httptools(data).messages, strict=False):
        assert_alike(ours, theirs)


@pytest.mark.parametrize("entry", REQUESTS, ids=lambda entry: entry["id"])
def test_accepted_requests_of_the_corpus_are_read_alike(entry: dict[str, Any]) -> None:
    compare(entry["bytes"], hear([entry["bytes"]]).requests)


def test_the_known_differences_are_real() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen = set()
    for data in (
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        head + b"1 ;a\r\na\r\n0\r\n\r\n",
        head + b"0" * 30 + b"\r\n\r\n",
        head + b"0\r\nContent-Length: x\r\n\r\n",
    ):
        assert len(hear([data]).requests) == 1
        read = by_h11(data)
        seen |= {reason for stage, pattern, reason in KNOWN if stage == read.stage and re.search(pattern, read.error)}
    assert len(seen) == len(KNOWN)


# -- generated traffic ---------------------------------------------------------------------------------

HEADERS = st.lists(
    st.sampled_from(
        [
            b"Accept: */*",
            b"X: y",
            b"X:",
            b"Connection: keep-alive",
            b"Cookie: a=b; c=d",
            b"Authorization: Bearer k",
            b"Content-Type: application/json",
            b"X-Long: " + b"z" * 60,
            b"accept: a/b",
            b"X: \xe9",
            b"Expect: 100-continue",
        ]
    ),
    max_size=4,
    unique=True,
)
BODIES = st.sampled_from(
    [b"", b"a", b"{}", b"\r\n\r\n", b"0\r\n\r\n", b"GET /s HTTP/1.1\r\nHost: a\r\n\r\n", b"\xff\0" * 9]
)
TARGETS = st.sampled_from(
    [b"/", b"/v1/chat/completions", b"/v1/models/a%2Fb?x=y", b"http://b:80/x", b"/a//b/..", b"/?"]
)


@st.composite
def framed(draw: st.DrawFn, none: bytes = b"") -> tuple[bytes, bytes]:
    """A framing header line and the body after it; `none` stands where neither length nor coding is given."""
    body = draw(BODIES)
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "none":
        return none, b""
    if kind == "length":
        return b"Content-Length: %d\r\n" % len(body), body
    cut = draw(st.integers(0, len(body)))
    pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
    extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"']))
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"Digest: a\r\nZ:\r\n"]))
    return b"Transfer-Encoding: chunked\r\n", coded + b"0\r\n" + trailers + b"\r\n"


@st.composite
def traffic(draw: st.DrawFn) -> bytes:
    """One to three valid requests."""
    requests = []
    for _ in range(draw(st.integers(1, 3))):
        method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PUT"]))
        framing, body = draw(framed())
        lines = b"".join(line + b"\r\n" for line in draw(HEADERS))
        requests.append(b"%b %b HTTP/1.1\r\nHost: a\r\n%b%b\r\n%b" % (method, draw(TARGETS), lines, framing, body))
    return b"".join(requests)


@st.composite
def answer_bytes(draw: st.DrawFn) -> bytes:
    """One valid answer, perhaps after interim ones."""
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nLink: a\r\n\r\n"]))
    status = draw(st.sampled_from([b"200 OK", b"200", b"204 No Content", b"304 X", b"429 Too Many", b"500 ", b"599 X"]))
    framing, body = draw(framed(b"Content-Length: 0\r\n"))
    if status[:3] in (b"204", b"304"):
        framing, body = b"", b""
    lines = b"".join(line + b"\r\n" for line in draw(HEADERS))
    return b"%bHTTP/1.1 %b\r\n%b%b\r\n%b" % (interim, status, lines, framing, body)


INTERESTING = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n\n",
        b" ",
        b"  ",
        b"\t",
        b"\0",
        b":",
        b",",
        b";",
        b"=",
        b'"',
        b"0",
        b"1",
        b"f",
        b"+",
        b"-",
        b"_",
        b"#",
        b"?",
        b"/",
        b"\x0b",
        b"\x0c",
        b"\x7f",
        b"\x80",
        b"\xa0",
        b"\xff",
        b"0\r\n\r\n",
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Host: b\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\n",
        b"\r\nTransfer-Encoding: chunked",
        b"\r\n folded",
        b"chunked, ",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes after one to four injuries."""
    data = draw(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(1, 6))
        match draw(st.sampled_from(["delete", "double", "replace", "insert", "cut", "swap", "insert-line"])):
            case "delete":
                data = data[:at] + data[at + size :]
            case "double":
                data = data[: at + size] + data[at:]
            case "replace":
                data = data[:at] + draw(INTERESTING) + data[at + 1 :]
            case "insert":
                data = data[:at] + draw(INTERESTING) + data[at:]
            case "cut":
                data = data[: max(at, 1)]
            case "swap":
                lines = data.split(b"\r\n")
                one, two = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
                lines[one], lines[two] = lines[two], lines[one]
                data = b"\r\n".join(lines)
            case "insert-line":
                lines = data.split(b"\r\n")
                lines.insert(draw(st.integers(0, len(lines))), draw(INTERESTING).strip(b"\r\n"))
                data = b"\r\n".join(lines)
    return data


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Pieces of `data`."""
    marks = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True) if a < b]


@settings(max_examples=200, deadline=None)
@given(data=traffic())
def test_valid_requests_are_accepted_by_all_and_read_alike(data: bytes) -> None:
    heard = hear([data])
    assert heard.status is None
    assert not heard.unfinished
    assert len(heard.requests) == len(by_h11(data).messages) == len(by_httptools(data).messages)
    compare(data, heard.requests)


@settings(max_examples=1200, deadline=None)
@given(data=mutated(traffic()), draw=st.data())
def test_mutated_requests_are_refused_or_read_alike_for_any_cut(data: bytes, draw: st.DataObject) -> None:
    whole = hear([data])
    pieces = draw.draw(cut(data), "cut")
    other = hear(pieces)
    single = hear(data[at : at + 1] for at in range(len(data)))
    assert other.requests == single.requests == whole.requests
    assert (other.status is None) == (single.status is None) == (whole.status is None)
    compare(data, whole.requests)


def answer_by_h11(data: bytes, *, head_only: bool, eof: bool) -> Answer:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="HEAD" if head_only else "GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    answer = Answer()
    try:
        connection.receive_data(data)
        if eof:
            connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                answer.status, answer.fields = event.status_code, joined(list(event.headers))
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                answer.complete = True
                break
            elif not isinstance(event, h11.InformationalResponse):
                break
        if answer.complete and connection.their_state is h11.DONE:
            answer.reusable = not connection.trailing_data[0]
    except h11.RemoteProtocolError as error:
        answer.error = str(error)
    return answer


def compare_answers(data: bytes, ours: Answer, theirs: Answer) -> None:
    """Fail when an answer we took for complete was refused or read otherwise by h11."""
    if not ours.complete:
        return
    if theirs.error:
        # The only stage in which h11 may refuse what we accept is that of trailers and chunk lines.
        read = Read(error=theirs.error, stage="body" if theirs.status else "head")
        assert known(read), theirs.error
        return
    assert (theirs.complete, theirs.status, theirs.body) == (True, ours.status, ours.body)
    assert list(theirs.fields) == list(ours.fields)
    for name, value in ours.fields.items():
        assert theirs.fields[name].lower() == value.lower()
    # h11 knows no persistent connections in HTTP/1.0 (RFC 9112 §9.3: only with the keep-alive option).
    assert theirs.reusable or not ours.reusable or (b"HTTP/1.0" in data and b"connection" in ours.fields)


@pytest.mark.parametrize("entry", ANSWERS, ids=lambda entry: entry["id"])
def test_accepted_answers_of_the_corpus_are_read_alike(entry: dict[str, Any]) -> None:
    how = {"head_only": entry.get("head_only", False), "eof": entry.get("eof", False)}
    compare_answers(entry["bytes"], read_answer([entry["bytes"]], **how), answer_by_h11(entry["bytes"], **how))


@settings(max_examples=150, deadline=None)
@given(data=answer_bytes())
def test_valid_answers_are_accepted_by_all_and_read_alike(data: bytes) -> None:
    ours = read_answer([data])
    assert (ours.complete, ours.reusable) == (True, True)
    compare_answers(data, ours, answer_by_h11(data, head_only=False, eof=False))
    theirs = by_httptools(data, httptools.HttpResponseParser)
    assert theirs.error == ""
    assert theirs.messages[-1]["body"] == ours.body
    assert theirs.messages[-1]["fields"] == ours.fields


@settings(max_examples=1000, deadline=None)
@given(data=mutated(answer_bytes()), head_only=st.booleans(), eof=st.booleans(), draw=st.data())
def test_mutated_answers_are_refused_or_read_alike_for_any_cut(
    data: bytes, head_only: bool, eof: bool, draw: st.DataObject
) -> None:
    assume(data)
    whole = read_answer([data], head_only=head_only, eof=eof)
    pieces = draw.draw(cut(data), "cut")
    for other in (pieces, (data[at : at + 1] for at in range(len(data)))):
        answer = read_answer(other, head_only=head_only, eof=eof)
        assert (answer.complete, answer.reusable, bool(answer.error)) == (
            whole.complete,
            whole.reusable,
            bool(whole.error),
        )
        if not whole.error:
            assert (answer.status, answer.fields, answer.body) == (whole.status, whole.fields, whole.body)
    compare_answers(data, whole, answer_by_h11(data, head_only=head_only, eof=eof))


# -- heads that repeat: what was learned from earlier ones must change no judgement ---------------------

REPEATED = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\nAccept: */*\r\nContent-Length: %d\r\n\r\n%b"
REPEATED_ANSWER = b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%b"


@settings(max_examples=500, deadline=None)
@given(data=mutated(st.just(REPEATED % (7, 3, b"abc"))), size=st.sampled_from([1, 7, 1000]))
def test_a_head_that_nearly_repeats_is_judged_as_if_it_were_the_first(data: bytes, size: int) -> None:
    before = [REPEATED % (number, number, b"x" * number) for number in range(4)]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    fresh = hear(pieces)
    after = hear([*before, *pieces])
    assert [request["body"] for request in after.requests[:4]] == [b"x" * number for number in range(4)]
    assert after.requests[4:] == fresh.requests
    assert (after.status, after.unfinished) == (fresh.status, fresh.unfinished)


def learned_request_reader() -> RequestReader:
    """A reader whose connection has sent four heads of one shape."""
    reader = RequestReader(HeadLimits())
    for number in range(4):
        reader.receive(REPEATED % (number, number, b"x" * number))
        assert reader.next_head() is not None
        reader.begin_body(100)
        assert reader.next_body() == b"x" * number
    return reader


@settings(max_examples=500, deadline=None)
@given(data=st.one_of(mutated(st.just(REPEATED % (7, 3, b"abc"))), st.just(REPEATED % (9, 5, b"hello"))))
def test_a_request_taken_whole_is_the_one_that_would_have_been_read(data: bytes) -> None:
    request = learned_request_reader().whole(data)
    if request is not None:
        fresh = hear([data])
        assert (fresh.status, fresh.unfinished, len(fresh.requests)) == (None, False, 1)
        (read,) = fresh.requests
        for key in ("method", "path", "query", "authority", "keep_alive", "minor", "fields", "body"):
            assert getattr(request, key) == read[key]


def learned_answer_reader() -> ResponseReader:
    """A reader whose connection has received four heads of one shape, and awaits an answer."""
    reader = ResponseReader()
    for number in range(4):
        reader.begin()
        assert reader.head(REPEATED_ANSWER % (number, number, b"x" * number)) is not None
        assert reader.body(b"") == b"x" * number
    reader.begin()
    return reader


@settings(max_examples=500, deadline=None)
@given(data=st.one_of(mutated(st.just(REPEATED_ANSWER % (7, 3, b"abc"))), st.just(REPEATED_ANSWER % (9, 5, b"hello"))))
def test_an_answer_taken_whole_is_the_one_that_would_have_been_read(data: bytes) -> None:
    reader = learned_answer_reader()
    body = reader.whole(data)
    fresh = read_answer([data])
    if body is None:
        assert not reader.complete
        return
    assert reader.response is not None
    assert (fresh.error, fresh.complete, fresh.reusable) == ("", True, reader.reusable)
    assert (fresh.status, fresh.fields, fresh.body) == (reader.response.status, reader.response.fields, body)


def test_limits_hold_for_heads_that_repeat() -> None:
    long = REPEATED.replace(b"%d", b"%b", 1)
    for size, status in ((16 * 1024 - 6, None), (16 * 1024 - 5, 431), (40_000, 431)):
        data = long % (b"y" * size, 0, b"")
        assert hear([REPEATED % (number, 0, b"") for number in range(4)] + [data]).status == status
        reader = learned_request_reader()
        assert reader.whole(data) is None or status is None
    assert learned_answer_reader().whole(REPEATED_ANSWER.replace(b"%d", b"%b", 1) % (b"y" * 70_000, 0, b"")) is None
