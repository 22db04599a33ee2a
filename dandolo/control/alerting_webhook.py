"""Notices by HTTP: one POST of JSON each, signed.

The receiver's address is the configuration's alone. It is resolved and judged like a provider's (link-local and
metadata addresses are refused), TLS is verified, nothing is followed, of the answer only the status is looked at.
Each attempt has a connection of its own and one deadline from the first packet on.

    x-dandolo-delivery: the same for every attempt at a notice, so that a receiver can tell repeats
    x-dandolo-timestamp: Unix seconds of the attempt
    x-dandolo-signature: v1=HEX, HMAC-SHA256 with the secret over timestamp, a full stop, and the body
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from dandolo import __version__
from dandolo.config.alerts import Webhook
from dandolo.control.courier import Undelivered
from dandolo.errors import UpstreamError, UpstreamTimeout
from dandolo.net.dial import Destination, Dialer
from dandolo.net.upstream import Upstream
from dandolo.notice import Notice

AGAIN: Final = frozenset((408, 425, 429))
"""Refusals that pass, beside 5xx."""


class _Posted(Notice, frozen=True):
    """What is posted. `text` is what chat systems show of an incoming webhook; `instance` is whose alert it is."""

    text: str
    instance: str


class WebhookSink:
    """Delivers notices to one URL. `now` gives Unix seconds. Raises OSError or ssl.SSLError for a `ca` that is none."""

    def __init__(
        self, webhook: Webhook, instance: str, dialer: Dialer, *, now: Callable[[], float] = time.time
    ) -> None:
        parts = urlsplit(webhook.url.reveal())
        secure = parts.scheme == "https"
        context = ssl.create_default_context(cafile=webhook.ca) if secure else None
        self._destination = Destination(parts.hostname or "", parts.port or (443 if secure else 80), context)
        target = parts.path or "/"
        self._target = f"{target}?{parts.query}" if parts.query else target
        self._authority = parts.netloc
        self._secret = webhook.secret
        self._timeout_s = webhook.timeout
        self._instance = instance
        self._dialer = dialer
        self._now = now

    async def deliver(self, notice: Notice) -> None:
        """One attempt. Raises Undelivered. Cancelling closes the connection."""
        body = msgspec.json.encode(
            _Posted(
                **msgspec.structs.asdict(notice),
                text=f"[{notice.state}] {notice.alert}{notice.subject and f' ({notice.subject})'}: {notice.message}",
                instance=self._instance,
            )
        )
        timeout_s = self._timeout_s
        connection: Upstream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._dialer.dial(self._destination, timeout_s)
                await _answer(connection, self._head(notice, body), body)
        except (UpstreamTimeout, TimeoutError):
            # What has answered has taken it, however long it goes on talking.
            if connection is None or connection.response is None:
                raise Undelivered(f"no answer within {timeout_s:g} s", again=True) from None
        except UpstreamError as error:
            if connection is None:
                raise Undelivered(error.message.partition(";")[0], again=True) from None
            raise Undelivered("the connection ended without an answer in HTTP", again=True) from None
        finally:
            if connection is not None:
                connection.detach()
                connection.close()
        assert connection.response is not None
        status = connection.response.status
        if 300 <= status < 400:
            raise Undelivered(f"it answered {status}: redirects are not followed", again=False)
        if status >= 400:
            raise Undelivered(f"it answered {status}", again=status >= 500 or status in AGAIN)

    def _head(self, notice: Notice, body: bytes) -> bytes:
        stamp = str(int(self._now()))
        lines = [
            f"POST {self._target} HTTP/1.1",
            f"host: {self._authority}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"user-agent: dandolo/{__version__}",
            "connection: close",
            f"x-dandolo-delivery: {notice.id}-{notice.state}",
            f"x-dandolo-timestamp: {stamp}",
        ]
        if self._secret is not None:
            lines.append(f"x-dandolo-signature: {sign(self._secret.reveal(), stamp, body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a body that was sent at `timestamp`."""
    return "v1=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


async def _answer(connection: Upstream, head: bytes, body: bytes) -> None:
    """Until the answer is there; raises UpstreamError when none comes."""
    outcome: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    connection.ask(head, body, _Receiver(outcome))
    await outcome


class _Receiver:
    """Passes an outcome on to a future that may have been given up."""

    __slots__ = ("_outcome",)

    def __init__(self, outcome: asyncio.Future[bytes | None]) -> None:
        self._outcome = outcome

    def set(self, value: bytes | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
