"""Passing an answer on while it arrives: events with the boundaries kept, everything else as bytes.

`EventRelay` forwards through the last complete event and holds the unfinished tail, at most `TAIL_BYTES_MAX`
of it; a larger event passes piecewise. It forwards before anybody looks: a `Tap` is asked first only whether
the bytes could concern it at all (a few substring searches), and reads them after they are gone unless they
must be changed. Until the first content the relay may hold everything (so that another provider can still
take over), at most `HELD_BYTES_MAX`; `commit` is called once, with what is to follow the client's head at once.

Backpressure is direct: a client that cannot keep up pauses the provider's socket, so a stream holds at most
the tail, one read and the client's write buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from dandolo.errors import UpstreamError, UpstreamInvalid
from dandolo.net.downstream import Downstream
from dandolo.net.strand import Waiter
from dandolo.net.sweep import Sweep
from dandolo.net.upstream import Upstream
from dandolo.wire.refrain import Refrain
from dandolo.wire.sse import EventStream, is_comment, split

TAIL_BYTES_MAX = 64 * 1024
HELD_BYTES_MAX = 64 * 1024
EVENT_BYTES_MAX = 16 * 1024 * 1024
_NO_PAYLOAD = frozenset((b":", b"\n", b"\r"))
HEARTBEAT = b": dandolo\n\n"
BODY_BYTES_MAX = 32 * 1024 * 1024


class Opening(IntEnum):
    """What the first events of a stream amount to."""

    EMPTY = 0
    """Comments and role-only chunks: nothing a client would miss."""
    CONTENT = 1
    """Content, reasoning, a tool call, or the end of the stream."""


class Tap(Protocol):
    """Whoever understands the events of a dialect."""

    content_seen: bool
    """The first content has passed."""
    data_events: int
    """How many events carried data."""
    terminated: bool
    """The dialect's own end has been seen; nothing after it is passed on."""
    error: UpstreamError | None
    """The provider reported a failure within the stream; nothing after it is passed on."""

    def opening(self, events: bytes) -> Opening:
        """Judge complete events before anything was sent. Raises UpstreamError for an error event."""

    def concerns(self, events: bytes) -> bool:
        """Whether the events must be looked at before they are forwarded. Cheap: it runs for every read."""

    def rewrite(self, events: bytes) -> bytes:
        """What to forward instead. Sets `terminated` or `error` when the stream ends with it."""

    def observe(self, events: bytes) -> None:
        """Read events that have been forwarded."""

    def indifferent(self, data: bytes) -> bool:
        """Whether a read, framing and all, holds nothing but more of the same content. Counts it as one event."""

    def finish(self) -> bytes:
        """The stream's bytes have ended: what is still to be sent. Raises UpstreamInvalid when it was cut short."""


