"""Who may come in: keys, browsers, hosts, and how much may be under way. Judged from the head alone.

Keys are known by their SHA-256 only. A presented key is hashed and looked up by digest, and the digest is
compared once more in constant time; unknown, malformed and missing keys get the same answer. Without any
key the gateway is open, which configuration allows on loopback only; then the Host must be a loopback name,
so that a web page cannot reach it by a name of its own (DNS rebinding), and a browser's Origin must be
listed, so that it cannot spend. Keys of the database come and go while it runs (`adopt`).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from dandolo.board import Board, Calendar
from dandolo.cache.policy import Policy as CachePolicy
from dandolo.config.schema import Config
from dandolo.errors import Refusal, RequestError
from dandolo.gateway.allowance import Allowance
from dandolo.net.listen import trusts
from dandolo.policy import NO_POLICY, KeyTerms, Policy, effective
from dandolo.route.queue import PRIORITIES
from dandolo.route.retry import TOKENS_OWN_MAX, Budget

RETRY_AFTER_S = 1.0
PLACES_SPARE = 1024
"""Places on a board of one's own, beside those for the configuration's keys."""
_HOSTS_REMEMBERED_MAX = 256


class Tenant:
    """A key at work: its terms, how many of its requests are under way, and its own retry budget.

    `entry` is its allowance where a request's coming is counted on the board (rate, concurrency), `exit` where its
    going is (concurrency), `spending` where its tokens or its cost are, `rated` where there is a rate of which its
    answers tell. Each None where there is nothing to count.
    """

    __slots__ = (
        "budget", "cache_policy", "entry", "exit", "in_flight", "in_flight_max", "name", "patterns", "priority",
        "rated", "spending", "terms",
    )  # fmt: skip

    def __init__(
        self, terms: KeyTerms | None, in_flight_max: int, *, alone: bool = True, allowance: Allowance | None = None
    ) -> None:
        self.budget = Budget() if alone else Budget(TOKENS_OWN_MAX)
        self.terms = terms
        self.name = terms.name if terms is not None else ""
        self.priority = PRIORITIES[terms.priority if terms is not None else "normal"]
        self.patterns = None if terms is None or "*" in terms.models else terms.models
        self.cache_policy: CachePolicy | None = None
        """What the cache may do for it; whoever needs it first works it out."""
        self.in_flight = 0
        self.in_flight_max = in_flight_max
        self.entry = self.exit = self.spending = self.rated = None
        if terms is not None and allowance is not None:
            self.entry = allowance if terms.rpm is not None or terms.concurrent is not None else None
            self.exit = allowance if terms.concurrent is not None else None
            costs = terms.budget_day is not None or terms.budget_month is not None
            self.spending = allowance if terms.tpm is not None or costs else None
            self.rated = allowance if terms.rpm is not None or terms.tpm is not None else None

    @property
    def gone(self) -> bool:
        """Whether its key is not valid any more, or has other terms by now: what is under way ends, no more begins."""
        return self.in_flight_max < 0

    def supersede(self) -> None:
        """Let nothing more begin. Whoever would begin looks at this bound anyway, so that asking costs nothing."""
        self.in_flight_max = -1


class _Known(NamedTuple):
    """A digest that is let in, as whose, and until when (Unix seconds)."""

    sha256: bytes
    until: float
    tenant: Tenant


class Admission:
    """The doorkeeper of one worker. Raises NoPlace where more keys have limits than the board has places."""

    def __init__(self, config: Config, board: Board | None = None, policy: Policy = NO_POLICY) -> None:
        limits = config.limits
        self.in_flight_max = limits.in_flight_max
        self._per_key_max = limits.in_flight_per_key_max
        self._body_memory_max = limits.body_memory_max
        self._file = config.keys
        self._board = board
        self._calendar = Calendar(time.time())
        self._tenants: dict[str, Tenant] = {}
        self._known: dict[bytes, _Known] = {}
        self._turns = math.inf
        """When the next digest ends (Unix seconds)."""
        # Without keys there is one tenant, which may use what the process may.
        self._anybody: Tenant | None = None if config.keys or policy.closed else Tenant(None, limits.in_flight_max)
        self.policy = NO_POLICY
        self.adopt(policy)
        self._origins = frozenset(config.server.cors_origins)
        self._trusted = config.server.trusted_proxies
        self._loopback_hosts: set[bytes] = set()
        self.in_flight = 0
        self.body_bytes = 0

    @property
    def tenants(self) -> list[Tenant]:
        """Everybody who may come in (metrics)."""
        return [*self._tenants.values()] if self._anybody is None else [self._anybody]

    def adopt(self, policy: Policy) -> None:
        """Take over the keys of the database. What is under way for a key that is gone ends as it would have.

        Raises NoPlace where the board has no place for one; then nothing has changed.
        """
        terms = effective(self._file, policy.keys)
        alone = len(terms) < 2
        tenants: dict[str, Tenant] = {}
        known: dict[bytes, _Known] = {}
        for one in terms:
            tenant = self._tenants.get(one.name)
            if tenant is None or tenant.terms != one:
                before = tenant
                tenant = Tenant(one, self._per_key_max, alone=alone, allowance=self._allowance(one))
                if before is not None:
                    tenant.budget = before.budget
            tenants[one.name] = tenant
            for digest in one.digests:
                until = math.inf if digest.until is None else digest.until
                known[digest.sha256] = _Known(digest.sha256, until, tenant)
        replaced, self._tenants, self._known = self._tenants, tenants, known
        self._turns = min((one.until for one in known.values()), default=math.inf)
        self.policy = policy
        if self._anybody is not None and policy.closed:
            self._anybody.supersede()
            self._anybody = None
        for name, tenant in replaced.items():
            if tenants.get(name) is not tenant:
                tenant.supersede()

    def expire(self, unix: float) -> None:
        """Let go of digests whose time is over by now (Unix seconds; every beat: a number compared).

        Whoever is known on an open connection is not asked for his key again as long as it has the same terms, so they
        are given others. The control process says the same, if it can.
        """
        if unix < self._turns:
            return
        keys = [
            msgspec.structs.replace(
                key, digests=tuple(one for one in key.digests if one.until is None or one.until > unix)
            )
            for key in self.policy.keys
        ]
        self.adopt(msgspec.structs.replace(self.policy, keys=tuple(keys)))

    def _allowance(self, terms: KeyTerms) -> Allowance | None:
        if not terms.limited:
            return None
        board = self._board
        if board is None:
            board = self._board = Board.alone(len(self._file) + PLACES_SPARE)
        return Allowance(terms, board, board.claim(terms.name), self._calendar)

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
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.sha256, digest) or time.time() >= known.until:
            raise _unknown_key()
        return known.tenant

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

    def check(self, tenant: Tenant, now: float) -> None:
        """Refuse early, before a body is read, what is too much now (monotonic). Raises Refusal or RequestError:
        429, or 401 when the key has just been revoked."""
        self._check_here(tenant)
        if tenant.entry is not None:
            tenant.entry.check(now)

    def _check_here(self, tenant: Tenant) -> None:
        """What this process bounds by itself."""
        if self.in_flight >= self.in_flight_max:
            raise Refusal(
                f"{self.in_flight} requests are under way, as many as this gateway takes; try again later",
                retry_after_s=RETRY_AFTER_S,
            )
        if tenant.in_flight >= tenant.in_flight_max:
            if tenant.gone:
                raise _unknown_key()
            raise RequestError(
                f"{tenant.in_flight} requests of this key are under way, as many as it may have; try again later",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )

    def enter(self, tenant: Tenant, now: float) -> None:
        """Count a request in. Raises like `check`; then it is not counted."""
        self._check_here(tenant)
        if tenant.entry is not None and not tenant.entry.enter(now):
            tenant.entry.check(now)
            # Another was quicker by less than it takes to look, and has taken back what it counted.
            raise RequestError(
                "this key's rate or number of requests under way is used up; try again later",
                status=429,
                type="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )
        self.in_flight += 1
        tenant.in_flight += 1

    def leave(self, tenant: Tenant) -> None:
        """Count a request out."""
        self.in_flight -= 1
        tenant.in_flight -= 1
        if tenant.exit is not None:
            tenant.exit.leave()
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


def _unknown_key() -> RequestError:
    return RequestError(
        "the API key is missing or not known; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
        status=401,
        type="authentication_error",
        code="invalid_api_key",
    )
