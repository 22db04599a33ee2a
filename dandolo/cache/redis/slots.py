"""How a Redis cluster divides keys: 16,384 slots, each owned by one node. Pure.

After the Redis cluster specification: the slot is CRC16 (XMODEM) of the key modulo 16384; where a key has a
`{…}` with something inside, only that counts.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from typing import Final

from dandolo.cache.redis.link import Endpoint
from dandolo.wire.resp import ErrorReply, Reply

SLOTS: Final = 16384


def slot_of(key: bytes) -> int:
    """The slot of a key."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) & (SLOTS - 1)


def ranges(reply: Reply, asked: Endpoint) -> list[tuple[int, int, Endpoint]]:
    """First slot, last slot and master of every range in a reply to CLUSTER SLOTS. Raises ValueError.

    CLUSTER SLOTS is what every version of Redis and Valkey answers (CLUSTER SHARDS came with 7.0 and says the
    same of masters). A node without a host is at the host that was `asked`; one that is "?" is left out.
    """
    return list(_ranges(reply, asked))


def _ranges(reply: Reply, asked: Endpoint) -> Iterator[tuple[int, int, Endpoint]]:
    if not isinstance(reply, list):
        raise ValueError("CLUSTER SLOTS gave no list")
    for one in reply:
        if not isinstance(one, list) or len(one) < 3:
            raise ValueError("a range of CLUSTER SLOTS has less than first, last and master")
        first, last, node = one[:3]
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < SLOTS):
            raise ValueError("a range of CLUSTER SLOTS is not within the slots")
        if not isinstance(node, list) or len(node) < 2:
            raise ValueError("a master of CLUSTER SLOTS has less than host and port")
        host, port = node[:2]
        if not (host is None or isinstance(host, bytes)) or not isinstance(port, int) or not 0 < port < 65536:
            raise ValueError("a master of CLUSTER SLOTS has no address")
        if host != b"?":
            yield first, last, Endpoint((host or b"").decode("ascii") or asked.host, port)


def redirection(error: ErrorReply, asked: Endpoint) -> tuple[bool, int, Endpoint] | None:
    """Whether to ask there once only, the slot, and where, from MOVED or ASK; None for any other error.

    A host may be missing: it is then the one that was `asked`.
    """
    words = error.message.split(b" ")
    if len(words) != 3 or words[0] not in (b"MOVED", b"ASK"):
        return None
    host, colon, port = words[2].rpartition(b":")
    if not colon or not words[1].isdigit() or not port.isdigit() or len(port) > 5 or len(words[1]) > 5:
        return None
    slot = int(words[1])
    if slot >= SLOTS or not 0 < int(port) < 65536 or host == b"?" or not host.isascii():
        return None
    return words[0] == b"ASK", slot, Endpoint(host.decode().strip("[]") or asked.host, int(port))
