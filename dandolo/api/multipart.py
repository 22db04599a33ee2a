"""Multipart form bodies (RFC 7578): only what steers is found, only what must change is changed.

The parts themselves are passed on as they came; this reads the small text fields (`model`, `stream`,
`response_format`) and says where their values stand. Every bound is named, and a body that does not follow
its own boundary is refused rather than guessed at.
"""

from __future__ import annotations

import re

from dandolo.errors import RequestError

PARTS_MAX = 256
PART_HEAD_BYTES_MAX = 8 * 1024
VALUE_BYTES_MAX = 1024
EPILOGUE_BYTES_MAX = 1024

_TOKEN = rb"[0-9A-Za-z!#$%&'*+\-.^_`|~]+"
# RFC 9110 §5.6.6, and unquoted also what RFC 2046 allows in a boundary: many clients forget its quotes.
_PARAMETER = re.compile(
    rb"[ \t]*;[ \t]*(" + _TOKEN + rb')=(?:"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[ -~])*)"'
    rb"|([0-9A-Za-z!#$%&'*+\-.^_`|~(),/:=?@]+))"
)
_BOUNDARY = re.compile(rb"[0-9A-Za-z!#$%&'*+\-.^_`|~(),/:=? @]{0,69}[0-9A-Za-z!#$%&'*+\-.^_`|~(),/:=?@]")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)")
_PLAIN_ENCODINGS = frozenset((b"7bit", b"8bit", b"binary"))


class FormBody:
    """A multipart body and where its small fields stand: name → (start, end) of the value in `raw`."""

    __slots__ = ("_spans", "raw")

    def __init__(self, raw: bytes, spans: dict[str, tuple[int, int]]) -> None:
        self.raw = raw
        self._spans = spans

    def text(self, name: str) -> str | None:
        """The value of a text field, None when absent. Raises RequestError when it is not UTF-8 or too long."""
        span = self._spans.get(name)
        if span is None:
            return None
        value = self.raw[span[0] : span[1]]
        if len(value) > VALUE_BYTES_MAX:
            raise RequestError(f"the form field '{name}' is longer than {VALUE_BYTES_MAX} bytes", param=name)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise RequestError(f"the form field '{name}' is not valid UTF-8", param=name) from None

    def replaced(self, name: str, value: bytes) -> bytes:
        """The body with one field's value replaced. CR and LF never get in, so no part can be forged."""
        assert b"\r" not in value
        assert b"\n" not in value
        start, end = self._spans[name]
        return self.raw[:start] + value + self.raw[end:]


def read(raw: bytes, content_type: bytes) -> FormBody:
    """Find the parts of a form. Raises RequestError (400, or 415 when it is no form at all)."""
    if not content_type[:19].lower() == b"multipart/form-data":
        raise RequestError("the Content-Type must be multipart/form-data", status=415, code="unsupported_media_type")
    parameters = _parameters(content_type[19:])
    boundary = None if parameters is None else parameters.get(b"boundary")
    if boundary is None or _BOUNDARY.fullmatch(boundary) is None:
        raise RequestError("the Content-Type names no boundary for its parts")
    mark = b"--" + boundary
    spans: dict[str, tuple[int, int]] = {}
    files: set[str] = set()
    at = raw.find(mark)
    if at < 0 or (at > 0 and raw[at - 2 : at] != b"\r\n"):
        raise RequestError("the multipart body does not begin with its boundary")
    separator = b"\r\n" + mark
    led = at > 0
    for count in range(PARTS_MAX + 1):
        at += len(mark)
        if raw[at : at + 2] == b"--":
            if len(raw) - at > EPILOGUE_BYTES_MAX or raw[at + 2 :].strip(b" \t\r\n"):
                raise RequestError("the multipart body goes on after its end")
            _refuse_other_ends(raw, mark, count + 1, led)
            return FormBody(raw, spans)
        if count == PARTS_MAX:
            break
        line_end = raw.find(b"\r\n", at, at + 128)
        if line_end < 0 or raw[at:line_end].strip(b" \t"):
            raise RequestError("the multipart body does not follow its boundary")
        head_end = raw.find(b"\r\n\r\n", line_end, line_end + PART_HEAD_BYTES_MAX)
        if head_end < 0:
            raise RequestError(f"a part of the multipart body has no end of headers within {PART_HEAD_BYTES_MAX} bytes")
        end = raw.find(separator, line_end)
        if end < 0:
            raise RequestError("the multipart body is not closed by its boundary")
        if end < head_end + 2:
            raise RequestError("a part of the multipart body ends within its headers")
        field, is_file = _part(raw[line_end + 2 : head_end])
        if field in spans or (field in files and not is_file):
            if not field.endswith("[]"):
                raise RequestError(f"the form field '{field[:64]}' stands twice; give it once", param=field[:64])
        elif is_file:
            files.add(field)
        if not is_file:
            spans[field] = (head_end + 4, max(end, head_end + 4))
        at = end + 2
    raise RequestError(f"the multipart body has more than {PARTS_MAX} parts")


def _part(head: bytes) -> tuple[str, bool]:
    """A part's name, and whether it is a file. Raises RequestError for headers that two readers could read two ways."""
    disposition: bytes | None = None
    encoding = b"binary"
    for line in head.split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise RequestError("a part of the multipart body has a malformed header")
        name = match[1].lower()
        if name == b"content-disposition":
            if disposition is not None:
                raise RequestError("a part of the multipart body has two Content-Disposition headers")
            disposition = match[2].strip(b" \t")
        elif name == b"content-transfer-encoding":
            encoding = match[2].strip(b" \t").lower()
    if disposition is None or disposition[:9].lower() != b"form-data":
        raise RequestError("a part of the multipart body has no Content-Disposition: form-data")
    parameters = _parameters(disposition[9:])
    name = None if parameters is None else parameters.get(b"name")
    # RFC 7578 §4.2: a name is required, and "name*" is not to be used.
    if parameters is None or name is None or b"\\" in name or b"name*" in parameters:
        raise RequestError("a part of the multipart body has a malformed Content-Disposition")
    is_file = b"filename" in parameters or b"filename*" in parameters
    if not is_file and encoding not in _PLAIN_ENCODINGS:
        raise RequestError("a form field is encoded; send it as it is (RFC 7578 §4.7)")
    return name.decode("utf-8", "replace"), is_file


def _parameters(text: bytes) -> dict[bytes, bytes] | None:
    """`; name=value` pairs, names in lower case; None when they are malformed or one stands twice."""
    found: dict[bytes, bytes] = {}
    at = 0
    while (match := _PARAMETER.match(text, at)) is not None:
        name = match[1].lower()
        if name in found:
            return None
        found[name] = match[2] if match[2] is not None else match[3]
        at = match.end()
    return None if text[at:].strip(b" \t;") else found


def _refuse_other_ends(raw: bytes, mark: bytes, delimiters: int, led: bool) -> None:
    """Refuse a boundary after a bare CR or LF: some servers take it for one (RFC 2046 §5.1.1 asks for CRLF)."""
    if raw.count(mark) == delimiters:
        return
    if raw.count(b"\n" + mark) != delimiters - (0 if led else 1) or raw.count(b"\r" + mark):
        raise RequestError("the multipart body holds its boundary after a bare line end")
