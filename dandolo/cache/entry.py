"""A kept answer, and the bytes it is stored as outside this process.

A record is two bytes (format, packing), a checksum over them and all that follows, and the entry as one msgpack
array, deflated when that makes more than 4 KB smaller. Whatever is not exactly a record of ours for exactly the key
that was asked for is None: cut, corrupt, of another version, somebody else's. Nothing read here can run code, and
nothing can grow beyond what it says, or say more than a body may have.

The checksum tells accident, not malice: who can write to the operator's Redis can write answers.
"""

from __future__ import annotations

import zlib
from math import isfinite

import msgspec
import xxhash

from dandolo.cache.key import KEY_BYTES
from dandolo.cache.lifetime import TtlClass, usable_until

VERSION = 1
BODY_BYTES_MAX = 32 * 1024 * 1024
"""Of a plain answer (the limit on providers' bodies)."""
PAYLOAD_BYTES_MAX = BODY_BYTES_MAX + 1024 * 1024
DEFLATED_BYTES_MIN = 4096
LEVEL = 1
TAGS_MAX = 16
TAG_CHARS_MAX = 128
OFFSETS_MAX = 4096

_FORMAT = 0xDA
_PLAIN = bytes((_FORMAT, 0))
_DEFLATED = bytes((_FORMAT, 1))
_CHECKSUM_BYTES = 8
_SIZE_BYTES = 4
_HEAD_BYTES = 2 + _CHECKSUM_BYTES


class Tokens(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What the answer cost in tokens when it was made."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0


class Entry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False, kw_only=True):
    """One kept answer. The order of fields is the order in a record.

    `key`            20 bytes (`key.Keys.of`), compared in full wherever an entry is read
    `created`        when the answer was made; it and the two below in seconds of steady Unix time: the wall clock
                     when the process started, and the monotonic clock from there
    `expires`        absolute, set once: no promotion extends it
    `stale_until`    how long it may be given while a new one is fetched
    `kind`           its lifetime's class
    `status`, `body` the answer: always a plain JSON body, of which a stream can be made (`replay`)
    `usage`, `cost_usd`, `gen_ms`   what it took: None where the provider did not say; milliseconds
    `tags`           names it can be purged by
    `delta_offsets`  where the pieces of a recorded stream's text ended, in characters; () when it was none
    """

    version: int = VERSION
    key: bytes
    created: float
    expires: float
    stale_until: float
    kind: TtlClass
    status: int
    model: str
    usage: Tokens | None
    cost_usd: float | None
    gen_ms: int
    tags: tuple[str, ...]
    body: bytes
    delta_offsets: tuple[int, ...] = ()

    @property
    def usable_until(self) -> float:
        """When not even an error justifies giving it any more."""
        return usable_until(self.kind, self.expires, self.stale_until)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode(entry: Entry, *, deflates: bool = True) -> bytes:
    """The entry as a record, deflated where that is worth its time. Raises ValueError for one that `decode` would not
    take back."""
    wrong = _flaw(entry)
    if wrong:
        raise ValueError(wrong)
    payload = _encoder.encode(entry)
    kind = _PLAIN
    if deflates and len(payload) > DEFLATED_BYTES_MIN:
        deflated = zlib.compress(payload, LEVEL)
        if len(deflated) + _SIZE_BYTES < len(payload):
            kind, payload = _DEFLATED, len(payload).to_bytes(_SIZE_BYTES, "big") + deflated
    return kind + _checksum(kind, payload) + payload


def is_record(data: bytes) -> bool:
    """Whether bytes are a record of ours, whole, of whichever key."""
    kind = data[:2]
    return kind in (_PLAIN, _DEFLATED) and data[2:_HEAD_BYTES] == _checksum(kind, data[_HEAD_BYTES:])


def unpacked_bytes(record: bytes) -> int:
    """How large a record says it is once unpacked: what unpacking it may take, whatever it turns out to be."""
    if record[:2] == _DEFLATED:
        return int.from_bytes(record[_HEAD_BYTES : _HEAD_BYTES + _SIZE_BYTES], "big")
    return len(record)


def decode(record: bytes, key: bytes) -> Entry | None:
    """The entry in a record that was found under `key`; None for everything but a whole record of that very key.

    Never raises: the caller deletes what is None and goes on as if it had found nothing.
    """
    kind, payload = record[:2], record[_HEAD_BYTES:]
    if record[2:_HEAD_BYTES] != _checksum(kind, payload):
        return None
    if kind == _DEFLATED:
        inflated = _inflated(payload)
        if inflated is None:
            return None
        payload = inflated
    elif kind != _PLAIN:
        return None
    try:
        entry = _decoder.decode(payload)
    except (ValueError, OverflowError, RecursionError):
        # msgspec's DecodeError and ValidationError are ValueErrors, and so is a text that is no UTF-8.
        return None
    return entry if entry.key == key and not _flaw(entry) else None


def _flaw(entry: Entry) -> str:
    """Why an entry is none of ours, in words; "" when it is."""
    if entry.version != VERSION:
        return f"an entry of version {entry.version} where {VERSION} is known"
    if len(entry.key) != KEY_BYTES:
        return f"a key of {len(entry.key)} bytes where one has {KEY_BYTES}"
    if not (0.0 <= entry.created <= entry.expires <= entry.stale_until and isfinite(entry.stale_until)):
        return "times out of order"
    if not (200 <= entry.status <= 599):
        return f"a status of {entry.status}"
    if len(entry.body) > BODY_BYTES_MAX:
        return f"a body of {len(entry.body)} bytes where {BODY_BYTES_MAX} is the most"
    if len(entry.tags) > TAGS_MAX or any(len(tag) > TAG_CHARS_MAX for tag in entry.tags):
        return f"more than {TAGS_MAX} tags, or one of over {TAG_CHARS_MAX} characters"
    if len(entry.delta_offsets) > OFFSETS_MAX:
        return f"more than {OFFSETS_MAX} offsets"
    return ""


def _checksum(kind: bytes, payload: bytes) -> bytes:
    digest = xxhash.xxh3_64(kind)
    digest.update(payload)
    checksum: bytes = digest.digest()
    return checksum


def _inflated(payload: bytes) -> bytes | None:
    """The payload inflated: exactly as long as it says, and nothing after it."""
    size = int.from_bytes(payload[:_SIZE_BYTES], "big")
    if not 0 < size <= PAYLOAD_BYTES_MAX:
        return None
    inflater = zlib.decompressobj()
    try:
        # One byte more than announced: a bomb ends there.
        inflated = inflater.decompress(payload[_SIZE_BYTES:], size + 1)
    except zlib.error:
        return None
    return inflated if len(inflated) == size and inflater.eof and not inflater.unused_data else None
