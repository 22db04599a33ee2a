"""Forms: real encoders are understood, and nothing that two readers could read two ways gets through."""

from __future__ import annotations

from email.message import EmailMessage, MIMEPart
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.multipart import PART_HEAD_BYTES_MAX, PARTS_MAX, VALUE_BYTES_MAX, FormBody, read
from dandolo.errors import RequestError

TYPE = b"multipart/form-data; boundary=xYzZy"


def part(name: str = "model", value: str | bytes = "m", *, head: str | None = None, mark: str = "xYzZy") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"' if head is None else head
    content = value.encode() if isinstance(value, str) else value
    return f"--{mark}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


def body(*parts: bytes, mark: str = "xYzZy") -> bytes:
    return b"".join(parts) + f"--{mark}--\r\n".encode()


FILE = part(
    head='Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav', value="RIFF"
)


def refused(raw: bytes, content_type: bytes = TYPE) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(raw, content_type)
    return caught.value


# -- real encoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filename",
    ["a.wav", 'quo"te.wav', "naïve ☃.wav", "semi;colon name=x.wav", "C:\\tmp\\a.wav", 'a"; name="model".wav'],
)
def test_a_form_of_a_real_client_is_understood(filename: str) -> None:
    request = httpx2.Request(
        "POST",
        "http://x/",
        data={"model": "whisper-1", "stream": "true", "timestamp_granularities[]": ["word", "segment"], "prompt": ""},
        files={"file": (filename, bytes(range(256)) * 40, "audio/wav")},
    )
    raw = request.read()
    form = read(raw, request.headers["content-type"].encode())
    assert (form.text("model"), form.text("stream"), form.text("prompt")) == ("whisper-1", "true", "")
    assert form.text("file") is None
    assert form.text("absent") is None
    assert form.replaced("model", b"a/other") == raw.replace(b"whisper-1", b"a/other")


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; name="model"',
        'content-disposition:form-data;name="model"',
        'CONTENT-DISPOSITION: Form-Data;  NAME="model"',
        "Content-Disposition: form-data; name=model",
        'Content-Disposition: form-data; name="model";',
        'Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name="model"',
        'Content-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\nContent-Length: 1',
        'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: 8bit',
    ],
)
def test_every_usual_spelling_of_a_text_part_is_found(head: str) -> None:
    raw = body(FILE, part(head=head), part("n", "1"))
    form = read(raw, TYPE)
    assert form.text("model") == "m"
    assert form.text("n") == "1"
    assert form.replaced("model", b"longer-name") == body(FILE, part(head=head, value="longer-name"), part("n", "1"))


CONTENT_TYPES = [
    (b"multipart/form-data; boundary=xYzZy", "xYzZy"),
    (b"Multipart/Form-Data;boundary=xYzZy", "xYzZy"),
    (b'multipart/form-data; boundary="xYzZy"', "xYzZy"),
    (b'multipart/form-data; boundary="with space:and=more"', "with space:and=more"),
    (b"multipart/form-data; charset=utf-8; boundary=xYzZy", "xYzZy"),
    (b"multipart/form-data; BOUNDARY=xYzZy; charset=utf-8", "xYzZy"),
    (b"multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", "----WebKitFormBoundary7MA4YWxkTrZu0gW"),
    (b"multipart/form-data; boundary===============123==", "==============123=="),
    (b"multipart/form-data; boundary=" + b"b" * 70, "b" * 70),
    (b"multipart/form-data ; boundary=xYzZy", "xYzZy"),
]


@pytest.mark.parametrize(("content_type", "mark"), CONTENT_TYPES)
def test_every_form_of_a_boundary_is_taken_whole(content_type: bytes, mark: str) -> None:
    assert read(body(part(mark=mark), mark=mark), content_type).text("model") == "m"


def test_a_mime_library_agrees_on_what_is_there() -> None:
    message = EmailMessage()
    message["Content-Type"] = "multipart/form-data"
    for name, value in (("model", "m"), ("language", "de")):
        inner = MIMEPart()
        inner.set_content(value)
        inner["Content-Disposition"] = f'form-data; name="{name}"'
        message.attach(inner)
    raw = message.as_bytes().partition(b"\n\n")[2].replace(b"\n", b"\r\n")
    form = read(raw, b'multipart/form-data; boundary="' + message.get_boundary("").encode() + b'"')
    assert (form.text("model"), form.text("language")) == ("m\r\n", "de\r\n")


# -- what is not a form --------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [b"", b"application/json", b"multipart/mixed; boundary=b", b"text/plain"])
def test_another_content_type_is_415(content_type: bytes) -> None:
    assert refused(body(part()), content_type).status == 415


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        b";",
        b"; boundary",
        b"; boundary=",
        b'; boundary=""',
        b"; boundary=" + b"b" * 71,
        b'; boundary="xYzZy',
        b'; boundary="xYzZy "',
        b'; boundary="xY\\zZy"',
        b"; boundary=xYzZy; boundary=other",
        b"; boundary=other; boundary=xYzZy",
        b"; boundary=xYzZy; Boundary=xYzZy",
        b"; boundary=xYzZy{more}",
        b"; boundary=xYzZy trailing",
        b"; boundary=xYz\xe9y",
        b"; boundary*=utf-8''xYzZy",
        b"-extra; boundary=xYzZy",
        b", text/plain; boundary=xYzZy",
    ],
)
def test_an_unclear_boundary_is_refused(parameters: bytes) -> None:
    assert refused(body(part()), b"multipart/form-data" + parameters).status == 400


