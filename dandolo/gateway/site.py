"""Paths that are not a provider's business, and the words for those that do not exist."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from dandolo import __version__
from dandolo.api.endpoints import ENDPOINTS, MODELS, RESPONSE, Endpoint
from dandolo.api.openai import printable as printable_text
from dandolo.errors import RequestError
from dandolo.gateway.answers import JSON
from dandolo.wire import fields

Local = tuple[int, bytes, bytes]
"""Status, encoded header lines and body of an answer that needs nobody else."""

PAGE = Endpoint("page", "models", "/", methods=frozenset((b"GET", b"HEAD")), body="none", model=False)
_ANYWHERE = Endpoint("options", "models", "*", methods=frozenset(), body="none", model=False)
_PAGES = frozenset((b"/", b"/healthz", b"/readyz"))
_RESPONSE_ID = re.compile(rb"/v1/responses/[A-Za-z0-9_\-]{1,128}(?:/(?:cancel|input_items))?")
_METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
PREFLIGHT_S = 600
_encoder = msgspec.json.Encoder()


def find(path: bytes) -> tuple[Endpoint, str] | None:
    """The endpoint of a path that is not in the table, with what follows the endpoint's own path."""
    if path in _PAGES:
        return PAGE, ""
    if path == b"/v1/models":
        return MODELS, ""
    if path.startswith(b"/v1/models/") and len(path) > 11:
        return MODELS, path[11:].decode("latin-1")
    if _RESPONSE_ID.fullmatch(path):
        return RESPONSE, path[len(RESPONSE.path) :].decode("ascii")
    if path == b"*":
        return _ANYWHERE, ""
    return None


def not_found(path: bytes) -> RequestError:
    """The 404 for a path: it names near ones, since a missing /v1 is what usually went wrong."""
    known = [*ENDPOINTS, b"/v1/models"]
    wanted = path.rstrip(b"/")
    near = [
        entry
        for entry in known
        if entry == wanted or entry == b"/v1" + wanted or entry == wanted.replace(b"/v1/v1", b"/v1")
    ]
    if path == b"/metrics":
        hint = "; metrics are on the admin listener"
    elif near:
        hint = f"; did you mean {near[0].decode()}?"
    else:
        hint = "; see /v1/models, /v1/chat/completions and the other paths of the OpenAI API"
    return RequestError(f"there is nothing at {printable(path)}{hint}", status=404, code="not_found")


def page(path: bytes, ready: Callable[[], tuple[bool, str]]) -> Local:
    """Health and the front page. None of them touches a provider."""
    if path == b"/healthz":
        return 200, JSON, b'{"status":"ok"}'
    if path == b"/readyz":
        well, reason = ready()
        if well:
            return 200, JSON, b'{"status":"ready"}'
        return 503, JSON, _encoder.encode({"status": "not ready", "reason": reason})
    return 200, JSON, _encoder.encode({"name": "dandolo", "version": __version__, "api": "/v1"})


def preflight(endpoint: Endpoint, origin: bytes | None, head: dict[bytes, bytes]) -> Local:
    """The answer to OPTIONS (Fetch standard, CORS-preflight fetch)."""
    allow = endpoint.allow.encode() or _METHODS
    if origin is None:
        return 204, b"allow: %b\r\n" % allow, b""
    lines = [
        b"access-control-allow-methods: %b\r\naccess-control-max-age: %d\r\n" % (allow, PREFLIGHT_S),
    ]
    asked = head.get(b"access-control-request-headers")
    if asked is not None:
        lines.append(fields.encode_fields([(b"access-control-allow-headers", asked)]))
    return 204, b"".join(lines), b""


def cors(origin: bytes) -> bytes:
    """Header lines that let a listed origin read the answer."""
    return (
        b"access-control-allow-origin: %b\r\nvary: origin\r\n"
        b"access-control-expose-headers: x-request-id, x-dandolo-provider, x-dandolo-attempts, retry-after\r\n" % origin
    )


def printable(raw: bytes) -> str:
    """A piece of a request line for a message or a log: cut, and nothing in it that is not printable ASCII."""
    return printable_text(raw.decode("latin-1"))
