"""Keeping an answer: whether it is fit for it, for how long, under which names, and who gave it.

A plain answer of a call that was made the short way is put by unjudged (`draft`): most are never asked for again, and
what nobody asks for need not be read.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dandolo.api.call import Call, read
from dandolo.api.usage import Usage
from dandolo.cache.answer import flaw
from dandolo.cache.entry import TAGS_MAX, Entry, Tokens
from dandolo.cache.lifetime import TtlClass, ttl_class
from dandolo.cache.memory import Draft, Memory
from dandolo.cache.policy import Permission
from dandolo.cache.semantic import Aliases, Asking

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

STEADY_OFFSET_S = time.time() - time.monotonic()
DRAFTS_MAX = 256
PROVIDER_TAG = "provider="
"""Who gave an answer is among the names by which it can be purged."""


class Times(NamedTuple):
    """When an answer was asked for and when it was there (monotonic), and what of its key it can be purged by."""

    asked: float
    now: float
    tags: tuple[str, ...]


class Plan(msgspec.Struct, gc=False):
    """What the cache may do for one call, and under which key."""

    permission: Permission
    key: bytes
    context: bytes
    """What identifies the request beside its body."""
    unremembered: bool = False
    """The key was made for this very call: whoever finds an answer under it lets the memo know."""
    asking: Asking | None = None
    """What it has in common with others that ask the same in other words, where that may count."""


class Keeping:
    """What keeps answers: memory, the names of each key, and what asks the same in other words."""

    __slots__ = ("aliases", "drafts", "memory", "tags")

    aliases: Aliases | None
    memory: Memory
    drafts: dict[bytes, Draft]
    """By key, what is to be put into memory; at most DRAFTS_MAX."""
    tags: dict[str, tuple[str, ...]]
    """By key, what its answers can be purged by."""

    def draft(self, exchange: Exchange, plan: Plan, call: Call, body: bytes) -> None:
        """Keep a plain answer in memory, to be judged (`judge_draft`) when it is asked for again."""
        target = exchange.target
        assert target is not None
        self.drafts[plan.key] = Draft(
            call.endpoint,
            call.raw,
            call.model,
            body,
            plan.permission,
            exchange.usage,
            target.provider.encoded_name,
            self.tags.get(exchange.admitted.tenant.name, ()),
            # Not `sent_at` and `provider_s`: of several attempts that is a sum, and no purge may find it in the future.
            time.monotonic(),
            exchange.sent_at + STEADY_OFFSET_S,
        )
        if len(self.drafts) >= DRAFTS_MAX:
            self.settle()

    def settle(self) -> None:
        """Put drafts into memory: at each beat, since that costs a third together, and before anybody looks for one."""
        drafts, self.drafts = self.drafts, {}
        put = self.memory.put_draft
        for key, draft in drafts.items():
            size = len(draft.body) + len(draft.raw)
            put(draft, key, draft.permission.scope, size, draft.made_at + STEADY_OFFSET_S)

    def judge_draft(self, draft: Draft, key: bytes) -> tuple[Entry, bytes] | None:
        """The entry, and its head, that a draft makes; None when it is not fit to be kept."""
        call = read(draft.endpoint, draft.raw, b"")
        at = Times(draft.asked_at - STEADY_OFFSET_S, draft.made_at, draft.tags)
        plan = Plan(draft.permission, key, b"")
        # A name that steers, and is no part of the body's meaning, may have been taken off it.
        entry = self.judge(plan, call, 200, draft.body, (), draft.provider, draft.usage, at, model=draft.model)
        return None if entry is None else (entry, head_of(entry))

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
        at: Times,
    ) -> Entry | None:
        """Keep an answer, if it may be and is fit for it; what is to be kept elsewhere too."""
        entry = self.judge(plan, call, status, body, offsets, provider, usage, at)
        if entry is None:
            return None
        scope, steady, since = plan.permission.scope, at.now + STEADY_OFFSET_S, at.asked + STEADY_OFFSET_S
        self.memory.put(entry, head_of(entry), scope, steady, since)
        if self.memory.purges.latest(entry, scope).hard >= since:
            return None
        if plan.asking is not None and self.aliases is not None and entry.kind is TtlClass.QUESTION:
            self.aliases.put(plan.asking, entry.key, entry.expires, steady)
        return entry

    def judge(
        self,
        plan: Plan,
        call: Call,
        status: int,
        body: bytes,
        offsets: tuple[int, ...],
        provider: bytes,
        usage: Usage | None,
        at: Times,
        model: str = "",
    ) -> Entry | None:
        """The entry that an answer makes; None when it may not be kept, or is not fit for it."""
        permission = plan.permission
        assert call.json is not None
        if not permission.store or flaw(call.endpoint.name, call.endpoint.dialect, status, body):
            return None
        kind = ttl_class(call.endpoint.name, call.json, overruled=permission.ttl_s is not None)
        if kind is TtlClass.VOLATILE and not permission.forced:
            return None
        steady = at.now + STEADY_OFFSET_S
        life = permission.lifetime(kind, steady, random.random())  # noqa: S311 - jitter
        tokens = None
        if usage is not None and not usage.estimated:
            tokens = Tokens(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens)
        return Entry(
            key=plan.key,
            created=steady,
            expires=life.expires,
            stale_until=life.stale_until,
            kind=kind,
            status=status,
            model=model or call.model,
            usage=tokens,
            cost_usd=usage.cost_usd if usage is not None else None,
            gen_ms=int((at.now - at.asked) * 1000),
            tags=(PROVIDER_TAG + provider.decode("ascii"), *at.tags)[:TAGS_MAX],
            body=body,
            delta_offsets=offsets,
        )


def provider_of(entry: Entry) -> str:
    """Who gave an answer, which its tags tell; "" when they do not, or in something that is no name."""
    for tag in entry.tags:
        if tag.startswith(PROVIDER_TAG) and tag.isascii() and tag.isprintable():
            return tag[len(PROVIDER_TAG) :]
    return ""


def head_of(entry: Entry) -> bytes:
    """The header line that names who gave an answer. Entries come from other tiers and processes, too."""
    provider = provider_of(entry)
    return b"x-dandolo-provider: %b\r\n" % provider.encode("ascii") if provider else b""
