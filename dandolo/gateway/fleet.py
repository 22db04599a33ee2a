"""The accounts as they live: for each its connections, slots, breakers, cool-downs and ready-made heads."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from dandolo import __version__
from dandolo.api.endpoints import Endpoint
from dandolo.api.profiles import path as profile_path
from dandolo.config.schema import Config
from dandolo.errors import InternalError
from dandolo.net.dial import Destination, ForwardProxy
from dandolo.net.pool import Pool
from dandolo.net.upstream import Upstream
from dandolo.route.breaker import Breaker
from dandolo.route.capacity import Slots
from dandolo.route.catalog import Account, Catalog, Provider
from dandolo.wire import fields

HEADS_MAX = 256
IDLE_MAX = 256
"""Unused connections kept of one account, however many it may have at one time."""
BREAKERS_MAX = 1024
_USER_AGENT = f"dandolo/{__version__}".encode()


class Runtime:
    """One account at work."""

    __slots__ = (
        "_base", "_breakers", "_breaking", "_constant", "_cooling", "_heads", "_prefixes", "account", "destination",
        "fixed", "forwarded", "no_usage_option", "overridable", "pool", "secrets", "slots",
    )  # fmt: skip

    def __init__(self, account: Account, destination: Destination, *, breaking: bool) -> None:
        provider = account.provider
        config = provider.config
        self.account = account
        self.destination = destination
        self.slots = Slots(config.concurrency_max)
        self.pool: Pool[Upstream] = Pool(
            idle_s=config.http_idle,
            age_max_s=config.http_max_age,
            idle_max=min(config.concurrency_max, IDLE_MAX),
        )
        self.secrets: tuple[str, ...] = (account.secret,) if account.secret else ()
        self.forwarded = frozenset(name.lower().encode() for name in config.forward_headers)
        self.no_usage_option: set[str] = set()
        self._breaking = breaking
        self._breakers: dict[str, Breaker] = {}
        self._cooling: dict[str, float] = {}
        self._heads: dict[tuple[bytes, str, str, bytes], bytes] = {}
        self._prefixes: dict[bytes, bytes] = {}
        url = urlsplit(config.base_url)
        self._base = url.path.rstrip("/").encode("ascii")
        self._constant = self._constant_fields(provider, url.netloc)
        fixed = frozenset(name.lower().encode() for name in config.headers)
        self.fixed = fixed | {b"authorization", b"x-api-key", b"api-key", b"host"}
        # A profile's headers give way to the client's own (anthropic-version).
        self.overridable = {
            name.lower().encode(): fields.encode_fields([(name.lower().encode(), value.encode())])
            for name, value in provider.profile.headers.items()
            if name.lower().encode() not in fixed
        }

    def _constant_fields(self, provider: Provider, netloc: str) -> bytes:
        """Header lines that every call carries. Raises InternalError when configuration could break framing."""
        pairs: dict[bytes, bytes] = {b"host": netloc.encode("idna" if not netloc.isascii() else "ascii")}
        pairs.update({name.lower().encode(): value.encode() for name, value in provider.config.headers.items()})
        pairs[b"accept-encoding"] = b"identity"
        pairs.setdefault(b"user-agent", _USER_AGENT)
        if self.account.secret is not None:
            name, value = provider.profile.credential(self.account.secret)
            pairs[name] = value
        return fields.encode_fields(list(pairs.items()))

    def head(self, method: bytes, endpoint: Endpoint, suffix: str, model: str, accept: bytes) -> bytes:
        """Request line and constant headers of a call; what follows is dynamic. Remembered, bounded."""
        provider = self.account.provider
        deployment = model if provider.profile.deployments else ""
        key = (method, endpoint.path + suffix, deployment, accept)
        head = self._heads.get(key)
        if head is None:
            target = profile_path(
                provider.profile, endpoint.path.removeprefix("/v1") + suffix, model, provider.config.api_version
            )
            if not fields.is_token(method) or not target.isascii() or b" " in target or not fields.is_value(target):
                raise InternalError("a request target was not fit to be sent; nothing was sent")
            base = self._base
            if provider.profile.deployments:
                base = base.removesuffix(b"/openai")
            head = b"%b %b%b HTTP/1.1\r\n%b" % (method, base, target, self._constant)
            if accept:
                head += fields.encode_fields([(b"accept", accept)])
            if len(self._heads) >= HEADS_MAX:
                self._heads.clear()
            self._heads[key] = head
        return head

    def shared(self, prefix: bytes) -> bytes:
        """An equal `prefix` that connections of one kind share, so that none keeps a copy. Bounded."""
        known = self._prefixes.get(prefix)
        if known is None:
            if len(self._prefixes) >= HEADS_MAX:
                self._prefixes.clear()
            known = self._prefixes[prefix] = prefix
        return known

    def takes_usage_option(self, model: str) -> bool:
        """Whether a stream of `model` is to be asked for its usage, as far as is known."""
        option = self.account.provider.profile.include_usage
        return option == "yes" or (option == "try" and model not in self.no_usage_option)

    # -- health ----------------------------------------------------------------------------------------

    def well(self, model: str) -> bool:
        """Whether nothing speaks against asking for `model`: no cool-down at all, its breaker closed."""
        if self._cooling:
            return False
        breaker = self._breakers.get(model)
        return breaker is None or breaker.state == "closed"

    def breaker(self, model: str) -> Breaker | None:
        """The breaker of a model on this account; None when breakers are off."""
        if not self._breaking:
            return None
        breaker = self._breakers.get(model)
        if breaker is None:
            if len(self._breakers) >= BREAKERS_MAX:
                # Callers can name models at will: what is well is forgotten first, so that nobody can
                # wash an open breaker away.
                self._breakers = {name: kept for name, kept in self._breakers.items() if kept.state != "closed"}
                if len(self._breakers) >= BREAKERS_MAX:
                    self._breakers.clear()
            breaker = self._breakers[model] = Breaker(random.random)
        return breaker

    def breakers(self) -> dict[str, Breaker]:
        """All breakers by model (metrics, readiness)."""
        return self._breakers

    def cool(self, model: str, until: float) -> None:
        """Prefer others for `model` ("" for the whole account) until a monotonic time."""
        if not self._breaking:
            return
        if len(self._cooling) >= BREAKERS_MAX:
            self._cooling.clear()
        self._cooling[model] = max(until, self._cooling.get(model, 0.0))

    def cooling_s(self, model: str, now: float) -> float:
        """Seconds for which others are to be preferred; 0 when it may be asked."""
        if not self._cooling:
            return 0.0
        until = max(self._cooling.get(model, 0.0), self._cooling.get("", 0.0))
        if until <= now:
            self._cooling.pop(model, None)
            if self._cooling.get("", now + 1) <= now:
                self._cooling.pop("", None)
            return 0.0
        return until - now


class Fleet:
    """All accounts of a configuration."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        proxy = ForwardProxy.parse(config.server.forward_proxy.reveal()) if config.server.forward_proxy else None
        self._runtimes: dict[Account, Runtime] = {}
        contexts: dict[str, ssl.SSLContext] = {}
        for provider in catalog.providers:
            destination = _destination(provider, proxy, contexts)
            for account in provider.accounts:
                self._runtimes[account] = Runtime(account, destination, breaking=config.routing.breaker)

    def __getitem__(self, account: Account) -> Runtime:
        return self._runtimes[account]

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self._runtimes.values())

    def close(self) -> None:
        """Close every idle connection."""
        for runtime in self._runtimes.values():
            runtime.pool.close()


def _destination(provider: Provider, proxy: ForwardProxy | None, contexts: dict[str, ssl.SSLContext]) -> Destination:
    url = urlsplit(provider.config.base_url)
    tls: ssl.SSLContext | None = None
    if url.scheme == "https":
        authorities = str(provider.config.ca) if provider.config.ca else ""
        tls = contexts.get(authorities)
        if tls is None:
            # Loading the system's authorities takes 40 ms: once for everybody who trusts the same ones.
            tls = contexts[authorities] = ssl.create_default_context(cafile=authorities or None)
            tls.set_alpn_protocols(["http/1.1"])
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
    host = url.hostname or ""
    local = host == "localhost" or host.startswith("127.") or host == "::1"
    return Destination(
        host=host,
        port=url.port or (443 if tls is not None else 80),
        tls=tls,
        proxy=None if local else proxy,
        link_local_allowed=provider.config.connect_private,
    )
