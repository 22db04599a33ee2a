"""The cache as exchanges meet it: what it may do for a call, the answer it has, and what is kept of one that came.

One `Caching` follows from one configuration; the memory behind it outlives a reload. Everything here is synchronous:
a hit is found and sent in the call that brought the request. What waits (flights, other tiers) is `gateway.flying`.
Times are steady Unix time: the wall clock when the process started, and the monotonic clock from there.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.cache import headers
from dandolo.cache.alike import asking
from dandolo.cache.entry import Entry
from dandolo.cache.headers import Outcome
from dandolo.cache.key import Keys, Memo, context, headers_counted
from dandolo.cache.lifetime import TTL_S, TtlClass
from dandolo.cache.memory import Kept, Memory
from dandolo.cache.policy import NO_WISHES, Holder, Policy, Rules, harmless, wishes
from dandolo.cache.refusals import Refusal, Refusals
from dandolo.cache.replay import prepare
from dandolo.cache.secret import BYTES, made_once
from dandolo.cache.semantic import Aliases
from dandolo.config.schema import Config
from dandolo.errors import GatewayError
from dandolo.gateway import site
from dandolo.gateway.answers import JSON, STREAM
from dandolo.gateway.keeping import STEADY_OFFSET_S, Keeping, Plan, head_of

if TYPE_CHECKING:
    from dandolo.cache.tiers import Found
    from dandolo.gateway.admission import Tenant
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.ways import Lane

HEADERS = frozenset((b"cache-control", b"dandolo-cache", b"dandolo-cache-ttl"))
"""Headers of a request that are for the cache."""
BYPASSES_MAX = 256
TEMPERATURE_BYTES_MAX = 16
CONTEXTS_MAX = 1024
STREAM_TYPE = b"Content-Type: text/event-stream\r\n"


class _AllSent:
    """The source of a stream that was sent whole: nothing is left to hold back."""

    def pause(self) -> None:
        """Nothing follows."""

    def resume(self) -> None:
        """Nothing follows."""


_ALL_SENT = _AllSent()


class Caching(Keeping):
    """The cache under one configuration; None instead where it is off (`of`)."""

    __slots__ = (
        "_bypasses", "_contexts", "_forwarded", "_keys", "_private_scopes", "_rules", "_sampling", "_secret",
        "memo", "private", "refusals", "sizes",
    )  # fmt: skip

    def __init__(self, config: Config) -> None:
        cache = config.cache
        private = self.private = config.server.privacy
        self._bypasses: dict[str, bytes] = {}
        self._contexts: dict[bytes, bytes] = {}
        self._sampling: dict[tuple[str, bytes], bytes] = {}
        self._rules = Rules(sampled=cache.sampled, shared=True, privacy=private)
        self._secret = secret_of(config)
        self._keys = Keys(self._secret)
        # Without the first tier among those that are wanted, a memory that keeps nothing.
        self.sizes = (cache.memory.entries, cache.memory.bytes) if "memory" in cache.levels else (1, 1)
        self.refusals = Refusals()
        self.aliases = Aliases() if cache.semantic == "normal" and not private else None
        self.tags: dict[str, tuple[str, ...]] = {}
        self.memory = Memory(*self.sizes)
        self.memory.judge = self.judge_draft
        self.drafts = {}
        self.memo: Memo[bytes] = Memo(entries=0 if private else cache.memory.entries)
        self._forwarded = frozenset(name.lower().encode() for item in config.providers for name in item.forward_headers)
        self._private_scopes = {f"key:{key.name}" for key in config.keys if key.privacy}

    @classmethod
    def of(cls, config: Config) -> Caching | None:
        """The cache of a configuration, None when it is off."""
        return cls(config) if config.cache.levels else None

    def inherit(self, before: Caching) -> None:
        """Go on with what is kept, if it may be as much as before and under the same secret."""
        before.settle()
        self.memory.purges = before.memory.purges
        if before.sizes == self.sizes:
            self.memory = before.memory
            self.memory.judge = self.judge_draft
            if self.private or not self._private_scopes <= before._private_scopes:
                # Whoever wants privacy from now on has had requests kept until now: they go.
                self.memory.drop_drafts()
            else:
                self.memo = before.memo
            self._keys, self._secret = before._keys, before._secret
            if self.aliases is not None and before.aliases is not None:
                self.aliases = before.aliases

    def plan(self, exchange: Exchange, call: Call, lane: Lane) -> Plan | None:
        """What may be done for a call; None when the cache has nothing to do with it.

        Raises RequestError for headers that cannot be read.
        """
        steered = exchange.admitted.steered
        if not steered:
            # What is said of temperature keeps out most calls, and is nearly always one of a few words.
            sampling = _sampling(call)
            if sampling is not None:
                lines = self._sampling.get(sampling)
                if lines is not None:
                    exchange.cache_lines = lines
                    return None
        else:
            sampling = None
        tenant = exchange.admitted.tenant
        policy = tenant.cache_policy or self._policy(tenant)
        granted = lane.cache_granted
        if sampling is not None and granted is not None and granted[0] == sampling and harmless(call.json):
            # Nothing else of such a call on this connection decides.
            permission = granted[1]
        else:
            said = wishes(exchange.request.fields) if steered else NO_WISHES
            permission = policy.permission(call, said)
            if sampling is not None and not permission.bypass and harmless(call.json):
                lane.cache_granted = (sampling, permission)
        if permission.bypass and not permission.only_if_cached:
            lines = self._bypasses.get(permission.reason)
            if lines is None:
                if len(self._bypasses) >= BYPASSES_MAX:
                    self._bypasses.clear()
                lines = self._bypasses[permission.reason] = headers.forwarded(Outcome.BYPASS, permission.reason)
            exchange.cache_lines = lines
            if sampling is not None and call.json is not None and policy.sampled(call.endpoint.name, call.json):
                if len(self._sampling) >= BYPASSES_MAX:
                    self._sampling.clear()
                self._sampling[sampling] = lines
            return None
        where = lane.cache_context
        if where is None:
            wish = call.json.get("provider") if call.wishes and call.json is not None else None
            where = context(
                permission.scope,
                call.endpoint.name,
                f"{exchange.region}|{(wish or b'').decode('utf-8', 'replace')}",
                "\n".join(call.models),
                headers_counted(exchange.request.fields, self._forwarded),
            )
            if not steered and lane.ways:
                # Then no header of the client's goes on to a provider, so that none counts.
                if len(self._contexts) >= CONTEXTS_MAX:
                    self._contexts.clear()
                lane.cache_context = where = self._contexts.setdefault(where, where)
        assert call.json is not None
        if permission.memory_only:
            return Plan(permission, self._keys.of(where, call.json), where)
        key = self.memo.get(where, call.raw)
        if key is None:
            # Remembered when it is of use: most bodies never come again.
            return Plan(permission, self._keys.of(where, call.json), where, True)
        return Plan(permission, key, where)

    def _policy(self, tenant: Tenant) -> Policy:
        """What the key of a tenant may have; asked for once, since a tenant has one configuration and so has this."""
        terms = tenant.terms
        holder = (
            Holder(name=terms.name, scope=terms.cache_scope, privacy=terms.privacy) if terms is not None else Holder()
        )
        if terms is not None:
            if terms.privacy:
                self._private_scopes.add(f"key:{terms.name}")
            self.tags[terms.name] = tuple(f"{name}={value}" for name, value in terms.tags.items())
        policy = tenant.cache_policy = Policy(self._rules, holder)
        return policy

    def find(self, plan: Plan, now: float) -> Kept | None:
        """The answer that may be given now (monotonic)."""
        permission = plan.permission
        if not permission.lookup:
            return None
        if self.drafts and plan.key in self.drafts:
            self.settle()
        steady = now + STEADY_OFFSET_S
        kept = self.memory.get(plan.key, steady)
        if kept is None or not permission.admits(kept.entry.kind, kept.created, steady):
            return None
        return kept

    def refused(self, plan: Plan, call: Call, now: float) -> Refusal | None:
        """What a provider said to the very same request some seconds ago, when it was no."""
        return self.refusals.get(plan.key, call.stream, now) if plan.permission.coalesces() else None

    def keep_refusal(self, plan: Plan, call: Call, error: GatewayError, now: float) -> None:
        """Remember that a provider refused, if it would again."""
        permission = plan.permission
        if permission.store:
            ttl_s = TTL_S[TtlClass.NEGATIVE]
            self.refusals.put(
                plan.key, call.stream, error, now, ttl_s if permission.ttl_s is None else min(ttl_s, permission.ttl_s)
            )

    def alike(self, plan: Plan, call: Call, now: float) -> Kept | None:
        """The kept answer to a question that asks the same in other words, where the operator wants that."""
        aliases, permission = self.aliases, plan.permission
        if aliases is None or not permission.semantic or call.json is None:
            return None
        plan.asking = asking(self._secret, plan.context, permission.scope, call.model, call.json)
        if plan.asking is None or not permission.lookup:
            return None
        steady = now + STEADY_OFFSET_S
        key = aliases.get(plan.asking, steady)
        if key is None or key == plan.key:
            return None
        kept = self.memory.get(key, steady)
        if kept is None:
            aliases.discard(plan.asking, key)
            return None
        return kept if permission.admits(kept.entry.kind, kept.created, steady) else None

    def may_leave(self, scope: str) -> bool:
        """Whether answers of a scope may be given to other processes."""
        return not self.private and scope not in self._private_scopes

    def take(self, entry: Entry, scope: str, now: float) -> None:
        """Keep an answer that another process has made (monotonic)."""
        self.memory.promote(entry, head_of(entry), scope, now + STEADY_OFFSET_S)

    def promote(self, plan: Plan, found: Found, now: float) -> Kept | None:
        """An answer of another tier as it may be given, fresh or stale; None when it may not."""
        steady = now + STEADY_OFFSET_S
        entry = found.entry
        kept = self.memory.promote(entry, head_of(entry), plan.permission.scope, steady)
        if kept is None:
            return None
        if found.stale:
            kept.expires = min(kept.expires, steady)
        return kept if plan.permission.admits(entry.kind, kept.created, steady) else None

    def stale(self, plan: Plan, now: float, *, for_error: bool) -> Kept | None:
        """An answer past its time that may be given all the same: while a new one is fetched, or for an error."""
        permission = plan.permission
        if not permission.lookup or permission.max_age_s is not None:
            return None
        return self.memory.stale(plan.key, now + STEADY_OFFSET_S, for_error=for_error)

    def send(self, exchange: Exchange, call: Call, kept: Kept, outcome: Outcome, now: float, tier: str = "l1") -> bool:
        """Send a kept answer in the form that was asked for; False when it cannot be put into that form."""
        entry, plan = kept.entry, exchange.plan
        if plan is not None and plan.unremembered:
            self.memo.put(plan.context, call.raw, plan.key)
        events = b""
        if call.stream:
            replay = kept.replay
            if replay is None:
                replay = prepare(call.endpoint.dialect, entry.body, entry.delta_offsets)
                if replay is None:
                    self.memory.delete(kept.key)
                    return False
                self.memory.attach(kept, replay)
            events = replay.events(exchange.id, int(now + STEADY_OFFSET_S), usage=call.usage_wanted)
        steady = now + STEADY_OFFSET_S
        head = b"%bx-request-id: %b\r\n%b%b%b" % (
            exchange.gateway.dates.line(now),
            exchange.encoded_id,
            kept.head,
            STREAM_TYPE if call.stream else JSON,
            headers.kept(outcome, tier, steady - kept.created, kept.expires - steady),
        )
        if call.endpoint.dialect == "messages":
            head += b"request-id: %b\r\n" % exchange.encoded_id
        if exchange.explains:
            head += b"x-dandolo-cache-key: %b\r\n" % kept.key.hex().encode()
        rated = exchange.tenant.rated
        if rated is not None:
            head += rated.lines(now)
        origin = exchange.admitted.origin
        if origin is not None:
            head += site.cors(origin)
        tokens = entry.usage
        if tokens is not None:
            exchange.usage = Usage(tokens.input, tokens.output, tokens.cached, tokens.reasoning, 0.0)
        exchange.saved_usd = entry.cost_usd
        exchange.cache = outcome.value.lower()
        exchange.committed = True
        exchange.status = entry.status
        if call.stream:
            exchange.streamed = True
            exchange.bytes_out = len(events)
            exchange.client.begin_stream(entry.status, head + STREAM, _ALL_SENT, first=events)
            exchange.client.end_stream()
        else:
            exchange.bytes_out = len(entry.body)
            exchange.client.answer(entry.status, head, entry.body)
            admitted = exchange.admitted
            if (
                outcome is Outcome.HIT
                and not admitted.steered
                and plan is not None
                and not plan.permission.memory_only
                and call.endpoint.dialect != "messages"
                and self.memory.holds(kept)
            ):
                exchange.gateway.repeats.noted(exchange, call, kept)
        return True


def secret_of(config: Config) -> bytes:
    """The configured secret; one of the state folder where others must have the same, or something outlives the
    process; else a new one."""
    if config.cache.secret is not None:
        return config.cache.secret.reveal().encode()
    if set(config.cache.levels) <= {"memory"} and config.server.workers == 1:
        return secrets.token_bytes(BYTES)
    return made_once(config.server.state_dir)


def _sampling(call: Call) -> tuple[str, bytes] | None:
    """The endpoint and what a call says of temperature, as it stands; None where a seed or more may count."""
    body = call.json
    if body is None or "seed" in body.fields:
        return None
    temperature = body.fields.get("temperature")
    if temperature is None:
        return call.endpoint.name, b""
    return (call.endpoint.name, bytes(temperature)) if len(temperature) <= TEMPERATURE_BYTES_MAX else None
