"""The cache as exchanges meet it: what it may do for a call, the answer it has, and what is kept of one that came.

One `Caching` follows from one configuration; the memory behind it outlives a reload. Everything here is synchronous:
a hit is found and sent in the call that brought the request. What waits (flights, other tiers) is `gateway.flying`.
Times are steady Unix time: the wall clock when the process started, and the monotonic clock from there.
"""

from __future__ import annotations

import random
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.cache import headers
from dandolo.cache.answer import flaw
from dandolo.cache.entry import Entry, Tokens
from dandolo.cache.headers import Outcome
from dandolo.cache.key import Keys, Memo, context, headers_counted
from dandolo.cache.lifetime import TtlClass, lifetime, ttl_class
from dandolo.cache.memory import Kept, Memory
from dandolo.cache.policy import NO_WISHES, Holder, Permission, Policy, Rules, wishes
from dandolo.cache.replay import prepare
from dandolo.config.schema import Config
from dandolo.gateway import site
from dandolo.gateway.answers import JSON, STREAM

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.ways import Lane

STEADY_OFFSET_S = time.time() - time.monotonic()
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


@dataclass(slots=True)
class Plan:
    """What the cache may do for one call, and under which key."""

    permission: Permission
    key: bytes


class Caching:
    """The cache under one configuration; None instead where it is off (`of`)."""

    __slots__ = (
        "_bypasses", "_contexts", "_forwarded", "_holders", "_keys", "_rules", "_sampling", "memo", "memory", "sizes",
    )  # fmt: skip

    def __init__(self, config: Config) -> None:
        cache = config.cache
        private = config.server.privacy
        self._bypasses: dict[str, bytes] = {}
        self._contexts: dict[bytes, bytes] = {}
        self._sampling: dict[tuple[str, bytes], bytes] = {}
        self._rules = Rules(sampled=cache.sampled, shared=True, privacy=private)
        secret = cache.secret.reveal().encode() if cache.secret is not None else secrets.token_bytes(32)
        self._keys = Keys(secret)
        self.sizes = (cache.memory.entries, cache.memory.bytes)
        self.memory = Memory(*self.sizes)
        self.memo: Memo[bytes] = Memo(entries=0 if private else cache.memory.entries)
        self._forwarded = frozenset(name.lower().encode() for item in config.providers for name in item.forward_headers)
        self._holders = {
            key.name: Policy(self._rules, Holder(name=key.name, scope=key.cache_scope, privacy=key.privacy))
            for key in config.keys
        }
        self._holders.setdefault("", Policy(self._rules, Holder()))

    @classmethod
    def of(cls, config: Config) -> Caching | None:
        """The cache of a configuration, None when it is off."""
        return cls(config) if "memory" in config.cache.levels else None

    def inherit(self, before: Caching) -> None:
        """Go on with what is kept, if it may be as much as before and under the same secret."""
        if before.sizes == self.sizes:
            self.memory, self.memo, self._keys = before.memory, before.memo, before._keys

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
        said = wishes(exchange.request.fields) if steered else NO_WISHES
        policy = self._holders[exchange.tenant.name]
        permission = policy.permission(call, said)
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
            return Plan(permission, self._keys.of(where, call.json))
        key = self.memo.get(where, call.raw)
        if key is None:
            key = self._keys.of(where, call.json)
            self.memo.put(where, call.raw, key)
        return Plan(permission, key)

    def find(self, plan: Plan, now: float) -> Kept | None:
        """The answer that may be given now (monotonic)."""
        permission = plan.permission
        if not permission.lookup:
            return None
        steady = now + STEADY_OFFSET_S
        kept = self.memory.get(plan.key, steady)
        if kept is None or not permission.admits(kept.entry.kind, kept.created, steady):
            return None
        return kept

    def stale(self, plan: Plan, now: float, *, for_error: bool) -> Kept | None:
        """An answer past its time that may be given all the same: while a new one is fetched, or for an error."""
        permission = plan.permission
        if not permission.lookup or permission.max_age_s is not None:
            return None
        return self.memory.stale(plan.key, now + STEADY_OFFSET_S, for_error=for_error)

    def send(self, exchange: Exchange, call: Call, kept: Kept, outcome: Outcome, now: float) -> bool:
        """Send a kept answer in the form that was asked for; False when it cannot be put into that form."""
        entry = kept.entry
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
            headers.kept(outcome, "l1", steady - kept.created, kept.expires - steady),
        )
        if call.endpoint.dialect == "messages":
            head += b"request-id: %b\r\n" % exchange.encoded_id
        origin = exchange.admitted.origin
        if origin is not None:
            head += site.cors(origin)
        tokens = entry.usage
        if tokens is not None:
            exchange.usage = Usage(tokens.input, tokens.output, tokens.cached, tokens.reasoning, 0.0)
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
        return True

    def keep(
        self,
        plan: Plan,
        call: Call,
        status: int,
        body: bytes,
        *,
        offsets: tuple[int, ...],
        provider: bytes,
        usage: Usage | None,
        asked_at: float,
        now: float,
    ) -> bool:
        """Keep an answer, if it may be and is fit for it. `asked_at` and `now` are monotonic."""
        permission = plan.permission
        assert call.json is not None
        if not permission.store or flaw(call.endpoint.name, call.endpoint.dialect, status, body):
            return False
        kind = ttl_class(call.endpoint.name, call.json, overruled=permission.ttl_s is not None)
        if kind is TtlClass.VOLATILE and not permission.forced:
            return False
        steady = now + STEADY_OFFSET_S
        life = lifetime(kind, steady, random.random(), permission.ttl_s)  # noqa: S311 - jitter
        tokens = None
        if usage is not None and not usage.estimated:
            tokens = Tokens(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens)
        entry = Entry(
            key=plan.key,
            created=steady,
            expires=life.expires,
            stale_until=life.stale_until,
            kind=kind,
            status=status,
            model=call.model,
            usage=tokens,
            cost_usd=usage.cost_usd if usage is not None else None,
            gen_ms=int((now - asked_at) * 1000),
            tags=(),
            body=body,
            delta_offsets=offsets,
        )
        head = b"x-dandolo-provider: %b\r\n" % provider
        return self.memory.put(entry, head, permission.scope, steady, asked_at + STEADY_OFFSET_S)


def _sampling(call: Call) -> tuple[str, bytes] | None:
    """The endpoint and what a call says of temperature, as it stands; None where a seed or more may count."""
    body = call.json
    if body is None or "seed" in body.fields:
        return None
    temperature = body.fields.get("temperature")
    if temperature is None:
        return call.endpoint.name, b""
    return (call.endpoint.name, bytes(temperature)) if len(temperature) <= TEMPERATURE_BYTES_MAX else None
