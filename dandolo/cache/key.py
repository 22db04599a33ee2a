"""What makes two requests the same: a keyed digest of everything that can change the answer.

A key is a keyed digest of 20 bytes (`Keys`) over two msgpack values: the context (version, scope, endpoint, provider
policy, resolved model, headers a provider acts on) and the canonical body. Message content counts byte for
byte and so does every field, known or not, except those in `IGNORED`; white space, the order of members and
equal spellings of a string or a number do not. xxhash never identifies: in `Memo` it picks a slot, whose body
is then compared in full, because two prompts with equal XXH64 are made in milliseconds.

A name that stands twice in one object is read by some parsers first, by others last. `dandolo.api.body` refuses
that at the top level; here, deeper down, such a body is recognised and identified by its very bytes. The proof
is cheap: what was decoded, encoded again, either is the same bytes or has as many colons (an escaped colon is
looked for apart). Measured (`bench/cache/results/memory.md`) against the keyed BLAKE2b, HMAC-SHA256 costs 0.2 µs
more at 1 KB and a quarter less at 32 KB where the processor has SHA instructions.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
import xxhash

from dandolo.api.body import JsonBody

VERSION = 1
"""Changes with anything that changes what a key means."""
KEY_BYTES = 20
SECRET_BYTES_MIN = 16
SHORT_BYTES_MAX = 4096
"""Up to here BLAKE2b is the quicker (measured: 1.0 against 1.5 µs at 1 KiB, 25 against 18 at 32)."""

IGNORED = frozenset((
    "user", "safety_identifier", "metadata", "store", "stream", "stream_options", "service_tier",
    "prompt_cache_key", "prompt_cache_retention",
))  # fmt: skip
"""Top-level fields that do not change what is answered."""
_ABSENT = IGNORED | {"model"}
"""The model is in the context, as what its name stands for."""

MEMO_ENTRIES = 1_000
MEMO_BYTES = 16 * 1024 * 1024
MEMO_SHARE = 20
"""No body over a twentieth of a memo's bytes is remembered."""
SLOT_BYTES = 400
"""What a slot costs beside its body, about."""

_FORWARDED = ("anthropic-", "x-venice-tee-")
_UNANSWERED = frozenset(("idempotency-key", "traceparent", "tracestate"))

_any = msgspec.json.Decoder()
_json = msgspec.json.Encoder()
_packed = msgspec.msgpack.Encoder(order="sorted")
_scratch = bytearray()
"""Where bodies are encoded to be compared: for a large one new memory costs as much as the encoding."""
SCRATCH_BYTES_MAX = 1024 * 1024

T = TypeVar("T")


class Keys:
    """Makes keys under one secret, which all who share a tier share.

    Keyed BLAKE2b for what is short, where setting up HMAC costs more than hashing; HMAC-SHA256 beyond. What is equal is
    equally long, so it is always the same one.
    """

    __slots__ = ("_keyed", "_short")

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ValueError(f"the cache's secret has {len(secret)} bytes; it needs {SECRET_BYTES_MIN} at least")
        self._keyed = hmac.new(secret, digestmod="sha256")
        # BLAKE2b takes keys of 64 bytes at most (RFC 7693 §2.1).
        self._short = hashlib.blake2b(key=hashlib.sha256(secret).digest(), digest_size=KEY_BYTES)

    def of(self, context: bytes, body: JsonBody) -> bytes:
        """The key (20 bytes) of a judged body in a `context`."""
        material = context + canonical(body)
        if len(material) <= SHORT_BYTES_MAX:
            short = self._short.copy()
            short.update(material)
            return short.digest()
        keyed = self._keyed.copy()
        keyed.update(material)
        return keyed.digest()[:KEY_BYTES]


