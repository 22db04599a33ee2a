"""The operator's listener: metrics, and whether the process lives and is ready.

A service on the same connections as the gateway's own (`net.downstream`), so the same strict parser and
deadlines stand here. Everything is judged from the head: browsers are refused whoever they come from, a
listener without keys answers to loopback names only (a web page could otherwise reach it by a name of its
own that resolves to 127.0.0.1), and one with keys wants a key for all but the two probes. It knows nothing
of what it serves: that comes as callables.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import msgspec

from dandolo.api import openai
from dandolo.control.exposition import CONTENT_TYPE
from dandolo.errors import GatewayError, InternalError, RequestError
from dandolo.net.downstream import Downstream, DownstreamLimits
from dandolo.net.sweep import Sweep
from dandolo.wire import fields
from dandolo.wire.server import HeadLimits, Request

BODY_BYTES_MAX = 4096
"""Nothing here takes a body; a small one is read past so that the connection can go on."""
LIMITS = DownstreamLimits(
    HeadLimits(header_bytes_max=16 * 1024), body_idle_s=5.0, body_total_s=10.0, keep_alive_idle_s=120.0
)
"""Prometheus asks every 15 to 60 s over one connection: idle ones are kept longer than that."""

_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"
_INDEX = b"""Dandolo, for operators:

/metrics   counters and histograms, for Prometheus
/healthz   whether the process lives
/readyz    whether it takes requests
/admin/routes          accounts and models: limits, breakers, what was measured
/admin/routes?model=M  whom a call for a model could go to, and by what score
"""
_OPEN = frozenset((b"/healthz", b"/readyz"))
_log = logging.getLogger("dandolo")
_encode = msgspec.json.Encoder().encode

_Answer = tuple[int, bytes, bytes]


class Admin:
    """The service of the admin listener.

    `metrics_text` gives the page of /metrics, `ready` whether requests are taken and if not why, `routes` what
    /admin/routes answers to a query string (anything that JSON can hold; it may raise GatewayError).
    `authenticate` judges a head (lower-case names to values) and raises GatewayError when it presents no key;
    without it everybody may read who comes by a loopback name, or over a Unix socket.

    The owner calls `sweep.tick(now())` every `PERIOD_S`, sets `draining` when the process is to end, and calls
    `close` at the end.
    """

    def __init__(
        self,
        *,
        metrics_text: Callable[[], bytes],
        ready: Callable[[], tuple[bool, str]],
        routes: Callable[[bytes], Any],
        authenticate: Callable[[dict[bytes, bytes]], None] | None = None,
        limits: DownstreamLimits = LIMITS,
    ) -> None:
        self.limits = limits
        self.sweep = Sweep()
        self.draining = False
        self._ready = ready
        self._authenticate = authenticate
        self._metrics_text = metrics_text
        self._routes: dict[bytes, Callable[[bytes], _Answer]] = {
            b"/": lambda _: (200, _TEXT, _INDEX),
            b"/metrics": lambda _: (200, CONTENT_TYPE, self._metrics_text()),
            b"/healthz": lambda _: (200, _JSON, b'{"status":"ok"}'),
            b"/readyz": self._readiness,
            b"/admin/routes": lambda query: (200, _JSON, _encode(routes(query))),
        }

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End every connection at once."""
        for item in list(self.sweep.items):
            if isinstance(item, Downstream):
                item.abort()

    # -- what a connection asks ------------------------------------------------------------------------

    def admit(self, connection: Downstream, request: Request) -> int:
        """Judge a head. Returns how many bytes of body are read past; raises GatewayError."""
        head = request.fields
        if b"origin" in head:
            raise RequestError(
                "this listener does not answer browsers (the request has an Origin)",
                status=403,
                type="permission_error",
                code="origin_not_allowed",
            )
        if self._authenticate is None:
            if connection.peer and not _is_loopback(request.authority):
                raise RequestError(
                    "this listener has no keys and answers to loopback names only; call it as 127.0.0.1 or localhost",
                    status=403,
                    type="permission_error",
                    code="host_not_allowed",
                )
        elif request.path not in _OPEN:
            self._authenticate(head)
        if request.path not in self._routes:
            raise RequestError("there is nothing at this path; GET / lists what is here", status=404, code="not_found")
        if request.method not in (b"GET", b"HEAD"):
            raise RequestError(
                "this path can only be read, by GET or HEAD", status=405, code="method_not_allowed", allow="GET, HEAD"
            )
        return BODY_BYTES_MAX

    def enter_again(self, connection: Downstream, request: Request) -> bool:
        """Never: every head is judged in full, nothing here is in a hurry."""
        return False

    def begin(self, connection: Downstream, request: Request) -> None:
        """The same as `start`: nothing is counted here."""
        self.start(connection, request)

    def body_grew(self, connection: Downstream, size: int) -> None:
        """Nothing to count: bodies are bounded by BODY_BYTES_MAX."""

    def start(self, connection: Downstream, request: Request) -> None:
        """Answer at once: nothing here waits."""
        try:
            status, content_type, body = self._routes[request.path](request.query)
            head = _head(content_type)
        except GatewayError as error:
            status, head, body = self.refusal(connection, request, error)
        except Exception:
            _log.error("the admin listener failed to answer", exc_info=True)
            status, head, body = self.refusal(
                connection, request, InternalError("an error within the gateway; it has been logged")
            )
        connection.answer(status, head, body)
        connection.finish()

    def refusal(self, connection: Downstream, request: Request | None, error: GatewayError) -> _Answer:
        """Status, header lines and body (OpenAI's envelope) that tell `error`."""
        head = _head(_JSON)
        if error.status == 401:
            head += b"WWW-Authenticate: Bearer\r\n"
        if error.allow is not None:
            head += fields.encode_fields([(b"Allow", error.allow.encode("ascii"))])
        if error.retry_after_s is not None:
            head += b"Retry-After: %d\r\n" % math.ceil(error.retry_after_s)
        return error.status, head, openai.error_body(error)

    def gone(self, connection: Downstream) -> None:
        """Nothing runs for a connection that could be cancelled."""

    def _readiness(self, query: bytes) -> _Answer:
        ready, reason = self._ready()
        if ready:
            return 200, _JSON, b'{"status":"ready"}'
        return 503, _JSON, _encode({"status": "not ready", "reason": reason})


def _head(content_type: bytes) -> bytes:
    # no-store and nosniff: numbers of this moment, and never anything a browser might take for a page.
    return b"Date: %b\r\nContent-Type: %b\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n" % (
        formatdate(usegmt=True).encode(),
        content_type,
    )


def _is_loopback(authority: bytes) -> bool:
    """Whether a Host names this machine. An empty one (HTTP/1.0 without Host) is no browser's."""
    name = authority.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
