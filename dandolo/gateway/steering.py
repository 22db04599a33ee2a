"""Headers of a request that say how it is to be handled: how long, in which class, where."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dandolo.errors import RequestError
from dandolo.route.queue import PRIORITIES

STEERING = frozenset(
    (
        b"x-dandolo-timeout", b"x-dandolo-priority", b"x-dandolo-region", b"x-dandolo-explain",
        b"cache-control", b"dandolo-cache", b"dandolo-cache-ttl",
    )
)  # fmt: skip
REGION_CHARS_MAX = 32

_TIMEOUT = re.compile(rb"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m)?")
_UNITS = {None: 1.0, b"ms": 0.001, b"s": 1.0, b"m": 60.0}

Head = Mapping[bytes, bytes]


def timeout_s(head: Head) -> float | None:
    """The caller's own limit on the whole request, from `x-dandolo-timeout`. Raises RequestError (400)."""
    given = head.get(b"x-dandolo-timeout")
    if given is None:
        return None
    match = _TIMEOUT.fullmatch(given)
    seconds = float(match[1]) * _UNITS[match[2]] if match is not None else 0.0
    if seconds <= 0:
        raise RequestError("the header x-dandolo-timeout must be a duration such as 30s or 1500ms")
    return seconds


def priority(head: Head, own: int) -> int:
    """The class of a request: its key's `own`, or a lower one from `x-dandolo-priority`. Raises RequestError (400)."""
    given = head.get(b"x-dandolo-priority")
    if given is None:
        return own
    wish = PRIORITIES.get(given.decode("latin-1").lower())
    if wish is None:
        raise RequestError("the header x-dandolo-priority must be high, normal or low")
    return max(own, wish)


def region(head: Head) -> str:
    """The region in which the caller insists to be served, from `x-dandolo-region`; "" for any."""
    return head.get(b"x-dandolo-region", b"").decode("latin-1").lower()[:REGION_CHARS_MAX]


def explains(head: Head) -> bool:
    """Whether the answer is to tell how its provider was chosen."""
    return head.get(b"x-dandolo-explain", b"").lower() == b"true"
