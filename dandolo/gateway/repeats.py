"""Requests that repeat, byte for byte, one that was answered from memory: answered without being read again.

A request of the very same bytes, head and body, from the same address is judged as before as long as what judged it
is the same: so neither its head nor its JSON is parsed, no key is made and no exchange begun. What can have changed is
asked each time: the plane, how much is under way, whether the answer still is the one in memory, fresh and not purged,
and whether the key's rate has room for one more, which is counted as any other.
Only plain answers to requests without headers that steer; whatever else comes takes the usual way, which decides the
same. Measured: 1.3 µs instead of 17 (sockets and records apart).

xxh3 under a random seed picks the slot, and all bytes are compared: nothing rests on the hash. Requests are kept
whole, so not for keys in privacy mode. At most ENTRIES_MAX of them and BYTES_MAX, the oldest goes first.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import xxhash

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.cache import headers
from dandolo.cache.headers import Outcome
from dandolo.cache.memory import ENTRY_BYTES, Kept
from dandolo.clock import timestamp
from dandolo.gateway import site
from dandolo.gateway.answers import JSON
from dandolo.gateway.keeping import STEADY_OFFSET_S
from dandolo.journal import REPEATED_MAX
from dandolo.record import Record

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.gateway import Gateway
    from dandolo.net.downstream import Downstream

ENTRIES_MAX = 1_000
BYTES_MAX = 16 * 1024 * 1024
SHARE_MAX = 20
HEAD_S = 0.25
"""How long the lines of a head that tell the time are used again; all of them tell whole seconds."""

_now = time.monotonic
_hash = xxhash.xxh3_64_intdigest


Hit = tuple[int, float, float]
"""Somebody was given the answer to a request which has come again: that request's number, when it came (monotonic), how
long it took in seconds."""
PENDING_MAX = REPEATED_MAX
"""Hits that wait for the next beat to be recorded; beyond, they do not wait."""


class Repeat:
    """A request and its answer."""

    __slots__ = (
        "_told", "admitted", "bytes_out", "data", "endpoint", "first", "hits", "kept", "last", "model", "peer", "until",
        "usage",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, call: Call, kept: Kept) -> None:
        admitted = exchange.admitted
        self.data = b""
        self.admitted = admitted
        self.peer = exchange.client.peer
        self.kept = kept
        self.endpoint = admitted.endpoint.name
        self.model = call.model
        self.bytes_out = len(kept.entry.body)
        usage = self.usage = exchange.usage or Usage()
        self.hits: list[Hit] = []
        """Those that are not recorded yet."""
        # What all records of it have in common, in the order of their fields: nobody was asked.
        self._told = (
            200, "POST", self.endpoint, admitted.tenant.name, admitted.client, self.model, "", "", "", False, 0, "", "",
            len(call.raw), self.bytes_out, usage.input_tokens, usage.output_tokens, usage.cached_tokens,
            usage.reasoning_tokens, False, 0.0 if exchange.usage is not None else None,
        )  # fmt: skip
        self.until = 0.0
        self.first = self.last = b""

    @property
    def size(self) -> int:
        """Bytes that it holds, about: the request, the answer, and the answer as it is sent."""
        return len(self.data) + 2 * self.bytes_out + ENTRY_BYTES

    def records(self, hits: Sequence[Hit], prefix: str, unix_offset: float) -> Iterator[Record]:
        """As `summary.record` makes them of exchanges. `prefix` is what all request ids begin with."""
        told = self._told
        for number, at, took_s in hits:
            took_ms = int(took_s * 1e6) / 1e3
            yield Record(
                timestamp(at + unix_offset), f"{prefix}{number:010x}", *told, took_ms, None, None, None, took_ms, "hit"
            )

    def answer(self, gateway: Gateway, encoded_id: bytes, now: float) -> bytes:
        """The whole answer."""
        if now >= self.until:
            self.until = now + HEAD_S
            kept, steady, origin = self.kept, now + STEADY_OFFSET_S, self.admitted.origin
            self.first = b"HTTP/1.1 200 OK\r\n%bx-request-id: " % gateway.dates.line(now)
            self.last = b"%b%b%b%b%bContent-Length: %d\r\n\r\n%b" % (
                b"\r\n" if self.admitted.tenant.rated is None else b"",
                kept.head,
                JSON,
                headers.kept(Outcome.HIT, "l1", steady - kept.created, kept.expires - steady),
                b"" if origin is None else site.cors(origin),
                self.bytes_out,
                kept.entry.body,
            )
        rated = self.admitted.tenant.rated
        if rated is None:
            return self.first + encoded_id + self.last
        return b"%b%b\r\n%b%b" % (self.first, encoded_id, rated.lines(now), self.last)


class Repeats:
    """The requests of one worker that may repeat. Empty, it costs others nothing."""

    __slots__ = ("_bytes", "_gateway", "_hit", "_seed", "candidate", "pending", "slots")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._seed = secrets.randbits(64)
        self._bytes = 0
        self.slots: dict[int, Repeat] = {}
        self._hit: list[Repeat] = []
        """Those that have hits which are not recorded yet."""
        self.pending = 0
        """How many hits those are."""
        self.candidate: Any = None
        """What has been answered from memory just now: to whom, and the body that was asked. It counts only within the
        call that brought the request; whoever makes that call sets it to None before."""

    def give(self, connection: Downstream, data: bytes) -> bytes | None:
        """The answer to a request that repeats one, recorded; None when it is to take the usual way."""
        gateway = self._gateway
        repeat = self.slots.get(_hash(data, self._seed))
        if repeat is None or repeat.data != data or repeat.peer != connection.peer:
            return None
        admitted = repeat.admitted
        plane = admitted.plane
        caching, admission, tenant = plane.caching, plane.admission, admitted.tenant
        if (
            plane is not gateway.plane
            or caching is None
            or admission.in_flight >= admission.in_flight_max
            or tenant.in_flight >= tenant.in_flight_max
        ):
            return None
        now = _now()
        kept = repeat.kept
        if caching.memory.get(kept.key, now + STEADY_OFFSET_S) is not kept:
            # The usual way looks again, and counts what it finds.
            self.forget(data)
            return None
        entry = tenant.entry
        if entry is not None and not entry.pass_through(now):
            # Not counted; the usual way words the refusal.
            return None
        number = gateway.requests = gateway.requests + 1
        answer = repeat.answer(gateway, b"%b%010x" % (gateway.request_prefix, number), now)
        hits = repeat.hits
        if not hits:
            self._hit.append(repeat)
        hits.append((number, now, _now() - now))
        pending = self.pending = self.pending + 1
        if pending >= PENDING_MAX:
            gateway.settle()
        return answer

    def settle(self, take: Callable[[Record], None], unix_offset: float) -> None:
        """Record the hits that are not, together: every beat, and before anybody looks at the records."""
        gateway, (repeated, self._hit), self.pending = self._gateway, (self._hit, []), 0
        books, prefix = gateway.books, gateway.request_prefix.decode("ascii")
        for repeat in repeated:
            hits, repeat.hits = repeat.hits, []
            for one in repeat.records(hits, prefix, unix_offset):
                take(one)
            if books is not None:
                books.hits(repeat, hits)

    def learn(self, connection: Downstream, data: bytes) -> None:
        """Remember a request whose answer came from memory, if that is what the last call has done for it."""
        candidate, self.candidate = self.candidate, None
        if candidate is None:
            return
        client, body, repeat = cast("tuple[Downstream, bytes, Repeat]", candidate)
        if client is not connection or not data.endswith(body):
            return
        repeat.data = data
        if repeat.size * SHARE_MAX > BYTES_MAX:
            return
        slot = _hash(data, self._seed)
        self._drop(slot)
        self.slots[slot] = repeat
        self._bytes += repeat.size
        while len(self.slots) > ENTRIES_MAX or self._bytes > BYTES_MAX:
            self._drop(next(iter(self.slots)))

    def noted(self, exchange: Exchange, call: Call, kept: Kept) -> None:
        """A plain answer from memory has been sent to somebody without wishes of his own."""
        if exchange.trace:
            # Each request has a span of its own.
            return
        self.candidate = (exchange.client, call.raw, Repeat(exchange, call, kept))

    def forget(self, data: bytes) -> None:
        """Its answer is not in memory any more."""
        self._drop(_hash(data, self._seed))

    def clear(self) -> None:
        """Forget all."""
        self.slots.clear()
        self._bytes = 0
        self.candidate = None

    def tend(self) -> None:
        """Forget what belongs to a configuration or a key that is gone: those bytes hold the key itself."""
        plane = self._gateway.plane
        for slot, repeat in tuple(self.slots.items()):
            if repeat.admitted.plane is not plane or repeat.admitted.tenant.gone:
                self._drop(slot)

    def _drop(self, slot: int) -> None:
        repeat = self.slots.pop(slot, None)
        if repeat is not None:
            self._bytes -= repeat.size
