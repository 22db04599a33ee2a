"""Identity of requests: what counts, what does not, and that no hash ever decides alone."""

import json
import random
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.body import judge
from dandolo.cache.key import IGNORED, KEY_BYTES, SLOT_BYTES, Keys, Memo, canonical, context, headers_counted

KEYS = Keys(b"s" * 32)
CONTEXT = context("key:a", "chat", "", "venice/llama")
BODY: dict[str, Any] = {
    "model": "fast",
    "temperature": 0,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
}


def key(raw: bytes | str | dict[str, Any], where: bytes = CONTEXT) -> bytes:
    if isinstance(raw, dict):
        raw = json.dumps(raw, separators=(",", ":"), ensure_ascii=False)
    return KEYS.of(where, judge(raw.encode() if isinstance(raw, str) else raw))


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {**BODY, "messages": [{"role": "user", "content": content}], **more}


SAME: list[tuple[str, str | dict[str, Any], str | dict[str, Any]]] = [
    ("white space", BODY, json.dumps(BODY, indent=2)),
    ("spaces as Python puts them", BODY, json.dumps(BODY)),
    ("order of members", BODY, dict(reversed(BODY.items()))),
    (
        "order of nested members",
        '{"messages":[{"role":"user","content":"a"}]}',
        '{"messages":[{"content":"a","role":"user"}]}',
    ),
    (
        "escapes",
        user("größe /"),
        '{"model":"x","temperature":0,"messages":[{"role":"user","content":"gr\\u00f6\\u00dfe \\/"}]}',
    ),
    (
        "angle brackets as Go writes them",
        user("a<b"),
        '{"temperature":0,"messages":[{"role":"user","content":"a\\u003cb"}]}',
    ),
    ("the model's name, which the context resolves", BODY, {**BODY, "model": "other"}),
    ("the older name of a limit", {**BODY, "max_tokens": 9}, {**BODY, "max_completion_tokens": 9}),
    ("a number's spelling", {**BODY, "top_p": 0.5}, json.dumps(BODY)[:-1] + ',"top_p":5.0e-1}'),
    *((name, BODY, {**BODY, name: {"x": [1]}}) for name in sorted(IGNORED)),
    (
        "markers in messages and parts",
        user([{"type": "text", "text": "a"}]),
        user([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]),
    ),
    (
        "markers in a tool's result",
        user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}]}]),
        user(
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}],
                }
            ]
        ),
    ),
    (
        "markers in system and tools",
        user("a", system=[{"type": "text", "text": "s"}], tools=[{"name": "t", "input_schema": {}}]),
        user(
            "a",
            system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            tools=[{"name": "t", "input_schema": {}, "cache_control": {"type": "ephemeral"}}],
        ),
    ),
    ("a marker on the whole body", BODY, {**BODY, "cache_control": {"type": "ephemeral"}}),
]


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in SAME])
def test_the_same_request_has_the_same_key(one: Any, other: Any) -> None:
    assert key(one) == key(other)
    assert len(key(one)) == KEY_BYTES


DIFFERENT: list[tuple[str, Any, Any]] = [
    ("case", user("Why?"), user("why?")),
    ("a space at the end", user("Why?"), user("Why? ")),
    ("a line end", user("a\nb"), user("a\r\nb")),
    ("composed and decomposed", user("\u00e9"), user("e\u0301")),
    ("text and one part of text", user("a"), user([{"type": "text", "text": "a"}])),
    ("an unknown field", BODY, {**BODY, "brand_new": 1}),
    ("an unknown field of a message", user("a"), {**BODY, "messages": [{"role": "user", "content": "a", "x": 1}]}),
    ("null and absent", BODY, {**BODY, "seed": None}),
    ("true and 1", {**BODY, "x": True}, {**BODY, "x": 1}),
    ("whole and broken numbers", {**BODY, "x": 1}, {**BODY, "x": 1.0}),
    ("a number and a text", {**BODY, "x": 1}, {**BODY, "x": "1"}),
    ("order of messages", BODY, {**BODY, "messages": BODY["messages"][::-1]}),
    ("two limits", {**BODY, "max_tokens": 9}, {**BODY, "max_tokens": 9, "max_completion_tokens": 9}),
    (
        "two limits, crossed",
        {**BODY, "max_tokens": 8, "max_completion_tokens": 9},
        {**BODY, "max_tokens": 9, "max_completion_tokens": 8},
    ),
    (
        "seeds beyond 64 bits",
        json.dumps(BODY)[:-1] + ',"seed":123456789012345678901}',
        json.dumps(BODY)[:-1] + ',"seed":123456789012345678902}',
    ),
    ("numbers no double holds", json.dumps(BODY)[:-1] + ',"x":1e999}', json.dumps(BODY)[:-1] + ',"x":1e998}'),
    (
        "a property named like a marker in a schema",
        user("a", tools=[{"name": "t", "input_schema": {"properties": {}}}]),
        user("a", tools=[{"name": "t", "input_schema": {"properties": {"cache_control": {"type": "ephemeral"}}}}]),
    ),
    (
        "an argument named like a marker",
        user([{"type": "tool_use", "id": "i", "name": "n", "input": {}}]),
        user([{"type": "tool_use", "id": "i", "name": "n", "input": {"cache_control": {"type": "ephemeral"}}}]),
    ),
    (
        "something else in a marker's place",
        user([{"type": "text", "text": "a"}]),
        user([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "text": "b"}}]),
    ),
    ("ignored names count deeper down", user("a", x={"user": 1}), user("a", x={"user": 2})),
]


