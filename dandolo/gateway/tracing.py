"""Traces as a worker knows them: which one a request belongs to, and our own span in it, told to the provider.

Only ids are made and carried here; what a span says is made of records, elsewhere and later. While tracing is off none
of this runs, and `traceparent` passes through like any other header of the allowlist.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dandolo.wire import fields
from dandolo.wire.traceparent import encode, parse

if TYPE_CHECKING:
    from dandolo.gateway.progress import Progress

NAMES = frozenset((b"traceparent", b"tracestate"))


class Tracing:
    """Marks requests. `share` (0 to 1) of the traces that begin here are recorded; others follow their caller."""

    __slots__ = ("_below", "_bits")

    def __init__(self, share: float) -> None:
        # By the trace's id, as OpenTelemetry's ratio sampler: all who know the share decide the same.
        self._below = int(share * (1 << 64))
        self._bits = random.Random().getrandbits  # noqa: S311 - ids, no secrets; seeded by the system

    def mark(self, exchange: Progress) -> None:
        """Give an exchange its place in a trace. About 1.5 µs."""
        exchange.trace, exchange.trace_parent, exchange.trace_lines = self.place(exchange.request.fields)

    def place(self, head: dict[bytes, bytes]) -> tuple[str, str, bytes]:
        """For a request's head: the traceparent with our own span, the caller's span or "", and the lines that tell a
        provider."""
        bits = self._bits
        given = head.get(b"traceparent")
        parent = parse(given) if given is not None else None
        span_id = b"%016x" % (bits(64) or 1)
        if parent is None:
            number = bits(128) or 1
            value = encode(b"%032x" % number, span_id, (number & (1 << 64) - 1) < self._below)
            return value.decode("ascii"), "", b"traceparent: %b\r\n" % value
        value = encode(parent.trace_id, span_id, parent.sampled)
        lines = b"traceparent: %b\r\n" % value
        state = head.get(b"tracestate")
        if state is not None:
            lines += fields.encode_fields([(b"tracestate", state)])
        return value.decode("ascii"), parent.parent_id.decode("ascii"), lines
