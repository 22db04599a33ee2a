"""What a client is sent around an answer: header lines, error envelopes, the forms of a failing stream."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterable
from email.utils import formatdate
from typing import NamedTuple

from dandolo.api import anthropic, openai
from dandolo.api.endpoints import Dialect
from dandolo.errors import GatewayError
from dandolo.wire import fields
from dandolo.wire.client import Response

_PASSED = frozenset((b"content-type", b"retry-after", b"retry-after-ms", b"content-disposition"))
_PASSED_PREFIXES = (b"x-ratelimit-", b"openai-", b"anthropic-", b"x-venice-")
_RATES = (b"x-ratelimit-", b"anthropic-ratelimit-")
REMEMBERED_MAX = 1024
JSON = b"Content-Type: application/json\r\n"
# RFC 9111 and nginx's own header: no cache and no proxy may keep, transform or buffer an event stream.
STREAM = b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"

_passes: dict[bytes, bool] = {}


def provider_fields(response: Response) -> bytes:
    """Encoded lines of a provider's headers that clients may see: an allowlist (promise 19).

    Names and values were judged when they were parsed, which is what makes them fit to be sent. For a head
    that repeats an earlier one the lines that never vary are encoded once.
    """
    head, repeat = response.fields, response.repeat
    if repeat is None:
        return _encoded(head, head)
    note = repeat.note
    if not isinstance(note, _Lines):
        note = repeat.note = _lines(head, repeat.names)
    return note.constant + _encoded(head, note.varying) if note.varying else note.constant


def limited_fields(response: Response) -> bytes:
    """The same for a key with rates of its own: what the provider says of ours (`x-ratelimit-*`) is left out."""
    head, repeat = response.fields, response.repeat
    if repeat is None:
        return _encoded(head, _own(head))
    note = repeat.note
    if not isinstance(note, _Lines):
        note = repeat.note = _lines(head, repeat.names)
    return note.own_constant + _encoded(head, note.own_varying) if note.own_varying else note.own_constant


class _Lines(NamedTuple):
    """Lines that never vary and names whose do; both once more without rates."""

    constant: bytes
    varying: tuple[bytes, ...]
    own_constant: bytes
    own_varying: tuple[bytes, ...]


def _lines(head: dict[bytes, bytes], varying: Container[bytes]) -> _Lines:
    constant = [name for name in head if name not in varying]
    changing = tuple(name for name in head if name in varying and _passes_on(name))
    return _Lines(_encoded(head, constant), changing, _encoded(head, _own(constant)), tuple(_own(changing)))


def _own(names: Iterable[bytes]) -> list[bytes]:
    return [name for name in names if not name.startswith(_RATES)]


def _encoded(head: dict[bytes, bytes], names: Iterable[bytes]) -> bytes:
    return b"".join([b"%b: %b\r\n" % (name, head[name]) for name in names if _passes_on(name)])


def _passes_on(name: bytes) -> bool:
    passes = _passes.get(name)
    if passes is None:
        passes = name in _PASSED or name.startswith(_PASSED_PREFIXES)
        if len(_passes) >= REMEMBERED_MAX:
            _passes.clear()
        _passes[name] = passes
    return passes


class Dates:
    """The Date header's line, made once a second (RFC 9110 §6.6.1)."""

    __slots__ = ("_line", "_until")

    def __init__(self) -> None:
        self._until = 0.0
        self._line = b""

    def line(self, now: float) -> bytes:
        """The line at monotonic time `now`."""
        if now >= self._until:
            self._until = now + 1.0
            self._line = b"Date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
        return self._line


def error_answer(error: GatewayError, dialect: Dialect, request_id: str) -> tuple[bytes, bytes]:
    """Header lines (without framing, date and request id) and body of an error in its dialect's envelope."""
    lines = [JSON]
    if error.retry_after_s is not None:
        # Whole seconds for whoever reads RFC 9110 only, milliseconds for the SDKs, which look there first.
        lines.append(
            b"retry-after: %d\r\nretry-after-ms: %d\r\n"
            % (math.ceil(error.retry_after_s), math.ceil(error.retry_after_s * 1000))
        )
    if error.status in (502, 504):
        # Our own retries are spent: an SDK's would multiply them. Never on 429 and 503.
        lines.append(b"x-should-retry: false\r\n")
    if error.allow is not None:
        lines.append(fields.encode_fields([(b"allow", error.allow.encode("ascii"))]))
    if error.status == 401:
        lines.append(b"www-authenticate: Bearer\r\n")
    if dialect == "messages":
        return b"".join(lines), anthropic.error_body(error, request_id)
    return b"".join(lines), openai.error_body(error)


def error_event(error: GatewayError, dialect: Dialect, request_id: str, events: int) -> bytes:
    """The event that tells a failure within a stream, in its dialect's form. `events` were sent before."""
    if dialect == "messages":
        return anthropic.error_event(error, request_id)
    if dialect == "responses":
        return openai.responses_error_event(error, events)
    return openai.error_event(error)
