"""The accounts as they live: for each its connections, its slots and their learned limit, its models, ready heads."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from dandolo import __version__
from dandolo.api import hints
from dandolo.api.endpoints import Endpoint
from dandolo.api.profiles import path as profile_path
from dandolo.config.schema import Config
from dandolo.errors import InternalError
from dandolo.net.dial import Destination, ForwardProxy
from dandolo.net.pool import Pool
from dandolo.net.upstream import Upstream
from dandolo.route.breaker import Breaker
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import ReservedSlots, Slots
from dandolo.route.catalog import Account, Catalog, Provider, Target
from dandolo.route.facts import Facts
from dandolo.route.limit import Limit
from dandolo.wire import fields

HEADS_MAX = 256
IDLE_MAX = 256
"""Unused connections kept of one account, however many it may have at one time."""
CANDIDATES_MAX = 1024
NEAR_S = 0.5
FAR_S = 0.75
"""First tokens expected of a provider in our region and of one in another, while nothing is measured of anybody."""
HINTS_EVERY_S = 0.1
"""Rate-limit headers are read at most so often: they cost more to read than they can change in that time."""
HINTS_HOLD_S = 5.0
"""How long they are believed at most. A reset names when a limit is *full* again, not when there is room."""
_USER_AGENT = f"dandolo/{__version__}".encode()


class Way:
    """How calls of one kind are sent to a candidate: its runtime, and the request's head up to what varies."""

    __slots__ = ("prefix", "runtime", "target")

    def __init__(self, runtime: Runtime, target: Target, prefix: bytes) -> None:
        self.runtime = runtime
        self.target = target
        self.prefix = prefix


