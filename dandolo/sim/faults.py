"""Misbehaviour inside a stream: what a fault does to the events of an answer, and how events become bytes.

Works on events only: where bytes are framed, withheld or spoilt on the wire is `play`'s part. Usage faults
decode and re-encode the chunks they move usage in, so they serve every endpoint that has chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from dandolo.sim.answer import Asked, Event, Json, encode
from dandolo.sim.envelopes import error_event
from dandolo.sim.script import Fault

BIG_EVENT_BYTES = 1 << 20
KEEPALIVE_S = 0.05

Events = Iterator[Event]


def shape(asked: Asked, fault: Fault | None, events: Events) -> Events:
    """The events that are really sent, and what happens between them."""
    kind = fault.kind if fault else "ok"
    if fault is None or kind not in _SHAPERS:
        return _visible(events)
    return _SHAPERS[kind](asked, fault, events)


def event_bytes(event: Event, fault: Fault | None, *, first: bool) -> bytes:
    """One event as the provider writes it. Payloads are one line, as every provider's JSON is."""
    kind = fault.kind if fault else "ok"
    newline = {"sse_crlf": b"\r\n", "sse_cr": b"\r"}.get(kind, b"\n")
    space = b"" if kind == "sse_no_space" else b" "
    lines: list[bytes] = []
    if event.act == "comment":
        return b":" + space + event.payload + newline * 2
    if kind == "sse_comments":
        lines += [b": a comment: data: not this", b":", b"id: 7", b"retry: 3000"]
    if event.name:
        lines.append(b"event:" + space + event.name.encode())
    lines.append(event.field.encode() + b":" + space + event.payload)
    mark = b"\xef\xbb\xbf" if first and kind == "sse_bom" else b""
    return mark + newline.join(lines) + newline * 2


def _visible(events: Events) -> Events:
    return (event for event in events if not event.hidden)


def _cut(asked: Asked, fault: Fault, events: Events) -> Events:
    for number, event in enumerate(_visible(events)):
        if number == fault.after:
            break
        yield event
    if fault.kind == "cut_rst":
        # What was sent before needs a moment to be read: some receivers drop their buffer on a reset.
        yield Event(act="wait", wait_s=fault.delay_s or 0.02)
    yield Event(act="reset" if fault.ending == "reset" else "close")


def _stall(asked: Asked, fault: Fault, events: Events) -> Events:
    after = 0 if fault.kind == "hang_after_head" else fault.after
    for number, event in enumerate(_visible(events)):
        if number == after:
            break
        yield event
    yield Event(act="wait", wait_s=fault.delay_s)
    yield Event(act="reset" if fault.ending == "reset" else "close")


def _stream_error(asked: Asked, fault: Fault, events: Events) -> Events:
    last = b""
    for number, event in enumerate(_visible(events)):
        if number == fault.after:
            break
        last = event.payload
        yield event
    yield error_event(fault.form, asked.dialect, asked.path, last)
    if fault.count:
        yield Event(b"[DONE]", "done")
    if fault.ending in ("close", "reset"):
        yield Event(act="reset" if fault.ending == "reset" else "close")


def _without(*parts: str) -> Callable[[Asked, Fault, Events], Events]:
    def shaper(asked: Asked, fault: Fault, events: Events) -> Events:
        return (event for event in _visible(events) if event.part not in parts)

    return shaper


def _after_done(asked: Asked, fault: Fault, events: Events) -> Events:
    extra: Event | None = None
    for event in _visible(events):
        if event.part == "token":
            extra = event
        yield event
    if extra:
        yield extra


def _hold_after_done(asked: Asked, fault: Fault, events: Events) -> Events:
    yield from _visible(events)
    yield Event(act="wait", wait_s=fault.delay_s)


def _big_event(asked: Asked, fault: Fault, events: Events) -> Events:
    number = 0
    for event in _visible(events):
        if event.part == "token":
            if number == fault.after:
                event.payload = _inflated(event.payload, fault.size or BIG_EVENT_BYTES)
            number += 1
        yield event