@pytest.mark.parametrize(("one", "other"), [pytest.param(a, b, id=name) for name, a, b in DIFFERENT])
def test_another_request_has_another_key(one: Any, other: Any) -> None:
    assert key(one) != key(other)


TWICE = [
    '{"messages":[{"role":"user","content":"a","content":"b"}]}',
    '{"messages":[{"role":"user","content":"c","content":"b"}]}',
    '{"messages":[{"role":"user","content":"b","content":"b"}]}',
    '{"messages":[{"role":"user","content":"a","content" :"b"}]}',
    '{"messages":[{"role":"user","content":"a","con\\u0074ent":"b"}]}',
    '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
]


def test_a_name_given_twice_within_is_never_taken_for_either_reading() -> None:
    # One parser answers "a", another "b": the bytes themselves identify such a body.
    plain = [key(user(text)) for text in "abc"] + [
        key(json.dumps({"messages": [{"role": "user", "content": text}]})) for text in "abc"
    ]
    assert len({*map(key, TWICE), *plain}) == len(TWICE) + len(set(plain))


def test_escaped_colons_do_not_hide_a_name_given_twice() -> None:
    # As many colons in the bytes as in what is left after decoding: one escaped in a text, one too many as a member.
    honest = '{"messages":[{"role":"user","content":"b:"}]}'
    twice = '{"messages":[{"role":"user","content":"a","content":"b\\u003a"}]}'
    assert honest.count(":") == twice.count(":")
    assert key(honest) != key(twice)
    assert key(honest) != key(twice.replace("003a", "003A"))


@pytest.mark.parametrize(
    "other",
    [
        context("key:b", "chat", "", "venice/llama"),
        context("shared", "chat", "", "venice/llama"),
        context("key:a", "completions", "", "venice/llama"),
        context("key:a", "chat", "eu", "venice/llama"),
        context("key:a", "chat", "", "venice/other"),
        context("key:a", "chat", "", "venice/llama", [("openai-beta", "x")]),
        context("key:a" + "chat", "", "", "venice/llama"),
    ],
)
def test_everything_in_the_context_counts(other: bytes) -> None:
    assert key(BODY) != key(BODY, other)


def test_another_secret_makes_other_keys_and_a_short_one_is_refused() -> None:
    assert Keys(b"t" * 32).of(CONTEXT, judge(json.dumps(BODY).encode())) != key(BODY)
    with pytest.raises(ValueError, match="16 at least"):
        Keys(b"short")


def test_headers_that_go_on_to_a_provider_count() -> None:
    headers = {
        b"authorization": b"Bearer x",
        b"anthropic-beta": b"b1",
        b"openai-beta": b"o",
        b"traceparent": b"00-1",
        b"x-own": b"1",
        b"x-other": b"2",
    }
    assert headers_counted(headers, [b"X-Own", b"traceparent"]) == (
        ("anthropic-beta", "b1"),
        ("openai-beta", "o"),
        ("x-own", "1"),
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(min_size=1, max_size=4), JSON, min_size=1, max_size=4)


@given(OBJECTS, st.booleans(), st.randoms(use_true_random=False))
def test_layout_never_counts(value: dict[str, Any], ascii_only: bool, chance: random.Random) -> None:
    def shuffled(inner: Any) -> Any:
        if isinstance(inner, dict):
            members = [(name, shuffled(one)) for name, one in inner.items()]
            chance.shuffle(members)
            return dict(members)
        return [shuffled(one) for one in inner] if isinstance(inner, list) else inner

    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    other = json.dumps(shuffled(value), ensure_ascii=ascii_only, indent=chance.choice((None, 1)))
    assert key(compact) == key(other) or "\\u003a" in other


@given(OBJECTS, OBJECTS)
def test_equal_canonical_bytes_mean_equal_requests(one: dict[str, Any], other: dict[str, Any]) -> None:
    def form(value: dict[str, Any]) -> bytes:
        return canonical(judge(json.dumps(value).encode()))

    def meant(value: dict[str, Any]) -> str:
        kept = {name: inner for name, inner in value.items() if name not in IGNORED and name != "model"}
        return json.dumps(kept, sort_keys=True)

    assert (form(one) == form(other)) == (meant(one) == meant(other))


# -- the memo --------------------------------------------------------------------------------------------------