class Runtime:
    """One account at work."""

    __slots__ = (
        "_base",
        "_candidates",
        "_constant",
        "_facts",
        "_heads",
        "_prior_s",
        "_ways",
        "account",
        "breaking",
        "destination",
        "fixed",
        "forwarded",
        "hints_due",
        "limit",
        "no_usage_option",
        "overridable",
        "pool",
        "reserved",
        "secrets",
        "slots",
    )  # fmt: skip

    def __init__(
        self,
        account: Account,
        destination: Destination,
        facts: Facts,
        *,
        breaking: bool,
        region: str = "",
        reserved: Mapping[str, float] | None = None,
    ) -> None:
        provider = account.provider
        config = provider.config
        self.account = account
        self._facts = facts
        self.destination = destination
        self.breaking = breaking
        """Whether it has breakers and cool-downs at all."""
        self.reserved = dict(reserved or {})
        self.slots = ReservedSlots(config.concurrency_max, reserved) if reserved else Slots(config.concurrency_max)
        self.limit = Limit(self.slots)
        self.pool: Pool[Upstream] = Pool(
            idle_s=config.http_idle,
            age_max_s=config.http_max_age,
            idle_max=min(config.concurrency_max, IDLE_MAX),
        )
        self.secrets: tuple[str, ...] = (account.secret,) if account.secret else ()
        self.forwarded = frozenset(name.lower().encode() for name in config.forward_headers)
        self.no_usage_option: set[str] = set()
        self._candidates: dict[str, Candidate] = {}
        self.hints_due = 0.0
        self._prior_s = 0.0
        if region and config.region:
            self._prior_s = NEAR_S if config.region == region else FAR_S
        self._heads: dict[tuple[bytes, str, str, bytes], bytes] = {}
        self._ways: dict[tuple[Candidate, str, bytes], dict[Candidate, Way]] = {}
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

    def way(self, candidate: Candidate, target: Target, prefix: bytes) -> dict[Candidate, Way]:
        """The one way to a candidate, which all connections with equal heads share (not to be changed). Bounded."""
        key = (candidate, target.name, prefix)
        known = self._ways.get(key)
        if known is None:
            if len(self._ways) >= HEADS_MAX:
                self._ways.clear()
            known = self._ways[key] = {candidate: Way(self, target, prefix)}
        return known

    def takes_usage_option(self, model: str) -> bool:
        """Whether a stream of `model` is to be asked for its usage, as far as is known."""
        option = self.account.provider.profile.include_usage
        return option == "yes" or (option == "try" and model not in self.no_usage_option)

    # -- its models ------------------------------------------------------------------------------------

    def candidate(self, model: str) -> Candidate:
        """This account for one model, with all that is measured of it."""
        known = self._candidates.get(model)
        return known if known is not None else self._new_candidate(model)

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """Those that were ever asked for, by model."""
        return self._candidates

    def continues(self, before: Runtime) -> bool:
        """Whether `before` (of an earlier configuration) is the same account, bounded in the same way."""
        config, other = self.account.provider.config, before.account.provider.config
        return (
            config.base_url == other.base_url
            and config.profile == other.profile
            and config.concurrency_max == other.concurrency_max
            and self.reserved == before.reserved
            and self.breaking == before.breaking
        )

    def inherit(self, before: Runtime) -> None:
        """Take over what was measured and what is under way: a reload must not make anybody forget what is broken."""
        self.slots, self.limit = before.slots, before.limit
        self._candidates = before._candidates
        self.no_usage_option = before.no_usage_option
        self.describe()

    def _new_candidate(self, model: str) -> Candidate:
        if len(self._candidates) >= CANDIDATES_MAX:
            # Callers can name models at will: names that never answered are forgotten first, so that nobody can wash
            # away what is known of the others or that a breaker is open; then those that were first asked for.
            kept = {name: candidate for name, candidate in self._candidates.items() if _known(candidate)}
            for name in list(kept)[: max(0, len(kept) - CANDIDATES_MAX // 2)]:
                del kept[name]
            self._candidates = kept
        candidate = Candidate(
            self.account.provider.name,
            self.limit,
            Breaker(random.random) if self.breaking else None,
            account=self.account.label,
            model=model,
        )
        self._describe(candidate, model)
        self._candidates[model] = candidate
        return candidate

    def _describe(self, candidate: Candidate, model: str) -> None:
        """What stands in the configuration of a model on this account."""
        provider = self.account.provider
        candidate.account = self.account.label
        candidate.rank = provider.role
        candidate.region = provider.config.region
        candidate.prior_s = self._prior_s
        known = self._facts.of(provider.name, model)
        if known is None and provider.profile.suffixes:
            known = self._facts.of(provider.name, model.rpartition(":")[0])
        candidate.price_in = _per_token(known.input_usd_per_mtok if known is not None else None)
        candidate.price_out = _per_token(known.output_usd_per_mtok if known is not None else None)
        candidate.context_tokens = known.context_tokens if known is not None else None
        candidate.capabilities = known.capabilities if known is not None else None

    def describe(self) -> None:
        """Take over what has become known of models."""
        for model, candidate in self._candidates.items():
            self._describe(candidate, model)

    def read_hints(self, head: dict[bytes, bytes], now: float) -> None:
        """Take note of what an answer's headers say is left of the account's limits, every HINTS_EVERY_S."""
        if now < self.hints_due or not self.breaking:
            return
        self.hints_due = now + HINTS_EVERY_S
        said = hints.limits(head, self.account.provider.profile, time.time())
        scarcest: tuple[float, float, float, float] | None = None
        for remaining, limit, reset_s in (
            (said.requests_remaining, said.requests_limit, said.requests_reset_s),
            (said.tokens_remaining, said.tokens_limit, said.tokens_reset_s),
        ):
            if remaining is not None and limit:
                hold_s = HINTS_HOLD_S if reset_s is None else min(reset_s, HINTS_HOLD_S)
                told = (remaining / limit, remaining, limit, hold_s)
                if scarcest is None or told < scarcest:
                    scarcest = told
        if scarcest is not None:
            _, remaining_, limit_, hold_s = scarcest
            self.limit.told(remaining_, limit_, now + hold_s)


def _known(candidate: Candidate) -> bool:
    """Whether anything is known of a candidate that would be missed."""
    measured, breaker = candidate.measured, candidate.breaker
    return bool(measured.first_s or measured.total_s) or (breaker is not None and breaker.state != "closed")


def _per_token(usd_per_mtok: float | None) -> float | None:
    return None if usd_per_mtok is None else usd_per_mtok / 1e6


class Fleet:
    """All accounts of a configuration."""

    def __init__(self, config: Config, catalog: Catalog) -> None:
        proxy = ForwardProxy.parse(config.server.forward_proxy.reveal()) if config.server.forward_proxy else None
        self._runtimes: dict[Account, Runtime] = {}
        contexts: dict[str, ssl.SSLContext] = {}
        reserved = {key.name: key.slots_reserved for key in config.keys if key.slots_reserved > 0}
        for provider in catalog.providers:
            destination = _destination(provider, proxy, contexts)
            for account in provider.accounts:
                self._runtimes[account] = Runtime(
                    account,
                    destination,
                    catalog.facts,
                    breaking=config.routing.breaker,
                    region=config.server.region,
                    reserved=reserved,
                )

    def __getitem__(self, account: Account) -> Runtime:
        return self._runtimes[account]

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self._runtimes.values())

    def inherit(self, before: Fleet) -> None:
        """Let accounts that were there before go on with what is known of them."""
        left = list(before)
        new = list(self)
        # By owner first: two accounts may have one key, and each goes on as itself. An owner may have been renamed.
        for named in (True, False):
            for runtime in list(new):
                mine = runtime.account
                for one in left:
                    theirs = one.account
                    if (
                        (mine.provider.name, mine.secret) == (theirs.provider.name, theirs.secret)
                        and (not named or mine.owner == theirs.owner)
                        and runtime.continues(one)
                    ):
                        runtime.inherit(one)
                        left.remove(one)
                        new.remove(runtime)
                        break

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
