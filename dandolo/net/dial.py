"""New connections to providers: names, addresses, proxies, TLS.

Everything about where a connection goes comes from configuration, and this is the choke point that makes
it so: addresses are judged after they are resolved, so a name that points at a metadata service is refused
however it was spelled. Addresses are kept for `DNS_TTL_S`; when a name cannot be resolved the last good
addresses serve on. Connecting tries one address after another, overlapping (RFC 8305), within one deadline.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from dandolo.errors import UpstreamTimeout, UpstreamUnavailable
from dandolo.net.tls import TlsTransport
from dandolo.net.upstream import Upstream
from dandolo.wire.tls import harden

DNS_TTL_S = 30.0
SECOND_TRY_S = 0.25
STALE_WAIT_S = 0.5
"""How long a resolver may take when addresses are known; then the last good ones serve."""
ADDRESSES_MAX = 8
PROXY_ANSWER_BYTES_MAX = 16 * 1024

_METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"))
)
_PROXY_OK = re.compile(rb"HTTP/1\.[01] 2[0-9][0-9](?: [^\r\n]*)?\r\n")
_Target = tuple[str, int] | tuple[str, int, int, int]
_Address = tuple[int, _Target]


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """An HTTP proxy that is asked to CONNECT; `authorization` is the value of its header or None."""

    host: str
    port: int
    authorization: str | None

    @classmethod
    def parse(cls, url: str) -> ForwardProxy:
        """From `http://[user:password@]host[:port]`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(parts.hostname or "", parts.port or 3128, authorization)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a provider listens: from its base_url, with what TLS needs. `tls` is None for plain http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    proxy: ForwardProxy | None = None
    link_local_allowed: bool = False

    def __post_init__(self) -> None:
        if self.tls is not None:
            harden(self.tls)


def refused_address(text: str) -> bool:
    """Whether an address is link-local or a cloud's metadata service (promise 20)."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA


class Dialer:
    """Opens connections. One per worker: it owns the cache of addresses."""

    def __init__(self) -> None:
        self._addresses: dict[tuple[str, int], tuple[float, list[_Address]]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[list[_Address]]] = {}

    async def dial(self, destination: Destination, timeout_s: float) -> Upstream:
        """Connect within `timeout_s` seconds, DNS and TLS included.

        Raises UpstreamUnavailable. Cancelling closes whatever was half open.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                sock = await self._connect(destination)
                try:
                    if destination.tls is not None:
                        return await _secured(sock, destination.tls, destination.host)
                    _, protocol = await loop.create_connection(lambda: Upstream(loop.time(), secure=False), sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise UpstreamTimeout(f"no connection to the provider within {timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise UpstreamUnavailable(
                f"the certificate of {destination.host} was not accepted: {error.verify_message}"
            ) from None
        except (OSError, ssl.SSLError, UnicodeError) as error:
            raise UpstreamUnavailable(
                f"no connection to {destination.host}:{destination.port}: {_reason(error)}"
            ) from None
        return protocol

    async def resolve(self, host: str, port: int) -> list[_Address]:
        """Addresses of a name, asked for at most every DNS_TTL_S seconds; the last good ones on failure."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        known = self._addresses.get((host, port))
        if known is not None and now < known[0]:
            return known[1]
        # One question for all who ask at the same time; who gives up leaves it to the others.
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = self._lookups[host, port] = loop.create_task(self._look_up(host, port))
            lookup.add_done_callback(_retrieve)
        await asyncio.wait((lookup,), timeout=None if known is None else STALE_WAIT_S)
        if known is not None and (not lookup.done() or lookup.cancelled() or lookup.exception() is not None):
            self._addresses.setdefault((host, port), known)
            return known[1]
        return lookup.result()

    async def _look_up(self, host: str, port: int) -> list[_Address]:
        loop = asyncio.get_running_loop()
        key = (host, port)
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            known = self._addresses.get(key)
            if known is not None:
                self._addresses[key] = (loop.time() + DNS_TTL_S, known[1])
            raise
        finally:
            self._lookups.pop(key, None)
        addresses = [(int(family), cast(_Target, address)) for family, _, _, _, address in found][:ADDRESSES_MAX]
        if len(self._addresses) > 1024:
            self._addresses.clear()
        self._addresses[key] = (loop.time() + DNS_TTL_S, addresses)
        return addresses

    async def _connect(self, destination: Destination) -> socket.socket:
        proxy = destination.proxy
        if proxy is not None and not destination.link_local_allowed and _is_refused_literal(destination.host):
            raise _refused(destination.host)
        if proxy is None:
            addresses = await self.resolve(destination.host, destination.port)
            if not destination.link_local_allowed:
                allowed = [item for item in addresses if not refused_address(item[1][0])]
                if not allowed and addresses:
                    raise _refused(destination.host)
                addresses = allowed
            return await _first(addresses)
        sock = await _first(await self.resolve(proxy.host, proxy.port))
        try:
            await _connect_through(sock, proxy, destination)
        except BaseException:
            sock.close()
            raise
        return sock


async def _secured(sock: socket.socket, context: ssl.SSLContext, host: str) -> Upstream:
    """A connection over a connected socket, once the handshake is over. Cancelling closes it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Upstream | Exception] = loop.create_future()

    def settle(with_: Upstream | Exception) -> None:
        if not outcome.done():
            outcome.set_result(with_)

    def opened() -> Upstream:
        upstream = Upstream(loop.time(), secure=True)
        settle(upstream)
        return upstream

    layer = TlsTransport(context, host, opened, settle)
    transport, _ = await loop.create_connection(lambda: layer, sock=sock)
    try:
        result = await outcome
    except BaseException:
        transport.abort()
        raise
    if isinstance(result, Exception):
        raise result
    return result


