"""Every failure Dandolo knows, with who caused it, whether a retry is right, and what a client is told.

    GatewayError                    an answer in the error envelope
    ├── RequestError                the caller's doing; the provider sees nothing
    │   └── ProtocolError           framing is broken: the connection closes after the answer
    ├── Refusal                     ours: overload, limits, no provider available
    ├── UpstreamError               a provider's doing
    │   ├── UpstreamUnavailable     connect failed, reset or closed before an answer
    │   ├── UpstreamInvalid         an answer that breaks HTTP or the dialect
    │   └── UpstreamTimeout         a deadline passed
    └── InternalError               our own mistake

Whoever raises sets source and retry verdict; only the exchange turns an error into HTTP.
"""

from __future__ import annotations

from enum import IntEnum


class Retry(IntEnum):
    """Whether somebody else may be asked after this failure (promise 31)."""

    NEVER = 0
    """The caller caused it, or an answer has begun."""
    OTHER = 1
    """Another account or provider may take over."""
    SAME = 2
    """A reused connection died before any response byte: the same account once, on a fresh connection."""


class GatewayError(Exception):
    """A failure that can be said to a client.

    `status` is the HTTP status, `type` and `code` the envelope's stable strings, `param` the offending
    field or None, `retry_after_s` the wait to advertise (None: no header), `close` whether the client's
    connection must end after this answer, `allow` the value of an Allow header.
    """

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    retry = Retry.NEVER
    source = "gateway"
    counts = False
    """Whether this speaks against the provider's health (its breaker counts it)."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry: Retry | None = None,
        retry_after_s: float | None = None,
        close: bool = False,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code
        if retry is not None:
            self.retry = retry
        self.param = param
        self.retry_after_s = retry_after_s
        self.close = close
        self.allow = allow


class RequestError(GatewayError):
    """The caller sent something we cannot act on."""

    status = 400
    type = "invalid_request_error"
    code = "bad_request"
    source = "client"


class ProtocolError(RequestError):
    """Bytes that are not HTTP as we accept it: nothing later on this connection is interpreted."""

    def __init__(self, message: str, *, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(message, status=status, code=code, close=True)


class Refusal(GatewayError):
    """We decline for now: too much in flight, a queue that is full, no provider that can be asked."""

    status = 503
    type = "server_error"
    code = "overloaded"


class UpstreamError(GatewayError):
    """A provider failed."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    retry = Retry.OTHER
    source = "upstream"
    counts = True


class UpstreamUnavailable(UpstreamError):
    """No connection, or one that ended before an answer."""

    code = "upstream_unavailable"


class UpstreamInvalid(UpstreamError):
    """An answer that cannot be trusted: its connection is dropped."""

    code = "upstream_invalid_response"


class UpstreamTimeout(UpstreamError):
    """A deadline passed while the provider was silent."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"


class InternalError(GatewayError):
    """Our own mistake; the message never carries a trace."""