def test_a_boundary_inside_another_parameter_is_not_the_boundary() -> None:
    content_type = b'multipart/form-data; x="; boundary=fake"; boundary=xYzZy'
    fake = body(part(value="cheap", mark="fake"), mark="fake")
    assert read(body(part("note", fake), part(value="dear")), content_type).text("model") == "dear"


BROKEN = [
    ("empty", b""),
    ("no-boundary", b"model=m"),
    ("other-boundary", body(part(mark="other"), mark="other")),
    ("boundary-within-a-line", b"x" + body(part())),
    ("boundary-after-line-feed", b"x\n" + body(part())),
    ("not-closed", part()),
    ("not-closed-and-no-crlf", part()[:-2]),
    ("closed-with-one-dash", part() + b"--xYzZy-\r\n"),
    ("longer-boundary", part() + b"--xYzZyAndMore\r\n" + body(part("n"))),
    ("longer-boundary-first", b"--xYzZyAndMore\r\n" + body(part())),
    ("text-after-boundary", b"--xYzZy hello\r\n" + body(part())[9:]),
    ("line-feed-after-boundary", body(part()).replace(b"--xYzZy\r\n", b"--xYzZy\n", 1)),
    ("epilogue", body(part()) + b"more"),
    ("epilogue-with-parts", body(part()) + body(part(value="other"))),
    ("close-with-text", part() + b"--xYzZy--more\r\n" + body(part("n"))),
    ("head-without-end", b"--xYzZy\r\nContent-Disposition: form-data; name=model\r\nm\r\n--xYzZy--\r\n"),
    ("head-of-line-feeds", b'--xYzZy\nContent-Disposition: form-data; name="model"\n\nm\n--xYzZy--\n'),
    ("head-too-long", body(part(head='Content-Disposition: form-data; name="a"\r\nX: ' + "y" * PART_HEAD_BYTES_MAX))),
    ("head-holding-a-boundary", body(part(head='Content-Disposition: form-data; name="a"\r\n--xYzZy\r\nX: y'))),
    ("no-headers", b"--xYzZy\r\n\r\nm\r\n--xYzZy--\r\n"),
    ("no-disposition", body(part(head="Content-Type: text/plain"))),
    ("two-dispositions", body(part(head='Content-Disposition: form-data; name="a"\r\n' * 2 + "X: y"))),
    ("attachment", body(part(head='Content-Disposition: attachment; name="model"'))),
    ("no-name", body(part(head="Content-Disposition: form-data"))),
    ("two-names", body(part(head='Content-Disposition: form-data; name="a"; name="model"'))),
    ("extended-name", body(part(head="Content-Disposition: form-data; name*=utf-8''model"))),
    ("both-names", body(part(head="Content-Disposition: form-data; name=\"a\"; name*=utf-8''model"))),
    ("escape-in-name", body(part(head='Content-Disposition: form-data; name="a\\"; b=\\"model"'))),
    ("name-not-closed", body(part(head='Content-Disposition: form-data; name="model'))),
    ("junk-after-name", body(part(head='Content-Disposition: form-data; name="a" model'))),
    ("name-after-junk", body(part(head='Content-Disposition: form-data junk; name="model"'))),
    ("folded", body(part(head='Content-Disposition: form-data;\r\n name="model"'))),
    ("line-feed-in-head", body(part(head='X: y\nContent-Disposition: form-data; name="model"'))),
    ("carriage-return-in-head", body(part(head='X: y\rContent-Disposition: form-data; name="model"'))),
    ("nul-in-head", body(part(head='Content-Disposition: form-data; name="mo\x00del"'))),
    ("space-before-colon", body(part(head='Content-Disposition : form-data; name="model"'))),
    ("header-without-colon", body(part(head='Content-Disposition: form-data; name="model"\r\nhello'))),
    ("encoded", body(part(head='Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64'))),
    ("boundary-first-in-a-value", body(part("note", "--xYzZy"))),
    ("smuggled-by-line-feed", body(part("note", 'a\n--xYzZy\nContent-Disposition: form-data; name="model"\n\nz'))),
    ("smuggled-by-carriage-return", body(part("note", "a\r--xYzZy\rContent-Disposition: form-data\r\rz"))),
    ("closed-by-line-feed", body(part("note", "a\n--xYzZy--\n"), part())),
]