async def _first(addresses: Sequence[_Address]) -> socket.socket:
    """The first address that answers; a second one is tried beside it after SECOND_TRY_S."""
    failure: OSError = OSError("the name has no address")
    tasks: set[asyncio.Task[socket.socket]] = set()
    rest = list(addresses)
    try:
        while rest or tasks:
            if rest:
                tasks.add(asyncio.ensure_future(_one(rest.pop(0))))
            done, _ = await asyncio.wait(
                tasks, timeout=SECOND_TRY_S if rest else None, return_when=asyncio.FIRST_COMPLETED
            )
            winner: socket.socket | None = None
            for task in done:
                tasks.discard(task)
                error = task.exception()
                if error is None:
                    if winner is None:
                        winner = task.result()
                    else:
                        task.result().close()
                elif isinstance(error, OSError):
                    failure = error
                else:
                    raise error
            if winner is not None:
                return winner
        raise failure
    finally:
        for task in tasks:
            task.add_done_callback(_close_late)
            task.cancel()


def _retrieve(lookup: asyncio.Task[list[_Address]]) -> None:
    """Look at how a question ended: everybody who asked may have left."""
    if not lookup.cancelled():
        lookup.exception()


def _is_refused_literal(host: str) -> bool:
    try:
        return refused_address(host)
    except ValueError:
        return False  # a name: the proxy resolves it


def _refused(host: str) -> UpstreamUnavailable:
    return UpstreamUnavailable(
        f"{host} resolves to a link-local or metadata address, which is refused; "
        "set connect_private = true on the provider if it is meant"
    )


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _one(address: _Address) -> socket.socket:
    family, target = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect_through(sock: socket.socket, proxy: ForwardProxy, destination: Destination) -> None:
    loop = asyncio.get_running_loop()
    name = f"[{destination.host}]" if ":" in destination.host else destination.host
    authority = f"{name}:{destination.port}"
    request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
    if proxy.authorization is not None:
        request += f"Proxy-Authorization: {proxy.authorization}\r\n"
    await loop.sock_sendall(sock, (request + "\r\n").encode("ascii"))
    answer = b""
    # Byte by byte past the head would cost a call each; the tunnel stays silent until we speak, so whatever
    # arrives together with the head is a proxy that breaks the protocol.
    while b"\r\n\r\n" not in answer:
        piece = await loop.sock_recv(sock, 4096)
        if not piece or len(answer) + len(piece) > PROXY_ANSWER_BYTES_MAX:
            raise UpstreamUnavailable(f"the forward proxy {proxy.host}:{proxy.port} gave no answer to CONNECT")
        answer += piece
    if not answer.endswith(b"\r\n\r\n") or not _PROXY_OK.match(answer):
        status = answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP/1.") else "no status"
        raise UpstreamUnavailable(f"the forward proxy {proxy.host}:{proxy.port} refused CONNECT ({status})")


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'unknown'})"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "the name cannot be resolved"
    if isinstance(error, OSError) and error.errno:
        # Loops say "Connect call failed" with an address; what the number means is what helps.
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
