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

_BOUNDARY = re.compile(rb';[ \t]*boundary=(?:"([^"\r\n]{1,70})"|([0-9A-Za-z\'()+_,\-./:=?]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition:[ \t]*form-data[^\r\n]*?;[ \t]*name="([^"\r\n]*)"', re.IGNORECASE)
_FILENAME = re.compile(rb"content-disposition:[^\r\n]*?;[ \t]*filename\*?=", re.IGNORECASE)


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
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise RequestError("the Content-Type names no boundary for its parts")
    mark = b"--" + (match[1] or match[2])
    spans: dict[str, tuple[int, int]] = {}
    at = raw.find(mark)
    if at < 0 or (at > 0 and raw[at - 2 : at] != b"\r\n"):
        raise RequestError("the multipart body does not begin with its boundary")
    separator = b"\r\n" + mark
    for _ in range(PARTS_MAX):
        at += len(mark)
        if raw[at : at + 2] == b"--":
            return FormBody(raw, spans)
        line_end = raw.find(b"\r\n", at, at + 128)
        if line_end < 0 or raw[at:line_end].strip(b" \t"):
            raise RequestError("the multipart body does not follow its boundary")
        head_end = raw.find(b"\r\n\r\n", line_end, line_end + PART_HEAD_BYTES_MAX)
        if head_end < 0:
            raise RequestError(f"a part of the multipart body has no end of headers within {PART_HEAD_BYTES_MAX} bytes")
        end = raw.find(separator, head_end + 2)
        if end < 0:
            raise RequestError("the multipart body is not closed by its boundary")
        head = raw[line_end:head_end]
        name = _NAME.search(head)
        if name is not None and _FILENAME.search(head) is None:
            field = name[1].decode("utf-8", "replace")
            if field in spans and not field.endswith("[]"):
                raise RequestError(f"the form field '{field[:64]}' stands twice; give it once", param=field[:64])
            spans[field] = (head_end + 4, max(end, head_end + 4))
        at = end + 2
    raise RequestError(f"the multipart body has more than {PARTS_MAX} parts")