def test_a_memo_gives_back_what_was_put_for_these_bytes_in_this_context() -> None:
    memo: Memo[bytes] = Memo()
    memo.put(CONTEXT, b"body", b"K")
    assert memo.get(CONTEXT, b"body") == b"K"
    assert memo.get(CONTEXT, b"bodY") is None
    assert memo.get(context("key:b", "chat", "", "venice/llama"), b"body") is None
    assert (memo.hits, memo.misses) == (1, 2)


def test_with_a_constant_hash_bodies_never_share_an_entry() -> None:
    memo: Memo[bytes] = Memo(hash_of=lambda raw, seed: 7)
    bodies = [b"%d" % number for number in range(50)]
    for raw in bodies:
        assert memo.get(CONTEXT, raw) is None
        memo.put(CONTEXT, raw, b"K" + raw)
        assert memo.get(CONTEXT, raw) == b"K" + raw
        assert all(memo.get(CONTEXT, other) in (None, b"K" + other) for other in bodies)
    assert len(memo) == 1


P1, P2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F
WORD = 2**64 - 1


def colliding_pair() -> tuple[bytes, bytes]:
    """Two printable JSON requests of equal XXH64 (seed 0), by arithmetic.

    XXH64 reads stripes of four 64-bit lanes; a lane becomes rotl(lane + word * P2, 31) * P1. What another first
    word does to a lane is undone by a second word, which multiplication by the inverse of P2 gives; one in
    some thousand choices is printable.
    """

    def step(lane: int, word: int) -> int:
        lane = (lane + word * P2) & WORD
        return ((lane << 31 | lane >> 33) & WORD) * P1 & WORD

    head = b'{"temperature":0,"messages":[{"role":"user","content":"'
    head += b" " * (-len(head) % 32)
    lane = (P1 + P2) & WORD
    for at in range(0, len(head), 32):
        lane = step(lane, int.from_bytes(head[at : at + 8], "little"))
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:+-*!?()<>=_#%&'@^~|{}[]/$`"
    first, second = b"transfer", b"1 ducat "
    end = step(step(lane, int.from_bytes(first, "little")), int.from_bytes(second, "little"))
    unrotated = end * pow(P1, -1, 2**64) & WORD
    wanted = (unrotated >> 31 | unrotated << 33) & WORD
    chance = random.Random(1)
    while True:
        other = bytes(chance.choices(letters, k=8))
        word = (wanted - step(lane, int.from_bytes(other, "little"))) * pow(P2, -1, 2**64) & WORD
        undone = word.to_bytes(8, "little")
        if other != first and set(undone) <= set(letters):
            break

    def body(one: bytes, two: bytes) -> bytes:
        return head + one + b"x" * 24 + two + b"y" * 24 + b'"}]}'

    return body(first, second), body(other, undone)


def test_two_prompts_of_equal_xxh64_never_share_an_entry() -> None:
    one, other = colliding_pair()
    assert one != other
    assert xxhash.xxh64_intdigest(one) == xxhash.xxh64_intdigest(other)
    assert key(one) != key(other)
    memo: Memo[bytes] = Memo(hash_of=xxhash.xxh64_intdigest, seed=0)
    memo.put(CONTEXT, one, key(one))
    assert memo.get(CONTEXT, other) is None
    memo.put(CONTEXT, other, key(other))
    assert memo.get(CONTEXT, other) == key(other)
    assert memo.get(CONTEXT, one) is None


def test_a_memo_keeps_within_its_bounds_and_drops_what_was_least_used() -> None:
    memo: Memo[int] = Memo(entries=3, bytes_max=10_000_000)
    for number in range(3):
        memo.put(b"c", b"%d" % number, number)
    assert memo.get(b"c", b"0") == 0
    memo.put(b"c", b"3", 3)
    assert [memo.get(b"c", b"%d" % number) for number in range(4)] == [0, None, 2, 3]
    assert memo.bytes == 3 * (2 + SLOT_BYTES)
    memo.clear()
    assert (len(memo), memo.bytes) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.binary(max_size=300)), max_size=60))
def test_a_memo_never_holds_more_bytes_than_it_may(bodies: list[tuple[bytes, bytes]]) -> None:
    memo: Memo[bytes] = Memo(entries=8, bytes_max=20 * (200 + SLOT_BYTES), hash_of=lambda raw, seed: len(raw) % 5)
    for where, raw in bodies:
        memo.put(where, raw, raw)
        assert len(memo) <= 8
        assert memo.bytes <= 20 * (200 + SLOT_BYTES)
        assert memo.get(where, raw) == (raw if len(raw) < 200 else None)


def test_privacy_mode_remembers_nothing() -> None:
    memo: Memo[bytes] = Memo(entries=0)
    memo.put(CONTEXT, b"body", b"K")
    assert memo.get(CONTEXT, b"body") is None
    assert (len(memo), memo.bytes) == (0, 0)