class _Passed:
    """What an event stream has forwarded, and when last by the shortcut."""

    __slots__ = ("at", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self.at = 0.0


class EventRelay:
    """Relays one event stream from a provider's connection to a client's."""

    streams = True
    __slots__ = (
        "_client", "_commit", "_events", "_held", "_hold", "_in_event_bytes", "_on_payload", "_pace", "_passed",
        "_provider", "_shortcut", "_tap", "committed", "done", "last", "oversized",
    )  # fmt: skip

    def __init__(
        self,
        client: Downstream,
        provider: Upstream,
        tap: Tap,
        *,
        hold: bool,
        commit: Callable[[EventRelay, bytes], None],
        on_payload: Callable[[], None],
        pace: Sweep,
    ) -> None:
        """`commit` sends the client's head, and the first bytes with it."""
        self._client = client
        self._provider = provider
        self._tap = tap
        self._hold = hold
        self._commit = commit
        self._on_payload = on_payload
        self._pace = pace
        self._events = EventStream()
        self._held = b""
        self._in_event_bytes = 0
        self._shortcut: Callable[[bytes], bool] | None = None
        self.committed = False
        self.oversized = False
        self.last = b""
        """What is to be sent with the end of a stream that has ended well."""
        self._passed = _Passed()
        self.done: Waiter[None] = Waiter()

    @property
    def payload_bytes(self) -> int:
        """How much was forwarded."""
        return self._passed.bytes

    @property
    def payload_at(self) -> float:
        """When content last took the shortcut, of which `on_payload` is not told: monotonic seconds by `pace`."""
        return self._passed.at

    def finished(self) -> bool:
        """Whether the stream has ended, well or badly."""
        return self.done.done

    # -- from the provider -----------------------------------------------------------------------------

    def data(self, content: bytes) -> None:
        """Content from the provider."""
        if self.finished():
            return
        try:
            if self.oversized:
                self._piecewise(content)
                return
            events = self._events.push(content)
            if events:
                self._forward(events)
            if self._events.tail:
                if len(self._events.tail) > TAIL_BYTES_MAX and not self.finished():
                    self._begin_piecewise()
            elif self.committed and not self.done.done and self._client.chunked:
                self._take_shortcut()
        except UpstreamError as error:
            self.broken(error)

    def end(self) -> None:
        """The provider's framing is complete: so is the stream if its dialect says so."""
        if self.finished():
            return
        try:
            tail = self._events.take_tail()
            if tail.strip(b"\r\n"):
                # The last event may lack its blank line; every SDK takes it all the same.
                self._forward(tail + b"\n\n")
            if self.finished():
                return
            closing = self._tap.finish()
            if not self.committed:
                self._send(self._held)
                self._held = b""
            self.last = closing
            self._passed.bytes += len(closing)
        except UpstreamError as error:
            self.broken(error)
            return
        self.done.set(None)

    def broken(self, error: UpstreamError) -> None:
        """The stream ended badly; what was forwarded ends at an event boundary."""
        self.done.fail(error)

    # -- from the client -------------------------------------------------------------------------------

    def pause(self) -> None:
        """The client is slow."""
        self._provider.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._provider.resume()

    def beat(self) -> None:
        """Show a sign of life on a silent stream: a comment between events. Commits the head."""
        if self.oversized or self.finished():
            return
        if not self.committed:
            self._send(b"")
            if self._held:
                held, self._held = self._held, b""
                self._forward(held)
        self._client.write(HEARTBEAT)

    # -- between ---------------------------------------------------------------------------------------

    def _forward(self, events: bytes) -> None:
        tap = self._tap
        if not self.committed:
            if self._held:
                events = self._held + events
                self._held = b""
            opening = tap.opening(events)
            if opening is Opening.EMPTY and self._hold and len(events) <= HELD_BYTES_MAX:
                self._held = events
                return
        if tap.concerns(events):
            events = tap.rewrite(events)
            if tap.terminated and tap.error is None:
                if not self.committed:
                    self._send(b"")
                self.last = events
                self._passed.bytes += len(events)
                self.done.set(None)
                return
            self._send(events)
            if tap.error is not None:
                self.done.fail(tap.error)
                return
        else:
            self._send(events)
            tap.observe(events)
        # A comment alone is a sign of life, no payload: it does not move the idle deadline. (A blank line
        # may lead: the second half of a CRLF that was cut.)
        if events[:1] not in _NO_PAYLOAD or not is_comment(events):
            self._on_payload()

    def _take_shortcut(self) -> None:
        """From here on a read that is one chunk of whole events goes on as it is, chunk framing included.

        That is what nearly every read is: one chunk, complete events, nothing that concerns the tap. A stream
        that comes every few milliseconds runs in cold caches, where what is executed costs several times what a
        benchmark in a loop says, and the sooner the bytes go on the likelier their reader is still awake.

        Two ways, both of a few steps. Most chunks repeat the one before but for the text in them (`Refrain`):
        what was found harmless stays so, whatever the text. The others are asked for what would concern the
        tap. Whatever is neither takes the long way, and the shortcut with it.
        """
        decoder = self._provider.reader.at_chunk
        if decoder is None or not decoder.at_boundary:
            return
        if self._shortcut is not None:
            self._provider.shortcut = self._shortcut
            return
        # Not itself: with what it keeps to hand out again it would be garbage that only a collection finds.
        provider, client, tap, pace, passed = self._provider, self._client, self._tap, self._pace, self._passed
        outbox, send, whole = client.outbox, client.transport.write, decoder.whole
        refrain = Refrain()
        known, predict, text = refrain.shapes.get, refrain.shape, refrain.text

        def shortcut(data: bytes) -> bool:
            total = len(data)
            shape = known(total) or predict(total)
            if (
                shape is not None
                and data.startswith(shape[0])
                and data.endswith(refrain.closing)
                and text(data, len(shape[0]), total - refrain.closing_bytes) is not None
            ):
                size = shape[1]
                tap.data_events += 1
            else:
                size = whole(data)
                if not size or data[-4:] != b"\n\n\r\n" or not tap.indifferent(data):
                    provider.shortcut = None
                    return False
                if tap.content_seen:
                    refrain.learn(data, size)
            if outbox.quiet and not outbox.pending:
                outbox.writes += 1
                try:
                    send(data)
                except RuntimeError:
                    # The client has closed its transport; its protocol hears of it a turn later.
                    return True
            else:
                outbox.write(client.transport, data)
            passed.bytes += size
            passed.at = pace.now
            return True

        self._shortcut = provider.shortcut = shortcut

    def _send(self, events: bytes) -> None:
        """Pass on, the client's head before it when that has not gone out: in one write, which is one wake-up."""
        self._passed.bytes += len(events)
        if self.committed:
            if events:
                self._client.write(events)
        else:
            self.committed = True
            self._commit(self, events)

    def _begin_piecewise(self) -> None:
        """An event larger than the tail may grow passes in pieces (promise 26)."""
        if self._held or not self.committed:
            self._send(self._held)
            self._held = b""
        self.oversized = True
        self._in_event_bytes = 0
        self._piecewise(self._events.take_tail())

    def _piecewise(self, content: bytes) -> None:
        self._in_event_bytes += len(content)
        if self._in_event_bytes > EVENT_BYTES_MAX:
            raise UpstreamInvalid(f"the provider sent one event of more than {EVENT_BYTES_MAX} bytes")
        complete = self._events.push(content)
        if not complete:
            # Hold back what could be half of the blank line, so that its end is found.
            tail = self._events.take_tail()
            keep = 3 if len(tail) > 3 else 0
            if keep:
                self._client.write(tail[:-keep])
                self._events.tail = tail[-keep:]
            else:
                self._events.tail = tail
        else:
            self.oversized = False
            first, *rest = split(complete)
            self._client.write(first)
            if rest:
                self._forward(b"".join(rest))
        self._on_payload()


class BytesRelay:
    """Relays any other body: its length, if it has one, stays visible, so that truncation does too."""

    __slots__ = ("_client", "_on_payload", "_provider", "_tail", "done", "payload_bytes")

    TAIL_BYTES = 4096
    streams = False
    oversized = False

    def __init__(self, client: Downstream, provider: Upstream, *, on_payload: Callable[[], None]) -> None:
        self._client = client
        self._provider = provider
        self._on_payload = on_payload
        self._tail = b""
        self.payload_bytes = 0
        self.done: Waiter[None] = Waiter()

    @property
    def tail(self) -> bytes:
        """The last bytes of the body (where a large JSON answer has its usage)."""
        return self._tail[-self.TAIL_BYTES :]

    def data(self, content: bytes) -> None:
        """Content from the provider."""
        if self.done.done:
            return
        self.payload_bytes += len(content)
        if self.payload_bytes > BODY_BYTES_MAX:
            self.broken(UpstreamInvalid(f"the provider's answer has more than {BODY_BYTES_MAX} bytes"))
            return
        self._client.write(content)
        self._tail = content if len(content) >= self.TAIL_BYTES else (self._tail + content)[-self.TAIL_BYTES :]
        self._on_payload()

    def end(self) -> None:
        """The body is complete."""
        self.done.set(None)

    def broken(self, error: UpstreamError) -> None:
        """The body was cut short."""
        self.done.fail(error)

    def pause(self) -> None:
        """The client is slow."""
        self._provider.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._provider.resume()


class Remainder:
    """Reads what a provider still has to say after the client's answer is complete, then lets go of it.

    An answer whose connection does not end within `deadline` costs that connection, nothing else.
    """

    __slots__ = ("_on_end", "_provider", "deadline")

    def __init__(self, provider: Upstream, deadline: float, on_end: Callable[[Remainder], None]) -> None:
        self._provider = provider
        self.deadline = deadline
        self._on_end = on_end

    def data(self, content: bytes) -> None:
        """Data after the end is dropped."""

    def end(self) -> None:
        """The connection is free."""
        self._on_end(self)

    def broken(self, error: UpstreamError) -> None:
        """The connection is of no more use."""
        self._on_end(self)

    def expire(self, now: float) -> None:
        """Waited long enough."""
        self._provider.close()
        self._on_end(self)
