"""Who may come in: keys, browsers, hosts, and how much may be under way. Judged from the head alone.

Keys are known by their SHA-256 only. A presented key is hashed and looked up by digest, and the digest is
compared once more in constant time; unknown, malformed and missing keys get the same answer. Without any
key the gateway is open, which configuration allows on loopback only; then the Host must be a loopback name,
so that a web page cannot reach it by a name of its own (DNS rebinding), and a browser's Origin must be
listed, so that it cannot spend.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from dandolo.config.schema import Config, Key
from dandolo.errors import Refusal, RequestError
from dandolo.net.listen import trusts
from dandolo.route.queue import PRIORITIES
from dandolo.route.retry import TOKENS_OWN_MAX, Budget

RETRY_AFTER_S = 1.0
_HOSTS_REMEMBERED_MAX = 256


class Tenant:
    """A key at work: its configuration, how many of its requests are under way, and its own retry budget."""

    __slots__ = ("budget", "config", "in_flight", "in_flight_max", "name", "patterns", "priority")

    def __init__(self, config: Key | None, in_flight_max: int, *, alone: bool = True) -> None:
        self.budget = Budget() if alone else Budget(TOKENS_OWN_MAX)
        self.config = config
        self.name = config.name if config is not None else ""
        self.priority = PRIORITIES[config.priority if config is not None else "normal"]
        self.patterns = None if config is None or "*" in config.models else config.models
        self.in_flight = 0
        concurrent = config.concurrent if config is not None else None
        self.in_flight_max = min(in_flight_max, concurrent) if concurrent is not None else in_flight_max


class Admission:
    """The doorkeeper of one worker."""

    def __init__(self, config: Config) -> None:
        limits = config.limits
        self.in_flight_max = limits.in_flight_max
        self._body_memory_max = limits.body_memory_max
        alone = len(config.keys) < 2
        self._tenants = {key.digest: Tenant(key, limits.in_flight_per_key_max, alone=alone) for key in config.keys}
        # Without keys there is one tenant, which may use what the process may.
        self._anybody = None if config.keys else Tenant(None, limits.in_flight_max)
        self._origins = frozenset(config.server.cors_origins)
        self._trusted = config.server.trusted_proxies
        self._loopback_hosts: set[bytes] = set()
        self.in_flight = 0
        self.body_bytes = 0

    @property
    def tenants(self) -> list[Tenant]:
        """Everybody who may come in (metrics)."""
        return [*self._tenants.values()] if self._anybody is None else [self._anybody]

    def authenticate(self, head: Mapping[bytes, bytes]) -> Tenant:
        """The tenant whose key the head presents. Raises RequestError (401)."""
        if self._anybody is not None:
            return self._anybody
        token = head.get(b"authorization")
        if token is None:
            token = head.get(b"x-api-key", b"")
        elif token[:7].lower() == b"bearer ":
            token = token[7:].strip(b" ")
        digest = hashlib.sha256(token).digest()
        tenant = self._tenants.get(digest)
        if tenant is None or tenant.config is None or not hmac.compare_digest(tenant.config.digest, digest):
            raise RequestError(
                "the API key is missing or not known; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )
        return tenant

    def check_browser(self, head: dict[bytes, bytes], host: bytes, *, local_socket: bool) -> bytes | None:
        """The Origin to allow in the answer, None when there is none. Raises RequestError (403)."""
        if self._anybody is not None and not local_socket and not self._is_loopback(host):
            raise RequestError(
                "this gateway has no keys and answers to loopback names only; call it as 127.0.0.1 or localhost, "
                "or configure a key",
                status=403,
                type="permission_error",
                code="host_not_allowed",
            )
        if b"origin" not in head:
            return None
        origin = self.listed_origin(head)
        if origin is None:
            raise RequestError(
                "requests from this browser origin are not allowed; list it in server.cors_origins",
                status=403,
                type="permission_error",
                code="origin_not_allowed",
            )
        return origin

    def listed_origin(self, head: dict[bytes, bytes]) -> bytes | None:
        """The head's Origin if it may read answers; None when there is none, or one that is not listed."""
        origin = head.get(b"origin")
        if origin is None or (origin.decode("latin-1") not in self._origins and "*" not in self._origins):
            return None
        return origin

    def _is_loopback(self, host: bytes) -> bool:
        if host in self._loopback_hosts:
            return True
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        loopback = name in ("localhost", "") or name.endswith(".localhost")
        if not loopback:
            try:
                loopback = ipaddress.ip_address(name).is_loopback
            except ValueError:
                return False
        if loopback and len(self._loopback_hosts) < _HOSTS_REMEMBERED_MAX:
            self._loopback_hosts.add(host)
        return loopback

    # -- how much is under way -------------------------------------------------------------------------

    def check(self, tenant: Tenant) -> None:
        """Refuse early, before a body is read, when too much is under way. Raises Refusal or RequestError (429)."""
        if self.in_flight >= self.in_flight_max:
            raise Refusal(
                f"{self.in_flight} requests are under way, as many as this gateway takes; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        if tenant.in_flight >= tenant.in_flight_max:
            raise RequestError(
                f"{tenant.in_flight} requests of this key are under way, as many as it may have; try again later",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )

    def enter(self, tenant: Tenant) -> None:
        """Count a request in. Raises like `check`; then it is not counted."""
        self.check(tenant)
        self.in_flight += 1
        tenant.in_flight += 1

    def leave(self, tenant: Tenant) -> None:
        """Count a request out."""
        self.in_flight -= 1
        tenant.in_flight -= 1
        assert tenant.in_flight >= 0, "a request was counted out twice"

    def hold(self, size: int) -> None:
        """Count body bytes held in memory. Raises Refusal beyond the process's bound; then they are not counted."""
        if self.body_bytes + size > self._body_memory_max:
            raise Refusal(
                f"request bodies take {self.body_bytes} bytes of memory, all that is set aside; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        self.body_bytes += size

    def release(self, size: int) -> None:
        """Count body bytes out."""
        self.body_bytes -= size

    def client_address(self, peer: str, head: dict[bytes, bytes]) -> str:
        """The client's address: the socket's, or the rightmost hop of X-Forwarded-For that is no proxy of ours.

        The header is believed only from `trusted_proxies` (and over a Unix socket when there are any).
        """
        if not self._trusted or (peer and not trusts(self._trusted, peer)):
            return peer
        forwarded = head.get(b"x-forwarded-for")
        if forwarded is None:
            return peer
        client = peer
        for hop in reversed(forwarded.split(b",")[-32:]):
            text = hop.strip(b" \t").decode("latin-1")
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                return client
            if "%" in text:
                return client  # a zone is free text, and means nothing to another host
            client = str(address)
            if not trusts(self._trusted, text):
                return client
        return client