def context(scope: str, endpoint: str, policy: str, model: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """What identifies a request beside its body, encoded so that nothing can be taken for something else.

    `scope` is who may see the answer (`policy.Permission.scope`), `endpoint` its name, `policy` whatever decides
    which providers may answer, `model` what the requested name stands for, `headers` from `headers_counted`.
    """
    return _packed.encode((VERSION, scope, endpoint, policy, model, sorted(headers)))


def headers_counted(headers: Mapping[bytes, bytes], forwarded: Iterable[bytes] = ()) -> tuple[tuple[str, str], ...]:
    """The request headers (names in lower case) that go on to a provider and may change what it answers.

    `forwarded` are the names that providers are configured to be sent besides.
    """
    extra = {name.decode("latin-1").lower() for name in forwarded} - _UNANSWERED
    found = []
    for name, value in headers.items():
        text = name.decode("latin-1")
        if text.startswith(_FORWARDED) or text == "openai-beta" or text in extra:
            found.append((text, value.decode("latin-1")))
    return tuple(sorted(found))


def canonical(body: JsonBody) -> bytes:
    """The body as bytes that are equal for equal requests and for no others. Not for several threads at once."""
    global _scratch
    raw = body.raw
    try:
        value = _any.decode(raw)
        _json.encode_into(value, _scratch)
        if _scratch == raw or _nothing_lost(raw, _scratch):
            for name in _ABSENT & value.keys():
                del value[name]
            if raw.rfind(b"cache_control") >= 0:
                _unmark(value)
            if "max_tokens" in value:
                _rename(value)
            return b"\1" + _packed.encode(value)
    except (ValueError, OverflowError, RecursionError):
        # A number that no double or 64-bit integer holds: legal JSON, and a provider's to judge.
        pass
    finally:
        if len(_scratch) > SCRATCH_BYTES_MAX:
            # New, since a bytearray that is cut keeps its room.
            _scratch = bytearray()
    exact: dict[str, Any] = {name: bytes(inner) for name, inner in body.fields.items() if name not in _ABSENT}
    _rename(exact)
    return b"\0" + _packed.encode(exact)


def _nothing_lost(raw: bytes, encoded: bytearray) -> bool:
    """Whether decoding dropped no member: every member has its colon, and strings keep theirs."""
    # Backwards: CPython's rfind takes 3 to 7 µs for 32 KB, its find 12 to 20.
    if raw.rfind(b"\\u003") >= 0 and (raw.rfind(b"\\u003a") >= 0 or raw.rfind(b"\\u003A") >= 0):
        return False
    return raw.count(b":") == encoded.count(b":")


def _rename(fields: dict[str, Any]) -> None:
    """`max_tokens` is the older name of `max_completion_tokens`. Both at once stay what they are."""
    if "max_tokens" in fields and "max_completion_tokens" not in fields:
        fields["max_completion_tokens"] = fields.pop("max_tokens")


# -- markers of a provider's prompt cache ----------------------------------------------------------------------


def _unmark(fields: dict[str, Any]) -> None:
    """Leave `cache_control` out wherever an API defines it, and nowhere else.

    That is: the body itself, messages, parts of their content (those of tool results too), system blocks and tools. A
    property of that name in a tool's schema or arguments is content like any other.
    """
    _drop(fields)
    for name in ("messages", "system", "tools", "input"):
        _unmark_each(fields.get(name), 3)


def _unmark_each(items: Any, levels: int) -> None:
    if not isinstance(items, list):
        return
    for item in items:
        if isinstance(item, dict):
            _drop(item)
            if levels:
                _unmark_each(item.get("content"), levels - 1)


def _drop(item: dict[str, Any]) -> None:
    marker = item.get("cache_control")
    if isinstance(marker, dict) and marker.get("type") == "ephemeral" and marker.keys() <= {"type", "ttl", "scope"}:
        del item["cache_control"]


# -- bodies seen before ----------------------------------------------------------------------------------------


class Memo(Generic[T]):
    """What was worked out for a body, found again by the body's bytes alone.

    Least recently used goes first; at most `entries` and `bytes_max` (bodies are kept whole: that is what makes
    it right, and why there is none in privacy mode: `entries=0` remembers nothing). `hash_of` picks a slot, under
    a random seed, so that nobody outside can choose whom to push out; correctness does not rest on it.
    """

    __slots__ = ("_bytes_max", "_entries_max", "_hash_of", "_seed", "_slots", "bytes", "hits", "misses")

    def __init__(
        self,
        entries: int = MEMO_ENTRIES,
        bytes_max: int = MEMO_BYTES,
        *,
        hash_of: Callable[[bytes, int], int] = xxhash.xxh3_64_intdigest,
        seed: int | None = None,
    ) -> None:
        self._entries_max = entries
        self._bytes_max = bytes_max
        self._hash_of = hash_of
        self._seed = secrets.randbits(64) if seed is None else seed
        self._slots: OrderedDict[tuple[bytes, int], tuple[bytes, T]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, context: bytes, raw: bytes) -> T | None:
        """What was put for exactly these bytes in exactly this context (tenant's scope and policy in it)."""
        place = (context, self._hash_of(raw, self._seed))
        slot = self._slots.get(place)
        if slot is None or slot[0] != raw:
            self.misses += 1
            return None
        self._slots.move_to_end(place)
        self.hits += 1
        return slot[1]

    def put(self, context: bytes, raw: bytes, value: T) -> None:
        """Remember `value` for `raw`; whatever shares its slot is forgotten."""
        size = len(raw) + len(context) + SLOT_BYTES
        if not self._entries_max or size * MEMO_SHARE > self._bytes_max:
            return
        place = (context, self._hash_of(raw, self._seed))
        self._forget(place, self._slots.pop(place, None))
        self._slots[place] = (raw, value)
        self.bytes += size
        while len(self._slots) > self._entries_max or self.bytes > self._bytes_max:
            self._forget(*self._slots.popitem(last=False))

    def clear(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self.bytes = 0

    def _forget(self, place: tuple[bytes, int], slot: tuple[bytes, T] | None) -> None:
        if slot is not None:
            self.bytes -= len(slot[0]) + len(place[0]) + SLOT_BYTES