def _inflated(payload: bytes, size: int) -> bytes:
    """The same chunk with its text grown, so that the payload has exactly `size` bytes (or as it was)."""
    chunk: Json = msgspec.json.decode(payload)
    holder: Any = chunk["choices"][0] if chunk.get("choices") else chunk
    delta = holder.get("delta")
    if isinstance(delta, dict):
        holder = delta
    key = next((k for k in ("content", "text", "delta", "thinking", "partial_json") if k in holder), "content")
    holder[key] = ""
    holder[key] = "x" * max(0, size - len(encode(chunk)))
    return encode(chunk)


def _keepalive_forever(asked: Asked, fault: Fault, events: Events) -> Events:
    for number, event in enumerate(_visible(events)):
        if number == fault.after:
            break
        yield event
    while True:
        yield Event(b"keep-alive", act="comment")
        yield Event(act="wait", wait_s=fault.delay_s or KEEPALIVE_S)


def _finish_no_usage(asked: Asked, fault: Fault, events: Events) -> Events:
    for event in events:
        if event.part == "usage":
            continue
        if event.part in ("finish", "done") and event.payload[:1] == b"{":
            chunk: Json = msgspec.json.decode(event.payload)
            chunk.pop("usage", None)
            if isinstance(chunk.get("response"), dict):
                chunk["response"]["usage"] = None
            event.payload = encode(chunk)
        yield event


def _moved_usage(asked: Asked, fault: Fault, events: Events) -> Events:
    """Usage where OpenAI does not put it; streams without a usage chunk (Messages, Responses) stay."""
    all_events = list(events)
    usage = next((msgspec.json.decode(e.payload)["usage"] for e in all_events if e.part == "usage"), None)
    if usage is None:
        yield from all_events
        return
    finishes = [event for event in all_events if event.part == "finish"]
    tokens = max(1, sum(event.part == "token" for event in all_events))
    done = 0
    for event in all_events:
        if event.part == "usage":
            if fault.kind in ("usage_continuous", "usage_cumulative"):
                event.hidden = False
                yield event
            continue
        if event.payload[:1] != b"{":
            yield event
            continue
        chunk: Json = msgspec.json.decode(event.payload)
        if event.part == "token":
            done += 1
        so_far = _part_of(usage, done, tokens)
        if fault.kind == "usage_continuous":
            chunk["usage"] = so_far
        elif event is finishes[-1] and fault.kind == "usage_in_choice":
            chunk["choices"][0]["usage"] = usage
        elif event is finishes[-1] and fault.kind == "usage_x_groq":
            chunk["x_groq"] = {"id": asked.id("req"), "usage": usage}
        event.payload = encode(chunk)
        yield event
        if fault.kind == "usage_cumulative" and event.part == "token":
            yield Event(encode({**chunk, "choices": [], "usage": so_far}))


def _part_of(usage: Json, done: int, tokens: int) -> Json:
    written = usage["completion_tokens"] * done // tokens
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": written,
        "total_tokens": usage["prompt_tokens"] + written,
    }


_SHAPERS: dict[str, Callable[[Asked, Fault, Events], Events]] = {
    "cut_fin": _cut,
    "cut_rst": _cut,
    "bad_chunk": _cut,
    "stall": _stall,
    "hang_after_head": _stall,
    "stream_error": _stream_error,
    "no_done": _without("done"),
    "no_finish": _without("finish"),
    "no_finish_no_done": _without("finish", "done"),
    "after_done": _after_done,
    "hold_after_done": _hold_after_done,
    "big_event": _big_event,
    "keepalive_forever": _keepalive_forever,
    "finish_no_usage": _finish_no_usage,
    "usage_in_choice": _moved_usage,
    "usage_x_groq": _moved_usage,
    "usage_continuous": _moved_usage,
    "usage_cumulative": _moved_usage,
}
