"""Which of a client's headers go on to a provider: an allowlist, whatever the client calls them (promise 17)."""

from __future__ import annotations

from dandolo.gateway.fleet import Runtime
from dandolo.wire import fields

_NAMES = frozenset((b"openai-beta", b"idempotency-key", b"traceparent", b"tracestate"))
_PREFIXES = (b"anthropic-", b"x-venice-tee-")
REMEMBERED_MAX = 1024
NAME_BYTES_MAX = 64


class Forwarding:
    """Picks the headers to pass on. Names that never pass are remembered: a usual head costs one set difference."""

    __slots__ = ("_stay", "_widened")

    def __init__(self, widened: frozenset[bytes], ours: frozenset[bytes] = frozenset()) -> None:
        """`widened` are names that some provider gets beside the usual ones, `ours` are written by somebody else."""
        self._widened = widened
        self._stay: set[bytes] = set(ours)

    def encode(self, head: dict[bytes, bytes], runtime: Runtime) -> tuple[bytes, bool]:
        """Encoded lines for a provider, and whether they are the same for every head with these names.

        They are the client's allowed headers, and the profile's where the client has none.
        """
        lines = b""
        constant = True
        # RFC 9110 §7.6.1: what Connection names is meant for this hop only.
        hop = fields.list_members(head[b"connection"]) if b"connection" in head else ()
        for name in head.keys() - self._stay:
            if name in _NAMES or name.startswith(_PREFIXES) or name in self._widened:
                constant = False
                if name in hop:
                    continue
                if name not in runtime.fixed and (
                    name in _NAMES or name.startswith(_PREFIXES) or name in runtime.forwarded
                ):
                    lines += fields.encode_fields([(name, head[name])])
            elif len(name) <= NAME_BYTES_MAX and len(self._stay) < REMEMBERED_MAX:
                self._stay.add(name)
        for name, line in runtime.overridable.items():
            if name not in head:
                lines += line
        return lines, constant