@pytest.mark.parametrize("raw", [case[1] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_could_be_read_two_ways_is_refused(raw: bytes) -> None:
    assert refused(raw).status == 400


def test_a_header_that_only_ends_like_the_disposition_names_nothing() -> None:
    head = 'X-Content-Disposition: form-data; name="junk"\r\nContent-Disposition: form-data; name="model"'
    form = read(body(part(head=head)), TYPE)
    assert (form.text("model"), form.text("junk")) == ("m", None)


@pytest.mark.parametrize(
    "second",
    [
        part(),
        part(head='content-disposition:form-data;name="model"', value="other"),
        part(head="Content-Disposition: form-data; name=model", value="other"),
        part(head='Content-Disposition: form-data; name="model"; filename="x"', value="other"),
        part(head="Content-Disposition: form-data; name=\"model\"; filename*=utf-8''x", value="other"),
    ],
)
def test_a_field_given_twice_is_refused_and_named(second: bytes) -> None:
    assert refused(body(part(), FILE, second)).param == "model"
    assert refused(body(second, FILE, part())).param == "model"


def test_repeated_files_and_array_fields_are_usual() -> None:
    image = part(head='Content-Disposition: form-data; name="image"; filename="a.png"')
    form = read(body(image, image, part("include[]", "a"), part("include[]", "b"), part()), TYPE)
    assert form.text("model") == "m"
    assert form.text("image") is None


@pytest.mark.parametrize("disposition", ['filename="m.txt"', "filename=m.txt", "filename*=utf-8''m.txt"])
def test_a_file_is_never_taken_for_a_text_field(disposition: str) -> None:
    raw = body(part(head=f'Content-Disposition: form-data; name="model"; {disposition}'))
    assert read(raw, TYPE).text("model") is None


# -- bounds --------------------------------------------------------------------------------------------


def test_as_many_parts_as_the_bound_and_no_more() -> None:
    parts = [part(f"f{i}", str(i)) for i in range(PARTS_MAX)]
    form = read(body(*parts), TYPE)
    assert form.text(f"f{PARTS_MAX - 1}") == str(PARTS_MAX - 1)
    assert "parts" in refused(body(*parts, part())).message
    assert "parts" in refused(b"".join(parts) + part() * 1000).message


def test_a_value_too_long_or_not_utf8_is_refused_by_name() -> None:
    raw = body(part("a", "x" * VALUE_BYTES_MAX), part("b", "x" * (VALUE_BYTES_MAX + 1)), part("c", b"\xff"))
    form = read(raw, TYPE)
    assert form.text("a") == "x" * VALUE_BYTES_MAX
    for name in ("b", "c"):
        with pytest.raises(RequestError) as caught:
            form.text(name)
        assert caught.value.param == name


@pytest.mark.parametrize(
    "content",
    [b"", b"\r\n", b"\r\n\r\n", b"--", b"\r\n--", b"\r\n--xYzZ", b"a--xYzZy--b", b"xYzZy\r\n", b"\r\n-\r\n--x"],
)
def test_a_files_bytes_may_be_anything_but_the_delimiter(content: bytes) -> None:
    file = part(head='Content-Disposition: form-data; name="file"; filename="a"', value=content)
    raw = body(file, part())
    form = read(raw, TYPE)
    assert form.text("model") == "m"
    assert form.replaced("model", b"n") == body(file, part(value="n"))


def test_a_preamble_is_passed_over() -> None:
    assert read(b"to be ignored\r\n" + body(part()), TYPE).text("model") == "m"


@pytest.mark.parametrize("value", [b"a\r\nb", b"a\nb", b"a\rb"])
def test_a_replacement_cannot_forge_a_part(value: bytes) -> None:
    form = read(body(part()), TYPE)
    with pytest.raises(AssertionError):
        form.replaced("model", value)


@given(
    st.lists(st.tuples(st.text(alphabet="abcé", min_size=1), st.binary(max_size=40)), max_size=6), st.binary(max_size=9)
)
def test_what_was_put_in_is_what_is_found(fields: list[tuple[str, bytes]], replacement: bytes) -> None:
    fields = [(name, value) for name, value in dict(fields).items() if b"xYzZy" not in value]
    raw = body(*(part(name, value) for name, value in fields))
    if not fields:
        return
    form = read(raw, TYPE)
    for name, value in fields:
        try:
            assert form.text(name) == value.decode()
        except RequestError:
            with pytest.raises(UnicodeDecodeError):
                value.decode()
    replacement = replacement.translate(None, b"\r\n")
    name = fields[0][0]
    again = form.replaced(name, replacement)
    assert again == body(*(part(n, replacement if n == name else v) for n, v in fields))


_pieces: list[Any] = [
    b"--xYzZy",
    b"\r\n",
    b"--",
    b"\n",
    b"Content-Disposition: form-data",
    b'; name="model"',
    b"; filename=x",
]


@given(
    st.lists(st.sampled_from([*_pieces, b"m", b"\r\n\r\n", b":", b'"', b"\x00", b"\xff", part(), FILE]), max_size=12)
)
def test_any_bytes_are_a_form_or_refused(pieces: list[bytes]) -> None:
    for raw in (b"".join(pieces), body(*pieces)):
        try:
            form = read(raw, TYPE)
            model = form.text("model")  # refused when it is not UTF-8
        except RequestError:
            continue
        assert isinstance(form, FormBody)
        if model:
            assert read(form.replaced("model", b"other"), TYPE).text("model") == "other"
