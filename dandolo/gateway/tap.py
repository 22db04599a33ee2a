"""The passive reader of a stream: usage, endings and errors of each dialect, with no byte changed needlessly.

For nearly every read it answers one question with a few substring searches, "could this concern me?", and
the bytes go on untouched. Quotes inside JSON strings are escaped, so `"error"` with its quotes is a key or
a whole value, never part of what a model said.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dandolo.api import faults, usage
from dandolo.api.endpoints import Dialect
from dandolo.api.profiles import Profile
from dandolo.api.usage import Usage
from dandolo.errors import GatewayError, UpstreamError, UpstreamInvalid
from dandolo.net.relay import Opening
from dandolo.wire import sse

# Something a client would miss if another provider began anew: text, reasoning, a tool call, an end.
_CONTENT = re.compile(
    rb'"(?:content|reasoning|reasoning_content|text|refusal|arguments|partial_json|thinking|delta|result'
    rb'|finish_reason|stop_reason|b64_json)"\s*:\s*"[^"]|"(?:tool_calls|function_call|images|audio)"\s*:\s*[\[{]'
)
_TERMINALS: dict[Dialect, tuple[bytes, ...]] = {
    "chat": (b"[DONE]",),
    "completions": (b"[DONE]",),
    "responses": (b"[DONE]", b"response.completed", b"response.incomplete", b"response.failed"),
    "messages": (b"[DONE]", b"message_stop"),
    "plain": (b"[DONE]",),
}
LAST_BYTES = 4096
_ENDINGS = (b'"finish_reason":"', b'"finish_reason": "', b'"usage":{', b'"usage": {', b'"stop_reason":"')
_TERMINAL_TYPES = frozenset((b"response.completed", b"response.incomplete", b"response.failed", b"message_stop"))


class StreamTap:
    """Reads one stream.

    `hide_usage`: the usage chunk was asked for by us, not by the caller, and is not passed on. `closing`
    gives an event of our own to put before the end, or b"". `on_content` is called once, at the first
    content. `usage` and `finish` hold what was learned, `data_events` how many events carried data.
    """

    __slots__ = (
        "_all_needles", "_closing", "_dialect", "_hide", "_last", "_needles", "_on_content", "_profile", "_secrets",
        "content_seen", "counted", "data_events", "error", "finish_reason", "response_id",
        "terminated", "usage",
    )  # fmt: skip

    def __init__(
        self,
        dialect: Dialect,
        profile: Profile,
        *,
        secrets: tuple[str, ...],
        hide_usage: bool,
        on_content: Callable[[], None],
        closing: Callable[[], bytes] | None = None,
    ) -> None:
        self._dialect: Dialect = dialect
        self._profile = profile
        self._secrets = secrets
        self._hide = hide_usage
        self._on_content = on_content
        self._closing = closing
        self._needles = (*_TERMINALS[dialect], b'"error"')
        self._all_needles = (*self._needles, b'_reason":"', b'_reason": "', b"\nerror:", b"\rerror:")
        self._last = (b"", b"")
        self.content_seen = False
        self.counted = False
        self.data_events = 0
        self.error: UpstreamError | None = None
        self.finish_reason: str | None = None
        self.response_id = ""
        """Under which id the provider keeps the answer (Responses)."""
        self.terminated = False
        self.usage = Usage()

    def opening(self, events: bytes) -> Opening:
        """Judge complete events before anything was sent. Raises UpstreamError for an error event."""
        find = events.find
        if (
            self._dialect in ("chat", "completions")
            and find(b"error") < 0
            and find(b"[DONE]") < 0
            # A comment could say anything.
            and events[:5] == b"data:"
            and find(b"\n:") < 0
            and find(b"\r") < 0
        ):
            if _CONTENT.search(events) is None:
                return Opening.EMPTY
            self._content()
            return Opening.CONTENT
        for event in sse.split(events):
            fault = faults.in_event_field_error(event, self._profile, secrets=self._secrets)
            name, data = sse.parse(event)
            if fault is None and data is not None:
                fault = faults.in_stream_error(data, self._profile, secrets=self._secrets)
            if fault is not None:
                raise _upstream(fault.error())
            if data is None:
                continue
            if self._dialect == "plain" or _CONTENT.search(data) is not None:
                self._content()
                return Opening.CONTENT
            if data.strip() == b"[DONE]" or self._ends(name, data):
                return Opening.CONTENT
        return Opening.EMPTY

    def concerns(self, events: bytes) -> bool:
        """Whether the events must be looked at before they are forwarded."""
        find = events.find
        for needle in self._needles:
            # Not `in`, which first asks whether the needle is a number, and throws the exception away.
            if find(needle) >= 0:
                return True
        # OpenAI says `"usage":null` in every chunk when usage was asked for: only another value concerns us.
        if self._hide and find(b'"usage"') >= 0 and events.count(b'"usage"') != events.count(b'"usage":null'):
            return True
        # llama.cpp's error field: no JSON has a raw line end, so this cannot be inside a value.
        return events[:6] == b"error:" or find(b"\nerror:") >= 0 or find(b"\rerror:") >= 0

    def indifferent(self, data: bytes) -> bool:
        """Whether a read holds nothing but more content: no end, no error, no usage. Counts it as one event."""
        find = data.find
        for needle in self._all_needles:
            if find(needle) >= 0:
                return False
        if find(b'"usage"') >= 0 and data.count(b'"usage"') != data.count(b'"usage":null'):
            return False
        self.data_events += 1
        if not self.content_seen and _CONTENT.search(data) is not None:
            self._content()
        return True

    def rewrite(self, events: bytes) -> bytes:
        """What to forward instead. Sets `terminated` or `error` when the stream ends with it."""
        kept: list[bytes] = []
        may_fail = events.find(b"error") >= 0
        for event in sse.split(events):
            name, data = sse.parse(event)
            if may_fail:
                fault = faults.in_event_field_error(event, self._profile, secrets=self._secrets)
                if fault is None and data is not None:
                    fault = faults.in_stream_error(data, self._profile, secrets=self._secrets)
                if fault is not None:
                    self.error = _upstream(fault.error())
                    break
            if data is None:
                kept.append(event)
            elif data.strip() == b"[DONE]":
                # Messages and Responses end on an event of their own; there it means nothing.
                if self._dialect not in ("messages", "responses"):
                    kept += (self._own(), event)
                    self.terminated = True
                    break
            else:
                self.data_events += 1
                if not self.content_seen and _CONTENT.search(data) is not None:
                    self._content()
                if self._read(name, data):
                    kept.append(event)
                if self.terminated:
                    break
        return b"".join(kept)

    def observe(self, events: bytes) -> None:
        """Read events that have been forwarded."""
        self.data_events += _data_events(events)
        if not self.content_seen and _CONTENT.search(events) is not None:
            self._content()
        for needle in _ENDINGS:
            if events.find(needle) >= 0:
                for event in sse.split(events):
                    name, data = sse.parse(event)
                    if data is not None:
                        self._read(name, data)
                return
        # Only the end of it: a paused stream must not keep whole reads alive.
        self._last = (self._last[1], events[-LAST_BYTES:])

    def finish(self) -> bytes:
        """The stream's bytes have ended: what is still to be sent. Raises UpstreamInvalid when it was cut short."""
        if self.terminated:
            return b""
        if self._dialect == "plain":
            return self._own()
        if self.finish_reason is None:
            # The cheap search knows the usual spacing only; the last events are read properly.
            for event in sse.split(b"".join(self._last)):
                name, data = sse.parse(event)
                if data is not None:
                    self._read(name, data)
        if self.finish_reason is not None and self._dialect in ("chat", "completions"):
            self.terminated = True
            return self._own() + sse.DONE_EVENT
        raise UpstreamInvalid("the provider ended its stream before it said that the answer was complete")

    def _read(self, name: bytes, data: bytes) -> bool:
        """Learn from one event; False when it is not to be forwarded."""
        found = usage.facts(data)
        if found is None:
            return True
        if self.finish_reason is None:
            self.finish_reason = found.finish()
        counted = usage.add(self.usage, found)
        if counted and not self.counted:
            # Anthropic's message_start counts the input only: what was put out is known at the end.
            self.counted = found.type != "message_start"
        if self._dialect in ("responses", "messages") and _terminal(name, found):
            self.terminated = True
            if found.response is not None:
                self.response_id = found.response.id or ""
        # Ours to hide is the extra chunk only: usage that rides on content stays where the provider put it.
        return not (self._hide and counted and found.choices == [])

    def _ends(self, name: bytes, data: bytes) -> bool:
        """Whether one event is the end in its dialect."""
        if self._dialect not in ("responses", "messages"):
            return False
        found = usage.facts(data)
        return found is not None and _terminal(name, found)

    def _content(self) -> None:
        self.content_seen = True
        self._on_content()

    def _own(self) -> bytes:
        return self._closing() if self._closing is not None else b""


def _data_events(events: bytes) -> int:
    """How many complete events carry data. A raw line end cannot stand in JSON, so lines are what they seem."""
    if events[:5] == b"data:" and events.find(b"\n") == len(events) - 2:
        return 1
    return sum(sse.parse(event)[1] is not None for event in sse.split(events))


def _terminal(name: bytes, found: usage.Facts) -> bool:
    return name in _TERMINAL_TYPES or (found.type or "").encode() in _TERMINAL_TYPES


def _upstream(error: GatewayError) -> UpstreamError:
    assert isinstance(error, UpstreamError)
    return error
