"""A request's head: what its first line and its fields must be, and what they say about framing.

Judgements over whole lines, without a connection's state: `wire.server` reads, this decides (RFC 9112 §3
and §6, RFC 9110 §7.2). Request lines and hosts that were judged are remembered, within bounds: the same
bytes have the same outcome.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dandolo.errors import ProtocolError
from dandolo.wire import fields

# method SP request-target SP HTTP-version (RFC 9112 §3): exactly two spaces, and no '#' in a target.
_REQUEST_LINE = re.compile(
    rb"([" + fields.TCHAR + rb"]+) ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])",
)
_OTHER_VERSION = re.compile(
    rb"[" + fields.TCHAR + rb"]+ [^ ]+ ([A-Z]{2,8}/[0-9]{1,4}(?:\.[0-9]{1,4})?)",
)
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@\\]+)((?:/[^?]*)?)((?:\?.*)?)")
# uri-host [ ":" port ] (RFC 9110 §7.2): a name, an IPv4 address, or an IPv6 address in brackets.
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+)(?::[0-9]{0,5})?")
NO_METHOD = re.compile(rb"[^\r" + fields.TCHAR + rb"]")
_AUTHORITY_BYTES_MAX = 255 + 6
_REMEMBERED_MAX = 1024
_RequestLine = tuple[bytes, bytes, bytes, int, bytes | None]
request_lines: dict[bytes, _RequestLine] = {}
_hosts: set[bytes] = set()
_ONCE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect",
     b"content-type", b"content-encoding", b"content-range", b"origin")
)  # fmt: skip


_NO_FIELDS: dict[bytes, bytes] = {}


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds of a request head, in bytes and counts (RFC 9112 §3: at least 8,000 bytes of request line)."""

    request_line_bytes_max: int = 8 * 1024
    header_bytes_max: int = 32 * 1024
    headers_max: int = 100
    header_line_bytes_max: int = 16 * 1024


class Request:
    """A request whose head has been judged.

    `path` and `query` are the raw target, split at the first '?' (`query` without it); `target` is '*'
    for OPTIONS *. `fields` maps lower-case names to values; repeated list-valued fields are joined with
    commas. `length` is the declared body length in bytes, None when chunked. `keep_alive` says whether
    the connection may carry another request. `body` is filled by the reader when it is complete.
    """

    __slots__ = (
        "authority", "body", "chunked", "context", "expect", "fields", "head_bytes", "keep_alive", "length", "method",
        "minor", "path", "query", "upgrade",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.query = b""
        self.minor = 1
        self.fields: dict[bytes, bytes] = {}
        self.authority = b""
        self.length: int | None = 0
        self.chunked = False
        self.keep_alive = True
        self.expect = False
        self.upgrade = False
        self.head_bytes = 0
        self.body = b""
        self.context: object = None
        """The owner's to use: what it decided about this request when it saw the head."""

    def forget(self) -> None:
        """Let go of what one request said; what was concluded from the lines that repeat stays."""
        self.fields = _NO_FIELDS
        self.body = b""


def judge_host(request: Request, head: dict[bytes, bytes], authority: bytes | None) -> None:
    host = head.get(b"host")
    if host is None:
        # RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
        # request message that lacks a Host header field".
        if request.minor == 1:
            raise ProtocolError("the Host header is missing; HTTP/1.1 needs exactly one")
        host = b""
    elif host not in _hosts:
        if len(host) > _AUTHORITY_BYTES_MAX or not _AUTHORITY.fullmatch(host):
            raise ProtocolError("the Host header is not a host name or address with an optional port")
        if len(_hosts) >= _REMEMBERED_MAX:
            _hosts.clear()
        _hosts.add(host)
    request.authority = host if authority is None else authority


def judge_framing(request: Request, head: dict[bytes, bytes]) -> None:
    length = head.get(b"content-length")
    coding = head.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise ProtocolError("Content-Length and Transfer-Encoding in one request (RFC 9112 §6.1)")
        if request.minor == 0:
            raise ProtocolError("Transfer-Encoding in an HTTP/1.0 request (RFC 9112 §6.1)")
        if coding.lower() != b"chunked":
            known = set(fields.list_members(coding)) <= {b"chunked", b"identity", b"gzip", b"deflate", b"compress"}
            raise ProtocolError(
                "the only Transfer-Encoding accepted is a single 'chunked'",
                status=400 if known else 501,
                code="bad_request" if known else "unsupported_transfer_encoding",
            )
        request.chunked = True
        request.length = None
    elif length is not None:
        size = fields.parse_length(length)
        if size is None:
            raise bad_length()
        request.length = size
    connection = head.get(b"connection")
    if request.minor == 0:
        request.keep_alive = False
    elif connection is not None and connection != b"keep-alive":
        request.keep_alive = b"close" not in fields.list_members(connection)
    if b"upgrade" in head:
        # Ignored (RFC 9110 §7.8): answered as HTTP/1.1, then closed, since the client may believe otherwise.
        request.upgrade = True
        request.keep_alive = False
    expect = head.get(b"expect")
    if expect is not None and request.minor == 1:
        if expect.lower() != b"100-continue":
            raise ProtocolError("the only Expect accepted is 100-continue", status=417, code="expectation_failed")
        request.expect = True


def judge_line(line: bytes) -> _RequestLine:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _why_line(line)
    method, target, minor = match[1], match[2], int(match[3])
    authority: bytes | None = None
    if target[0] == 0x2F:
        path, _, query = target.partition(b"?")
    elif target == b"*" and method == b"OPTIONS":
        path, query = target, b""
    elif method == b"CONNECT":
        path, query = target, b""  # judged by the route table: 405, whatever the target
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or len(absolute[1]) > _AUTHORITY_BYTES_MAX or not _AUTHORITY.fullmatch(absolute[1]):
            raise ProtocolError("the request target is neither a path nor an http(s) URL")
        # RFC 9112 §3.2.2: the authority of an absolute-form target replaces Host.
        authority, path, query = absolute[1], absolute[2] or b"/", absolute[3][1:]
    judged = (method, path, query, minor, authority)
    if len(line) <= fields.REMEMBERED_LINE_BYTES_MAX:
        if len(request_lines) >= _REMEMBERED_MAX:
            request_lines.clear()
        request_lines[line] = judged
    return judged


def _why_line(line: bytes) -> ProtocolError:
    version = _OTHER_VERSION.fullmatch(line)
    if version is not None and version[1] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return ProtocolError("the HTTP version is neither 1.1 nor 1.0", status=505, code="http_version_not_supported")
    if line.startswith(b"\x16\x03"):
        return ProtocolError("a TLS handshake on a plain HTTP port; use http:// or configure server.tls")
    return ProtocolError("the request line is not 'METHOD SP target SP HTTP/1.1'")


def joined(pairs: list[fields.Field]) -> dict[bytes, bytes]:
    head: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name not in head:
            head[name] = value
        elif name in _ONCE:
            raise ProtocolError(f"the header {name.decode('ascii')} is given twice")
        else:
            head[name] += b", " + value
    return head


def bad_length() -> ProtocolError:
    return ProtocolError("Content-Length is not a number of 1 to 15 digits")


def line_too_long(bytes_max: int) -> ProtocolError:
    return ProtocolError(f"the request line is longer than {bytes_max} bytes", status=414, code="uri_too_long")
