"""Keys, policy, memo and memory together: many tenants ask at random, and nobody ever gets a wrong answer.

The oracle is what the provider would have read: an answer carries a digest of the tenant and of the request as
plain JSON, made without any of our keys. The memo's hash is forced to few values, so that its slots are always shared.
"""

import hashlib
import json
import random
from typing import Any

import pytest

from dandolo.api.call import Call, read
from dandolo.api.endpoints import ENDPOINTS
from dandolo.cache.entry import Entry, decode, encode
from dandolo.cache.key import IGNORED, Keys, Memo, context
from dandolo.cache.lifetime import ttl_class
from dandolo.cache.memory import Memory
from dandolo.cache.policy import Holder, Permission, Policy, Rules

REQUESTS = 6_000
CHAT = ENDPOINTS[b"/v1/chat/completions"]
TEXTS = ["Why?", "why?", "Why? ", "Why?\n", "WHY?", "Who?", "é", "e\u0301", '{"a":1}', "a:b", "a\\u003ab"]


def body(chance: random.Random) -> bytes:
    """One of some thousand requests, in one of many spellings."""
    message: dict[str, Any] = {"role": chance.choice(("user", "system")), "content": chance.choice(TEXTS)}
    if chance.random() < 0.2:
        message["content"] = [{"type": "text", "text": message["content"]}]
    asked: dict[str, Any] = {"model": "m", "messages": [message] * chance.choice((1, 1, 2)), "temperature": 0}
    for name, values in (
        ("seed", (1, 2, 123456789012345678901)),
        ("top_p", (0.5, 1, 1.0)),
        ("brand_new", (True, 1, "1", None, [1], {"b": 1, "a": 2})),
        ("user", ("u", "v")),
        ("stream", (True, False)),
    ):
        if chance.random() < 0.1:
            asked[name] = chance.choice(values)
    members = list(asked.items())
    chance.shuffle(members)
    spelt: dict[str, Any] = {
        "ensure_ascii": chance.random() < 0.5,
        "separators": chance.choice(((",", ":"), (", ", ": "))),
    }
    raw = json.dumps(dict(members), **spelt).encode()
    if chance.random() < 0.1:
        # A name given twice within: the first reading and the last one differ.
        raw = raw.replace(b'"role"', b'"content":"%d","role"' % chance.randrange(3), 1)
    return raw


def truth(tenant: str, raw: bytes) -> str:
    """A digest of who asks and what a parser that keeps everything, in order, reads."""

    def pairs(members: list[tuple[str, Any]]) -> Any:
        return sorted(members, key=lambda member: member[0])

    members = json.loads(raw, object_pairs_hook=pairs)
    kept = [(name, value) for name, value in members if name not in IGNORED]
    return hashlib.sha256(repr((tenant, kept)).encode()).hexdigest()


@pytest.mark.parametrize("spread", [1, 3, 2**64])
def test_no_tenant_ever_gets_a_wrong_answer(spread: int) -> None:
    chance = random.Random(spread)
    keys = Keys(b"s" * 32)
    memory = Memory(300, 400_000)
    memo: Memo[bytes] = Memo(entries=100, hash_of=lambda raw, seed: hash(raw) % spread)
    tenants = {
        name: Policy(Rules(shared=True), Holder(name=name, scope="shared" if name in "cd" else "key"))
        for name in "abcd"
    }
    given = 0
    now = 0.0
    for _ in range(REQUESTS):
        now += 1.0
        name = chance.choice("abcd")
        raw = body(chance)
        call: Call = read(CHAT, raw, b"")
        permission: Permission = tenants[name].permission(call)
        assert permission.lookup
        assert call.json is not None
        where = context(permission.scope, "chat", "", "venice/m")
        key = memo.get(where, raw)
        if key is None:
            key = keys.of(where, call.json)
            memo.put(where, raw, key)
        assert key == keys.of(where, call.json)
        # Tenants c and d share; a and b share with nobody.
        expected = truth("shared" if name in "cd" else name, raw).encode()
        found = memory.get(key, now)
        if found is not None:
            given += 1
            assert found.entry.body == expected
            assert now < found.entry.expires
            continue
        kind = ttl_class("chat", call.json)
        life = permission.lifetime(kind, now, chance.random())
        entry = Entry(
            key=key,
            created=now,
            expires=min(life.expires, now + 500.0),
            stale_until=life.stale_until,
            kind=kind,
            status=200,
            model="venice/m",
            usage=None,
            cost_usd=None,
            gen_ms=1,
            tags=(name,),
            body=expected,
        )
        assert decode(encode(entry), key) == entry
        memory.put(entry, b"", permission.scope, now)
        if chance.random() < 0.01:
            memory.purge("tag", chance.choice("abcd"), now)
    assert given > REQUESTS // 5
